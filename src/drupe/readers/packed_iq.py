"""The blocks of ggml whose small integers are codes: of a table of values, of a grid of vectors, of signs.

Sources of the layouts (facts, no code): ``ggml/src/ggml-common.h`` (``block_iq1_s`` ... ``block_nvfp4``) and
``ggml-quants.c`` (the order in which a block is unrolled) of github.com/ggml-org/ggml; MXFP4 and NVFP4 store
E2M1 numbers (OCP Microscaling Formats 1.0), here as their doubles beside half the scale. Below, ``d`` is an
fp16 scale, numbers in brackets are byte counts, and all numbers are little-endian.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from drupe.readers.interface import FloatArray
from drupe.readers.packed_blocks import BlockType, ByteArray, fields, half, scaled

CodeArray = NDArray[np.int64]

_IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
_DELTA = np.float32(0.125)
"""What the values of IQ1 are moved by, up or down by a bit of each group."""
_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]


@cache
def _grid(name: str) -> FloatArray:
    """The vectors that a code stands for, shape (codes, values), from ``data/ggml_grids.toml``."""
    file = resources.files("drupe") / "data" / "ggml_grids.toml"
    table = tomllib.loads(file.read_text(encoding="utf-8"))[name]
    packed = np.frombuffer(bytes.fromhex(table["codes"]), np.uint8)
    digits = fields(packed[None], table["bits"], run=1).reshape(-1, table["width"])
    return np.asarray(table["levels"], np.float32)[digits]


@cache
def _signs() -> FloatArray:
    """Row i: bit j of i as -1 or +1, shape (256, 8)."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.asarray(1 - 2 * bits.astype(np.float32), np.float32)


@cache
def _even_signs() -> FloatArray:
    """Seven stored signs, the eighth makes the number of minus signs even; shape (128, 8)."""
    parity = np.unpackbits(np.arange(128, dtype=np.uint8)[:, None], axis=1).sum(1).astype(np.intp) & 1
    signs: FloatArray = _signs()[np.arange(128) | parity << 7]
    return signs


def _words(data: ByteArray, size: int) -> CodeArray:
    """The little-endian words of ``size`` bytes of each block."""
    return np.ascontiguousarray(data).view(f"<u{size}").astype(np.int64)


def _bits(words: CodeArray | ByteArray, shifts: tuple[int, ...], width: int) -> CodeArray:
    """Fields of ``width`` bits at each shift of every word: (n, k) -> (n, k * shifts)."""
    wide = words.astype(np.int64)[:, :, None]
    found: CodeArray = (wide >> np.array(shifts)) & ((1 << width) - 1)
    return found.reshape(len(words), -1)


def _fine(scale: CodeArray, unit: float) -> FloatArray:
    """(scale + 1/2) units, exact in float32."""
    return (scale.astype(np.float32) + np.float32(0.5)) * np.float32(unit)


def _odd(scale: CodeArray) -> FloatArray:
    """2 scale + 1."""
    return (2 * scale + 1).astype(np.float32)


def _iq4_nl(data: ByteArray, out: FloatArray) -> None:
    """D[2] codes[16]; value = d table[code]; low nibbles are values 0..15, high nibbles 16..31."""
    np.multiply(_IQ4_VALUES[fields(data[:, 2:], 4, run=16).reshape(-1, 32)], half(data, 0), out=out)


def _iq4_xs(data: ByteArray, out: FloatArray) -> None:
    """D[2] upper scale bits[2] lower scale bits[4] codes[128]; value = d (scale - 32) table[code].

    Groups of 32, each in the order of IQ4_NL; scales have 2 + 4 bits, lowest first.
    """
    upper = _bits(_words(data[:, 2:4], 2), (0, 2, 4, 6, 8, 10, 12, 14), 2)
    scale = (_bits(data[:, 4:8], (0, 4), 4) | upper << 4) - 32
    codes = fields(data[:, 8:], 4, run=16).reshape(len(data), 8, 32)
    scaled(_IQ4_VALUES[codes], half(data, 0) * scale.astype(np.float32), out)


