"""The header of a GGUF file (versions 2 and 3): metadata and tensor table, read in bounded steps.

Format facts: ``docs/gguf.md`` and the type numbers of ``ggml.h``, github.com/ggml-org/ggml. Integers are
little-endian; a string is a uint64 length and bytes; extents are listed innermost first.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.errors import FormatError, LimitError, UnsupportedError
from drupe.readers.interface import MAX_NAME, MAX_RANK, Layout, TensorInfo, check_shape
from drupe.readers.packed import block_type
from drupe.sources.interface import Blob

MAGIC = b"GGUF"
MAX_HEADER = 64 << 20
"""Bytes before the tensor data; a vocabulary of 262,144 pieces with its merges takes about 15 MB."""
MAX_FIELDS = 65_536
"""Metadata entries; real files have fewer than 100."""
MAX_FILE_TENSORS = 32_768
"""Tensors of one file: experts are stacked here, so real files have fewer than 5,000."""
MAX_TEXT = 16 << 20
"""Bytes of all texts of the metadata together; the largest are chat templates of about 100 kB."""
MAX_ELEMENTS = 1_500_000
"""Strings of all arrays together (a nested array counts as 8); the largest known file has 780,000."""
MAX_DEPTH = 4
"""Arrays in arrays."""
MAX_ALIGNMENT = 1 << 20

_FIRST_CHUNK = 64 << 10
_FLOAT32, _BOOL, _STRING, _ARRAY = 6, 7, 8, 9
_SCALARS: Mapping[int, struct.Struct] = {
    kind: struct.Struct("<" + code)
    for kind, code in {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", _FLOAT32: "f", _BOOL: "?",
                       10: "Q", 11: "q", 12: "d"}.items()
}  # fmt: skip
_WIDTHS: Mapping[int, int] = {kind: form.size for kind, form in _SCALARS.items()} | {_STRING: 8, _ARRAY: 12}
"""Type number -> fewest bytes of an element."""
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_TYPES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M",
    30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
_UNREAD_TYPES: Mapping[int, tuple[str, int, int]] = {9: ("Q8_1", 32, 36), 15: ("Q8_K", 256, 292)}
"""Number -> name, values and bytes of a block: listed and checked, not decoded. No file holds them: ggml
makes them of activations while it multiplies."""


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array of the metadata that has been walked but not decoded."""

    kind: int
    """Type number of the elements."""
    count: int
    offset: int
    """Of the first element in the header."""

    @property
    def is_numeric(self) -> bool:
        """Whether the elements are numbers or booleans."""
        return self.kind in _SCALARS


