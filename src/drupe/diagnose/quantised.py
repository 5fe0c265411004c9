"""Rounding to a grid: as it is stored, as it is seen, as it is replayed, and what was done besides. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from drupe.comparison import Comparison
from drupe.diagnose.kinds import Kind, Transformation
from drupe.diagnose.noise import CONCENTRATION, SHORT_CONCENTRATION
from drupe.diagnose.pool import (
    CONTINUED_RHO,
    FLOAT_ROUNDING,
    MAX_NOISE_KURTOSIS,
    MIN_CLEAR,
    ROUNDING,
    TRAINED_EDGE,
    Outcome,
    Pool,
    is_trained,
    noise_or_training,
    numbers_of,
    pool_of,
    seen_change,
    training,
    white_noise,
)
from drupe.lattice import BEYOND_GRID, FULL_GRID, Lattice
from drupe.messages import msg
from drupe.recover.findings import Feedback, PairFacts

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
PRUNED_FIRST = 0.8
"""Share of values beyond half a step that are zero now: a quarter after noise, all after pruning."""
MIN_BESIDE = 0.2
"""Change beside a replayed rounding, over the whole difference, below which it is rounding of the scales."""
LATTICE_SHARE = 0.5


def quantised(c: Comparison, pairs: Sequence[PairFacts], pool: Pool) -> Outcome | None:
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
    if beyond <= BEYOND_GRID and moved < MIN_CLEAR and (exact or not is_trained(pool)):
        key = "diagnosis.quantised" if grids else "diagnosis.quantised_blind"
        return Outcome((change,), False, (msg(key, rho=f"{pool.rho:.4f}"),))
    feedback = c.lineage.feedback if c.lineage else None
    if feedback is not None and _is_compensated(feedback, grids, pool):
        reason = msg("diagnosis.compensated", energy=f"{feedback.energy:.2f}", hidden=f"{HIDDEN_CHANGE:.1f}")
        return Outcome((change,), False, (reason,))
    if grids and float(np.median([grid.far_zeros for grid in grids])) >= PRUNED_FIRST:
        zeros = float(np.median([pair.residual.new_zeros for pair in tested if pair.lattice is not None]))
        pruned = Transformation(Kind.PRUNED, {"sparsity": round(zeros, 4), "pattern": "unstructured"})
        return Outcome((pruned, change), False, (msg("diagnosis.pruned", zeros=f"{zeros:.0%}"),))
    noise = _noise_before(c, grids, pool)
    if noise is not None:
        white = msg("diagnosis.white", **numbers_of(pool))
        is_larger = 2.0 * float(str(noise.parameters["relative_sigma"])) ** 2 > pool.sigma**2
        return Outcome((noise, change) if is_larger else (change, noise), False, (white,))
    trained = training(pool)
    reason = msg("diagnosis.quantised_trained", beyond=f"{beyond:.1%}", edge=f"{pool.edge:.2f}")
    return Outcome((trained, change) if pool.rho > 0.3 else (change, trained), False, (reason,))


def _noise_before(c: Comparison, grids: Sequence[Lattice], pool: Pool) -> Transformation | None:
    """Noise under the rounding, when what is left beside it is white and so large that training would be seen."""
    fill = float(np.median([grid.fill for grid in grids])) if grids else 0.0
    if c.lineage is None or fill <= 1.0 or is_trained(pool) or pool.kurtosis > MAX_NOISE_KURTOSIS:
        return None
    beside = pool.sigma * float(np.sqrt(1.0 - 1.0 / fill**2))
    share = CONCENTRATION if beside >= CONTINUED_RHO else SHORT_CONCENTRATION
    if beside < seen_change(pool, c.lineage) * CONCENTRATION / share:
        return None
    return white_noise(replace(pool, sigma=beside, floor=0.0), c.lineage)


def _replayed(c: Comparison, tested: Sequence[PairFacts], pool: Pool) -> Outcome | None:
    """Rounding the source explains most of the difference; what is left beside it is a change of its own."""
    rounded = [pair for pair in tested if pair.replayed is not None and pair.remainder is not None]
    if c.lineage is None or not rounded or len(rounded) < LATTICE_SHARE * len(tested):
        return None
    change = _grid_change(c, [pair.replayed for pair in rounded if pair.replayed], by_storage=False)
    left = pool_of([pair.remainder for pair in rounded if pair.remainder])
    reason = msg("diagnosis.replayed", share=f"{1.0 - (left.rho / pool.rho) ** 2:.1%}")
    # The error of a rotation has directions, too: beside it a small remainder tells nothing.
    is_blurred = c.lineage.rotation is not None or not is_trained(left)
    is_small = left.rho < MIN_BESIDE * pool.rho and is_blurred
    if is_small or left.sigma < ROUNDING * max(left.floor, FLOAT_ROUNDING):
        return Outcome((change,), False, (reason,))
    rest = noise_or_training(left, c.lineage)
    is_smaller = 2.0 * left.rho**2 > pool.rho**2
    changes = (*rest.changes, change) if is_smaller else (change, *rest.changes)
    return Outcome(changes, False, (reason, *rest.reasons))


def _is_compensated(feedback: Feedback, grids: Sequence[Lattice], pool: Pool) -> bool:
    """Whether rounding with error feedback explains what rounding to the nearest value does not."""
    lowest, highest = FEEDBACK_EXCESS
    most = UNSEEN_FILL * np.sqrt(feedback.energy)  # wide matrices, whose determinant is not known
    return (
        lowest <= feedback.excess <= min(highest, FEEDBACK_SHARE * feedback.bulk)
        and feedback.largest <= highest
        and pool.edge <= MAX_FEEDBACK_EDGE
        and all(grid.fill <= most for grid in grids)
    )


def _unrounded(c: Comparison, tested: Sequence[PairFacts], pool: Pool) -> Outcome | None:
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
    c: Comparison, tested: Sequence[PairFacts], pool: Pool, *, packed: bool
) -> Outcome | None:
    """Both sides are packed, or the source in a code that is no grid: half a step is not known, whiteness is."""
    if not tested or is_trained(pool) or pool.rho > MAX_ROUNDING:
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


def _quantised_then_rounded(tested: Sequence[PairFacts], pool: Pool) -> Outcome | None:
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
