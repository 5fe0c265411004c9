"""What the residuals of the proven pairs say was done: the change, named, with its parameters. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from drupe.comparison import Comparison
from drupe.diagnose.kinds import SURFACE, Kind, Transformation
from drupe.diagnose.noise import hidden_change, noise
from drupe.lattice import BEYOND_GRID, FULL_GRID, Lattice
from drupe.messages import Message, msg
from drupe.recover.align import SAMPLE_ROWS
from drupe.recover.findings import Feedback, Lineage, PairFacts
from drupe.residual import Residual
from drupe.roles import is_table_role

TRAINED_EDGE = 1.15
"""Median edge (see residual.spectral_edge) from which a residual is training by itself."""
CLEAR_EDGE, MIN_CLEAR = 1.2, 2
"""Edge of a single pair, eight standard deviations from white, and how many such pairs are no accident."""
MIN_NOISE_PAIRS, DOUBTFUL_Z = 4, 3.0
"""From fewer pairs than these a residual with such a pooled z is not called noise."""
TRAINED_Z = 6.0
"""Pooled z of the log edges from which a residual has a trained component."""
EDGE_SD = 0.025
"""Standard deviation of log edge under the null, measured."""
CONTINUED_RHO = 0.30
"""Relative change from which training counts as continued pretraining; a convention."""
SCALE_TOLERANCE = 0.005
MAX_VECTOR_CAST = 0.01
"""Relative change of gains and biases that rounding to 16 or 8 bits explains."""
MAX_NOISE_KURTOSIS = 8.0
"""Excess kurtosis that noise does not have: 0 when Gaussian, 6 when in proportion to Gaussian weights."""
EXACT_GRID = 1e-3
"""Share of values farther than half a step up to which nothing but rounding was done."""
FEEDBACK_EXCESS = (-0.15, 0.08)
"""Pooled excess (see recover/feedback.py) of GPTQ: -0.03 to 0.066 on r0; after a fine-tune a tenth of it, 0.14."""
FEEDBACK_SHARE = 0.25
"""Excess over bulk: at most 0.09 with GPTQ to 4 and 3 bits, 0.16 to 2; 0.35 and more when nothing but a change
explains errors that are too large, 0.9 when it is white."""
HIDDEN_CHANGE = 0.3
"""White change, in units of the rounding error, that an excess of 0.08 leaves room for."""
MAX_FEEDBACK_EDGE = 1.5
"""Median edge of such errors: 1.2 to 1.33 (feedback gives them directions); after an update of rank 1, 1.7."""
UNSEEN_FILL = 1.5
"""Size of the errors of any matrix over that of the measured ones; at most 1.2 with GPTQ."""
MAX_ROUNDING = 0.5
"""Relative change beyond which two packings of the same weights are not taken for such: 2 bits leave 0.4."""
MIN_BESIDE = 0.2
"""Change beside a replayed rounding, over the whole difference, below which it is rounding of the scales."""
ROUNDING = 3.0
"""Changes below this many rounding errors of the storage type cannot be told from rounding."""
FLOAT_ROUNDING = 3e-7
"""Relative change that float32 sums leave when they are taken in another order."""
MIN_PRUNED = 0.05
MIN_REGULAR = 0.95
"""Share of groups of four with just two zeros from which pruning is called 2:4."""
MAX_FEW_ROWS = 0.5
KEPT_EQUAL = 0.99
LATTICE_SHARE = 0.5
RANK_SLACK = 0.15
"""Share of a rank that rounding may add to it in single matrices."""
MIN_TRAINED_EDGE = 1.05
"""Mean edge below which a trained component, however significant, is too small to be named."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The changes of the values, largest first; ``unchanged`` = every compared value is equal."""

    changes: tuple[Transformation, ...]
    unchanged: bool
    reasons: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class _Pool:
    """Medians over the pairs whose residual spectrum was computed."""

    rho: float
    sigma: float
    floor: float
    edge: float
    mean_edge: float
    trained_z: float
    kurtosis: float
    values: int
    pairs: int
    clear: int
    """Pairs whose own edge is beyond what white residuals show."""


def classify(c: Comparison, lineage: Lineage) -> Outcome:
    """Name the change. The order is that of diagnosis.py."""
    pairs = _pairs(lineage)
    if not pairs:
        return Outcome((Transformation(Kind.UNKNOWN_CHANGE, {"relative_change": None}),), False, ())
    if any(pair.negated for pair in lineage.pairs if pair.proven):
        return _negated(lineage, pairs)
    pool = _pool([pair.residual for pair in pairs])
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
    for rule in (_quantised, _pruned, _rescaled):
        found = rule(c, pairs, pool)
        if found is not None:
            return _with_outside(_with_folding(found, pairs), lineage, pool)
    return _with_outside(_with_folding(_noise_or_training(pool, lineage), pairs), lineage, pool)


