"""Flax msgpack: what Flax writes is read back by ranges; every lie of a length, a count or a type is refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from blobs import MemoryBlob
from drupe.errors import DrupeError, FormatError, LimitError, UnsupportedError
from drupe.readers.dense import DenseFile
from drupe.readers.interface import Layout, Window
from drupe.readers.msgpack_file import open_msgpack
from format_writers import array, binary, extension, grid, nested, pack

FILES = Path(__file__).parent / "format_files"
FLAX = {
    "params.layers.0.mlp.kernel": grid(12, 40),
    "params.layers.0.mlp.bias": grid(40, start=5),
    "params.layers.0.norm.scale": grid(12, start=9),
    "params.embed.embedding": grid(30, 12, start=3),
    "params.conv.kernel": grid(3, 2, 4, start=1),
    "params.empty": np.zeros((0, 4), np.float32),
}
"""What ``format_files/make.py`` gave Flax."""


def opened(data: bytes) -> DenseFile:
    return open_msgpack([MemoryBlob("flax_model.msgpack", data)])


def whole(file: DenseFile, name: str) -> NDArray[np.float32]:
    rows, columns = file.tensors[name].matrix_shape
    return file.read([Window(name, 0, rows, 0, columns)])[0].reshape(file.tensors[name].shape)


# What Flax writes
def test_a_training_state_gives_its_parameters() -> None:
    """Not the optimiser's moments, which have the same shapes."""
    file = opened((FILES / "flax.msgpack").read_bytes())
    assert set(file.tensors) == {*FLAX, "params.scalar"}
    for name, values in FLAX.items():
        np.testing.assert_array_equal(whole(file, name), values)
    assert whole(file, "params.scalar") == 0.5
    assert {info.dtype for info in file.tensors.values()} == {"F32"}


def test_kernels_have_their_inputs_as_rows() -> None:
    layouts = {
        name: info.layout for name, info in opened((FILES / "flax.msgpack").read_bytes()).tensors.items()
    }
    assert layouts.pop("params.layers.0.mlp.kernel") is Layout.IN_OUT
    assert set(layouts.values()) == {Layout.UNKNOWN}


def test_arrays_in_chunks_of_half_precision() -> None:
    """Flax cuts arrays beyond 1 GiB; its limit was lowered to 100 bytes for this file."""
    file = opened((FILES / "flax_half_chunked.msgpack").read_bytes())
    assert set(file.tensors) == set(FLAX)
    assert file.tensors["params.layers.0.mlp.kernel"].dtype == "BF16"
    assert file.tensors["params.embed.embedding"].dtype == "F16"
    for name, values in FLAX.items():
        np.testing.assert_array_equal(whole(file, name), values)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 12), st.integers(0, 12))
def test_a_window_of_an_array_in_chunks_is_a_crop(top: int, bottom: int, left: int, right: int) -> None:
    file = opened((FILES / "flax_half_chunked.msgpack").read_bytes())
    (top, bottom), (left, right) = sorted((top, bottom)), sorted((left, right))
    (values,) = file.read([Window("params.embed.embedding", top, bottom, left, right)])
    np.testing.assert_array_equal(values, FLAX["params.embed.embedding"][top:bottom, left:right])


def test_shards_are_one_model_and_a_name_is_given_once() -> None:
    names = list(FLAX)
    parts = [pack(nested({name: FLAX[name] for name in part})) for part in (names[:2], names[2:])]
    file = open_msgpack([MemoryBlob(f"{k}.msgpack", part) for k, part in enumerate(parts)])
    assert set(file.tensors) == set(FLAX)
    np.testing.assert_array_equal(whole(file, names[-2]), FLAX[names[-2]])
    with pytest.raises(FormatError, match=r"is also in 0\.msgpack"):
        open_msgpack([MemoryBlob(f"{k}.msgpack", parts[0]) for k in range(2)])


NUMBERS = ["float64", "float32", "float16", "bool"] + [
    f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)
]


@pytest.mark.parametrize("dtype", NUMBERS)
def test_every_type_of_number(dtype: str) -> None:
    values = (np.arange(6) % 2).reshape(2, 3).astype(dtype)
    np.testing.assert_array_equal(whole(opened(pack({"w": values})), "w"), values.astype(np.float32))


def test_a_complex_array_is_listed_and_not_read() -> None:
    file = opened(pack({"w": np.ones(3, np.complex64)}))
    with pytest.raises(UnsupportedError, match="C64"):
        whole(file, "w")


def test_other_values_are_stepped_over() -> None:
    tree = {
        "none": None, "true": True, "text": "x" * 300, "bytes": b"x" * 70_000, "numbers": [1, -1, 300, 1 << 40],
        "complex": 1, "w": grid(2, 2), "list": [grid(3), {"v": grid(4)}],
    }  # fmt: skip
    data = pack(tree).replace(pack("complex") + pack(1), pack("complex") + extension(2, pack([0, 1])))
    data = data.replace(pack("none") + pack(None), pack("none") + b"\xcb" + struct.pack(">d", 0.5))
    file = opened(data)
    assert list(file.tensors) == ["w", "list.0", "list.1.v"]
    np.testing.assert_array_equal(whole(file, "list.1.v"), grid(4))


