"""Two adapters, or an adapter and a base: what can be measured. Judges nothing.

**Two adapters** are compared tensor by tensor as what they add to the base, so the choice of factors (A -> G A,
B -> B G^-1) does not matter. Statistic: the cosine c of the two differences.
Null: random input factors (see adapter_factors). When it lies: A is trained too, and starts from the same numbers
where two people use one seed, so a significant c alone is no descent; see docs/design/008-adapters.md.
Tensors saved whole and the norms of DoRA are left out: they hold the base's own values.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from drupe.messages import msg
from drupe.model import Model
from drupe.name_groups import Named, expand
from drupe.readers.adapters import AdapterFile, Fit, fit
from drupe.readers.adapters.interface import MAGNITUDE, Change, LowRank, Method, method_of
from drupe.readers.adapters.settings import Start
from drupe.readers.interface import Absent, TensorInfo, Window
from drupe.recover.adapter_factors import (
    BALANCED,
    MAX_BLOCK,
    MIN_ROWS,
    Factors,
    Rest,
    balance,
    cast_between,
    factors_of,
    log10_contained,
    log10_overlap,
    log10_same_signs,
    rest_of,
)
from drupe.residual import cast_of
from drupe.signals import declared
from drupe.signals.interface import Baseline, Component, Effect, Evidence, Finding, Measured, Skipped
from drupe.stats import log10_bonferroni
from drupe.subject import Subject

MAX_PAIRS = 64
"""Tensors that are compared, evenly spread over all common ones."""
MAX_HASHED = 1 << 30
"""Bytes of a base's file of which the digest is computed, where the adapter states one."""
LOG10_ALPHA = -5.0
SIGNAL = "weights.adapter"
STRANGERS = (0.08, 0.81)
"""Median and largest cosine of a tensor of adapters that were trained apart on one base, each from a random start of
its own (benchmarks/adapter_null.py)."""
MAX_EVIDENCE = 8
_COMPARED = (Method.LORA, Method.LOHA, Method.IA3)


@dataclass(frozen=True, slots=True)
class Declared:
    """An adapter against a model: whether it fits, and what it says of its base."""

    fit: Fit
    place: declared.Place | None
    """Where it names this very model; None when it does not."""
    same_digest: bool
    suspect_is_adapter: bool

    @property
    def declares(self) -> bool:
        """By name or digest."""
        return self.place is not None or self.same_digest


@dataclass(frozen=True, slots=True)
class DeltaPair:
    """One tensor that both adapters change. ``rho`` |D|/|source| ; ``after_scale`` the same after the best factor.

    ``log10_p`` of the cosine; ``log10_contained`` of all directions of one being among the other's, else 0.
    """

    tensor: str
    size: int
    cosine: float
    scale: float
    equal: float
    rho: float
    after_scale: float
    log10_p: float
    log10_contained: float
    speaks: bool
    """Both differences have values: neither adapter is untrained, all zero or damaged here."""
    random_start: bool
    """Whether each side's start was drawn by chance: only then can likeness speak."""


@dataclass(frozen=True, slots=True)
class Deltas:
    """Two adapters. ``common`` tensors are changed by both, of ``total`` that the suspect changes."""

    common: int
    total: int
    pairs: tuple[DeltaPair, ...]
    cast: str | None
    rest: Rest
    others_equal: bool | None
    """Whether what is stored beside the differences (tensors saved whole, norms of DoRA) is equal, up to ``cast``."""
    sizes_met: bool
    """Whether any tensor of one has the size of one of the other's, whatever their names."""
    log10_signs: float
    """Of the directions of a random start; 0 where it was not random."""


def against_base(suspect: Subject, source: Subject) -> Declared | None:
    """Exactly one of the sides is an adapter: does it fit the other, and does it declare it?"""
    a, b = suspect.fingerprint.adapter, source.fingerprint.adapter
    if (a is None) == (b is None):
        return None
    adapter, base = (suspect, source) if a is not None else (source, suspect)
    facts = a or b
    assert facts is not None
    found = fit(_tensors(adapter), _tensors(base))
    place = declared.declared_base(adapter.fingerprint.declared, base.fingerprint.declared)
    same = facts.base_digest is not None and facts.base_digest in _digests(base.model)
    return Declared(found, place, same, a is not None)