FieldValue = str | int | float | bool | GgufArray


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What stands before the tensor data."""

    fields: dict[str, FieldValue]
    tensors: dict[str, TensorInfo]
    starts: dict[str, int]
    """Name -> first byte in the file."""
    raw: bytes


class _Cursor:
    """Reads front to back, fetching the file in growing chunks; believes no length."""

    __slots__ = ("_blob", "_elements", "_texts", "data", "limit", "position")

    def __init__(self, blob: Blob) -> None:
        self._blob = blob
        self._elements = MAX_ELEMENTS
        self._texts = MAX_TEXT
        self.limit = min(blob.size, MAX_HEADER)
        self.data = bytearray()
        self.position = 0

    @property
    def where(self) -> str:
        """The file and the position, for errors."""
        return f"{self._blob.name}: byte {self.position}"

    def need(self, length: int) -> int:
        """Make ``length`` more bytes present and step over them; returns where they start."""
        start, stop = self.position, self.position + length
        if stop > len(self.data):
            self._fetch(stop)
        self.position = stop
        return start

    def _fetch(self, stop: int) -> None:
        if stop > self.limit:
            raise LimitError("header bytes", limit=self.limit, actual=stop, where=self.where)
        have = len(self.data)
        target = min(self.limit, max(stop, 2 * have, _FIRST_CHUNK))
        self.data += self._blob.read(have, target - have)

    def number(self, form: struct.Struct) -> int:
        """One unsigned integer."""
        value: int = form.unpack_from(self.data, self.need(form.size))[0]
        return value

    def count(self, what: str, limit: int, least: int) -> int:
        """A uint64 count of things that take at least ``least`` bytes each: checked before any is read."""
        value = self.number(_U64)
        limit = min(limit, (self.limit - self.position) // least)
        if value > limit:
            raise LimitError(f"number of {what}", limit=limit, actual=value, where=self.where)
        return value

    def text(self, what: str, limit: int) -> bytes:
        """The bytes of one string."""
        length = self.count(f"bytes of {what}", limit, 1)
        start = self.need(length)
        return bytes(self.data[start : start + length])

    def name(self, what: str) -> str:
        """A string that must be short and UTF-8."""
        try:
            return self.text(what, MAX_NAME).decode()
        except UnicodeDecodeError:
            raise FormatError(f"{what} is not UTF-8", where=self.where) from None

    def value_text(self) -> str:
        """A text of the metadata, within the budget of all of them."""
        raw = self.text("metadata texts", self._texts)
        self._texts -= len(raw)
        return _lenient(raw)

    def charge(self, elements: int) -> None:
        """Count elements that cost a step each."""
        self._elements -= elements
        if self._elements < 0:
            actual = MAX_ELEMENTS - self._elements
            raise LimitError("strings in arrays", limit=MAX_ELEMENTS, actual=actual, where=self.where)

    def skip_strings(self, count: int) -> None:
        """Step over an array of strings."""
        position, loaded, unpack = self.position, len(self.data), _U64.unpack_from
        for _ in range(count):
            if position + 8 > loaded:
                self._fetch(position + 8)
                loaded = len(self.data)
            position += 8 + unpack(self.data, position)[0]
        self.need(position - self.position)


def read_header(blob: Blob) -> GgufHeader:
    """Parse everything before the tensor data. Raises FormatError, LimitError or UnsupportedError."""
    cursor = _Cursor(blob)
    _check_version(cursor)
    tensor_count = cursor.count("tensors", MAX_FILE_TENSORS, 24)
    fields = _read_fields(cursor, cursor.count("metadata entries", MAX_FIELDS, 13))
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, tuple[int, int]] = {}
    for _ in range(tensor_count):
        info, place = _read_tensor(cursor, blob.name)
        if info.name in tensors:
            raise FormatError(f"duplicate tensor {info.name[:80]!r}", where=cursor.where)
        tensors[info.name], places[info.name] = info, place
    alignment = _alignment(fields.get("general.alignment", 32), blob.name)
    base = -(-cursor.position // alignment) * alignment
    _check_places(places, base, alignment, blob)
    starts = {name: base + offset for name, (offset, _) in places.items()}
    return GgufHeader(fields, tensors, starts, bytes(memoryview(cursor.data)[: cursor.position]))


def decode_array(header: bytes, array: GgufArray) -> list[str] | NDArray[np.generic]:
    """The elements of an array that :func:`read_header` has walked; not for arrays of arrays."""
    if array.kind == _STRING:
        return _strings(header, array.offset, array.count)
    if array.kind not in _SCALARS:
        raise UnsupportedError("an array of arrays in the metadata")
    if array.kind == _BOOL:
        return np.not_equal(np.frombuffer(header, np.uint8, array.count, array.offset), 0)
    return np.frombuffer(header, _SCALARS[array.kind].format, array.count, array.offset)


def _check_version(cursor: _Cursor) -> None:
    start = cursor.need(4)
    if cursor.data[start : start + 4] != MAGIC:
        raise FormatError("does not start with the magic bytes GGUF", where=cursor.where)
    version = cursor.number(_U32)
    if version and not version & 0xFFFF:
        raise UnsupportedError("big-endian GGUF", where=cursor.where)
    if version not in (2, 3):
        raise UnsupportedError(f"GGUF version {version}; versions 2 and 3 are read", where=cursor.where)


def _read_fields(cursor: _Cursor, count: int) -> dict[str, FieldValue]:
    fields: dict[str, FieldValue] = {}
    for _ in range(count):
        key = cursor.name("a metadata key")
        if key in fields:
            raise FormatError(f"duplicate metadata key {key[:80]!r}", where=cursor.where)
        fields[key] = _read_value(cursor, cursor.number(_U32))
    return fields


def _read_value(cursor: _Cursor, kind: int) -> FieldValue:
    if kind == _STRING:
        return cursor.value_text()
    if kind == _ARRAY:
        return _read_array(cursor, 1)
    form = _SCALARS.get(kind)
    if form is None:
        raise FormatError(f"unknown metadata type {kind}", where=cursor.where)
    value: int | float | bool = form.unpack_from(cursor.data, cursor.need(form.size))[0]
    # the shortest decimal of a float32: 1e-05, as the config said, not 9.999999747378752e-06
    return float(str(np.float32(value))) if kind == _FLOAT32 else value


def _read_array(cursor: _Cursor, depth: int) -> GgufArray:
    if depth > MAX_DEPTH:
        raise LimitError("depth of nested arrays", limit=MAX_DEPTH, actual=depth, where=cursor.where)
    kind = cursor.number(_U32)
    if kind not in _WIDTHS:
        raise FormatError(f"unknown type {kind} of array elements", where=cursor.where)
    count = cursor.count("array elements", MAX_HEADER, _WIDTHS[kind])
    array = GgufArray(kind, count, cursor.position)
    if kind in _SCALARS:
        cursor.need(count * _WIDTHS[kind])
    elif kind == _STRING:
        cursor.charge(count)
        cursor.skip_strings(count)
    else:
        cursor.charge(8 * count)
        for _ in range(count):
            _read_array(cursor, depth + 1)
    return array


def _lenient(raw: bytes) -> str:
    """Texts need not be UTF-8: a vocabulary may hold single bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _strings(header: bytes, position: int, count: int) -> list[str]:
    """An array of strings whose bounds have been checked."""
    result, unpack = [], _U64.unpack_from
    for _ in range(count):
        start = position + 8
        position = start + unpack(header, position)[0]
        result.append(_lenient(header[start:position]))
    return result


