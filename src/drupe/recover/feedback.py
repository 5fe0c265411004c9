"""Does error feedback explain what rounding to the nearest value does not? GPTQ and its kin, undone.

GPTQ (Frantar et al. 2023, arXiv:2210.17323) rounds one input of a matrix after another and spreads what was lost over
the inputs that are still to come, by the same coefficients for all outputs. So E = A - B = R M with R the errors of
rounding to the nearest and M, in the order of the rounding, triangular with ones on its diagonal: det M = 1, and
det(E'E) = det(R'R) whatever the activations and the order were. A change before the rounding adds to the determinant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drupe.lattice import find_lattice, steps_of
from drupe.model import Block, Matrix, Model
from drupe.readers.interface import FloatArray
from drupe.recover.findings import Feedback, PairFacts
from drupe.stats import log_chi_square

MAX_COLUMNS = 4096
"""Widest matrix that is tried: its Gram matrix takes 128 MB and two seconds."""
MOST_PAIRS, FEW_PAIRS = 12, 2
"""Matrices that are read whole, and how many when reading is to be spared."""

SURE = 4.0
"""Standard deviations between the excess of a matrix and what it certainly exceeds."""
BULK_SIDE = 640
"""Rows and columns, evenly spread, on which the energy of the weaker directions is measured."""
UNIFORM = -1.2
"""Excess kurtosis of uniform errors."""


class Excess(NamedTuple):
    """What one matrix shows; see :class:`Feedback`."""

    value: float
    sd: float
    energy: float
    bulk: float
    columns: int


def feedback(a: Model, b: Model, facts: Sequence[PairFacts], *, sparing: bool) -> Feedback | None:
    """Measure tall matrices that lie on a grid farther from the source than half a step; None when there are none."""
    if any(pair.folded is not None for pair in facts):
        return None  # the errors of the scales that were undone would pass for those of the rounding
    fitting = [pair for pair in facts if _fits(pair)]
    fitting.sort(key=lambda pair: pair.suspect.size)
    results = []
    for pair in fitting[: FEW_PAIRS if sparing else MOST_PAIRS]:
        rows = min(pair.suspect.rows, pair.suspect.columns * 5 // 4 + 64)  # more rows tell no more
        found = excess(_rows(b, pair.source, rows), _rows(a, pair.suspect, rows))
        if found is not None:
            results.append(found)
    if not results:
        return None
    weights = np.array([each.columns for each in results], np.float64)
    weights /= weights.sum()
    values, sds = np.array([each.value for each in results]), np.array([each.sd for each in results])
    return Feedback(
        excess=float(weights @ values),
        sd=float(np.sqrt(np.square(weights * sds).sum())),
        largest=float((values - SURE * sds).max()),
        energy=float(np.median([each.energy for each in results])),
        bulk=float(weights @ [each.bulk for each in results]),
        pairs=len(results),
    )


def _fits(pair: PairFacts) -> bool:
    matrix = pair.suspect
    tall = matrix.columns <= min(matrix.rows, MAX_COLUMNS) and matrix.rows == pair.source.rows
    plain = pair.raw and pair.moved is None and not pair.negated
    return tall and plain and pair.place[1] is not None and pair.proven and pair.lattice is not None


def _rows(model: Model, matrix: Matrix, rows: int) -> FloatArray:
    return model.read([Block(matrix, 0, rows, 0, matrix.columns)])[0]


def excess(source: FloatArray, suspect: FloatArray) -> Excess | None:
    """The excess of one matrix; shapes (rows, columns), rows >= columns.

    With S = E'E / rows, rows scaled by their steps s: (log det S - sum log mean s^2 / 12 - bias) / columns. Bias and
    variance are those of a Wishart matrix, whose determinant is a product of independent chi-square variables
    (Bartlett's decomposition): sums over i of mean and variance of log(chi^2(rows - i) / rows); uniform errors, of
    excess kurtosis k = -1.2, shift them by -k y / 2 and k y, y = columns / rows (Bai and Silverstein 2004, theorem
    1.1 with f = log). Lies when values are clipped to the ends of the grid (up to +0.07 at 2 bits, measured) and
    when the steps of sparse groups are overestimated (negative).
    """
    lattice = find_lattice(suspect, source)
    rows, columns = suspect.shape
    if lattice is None or rows < columns:
        return None
    steps = steps_of(suspect, lattice.group).astype(np.float64)
    scale = np.sqrt(np.square(steps).mean(axis=1, keepdims=True))
    errors = (source - suspect) / scale
    rounding = np.square(steps / scale).mean(axis=0) / 12.0
    sign, log_det = np.linalg.slogdet(errors.T @ errors / rows)
    if sign <= 0 or not np.isfinite(log_det):
        return None  # columns that were not changed, or depend on each other
    bias, variance = _wishart(rows, columns)
    value = (log_det - np.log(rounding).sum() - bias) / columns
    energy = float(np.square(errors).mean() / rounding.mean())
    return Excess(
        float(value), float(np.sqrt(variance)) / columns, energy, _bulk(errors, steps / scale), columns
    )


def _bulk(errors: NDArray[np.float64], steps: NDArray[np.float64]) -> float:
    """log of the energy outside of the strongest eighth of the directions, over that of errors drawn uniformly."""
    rows, columns = (np.linspace(0, n - 1, min(n, BULK_SIDE)).astype(int) for n in errors.shape)
    block = np.ix_(rows, columns)
    drawn = (np.random.default_rng(0).random((rows.size, columns.size)) - 0.5) * steps[block]
    kept = columns.size - max(1, columns.size // 8)
    found, expected = (np.linalg.eigvalsh(d.T @ d)[:kept].sum() for d in (errors[block], drawn))
    return float(np.log(found / expected))


def _wishart(rows: int, columns: int) -> tuple[float, float]:
    """Mean and variance of log det of the covariance of ``rows`` independent rows of uniform values, variance 1."""
    means, variances = log_chi_square(np.arange(rows - columns + 1, rows + 1))
    ratio = columns / rows
    mean = float((means - np.log(rows)).sum()) - 0.5 * UNIFORM * ratio
    return mean, float(variances.sum()) + UNIFORM * ratio
