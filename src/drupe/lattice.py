"""Quantisation grids: read off the stored values, or off the difference when rounding hid the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.readers.interface import FloatArray
from drupe.stats import excess_kurtosis

LATTICE_GROUPS = (0, 256, 128, 64, 32, 16)
"""Group sizes along a row that are tried, largest first; 0 = the whole row."""
UNIFORM_KURTOSIS = -0.4
BEYOND_GRID = 0.02
"""Largest share of values farther than half a step that still counts as rounding."""
FULL_GRID = (0.8, 1.2)
"""Range of Lattice.fill of pure rounding."""
FINER_BITS = 2
USED = 10
"""Times that a place of a grid is used before the next one, left empty, means something."""
PASSES = 0.6
"""Share of the tried groups that must lie on a grid; values that were never quantised pass nowhere."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """Values lie on an affine grid per group: B = zero + step * integer, at most ``levels`` integers."""

    bits: int
    group: int
    symmetric: bool
    share: float
    beyond_half_step: float
    fill: float
    """Share of entries of A farther than half a step from B: 0 when B is A rounded, more after training.

    ``fill``: rms of (A - B) / step times sqrt 12: 1 when B is A rounded (uniform errors), less when A is B changed a
    little, more after training.
    """
    scheme: str | None = None
    """Name of a code that is no even grid."""
    far_zeros: float = 0.0
    """Share of the far entries at which B is zero: nearly all when A was pruned first."""


def explains(lattice: Lattice) -> bool:
    """Whether rounding to this grid is all that separates the two sides."""
    return lattice.beyond_half_step <= BEYOND_GRID and FULL_GRID[0] <= lattice.fill <= FULL_GRID[1]


def find_lattice(b: FloatArray, a: FloatArray | None = None, samples: int = 24) -> Lattice | None:
    """The quantisation grid of stored values, or None. No source is needed; with one, half-step excess is given.
    A code of small floats is a grid with places left out; half a step is then half the way to the next place.

    Per group: u = sorted distinct values, step in {span / round(span / g)}, g = smallest gap / 1, 2, 3; passes if
    max |(u - u0) / step - round| < 0.03 and span / step <= 256. The largest group size with >= 60 % passes wins,
    unless a smaller one needs two bits less or is the only one that A is rounded to (neighbouring coarse grids make a
    fine grid of the row).
    Values that were never quantised pass nowhere. Blind to NF4 and to 8 bits rounded again to 16.
    """
    best: Lattice | None = None
    for group in LATTICE_GROUPS:
        width = group or b.shape[1]
        if width > b.shape[1] or b.shape[1] % width:
            continue
        rows = np.linspace(0, b.shape[0] - 1, min(samples, b.shape[0])).astype(int)
        groups = np.stack([b[rows, start : start + width] for start in _starts(b.shape[1], width)], axis=1)
        fits = _fit_grids(groups.reshape(-1, width))
        passed = [fit for fit in fits if fit is not None]
        if len(passed) >= PASSES * len(fits) and len(passed) >= 8:
            found = _lattice(passed, width if group else 0, len(passed) / len(fits), a, b)
            if (
                best is None
                or found.bits <= best.bits - FINER_BITS
                or (explains(found) and not explains(best))
            ):
                best = found
    return best


def _starts(columns: int, width: int, most: int = 4) -> Sequence[int]:
    count = columns // width
    return [int(k) * width for k in np.linspace(0, count - 1, min(most, count))]


@dataclass(frozen=True, slots=True)
class _Grid:
    step: float
    levels: int
    symmetric: bool


def _fit_grids(groups: FloatArray) -> list[_Grid | None]:
    """The grid of each row; rows that cannot lie on one are told by their smallest gap, all at once."""
    ordered = np.sort(groups.astype(np.float64), axis=1)
    with np.errstate(invalid="ignore"):
        gaps = np.diff(ordered, axis=1)
        smallest = np.where(gaps > 0, gaps, np.inf).min(axis=1)
        possible = ordered[:, -1] - ordered[:, 0] < 256.5 * smallest
    return [_fit_grid(row) if fine else None for row, fine in zip(ordered, possible, strict=True)]


def _fit_grid(values: NDArray[np.float64]) -> _Grid | None:
    u = np.unique(values)
    if u.size < 3 or u.size > 257 or u.size > 0.9 * values.size or not np.isfinite(u).all():
        return None
    span, gap = float(u[-1] - u[0]), float(np.diff(u).min())
    for divisor in (1, 2, 3):
        steps = round(span / (gap / divisor))
        if steps >= (u.size if u.size <= 4 else 4 * u.size if u.size <= 16 else 257):
            return None  # few values lie on some fine grid by chance
        step = span / steps
        places = (u - u[0]) / step
        if float(np.abs(places - np.round(places)).max()) < 0.03:
            offset = u[0] / step
            return _Grid(step, steps + 1, bool(abs(offset - round(offset)) < 0.03))
    return None


def _lattice(
    grids: Sequence[_Grid], group: int, share: float, a: FloatArray | None, b: FloatArray
) -> Lattice:
    levels = max(grid.levels for grid in grids)
    symmetric = sum(grid.symmetric for grid in grids) > 0.8 * len(grids)
    bits = max(2, int(np.ceil(np.log2(levels))))
    if a is None:
        return Lattice(bits, group, symmetric, share, 0.0, 1.0)
    steps = steps_of(b, group)
    distance = np.abs(a - b) / steps
    places = _uneven_places(b, steps) if symmetric else None
    if places is not None:
        bits = max(2, int(np.ceil(np.log2(2 * places.size - 1))))
        distance = distance / _room(a, b, steps, places)
    fill = float(np.sqrt(12.0 * np.mean(np.minimum(distance, 4.0) ** 2)))
    far = distance > 0.55
    zeros = float((b[far] == 0).mean()) if far.any() else 0.0
    return Lattice(bits, group, symmetric, share, float(far.mean()), fill, far_zeros=zeros)


def _uneven_places(b: FloatArray, steps: FloatArray) -> NDArray[np.intp] | None:
    """The multiples of the step that a small-float code uses (E2M1: 0 1 2 3 4 6 8 12), None for an even grid.

    An even grid of thousands of values leaves no place empty between two that are used ten times.
    """
    counts = np.bincount(np.minimum(np.abs(np.rint(b / steps)), 1023).astype(np.intp).ravel())
    empty = (counts[1:-1] == 0) & (counts[:-2] >= USED) & (counts[2:] >= USED)
    return np.flatnonzero(counts) if empty.any() else None


def _room(a: FloatArray, b: FloatArray, steps: FloatArray, places: NDArray[np.intp]) -> FloatArray:
    """Steps from each value of B to the next place in the direction of A; beyond the last place there is no end."""
    signed = np.concatenate([-places[::-1], places[places > 0]]).astype(np.float64)
    ends = np.concatenate([[-np.inf], signed, [np.inf]])
    here = np.searchsorted(signed, np.rint(b / steps)) + 1
    here = np.clip(here, 1, signed.size)
    room = np.where(a > b, ends[here + 1] - ends[here], ends[here] - ends[here - 1])
    found: FloatArray = room.astype(np.float32)
    return found


def steps_of(b: FloatArray, group: int) -> FloatArray:
    """Step of each entry's own group, shape of B: the span over the number of smallest gaps in it."""
    width = group or b.shape[1]
    flat = np.sort(b.reshape(-1, width).astype(np.float64), axis=1)
    gaps = np.diff(flat, axis=1)
    gaps[gaps <= 1e-12] = np.inf
    smallest, span = gaps.min(axis=1), flat[:, -1] - flat[:, 0]
    known = np.isfinite(smallest)
    steps = np.full(len(flat), np.nan)
    # The gap alone is off by the rounding of two values, which the span spreads over all steps.
    steps[known] = span[known] / np.rint(span[known] / smallest[known])
    steps[~known] = np.median(steps[known]) if known.any() else 1.0
    return np.repeat(steps, width).reshape(b.shape).astype(np.float32)