def _with_outside(outcome: Outcome, lineage: Lineage, pool: _Pool) -> Outcome:
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
        trained = [rho for rho in trained if rho > pool.rho]
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
    if 2 * len(folded) < len(pairs) or Kind.RESCALED in {change.kind for change in outcome.changes}:
        return outcome
    factors = {pair.suspect.label: round(pair.folded.scale, 5) for pair in folded[:64] if pair.folded}
    change = Transformation(Kind.RESCALED, {"factors": factors})
    return Outcome((*outcome.changes, change), False, (*outcome.reasons, msg("diagnosis.folded")))


def _pairs(lineage: Lineage) -> list[PairFacts]:
    """Proven pairs; the matrices of layers speak for the whole where they are most of it."""
    proven = [pair for pair in lineage.pairs if pair.proven]
    hidden = [pair for pair in proven if pair.place[1] is not None]
    outside = [pair for pair in proven if pair.place[1] is None and not is_table_role(pair.place[0])]
    if sum(pair.suspect.size for pair in hidden) < sum(pair.suspect.size for pair in outside):
        hidden = []  # a net without known layers
    changed = [pair for pair in hidden or proven if pair.residual.equal < 1.0]
    beyond = [pair for pair in changed if pair.residual.sigma >= ROUNDING * pair.residual.floor]
    return beyond or changed or proven


def _negated(lineage: Lineage, pairs: Sequence[PairFacts]) -> Outcome:
    """Some matrices were multiplied by a negative factor; what else was done is read after negating them back."""
    flipped = [pair for pair in lineage.pairs if pair.proven and pair.negated]
    factors = {pair.suspect.label: round(-pair.residual.scale, 5) for pair in flipped[:64]}
    change = Transformation(Kind.RESCALED, {"factors": factors})
    if all(pair.residual.after_unit_scale <= SCALE_TOLERANCE for pair in pairs):
        return Outcome((change,), False, (msg("diagnosis.rescaled"),))
    rest = _noise_or_training(_pool([pair.residual for pair in pairs]), lineage)
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


def _pool(residuals: Sequence[Residual]) -> _Pool:
    deep = [residual for residual in residuals if not np.isnan(residual.edge)] or list(residuals)
    logs = [float(np.log(residual.edge)) for residual in deep if residual.edge > 0]
    return _Pool(
        rho=float(np.median([r.rho for r in deep])),
        sigma=float(np.median([r.sigma for r in deep])),
        floor=float(np.median([r.floor for r in deep])),
        edge=float(np.median([r.edge for r in deep])),
        mean_edge=float(np.exp(np.mean(logs))) if logs else 1.0,
        trained_z=float(np.mean(logs) / EDGE_SD * np.sqrt(len(logs))) if logs else 0.0,
        kurtosis=float(np.median([r.kurtosis for r in deep])),
        values=sum(residual.size for residual in deep),
        pairs=len(deep),
        clear=sum(residual.edge >= CLEAR_EDGE for residual in deep),
    )


