"""safetensors: what the reference library writes is read back; shards, windows and every lie of a header."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from blobs import MemoryBlob
from drupe.errors import DrupeError, FormatError, LimitError, UnsupportedError
from drupe.readers.dense import DenseFile
from drupe.readers.interface import Layout, Window
from drupe.readers.safetensors import open_index, open_safetensors
from drupe.sources.local import LocalTree
from hostile_files import EXPLOSIONS, SAFETENSORS, entry
from hostile_files import safetensors as crafted

# One tensor "w" of shape (2, 2), bf16: 1, -2, 0.5, 3; little-endian, the header padded to 8 bytes.
LITERAL = (
    b"\x48\0\0\0\0\0\0\0"
    b'{"w":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}}               '
    b"\x80\x3f\x00\xc0\x00\x3f\x40\x40"
)


def whole(file: DenseFile, name: str) -> np.ndarray:
    rows, columns = file.tensors[name].matrix_shape
    return file.read([Window(name, 0, rows, 0, columns)])[0]


def opened(data: bytes) -> DenseFile:
    return open_safetensors([MemoryBlob("model.safetensors", data)])


def test_the_format_is_pinned_by_bytes() -> None:
    file = opened(LITERAL)
    info = file.tensors["w"]
    assert (info.shape, info.dtype, info.file, info.layout, info.stored_bits) == (
        (2, 2),
        "BF16",
        "model.safetensors",
        Layout.UNKNOWN,
        16.0,
    )
    assert whole(file, "w").tolist() == [[1.0, -2.0], [0.5, 3.0]]
    assert file.headers["model.safetensors"] == LITERAL[8:80]
    assert (file.format, file.metadata) == ("safetensors", {})


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
)
def test_what_the_reference_library_writes_is_read(dtype: str) -> None:
    values = (np.arange(24).reshape(2, 3, 4) % 7 - (0 if dtype in ("uint8", "bool") else 3)).astype(dtype)
    data = safetensors.numpy.save({"a.b": values, "empty": values[:0]}, {"format": "np", "license": "mit"})
    file = opened(data)
    assert set(file.tensors) == {"a.b", "empty"}
    assert np.array_equal(whole(file, "a.b"), values.reshape(2, 12).astype(np.float32))
    assert whole(file, "a.b").dtype == np.float32
    assert whole(file, "empty").size == 0
    assert file.metadata == {"format": "np", "license": "mit"}


@pytest.mark.parametrize(
    ("dtype", "byte", "value"), [("F8_E4M3", 0x38, 1.0), ("F8_E4M3", 0x7E, 448.0), ("F8_E5M2", 0x3C, 1.0)]
)
def test_eight_bit_floats(dtype: str, byte: int, value: float) -> None:
    data = crafted({"a": entry((1,), (0, 1), dtype)})
    assert whole(opened(data + bytes([byte])), "a").tolist() == [[value]]


def test_packed_four_bit_floats_are_listed_and_not_read() -> None:
    file = opened(crafted({"a": entry((3, 2), (0, 3), "F4")}, 3))
    assert file.tensors["a"].stored_bits == 4.0
    with pytest.raises(UnsupportedError, match="F4"):
        whole(file, "a")


@given(
    st.integers(1, 5),
    st.integers(1, 7),
    st.lists(st.tuples(*[st.integers(0, 7)] * 4), min_size=1, max_size=4),
)
def test_windows_are_slices_in_one_pass(rows: int, columns: int, corners: list[tuple[int, ...]]) -> None:
    values = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    blob = MemoryBlob("model.safetensors", safetensors.numpy.save({"w": values}))
    file = open_safetensors([blob])
    blob.batches = 0
    windows, slices = [], []
    for a, b, c, d in corners:
        top, bottom = sorted((min(a, rows), min(b, rows)))
        left, right = sorted((min(c, columns), min(d, columns)))
        windows.append(Window("w", top, bottom, left, right))
        slices.append(values[top:bottom, left:right])
    for found, expected in zip(file.read(windows), slices, strict=True):
        assert np.array_equal(found, expected)
    assert blob.batches == 1


@pytest.mark.parametrize("window", [(0, 3, 0, 2), (-1, 1, 0, 2), (0, 2, 1, 3), (2, 1, 0, 2), (0, 2, -1, 1)])
def test_a_window_outside_of_its_tensor(window: tuple[int, int, int, int]) -> None:
    with pytest.raises(FormatError, match="outside"):
        opened(LITERAL).read([Window("w", *window)])


def test_opening_reads_the_headers_only() -> None:
    blob = MemoryBlob("model.safetensors", crafted({"a": entry((1 << 20,), (0, 4 << 20))}, 4 << 20))
    open_safetensors([blob])
    assert sum(length for _, length in blob.spans) < 1000


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    first, second = np.float32([[1, 2]]), np.float32([[3, 4]])
    (tmp_path / "sub").mkdir()
    safetensors.numpy.save_file({"a": first}, tmp_path / "sub" / "x.safetensors", {"k": "1"})
    safetensors.numpy.save_file({"b": second}, tmp_path / "sub" / "y.safetensors")
    index = {"metadata": {"total_size": 16}, "weight_map": {"b": "y.safetensors", "a": "x.safetensors"}}
    (tmp_path / "sub" / "model.safetensors.index.json").write_text(json.dumps(index))
    file = open_index(LocalTree(tmp_path), "sub/model.safetensors.index.json")
    assert {name: info.file for name, info in file.tensors.items()} == {
        "a": "sub/x.safetensors",
        "b": "sub/y.safetensors",
    }
    values = file.read([Window("b", 0, 1, 0, 2), Window("a", 0, 1, 0, 2), Window("b", 0, 1, 1, 2)])
    assert [array.tolist() for array in values] == [[[3, 4]], [[1, 2]], [[4]]]
    assert sorted(file.headers) == ["sub/x.safetensors", "sub/y.safetensors"]


def test_a_short_name_for_a_long_number_of_values_is_no_licence_to_read() -> None:
    """2^48 values are the limit of a claim; a claim beyond the file is refused before anything is reserved."""
    with pytest.raises(LimitError) as caught:
        opened(crafted({"a": entry((1 << 24, 1 << 22), (0, 4 << 46))}, 8))
    assert (caught.value.limit, caught.value.actual) == (8, 4 << 46)


@pytest.mark.parametrize("name", [*SAFETENSORS, "a million tensors", "150,000 tensors without values"])
def test_a_lie_is_a_typed_error_that_names_the_file(name: str) -> None:
    data, says = SAFETENSORS.get(name) or (EXPLOSIONS[name][0](), EXPLOSIONS[name][1])
    with pytest.raises(FormatError, match=says) as caught:
        opened(data)
    assert caught.value.where.startswith("model.safetensors")
    if isinstance(caught.value, LimitError) and isinstance(caught.value.actual, int):
        assert caught.value.actual > caught.value.limit or caught.value.actual < 0


@given(st.binary(max_size=300), st.integers(0, 400))
def test_random_headers(header: bytes, claimed: int) -> None:
    try:
        file = opened(claimed.to_bytes(8, "little") + b"{" + header)
    except DrupeError:
        return
    for name in file.tensors:
        whole(file, name)


def test_as_many_tensors_are_accepted_when_there_is_data_behind_them() -> None:
    count = 50_000
    names = {
        f"{index:x}": entry((2000,), (2000 * index, 2000 * index + 2000), "I8") for index in range(count)
    }
    assert len(opened(crafted(names, 2000 * count)).tensors) == count
    empty = {name: entry((0,), (0, 0), "I8") for name in names}
    with pytest.raises(LimitError, match="tensors in a file of this size: 50000"):
        opened(crafted(empty))
