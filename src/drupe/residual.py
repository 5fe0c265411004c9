"""What is left of a matrix after undoing: D = suspect - source. Measurements only; diagnose.py names them.

Notation as in docs/design/005-residual.md: A source, B suspect (both in the source's coordinates), n entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.readers.interface import FloatArray
from drupe.stats import excess_kurtosis
from drupe.uninformative import MAX_MAGNITUDE

MAX_RANK_SIDE = 1024
EXACT_SIDE = 512
"""Smaller side up to which singular values are computed, not iterated."""
FLIPS = 4
_MANTISSA = {"BF16": 7, "F16": 10}


@dataclass(frozen=True, slots=True)
class Residual:
    """Facts of one aligned pair. All ratios are without unit.

    ``equal`` share of equal entries; ``cast`` dtype whose rounding of A gives B everywhere; ``rho`` |D|/|A|;
    ``scale`` <A,B>/<A,A>; ``after_scale`` |B - scale A|/|B|; ``sigma`` sd(D)/sd(A); ``floor`` rounding error of
    the storage type / sd(A); ``kurtosis`` excess of D; ``edge`` largest singular value of D over
    that of D with random signs;
    ``new_zeros`` share of entries zeroed; ``kept_equal`` share of equal entries among the others;
    ``after_unit_scale`` |B - diag(c) A|/|B| with the best factor of each row, or of each column; ``changed_rows``
    share of rows with any change; ``two_of_four`` share of groups of four along a row with just two zeros; ``rank``
    number of singular values of D above what rounding gives, None when not computed.
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
    new_zeros: float
    kept_equal: float
    after_unit_scale: float
    changed_rows: float = 1.0
    two_of_four: float = 0.0
    rank: int | None = None


def measure(source: FloatArray, suspect: FloatArray, dtype: str, *, spectral: bool = True) -> Residual:
    """Measure one pair of equal shape; ``dtype`` is the suspect's storage type (for the rounding floor).

    Without ``spectral`` the costly edge and kurtosis are NaN.
    """
    a, b = np.asarray(source, np.float32), np.asarray(suspect, np.float32)
    if not ((np.abs(a) < MAX_MAGNITUDE).all() and (np.abs(b) < MAX_MAGNITUDE).all()):
        return _damaged(a.size)
    same = a == b
    equal = float(same.mean())
    if equal == 1.0:
        return Residual(a.size, 1.0, None, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    d = (b - a).astype(np.float64)
    energy = float((a.astype(np.float64) ** 2).sum())
    scale = float((a.astype(np.float64) * b).sum()) / energy if energy else 0.0
    rest = float(np.linalg.norm(b - np.float32(scale) * a))
    spread = float(a.std()) or 1.0
    zeros = (b == 0) & (a != 0)
    spectrum = squared_spectrum(d) if spectral else None
    edge = spectral_edge(d, spectrum if min(d.shape) <= EXACT_SIDE else None) if spectral else np.nan
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
        new_zeros=float(zeros.mean()),
        kept_equal=float(same[~zeros].mean()) if not zeros.all() else 0.0,
        after_unit_scale=min(_after_row_scale(a, b), _after_row_scale(a.T, b.T)),
        changed_rows=float((~same).any(axis=1).mean()),
        two_of_four=_two_of_four(b) if zeros.any() else 0.0,
        rank=None if spectrum is None else residual_rank(spectrum, b, dtype),
    )