def _mxfp4(data: ByteArray, out: FloatArray) -> None:
    """E[1] codes[16]; value = 2^(e - 128) doubled E2M1; order as IQ4_NL."""
    scale = np.ldexp(np.float32(1), data[:, :1].astype(np.intc) - 128)
    np.multiply(_E2M1_DOUBLED[fields(data[:, 1:], 4, run=16).reshape(-1, 32)], scale, out=out)


@cache
def _half_ue4m3() -> FloatArray:
    """Half of an unsigned E4M3 (bias 7); its sign bit is ignored, 127 alone is nothing."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    values = np.ldexp(np.where(exponent > 0, 8 + mantissa, mantissa), np.maximum(exponent, 1) - 11)
    values[127] = 0
    return np.asarray(values, np.float32)


def _nvfp4(data: ByteArray, out: FloatArray) -> None:
    """Scales[4] codes[32]; value = scale / 2 doubled E2M1; groups of 16, first the 8 low nibbles."""
    codes = fields(data[:, 4:], 4, run=8).reshape(-1, 64)
    scaled(_E2M1_DOUBLED[codes], _half_ue4m3()[data[:, :4]], out)


def _q1_0(data: ByteArray, out: FloatArray) -> None:
    """D[2] bits[16]; value = d where the bit is set, else -d."""
    bits = np.unpackbits(data[:, 2:], axis=1, bitorder="little")
    np.multiply(2 * bits.astype(np.float32) - 1, half(data, 0), out=out)


def _tq1_0(data: ByteArray, out: FloatArray) -> None:
    """Five ternary digits per byte[32 + 16], four[4], d[2]; value = d (digit - 1).

    A byte is ceil(256 / 243 x number): times a power of 3 modulo 256, its leading digit is 3 x byte / 256.
    """
    parts = ((data[:, :32], 5), (data[:, 32:48], 5), (data[:, 48:52], 4))
    shifted = [(part[:, None, :] * _POWERS[:count]).reshape(len(data), -1) for part, count in parts]
    digits = np.hstack(shifted).astype(np.uint16) * np.uint16(3) >> np.uint16(8)
    np.multiply(digits.astype(np.float32) - 1, half(data, 52), out=out)


def _tq2_0(data: ByteArray, out: FloatArray) -> None:
    """Digits of two bits[64] d[2]; value = d (digit - 1); per 32 bytes the lowest fields come first."""
    digits = fields(data[:, :64], 2, run=32).reshape(-1, 256)
    np.multiply(digits.astype(np.float32) - 1, half(data, 64), out=out)


def _iq2_xxs(data: ByteArray, out: FloatArray) -> None:
    """D[2], per 32 values: grid codes[4], word[4] of four times 7 sign bits and a scale of 4.

    value = d (scale + 1/2) / 4, times the grid's.
    """
    groups = data[:, 2:].reshape(len(data), 8, 8)
    words = _words(groups[:, :, 4:], 4)[:, :, 0]
    scale = half(data, 0) * _fine(_bits(words, (28,), 4), 0.25)
    signs = _even_signs()[_bits(words, (0, 7, 14, 21), 7)]
    scaled(_grid("iq2_xxs")[groups[:, :, :4]].reshape(signs.shape) * signs, scale, out)


def _iq2_xs(data: ByteArray, out: FloatArray) -> None:
    """D[2] words[64] of a 9-bit grid code and 7 sign bits, scales of 4 bits[8]; groups of 16, else as IQ2_XXS."""
    words = _words(data[:, 2:66], 2)
    values = _grid("iq2_xs")[_bits(words, (0,), 9)] * _even_signs()[_bits(words, (9,), 7)]
    scaled(values, half(data, 0) * _fine(_bits(data[:, 66:], (0, 4), 4), 0.25), out)


def _iq2_s(data: ByteArray, out: FloatArray) -> None:
    """D[2] lower code bits[32] signs[32] upper two code bits[8] scales of 4 bits[8]; groups of 16."""
    codes = data[:, 2:34] | _bits(data[:, 66:74], (0, 2, 4, 6), 2) << 8
    values = _grid("iq2_s")[codes] * _signs()[data[:, 34:66]]
    scaled(values, half(data, 0) * _fine(_bits(data[:, 74:], (0, 4), 4), 0.25), out)


def _iq3_xxs(data: ByteArray, out: FloatArray) -> None:
    """D[2] grid codes[64] words[32] as in IQ2_XXS; value = d (scale + 1/2) / 2, times the grid's of 4."""
    words = _words(data[:, 66:], 4)
    scale = half(data, 0) * _fine(_bits(words, (28,), 4), 0.5)
    signs = _even_signs()[_bits(words, (0, 7, 14, 21), 7)]
    scaled(_grid("iq3_xxs")[data[:, 2:66]].reshape(signs.shape) * signs, scale, out)