def _tensors(side: Subject) -> list[Named | TensorInfo]:
    if side.model is not None and not isinstance(side.model.weights, Absent):
        return list(side.model.weights.tensors.values())
    return list(expand(side.fingerprint.names.groups))


def _digests(model: Model | None) -> set[str]:
    """sha256 of the weight files, where they are known or cheap to compute."""
    if model is None or isinstance(model.weights, Absent):
        return set()
    known: dict[str, str] = getattr(model.tree, "known_digests", {})
    found = set()
    for file in {info.file for info in model.weights.tensors.values()}:
        if file in known:
            found.add(known[file])
        elif model.tree.files().get(file, MAX_HASHED) < MAX_HASHED:
            blob, digest = model.tree.open(file), hashlib.sha256()
            for start in range(0, blob.size, 1 << 22):
                digest.update(blob.read(start, min(1 << 22, blob.size - start)))
            found.add(digest.hexdigest())
    return found


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def compare_deltas(a: Model, b: Model) -> Deltas:
    """Measure two opened adapters."""
    mine, theirs = a.weights, b.weights
    assert isinstance(mine, AdapterFile)
    assert isinstance(theirs, AdapterFile)
    common = _common(a, b, mine, theirs)
    total = sum(_is_compared(info) for info in mine.tensors.values())
    places = np.linspace(0, len(common) - 1, min(MAX_PAIRS, len(common))).astype(int)
    chosen = [common[place] for place in places]
    factors = {names: factors_of(mine, theirs, *names) for names in chosen}
    known = [found for found in factors.values() if found is not None]
    random = mine.start is theirs.start is Start.RANDOM and balance(known) > BALANCED
    pairs = tuple(_pair(mine, theirs, names, factors[names], random) for names in chosen)
    cast = cast_between(mine, theirs, chosen)
    others = _others_equal(mine, theirs, cast)
    signs = log10_same_signs(known) if random else 0.0
    return Deltas(len(common), total, pairs, cast, rest_of(known), others, _sizes(mine, theirs), signs)


def _sizes(mine: AdapterFile, theirs: AdapterFile) -> bool:
    found = [
        {info.matrix_shape for info in side.tensors.values() if _is_compared(info)} for side in (mine, theirs)
    ]
    return not found[0].isdisjoint(found[1])


