"""What the residuals of the proven pairs say was done: the change, named, with its parameters. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from drupe.comparison import Comparison
from drupe.diagnose.kinds import SURFACE, Kind, Transformation
from drupe.diagnose.pool import (
    CLEAR_EDGE,
    FLOAT_ROUNDING,
    ROUNDING,
    TURNED,
    Outcome,
    Pool,
    noise_or_training,
    pairs_of,
    pool_of,
)
from drupe.diagnose.quantised import LATTICE_SHARE, quantised
from drupe.messages import msg
from drupe.recover.findings import Lineage, PairFacts
from drupe.roles import is_table_role

SCALE_TOLERANCE = 0.005
MAX_VECTOR_CAST = 0.01
"""Relative change of gains and biases that rounding to 16 or 8 bits explains."""
MIN_PRUNED = 0.05
MIN_REGULAR = 0.95
"""Share of groups of four with just two zeros from which pruning is called 2:4."""
KEPT_EQUAL = 0.99
MIN_FOLDED = 4
"""Pairs with scales that are no accident when they are most of those of two roles: units rescaled between them."""


def classify(c: Comparison, lineage: Lineage) -> Outcome:
    """Name the change. The order is that of diagnosis.py."""
    pairs = pairs_of(lineage)
    if not pairs:
        return Outcome((Transformation(Kind.UNKNOWN_CHANGE, {"relative_change": None}),), False, ())
    if any(pair.negated for pair in lineage.pairs if pair.proven):
        return _negated(lineage, pairs)
    pool = pool_of([pair.residual for pair in pairs])
    if all(pair.residual.equal == 1.0 for pair in pairs):
        if any(pair.folded is not None for pair in pairs):  # equal only after scales were undone
            return _with_outside(_factors(pairs), lineage, pool)
        return _equal(c, lineage)
    cast = _cast(c, pairs)
    if cast is not None:
        return _with_outside(Outcome((cast,), False, (msg("diagnosis.cast_exact"),)), lineage, pool)
    if all(pair.residual.rho < FLOAT_ROUNDING for pair in lineage.pairs if pair.proven):
        rounding = Outcome((), False, (msg("diagnosis.only_rounding", sigma=f"{pool.rho:.0e}"),))
        return _with_outside(rounding, lineage, pool)
    for rule in (quantised, _pruned, _rescaled):
        found = rule(c, pairs, pool)
        if found is not None:
            return _with_outside(_with_folding(found, pairs), lineage, pool)
    return _with_outside(_with_folding(noise_or_training(pool, lineage), pairs), lineage, pool)


def _with_outside(outcome: Outcome, lineage: Lineage, pool: Pool) -> Outcome:
    """Token tables and gains that were trained, where the matrices of the layers show surface changes only."""
    kinds = {change.kind for change in outcome.changes}
    if not kinds <= SURFACE:
        return outcome
    tables = [pair.residual for pair in lineage.pairs if pair.proven and is_table_role(pair.place[0])]
    trained = [
        t.rho for t in tables if t.cast is None and t.edge >= CLEAR_EDGE and t.sigma >= ROUNDING * t.floor
    ]
    if Kind.QUANTISED in kinds:  # an uneven code leaves errors with a direction in tables, which have a mean
        trained = [rho for rho in trained if rho > 2.0 * pool.rho]
    if (
        lineage.rotation is not None
    ):  # noise of the other matrices turns the basis a little, tables show it best
        trained = [rho for rho in trained if rho > max(pool.rho, TURNED)]
    moved = lineage.vectors_change or 0.0
    noise = pool.rho if Kind.GAUSSIAN_NOISE in kinds else 0.0
    if trained:
        rho, key = max(trained), "diagnosis.tables_trained"
    elif Kind.RESCALED not in kinds and moved > max(MAX_VECTOR_CAST, noise):
        rho, key = moved, "diagnosis.vectors_trained"
    else:
        return outcome
    change = Transformation(Kind.FINE_TUNED, {"relative_change": round(float(rho), 5)})
    return Outcome((*outcome.changes, change), False, (*outcome.reasons, msg(key, rho=f"{rho:.3f}")))


def _with_folding(outcome: Outcome, pairs: Sequence[PairFacts]) -> Outcome:
    """What was left after scales of rows and columns were undone, and these scales."""
    folded = [pair for pair in pairs if pair.folded is not None]
    roles = {role: [pair for pair in pairs if pair.place[0] == role] for role in {p.place[0] for p in pairs}}
    whole = sum(2 * sum(pair.folded is not None for pair in some) > len(some) for some in roles.values())
    if (2 * len(folded) < len(pairs) and (whole < 2 or len(folded) < MIN_FOLDED)) or Kind.RESCALED in {
        change.kind for change in outcome.changes
    }:
        return outcome
    factors = {pair.suspect.label: round(pair.folded.scale, 5) for pair in folded[:64] if pair.folded}
    change = Transformation(Kind.RESCALED, {"factors": factors})
    return Outcome((*outcome.changes, change), False, (*outcome.reasons, msg("diagnosis.folded")))


def _negated(lineage: Lineage, pairs: Sequence[PairFacts]) -> Outcome:
    """Some matrices were multiplied by a negative factor; what else was done is read after negating them back."""
    flipped = [pair for pair in lineage.pairs if pair.proven and pair.negated]
    factors = {pair.suspect.label: round(-pair.residual.scale, 5) for pair in flipped[:64]}
    change = Transformation(Kind.RESCALED, {"factors": factors})
    if all(pair.residual.after_unit_scale <= SCALE_TOLERANCE for pair in pairs):
        return Outcome((change,), False, (msg("diagnosis.rescaled"),))
    rest = noise_or_training(pool_of([pair.residual for pair in pairs]), lineage)
    return Outcome((change, *rest.changes), False, (msg("diagnosis.rescaled"), *rest.reasons))


def _equal(c: Comparison, lineage: Lineage) -> Outcome:
    whole = all(pair.proven for pair in lineage.pairs) and not lineage.tables_only
    if lineage.vectors_equal is not None and lineage.vectors_equal < 1.0 and whole:
        share = f"{1 - lineage.vectors_equal:.0%}"
        change = Transformation(Kind.FINE_TUNED, {"relative_change": 0.0})
        return Outcome((change,), False, (msg("diagnosis.only_vectors", share=share),))
    cast = _dtype_change(c)
    changes = (cast,) if cast else ()
    return Outcome(changes, not changes, (msg("diagnosis.values_equal"),))


def _main_dtype(dtypes: Mapping[str, int]) -> str:
    """The type of most values, indices and masks left out."""
    values = {name: count for name, count in dtypes.items() if name not in ("I64", "I32", "BOOL")}
    return max(values, key=lambda name: values[name]) if values else ""


def _dtype_change(c: Comparison) -> Transformation | None:
    before, after = _main_dtype(c.source.storage.dtypes), _main_dtype(c.suspect.storage.dtypes)
    if before == after or not before or not after:
        return None
    return Transformation(Kind.CAST, {"from": before, "to": after})


def _cast(c: Comparison, pairs: Sequence[PairFacts]) -> Transformation | None:
    rounded = [pair for pair in pairs if pair.residual.equal < 1.0]
    if any(pair.residual.cast is None for pair in rounded):
        return None
    return _dtype_change(c) or Transformation(Kind.CAST, {"from": "F32", "to": rounded[0].residual.cast})


def _pruned(c: Comparison, pairs: Sequence[PairFacts], pool: Pool) -> Outcome | None:
    zeros = float(np.median([pair.residual.new_zeros for pair in pairs]))
    if zeros < MIN_PRUNED or c.lineage is None:
        return None
    regular = float(np.median([pair.residual.two_of_four for pair in pairs])) >= MIN_REGULAR
    pattern = "2:4" if regular else "unstructured"
    change = Transformation(Kind.PRUNED, {"sparsity": round(zeros, 4), "pattern": pattern})
    reason = msg("diagnosis.pruned", zeros=f"{zeros:.0%}")
    if float(np.median([pair.residual.kept_equal for pair in pairs])) >= KEPT_EQUAL:
        return Outcome((change,), False, (reason,))
    seen = [pair for pair in pairs if not np.isnan(pair.residual.edge)]
    pruned = [pair.kept for pair in seen if pair.kept is not None]
    if len(pruned) < LATTICE_SHARE * max(len(seen), 1):
        return None
    left = pool_of(pruned)
    rest = noise_or_training(left, c.lineage)
    is_larger = 2.0 * left.rho**2 > pool.rho**2
    changes = (*rest.changes, change) if is_larger else (change, *rest.changes)
    return Outcome(changes, False, (reason, *rest.reasons))


def _rescaled(c: Comparison, pairs: Sequence[PairFacts], pool: Pool) -> Outcome | None:
    rest = max(min(pair.residual.after_scale, pair.residual.after_unit_scale) for pair in pairs)
    largest = max(pair.residual.rho if pair.folded is None else pair.folded.rho for pair in pairs)
    if rest > SCALE_TOLERANCE or largest < 2 * SCALE_TOLERANCE:
        return None
    return _factors(pairs)


def _factors(pairs: Sequence[PairFacts]) -> Outcome:
    factors = {pair.suspect.label: round((pair.folded or pair.residual).scale, 5) for pair in pairs[:64]}
    change = Transformation(Kind.RESCALED, {"factors": factors})
    return Outcome((change,), False, (msg("diagnosis.rescaled"),))
