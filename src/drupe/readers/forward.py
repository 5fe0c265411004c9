"""A file read front to back in small pieces, its large contents stepped over: for formats without a directory."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drupe.errors import FormatError, LimitError
from drupe.sources.interface import Blob, Span

_CHUNK = 1024
"""Read at once after a jump: what stands between two tensors is shorter."""
MAX_HEADER = 64 << 20
"""Bytes that are taken, not skipped; a tensor costs about 100."""


class Forward:
    """A position in a file that only moves forwards; believes no length."""

    __slots__ = ("_base", "_blob", "_chunk", "_data", "header", "position")

    def __init__(self, blob: Blob) -> None:
        self._blob = blob
        self._data = b""
        self._base = 0
        self._chunk = _CHUNK
        self.position = 0
        self.header = bytearray()
        """Everything that was taken: the file without its contents, for digests and evidence."""

    @property
    def where(self) -> str:
        """The file and the position, for errors."""
        return f"{self._blob.name}: byte {self.position}"

    @property
    def left(self) -> int:
        """Bytes to the end of the file."""
        return self._blob.size - self.position

    def take(self, length: int) -> bytes:
        """The next bytes, which belong to the header."""
        self._check(length)
        if len(self.header) + length > MAX_HEADER:
            actual = len(self.header) + length
            raise LimitError("header bytes", limit=MAX_HEADER, actual=actual, where=self.where)
        start = self.position - self._base
        if not 0 <= start <= start + length <= len(self._data):
            self._fill(length)
            start = 0
        piece = self._data[start : start + length]
        self.position += length
        self.header += piece
        return piece

    def number(self, form: struct.Struct) -> int:
        """One number of the header."""
        value: int = form.unpack(self.take(form.size))[0]
        return value

    def skip(self, length: int) -> int:
        """Step over content; returns where it starts."""
        self._check(length)
        start = self.position
        self.position += length
        return start

    def _check(self, length: int) -> None:
        if length > self.left:
            what = f"{length} bytes are announced, {self.left} are left"
            raise FormatError(what, where=self.where)

    def _fill(self, length: int) -> None:
        """Twice as much each time while nothing is skipped."""
        sequential = self.position - self._base <= len(self._data)
        self._chunk = min(2 * self._chunk, 1 << 20) if sequential else _CHUNK
        self._data = self._blob.read(self.position, min(max(length, self._chunk), self.left))
        self._base = self.position


@dataclass(frozen=True, slots=True)
class JoinedBlob:
    """Stretches of one file, one behind the other."""

    name: str
    blob: Blob
    spans: tuple[Span, ...]

    @property
    def size(self) -> int:
        """Length of all stretches."""
        return sum(length for _, length in self.spans)

    def read(self, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``."""
        return self.read_many([(start, length)])[0]

    def read_many(self, spans: Sequence[Span]) -> list[bytes]:
        """Several spans in the given order, in one read of the file."""
        pieces = [list(self._pieces(start, length)) for start, length in spans]
        parts = iter(self.blob.read_many([piece for group in pieces for piece in group]))
        return [b"".join([next(parts) for _ in group]) for group in pieces]

    def _pieces(self, start: int, length: int) -> Iterator[Span]:
        if start < 0 or length < 0 or start + length > self.size:
            raise FormatError(f"bytes {start}+{length} lie outside of {self.size}", where=self.name)
        for begin, extent in self.spans:
            first, last = max(start, 0), min(start + length, extent)
            if first < last:
                yield begin + first, last - first
            start -= extent
