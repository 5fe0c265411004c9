"""The code and grid blocks of ggml against the decoder of their authors, bit for bit."""

from __future__ import annotations

import subprocess
import sys

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from drupe.errors import FormatError
from drupe.readers.gguf_header import _TYPES
from drupe.readers.packed import CODEBOOK_TYPES, block_type, decode
from drupe.readers.packed_iq import IQ_TYPES

KINDS = gguf.GGMLQuantizationType
CHECKED = sorted(CODEBOOK_TYPES - {"Q1_0"})
"""The Python package of ggml has no decoder of Q1_0."""
WITH_QUANTISER = ["MXFP4", "TQ1_0", "TQ2_0"]


def assert_same_bits(blocks: NDArray[np.uint8], dtype: str) -> None:
    """Every bit, the signs of zeros included; a NaN is a NaN."""
    with np.errstate(all="ignore"):
        expected = dequantize(blocks, KINDS[dtype]).reshape(-1)
    values = decode(blocks.tobytes(), dtype, expected.size)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected)
    sound = ~np.isnan(expected)
    np.testing.assert_array_equal(values[sound].view(np.uint32), expected[sound].view(np.uint32))


def block_bytes(dtype: str) -> int:
    block = block_type(dtype)
    assert block is not None
    return block.bytes


def test_every_type_of_the_reference_is_read_but_those_of_activations() -> None:
    numbers = {kind.name: kind.value for kind in KINDS}
    assert {_TYPES[number] for number in _TYPES} == set(numbers) - {"Q8_1", "Q8_K"}
    assert {name: number for number, name in _TYPES.items()}.items() <= numbers.items()
    assert set(IQ_TYPES) == CODEBOOK_TYPES


@pytest.mark.parametrize("dtype", sorted(CODEBOOK_TYPES))
def test_block_sizes_equal_the_reference(dtype: str) -> None:
    block = block_type(dtype)
    assert block is not None
    assert (block.values, block.bytes) == gguf.GGML_QUANT_SIZES[KINDS[dtype]]


@pytest.mark.parametrize("dtype", CHECKED)
@pytest.mark.parametrize("count", [1, 3, 1500])
def test_random_blocks_equal_the_reference(dtype: str, count: int) -> None:
    """Any bits anywhere: infinite scales and NaN are among them."""
    rng = np.random.default_rng(count)
    assert_same_bits(rng.integers(0, 256, (count, block_bytes(dtype)), dtype=np.uint8), dtype)


@pytest.mark.parametrize("dtype", CHECKED)
def test_every_byte_at_every_place_equals_the_reference(dtype: str) -> None:
    """All 256 bytes at each place of a block of zeros and of a random one: every code, sign and scale."""
    size = block_bytes(dtype)
    background = np.random.default_rng(5).integers(0, 256, size, dtype=np.uint8)
    for ground in (np.zeros(size, np.uint8), np.full(size, 255, np.uint8), background):
        blocks = np.tile(ground, (256 * size, 1))
        blocks[np.arange(256 * size), np.repeat(np.arange(size), 256)] = np.tile(np.arange(256), size)
        assert_same_bits(blocks, dtype)


@given(st.sampled_from(CHECKED), st.data())
def test_any_block_equals_the_reference(dtype: str, data: st.DataObject) -> None:
    size = block_bytes(dtype)
    raw = data.draw(st.binary(min_size=size, max_size=size))
    assert_same_bits(np.frombuffer(raw, np.uint8)[None], dtype)


@pytest.mark.parametrize("dtype", WITH_QUANTISER)
def test_what_the_reference_quantises_is_read(dtype: str) -> None:
    weights = np.random.default_rng(1).normal(0, 0.02, (24, 512)).astype(np.float32)
    stored = quantize(weights, KINDS[dtype])
    assert_same_bits(stored.reshape(-1, block_bytes(dtype)), dtype)
    values = decode(stored.tobytes(), dtype, weights.size)
    assert np.corrcoef(values, weights.ravel())[0, 1] > (0.6 if dtype.startswith("TQ") else 0.98)


def test_q1_0_is_a_sign_per_value() -> None:
    """``dequantize_row_q1_0`` of ggml: bit j of byte k chooses +d or -d for value 8 k + j."""
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 2, (3, 128), dtype=np.uint8)
    scales = np.array([[0.5], [-0.25], [0.0]], "<f2")
    blocks = np.hstack([scales.view(np.uint8), np.packbits(bits, axis=1, bitorder="little")])
    expected = np.where(bits, scales, -scales).astype(np.float32)
    np.testing.assert_array_equal(decode(blocks.tobytes(), "Q1_0", 384).reshape(3, 128), expected)


@pytest.mark.parametrize("dtype", sorted(CODEBOOK_TYPES))
def test_bytes_and_count_must_agree(dtype: str) -> None:
    with pytest.raises(FormatError, match="cannot hold"):
        decode(bytes(block_bytes(dtype) - 1), dtype, 256)


def test_the_codebooks_are_loaded_when_used() -> None:
    code = "import sys, drupe.readers.gguf_split; print('drupe.readers.packed_iq' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
