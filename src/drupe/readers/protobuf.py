"""Protocol-buffers wire format, walked without a schema and without recursion.

Two entries, one walk: :func:`iter_fields` over bytes in memory, :func:`iter_spans` over a file through a
small buffer, so that payloads are skipped by their length and never read. Every length is checked against
the enclosing message before it is used. Groups (deprecated since 2008) are refused.

Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from drupe.errors import FormatError, LimitError
from drupe.sources.interface import Blob

MAX_FIELDS = 1_000_000
"""Fields visited in one message unless the caller says otherwise: about 1.3 s of work."""

_MAX_VARINT = 10
_LONGEST_HEADER = 2 * _MAX_VARINT
_SMALL_CHUNK = 4 << 10
_LARGE_CHUNK = 256 << 10


class WireType(IntEnum):
    """How the value of a field is written."""

    VARINT = 0
    FIXED64 = 1
    LENGTH = 2
    FIXED32 = 5


_VARINT, _LENGTH = int(WireType.VARINT), int(WireType.LENGTH)
_WIRE_TYPES = {int(kind): kind for kind in WireType}
_FIXED_WIDTHS = {int(WireType.FIXED64): 8, int(WireType.FIXED32): 4}


class Field(NamedTuple):
    """One field of a message in memory; ``value`` holds bits for numbers and bytes for the rest."""

    number: int
    wire_type: WireType
    value: int | memoryview


class SpanField(NamedTuple):
    """One field of a message in a file; ``bits`` for numbers, ``[start, stop)`` for length-delimited ones."""

    number: int
    wire_type: WireType
    bits: int
    start: int
    stop: int


def iter_fields(buffer: memoryview, where: str) -> Iterator[Field]:
    """The fields of a message in memory, in file order; ``where`` names the file in errors.

    >>> [(field.number, bytes(field.value)) for field in iter_fields(memoryview(b"\\x0a\\x02hi"), "x")]
    [(1, b'hi')]
    """
    view = buffer.cast("B") if buffer.format != "B" or buffer.ndim != 1 else buffer
    for number, wire_type, bits, start, stop in iter_spans(_Memory(view, where), 0, len(view)):
        yield Field(number, wire_type, view[start:stop] if wire_type == _LENGTH else bits)


def signed(bits: int) -> int:
    """A varint read as int32 or int64 (two's complement in 64 bits).

    >>> signed((1 << 64) - 3), signed(7)
    (-3, 7)
    """
    return bits - (1 << 64) if bits >> 63 else bits


def float32(bits: int) -> float:
    """The value of a FIXED32 field read as float.

    >>> float32(0x3F800000)
    1.0
    """
    value: float = struct.unpack("<f", bits.to_bytes(4, "little"))[0]
    return value


def text(value: memoryview | bytes, where: str, limit: int) -> str:
    """A string field; raises when it is longer than ``limit`` bytes or not UTF-8."""
    if len(value) > limit:
        raise LimitError("bytes of a string", limit=limit, actual=len(value), where=where)
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"a string is not UTF-8: {bytes(value[:40])!r}", where=where) from None


class _Memory:
    """A message that is in memory already: a window that never moves."""

    __slots__ = ("_view", "fields", "max_fields", "where")

    def __init__(self, view: memoryview, where: str) -> None:
        self._view = view
        self.where = where
        self.max_fields = MAX_FIELDS
        self.fields = 0

    def at(self, position: int) -> tuple[memoryview, int]:
        return self._view, 0


class BlobCursor:
    """A window that moves over a file: small after a jump, growing while the walk is sequential."""

    __slots__ = ("_base", "_blob", "_chunk", "_view", "fields", "max_fields", "where")

    def __init__(self, blob: Blob, max_fields: int = MAX_FIELDS) -> None:
        self._blob = blob
        self._view = memoryview(b"")
        self._base = 0
        self._chunk = _SMALL_CHUNK
        self.where = blob.name
        self.max_fields = max_fields
        self.fields = 0

    def at(self, position: int) -> tuple[memoryview, int]:
        """The window and its offset; a whole field header at ``position`` lies in it, if in the file."""
        end = self._base + len(self._view)
        if not (self._base <= position and (position + _LONGEST_HEADER <= end or end == self._blob.size)):
            self._fill(position, _LONGEST_HEADER)
        return self._view, self._base

    def read(self, start: int, stop: int) -> memoryview:
        """The bytes ``[start, stop)``, through the window when they are few."""
        if stop - start > _LARGE_CHUNK:
            return memoryview(self._blob.read(start, stop - start))
        if not (self._base <= start and stop <= self._base + len(self._view)):
            self._fill(start, stop - start)
        return self._view[start - self._base : stop - self._base]

    def _fill(self, position: int, least: int) -> None:
        gap = position - self._base - len(self._view)
        is_sequential = self._base <= position and gap < _SMALL_CHUNK
        self._chunk = min(2 * self._chunk, _LARGE_CHUNK) if is_sequential else _SMALL_CHUNK
        length = min(max(self._chunk, least), self._blob.size - position)
        self._view = memoryview(self._blob.read(position, length))
        self._base = position


def iter_spans(cursor: _Memory | BlobCursor, start: int, stop: int) -> Iterator[SpanField]:
    """The fields of the message at bytes ``[start, stop)``; payloads are skipped, not read.

    The cursor may be used for other messages between two fields. Raises FormatError on damage and LimitError
    when more than ``max_fields`` fields were visited through this cursor.
    """
    position = start
    while position < stop:
        _count_field(cursor)
        view, base = cursor.at(position)
        limit = min(len(view), stop - base)
        tag, local = _varint(view, position - base, limit, base, cursor.where)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise FormatError(f"field number {number} at byte {position} is not valid", where=cursor.where)
        if kind == _LENGTH:
            length, local = _varint(view, local, limit, base, cursor.where)
            begin, bits = base + local, 0
            position = begin + length
            if position > stop:
                what = f"field {number} claims {length} bytes at byte {begin}, {stop - begin} are left"
                raise FormatError(what, where=cursor.where)
        elif kind == _VARINT:
            bits, local = _varint(view, local, limit, base, cursor.where)
            begin = position = base + local
        else:
            bits, begin, position = _fixed(view, local, limit, base, kind, cursor.where)
        yield SpanField(number, _WIRE_TYPES[kind], bits, begin, position)


def _count_field(cursor: _Memory | BlobCursor) -> None:
    cursor.fields += 1
    if cursor.fields > cursor.max_fields:
        raise LimitError(
            "fields of a message", limit=cursor.max_fields, actual=cursor.fields, where=cursor.where
        )


def _fixed(
    view: memoryview, local: int, limit: int, base: int, kind: int, where: str
) -> tuple[int, int, int]:
    """Bits, start and stop of a 4 or 8 byte number."""
    width = _FIXED_WIDTHS.get(kind)
    if width is None:
        raise FormatError(f"wire type {kind} before byte {base + local} is not supported", where=where)
    if local + width > limit:
        raise FormatError(f"the message ends within the number at byte {base + local}", where=where)
    bits = int.from_bytes(view[local : local + width], "little")
    return bits, base + local, base + local + width


def _varint(view: memoryview, position: int, limit: int, base: int, where: str) -> tuple[int, int]:
    """A base-128 number of at most 64 bits and the position after it."""
    if position < limit and view[position] < 0x80:  # most numbers are one byte
        return view[position], position + 1
    value = shift = 0
    for index in range(position, min(position + _MAX_VARINT, limit)):
        byte = view[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise FormatError(f"a number at byte {base + position} exceeds 64 bits", where=where)
            return value, index + 1
        shift += 7
    if limit - position >= _MAX_VARINT:
        raise FormatError(f"a number at byte {base + position} has more than 10 bytes", where=where)
    raise FormatError(f"the message ends within the number at byte {base + position}", where=where)
