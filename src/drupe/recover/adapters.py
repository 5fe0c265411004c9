"""Two adapters, or an adapter and a base: what can be measured. Judges nothing.

**Two adapters** are compared tensor by tensor as what they add to the base, so the choice of factors (A -> G A,
B -> B G^-1) does not matter. Statistic: the cosine c of the two differences. Null: the input factors A were drawn at
random, so that each input direction of one has energy Beta(r/2, (d - r)/2) in those of the other; by Chernoff's
bound log p <= log r - d/2 KL(r/d || c^2) for ranks r, d inputs. When it lies: A is trained too, and starts from the
same numbers where two people use one seed, so a significant c alone is no descent; see docs/design/008-adapters.md.
Tensors saved whole and the norms of DoRA are left out: they hold the base's own values.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from drupe.messages import msg
from drupe.model import Model
from drupe.name_groups import Named, expand
from drupe.readers.adapters import AdapterFile, Fit, fit
from drupe.readers.adapters.interface import MAGNITUDE, Change, LowRank, Method, method_of
from drupe.readers.interface import Absent, FloatArray, TensorInfo, Window
from drupe.residual import cast_of, spectral_edge
from drupe.signals import declared
from drupe.signals.interface import Baseline, Component, Effect, Evidence, Finding, Measured, Skipped
from drupe.stats import log10_bonferroni
from drupe.subject import Subject

MAX_PAIRS = 64
"""Tensors that are compared, evenly spread over all common ones."""
MAX_BLOCK = 1 << 20
"""Values of one tensor that are compared."""
MAX_HASHED = 1 << 30
"""Bytes of a base's file of which the digest is computed, where the adapter states one."""
LOG10_ALPHA = -5.0
MIN_ROWS = 8
"""Rows of stacked residuals from which noise can be told from training."""
SIGNAL = "weights.adapter"
STRANGERS = (0.29, 0.70)
"""Median and largest cosine of a tensor of adapters that were trained apart on one base (tests/adapters)."""
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
    """One tensor that both adapters change. ``rho`` |D|/|source| ; ``after_scale`` the same after the best factor."""

    tensor: str
    size: int
    cosine: float
    scale: float
    equal: float
    rho: float
    after_scale: float
    log10_p: float
    speaks: bool
    """Both differences have values: neither adapter is untrained, all zero or damaged here."""


@dataclass(frozen=True, slots=True)
class Deltas:
    """Two adapters. ``common`` tensors are changed by both, of ``total`` that the suspect changes.

    ``edge``: of the stacked residuals of the factors (see drupe.residual.spectral_edge); None when not testable.
    ``sigma``: their spread relative to that of the source's factors.
    """

    common: int
    total: int
    pairs: tuple[DeltaPair, ...]
    cast: str | None
    edge: float | None
    sigma: float
    values: int
    others_equal: bool | None
    """Whether what is stored beside the differences (tensors saved whole, norms of DoRA) is equal; None without."""


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
    pairs = tuple(_pair(mine, theirs, *names) for names in chosen)
    factors = [found for names in chosen if (found := _factors(mine, theirs, *names)) is not None]
    edge, sigma, values = _residual_edge(factors)
    others = _others_equal(mine, theirs)
    return Deltas(len(common), total, pairs, _cast(factors), edge, sigma, values, others)


