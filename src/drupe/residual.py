"""What is left of a matrix after undoing: D = suspect - source. Measurements only; diagnose.py names them.

Notation as in docs/design/005-residual.md: A source, B suspect (both in the source's coordinates), n entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.readers.interface import FloatArray

LATTICE_GROUPS = (0, 256, 128, 64, 32)
"""Group sizes along a row that are tried, largest first; 0 = the whole row."""
_MANTISSA = {"BF16": 7, "F16": 10}


@dataclass(frozen=True, slots=True)
class Lattice:
    """Values lie on an affine grid per group: B = zero + step * integer, at most ``levels`` integers."""

    bits: int
    group: int
    symmetric: bool
    share: float
    beyond_half_step: float
    """Share of entries of A farther than half a step from B: 0 when B is A rounded, more after training."""


@dataclass(frozen=True, slots=True)
class Residual:
    """Facts of one aligned pair. All ratios are without unit.

    ``equal`` share of equal entries; ``cast`` dtype whose rounding of A gives B everywhere; ``rho`` |D|/|A|;
    ``scale`` <A,B>/<A,A>; ``after_scale`` |B - scale A|/|B|; ``sigma`` sd(D)/sd(A); ``floor`` rounding error of
    the storage type / sd(A); ``kurtosis`` excess of D; ``edge`` largest singular value of D over the
    Marchenko-Pastur edge; ``tracy_widom`` its standardised distance from that edge (mean 0, sd 1 for white D);
    ``new_zeros`` share of entries zeroed; ``kept_equal`` share of equal entries among the others.
    """

    size: int
    equal: float
    cast: str | None
    rho: float
    scale: float
    after_scale: float
    sigma: float
    floor: float
    kurtosis: float
    edge: float
    tracy_widom: float
    new_zeros: float
    kept_equal: float


def measure(source: FloatArray, suspect: FloatArray, dtype: str, *, spectral: bool = True) -> Residual:
    """Measure one pair of equal shape; ``dtype`` is the suspect's storage type (for the rounding floor).

    Without ``spectral`` the costly edge and kurtosis are NaN.
    """
    a, b = np.asarray(source, np.float32), np.asarray(suspect, np.float32)
    same = a == b
    equal = float(same.mean())
    if equal == 1.0:
        return Residual(a.size, 1.0, None, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    d = (b - a).astype(np.float64)
    energy = float((a.astype(np.float64) ** 2).sum())
    scale = float((a.astype(np.float64) * b).sum()) / energy if energy else 0.0
    rest = float(np.linalg.norm(b - np.float32(scale) * a))
    spread = float(a.std()) or 1.0
    zeros = (b == 0) & (a != 0)
    edge, tracy_widom = spectral_edge(d) if spectral else (np.nan, np.nan)
    return Residual(
        size=a.size,
        equal=equal,
        cast=cast_of(a, b),
        rho=float(np.linalg.norm(d)) / (np.sqrt(energy) or 1.0),
        scale=scale,
        after_scale=rest / (float(np.linalg.norm(b)) or 1.0),
        sigma=float(d.std()) / spread,
        floor=rounding_floor(b, dtype) / spread,
        kurtosis=excess_kurtosis(d) if spectral else np.nan,
        edge=edge,
        tracy_widom=tracy_widom,
        new_zeros=float(zeros.mean()),
        kept_equal=float(same[~zeros].mean()) if not zeros.all() else 0.0,
    )


def to_bfloat16(values: FloatArray) -> FloatArray:
    """Round to bfloat16, nearest even, as float32.

    >>> to_bfloat16(np.array([1.0, 1.01], np.float32)).tolist()
    [1.0, 1.0078125]
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def cast_of(a: FloatArray, b: FloatArray) -> str | None:
    """The dtype to which one side was rounded from the other, everywhere; None when neither was."""
    with np.errstate(over="ignore", invalid="ignore"):
        for dtype, rounded in (("BF16", to_bfloat16), ("F16", _to_half)):
            if np.array_equal(rounded(a), b):
                return dtype
            if np.array_equal(rounded(b), a):
                return "F32"
    return None


def _to_half(values: FloatArray) -> FloatArray:
    return values.astype(np.float16).astype(np.float32)


def rounding_floor(b: FloatArray, dtype: str) -> float:
    """Root mean square rounding error of the storage type: sqrt(mean ulp(B)^2 / 12); 0 for float32."""
    mantissa = _MANTISSA.get(dtype)
    if mantissa is None:
        return 0.0
    magnitude = np.abs(b[b != 0]).astype(np.float64)
    if not magnitude.size:
        return 0.0
    ulp = np.exp2(np.floor(np.log2(magnitude)) - mantissa)
    return float(np.sqrt((ulp**2).sum() / (12.0 * b.size)))


