"""Flax parameters in msgpack (``flax_model.msgpack``): the tree of arrays, walked without reading the arrays.

Format facts: github.com/msgpack/msgpack (spec.md) and ``flax/serialization.py`` of github.com/google/flax: an
array is extension 1 (a scalar: 3) around ``[shape, dtype name, bytes]``; one beyond 1 GiB is a map with the key
``__msgpack_chunked_array__``, its ``shape`` and its ``chunks``. A ``kernel`` multiplies from the right: its rows
are input units.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from drupe.errors import FormatError, LimitError
from drupe.readers.dense import DenseFile, Place, check_density
from drupe.readers.forward import Forward, JoinedBlob
from drupe.readers.interface import MAX_NAME, MAX_RANK, Layout, TensorInfo, check_shape
from drupe.readers.packed import BLOCK_TYPES
from drupe.sources.interface import Blob, Span

MAX_DEPTH = 64
"""Maps in maps; real models have about ten."""
MAX_NODES = 300_000
"""Values of a file, arrays and others; the largest known have some thousands."""
_CHUNKED = "__msgpack_chunked_array__"
_OPTIMISER = "opt_state"
"""The part of a training state that is as large as the parameters and is none."""
_ARRAY, _SCALAR = 1, 3
_U8, _U16, _U32, _U64 = (struct.Struct(">" + code) for code in "BHIQ")
_SIZES: Mapping[int, struct.Struct] = {
    0xC4: _U8, 0xC5: _U16, 0xC6: _U32, 0xD9: _U8, 0xDA: _U16, 0xDB: _U32, 0xDC: _U16, 0xDD: _U32,
    0xDE: _U16, 0xDF: _U32, 0xC7: _U8, 0xC8: _U16, 0xC9: _U32,
}  # fmt: skip
"""First byte -> the number that follows it: bin, str, array, map, ext of 8, 16 and 32 bits."""
_TEXTS, _BYTES, _LISTS, _MAPS, _EXTENSIONS = (
    {0xD9, 0xDA, 0xDB}, {0xC4, 0xC5, 0xC6}, {0xDC, 0xDD}, {0xDE, 0xDF}, {0xC7, 0xC8, 0xC9},
)  # fmt: skip
_FIXED = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
          0xC0: 0, 0xC2: 0, 0xC3: 0}  # fmt: skip
"""First byte -> bytes that follow: numbers, nil and truth values."""
_UNSIGNED: Mapping[int, struct.Struct] = {0xCC: _U8, 0xCD: _U16, 0xCE: _U32, 0xCF: _U64}
_DTYPES: Mapping[str, tuple[str, int]] = {
    "float64": ("F64", 8), "float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1), "float8_e5m2": ("F8_E5M2", 1),
    "int64": ("I64", 8), "int32": ("I32", 4), "int16": ("I16", 2), "int8": ("I8", 1),
    "uint64": ("U64", 8), "uint32": ("U32", 4), "uint16": ("U16", 2), "uint8": ("U8", 1), "bool": ("BOOL", 1),
    "complex64": ("C64", 8), "complex128": ("C128", 16),
}  # fmt: skip
"""NumPy's name -> ours and bytes of a value."""


@dataclass(frozen=True, slots=True)
class _Array:
    shape: tuple[int, ...]
    dtype: str
    spans: tuple[Span, ...]


Node = dict[str, "Node"] | _Array | int | None
"""A map, an array, a whole number; None is any other value."""


