"""GGUF: against files of the reference writer (hostile ones: test_gguf_hostile)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from blobs import MemoryBlob
from drupe.errors import FormatError
from drupe.readers.gguf import GgufFile, open_gguf
from drupe.readers.interface import Layout, WeightFile, Window
from drupe.readers.packed import block_type

Array = NDArray[np.float32]
KINDS = gguf.GGMLQuantizationType


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)


def blocks(dtype: str, rows: int, per_row: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random block bytes; NaN among the values is part of the test."""
    block = block_type(dtype)
    assert block is not None
    size = block.bytes * per_row
    return np.random.default_rng(seed).integers(0, 256, (rows, size), dtype=np.uint8)


def written(path: Path, fill: Callable[[gguf.GGUFWriter], None], architecture: str = "llama") -> bytes:
    """What the reference writer makes of ``fill``."""
    writer = gguf.GGUFWriter(path, architecture)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def add(writer: gguf.GGUFWriter, name: str, values: Array, dtype: str = "F32") -> None:
    kind = KINDS[dtype]
    writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)


def opened(data: bytes) -> GgufFile:
    return open_gguf(MemoryBlob("model.gguf", data))


def whole(file: GgufFile, name: str) -> Array:
    rows, columns = file.tensors[name].matrix_shape
    return file.read([Window(name, 0, rows, 0, columns)])[0]


# ---------------------------------------------------------------- files of the reference writer


def typical(writer: gguf.GGUFWriter) -> None:
    writer.add_name("Pico")
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_bool("test.flag", True)
    writer.add_int64("test.negative", -5)
    writer.add_float64("test.double", 0.1)
    writer.add_token_list([b"<s>", "héllo", b"\xff", "核果", ""])
    writer.add_token_scores([0.5, -1.25, 0.0, 3.0, 4.0])
    writer.add_token_types([3, 1, 6, 1, 1])
    writer.add_array("test.flags", [True, False, True])
    add(writer, "token_embd.weight", noise(40, 64), "Q4_0")
    add(writer, "blk.0.attn_q.weight", noise(64, 64, seed=1), "Q8_0")
    add(writer, "blk.0.attn_k.weight", noise(32, 64, seed=2), "F16")
    add(writer, "blk.0.attn_k.bias", noise(32, seed=3))
    add(writer, "blk.0.ffn_gate_exps.weight", noise(3, 10, 64, seed=4), "Q5_1")
    add(writer, "output_norm.weight", noise(64, seed=5))


@pytest.fixture(scope="module")
def file_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("gguf") / "typical.gguf", typical)


def test_metadata_is_typed(file_bytes: bytes) -> None:
    file = opened(file_bytes)
    assert file.fields["general.architecture"] == "llama"
    assert file.fields["llama.attention.head_count"] == 4
    assert file.fields["llama.attention.layer_norm_rms_epsilon"] == 1e-5
    assert file.fields["test.flag"] is True
    assert file.fields["test.negative"] == -5
    assert file.fields["test.double"] == 0.1
    assert file.metadata["general.name"] == "Pico"
    assert file.metadata["llama.attention.head_count"] == "4"
    assert "tokenizer.ggml.tokens" not in file.metadata


def test_arrays_are_decoded_on_demand(file_bytes: bytes) -> None:
    file = opened(file_bytes)
    assert file.array("tokenizer.ggml.tokens") == ["<s>", "héllo", "\xff", "核果", ""]
    assert list(file.array("tokenizer.ggml.scores")) == [0.5, -1.25, 0.0, 3.0, 4.0]
    assert list(file.array("tokenizer.ggml.token_type")) == [3, 1, 6, 1, 1]
    assert list(file.array("test.flags")) == [True, False, True]
    for key in ("general.name", "absent"):
        with pytest.raises(FormatError, match="no array"):
            file.array(key)


def test_tensors_are_listed_row_major(file_bytes: bytes) -> None:
    file: WeightFile = opened(file_bytes)
    assert file.format == "gguf"
    assert list(file.tensors) == [
        "token_embd.weight", "blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_k.bias",
        "blk.0.ffn_gate_exps.weight", "output_norm.weight",
    ]  # fmt: skip
    info = file.tensors["blk.0.ffn_gate_exps.weight"]
    assert (info.shape, info.dtype, info.layout, info.file) == (
        (3, 10, 64), "Q5_1", Layout.OUT_IN, "model.gguf",
    )  # fmt: skip
    assert (info.stored_bits, info.is_quantised) == (6.0, True)
    norm = file.tensors["output_norm.weight"]
    assert (norm.shape, norm.dtype, norm.stored_bits, norm.is_quantised) == ((64,), "F32", 32.0, False)