def excess_kurtosis(d: NDArray[np.float64]) -> float:
    """Fourth standardised moment less 3: 0 Gaussian, -1.2 uniform, 3 Laplace."""
    centred = d - d.mean()
    variance = float((centred**2).mean())
    return float((centred**4).mean()) / variance**2 - 3.0 if variance > 0 else 0.0


def spectral_edge(d: NDArray[np.float64], iterations: int = 24) -> tuple[float, float]:
    """(s1 / Marchenko-Pastur edge, standardised Tracy-Widom statistic) of a residual, each column centred not.

    For white m x c noise of sd s: s1^2 / s^2 ~ mu + sigma TW1, mu = (sqrt(m-1) + sqrt(c))^2,
    sigma = (sqrt(m-1) + sqrt(c)) (1/sqrt(m-1) + 1/sqrt(c))^(1/3) (Johnstone, Ann. Statist. 2001);
    TW1 has mean -1.2065, sd 1.2680. s1 by power iteration, a lower bound, hence conservative.
    """
    m, c = d.shape
    variance = float((d**2).mean())
    if variance <= 0 or min(m, c) < 8:
        return 0.0, 0.0
    top = _largest_singular(d, iterations)
    side = float(np.sqrt(m - 1) + np.sqrt(c))
    sigma = side * (1 / np.sqrt(m - 1) + 1 / np.sqrt(c)) ** (1 / 3)
    statistic = (top**2 / variance - side**2) / sigma
    return float(top / (np.sqrt(variance) * (np.sqrt(m) + np.sqrt(c)))), float((statistic + 1.2065) / 1.2680)


def _largest_singular(d: NDArray[np.float64], iterations: int) -> float:
    if min(d.shape) <= 512:
        gram = d @ d.T if d.shape[0] <= d.shape[1] else d.T @ d
        return float(np.sqrt(max(np.linalg.eigvalsh(gram)[-1], 0.0)))
    vector: NDArray[np.float64] = np.random.default_rng(0).standard_normal((d.shape[1], 1))
    for _ in range(iterations):
        vector = d.T @ (d @ vector)
        vector = vector / max(float(np.linalg.norm(vector)), 1e-300)
    return float(np.linalg.norm(d @ vector))


def find_lattice(b: FloatArray, a: FloatArray | None = None, samples: int = 24) -> Lattice | None:
    """The quantisation grid of stored values, or None. No source is needed; with one, half-step excess is given.

    Per group: u = sorted distinct values, step in {span / round(span / g)}, g = smallest gap / 1, 2, 3; passes if
    max |(u - u0) / step - round| < 0.03 and span / step <= 256. The largest group size with >= 85 % passes wins.
    Values that were never quantised pass nowhere. Blind to NF4 and to 8 bits rounded again to 16.
    """
    for group in LATTICE_GROUPS:
        width = group or b.shape[1]
        if width > b.shape[1] or b.shape[1] % width:
            continue
        rows = np.linspace(0, b.shape[0] - 1, min(samples, b.shape[0])).astype(int)
        fits = [_fit_grid(b[row, start : start + width]) for row in rows for start in _starts(b.shape[1], width)]
        passed = [fit for fit in fits if fit is not None]
        if len(passed) >= 0.85 * len(fits) and len(passed) >= 8:
            return _lattice(passed, width if group else 0, len(passed) / len(fits), a, b)
    return None


def _starts(columns: int, width: int, most: int = 4) -> Sequence[int]:
    count = columns // width
    return [int(k) * width for k in np.linspace(0, count - 1, min(most, count))]


@dataclass(frozen=True, slots=True)
class _Grid:
    step: float
    levels: int
    symmetric: bool


def _fit_grid(values: FloatArray) -> _Grid | None:
    u = np.unique(values.astype(np.float64))
    if u.size < 2 or u.size > 257 or u.size > 0.9 * values.size or not np.isfinite(u).all():
        return None
    span, gap = float(u[-1] - u[0]), float(np.diff(u).min())
    for divisor in (1, 2, 3):
        steps = round(span / (gap / divisor))
        if steps > 256:
            return None
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
    step = float(np.median([grid.step for grid in grids]))
    beyond = 0.0 if a is None else float((np.abs(a - b) > 0.55 * _local_steps(b, group, step)).mean())
    return Lattice(bits, group, symmetric, share, beyond)


def _local_steps(b: FloatArray, group: int, fallback: float) -> FloatArray:
    """Step of each entry's own group, from the smallest gap of the group."""
    width = group or b.shape[1]
    flat = np.sort(b.reshape(-1, width), axis=1)
    gaps = np.diff(flat, axis=1)
    gaps[gaps <= 1e-12] = np.inf
    step = gaps.min(axis=1)
    step[~np.isfinite(step)] = fallback
    return np.repeat(step, width).reshape(b.shape).astype(np.float32)