def _others_equal(mine: AdapterFile, theirs: AdapterFile) -> bool | None:
    names = [name for name, info in mine.tensors.items() if not _is_compared(info) and name in theirs.tensors]
    for name in names:
        shapes = [file.tensors[name].matrix_shape for file in (mine, theirs)]
        if shapes[0] != shapes[1]:
            return False
        columns = min(shapes[0][1], MAX_BLOCK // MIN_ROWS)
        rows = min(shapes[0][0], max(1, MAX_BLOCK // max(columns, 1)))
        own, other = (file.read([Window(name, 0, rows, 0, columns)])[0] for file in (mine, theirs))
        if not np.array_equal(own, other):
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
    by_role = {
        (role.name, role.layer): name for name, role in b.roles.by_tensor.items() if name in known.values()
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
    return name.replace(".", "_")


def _pair(mine: AdapterFile, theirs: AdapterFile, suspect: str, source: str) -> DeltaPair:
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
        bool(np.isfinite(norms).all() and min(norms) > 0.0),
    )


def _turned(change: Change) -> bool:
    return isinstance(change, LowRank) and change.turned


def _rank(change: Change) -> int:
    return change.rank**2 if change.method is Method.LOHA else max(1, change.rank)


def log10_overlap(cosine: float, rank: int, inputs: int) -> float:
    """Bound of the probability that differences of that rank with random input factors have this cosine.

    >>> round(log10_overlap(0.9, 4, 64), 1), log10_overlap(0.1, 4, 64), log10_overlap(0.9, 64, 64)
    (-18.0, 0.0, 0.0)
    """
    if rank >= inputs:
        return 0.0
    mean, seen = rank / inputs, min(cosine * cosine, 1.0 - 1e-9)
    if seen <= mean:
        return 0.0
    divergence = mean * np.log(mean / seen) + (1 - mean) * np.log((1 - mean) / (1 - seen))
    return float(min(0.0, np.log10(rank) - inputs / 2 * divergence / np.log(10.0)))


Factors = tuple[FloatArray, FloatArray, FloatArray, FloatArray]
"""A and B transposed of the suspect, then of the source; rows are ranks."""


def _factors(mine: AdapterFile, theirs: AdapterFile, suspect: str, source: str) -> Factors | None:
    """The factors of a pair of low rank, as stored, where the ranks are equal and the sizes bearable."""
    found: list[FloatArray] = []
    changes = mine.changes[suspect], theirs.changes[source]
    if not all(isinstance(change, LowRank) for change in changes) or changes[0].rank != changes[1].rank:
        return None
    for file, change in zip((mine, theirs), changes, strict=True):
        assert isinstance(change, LowRank)
        stored = file.stored.tensors
        if stored[change.down].size + stored[change.up].size > MAX_BLOCK:
            return None
        (rows, columns), (outputs, rank) = stored[change.down].matrix_shape, stored[change.up].matrix_shape
        windows = [Window(change.down, 0, rows, 0, columns), Window(change.up, 0, outputs, 0, rank)]
        a, b = file.stored.read(windows)
        found += [a, b.T]
    return found[0], found[1], found[2], found[3]


def _cast(factors: Sequence[Factors]) -> str | None:
    """The type to which all factors of one side were rounded from the other's."""
    casts = {cast_of(source, own) for f in factors for own, source in ((f[0], f[2]), (f[1], f[3]))}
    return casts.pop() if len(casts) == 1 else None


def _residual_edge(factors: Sequence[Factors]) -> tuple[float | None, float, int]:
    """What is left of the suspect's factors after the best change of basis, of all modules of one width at once."""
    stacks: dict[int, list[FloatArray]] = defaultdict(list)
    spreads = []
    for own_a, own_b, a, b in factors:
        for left, right in _undone(own_a, own_b, a, b):
            rest = left - right
            stacks[rest.shape[1]].append(rest)
            spreads.append(float(rest.std()) / (float(right.std()) or 1.0))
    tested = {width: np.concatenate(parts).astype(np.float64) for width, parts in stacks.items()}
    edges = [
        spectral_edge(stack)
        for stack in tested.values()
        if len(stack) >= MIN_ROWS and np.isfinite(stack).all()
    ]
    sigma = float(np.median(spreads)) if spreads else 0.0
    return (max(edges) if edges else None), sigma, sum(stack.size for stack in tested.values())


def _undone(
    own_a: FloatArray, own_b: FloatArray, a: FloatArray, b: FloatArray
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Suspect's factors and the source's in the suspect's basis: own A = G A by least squares, own B' = G^-T B'.

    The same basis is tried first: then nothing is fitted. Scales are those of the stored factors.
    """
    if np.linalg.norm(own_a - a) > 0.5 * np.linalg.norm(a):
        g = np.linalg.lstsq(a.T.astype(np.float64), own_a.T.astype(np.float64), rcond=None)[0].T
        a = (g @ a).astype(np.float32)
        b = (np.linalg.pinv(g).T @ b).astype(np.float32)
    yield own_a, a
    yield own_b, b
