"""White residuals: how large the noise is, and how large a trained change could hide in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drupe.diagnose.kinds import Kind, Transformation
from drupe.recover.findings import PairFacts

CONCENTRATION = 0.2
"""Share of a trained change that its strongest direction holds, at least: 0.20 to 0.96 (median matrix 0.31 to 0.96)
in the 28 trainings of the zoo; short ones, which could hide, hold 0.45 and more."""
SHORT_CONCENTRATION = 0.45
"""The same of changes by less than three tenths of the weights."""


def noise(sigma: float, floor: float, values: int, excess: float, hidden: float) -> Transformation:
    """sigma^2 = var(D) / (1 + excess) - floor^2, interval sigma (1 +- 1.96 / sqrt(2n)).

    ``excess``: what the error of a rotation adds. It is that of matrices without preferred directions; half of the
    correction is left as doubt. ``hidden``: see :func:`hidden_change`, here relative to the weights.
    """
    clean = float(np.sqrt(max(sigma**2 / (1.0 + excess) - floor**2, 0.0)))
    half = clean * (1.96 / float(np.sqrt(2.0 * max(values, 1))) + excess / 4.0)
    parameters = {
        "relative_sigma": round(clean, 6),
        "low": round(clean - half, 6),
        "high": round(clean + half, 6),
        "hidden_change": round(hidden, 6),
    }
    return Transformation(Kind.GAUSSIAN_NOISE, parameters)


def hidden_change(pairs: Sequence[PairFacts], level: float) -> float:
    """The largest trained change that noise hides, in units of the noise; the median over the pairs.

    Noise of sd s in (m, c) has the largest singular value s (sqrt m + sqrt c). With a direction of strength t s in
    it, the largest one is s sqrt((t^2 + m) (t^2 + c)) / t (Benaych-Georges and Nadakuditi, J. Multivar. Anal. 2012);
    it is seen from ``level`` times that of the noise. A change of that size in one direction is larger as a whole by
    1 / CONCENTRATION.
    """
    limits = [_limit(*pair.shape, level) for pair in pairs]
    return float(np.median(limits)) if limits else 0.0


def _limit(rows: int, columns: int, level: float) -> float:
    edge = level**2 * (np.sqrt(rows) + np.sqrt(columns)) ** 2
    half = (edge - rows - columns) / 2.0
    strength = float(np.sqrt(half + np.sqrt(max(half**2 - rows * columns, 0.0))))
    return strength / (CONCENTRATION * float(np.sqrt(rows * columns)))
