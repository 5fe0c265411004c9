"""Stored values -> float32: raw number types and the quantised blocks of ggml. Knows no file format.

Sources of the layouts (facts, no code): ``ggml/src/ggml-common.h`` (``block_q4_0`` ... ``block_q6_K``) and
``ggml-quants.c`` (the order in which a block is unrolled) of github.com/ggml-org/ggml; fp8: Micikevicius et
al. 2022, "FP8 Formats for Deep Learning", arXiv:2209.05433, in the "fn" variant (no infinity) of E4M3; E8M0:
OCP Microscaling Formats (MX) 1.0. All numbers are little-endian. In the layouts below, ``d`` and ``m`` are
fp16 scale and offset, ``q`` the small integer of one value, numbers in brackets are byte counts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from drupe.errors import FormatError, UnsupportedError
from drupe.readers.interface import FloatArray, StoredArray
from drupe.readers.packed_blocks import BlockType, ByteArray, fields, half, scaled

WHOLE_NUMBERS: Mapping[str, str] = {
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1",
}  # fmt: skip
"""Storage types that numpy knows as whole numbers."""

_VALUES_AT_ONCE = 1 << 17
"""Decoded per step, so that the temporaries stay in the cache and small next to the result."""


def block_type(dtype: str) -> BlockType | None:
    """How a storage type is packed; None when it is not read. The codebooks are loaded when first asked for.

    >>> block_type("Q4_K").bits, block_type("IQ4_XS").bits, block_type("Q3_X")
    (4.5, 4.25, None)
    """
    if dtype in BLOCK_TYPES or dtype not in CODEBOOK_TYPES:
        return BLOCK_TYPES.get(dtype)
    from drupe.readers.packed_iq import IQ_TYPES

    return IQ_TYPES[dtype]


def decode(raw: bytes | memoryview, dtype: str, count: int) -> FloatArray:
    """``count`` values of one storage type as a new float32 array (1-D).

    64-bit numbers are rounded; a value beyond the range of float32 becomes infinite. Raises UnsupportedError
    on an unknown type, FormatError when ``raw`` is not exactly the blocks of ``count`` values.

    >>> decode(bytes.fromhex("803f00c0"), "BF16", 2)
    array([ 1., -2.], dtype=float32)
    """
    block = block_type(dtype)
    if block is None:
        raise UnsupportedError(f"values stored as {dtype[:40]!r}")
    data = np.frombuffer(raw, np.uint8)
    blocks, rest = divmod(count, block.values)
    if count < 0 or rest or data.size != blocks * block.bytes:
        raise FormatError(
            f"{data.size} bytes cannot hold {count} values of type {dtype}: "
            f"{block.values} values take {block.bytes} bytes"
        )
    data = data.reshape(blocks, block.bytes)
    values = np.empty((blocks, block.values), np.float32)
    step = _VALUES_AT_ONCE // block.values
    with np.errstate(all="ignore"):  # NaN and overflow are facts about the file, not accidents
        for start in range(0, blocks, step):
            block.decoder(data[start : start + step], values[start : start + step])
    return values.reshape(-1)


def decode_stored(raw: bytes | memoryview, dtype: str, count: int) -> StoredArray:
    """As :func:`decode`, but whole numbers (and truth values, as uint8) keep their dtype.

    >>> decode_stored(bytes.fromhex("ffffffff"), "I32", 1)
    array([-1], dtype=int32)
    """
    whole = WHOLE_NUMBERS.get(dtype)
    if whole is None:
        return decode(raw, dtype, count)
    data = np.frombuffer(raw, whole)
    if data.size != count:
        raise FormatError(f"{len(raw)} bytes cannot hold {count} values of type {dtype}")
    return data


def _number(dtype: str) -> BlockType:
    """A raw type that numpy knows."""

    def fill(data: ByteArray, out: FloatArray) -> None:
        out[:] = data.view(dtype)

    return BlockType(1, np.dtype(dtype).itemsize, fill)


def _bf16(data: ByteArray, out: FloatArray) -> None:
    """The upper half of a float32."""
    bits = out.view(np.uint32)
    bits[:] = data.view("<u2")
    bits <<= 16


def _lookup(table: FloatArray) -> BlockType:
    """A raw type of one byte."""

    def fill(data: ByteArray, out: FloatArray) -> None:
        np.take(table, data, out=out)

    return BlockType(1, 1, fill)


def _e4m3fn() -> FloatArray:
    """Sign, 4 exponent bits (bias 7), 3 mantissa bits; all ones below the sign is NaN, no infinity."""
    code = np.arange(256)
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    fraction = np.where(exponent > 0, 8 + mantissa, mantissa)
    values = np.ldexp((1.0 - 2.0 * sign) * fraction, np.maximum(exponent, 1) - 10)
    values[code & 127 == 127] = np.nan
    return np.asarray(values, np.float32)


def _e5m2() -> FloatArray:
    """The upper half of an fp16."""
    return (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)


def _e8m0() -> FloatArray:
    """2 ** (code - 127); 255 is NaN."""
    values = np.ldexp(1.0, np.arange(256) - 127)
    values[255] = np.nan
    return np.asarray(values, np.float32)


def _fifth_bits(data: ByteArray) -> ByteArray:
    """Bit j of a little-endian uint32, moved to bit 4: (n, 4) -> (n, 32)."""
    return np.unpackbits(data, axis=1, bitorder="little") << np.uint8(4)


def _q4_0(data: ByteArray, out: FloatArray) -> None:
    """D[2] q[16]; value = d (q - 8); low nibbles are values 0..15, high nibbles 16..31."""
    out[:] = fields(data[:, 2:], 4, run=16).reshape(-1, 32)
    out -= 8
    out *= half(data, 0)


def _q4_1(data: ByteArray, out: FloatArray) -> None:
    """D[2] m[2] q[16]; value = d q + m; order as Q4_0."""
    np.multiply(fields(data[:, 4:], 4, run=16).reshape(-1, 32), half(data, 0), out=out)
    out += half(data, 2)


def _q5_0(data: ByteArray, out: FloatArray) -> None:
    """D[2] fifth bits[4] q[16]; value = d (q - 16); order as Q4_0."""
    out[:] = fields(data[:, 6:], 4, run=16).reshape(-1, 32) | _fifth_bits(data[:, 2:6])
    out -= 16
    out *= half(data, 0)


def _q5_1(data: ByteArray, out: FloatArray) -> None:
    """D[2] m[2] fifth bits[4] q[16]; value = d q + m; order as Q4_0."""
    q = fields(data[:, 8:], 4, run=16).reshape(-1, 32) | _fifth_bits(data[:, 4:8])
    np.multiply(q, half(data, 0), out=out)
    out += half(data, 2)


def _q8_0(data: ByteArray, out: FloatArray) -> None:
    """D[2] q[32] signed; value = d q."""
    np.multiply(data[:, 2:].view(np.int8), half(data, 0), out=out)


def _q2_k(data: ByteArray, out: FloatArray) -> None:
    """16 x (scale, offset) of 4 bits[16] q[64] d[2] m[2]; value = d scale q - m offset, groups of 16."""
    q = fields(data[:, 16:80], 2, run=32)
    groups = scaled(q, half(data, 80) * (data[:, :16] & 15), out)
    groups -= (half(data, 82) * (data[:, :16] >> 4))[:, :, None]


def _q3_k(data: ByteArray, out: FloatArray) -> None:
    """Third bits[32] q[64] scales[12] d[2]; value = d (scale - 32) (q - 4), groups of 16.

    Scales have 6 bits: 4 in bytes 0..7 (low nibbles first), 2 in bytes 8..11.
    """
    q = fields(data[:, 32:96], 2, run=32).reshape(-1, 256)
    q |= fields(data[:, :32], 1, run=32).reshape(-1, 256) << np.uint8(2)
    scale = fields(data[:, 96:104], 4, run=8).reshape(-1, 16)
    scale |= fields(data[:, 104:108], 2, run=4).reshape(-1, 16) << np.uint8(4)
    scaled(q.view(np.int8) - np.int8(4), half(data, 108) * (scale.view(np.int8) - np.int8(32)), out)


def _scales_and_offsets(data: ByteArray) -> tuple[ByteArray, ByteArray]:
    """8 scales and 8 offsets of 6 bits in 12 bytes.

    Bytes 0..3 and 4..7 hold the first four of each in their lower 6 bits and, in their upper 2, the upper
    bits of the last four, whose lower 4 bits are the nibbles of bytes 8..11 (low: scale, high: offset).
    """
    scale, offset, rest = data[:, :4], data[:, 4:8], data[:, 8:]
    return (
        np.hstack([scale & 63, (rest & 15) | (scale >> 6 << 4)]),
        np.hstack([offset & 63, (rest >> 4) | (offset >> 6 << 4)]),
    )


def _q45_k(data: ByteArray, q: ByteArray, out: FloatArray) -> None:
    """D[2] m[2] scales and offsets[12] ...; value = d scale q - m offset, groups of 32."""
    scale, offset = _scales_and_offsets(data[:, 4:16])
    groups = scaled(q, half(data, 0) * scale, out)
    groups -= (half(data, 2) * offset)[:, :, None]


def _q4_k(data: ByteArray, out: FloatArray) -> None:
    """Head as :func:`_q45_k`, q[128]: per 32 bytes first the low, then the high nibbles."""
    _q45_k(data, fields(data[:, 16:], 4, run=32), out)


def _q5_k(data: ByteArray, out: FloatArray) -> None:
    """Head as :func:`_q45_k`, fifth bits[32] q[128]: bit i of the 32 bytes belongs to group i."""
    q = fields(data[:, 48:], 4, run=32).reshape(-1, 256)
    q |= fields(data[:, 16:48], 1, run=32).reshape(-1, 256) << np.uint8(4)
    _q45_k(data, q, out)


def _q6_k(data: ByteArray, out: FloatArray) -> None:
    """Lower 4 bits[128] upper 2 bits[64] signed scales[16] d[2]; value = d scale (q - 32), groups of 16."""
    q = fields(data[:, :128], 4, run=64).reshape(-1, 256)
    q |= fields(data[:, 128:192], 2, run=32).reshape(-1, 256) << np.uint8(4)
    scaled(q.view(np.int8) - np.int8(32), half(data, 208) * data[:, 192:208].view(np.int8), out)


BLOCK_TYPES: Mapping[str, BlockType] = {
    "F64": _number("<f8"), "F32": _number("<f4"), "F16": _number("<f2"), "BF16": BlockType(1, 2, _bf16),
    "F8_E4M3": _lookup(_e4m3fn()), "F8_E5M2": _lookup(_e5m2()), "F8_E8M0": _lookup(_e8m0()),
    **{name: _number(dtype) for name, dtype in WHOLE_NUMBERS.items()},
    "Q4_0": BlockType(32, 18, _q4_0), "Q4_1": BlockType(32, 20, _q4_1),
    "Q5_0": BlockType(32, 22, _q5_0), "Q5_1": BlockType(32, 24, _q5_1),
    "Q8_0": BlockType(32, 34, _q8_0),
    "Q2_K": BlockType(256, 84, _q2_k), "Q3_K": BlockType(256, 110, _q3_k),
    "Q4_K": BlockType(256, 144, _q4_k), "Q5_K": BlockType(256, 176, _q5_k),
    "Q6_K": BlockType(256, 210, _q6_k),
}  # fmt: skip
"""The storage types that :func:`decode` reads, by their upper-case names."""

CODEBOOK_TYPES = frozenset({
    "IQ1_M", "IQ1_S", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ3_S", "IQ3_XXS", "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4",
    "Q1_0", "TQ1_0", "TQ2_0",
})  # fmt: skip
"""Those of :mod:`drupe.readers.packed_iq`: codes of a table, ternary and binary numbers."""