def _quantised(c: Comparison, pairs: Sequence[PairFacts], pool: _Pool) -> Outcome | None:
    """The suspect lies on a grid (stored packed, or rounded), or the source is what its grid made of the suspect."""
    stored, other = c.suspect.storage.quantised_bits, c.source.storage.quantised_bits
    tested = [pair for pair in pairs if not np.isnan(pair.residual.edge)]
    original = _unrounded(c, [pair for pair in tested if pair.raw], pool) if other > 0 else None
    if original is not None:
        return original
    grids = [pair.lattice for pair in tested if pair.lattice is not None]
    on_grid = bool(tested) and len(grids) >= LATTICE_SHARE * len(tested)
    by_storage = stored > 0 and not 0 < other <= stored
    if not on_grid and not by_storage:
        return _replayed(c, tested, pool) or _quantised_then_rounded(tested, pool)
    change = _grid_change(c, grids, by_storage=by_storage)
    beyond = float(np.median([grid.beyond_half_step for grid in grids])) if grids else 0.0
    moved = sum(grid.beyond_half_step > 2 * BEYOND_GRID for grid in grids)
    exact = (
        bool(grids) and beyond <= EXACT_GRID
    )  # rounding explains every value, whatever its errors look like
    if beyond <= BEYOND_GRID and moved < MIN_CLEAR and (exact or not _is_trained(pool)):
        key = "diagnosis.quantised" if grids else "diagnosis.quantised_blind"
        return Outcome((change,), False, (msg(key, rho=f"{pool.rho:.4f}"),))
    feedback = c.lineage.feedback if c.lineage else None
    if feedback is not None and _is_compensated(feedback, grids, pool):
        reason = msg("diagnosis.compensated", energy=f"{feedback.energy:.2f}", hidden=f"{HIDDEN_CHANGE:.1f}")
        return Outcome((change,), False, (reason,))
    fill = float(np.median([grid.fill for grid in grids])) if grids else 0.0
    if c.lineage is not None and fill > 1.0 and not _is_trained(pool) and pool.kurtosis <= MAX_NOISE_KURTOSIS:
        rest = replace(pool, sigma=pool.sigma * float(np.sqrt(1.0 - 1.0 / fill**2)), floor=0.0)
        white = msg("diagnosis.white", **_numbers(pool))
        white_noise = _noise(rest, c.lineage)
        return Outcome((white_noise, change) if fill**2 > 2.0 else (change, white_noise), False, (white,))
    trained = _training(pool)
    reason = msg("diagnosis.quantised_trained", beyond=f"{beyond:.1%}", edge=f"{pool.edge:.2f}")
    return Outcome((trained, change) if pool.rho > 0.3 else (change, trained), False, (reason,))


def _replayed(c: Comparison, tested: Sequence[PairFacts], pool: _Pool) -> Outcome | None:
    """Rounding the source explains most of the difference; what is left beside it is a change of its own."""
    rounded = [pair for pair in tested if pair.replayed is not None and pair.remainder is not None]
    if c.lineage is None or not rounded or len(rounded) < LATTICE_SHARE * len(tested):
        return None
    change = _grid_change(c, [pair.replayed for pair in rounded if pair.replayed], by_storage=False)
    left = _pool([pair.remainder for pair in rounded if pair.remainder])
    reason = msg("diagnosis.replayed", share=f"{1.0 - (left.rho / pool.rho) ** 2:.1%}")
    if left.sigma < ROUNDING * max(left.floor, FLOAT_ROUNDING) or left.rho < MIN_BESIDE * pool.rho:
        return Outcome((change,), False, (reason,))
    rest = _noise_or_training(left, c.lineage)
    is_smaller = 2.0 * left.rho**2 > pool.rho**2
    changes = (*rest.changes, change) if is_smaller else (change, *rest.changes)
    return Outcome(changes, False, (reason, *rest.reasons))


def _is_compensated(feedback: Feedback, grids: Sequence[Lattice], pool: _Pool) -> bool:
    """Whether rounding with error feedback explains what rounding to the nearest value does not."""
    lowest, highest = FEEDBACK_EXCESS
    most = UNSEEN_FILL * np.sqrt(feedback.energy)  # wide matrices, whose determinant is not known
    return (
        lowest <= feedback.excess <= min(highest, FEEDBACK_SHARE * feedback.bulk)
        and feedback.largest <= highest
        and pool.edge <= MAX_FEEDBACK_EDGE
        and all(grid.fill <= most for grid in grids)
    )


def _unrounded(c: Comparison, tested: Sequence[PairFacts], pool: _Pool) -> Outcome | None:
    """The source is packed: is the suspect its original, or another packing of that?"""
    packed = c.suspect.storage.quantised_bits > 0
    grids = [pair.source_lattice for pair in tested if pair.source_lattice is not None]
    if packed or not grids:
        return _between_packings(c, tested, pool, packed=packed)
    if len(grids) < LATTICE_SHARE * max(len(tested), 1) or pool.edge >= TRAINED_EDGE:
        return None
    beyond = float(np.median([grid.beyond_half_step for grid in grids]))
    fill = float(np.median([grid.fill for grid in grids]))
    if beyond > BEYOND_GRID or not FULL_GRID[0] <= fill <= FULL_GRID[1]:
        return None
    change = _grid_change(c, grids, by_storage=True)
    return Outcome((change,), False, (msg("diagnosis.unrounded", rho=f"{pool.rho:.4f}"),))


