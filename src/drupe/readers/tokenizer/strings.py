"""Many byte strings in one buffer: a vocabulary of a million pieces costs its text and eight bytes a piece.

As objects of their own they would take ten times that, and half of the time goes into making them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from io import BytesIO
from itertools import islice
from operator import eq
from typing import overload

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.intp] | NDArray[np.uint32]
"""Positions in a sequence of strings."""
Sizes = NDArray[np.uint32]

CHUNK = 8192
"""Strings that are objects at one time."""
_HASH_BYTES = 8
_WORD = 8
_KEPT = np.array([(1 << 64) - (1 << 64 - 8 * kept) for kept in range(_WORD + 1)], np.uint64)
"""Masks of the leading 0 to 8 bytes of a word."""
_STEP = 1 << 16


class Strings(Sequence[bytes]):
    """Byte strings as stretches of a shared ``buffer``; a selection or another order of them copies no text.

    >>> strings = Strings.of([b"the", b"of"])
    >>> list(strings), strings[1], list(strings.take(strings.order()))
    ([b'the', b'of'], b'of', [b'of', b'the'])
    """

    __slots__ = ("buffer", "lengths", "starts")

    def __init__(self, buffer: bytes, starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> None:
        """``starts`` and ``lengths`` in bytes; a buffer has less than 4 GiB."""
        self.buffer = buffer
        self.starts: Sizes = starts.astype(np.uint32, copy=False)
        self.lengths: Sizes = lengths.astype(np.uint32, copy=False)

    @classmethod
    def of(cls, texts: Iterable[bytes]) -> Strings:
        """The same strings, copied into one buffer."""
        source, lengths, buffer = iter(texts), array("I"), BytesIO()
        while chunk := list(islice(source, CHUNK)):
            lengths.extend(map(len, chunk))
            buffer.write(b"".join(chunk))
        return cls.packed(buffer.getvalue(), np.array(lengths, np.uint32))

    @classmethod
    def packed(cls, buffer: bytes, lengths: Sizes) -> Strings:
        """Strings that lie in the buffer one after the other."""
        return cls(buffer, np.cumsum(lengths, dtype=np.uint32) - lengths, lengths)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Strings: ...
    def __getitem__(self, index: int | slice) -> bytes | Strings:
        if isinstance(index, slice):
            return Strings(self.buffer, self.starts[index], self.lengths[index])
        start = int(self.starts[index])
        return self.buffer[start : start + int(self.lengths[index])]

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks():
            yield from chunk

    def chunks(self) -> Iterator[list[bytes]]:
        """All strings in order, ``CHUNK`` of them at a time."""
        buffer = self.buffer
        for first in range(0, len(self), CHUNK):
            starts = self.starts[first : first + CHUNK]
            stops = starts + self.lengths[first : first + CHUNK]
            yield [buffer[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]

    def take(self, rows: Rows | NDArray[np.bool_]) -> Strings:
        """The strings at these positions, in that order, or those where a mask is set."""
        return Strings(self.buffer, self.starts[rows], self.lengths[rows])

    def __add__(self, other: Strings) -> Strings:
        """These strings, then the others, over one buffer."""
        if not len(other):
            return self
        starts = np.concatenate([self.starts, other.starts + np.uint32(len(self.buffer))])
        return Strings(self.buffer + other.buffer, starts, np.concatenate([self.lengths, other.lengths]))

    def starts_with(self, prefix: bytes) -> NDArray[np.bool_]:
        """Which strings start with these bytes."""
        data = np.frombuffer(self.buffer, np.uint8)
        rows = np.flatnonzero(self.lengths >= len(prefix))
        for offset, byte in enumerate(prefix):
            rows = rows[data[self.starts[rows] + np.uint32(offset)] == byte]
        found = np.zeros(len(self), np.bool_)
        found[rows] = True
        return found

    def find(self, text: bytes) -> Rows:
        """Positions of the strings that equal ``text``."""
        return np.flatnonzero(self.starts_with(text) & (self.lengths == len(text)))

    def spaced(self) -> Strings:
        """Each string with a space before it."""
        buffer = BytesIO()
        for chunk in self.chunks():
            buffer.write(b" ")
            buffer.write(b" ".join(chunk))
        return Strings.packed(buffer.getvalue(), self.lengths + np.uint32(1))

    def equal(self, other: Strings) -> NDArray[np.bool_]:
        """Which strings equal those of the other at the same position."""
        found = np.ones(len(self), np.bool_)
        for first, mine, theirs in zip(
            range(0, len(self), CHUNK), self.chunks(), other.chunks(), strict=True
        ):
            if mine != theirs:
                found[first : first + CHUNK] = list(map(eq, mine, theirs))
        return found

    def hashes(self) -> NDArray[np.uint64]:
        """blake2b of eight bytes of each string, read as a big-endian number."""
        found = np.empty(len(self), np.uint64)
        for first, chunk in zip(range(0, len(self), CHUNK), self.chunks(), strict=True):
            digests = [blake2b(text, digest_size=_HASH_BYTES).digest() for text in chunk]
            found[first : first + CHUNK] = np.frombuffer(b"".join(digests), ">u8")
        return found

    def order(self) -> Rows:
        """Positions in the order of the bytes, as ``sorted`` has it; equal strings in their own order.

        Sorted by eight bytes at a time, each time only where all bytes so far are equal.
        """
        data = self.buffer + bytes(_WORD)
        words = np.ndarray((len(self.buffer) + 1,), ">u8", data, strides=(1,))  # from each byte on
        keys = self._words(words, 0, np.arange(len(self)))
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        opens = np.append(True, keys[1:] != keys[:-1])  # whether a place differs from the one before it
        del keys
        depth = 0
        while len(places := _tied(opens)):
            depth += _WORD
            rows, group = order[places], np.cumsum(opens[places])
            # The length tells an end from zero bytes, and who goes on beyond this word from who does not.
            columns = (
                np.minimum(self.lengths[rows], depth + _WORD + 1),
                self._words(words, depth, rows),
                group,
            )
            inner = np.lexsort(columns)
            order[places] = rows[inner]
            known, keys, group = (column[inner] for column in columns)
            differs = (known[1:] != known[:-1]) | (keys[1:] != keys[:-1]) | (group[1:] != group[:-1])
            opens[places[1:]] = differs | (known[1:] <= depth + _WORD)
        return order

    def _words(self, words: NDArray[np.uint64], depth: int, rows: Rows) -> NDArray[np.uint64]:
        """Eight bytes of each string from ``depth`` on as a big-endian number, zeros behind its end."""
        found = np.empty(len(rows), np.uint64)
        for first in range(0, len(rows), _STEP):
            chosen = rows[first : first + _STEP]
            left = np.clip(self.lengths[chosen].astype(np.int64) - depth, 0, _WORD)
            place = np.where(left > 0, self.starts[chosen] + np.uint32(depth), np.uint32(0))
            found[first : first + _STEP] = words[place] & _KEPT[left]
        return found


def _tied(opens: NDArray[np.bool_]) -> Rows:
    """Places in a group of two or more."""
    alone = opens & np.append(opens[1:], True)
    return np.flatnonzero(~alone)