def _read_tensor(cursor: _Cursor, file: str) -> tuple[TensorInfo, tuple[int, int]]:
    """One entry of the tensor table; its offset and size in the data."""
    name = cursor.name("a tensor name")
    where = f"{cursor.where}: {name[:80]!r}"
    rank = cursor.number(_U32)
    if rank > MAX_RANK:
        raise LimitError("tensor rank", limit=MAX_RANK, actual=rank, where=where)
    extents = struct.unpack_from(f"<{rank}Q", cursor.data, cursor.need(8 * rank))
    shape = check_shape(extents[::-1], where)
    dtype, values, size = _block(cursor.number(_U32))
    if values > 1 and (not shape or shape[-1] % values):
        raise FormatError(f"its rows are no whole {dtype} blocks of {values} values", where=where)
    quantised = values > 1 or not size
    info = TensorInfo(name, shape, dtype, file, Layout.OUT_IN, 8.0 * size / values, quantised)
    return info, (cursor.number(_U64), info.size // values * size)


def _block(kind: int) -> tuple[str, int, int]:
    """Name, values and bytes of a block; an unknown type has no known size."""
    block = block_type(_TYPES[kind]) if kind in _TYPES else None
    if block:
        return _TYPES[kind], block.values, block.bytes
    return _UNREAD_TYPES.get(kind, (f"TYPE_{kind}", 1, 0))


def _alignment(value: FieldValue, where: str) -> int:
    if not isinstance(value, int) or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        what = f"general.alignment is no power of two up to {MAX_ALIGNMENT}: {str(value)[:40]}"
        raise FormatError(what, where=where)
    return value


def _check_places(places: Mapping[str, tuple[int, int]], base: int, alignment: int, blob: Blob) -> None:
    """Refuse tensors outside of the file, unaligned or overlapping."""
    end, previous = 0, ""
    for name, (offset, size) in sorted(places.items(), key=lambda item: item[1]):
        where = f"{blob.name}: tensor {name[:80]!r}"
        stop = base + offset + size
        if offset % alignment:
            raise FormatError(f"offset {offset} is no multiple of {alignment}", where=where)
        if stop > blob.size:
            raise LimitError("end of the tensor in the file", limit=blob.size, actual=stop, where=where)
        if size and offset < end:
            raise FormatError(f"overlaps with tensor {previous[:80]!r}", where=where)
        if size:
            end, previous = offset + size, name