def test_values_equal_the_reference(file_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "copy.gguf"
    path.write_bytes(file_bytes)
    file = opened(file_bytes)
    for tensor in gguf.GGUFReader(path).tensors:
        if "attn" not in tensor.name:
            expected = dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(whole(file, tensor.name), expected.reshape(-1, *[
                file.tensors[tensor.name].matrix_shape[1]
            ]))  # fmt: skip


def test_a_large_header_takes_few_requests(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_token_list([f"piece {index}" for index in range(50_000)])
        writer.add_token_merges([f"a {index}" for index in range(50_000)])
        add(writer, "output_norm.weight", noise(64))

    blob = MemoryBlob("large.gguf", written(tmp_path / "large.gguf", fill))
    file = open_gguf(blob)
    assert len(file.header) > 1 << 20
    assert len(blob.spans) <= 6
    tokens = file.array("tokenizer.ggml.tokens")
    assert (len(tokens), tokens[-1]) == (50_000, "piece 49999")
    assert file.array("tokenizer.ggml.merges")[49_999] == "a 49999"


# ---------------------------------------------------------------- windows


@pytest.fixture(scope="module")
def window_file(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    """Tensors of every stride: wide rows make one span per row, q rows are interleaved."""

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_head_count(2)
        add(writer, "wide", noise(6, 32 * 400), "Q8_0")
        add(writer, "narrow", noise(50, 96), "Q4_1")
        add(writer, "blk.3.attn_q.weight", noise(24, 32 * 300, seed=1), "Q5_0")
        add(writer, "blk.3.attn_q.bias", noise(24, seed=2))
        writer.add_tensor("k_quant", blocks("Q6_K", 5, 3), raw_dtype=KINDS.Q6_K)
        writer.add_tensor("i_quant", blocks("IQ3_S", 4, 3), raw_dtype=KINDS.IQ3_S)

    return opened(written(tmp_path_factory.mktemp("gguf") / "windows.gguf", fill))


@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_a_window_is_a_crop_of_the_whole(window_file: GgufFile, data: st.DataObject) -> None:
    windows, expected = [], []
    for name in data.draw(st.lists(st.sampled_from(sorted(window_file.tensors)), min_size=1, max_size=3)):
        rows, columns = window_file.tensors[name].matrix_shape
        r0, r1 = sorted(data.draw(st.tuples(st.integers(0, rows), st.integers(0, rows))))
        c0, c1 = sorted(data.draw(st.tuples(st.integers(0, columns), st.integers(0, columns))))
        windows.append(Window(name, r0, r1, c0, c1))
        expected.append(whole(window_file, name)[r0:r1, c0:c1])
    for got, crop in zip(window_file.read(windows), expected, strict=True):
        assert got.shape == crop.shape
        np.testing.assert_array_equal(got, crop)


def test_one_batch_reads_little_more_than_the_windows(window_file: GgufFile) -> None:
    blob = window_file.blob
    assert isinstance(blob, MemoryBlob)
    blob.spans.clear()
    before = blob.batches
    window_file.read([Window("wide", 1, 4, 40, 60), Window("narrow", 7, 9, 0, 96)])
    assert blob.batches == before + 1
    assert [length for _, length in blob.spans] == [34, 34, 34, 2 * 3 * 20]


@pytest.mark.parametrize(
    "window",
    [Window("narrow", 0, 51, 0, 96), Window("narrow", -1, 1, 0, 96), Window("narrow", 0, 1, 0, 97),
     Window("narrow", 3, 2, 0, 96), Window("narrow", 0, 1, 9, 8), Window("absent", 0, 1, 0, 1)],
)  # fmt: skip
def test_a_window_outside_is_refused(window_file: GgufFile, window: Window) -> None:
    with pytest.raises(FormatError, match=r"lies outside|no tensor"):
        window_file.read([window])


# ---------------------------------------------------------------- q and k


def interleave(w: Array, n_head: int) -> Array:
    """The transform of llama.cpp's converter."""
    cols = w.shape[1:]
    return w.reshape(n_head, 2, w.shape[0] // n_head // 2, *cols).swapaxes(1, 2).reshape(w.shape)


def attention(architecture: str, path: Path, forward: Callable[[Array, int], Array]) -> dict[str, Array]:
    """Write q and k after ``forward``; returns tensor -> (as read) and, under ``name!``, the original."""
    q, k, bias = noise(96, 64), noise(48, 64, seed=1), noise(48, seed=2)

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_head_count(6)
        writer.add_head_count_kv(3)
        add(writer, "blk.0.attn_q.weight", forward(q, 6), "F32")
        add(writer, "blk.0.attn_k.weight", forward(k, 3), "F32")
        add(writer, "blk.11.attn_k.bias", forward(bias, 3), "F32")
        add(writer, "blk.0.attn_v.weight", k, "F32")

    file = opened(written(path, fill, architecture))
    read = {name: whole(file, name) for name in file.tensors}
    original = dict(zip(file.tensors, (q, k, bias[None], k), strict=True))
    return read | {f"{name}!": values for name, values in original.items()}


@pytest.mark.parametrize("architecture", ["llama", "granite", "smollm3"])
def test_the_published_row_order_is_restored(architecture: str, tmp_path: Path) -> None:
    result = attention(architecture, tmp_path / "qk.gguf", interleave)
    for name in [key for key in result if not key.endswith("!")]:
        np.testing.assert_array_equal(result[name], result[f"{name}!"], err_msg=name)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3", "llama4"])
def test_other_architectures_are_read_as_stored(architecture: str, tmp_path: Path) -> None:
    result = attention(architecture, tmp_path / "qk.gguf", lambda w, _heads: w)
    for name in [key for key in result if not key.endswith("!")]:
        np.testing.assert_array_equal(result[name], result[f"{name}!"], err_msg=name)


def test_the_order_differs_in_the_file(tmp_path: Path) -> None:
    result = attention("qwen2", tmp_path / "qk.gguf", interleave)
    assert not np.array_equal(result["blk.0.attn_q.weight"], result["blk.0.attn_q.weight!"])


def test_head_counts_may_differ_by_layer(tmp_path: Path) -> None:
    weights = [noise(rows, 32, seed=rows) for rows in (16, 48)]

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_head_count([1, 3])
        for layer, (w, heads) in enumerate(zip(weights, (1, 3), strict=True)):
            add(writer, f"blk.{layer}.attn_k.weight", interleave(w, heads), "F32")
        add(writer, "blk.2.attn_k.weight", weights[0], "F32")

    file = opened(written(tmp_path / "deci.gguf", fill, "deci"))
    for layer, w in enumerate(weights):
        np.testing.assert_array_equal(whole(file, f"blk.{layer}.attn_k.weight"), w)
    with pytest.raises(FormatError, match="head_count = 0 does not fit"):
        whole(file, "blk.2.attn_k.weight")


@pytest.mark.parametrize("heads", [None, 0, 5, 32])
def test_a_head_count_that_does_not_fit_is_refused(heads: int | None, tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        if heads is not None:
            writer.add_head_count(heads)
        add(writer, "blk.0.attn_q.weight", noise(32, 32), "F32")

    with pytest.raises(FormatError, match="does not fit"):
        whole(opened(written(tmp_path / "m.gguf", fill)), "blk.0.attn_q.weight")


# ---------------------------------------------------------------- NVFP4's further factor


@pytest.mark.parametrize("factors", [None, 1, 3])
def test_the_factor_beside_an_nvfp4_tensor_is_applied(factors: int | None, tmp_path: Path) -> None:
    """One number, or one for each expert."""
    packed = blocks("NVFP4", 3 * 4, 2).reshape(3, 4, -1)
    scale = np.array([0.5, 2.0, -3.0], np.float32)[: factors or 0]

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.0.ffn_up_exps.weight", packed, raw_dtype=KINDS.NVFP4)
        add(writer, "blk.0.ffn_down.weight", noise(4, 64), "Q8_0")
        add(writer, "blk.0.ffn_down.scale", noise(1))
        if factors:
            writer.add_tensor("blk.0.ffn_up_exps.scale", scale)

    file = opened(written(tmp_path / "nvfp4.gguf", fill))
    plain = dequantize(packed, KINDS.NVFP4).reshape(3, -1)
    expected = plain * (scale.reshape(-1, 1) if factors else 1)
    np.testing.assert_array_equal(whole(file, "blk.0.ffn_up_exps.weight"), expected)
    down, part = file.read(
        [Window("blk.0.ffn_down.weight", 0, 4, 0, 64), Window("blk.0.ffn_up_exps.weight", 1, 3, 7, 200)]
    )
    np.testing.assert_array_equal(part, expected[1:3, 7:200])
    np.testing.assert_allclose(down, noise(4, 64), atol=0.001)


def test_factors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("w.weight", blocks("NVFP4", 3, 2), raw_dtype=KINDS.NVFP4)
        writer.add_tensor("w.scale", np.ones(2, np.float32))

    with pytest.raises(FormatError, match="2 factors do not fit"):
        whole(opened(written(tmp_path / "nvfp4.gguf", fill)), "w.weight")