def _two_of_four(b: FloatArray) -> float:
    """Share of groups of four neighbours in a row with just two zeros: 1 after 2:4 pruning, 3/8 when half is cut."""
    fours = b[:, : b.shape[1] // 4 * 4].reshape(-1, 4)
    return float(((fours == 0).sum(axis=1) == 2).mean()) if fours.size else 0.0


def _damaged(size: int) -> Residual:
    """A pair with values that are no numbers: nothing can be measured."""
    nan = float("nan")
    return Residual(size, 0.0, None, nan, nan, nan, nan, nan, nan, nan, 0.0, 0.0, nan)


def _after_row_scale(a: FloatArray, b: FloatArray) -> float:
    """|B - diag(c) A| / |B| with c_i = <a_i, b_i> / <a_i, a_i>."""
    energy = np.einsum("rc,rc->r", a, a)
    factors = np.einsum("rc,rc->r", a, b) / np.where(energy > 0, energy, 1.0)
    return float(np.linalg.norm(b - factors[:, None] * a)) / (float(np.linalg.norm(b)) or 1.0)


CONVERGED = 1e-6
"""Relative change of the factors at which their fit ends."""


def unit_scales(a: FloatArray, b: FloatArray, rounds: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """r (rows,) and c (columns,) with B ~ diag(r) A diag(c): alternating least squares, per row and column.

    Folding the gains of a norm into the next matrix scales its columns, folding those of the next layer into this
    one its rows; scales that spare activations in quantisation (AWQ, SmoothQuant) do both.
    """
    products, energies = (a * b).astype(np.float64), np.square(a, dtype=np.float64)
    rows, columns = np.ones(a.shape[0]), np.ones(a.shape[1])
    for _ in range(rounds):
        rows = _quotient(products @ columns, energies @ columns**2)
        before, columns = columns, _quotient(rows @ products, rows**2 @ energies)
        if np.abs(columns - before).max() <= CONVERGED * np.abs(columns).max():
            break
    return rows, columns


def _quotient(over: NDArray[np.float64], under: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(over, under, out=np.ones_like(over), where=under > 0)


def squared_spectrum(d: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Squared singular values of D, ascending; None when the smaller side exceeds 1,024."""
    if min(d.shape) > MAX_RANK_SIDE:
        return None
    gram = d @ d.T if d.shape[0] <= d.shape[1] else d.T @ d
    values: NDArray[np.float64] = np.maximum(np.linalg.eigvalsh(gram), 0.0)
    return values


def residual_rank(spectrum: NDArray[np.float64], b: FloatArray, dtype: str) -> int:
    """Singular values of D above the largest one of pure rounding errors of B, times 1.05.

    Rounding errors are white with sd ``floor`` (1e-7 of the values for float32), so their largest singular value
    is floor (sqrt m + sqrt c).
    """
    floor = max(rounding_floor(b, dtype), 1e-7 * float(np.abs(b).mean()))
    edge = 1.05 * floor * (np.sqrt(b.shape[0]) + np.sqrt(b.shape[1]))
    return int((spectrum > edge**2).sum())


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
    _, exponents = np.frexp(b[b != 0])
    if not exponents.size:
        return 0.0
    ulp = np.ldexp(1.0, exponents - 1 - mantissa)
    return float(np.sqrt(np.square(ulp).sum() / (12.0 * b.size)))


def spectral_edge(d: NDArray[np.float64], spectrum: NDArray[np.float64] | None = None) -> float:
    """Largest singular value of D over its mean under random signs: 1 for noise, more for training.

    Null: entries are independent and symmetric, of whatever sizes (Laplace, heavy-tailed, per row, multiplicative,
    rounding errors): then D and D o R, R of random signs, are equal in distribution. Measured over those kinds
    and shapes 32 x 64 to 256 x 512: 1.00, sd 0.025. Trained differences: 1.03 to 2.5. The Marchenko-Pastur edge,
    which assumes equal variances, calls heavy-tailed and row-scaled noise training.
    """
    if min(d.shape) < 8 or not d.any():
        return 0.0
    top = float(np.sqrt(spectrum[-1])) if spectrum is not None else _largest_singular(d)
    random = np.random.default_rng(0)
    flipped = [_top(np.where(random.random(d.shape) < 0.5, d, -d)) for _ in range(FLIPS)]
    return top / (float(np.mean(flipped)) or 1.0)


def _top(d: NDArray[np.float64]) -> float:
    spectrum = squared_spectrum(d) if min(d.shape) <= EXACT_SIDE else None
    return float(np.sqrt(spectrum[-1])) if spectrum is not None else _largest_singular(d)


def _largest_singular(d: NDArray[np.float64], iterations: int = 24) -> float:
    """By power iteration: a lower bound."""
    vector: NDArray[np.float64] = np.random.default_rng(0).standard_normal((d.shape[1], 1))
    for _ in range(iterations):
        vector = d.T @ (d @ vector)
        vector = vector / max(float(np.linalg.norm(vector)), 1e-300)
    return float(np.linalg.norm(d @ vector))