class _Walk:
    """Reads values one after the other, and counts them."""

    __slots__ = ("arrays", "cursor", "file", "nodes")

    def __init__(self, blob: Blob) -> None:
        self.file = blob
        self.cursor = Forward(blob)
        self.nodes = 0
        self.arrays = 0

    def value(self, depth: int) -> Node:
        """The next value; arrays are only located."""
        if depth > MAX_DEPTH:
            raise LimitError("nesting depth", limit=MAX_DEPTH, actual=depth, where=self.cursor.where)
        self._count(1)
        kind, size = self._head()
        if kind in _MAPS:
            return self._map(size, depth)
        if kind in _LISTS:
            self._announce(size, 1)
            return {str(index): self.value(depth + 1) for index in range(size)}
        if kind in _EXTENSIONS:
            return self._extension(size)
        if kind in _UNSIGNED:
            return self.cursor.number(_UNSIGNED[kind])
        self.cursor.skip(size)
        return kind if kind < 0x80 else None

    def _count(self, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise LimitError(
                "values of the file", limit=MAX_NODES, actual=self.nodes, where=self.cursor.where
            )

    def _announce(self, count: int, least: int) -> None:
        """Refuse a count that the file cannot hold, before anything is built for it."""
        limit = min(MAX_NODES, self.cursor.left // least)
        if count > limit:
            raise LimitError("values of a map or list", limit=limit, actual=count, where=self.cursor.where)

    def _head(self) -> tuple[int, int]:
        """Kind (short forms as their long ones, small whole numbers as themselves) and length or count."""
        byte = self.cursor.take(1)[0]
        if byte < 0x80 or byte >= 0xE0:
            return byte, 0
        if byte < 0x90:
            return 0xDE, byte & 15
        if byte < 0xA0:
            return 0xDC, byte & 15
        if byte < 0xC0:
            return 0xD9, byte & 31
        if byte in _SIZES:
            return byte, self.cursor.number(_SIZES[byte])
        if 0xD4 <= byte <= 0xD8:
            return 0xC7, 1 << (byte - 0xD4)
        if byte in _FIXED:
            return byte, _FIXED[byte]
        raise FormatError(f"the byte {byte:#x} starts no msgpack value", where=self.cursor.where)

    def _map(self, size: int, depth: int) -> dict[str, Node]:
        self._announce(size, 2)
        found: dict[str, Node] = {}
        for _ in range(size):
            key = self._text("a key", MAX_NAME)
            if key in found:
                raise FormatError(f"duplicate key {key[:80]!r}", where=self.cursor.where)
            found[key] = self.value(depth + 1)
        return found

    def _text(self, what: str, limit: int) -> str:
        kind, size = self._head()
        if kind not in _TEXTS | _BYTES:
            raise FormatError(f"{what} is no text", where=self.cursor.where)
        if size > limit:
            raise LimitError(f"bytes of {what}", limit=limit, actual=size, where=self.cursor.where)
        try:
            return self.cursor.take(size).decode()
        except UnicodeDecodeError:
            raise FormatError(f"{what} is not UTF-8", where=self.cursor.where) from None

    def _extension(self, size: int) -> Node:
        code = self.cursor.take(1)[0]
        stop = self.cursor.position + size
        self.cursor.skip(0 if size <= self.cursor.left else size)  # raises when the file is too short
        if code not in (_ARRAY, _SCALAR):
            self.cursor.skip(size)
            return None
        array = self._array()
        if self.cursor.position != stop:
            what = f"an array ends at {self.cursor.position}, its extension at {stop}"
            raise FormatError(what, where=self.cursor.where)
        return array

    def _array(self) -> _Array:
        """``[shape, dtype name, bytes]``."""
        self.arrays += 1
        check_density(self.arrays, self.file.size, self.file.name)
        kind, size = self._head()
        if kind != 0xDC or size != 3:
            raise FormatError("an array is no list of shape, type and bytes", where=self.cursor.where)
        kind, rank = self._head()
        if kind not in _LISTS:
            raise FormatError("the shape of an array is no list", where=self.cursor.where)
        if rank > MAX_RANK:
            raise LimitError("tensor rank", limit=MAX_RANK, actual=rank, where=self.cursor.where)
        shape = check_shape([self._extent() for _ in range(rank)], self.cursor.where)
        dtype = self._text("the name of a type", 32)
        kind, size = self._head()
        if kind not in _BYTES | _TEXTS:
            raise FormatError("the content of an array is no bytes", where=self.cursor.where)
        return _Array(shape, dtype, ((self.cursor.skip(size), size),))

    def _extent(self) -> int:
        kind, _ = self._head()
        if kind in _UNSIGNED:
            return self.cursor.number(_UNSIGNED[kind])
        if kind >= 0x80:
            raise FormatError("an extent of a shape is no whole number", where=self.cursor.where)
        return kind


def open_msgpack(blobs: Sequence[Blob]) -> DenseFile:
    """Open a file of Flax parameters, or the shards of one model: their structure is read, their arrays are not.

    Raises FormatError or LimitError on any lie; an optimiser's state beside the parameters is left out.
    """
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, Place] = {}
    headers: dict[str, bytes] = {}
    for blob in blobs:
        root, headers[blob.name] = _tree(blob)
        for name, array in _flat(root, "", blob.name):
            if name in tensors:
                what = f"array {name[:80]!r} is also in {tensors[name].file}"
                raise FormatError(what, where=blob.name)
            tensors[name], places[name] = _tensor(name, array, blob)
    return DenseFile("flax", tensors, {}, places, headers)


def _tree(blob: Blob) -> tuple[dict[str, Node], bytes]:
    """The map that a file holds, and its bytes without the arrays' contents."""
    walk = _Walk(blob)
    root = walk.value(0)
    if walk.cursor.left:
        raise FormatError(f"{walk.cursor.left} bytes follow the end of the data", where=walk.cursor.where)
    if not isinstance(root, dict):
        raise FormatError("it does not hold a map of names to arrays", where=blob.name)
    return root, bytes(walk.cursor.header)


def _flat(node: dict[str, Node], prefix: str, where: str) -> Iterator[tuple[str, _Array]]:
    """Names joined with dots, in the order of the file."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if len(name) > MAX_NAME:
            raise LimitError("length of a tensor name", limit=MAX_NAME, actual=len(name), where=where)
        if isinstance(value, _Array):
            yield name, value
        elif isinstance(value, dict) and _CHUNKED in value:
            yield name, _joined(value, f"{where}: {name[:80]}")
        elif isinstance(value, dict) and (prefix or key != _OPTIMISER):
            yield from _flat(value, f"{name}.", where)


def _joined(node: dict[str, Node], where: str) -> _Array:
    """An array in chunks."""
    extents = list(_sequence(node.get("shape"), where))
    chunks = list(_sequence(node.get("chunks"), where))
    if not chunks or not all(isinstance(extent, int) for extent in extents):
        raise FormatError("an array in chunks without a shape or chunks", where=where)
    spans: list[Span] = []
    for chunk in chunks:
        if not isinstance(chunk, _Array) or chunk.dtype != chunks[0].dtype:  # type: ignore[union-attr]  # checked
            raise FormatError("the chunks of an array are no arrays of one type", where=where)
        spans.extend(chunk.spans)
    assert isinstance(chunks[0], _Array)
    shape = check_shape([extent for extent in extents if isinstance(extent, int)], where)
    return _Array(shape, chunks[0].dtype, tuple(spans))


def _sequence(node: Node, where: str) -> Iterator[Node]:
    """The values of a map with the keys 0, 1, 2..."""
    if not isinstance(node, dict) or set(node) != {str(index) for index in range(len(node))}:
        raise FormatError("a list of an array in chunks is not numbered from 0", where=where)
    yield from (node[str(index)] for index in range(len(node)))


def _tensor(name: str, array: _Array, blob: Blob) -> tuple[TensorInfo, Place]:
    where = f"{blob.name}: {name[:80]}"
    if array.dtype not in _DTYPES:
        raise FormatError(f"the type {array.dtype!r} of an array is unknown", where=where)
    dtype, size = _DTYPES[array.dtype]
    layout = Layout.IN_OUT if name.endswith("kernel") and len(array.shape) == 2 else Layout.UNKNOWN
    info = TensorInfo(name, array.shape, dtype, blob.name, layout, 8.0 * size)
    held = sum(length for _, length in array.spans)
    if held != info.size * size:
        what = f"{held} bytes of values; {array.dtype} {array.shape} needs {info.size * size}"
        raise FormatError(what, where=where)
    if len(array.spans) == 1:
        return info, Place(blob, array.spans[0][0], size if dtype in BLOCK_TYPES else 0)
    joined = JoinedBlob(f"{blob.name}: {name}", blob, array.spans)
    return info, Place(joined, 0, size if dtype in BLOCK_TYPES else 0)