# Ranges
def test_the_arrays_are_not_read_to_list_them() -> None:
    arrays = {f"layers.{k}.mlp.kernel": grid(200, 300) for k in range(40)}
    blob = MemoryBlob("flax_model.msgpack", pack(nested(arrays)))
    file = open_msgpack([blob])
    assert sum(length for _, length in blob.spans) <= 41 * 1024 < blob.size / 200
    assert len(blob.spans) <= 42
    assert len(file.headers["flax_model.msgpack"]) < 4000
    blob.spans.clear()
    (values,) = file.read([Window("layers.17.mlp.kernel", 10, 12, 0, 300)])
    np.testing.assert_array_equal(values, grid(200, 300)[10:12])
    assert sum(length for _, length in blob.spans) == values.nbytes


class Sparse(MemoryBlob):
    """The head of a file of half a gigabyte whose arrays are zeros that are never held."""

    def __init__(self, pieces: list[tuple[bytes, int]]) -> None:
        super().__init__("huge.msgpack", b"")
        self.pieces = pieces

    @property
    def size(self) -> int:
        return sum(len(head) + zeros for head, zeros in self.pieces)

    def read(self, start: int, length: int) -> bytes:
        self.spans.append((start, length))
        found, at = bytearray(), 0
        for head, zeros in self.pieces:
            for part, extent in ((head, len(head)), (None, zeros)):
                first, last = max(start, at), min(start + length, at + extent)
                if first < last:
                    found += bytes(last - first) if part is None else part[first - at : last - at]
                at += extent
        return bytes(found)


def test_half_a_gigabyte_is_opened_by_a_few_kilobytes() -> None:
    inside = pack(((5_000, 5_000), "float32"))[1:]  # without the head of the list
    pieces = []
    for number in range(5):
        content = b"\x93" + inside + binary(10**8)
        head = pack(f"w{number}") + extension(1, content, size=len(content) + 10**8)
        pieces.append(((b"\x85" if number == 0 else b"") + head, 10**8))
    blob = Sparse(pieces)
    assert blob.size > 500_000_000
    file = open_msgpack([blob])
    assert [info.shape for info in file.tensors.values()] == [(5_000, 5_000)] * 5
    assert sum(length for _, length in blob.spans) < 8 * 1024


# Lies
def lied(**lies: Any) -> bytes:
    return pack("w") + extension(1, array(grid(2, 3), **lies))


def chunked(**parts: Any) -> bytes:
    values = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 2, "1": 3},
        "chunks": {"0": grid(4), "1": grid(2)},
    }
    return pack({"w": {key: value for key, value in (values | parts).items() if value is not None}})


