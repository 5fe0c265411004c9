"""Sign sketch of the weights: a few hundred bits of each matrix that survive whatever keeps its basis.

For every matrix a few rows are read, in one span of at most 256 columns: eight rows, six where a row is longer
than a page. Rows and span are fixed by the width alone, so any two matrices of equal width compare. A bit is the
sign of W[r, c] - W[r', c] for pairs of neighbouring rows, 128 (170) columns each: differences remove column means,
which unrelated models share.

What costs is pages, not bytes: a span of 512 bytes (bf16) that starts anywhere crosses a page in one case of
eight, one of 2 KiB in every second. The null does not change with it: between
matrices of different layers of SmolLM2-135M, z has standard deviation 1.007 for 8 rows of 1,024 columns, 1.006 for
8 of 256 and 1.010 for 6 of 256 (165,450 pairs); |z| > 4.42 in 7, 9 and 11 of 100,000 (benchmarks/sketch_null.py).

Agreement rate a over n bits: z = (2a - 1) sqrt(n); under independence z ~ N(0, 1). For Gaussian entries of
correlation rho, a = 1/2 + asin(rho) / pi. Ties (quantised, pruned) are decided by a coin that the sampled
values themselves seed, so two unrelated tables of ties agree half of the time.

Blind to a rotation of the residual stream; sees a shared initialisation as well as descent.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from drupe.readers.interface import FloatArray

VERSION = 1
ROWS, WIDE_ROWS = 8, 6
WIDE = 2048
"""Width above which fewer rows are read: each of them costs a page of its own."""
SPAN = 256
"""Columns that the bits of one matrix lie in."""
WINDOW = 1024
"""Columns that a sampled comparison reads; the span is its beginning."""
ALIGN = 256
"""Windows start at multiples of this: the longest quantisation block of GGUF."""
BITS = 512
WORDS = BITS // 64
DIGEST_BYTES = 8


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser: the same numbers on every machine (Steele, Lea, Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@cache
def window(width: int) -> tuple[int, int]:
    """First and one-past-last column that a sampled comparison of this width reads."""
    if width <= WINDOW:
        return 0, width
    seed = _mix(np.array([VERSION * 0x9E3779B97F4A7C15 + width & 0xFFFFFFFFFFFFFFFF], np.uint64))
    places = (width - WINDOW) // ALIGN + 1
    start = int(seed[0] % np.uint64(places)) * ALIGN
    return start, start + WINDOW


def rows(width: int) -> int:
    """Rows that a sketch of this width reads."""
    return ROWS if width <= WIDE else WIDE_ROWS


def span(width: int) -> tuple[int, int]:
    """First and one-past-last column that a sketch of this width reads."""
    start, stop = window(width)
    return start, min(start + SPAN, stop)


@cache
def columns(width: int) -> NDArray[np.intp]:
    """Columns (relative to the span) of each row pair, shape (pairs, at most 128 or 170), sorted."""
    start, stop = span(width)
    pairs = rows(width) // 2
    chosen = []
    for pair in range(pairs):
        key = (np.arange(stop - start, dtype=np.uint64) << np.uint64(8)) + np.uint64(pair + 4 * VERSION)
        order = np.argsort(_mix(key + np.uint64(width << 32)), kind="stable")
        chosen.append(np.sort(order[: min(BITS // pairs, stop - start)]))
    return np.array(chosen)


@dataclass(frozen=True, slots=True)
class SketchBits:
    """Bits of one matrix, packed into little-endian words; ``count`` of them are used."""

    words: NDArray[np.uint64]
    count: int


def value_digest(block: FloatArray) -> bytes:
    """8 bytes of blake2b over the sampled values as little-endian float32, zeros unsigned, one NaN."""
    clean = np.ascontiguousarray(block, dtype="<f4") + np.float32(0.0)
    clean[np.isnan(clean)] = np.nan
    return hashlib.blake2b(clean.tobytes(), digest_size=DIGEST_BYTES).digest()


def sketch_bits(block: FloatArray, width: int) -> SketchBits:
    """Sketch of the sampled rows of one matrix: ``block`` is (at most 8 rows, span columns)."""
    pairs = block.shape[0] // 2
    chosen = columns(width)[:pairs]
    upper = np.take_along_axis(block[0 : 2 * pairs : 2], chosen, axis=1)
    lower = np.take_along_axis(block[1 : 2 * pairs : 2], chosen, axis=1)
    bits = upper > lower
    ties = (upper == lower) | np.isnan(upper) | np.isnan(lower)
    if ties.any():
        bits = np.where(ties, _coins(block, bits.shape), bits)
    packed = np.packbits(bits.ravel(), bitorder="little")
    words = np.zeros(WORDS * 8, np.uint8)
    words[: packed.size] = packed
    return SketchBits(words.view("<u8").astype(np.uint64), bits.size)


def _coins(block: FloatArray, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    seed = np.frombuffer(value_digest(block), "<u8")[0]
    index = np.arange(shape[0] * shape[1], dtype=np.uint64)
    with np.errstate(over="ignore"):
        return (_mix(index * np.uint64(0x9E3779B97F4A7C15) + seed) & np.uint64(1)).astype(bool).reshape(shape)


def agreement_z(a: NDArray[np.uint64], b: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """z of every pair of sketches: a (m, words), b (n, words), both of ``count`` bits -> (m, n)."""
    unequal = np.zeros((a.shape[0], b.shape[0]), np.int64)
    for word in range(a.shape[1]):
        unequal += np.bitwise_count(a[:, None, word] ^ b[None, :, word])
    result: NDArray[np.float64] = (count - 2.0 * unequal) / np.sqrt(max(count, 1))
    return result
