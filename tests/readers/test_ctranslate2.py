"""CTranslate2: models that the library wrote (and ran) are read back by ranges; every lie is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from blobs import MemoryBlob
from drupe.errors import DrupeError, FormatError, LimitError, UnsupportedError
from drupe.readers.ctranslate2 import Ctranslate2File, is_ctranslate2, open_ctranslate2
from drupe.readers.interface import Absent, Layout, Window
from drupe.readers.weights import open_weights
from drupe.roles import assign_roles
from drupe.sources.local import LocalTree
from format_writers import ctranslate2, grid, text, variable

FILES = Path(__file__).parent / "format_files"
WIDTH, INNER, PIECES = 16, 32, 24
WEIGHTS = {
    "decoder.embeddings.weight": grid(PIECES, WIDTH),
    "decoder.layer_norm.gamma": grid(WIDTH, start=2),
} | {
    f"decoder.layer.{layer}.{name}": grid(*shape, start=start + layer)
    for layer in range(2)
    for name, shape, start in (
        ("self_attention.layer_norm.gamma", (WIDTH,), 0),
        ("self_attention.linear_0.weight", (3 * WIDTH, WIDTH), 10),
        ("self_attention.linear_1.weight", (WIDTH, WIDTH), 20),
        ("ffn.layer_norm.gamma", (WIDTH,), 30),
        ("ffn.linear_0.weight", (INNER, WIDTH), 40),
        ("ffn.linear_0_noact.weight", (INNER, WIDTH), 50),
        ("ffn.linear_1.weight", (WIDTH, INNER), 60),
    )
}
"""What ``format_files/make.py`` gave CTranslate2."""


def opened(data: bytes) -> Ctranslate2File:
    return open_ctranslate2(MemoryBlob("model.bin", data))


def library(kind: str) -> Ctranslate2File:
    return opened((FILES / f"ctranslate2_{kind}.bin").read_bytes())


def whole(file: Ctranslate2File, name: str) -> NDArray[np.float32]:
    rows, columns = file.tensors[name].matrix_shape
    return file.read([Window(name, 0, rows, 0, columns)])[0].reshape(file.tensors[name].shape)


# What the library writes
@pytest.mark.parametrize(("kind", "dtype"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")])
def test_float_models_have_the_values_given(kind: str, dtype: str) -> None:
    file = library(kind)
    assert set(file.tensors) == set(WEIGHTS)
    assert {info.dtype for info in file.tensors.values()} == {dtype}
    for name, values in WEIGHTS.items():
        np.testing.assert_array_equal(whole(file, name), values)
        assert file.tensors[name].layout is (Layout.OUT_IN if values.ndim == 2 else Layout.UNKNOWN)


@pytest.mark.parametrize(("kind", "top"), [("int8", 127), ("int16", 1024)])
def test_quantised_models_have_the_values_given_to_half_a_step(kind: str, top: int) -> None:
    file = library(kind)
    assert set(file.tensors) == set(WEIGHTS)
    for name, values in WEIGHTS.items():
        read = whole(file, name)
        info = file.tensors[name]
        if values.ndim == 1:
            np.testing.assert_array_equal(read, values)
            continue
        assert (info.is_quantised, info.dtype) == (True, "I8" if kind == "int8" else "I16")
        step = (
            np.abs(values).max(axis=1, keepdims=True) / top if kind == "int8" else np.abs(values).max() / top
        )
        assert np.all(np.abs(read - values) <= 0.501 * step)
        assert not np.array_equal(read, values) or kind == "int16"


def test_quantised_values_are_the_stored_ones_over_their_factor() -> None:
    """Exactly, in any window."""
    file = library("int8")
    name = "decoder.layer.1.ffn.linear_1.weight"
    (stored,) = file.dense.read_stored([Window(name, 0, WIDTH, 0, INNER)])
    (factors,) = file.dense.read([Window(f"{name}_scale", 0, 1, 0, WIDTH)])
    expected = stored.astype(np.float32) / factors.reshape(-1, 1)
    np.testing.assert_array_equal(whole(file, name), expected)
    windows = [
        Window(name, 3, 7, 2, 9),
        Window("decoder.layer_norm.gamma", 0, 1, 1, 4),
        Window(name, 9, 9, 0, 5),
    ]
    first, second, third = file.read(windows)
    np.testing.assert_array_equal(first, expected[3:7, 2:9])
    np.testing.assert_array_equal(second, WEIGHTS["decoder.layer_norm.gamma"][None, 1:4])
    assert third.shape == (0, 5)
    for array, same in zip(file.read(windows), file.read_stored(windows), strict=True):
        np.testing.assert_array_equal(array, same)


def test_settings_and_tied_names_are_metadata() -> None:
    metadata = library("float32").metadata
    assert metadata["specification"] == "TransformerDecoderSpec"
    assert metadata["decoder.num_heads"] == "2"
    assert metadata["decoder.projection.weight"] == "decoder.embeddings.weight"


def test_the_names_have_roles() -> None:
    roles = {
        name: role.label for name, role in assign_roles(library("int8").tensors.values()).by_tensor.items()
    }
    assert roles["decoder.embeddings.weight"] == "embed"
    assert roles["decoder.layer_norm.gamma"] == "final_norm"
    assert roles["decoder.layer.1.self_attention.linear_0.weight"] == "1.q+k+v"
    assert roles["decoder.layer.1.ffn.linear_0.weight"] == "1.gate"
    assert roles["decoder.layer.0.ffn.linear_0_noact.weight"] == "0.up"
    assert roles["decoder.layer.0.ffn.linear_1.weight"] == "0.down"
    assert set(roles) == set(WEIGHTS)


def test_without_a_gate_the_first_layer_of_the_ffn_is_up() -> None:
    arrays = {
        f"encoder/layer_{layer}/{name}/weight": grid(8, 8)
        for layer in range(2)
        for name in ("self_attention/linear_0", "self_attention/linear_1", "ffn/linear_0", "ffn/linear_1")
    }
    roles = assign_roles(opened(ctranslate2(arrays)).tensors.values()).by_tensor
    assert roles["encoder.layer.1.ffn.linear_0.weight"].label == "1.up"


@pytest.mark.parametrize("version", [2, 3, 4, 5, 6])
def test_versions_of_the_binary_form(version: int) -> None:
    whole_numbers = {"b": np.arange(6, dtype=np.int8).reshape(2, 3), "c": np.arange(4, dtype=np.int16)}
    arrays = {"a/weight": grid(4, 6), **whole_numbers}
    file = opened(ctranslate2(arrays, version=version))
    assert {name: info.dtype for name, info in file.tensors.items()} == {
        "a.weight": "F32",
        "b": "I8",
        "c": "I16",
    }
    for name, values in arrays.items():
        np.testing.assert_array_equal(whole(file, name.replace("/", ".")), values)


def test_convolutions_are_scaled_by_output() -> None:
    values, factors = np.arange(24, dtype=np.int8).reshape(4, 3, 2), np.array([1, 2, 4, 8], np.float32)
    file = opened(ctranslate2({"conv/weight": values, "conv/weight_scale": factors}))
    np.testing.assert_array_equal(whole(file, "conv.weight"), values / factors[:, None, None])


def test_awq_is_listed_and_not_read() -> None:
    arrays = {
        "a/weight": np.zeros((4, 4), np.int32), "a/weight_scale": np.ones((2, 8), np.float16),
        "a/weight_zero": np.zeros((2, 1), np.int32), "b/weight": grid(4, 4),
    }  # fmt: skip
    file = opened(ctranslate2(arrays))
    assert set(file.tensors) == {"a.weight", "b.weight"}
    assert file.tensors["a.weight"].is_quantised
    whole(file, "b.weight")
    with pytest.raises(UnsupportedError, match="AWQ"):
        whole(file, "a.weight")


def test_a_factor_of_zero_gives_infinity_without_a_warning() -> None:
    arrays = {"w": np.ones((2, 2), np.int8), "w_scale": np.array([0, 2], np.float32)}
    assert whole(opened(ctranslate2(arrays)), "w").tolist() == [[np.inf, np.inf], [0.5, 0.5]]


# Which file it is
def test_a_file_of_that_name_is_recognised_by_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes((FILES / "ctranslate2_int8.bin").read_bytes())
    found = open_weights(LocalTree(tmp_path))
    assert not isinstance(found, Absent)
    assert found.format == "ctranslate2"


@pytest.mark.parametrize(
    "data",
    [b"", b"\6\0\0", b"PK\3\4" + bytes(80), b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\6\0\0\0\3\0a b",
     b"\6\0\0\0" + bytes(90),
     b"\7\0\0\0" + text("Spec"), b"\6\0\0\0" + text("a;b"), b"\6\0\0\0" + text("x" * 80), bytes([2]) * 90],
    ids=range(10),
)  # fmt: skip
def test_other_files_are_not_taken_for_one(data: bytes) -> None:
    assert not is_ctranslate2(MemoryBlob("model.bin", data))


# Ranges
def test_the_contents_are_not_read_to_list_them() -> None:
    arrays = {f"decoder/layer_{k}/linear_0/weight": grid(200, 300) for k in range(30)}
    blob = MemoryBlob("model.bin", ctranslate2(arrays))
    assert is_ctranslate2(blob)
    file = open_ctranslate2(blob)
    assert sum(length for _, length in blob.spans) <= 33 * 1024 < blob.size / 200
    assert len(file.headers["model.bin"]) < 3000
    blob.spans.clear()
    file.read([Window("decoder.layer.7.linear_0.weight", 10, 12, 0, 300)])
    assert sum(length for _, length in blob.spans) == 2 * 300 * 4


# Lies
HEAD = struct.pack("<I", 6) + text("TransformerSpec") + struct.pack("<I", 3)
NONE = struct.pack("<I", 0)


def file_of(*variables: bytes, aliases: bytes = NONE, count: int | None = None) -> bytes:
    return (
        HEAD + struct.pack("<I", len(variables) if count is None else count) + b"".join(variables) + aliases
    )


W = grid(2, 3)
WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "4 bytes are announced, 0 are left"),
    "a name without its end": (struct.pack("<IH", 6, 3) + b"abc" + bytes(20), "zero byte"),
    "an empty name": (struct.pack("<IH", 6, 0) + bytes(20), "zero byte"),
    "a long name": (struct.pack("<IH", 6, 65535) + bytes(70_000), "65535 exceeds the limit of 4096"),
    "a name that is not UTF-8": (file_of(variable("w", W).replace(b"w", b"\xff")), "not UTF-8"),
    "number of variables": (file_of(count=2**32 - 1), "number of tensors: 4294967295 exceeds"),
    "many variables in a small file": (file_of(count=40_000), "tensors in a file of this size: 40000 exceeds"),
    "one variable more": (file_of(variable("w", W), count=2, aliases=b""), "are announced, 0 are left"),
    "one variable less": (file_of(variable("w", W), variable("v", W), count=1), "alias|are left|follow"),
    "a name twice": (file_of(variable("w", W), variable("w", W)), "duplicate variable 'w'"),
    "a name twice in dots": (file_of(variable("a/w", W), variable("a.w", W)), "duplicate variable 'a.w'"),
    "rank": (file_of(variable("w", W, shape=[1] * 9)), "rank: 9 exceeds"),
    "rank of 255": (file_of(variable("w", W, shape=[1] * 255)), "rank: 255 exceeds"),
    "shape": (file_of(variable("w", W, shape=(2, 4))), "24 bytes announced; F32 .2, 4. needs 32"),
    "huge shape": (file_of(variable("w", W, shape=(2**32 - 1,) * 3)), "exceeds the limit"),
    "size": (file_of(variable("w", W, size=20)), "20 bytes announced"),
    "size beyond the end": (
        file_of(variable("w", W, shape=(1 << 20, 1 << 10), size=0)), "announced"
    ),
    "content beyond the end": (file_of(variable("w", W, shape=(1 << 20,), size=4 << 20)), "are announced"),
    "type": (file_of(variable("w", W, kind=6)), "unknown type 6"),
    "width of version 3": (
        ctranslate2({"w": np.zeros(3, np.int64)}, version=3), "unknown type 8"
    ),
    "aliases": (file_of(variable("w", W), aliases=struct.pack("<I", 2**32 - 1)), "number of aliases"),
    "an alias of nothing": (
        file_of(variable("w", W), aliases=struct.pack("<I", 1) + text("v") + text("x")), "names nothing"
    ),
    "an alias of a variable's name": (
        file_of(variable("w", W), aliases=struct.pack("<I", 1) + text("w") + text("w")), "names nothing"
    ),
    "bytes behind": (file_of(variable("w", W)) + b"\0", "1 bytes follow"),
    "factors that do not fit": (
        ctranslate2({"w": np.ones((2, 3), np.int8), "w_scale": np.ones(3, np.float32)}), "3 factors"
    ),
    "factors that are no floats": (
        ctranslate2({"w": np.ones((2, 3), np.int8), "w_scale": np.ones(2, np.int32)}), "2 factors .I32."
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_lie_is_a_typed_error_that_says_where(what: str) -> None:
    data, says = WRONG[what]
    with pytest.raises(FormatError, match=says) as caught:
        opened(data)
    assert caught.value.where.startswith("model.bin")


@pytest.mark.parametrize("version", [0, 1, 7, 2**31])
def test_other_versions_are_unsupported(version: int) -> None:
    with pytest.raises(UnsupportedError, match="version"):
        opened(ctranslate2({"w": W}, version=version))


def test_a_count_is_checked_before_anything_is_built() -> None:
    blob = MemoryBlob("model.bin", file_of(count=900_000))
    with pytest.raises(LimitError):
        open_ctranslate2(blob)
    assert sum(length for _, length in blob.spans) < 4096


def read_all(data: bytes) -> None:
    file = opened(data)
    for name, info in file.tensors.items():
        if info.size < 10_000 and not (info.dtype == "I32" and info.is_quantised):
            assert whole(file, name).shape == info.shape


SMALL = ctranslate2(
    {
        "a/w": np.ones((2, 3), np.int8),
        "a/w_scale": np.ones(2, np.float32),
        "heads": np.int16(4).reshape(()),
        "b": W,
    },
    {"c": "b", "n": "heads"},
)


def test_every_truncation_is_a_typed_error() -> None:
    read_all(SMALL)
    for length in range(len(SMALL)):
        with pytest.raises(DrupeError):
            read_all(SMALL[:length])


@given(st.sampled_from([SMALL, (FILES / "ctranslate2_int8.bin").read_bytes()]), st.data())
@settings(max_examples=500, deadline=None)
def test_flipped_bytes_give_values_or_a_typed_error(data: bytes, choice: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(choice.draw(st.integers(1, 3))):
        damaged[choice.draw(st.integers(0, len(data) - 1))] = choice.draw(st.integers(0, 255))
    try:
        read_all(bytes(damaged))
    except DrupeError as error:
        assert str(error).startswith("model.bin")  # noqa: PT017  # most flips are no error