def _iq3_s(data: ByteArray, out: FloatArray) -> None:
    """D[2] lower code bits[64] ninth bits[8] signs[32] scales of 4 bits[4]; value = d (2 scale + 1), times."""
    ninth = np.unpackbits(data[:, 66:74], axis=1, bitorder="little").astype(np.intp)
    signs = _signs()[data[:, 74:106]]
    values = _grid("iq3_s")[data[:, 2:66] | ninth << 8].reshape(signs.shape) * signs
    scaled(values, half(data, 0) * _odd(_bits(data[:, 106:], (0, 4), 4)), out)


def _iq1_s(data: ByteArray, out: FloatArray) -> None:
    """D[2] lower code bits[32] words[16]: four times three upper code bits, a scale of 3, a sign of delta.

    value = d (2 scale + 1) (grid + delta), groups of 32.
    """
    words = _words(data[:, 34:], 2)
    codes = data[:, 2:34] | _bits(words, (0, 3, 6, 9), 3) << 8
    scale = half(data, 0) * _odd(_bits(words, (12,), 3))
    delta = np.where(_bits(words, (15,), 1), -_DELTA, _DELTA)[:, :, None]
    scaled(_grid("iq1_s")[codes].reshape(len(data), 8, 32) + delta, scale, out)


def _iq1_m(data: ByteArray, out: FloatArray) -> None:
    """Lower code bits[32] nibbles[16] of three upper code bits and a sign of delta, words[8].

    Each word holds four scales of 3 bits and, in its upper 4, a quarter of the fp16 d; groups of 16.
    """
    nibbles = _bits(data[:, 32:48], (0, 4), 4)
    codes = data[:, :32] | (nibbles & 7) << 8
    words = _words(data[:, 48:], 2)
    quarters = (words & 0xF000) >> np.array([12, 8, 4, 0])
    d = half(np.bitwise_or.reduce(quarters, axis=1, keepdims=True).astype("<u2").view(np.uint8), 0)
    scale = d * _odd(_bits(words, (0, 3, 6, 9), 3))
    delta = np.where(nibbles & 8, -_DELTA, _DELTA)[:, :, None]
    scaled(_grid("iq1_s")[codes] + delta, scale, out)


IQ_TYPES: Mapping[str, BlockType] = {
    "IQ1_S": BlockType(256, 50, _iq1_s), "IQ1_M": BlockType(256, 56, _iq1_m),
    "IQ2_XXS": BlockType(256, 66, _iq2_xxs), "IQ2_XS": BlockType(256, 74, _iq2_xs),
    "IQ2_S": BlockType(256, 82, _iq2_s),
    "IQ3_XXS": BlockType(256, 98, _iq3_xxs), "IQ3_S": BlockType(256, 110, _iq3_s),
    "IQ4_NL": BlockType(32, 18, _iq4_nl), "IQ4_XS": BlockType(256, 136, _iq4_xs),
    "MXFP4": BlockType(32, 17, _mxfp4), "NVFP4": BlockType(64, 36, _nvfp4), "Q1_0": BlockType(128, 18, _q1_0),
    "TQ1_0": BlockType(256, 54, _tq1_0), "TQ2_0": BlockType(256, 66, _tq2_0),
}  # fmt: skip
"""The storage types of this module, by their names in GGUF."""
