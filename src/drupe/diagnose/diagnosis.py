"""Comparison -> Diagnosis. Pure.

The order of the questions matters and is that of docs/design/005-residual.md: equality and casts, then grids and
zeros on stored values, then scale, then noise against training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drupe.comparison import Comparison
from drupe.diagnose.adapter import diagnose_adapter
from drupe.diagnose.changes import transformations_of
from drupe.diagnose.kinds import SURFACE, Kind, Transformation
from drupe.diagnose.origin import Origin, origin_of
from drupe.diagnose.result import Diagnosis
from drupe.messages import Message, msg
from drupe.recover.findings import PairFacts
from drupe.recover.units import SIGNIFICANT_Z
from drupe.uninformative import State

MIN_LONG, LONG_CHANGE = 8, 0.3
"""Pairs, and their median relative change, from which a direction is read off a long change."""
DIRECTIONS = {
    "suspect_from_source": (-0.25, 0.15),
    "siblings": (0.25, 0.75),
    "source_from_suspect": (0.85, 1.25),
}
"""Ranges of t; beyond them the change is a scale or a merge. Parents of the development zoo are within 0.07 of 0."""
MAX_ZEROS = 0.02
SLACK = 0.15
"""By which two standard errors may reach beyond a range."""
_ARTEFACTS = frozenset(
    {Kind.QUANTISED, Kind.PRUNED, Kind.DEPTH_UPSCALED, Kind.CAST, Kind.WIDTH_PRUNED, Kind.MOE_UPCYCLED}
)
"""What is made of a source and cannot be undone: the side that has it came after."""
_PLAIN_TRAINING = frozenset(
    {
        *(Kind.CONTINUED_PRETRAINING, Kind.PERMUTED, Kind.ROTATED, Kind.RENAMED),
        Kind.RESHARDED,
        Kind.VOCABULARY_CHANGED,
    }
)
STRONG = 4.0
"""Median z of the proven pairs, in units of the threshold, from which an unproven pair is a stranger."""


def diagnose(comparison: Comparison) -> Diagnosis:
    """Draw the conclusions that the findings carry, and no others."""
    adapter = diagnose_adapter(comparison)
    if adapter is not None:
        return adapter
    origin, reasons, log10_p = origin_of(comparison)
    if origin is not Origin.DESCENT:
        caveats = _damage(comparison)
        return Diagnosis(comparison, origin, (), False, 0.0, "undetermined", log10_p, reasons, caveats)
    transformations, unchanged, more = transformations_of(comparison)
    more = (*_undone(comparison), *more)
    fraction = _shared_fraction(comparison)
    direction = _direction(comparison, transformations)
    foreign = _foreign(comparison)
    if foreign:
        names = ", ".join(foreign[:4])
        more = (*more, msg("diagnosis.foreign", count=len(foreign), names=names))
    return Diagnosis(
        comparison,
        origin,
        transformations,
        unchanged,
        fraction,
        direction,
        log10_p,
        (*reasons, *more),
        (*_hidden(transformations), *_damage(comparison), *_sample_caveats(comparison)),
        foreign=foreign,
    )


def _undone(c: Comparison) -> tuple[Message, ...]:
    """How much of the source is there again after something was undone; the mean over values."""
    lineage = c.lineage
    pairs = [] if lineage is None else [pair for pair in lineage.pairs if pair.proven]
    known = [pair for pair in pairs if np.isfinite(pair.residual.rho)]
    if lineage is None or not known:
        return ()
    moved = any(pair.partners is not None or pair.scales is not None or pair.negated for pair in known)
    if not moved and lineage.rotation is None and lineage.hidden is None:
        return ()
    sizes = np.array([pair.residual.size for pair in known])
    rest = float(np.average([pair.residual.rho**2 for pair in known], weights=sizes))
    share = f"{max(0.0, 100.0 * (1.0 - rest)):.3g}" if rest > 0.01 else f"{100.0 * (1.0 - rest):.4g}"
    return (msg("diagnosis.undone", count=len(known), share=share),)


def _shared_fraction(c: Comparison) -> float:
    """Share of the suspect's comparable values that are proven inherited.

    Matrices that say nothing (constants, tables, tiny ones) count neither way; damaged ones count as not
    inherited. A matrix that is not proven by
    itself counts as inherited only when every proven one is weak too, so that its silence says nothing.
    """
    damaged = (State.INFORMATIVE, State.NOT_FINITE, State.ALL_ZERO)
    facts = c.suspect.weights
    total = sum(m.size for m, state in zip(facts.matrices, facts.states, strict=True) if state in damaged)
    proven, weak = _proven(c)
    share = min(1.0, proven / total) if total else 0.0
    return 1.0 if weak or share > 1.0 - 1e-9 else share


def _foreign(c: Comparison) -> tuple[str, ...]:
    """Matrices at their places that are strangers, though the others are proven so strongly that these would be."""
    if c.lineage is None or not c.lineage.full:
        return ()
    proven = [pair.z for pair in c.lineage.pairs if pair.proven]
    if not proven or float(np.median(proven)) < STRONG * SIGNIFICANT_Z:
        return ()
    facts = c.suspect.weights
    speaking = {
        m for m, state in zip(facts.matrices, facts.states, strict=True) if state == State.INFORMATIVE
    }
    return tuple(
        pair.suspect.label
        for pair in c.lineage.pairs
        if not pair.proven and pair.suspect in speaking and np.isfinite(pair.residual.rho)
    )


def _proven(c: Comparison) -> tuple[int, bool]:
    matrices = c.suspect.weights.matrices
    if c.lineage is not None and c.lineage.pairs and c.lineage.full:
        found = [pair for pair in c.lineage.pairs if pair.proven]
        weak = bool(found) and float(np.median([pair.z for pair in found])) < 2 * SIGNIFICANT_Z
        return sum(
            matrix.size for matrix in {pair.suspect for pair in found}
        ), weak and not c.lineage.tables_only
    scores = [abs(match.z) for match in c.sketch.matched]
    weak = not scores or float(np.median(scores)) < 2 * SIGNIFICANT_Z
    return sum(matrices[match.suspect].size for match in c.sketch.matched), weak


def _direction(c: Comparison, transformations: Sequence[Transformation]) -> str:
    """Only from artefacts that show who was made of whom: casts, grids, dropped or repeated layers."""
    kinds = {item.kind: item for item in transformations}
    if Kind.CAST in kinds and kinds[Kind.CAST].parameters.get("to") == "F32":
        # only a rounding that lost something has a direction; equal values in a wider type may be either's
        return "source_from_suspect" if _was_rounded(c) else "undetermined"
    if Kind.QUANTISED in kinds and c.source.storage.quantised_bits and not c.suspect.storage.quantised_bits:
        return "source_from_suspect"
    if c.suspect.storage.quantised_bits and c.source.storage.quantised_bits:
        return "undetermined"
    if _ARTEFACTS & set(kinds):
        return "suspect_from_source"
    return _direction_of_change(c) if set(kinds) <= _PLAIN_TRAINING else "undetermined"


def _was_rounded(c: Comparison) -> bool:
    """Whether any proven pair differs at all."""
    return c.lineage is not None and any(p.proven and p.residual.equal < 1.0 for p in c.lineage.pairs)


def _direction_of_change(c: Comparison) -> str:
    """Which end of a long change is its beginning: D leaves the ancestor in a direction of its own.

    t = -<A, D> / <D, D> of every pair, with scale = <A, B> / <A, A> and rho = |D| / |A|: t = (1 - scale) / rho^2.
    0 when the source A is the ancestor, 1 when the suspect is, |dA|^2 / (|dA|^2 + |dB|^2) from a common one. Short
    changes (rho < 0.3) spread over all of them.
    """
    if c.lineage is None or not c.lineage.full:
        return "undetermined"
    long = [p for p in c.lineage.pairs if p.proven and p.place[1] is not None and p.residual.rho > 0]
    if len(long) < MIN_LONG or float(np.median([pair.residual.rho for pair in long])) < LONG_CHANGE:
        return "undetermined"
    if float(np.median([pair.residual.new_zeros for pair in long])) > MAX_ZEROS:
        return "undetermined"  # what was cut away looks like a way back
    t, error = _ancestry(long)
    for name, (least, most) in DIRECTIONS.items():
        if least - SLACK <= t - 2 * error and t + 2 * error <= most + SLACK and least <= t <= most:
            return name
    return "undetermined"


def _ancestry(pairs: Sequence[PairFacts]) -> tuple[float, float]:
    """t over all pairs, each by the energy of its change, and its standard error, roles taken as clusters."""
    energy = np.array([pair.residual.rho**2 * pair.suspect.size for pair in pairs])
    moved = np.array([(1.0 - pair.residual.scale) * pair.suspect.size for pair in pairs])
    roles = sorted({pair.place[0] for pair in pairs})
    index = np.array([roles.index(pair.place[0]) for pair in pairs])
    by_role = np.bincount(index, moved) / np.bincount(index, energy)
    error = float(np.std(by_role, ddof=1) / np.sqrt(len(roles))) if len(roles) > 1 else 1.0
    return float(moved.sum() / energy.sum()), error


def _damage(c: Comparison) -> tuple[Message, ...]:
    """Tensors that cannot speak: not finite, all zero, constant."""
    caveats = []
    for side, facts in (("suspect", c.suspect.weights), ("source", c.source.weights)):
        for state in (
            State.NOT_FINITE,
            State.ALL_ZERO,
            State.FEW_VALUES,
            State.SMOOTH,
            State.FIXED_TRANSFORM,
        ):
            count = int((facts.states == state).sum())
            if count:
                caveats.append(
                    msg(f"diagnosis.state_{state.name.lower()}", side=msg(f"diagnosis.{side}"), count=count)
                )
    broken = [] if c.lineage is None else [pair for pair in c.lineage.pairs if np.isnan(pair.residual.rho)]
    if broken and not caveats:
        caveats.append(msg("diagnosis.state_not_finite", side=msg("diagnosis.suspect"), count=len(broken)))
    return tuple(caveats)


def _hidden(transformations: Sequence[Transformation]) -> tuple[Message, ...]:
    """What noise alone could hide."""
    if any(item.kind not in SURFACE for item in transformations):
        return ()
    limits = [
        item.parameters["hidden_change"] for item in transformations if item.kind is Kind.GAUSSIAN_NOISE
    ]
    return tuple(msg("diagnosis.hidden_change", limit=f"{limit:.2g}") for limit in limits)


def _sample_caveats(c: Comparison) -> tuple[Message, ...]:
    return () if c.level == "full" else (msg("diagnosis.sampled"),)
