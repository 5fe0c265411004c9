"""Every storage type against the implementation of its authors."""

from __future__ import annotations

from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from drupe.errors import DrupeError, FormatError, UnsupportedError
from drupe.readers import packed
from drupe.readers.packed import BLOCK_TYPES, decode

WITH_QUANTISER = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
K_QUANTS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
SCALE_BYTES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip
"""Where the fp16 numbers of a block are: random bits there would often be NaN."""


def random_blocks(dtype: str, count: int, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, BLOCK_TYPES[dtype].bytes), dtype=np.uint8)
    for start in SCALE_BYTES[dtype]:
        scales = rng.normal(0, 0.05, (count, 1)).astype("<f2")
        blocks[:, start : start + 2] = scales.view(np.uint8)
    return blocks


@pytest.mark.parametrize("dtype", WITH_QUANTISER + K_QUANTS)
@pytest.mark.parametrize("count", [1, 3, 700])
def test_random_blocks_equal_the_reference(dtype: str, count: int) -> None:
    blocks = random_blocks(dtype, count, seed=count)
    expected = dequantize(blocks, gguf.GGMLQuantizationType[dtype]).reshape(-1)
    values = decode(blocks.tobytes(), dtype, expected.size)
    assert values.dtype == np.float32
    assert np.unique(values).size > 8
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("dtype", WITH_QUANTISER)
def test_quantised_weights_equal_the_reference_and_resemble_the_original(dtype: str) -> None:
    weights = np.random.default_rng(1).normal(0, 0.02, (24, 96)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[dtype]
    stored = quantize(weights, kind)
    values = decode(stored.tobytes(), dtype, weights.size).reshape(weights.shape)
    np.testing.assert_array_equal(values, dequantize(stored, kind))
    assert np.corrcoef(values.ravel(), weights.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("dtype", [*WITH_QUANTISER, *K_QUANTS])
def test_block_sizes_equal_the_reference(dtype: str) -> None:
    block = BLOCK_TYPES[dtype]
    assert (block.values, block.bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype]]
    assert block.bits == 8 * block.bytes / block.values


@pytest.mark.parametrize(
    ("dtype", "numpy_type"),
    [("F64", "<f8"), ("F32", "<f4"), ("F16", "<f2"), ("I64", "<i8"), ("I32", "<i4"), ("I16", "<i2"),
     ("I8", "i1"), ("U64", "<u8"), ("U32", "<u4"), ("U16", "<u2"), ("U8", "u1")],
)  # fmt: skip
def test_raw_numbers(dtype: str, numpy_type: str) -> None:
    original = np.random.default_rng(2).normal(0, 50, 1000).astype(numpy_type if dtype[0] != "U" else "<i8")
    original = original.astype(numpy_type)
    np.testing.assert_array_equal(decode(original.tobytes(), dtype, 1000), original.astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "reference"),
    [("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2),
     ("F8_E8M0", ml_dtypes.float8_e8m0fnu)],
)  # fmt: skip
def test_every_code_of_the_eight_bit_floats(dtype: str, reference: type) -> None:
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(
        decode(codes.tobytes(), dtype, 256), codes.view(reference).astype(np.float32)
    )


def test_every_code_of_bf16() -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    expected = codes.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(decode(codes.tobytes(), "BF16", codes.size), expected)


def test_booleans_become_zero_and_one() -> None:
    assert decode(b"\0\1\1", "BOOL", 3).tolist() == [0.0, 1.0, 1.0]


def test_a_double_beyond_float32_is_infinite_without_a_warning() -> None:
    assert decode(np.array([1e300, -1e300]).tobytes(), "F64", 2).tolist() == [np.inf, -np.inf]


def test_nan_and_infinite_scales_pass_without_a_warning() -> None:
    block = np.array([np.nan, np.inf], "<f2").tobytes() + bytes(16)
    assert np.isnan(decode(block, "Q4_1", 32)).all()


@pytest.mark.parametrize("dtype", sorted(BLOCK_TYPES))
def test_long_inputs_are_decoded_in_steps_to_the_same_values(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = BLOCK_TYPES[dtype]
    raw = np.random.default_rng(3).integers(0, 256, 40 * block.bytes, dtype=np.uint8).tobytes()
    whole = decode(raw, dtype, 40 * block.values)
    monkeypatch.setattr(packed, "_VALUES_AT_ONCE", 7 * block.values)
    np.testing.assert_array_equal(decode(raw, dtype, 40 * block.values), whole)


@pytest.mark.parametrize("dtype", sorted(BLOCK_TYPES))
def test_the_result_is_new_and_writable(dtype: str) -> None:
    block = BLOCK_TYPES[dtype]
    raw = bytearray(block.bytes)
    values = decode(memoryview(raw), dtype, block.values)
    before = values.copy()
    raw[:] = b"\x3f" * len(raw)
    np.testing.assert_array_equal(values, before)
    values[:] = 1
    assert decode(b"", dtype, 0).size == 0


@pytest.mark.parametrize(("length", "count"), [(18, 31), (17, 32), (36, 32), (0, 32), (18, -32), (18, 0)])
def test_bytes_and_count_must_agree(length: int, count: int) -> None:
    with pytest.raises(FormatError, match="18 bytes"):
        decode(bytes(length), "Q4_0", count)


def test_an_unknown_type_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="TYPE_99") as caught:
        decode(b"", "TYPE_99", 0)
    assert isinstance(caught.value, DrupeError)


def test_it_knows_no_file_format() -> None:
    assert "drupe.readers.gguf" not in Path(packed.__file__).read_text(encoding="utf-8")