def _between_packings(
    c: Comparison, tested: Sequence[PairFacts], pool: _Pool, *, packed: bool
) -> Outcome | None:
    """Both sides are packed, or the source in a code that is no grid: half a step is not known, whiteness is."""
    if not tested or _is_trained(pool) or pool.rho > MAX_ROUNDING:
        return None
    scheme = _scheme(c)
    change = Transformation(Kind.QUANTISED, {"bits": _bits(scheme), "group": None, "scheme": scheme})
    key = "diagnosis.both_packed" if packed else "diagnosis.quantised_blind"
    return Outcome((change,), False, (msg(key, rho=f"{pool.rho:.4f}"),))


def _grid_change(c: Comparison, grids: Sequence[Lattice], *, by_storage: bool) -> Transformation:
    scheme = _scheme(c) if by_storage else None
    bits = _bits(scheme) if scheme else int(np.median([grid.bits for grid in grids]))
    group = Counter(grid.group for grid in grids).most_common(1)[0][0] if grids else None
    named = Counter(grid.scheme for grid in grids).most_common(1)
    if scheme is None and named and named[0][0] is not None:
        scheme = named[0][0]
    if scheme is None:
        scheme = "symmetric" if sum(grid.symmetric for grid in grids) > 0.5 * len(grids) else "asymmetric"
    return Transformation(Kind.QUANTISED, {"bits": bits, "group": group, "scheme": scheme})


def _quantised_then_rounded(tested: Sequence[PairFacts], pool: _Pool) -> Outcome | None:
    """Eight bits a row, rounded to 16-bit floats afterwards: seen in the size of the difference only."""
    seen = [pair.delta for pair in tested if pair.delta is not None]
    if len(seen) < LATTICE_SHARE * len(tested) or not seen or pool.edge >= TRAINED_EDGE:
        return None
    bits = int(np.median([grid.bits for grid in seen]))
    change = Transformation(Kind.QUANTISED, {"bits": bits, "group": 0, "scheme": "rows, then rounded"})
    return Outcome((change,), False, (msg("diagnosis.quantised", rho=f"{pool.rho:.4f}"),))


def _scheme(c: Comparison) -> str:
    side = c.suspect if c.suspect.storage.quantised_bits else c.source
    packed = {
        name: count
        for name, count in side.storage.dtypes.items()
        if not name.startswith(("F", "BF", "BOOL")) and name not in ("I64", "I32")
    }
    return max(packed, key=lambda name: packed[name]) if packed else "packed"


def _bits(scheme: str) -> int | None:
    digits = re.search(r"\d+", scheme)
    return int(digits.group()) if digits else None


def _pruned(c: Comparison, pairs: Sequence[PairFacts], pool: _Pool) -> Outcome | None:
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
    left = _pool(pruned)
    rest = _noise_or_training(left, c.lineage)
    is_larger = 2.0 * left.rho**2 > pool.rho**2
    changes = (*rest.changes, change) if is_larger else (change, *rest.changes)
    return Outcome(changes, False, (reason, *rest.reasons))


def _rescaled(c: Comparison, pairs: Sequence[PairFacts], pool: _Pool) -> Outcome | None:
    rest = max(min(pair.residual.after_scale, pair.residual.after_unit_scale) for pair in pairs)
    largest = max(pair.residual.rho if pair.folded is None else pair.folded.rho for pair in pairs)
    if rest > SCALE_TOLERANCE or largest < 2 * SCALE_TOLERANCE:
        return None
    return _factors(pairs)


def _factors(pairs: Sequence[PairFacts]) -> Outcome:
    factors = {pair.suspect.label: round((pair.folded or pair.residual).scale, 5) for pair in pairs[:64]}
    change = Transformation(Kind.RESCALED, {"factors": factors})
    return Outcome((change,), False, (msg("diagnosis.rescaled"),))


