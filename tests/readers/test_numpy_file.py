"""NumPy arrays and archives: what NumPy and MLX write is read back by ranges; every lie of a header is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from blobs import MemoryBlob
from drupe.errors import DrupeError, FormatError, LimitError, UnsupportedError
from drupe.readers.dense import DenseFile
from drupe.readers.interface import Window
from drupe.readers.numpy_file import open_numpy, parse_header
from drupe.readers.weights import open_weights
from drupe.sources.local import LocalTree
from format_writers import archive, grid, npy, npy_of, npz

FILES = Path(__file__).parent / "format_files"
TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip


def opened(data: bytes, name: str = "w.npz") -> DenseFile:
    return open_numpy([MemoryBlob(name, data)])


def whole(file: DenseFile, name: str) -> NDArray[np.float32]:
    rows, columns = file.tensors[name].matrix_shape
    return file.read([Window(name, 0, rows, 0, columns)])[0].reshape(file.tensors[name].shape)


# What libraries write
@pytest.mark.parametrize("compressed", [False, True])
def test_every_type_of_numpy(compressed: bool) -> None:
    arrays = {name: (np.arange(12) % 2).astype(dtype).reshape(3, 4) for name, dtype in TYPES.items()}
    file = opened(npz(arrays, compressed=compressed))
    assert list(file.tensors) == list(TYPES)
    for name, values in arrays.items():
        info = file.tensors[name]
        assert (info.dtype, info.shape, info.stored_bits) == (name, (3, 4), 8.0 * values.itemsize)
        np.testing.assert_array_equal(whole(file, name), values.astype(np.float32))
        (stored,) = file.read_stored([Window(name, 1, 2, 0, 4)])
        np.testing.assert_array_equal(stored, values[1:2])


@pytest.mark.parametrize("name", ["mlx.npz", "mlx_compressed.npz"])
def test_what_mlx_writes(name: str) -> None:
    file = opened((FILES / name).read_bytes())
    assert {key: info.dtype for key, info in file.tensors.items()} == {
        "layers.0.mlp.weight": "BF16", "layers.0.norm.weight": "F16", "embed.weight": "F32", "codes": "U32",
    }  # fmt: skip
    np.testing.assert_array_equal(whole(file, "layers.0.mlp.weight"), grid(40, 12))
    np.testing.assert_array_equal(whole(file, "layers.0.norm.weight"), grid(12, start=9))
    np.testing.assert_array_equal(whole(file, "embed.weight"), grid(30, 12, start=3))
    assert file.read_stored([Window("codes", 0, 2, 0, 3)])[0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_shards_of_mlx_are_one_model(tmp_path: Path) -> None:
    for number in range(2):
        data = (FILES / f"mlx.0{number}.safetensors").read_bytes()
        (tmp_path / f"weights.0{number}.safetensors").write_bytes(data)
    file = open_weights(LocalTree(tmp_path))
    assert isinstance(file, DenseFile)
    assert set(file.tensors) == {"layers.0.mlp.weight", "layers.0.norm.weight", "embed.weight", "codes"}
    np.testing.assert_array_equal(whole(file, "layers.0.mlp.weight"), grid(40, 12))


@given(st.lists(st.integers(0, 5), max_size=4), st.booleans(), st.booleans(), st.sampled_from(["npy", "npz"]))
@settings(deadline=None)
def test_any_shape_in_either_order(shape: list[int], fortran: bool, compressed: bool, kind: str) -> None:
    values = grid(*shape) if shape else np.float32(0.25).reshape(())
    stored = np.asfortranarray(values) if fortran else values
    data = npy(stored) if kind == "npy" else npz({"w": stored}, compressed=compressed)
    np.testing.assert_array_equal(whole(opened(data, f"w.{kind}"), "w"), values)


def test_shards_are_one_model_and_a_name_is_given_once() -> None:
    first, second = npz({"a": grid(2, 3)}), npz({"b": grid(4, 3)})
    file = open_numpy([MemoryBlob("weights.00.npz", first), MemoryBlob("weights.01.npz", second)])
    assert [info.file for info in file.tensors.values()] == ["weights.00.npz", "weights.01.npz"]
    with pytest.raises(FormatError, match=r"'a' is also in weights\.00\.npz"):
        open_numpy([MemoryBlob("weights.00.npz", first), MemoryBlob("weights.01.npz", first)])


def test_other_types_are_listed_and_not_read() -> None:
    arrays = {
        "note": np.array(["a text"]), "big": np.ones(3, ">f4"), "day": np.zeros(2, "M8[D]"), "raw": np.zeros(2, "V3"),
        "fp8": np.zeros(4, "V1"), "complex": np.ones(2, "<c8"), "w": grid(2, 2),
    }  # fmt: skip
    file = opened(archive({f"{name}.npy": npy(values) for name, values in arrays.items() if name != "day"}))
    assert np.array_equal(whole(file, "w"), grid(2, 2))
    for name in ("note", "big", "raw", "fp8", "complex"):
        with pytest.raises(UnsupportedError, match="dtype"):
            whole(file, name)


def test_other_members_are_left_alone() -> None:
    file = opened(archive({"w.npy": npy(grid(2, 2)), "README.md": b"text", "sub/x.npy": npy(grid(3))}))
    assert set(file.tensors) == {"w", "sub/x"}


# Ranges
def test_a_stored_archive_is_read_by_ranges() -> None:
    arrays = {f"layer.{number}": grid(500, 200) for number in range(5)}
    blob = MemoryBlob("w.npz", npz(arrays))
    file = open_numpy([blob])
    opening = sum(length for _, length in blob.spans)
    assert opening < 8000 < blob.size / 100
    assert len(blob.spans) < 4 + 2 * len(arrays)
    blob.spans.clear()
    (values,) = file.read([Window("layer.3", 100, 110, 0, 200)])
    np.testing.assert_array_equal(values, arrays["layer.3"][100:110])
    assert sum(length for _, length in blob.spans) == values.nbytes


def test_columns_of_an_array_in_fortrans_order_are_read_by_ranges() -> None:
    blob = MemoryBlob("w.npy", npy(np.asfortranarray(grid(500, 200))))
    file = open_numpy([blob])
    blob.spans.clear()
    file.read([Window("w", 0, 500, 7, 9)])
    assert sum(length for _, length in blob.spans) == 2 * 500 * 4


def test_a_compressed_archive_is_opened_by_ranges() -> None:
    dice = np.random.default_rng(0)
    blob = MemoryBlob(
        "w.npz",
        npz({f"w{k}": dice.standard_normal((300, 100), np.float32) for k in range(3)}, compressed=True),
    )
    open_numpy([blob])
    assert sum(length for _, length in blob.spans) < 8000 < blob.size / 10


# Lies
GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
DATA = grid(2, 3).tobytes()


@pytest.mark.parametrize(
    "header",
    [
        GOOD,
        GOOD + " " * 50 + "\n",
        "{'shape': (2, 3), 'fortran_order': False, 'descr': '<f4'}",
        '{"descr": "<f4", "fortran_order": False, "shape": (2,3)}',
        "{'descr':'<f4','fortran_order':False,'shape':(2L, 3L)}",
        "{ 'descr' : '=f4' , 'fortran_order' : False , 'shape' : ( 2 , 3 , ) , } ",
    ],
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_spellings_of_a_header(header: str, version: tuple[int, int]) -> None:
    if header.startswith("{ 'descr' : '=f4'"):
        header = header.replace("=f4", "<f4")
    np.testing.assert_array_equal(
        whole(opened(npy_of(header, DATA, version=version), "w.npy"), "w"), grid(2, 3)
    )


WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "does not start as"),
    "magic alone": (b"\x93NUMPY\x01", "does not start as"),
    "not NumPy": (b"\x80\x02}q\0." * 30, "does not start as"),
    "version": (npy_of(GOOD, DATA, version=(4, 0)), "version 4.0"),
    "header length": (
        b"\x93NUMPY\x02\0" + b"\xff\xff\xff\xff" + b" " * 300,
        "4294967295 exceeds the limit of 10000",
    ),
    "header cut off": (npy_of(GOOD)[:40], "cut off"),
    "no dictionary": (npy_of("[1, 2, 3]", DATA), "no header"),
    "a call": (
        npy_of("{'descr': __import__('os').system('id'), 'fortran_order': False, 'shape': (2,)}"),
        "no header",
    ),
    "a sum": (npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (2+1,)}", DATA), "no header"),
    "a power": (npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (9**9**9,)}"), "no header"),
    "brackets": (npy_of("{'descr': " + "(" * 9000), "no header"),
    "a key twice": (npy_of(GOOD.replace("'shape'", "'descr': '<f8', 'shape'"), DATA), "no header"),
    "a key missing": (npy_of("{'descr': '<f4', 'shape': (2, 3)}", DATA), "no header"),
    "another key": (npy_of(GOOD.replace("}", "'x': 'y'}"), DATA), "no header"),
    "text behind": (npy_of(GOOD + " print()", DATA), "no header"),
    "order as a text": (npy_of(GOOD.replace("False", "'False'"), DATA), "no header"),
    "shape as a text": (npy_of(GOOD.replace("(2, 3)", "'2, 3'"), DATA), "no header"),
    "type as a truth value": (npy_of(GOOD.replace("'<f4'", "True"), DATA), "no header"),
    "objects": (npy_of(GOOD.replace("<f4", "|O"), b"\x80\x02."), "never loaded"),
    "objects of NumPy": (npy(np.array([{}, None], dtype=object)), "never loaded"),
    "records": (npy(np.zeros(2, [("a", "<f4"), ("b", "<i4")])), "records"),
    "unknown type": (npy_of(GOOD.replace("<f4", "<foo"), DATA), "unknown NumPy type '<foo'"),
    "rank": (npy_of(GOOD.replace("(2, 3)", "(1, 1, 1, 1, 1, 1, 1, 2, 3)"), DATA), "rank: 9 exceeds"),
    "extent": (npy_of(GOOD.replace("(2, 3)", f"({1 << 62}, 4)"), DATA), "exceeds the limit"),
    "a thousand digits": (npy_of(GOOD.replace("(2, 3)", f"({'9' * 5000})"), DATA), "exceeds the limit"),
    "shape": (npy_of(GOOD.replace("(2, 3)", "(2, 4)"), DATA), "24 bytes of values; F32 .2, 4. needs 32"),
    "values missing": (npy_of(GOOD, DATA[:-1]), "23 bytes of values"),
    "values behind": (npy_of(GOOD, DATA + b"\0"), "25 bytes of values"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("kind", ["npy", "stored", "compressed"])
def test_a_lie_is_a_typed_error_that_says_where(what: str, kind: str) -> None:
    data, says = WRONG[what]
    if kind != "npy":
        data = archive({"sub/w.npy": data}, compressed=kind == "compressed")
    name = "model.npy" if kind == "npy" else "model.npz"
    with pytest.raises((FormatError, UnsupportedError), match=says) as caught:
        opened(data, name)
    assert caught.value.where == (name if kind == "npy" else f"{name}: sub/w.npy")


def test_no_header_is_evaluated(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    code = f"__import__('pathlib').Path({str(target)!r}).touch()"
    for header in (f"{{'descr': {code}, 'fortran_order': False, 'shape': (2,)}}", code, f"{GOOD} or {code}"):
        with pytest.raises(DrupeError):
            parse_header(npy_of(header), "w.npy")
    assert not target.exists()


def zeros(count: int) -> bytes:
    return npy_of(GOOD.replace("(2, 3)", f"({count},)"), bytes(4 * count))


def test_a_bomb_is_refused_before_it_is_opened() -> None:
    blob = MemoryBlob("bomb.npz", archive({"w.npy": zeros(11 << 20)}, compressed=True))
    assert blob.size < 100_000
    with pytest.raises(LimitError, match="bytes that a compressed array takes"):
        open_numpy([blob])


def test_many_small_bombs_are_refused_together() -> None:
    member = zeros(8 << 20)
    fitting = archive({f"{number}.npy": member for number in range(7)}, compressed=True)
    assert len(opened(fitting).tensors) == 7
    with pytest.raises(LimitError, match="bytes of all compressed arrays"):
        opened(archive({f"{number}.npy": member for number in range(9)}, compressed=True))


def test_many_arrays_without_values_are_refused() -> None:
    empty = npy(np.zeros((0, 4), np.float32))
    assert len(opened(archive({f"{number}.npy": empty for number in range(300)})).tensors) == 300
    blob = MemoryBlob("many.npz", archive({f"{number}.npy": empty for number in range(60_000)}))
    with pytest.raises(LimitError, match="tensors in a file of this size: 60000 exceeds"):
        open_numpy([blob])


def read_all(data: bytes) -> None:
    file = opened(data)
    for name, info in file.tensors.items():
        rows, columns = info.matrix_shape
        if file.places[name].item_bytes and rows * columns < 10_000:
            assert whole(file, name).shape == info.shape


PLAIN = npz({"a.weight": grid(6, 4), "b": np.asfortranarray(grid(3, 5)), "n": np.arange(3)})
DENSE = npz({"a.weight": grid(6, 4), "b": np.asfortranarray(grid(3, 5)), "n": np.arange(3)}, compressed=True)


@pytest.mark.parametrize("data", [PLAIN, DENSE, npy(grid(3, 5))], ids=["stored", "compressed", "npy"])
def test_every_truncation_is_a_typed_error(data: bytes) -> None:
    read_all(data)
    for length in range(len(data)):
        with pytest.raises(DrupeError):
            read_all(data[:length])


@given(st.sampled_from([PLAIN, DENSE, npy(grid(3, 5))]), st.data())
@settings(max_examples=400, deadline=None)
def test_flipped_bytes_give_values_or_a_typed_error(data: bytes, choice: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(choice.draw(st.integers(1, 3))):
        damaged[choice.draw(st.integers(0, len(data) - 1))] = choice.draw(st.integers(0, 255))
    try:
        read_all(bytes(damaged))
    except DrupeError as error:
        assert str(error).startswith("w.npz")  # noqa: PT017  # some flips are no error
