"""Pure estimators and tests. Each docstring: what it measures, formula, null, when it lies, reference."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LN10 = math.log(10.0)
MAD_TO_SD = 1.4826
"""Median absolute deviation of a normal variable times this = its standard deviation."""


def log10_normal_sf(z: float) -> float:
    """log10 P(Z >= z) of a standard normal variable; finite for any z.

    Tail by the continued fraction's first terms (Abramowitz & Stegun 26.2.12), relative error < 1e-3 for
    z > 8; exact complementary error function below.

    >>> round(log10_normal_sf(1.6448536), 3)
    -1.301
    >>> round(log10_normal_sf(40.0), 1)
    -349.4
    """
    if math.isnan(z):
        return 0.0
    if z < 8.0:
        return math.log10(max(0.5 * math.erfc(z / math.sqrt(2.0)), 1e-300))
    correction = 1.0 - 1.0 / z**2 + 3.0 / z**4
    return (-0.5 * z * z - math.log(z * math.sqrt(2.0 * math.pi)) + math.log(correction)) / LN10


def log10_bonferroni(log10_p: float, candidates: int) -> float:
    """Corrected for the best of several candidates: log10 min(1, m p).

    >>> log10_bonferroni(-6.0, 100)
    -4.0
    """
    return min(0.0, log10_p + math.log10(max(candidates, 1)))


def log10_at_least(hits: int, trials: int, log10_alpha: float) -> float:
    """Union bound on P(at least ``hits`` of ``trials`` p-values <= alpha), any dependence within a subset
    of independent trials: log10 C(n, k) + k log10 alpha. Exactly conservative for independent trials.

    >>> log10_at_least(0, 10, -5.0)
    0.0
    >>> round(log10_at_least(2, 10, -5.0), 2)
    -8.35
    """
    if hits <= 0:
        return 0.0
    choose = math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1)
    return min(0.0, choose / LN10 + hits * log10_alpha)


def log10_poisson_sf(count: int, mean: float) -> float:
    """log10 P(X >= count) for X ~ Poisson(mean), by the Chernoff bound e^{-mean} (e mean / k)^k for
    k > mean, else 0: conservative. Reference: Mitzenmacher & Upfal, Probability and Computing, thm 5.4.

    >>> log10_poisson_sf(0, 1.0)
    0.0
    >>> round(log10_poisson_sf(20, 1.0), 1)
    -17.8
    """
    if count <= mean or mean <= 0.0:
        return 0.0 if count <= mean else -math.inf
    return min(0.0, (-mean + count * (1.0 + math.log(mean / count))) / LN10)


def robust_scale(values: NDArray[np.floating], floor: float = 1.0) -> tuple[float, float]:
    """Median and MAD-based standard deviation of a sample, the latter not below ``floor``.

    The in-pair control: z-scores of mismatched layers have scale 1 under the null; a larger one measures
    overdispersion. Never used to make a result more significant (floor). Lies below about 20 values.

    >>> robust_scale(np.array([-1.0, 0.0, 1.0]))
    (0.0, 1.4826)
    """
    if values.size == 0:
        return 0.0, floor
    centre = float(np.median(values))
    return centre, max(floor, MAD_TO_SD * float(np.median(np.abs(values - centre))))


def correlation_from_agreement(rate: float) -> float:
    """Correlation of two Gaussian variables whose signs agree with this rate: sin(pi (a - 1/2)).

    >>> correlation_from_agreement(0.5)
    0.0
    """
    return math.sin(math.pi * (min(max(rate, 0.0), 1.0) - 0.5))


def wilson(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, JASA 1927).

    >>> tuple(round(x, 3) for x in wilson(5, 10))
    (0.237, 0.763)
    """
    if trials <= 0:
        return 0.0, 1.0
    share, square = successes / trials, z * z / trials
    centre = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / trials + square / (4 * trials)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


def excess_kurtosis(d: NDArray[np.float64]) -> float:
    """Fourth standardised moment less 3: 0 Gaussian, -1.2 uniform, 3 Laplace."""
    squares = np.square(d - d.mean())
    variance = float(squares.mean())
    return float(np.square(squares).mean()) / variance**2 - 3.0 if variance > 0 else 0.0


def log_chi_square(degrees: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of the logarithm of chi-square variables: digamma(k/2) + log 2 and trigamma(k/2).

    Both by their recurrence up to 8 and the asymptotic series from there (Abramowitz & Stegun 6.3.18, 6.4.12),
    absolute error below 1e-8.

    >>> mean, variance = log_chi_square(np.array([1, 2]))
    >>> [round(float(v), 5) for v in (*mean, *variance)]
    [-1.27036, 0.11593, 4.9348, 1.64493]
    """
    x = np.asarray(degrees, np.float64) / 2.0
    mean, variance = np.full_like(x, math.log(2.0)), np.zeros_like(x)
    while (small := x < 8.0).any():
        mean[small] -= 1.0 / x[small]
        variance[small] += 1.0 / x[small] ** 2
        x[small] += 1.0
    y = 1.0 / (x * x)
    mean += np.log(x) - 0.5 / x - y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y / 240)))
    variance += 1.0 / x + 0.5 * y + y / x * (1 / 6 - y * (1 / 30 - y * (1 / 42 - y / 30)))
    return mean, variance