ONE = b"\x81"
WHOLE = array(grid(2, 3))
WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "1 bytes are announced, 0 are left"),
    "not a map": (pack(7), "does not hold a map"),
    "a pickle": (b"\x80\x04\x95" + bytes(40), "bytes follow|no text"),
    "a zip": (b"PK\3\4" + bytes(40), "bytes follow"),
    "an unused byte": (ONE + pack("w") + b"\xc1", "starts no msgpack value"),
    "bytes behind": (pack({"w": grid(2)}) + b"\0", "1 bytes follow the end"),
    "entries of a map": (b"\xdf\xff\xff\xff\xff" + bytes(20), "4294967295 exceeds the limit"),
    "items of a list": (
        ONE + pack("w") + b"\xdd\xff\xff\xff\xff" + bytes(20),
        "4294967295 exceeds the limit",
    ),
    "length of a key": (ONE + b"\xdb\xff\xff\xff\xff" + bytes(20), "4294967295 exceeds the limit of 4096"),
    "length of bytes": (ONE + pack("w") + binary(1 << 20), "1048576 bytes are announced"),
    "length of an extension": (
        ONE + pack("w") + extension(1, bytes(20), size=1 << 30),
        "bytes are announced",
    ),
    "a key that is no text": (b"\x81\x01\x01", "a key is no text"),
    "a key that is not UTF-8": (b"\x81\xa1\xff\x01", "not UTF-8"),
    "a key twice": (b"\x82" + (pack("w") + pack(grid(2))) * 2, "duplicate key 'w'"),
    "a name twice": (pack({"a": {"b": grid(2)}, "a.b": grid(2)}), "'a.b' is also in"),
    "maps in maps": (b"\x81\xa1a" * 100_000 + b"\xc0", "nesting depth: 65 exceeds the limit of 64"),
    "lists in lists": (ONE + pack("w") + b"\x91" * 100_000 + b"\xc0", "nesting depth: 65 exceeds"),
    "a long name": (pack({"a" * 3000: {"b" * 3000: grid(2)}}), "length of a tensor name"),
    "many values": (ONE + pack("w") + b"\xdd\0\x09\0\0" + bytes(0x90000), "exceeds the limit of 300000"),
    "an array of two": (ONE + pack("w") + extension(1, pack([[2], "float32"])), "no list of shape"),
    "an array that is none": (ONE + pack("w") + extension(1, pack("float32")), "no list of shape"),
    "a shape that is none": (ONE + lied(shape="23"), "shape of an array is no list"),
    "a shape of texts": (ONE + lied(shape=("2", "3")), "no whole number"),
    "a negative extent": (ONE + lied(shape=(-2, -3)), "no whole number"),
    "a shape too large": (ONE + lied(shape=(1 << 40, 1 << 40)), "exceeds the limit"),
    "a shape of nine": (ONE + lied(shape=[1] * 9), "rank: 9 exceeds"),
    "a shape of millions": (
        ONE + pack("w") + extension(1, b"\x93\xdd\xff\xff\xff\xff" + bytes(9)),
        "4294967295",
    ),
    "another shape": (ONE + lied(shape=(2, 4)), "24 bytes of values; float32 .2, 4. needs 32"),
    "another type": (ONE + lied(dtype="float16"), "24 bytes of values; float16 .2, 3. needs 12"),
    "an unknown type": (ONE + lied(dtype="object"), "type 'object' of an array is unknown"),
    "a type that is long": (ONE + lied(dtype="f" * 300), "300 exceeds the limit of 32"),
    "values that are no bytes": (ONE + lied(data=[1, 2, 3]), "content of an array is no bytes"),
    "values missing": (ONE + lied(data=bytes(23)), "23 bytes of values"),
    "values beyond the extension": (
        ONE + pack("w") + extension(1, WHOLE[:-4], size=len(WHOLE) - 4) + WHOLE[-4:],
        "its extension at",
    ),
    "chunks without a shape": (chunked(shape=None), "not numbered from 0"),
    "no chunks": (chunked(chunks={}), "without a shape or chunks"),
    "chunks with a gap": (chunked(chunks={"0": grid(4), "2": grid(2)}), "not numbered from 0"),
    "chunks of two types": (chunked(chunks={"0": grid(4), "1": np.arange(2)}), "no arrays of one type"),
    "chunks that are none": (chunked(chunks={"0": 1, "1": 2}), "no arrays of one type"),
    "chunks of another size": (chunked(chunks={"0": grid(4)}), "16 bytes of values"),
    "chunks of a huge shape": (chunked(shape={"0": 1 << 40, "1": 1 << 40}), "exceeds the limit"),
    "chunks of a shape of texts": (chunked(shape={"0": "2", "1": "3"}), "without a shape or chunks"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_lie_is_a_typed_error_that_says_where(what: str) -> None:
    data, says = WRONG[what]
    with pytest.raises(FormatError, match=says) as caught:
        opened(data)
    assert caught.value.where.startswith("flax_model.msgpack")


def test_a_megabyte_of_empty_maps_is_refused_or_small() -> None:
    """Each would cost a hundred times its byte."""
    with pytest.raises(LimitError):
        opened(ONE + pack("w") + b"\xdd\0\x04\xff\xff" + b"\x80" * 0x4FFFF)


def read_all(data: bytes) -> None:
    file = opened(data)
    for name, info in file.tensors.items():
        if file.places[name].item_bytes and info.size < 10_000:
            assert whole(file, name).shape == info.shape


SMALL = pack(
    {"params": nested({"a.kernel": grid(3, 4), "b.bias": np.arange(3)}), "step": 70_000, "c": "text"}
)
SAMPLES = [SMALL, chunked(), (FILES / "flax_half_chunked.msgpack").read_bytes()]


@pytest.mark.parametrize("data", SAMPLES[:2], ids=["plain", "chunked"])
def test_every_truncation_is_a_typed_error(data: bytes) -> None:
    read_all(data)
    for length in range(len(data)):
        with pytest.raises(DrupeError):
            read_all(data[:length])


@given(st.sampled_from(SAMPLES), st.data())
@settings(max_examples=500, deadline=None)
def test_flipped_bytes_give_values_or_a_typed_error(data: bytes, choice: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(choice.draw(st.integers(1, 3))):
        damaged[choice.draw(st.integers(0, len(data) - 1))] = choice.draw(st.integers(0, 255))
    try:
        read_all(bytes(damaged))
    except DrupeError as error:
        assert str(error).startswith("flax_model.msgpack")  # noqa: PT017  # most flips are no error


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_random_bytes_are_refused(data: bytes) -> None:
    try:
        opened(b"\x81\xa1w" + data)
    except DrupeError as error:
        assert str(error).startswith("flax_model.msgpack")  # noqa: PT017  # some are a map of nothing