def _noise_or_training(pool: _Pool, lineage: Lineage) -> Outcome:
    """White residuals are noise; one stronger along some direction than under random signs is training."""
    if _is_rewrite(pool, lineage):
        return Outcome((), False, (msg("diagnosis.only_rounding", sigma=f"{pool.sigma:.5f}"),))
    rank = _low_rank(lineage)
    if rank is not None:
        modules = sorted({pair.place[0] for pair in _pairs(lineage)})
        change = Transformation(Kind.LOW_RANK_UPDATE, {"rank": rank, "modules": modules})
        return Outcome((change,), False, (msg("diagnosis.low_rank", rank=rank),))
    if np.isnan(pool.edge):
        change = Transformation(Kind.UNKNOWN_CHANGE, {"relative_change": round(pool.rho, 5)})
        return Outcome((change,), False, (msg("diagnosis.unseen_change", rho=f"{pool.rho:.4f}"),))
    if not _is_trained(pool):
        if pool.sigma < ROUNDING * max(pool.floor, 1e-7):
            return Outcome((), False, (msg("diagnosis.only_rounding", sigma=f"{pool.sigma:.5f}"),))
        if pool.pairs < MIN_NOISE_PAIRS and pool.trained_z >= DOUBTFUL_Z:
            change = Transformation(Kind.UNKNOWN_CHANGE, {"relative_change": round(pool.rho, 5)})
            return Outcome((change,), False, (msg("diagnosis.few_pairs", **_numbers(pool)),))
        if pool.kurtosis > MAX_NOISE_KURTOSIS:
            change = Transformation(Kind.UNKNOWN_CHANGE, {"relative_change": round(pool.rho, 5)})
            return Outcome((change,), False, (msg("diagnosis.white_heavy", **_numbers(pool)),))
        return Outcome((_noise(pool, lineage),), False, (msg("diagnosis.white", **_numbers(pool)),))
    if _few_rows(lineage):
        change = Transformation(Kind.UNKNOWN_CHANGE, {"relative_change": round(pool.rho, 5)})
        return Outcome((change,), False, (msg("diagnosis.few_rows"),))
    if pool.edge < TRAINED_EDGE and abs(pool.kurtosis) < 0.15:
        changes = (_noise(pool, lineage), _training(pool))
        return Outcome(changes, False, (msg("diagnosis.noise_and_training", **_numbers(pool)),))
    return Outcome((_training(pool),), False, (msg("diagnosis.trained", **_numbers(pool)),))


def _is_trained(pool: _Pool) -> bool:
    """Whether the residual has directions that neither noise nor rounding has, in all pairs or in some."""
    if pool.edge >= TRAINED_EDGE or pool.clear >= MIN_CLEAR:
        return True
    return pool.trained_z >= TRAINED_Z and pool.mean_edge >= MIN_TRAINED_EDGE


def _few_rows(lineage: Lineage) -> bool:
    """Whether the changes of every changed matrix are confined to some of its rows, the others equal."""
    changed = [pair.residual.changed_rows for pair in _pairs(lineage) if pair.residual.equal < 1.0]
    return bool(changed) and max(changed) < MAX_FEW_ROWS


def _low_rank(lineage: Lineage) -> int | None:
    """The rank when every changed matrix moved in few directions only: at most a quarter of its side."""
    known = [pair for pair in _pairs(lineage) if pair.residual.rank is not None and pair.residual.equal < 1.0]
    side = 1 << 30 if lineage.full else SAMPLE_ROWS
    limits = [min(pair.suspect.rows, pair.suspect.columns, side) / 4 for pair in known]
    ranks = [pair.residual.rank or 0 for pair in known]
    if not any(ranks):
        return None
    rank = Counter(rank for rank in ranks if rank).most_common(1)[0][0]
    most = rank + max(1.0, RANK_SLACK * rank)  # rounding may add a direction
    low = [found <= max(limit, most) for found, limit in zip(ranks, limits, strict=True)]
    return rank if all(low) and rank <= float(np.median(limits)) else None


def _is_rewrite(pool: _Pool, lineage: Lineage) -> bool:
    """A rotation is undone up to the rounding of both files; what is left below 1 % is no change."""
    return lineage.basis.value == "rotated" and pool.rho < 0.01


def _numbers(pool: _Pool) -> dict[str, str]:
    return {
        "edge": f"{pool.edge:.2f}",
        "z": f"{pool.trained_z:.1f}",
        "kurtosis": f"{pool.kurtosis:.2f}",
        "rho": f"{pool.rho:.3f}",
    }


def _noise(pool: _Pool, lineage: Lineage) -> Transformation:
    """The level from which a trained direction is seen is that of the pooled test (:func:`_is_trained`)."""
    least = max(float(np.log(MIN_TRAINED_EDGE)), TRAINED_Z * EDGE_SD / float(np.sqrt(max(pool.pairs, 1))))
    level = min(float(np.exp(least)), TRAINED_EDGE)
    hidden = hidden_change(_pairs(lineage), level)
    return noise(pool.sigma, pool.floor, pool.values, lineage.rotation_excess, hidden)


def _training(pool: _Pool) -> Transformation:
    kind = Kind.FINE_TUNED if pool.rho < CONTINUED_RHO else Kind.CONTINUED_PRETRAINING
    return Transformation(kind, {"relative_change": round(pool.rho, 5)})
