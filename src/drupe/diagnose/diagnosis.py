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
from drupe.diagnose.kinds import Kind, Transformation
from drupe.diagnose.origin import Origin, origin_of
from drupe.diagnose.result import Diagnosis
from drupe.messages import Message, msg
from drupe.recover.units import SIGNIFICANT_Z
from drupe.uninformative import State

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
        (*_damage(comparison), *_sample_caveats(comparison)),
        foreign=foreign,
    )


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
        return "source_from_suspect"
    if Kind.QUANTISED in kinds and c.source.storage.quantised_bits and not c.suspect.storage.quantised_bits:
        return "source_from_suspect"
    if c.suspect.storage.quantised_bits and c.source.storage.quantised_bits:
        return "undetermined"
    cues = (Kind.QUANTISED, Kind.PRUNED, Kind.DEPTH_UPSCALED, Kind.CAST)
    return "suspect_from_source" if any(kind in kinds for kind in cues) else "undetermined"


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


def _sample_caveats(c: Comparison) -> tuple[Message, ...]:
    return () if c.level == "full" else (msg("diagnosis.sampled"),)