@dataclass(frozen=True, slots=True)
class DeltaGrid:
    """A grid seen only in the difference: its size follows the largest value of each row."""

    bits: int
    correlation: float


def delta_grid(a: FloatArray, b: FloatArray) -> DeltaGrid | None:
    """Row-wise quantisation hidden by a later rounding to 16 bits, or None.

    Over rows, y = log rms(D) against x = log max|B|: correlation > 0.9, slope 0.7 to 1.3; a uniform error of one
    step has rms = step / sqrt 12, so levels = exp(median(x - y)) / sqrt 12 = steps from 0 to max|B|.
    Noise of one size per tensor, and training, give no such line. Needs 16 rows.
    """
    rms = np.sqrt(np.mean(np.square((b - a).astype(np.float64)), axis=1))
    top = np.abs(b).max(axis=1).astype(np.float64)
    fine = (rms > 0) & (top > 0)
    if fine.sum() < 16:
        return None
    x, y = np.log(top[fine]), np.log(rms[fine])
    if x.std() < 1e-3 or y.std() < 1e-3:
        return None
    correlation = float(np.corrcoef(x, y)[0, 1])
    slope = correlation * float(y.std() / x.std())
    levels = float(np.exp(np.median(x - y)) / np.sqrt(12.0))
    shape = excess_kurtosis((b - a)[fine].astype(np.float64) / rms[fine, None])
    if shape > UNIFORM_KURTOSIS:  # rounding errors are uniform within a row (-1.2), noise is not (0)
        return None
    if correlation < 0.9 or not 0.7 <= slope <= 1.3 or not 1.0 <= levels <= 260.0:
        return None
    return DeltaGrid(max(2, round(float(np.log2(2.0 * levels)))), correlation)