def _others_equal(mine: AdapterFile, theirs: AdapterFile, cast: str | None) -> bool | None:
    names = [name for name, info in mine.tensors.items() if not _is_compared(info) and name in theirs.tensors]
    for name in names:
        shapes = [file.tensors[name].matrix_shape for file in (mine, theirs)]
        if shapes[0] != shapes[1]:
            return False
        columns = min(shapes[0][1], MAX_BLOCK // MIN_ROWS)
        rows = min(shapes[0][0], max(1, MAX_BLOCK // max(columns, 1)))
        own, other = (file.read([Window(name, 0, rows, 0, columns)])[0] for file in (mine, theirs))
        if not np.array_equal(own, other) and (cast is None or cast_of(other, own) != cast):
            return False
    return True if names else None


def adapter_findings(deltas: Deltas | None) -> tuple[Finding, ...]:
    """What is said of the weights of adapters in place of the sketch, for which matrices of low rank are no coins."""
    pairs = [pair for pair in deltas.pairs if pair.speaks] if deltas is not None else []
    if deltas is None or not pairs:
        key = "adapters.needs_two" if deltas is None else "adapters.nothing_speaks"
        return (Skipped(SIGNAL, Component.WEIGHTS, msg(key)),)
    cosines = np.array([pair.cosine for pair in pairs])
    low, middle, high = (float(value) for value in np.quantile(cosines, (0.05, 0.5, 0.95)))
    clearest = min(pairs, key=lambda pair: pair.log10_p)
    order = sorted(pairs, key=lambda pair: -abs(pair.cosine))
    step = max(1, len(order) // MAX_EVIDENCE)
    finding = Measured(
        SIGNAL,
        Component.WEIGHTS,
        statistic=middle,
        null=msg("adapters.null"),
        sample_size=len(pairs),
        log10_p=log10_bonferroni(clearest.log10_p, len(pairs)),
        effect=Effect(middle, low, high),
        baseline=Baseline(msg("adapters.baseline"), *STRANGERS),
        evidence=tuple(
            Evidence(pair.tensor, msg("adapters.pair", cosine=f"{pair.cosine:.3f}", rho=f"{pair.rho:.3f}"))
            for pair in order[::step][:MAX_EVIDENCE]
        ),
        caveats=(msg("adapters.caveat"),),
    )
    return (finding,)


def _is_compared(info: TensorInfo) -> bool:
    return method_of(info.dtype) in _COMPARED and not info.name.endswith(MAGNITUDE)


def _common(a: Model, b: Model, mine: AdapterFile, theirs: AdapterFile) -> list[tuple[str, str]]:
    """Tensors of equal size under equal names, dots and underscores alike, else of equal role and layer."""
    known = {_plain(name): name for name, info in theirs.tensors.items() if _is_compared(info)}
    theirs_compared = set(known.values())
    by_role = {
        (role.name, role.layer): name for name, role in b.roles.by_tensor.items() if name in theirs_compared
    }
    found = []
    for name, info in mine.tensors.items():
        role = a.roles.by_tensor.get(name)
        other = known.get(_plain(name)) or (by_role.get((role.name, role.layer)) if role else None)
        if other is None or not _is_compared(info):
            continue
        if info.matrix_shape == theirs.tensors[other].matrix_shape:
            found.append((name, other))
    return found


def _plain(name: str) -> str:
    return name.replace(".", "_").replace(":", "_")


def _pair(
    mine: AdapterFile, theirs: AdapterFile, names: tuple[str, str], factors: Factors | None, random: bool
) -> DeltaPair:
    suspect, source = names
    info = mine.tensors[suspect]
    rows, columns = info.matrix_shape
    columns = min(columns, MAX_BLOCK // MIN_ROWS)
    rows = min(rows, max(1, MAX_BLOCK // max(columns, 1)))
    changes = mine.changes[suspect], theirs.changes[source]
    values = [
        file.read([Window(name, 0, rows, 0, columns)])[0].astype(np.float64)
        for file, name in ((mine, suspect), (theirs, source))
    ]
    if method_of(info.dtype) is Method.IA3:
        values = [value - 1.0 for value in values]  # a new one is 1 everywhere
    b, a = values
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    cosine = float((a * b).sum()) / ((norms[0] * norms[1]) or 1.0)
    scale = cosine * norms[1] / (norms[0] or 1.0)
    d = rows if _turned(changes[0]) else columns
    if rows == 1 or columns == 1:
        d = rows * columns
    ranks = sorted(_rank(change) for change in changes)
    return DeltaPair(
        suspect,
        info.size,
        cosine,
        scale,
        float((a == b).mean()) if a.size else 1.0,
        float(np.linalg.norm(b - a)) / (norms[0] or 1.0),
        float(np.linalg.norm(b - scale * a)) / (norms[1] or 1.0),
        log10_overlap(cosine, ranks[1], d) if np.isfinite(cosine) else 0.0,
        0.0 if factors is None else log10_contained(factors),
        bool(np.isfinite(norms).all() and min(norms) > 0.0),
        random and method_of(info.dtype) is not Method.IA3,
    )


def _turned(change: Change) -> bool:
    return isinstance(change, LowRank) and change.turned


def _rank(change: Change) -> int:
    return change.rank**2 if change.method is Method.LOHA else max(1, change.rank)
