"""Does error feedback explain what rounding to the nearest value does not? GPTQ and its kin, undone.

GPTQ (Frantar et al. 2023, arXiv:2210.17323) rounds one input of a matrix after another and spreads what was lost over
the inputs that are still to come, by the same coefficients for all outputs. So E = A - B = R M with R the errors of
rounding to the nearest and M, in the order of the rounding, triangular with ones on its diagonal: det M = 1, and
det(E'E) = det(R'R) whatever the activations and the order were. A change before the rounding adds to the determinant.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
UNIFORM = -1.2
"""Excess kurtosis of uniform errors."""


def feedback(a: Model, b: Model, facts: Sequence[PairFacts], *, sparing: bool) -> Feedback | None:
    """Measure tall matrices that lie on a grid farther from the source than half a step; None when there are none."""
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
    weights = np.array([columns for _, _, _, columns in results], np.float64)
    weights /= weights.sum()
    values, sds = (np.array([result[k] for result in results]) for k in (0, 1))
    return Feedback(
        excess=float(weights @ values),
        sd=float(np.sqrt(np.square(weights * sds).sum())),
        energy=float(np.median([energy for _, _, energy, _ in results])),
        largest=float((values - SURE * sds).max()),
        pairs=len(results),
    )


def _fits(pair: PairFacts) -> bool:
    matrix = pair.suspect
    tall = matrix.columns <= min(matrix.rows, MAX_COLUMNS) and matrix.rows == pair.source.rows
    plain = pair.raw and pair.moved is None and not pair.negated and pair.folded is None
    return tall and plain and pair.place[1] is not None and pair.proven and pair.lattice is not None


def _rows(model: Model, matrix: Matrix, rows: int) -> FloatArray:
    return model.read([Block(matrix, 0, rows, 0, matrix.columns)])[0]


def excess(source: FloatArray, suspect: FloatArray) -> tuple[float, float, float, int] | None:
    """Excess, its standard deviation, energy and number of columns; shapes (rows, columns), rows >= columns.

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
    return float(value), float(np.sqrt(variance)) / columns, energy, columns


def _wishart(rows: int, columns: int) -> tuple[float, float]:
    """Mean and variance of log det of the covariance of ``rows`` independent rows of uniform values, variance 1."""
    means, variances = log_chi_square(np.arange(rows - columns + 1, rows + 1))
    ratio = columns / rows
    mean = float((means - np.log(rows)).sum()) - 0.5 * UNIFORM * ratio
    return mean, float(variances.sum()) + UNIFORM * ratio
