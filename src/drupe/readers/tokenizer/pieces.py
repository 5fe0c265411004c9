"""Canonical piece -> id: a mapping for lookups, and its columns for whoever needs all of them."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from drupe.readers.tokenizer.strings import CHUNK, Rows, Strings


class Pieces(Mapping[bytes, int]):
    """Distinct pieces in the order of (id, piece), their ids, and the 8-byte blake2b of each.

    ``by_hash`` holds the rows in the order of the hashes.
    Lookups go through the hashes and then compare the bytes: no two pieces are ever taken for each other.

    >>> pieces, duplicates = Pieces.of(Strings.of([b"the", b"of", b"the"]), np.array([7, 5, 9]))
    >>> dict(pieces), duplicates
    ({b'of': 5, b'the': 7}, 1)
    """

    __slots__ = ("by_hash", "hashes", "ids", "strings")

    def __init__(self, strings: Strings, ids: NDArray[np.uint32], hashes: NDArray[np.uint64]) -> None:
        """Parallel columns; use :meth:`of` for anything that is not in order or may repeat itself."""
        self.strings, self.ids, self.hashes = strings, ids, hashes
        self.by_hash = np.argsort(hashes, kind="stable").astype(np.uint32)

    @classmethod
    def of(cls, strings: Strings, ids: NDArray[np.integer]) -> tuple[Pieces, int]:
        """The pieces, each with its lowest id, and how many rows that left out."""
        order = order_by_id(strings, ids)
        strings, numbers = strings.take(order), ids[order].astype(np.uint32)
        pieces = cls(strings, numbers, strings.hashes())
        repeated = pieces._repeated()
        if not repeated.any():
            return pieces, 0
        kept = ~repeated
        return cls(strings.take(kept), numbers[kept], pieces.hashes[kept]), int(np.count_nonzero(repeated))

    def __getitem__(self, piece: bytes) -> int:
        wanted = Strings.of([piece]).hashes()
        bounds = (
            np.searchsorted(self.hashes, wanted, side, sorter=self.by_hash)[0] for side in ("left", "right")
        )
        for row in self.by_hash[slice(*bounds)]:
            if self.strings[row] == piece:
                return int(self.ids[row])
        raise KeyError(piece)

    def chunks(self) -> Iterator[tuple[list[int], list[bytes]]]:
        """Ids and pieces in order, some at a time."""
        for first, pieces in zip(range(0, len(self), CHUNK), self.strings.chunks(), strict=True):
            yield self.ids[first : first + CHUNK].tolist(), pieces

    def items(self) -> ItemsView[bytes, int]:
        """Pieces with their ids, without a lookup for each."""
        return _Items(self)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.strings)

    def __len__(self) -> int:
        return len(self.strings)

    def find(self, wanted: Strings) -> Rows:
        """The row of each wanted string, -1 where it is no piece."""
        hashes = wanted.hashes()
        return self._find(wanted, hashes, np.argsort(hashes))

    def find_all(self, other: Pieces) -> Rows:
        """The row of each piece of the other table, -1 where it is no piece here."""
        return self._find(other.strings, other.hashes, other.by_hash)

    def _find(self, wanted: Strings, hashes: NDArray[np.uint64], by_hash: Rows) -> Rows:
        ordered = self.hashes[self.by_hash]
        found = np.full(len(wanted), -1, np.intp)
        pending, places = np.arange(len(wanted)), np.empty(len(wanted), np.intp)
        places[by_hash] = np.searchsorted(ordered, hashes[by_hash])  # sorted: near to each other in memory
        while len(pending):  # once, and again for each further piece of the same hash
            inside = places < len(ordered)
            pending, places = pending[inside], places[inside]
            alike = ordered[places] == hashes[pending]
            pending, places = pending[alike], places[alike]
            rows = self.by_hash[places]
            same = self.strings.take(rows).equal(wanted.take(pending))
            found[pending[same]] = rows[same]
            pending, places = pending[~same], places[~same] + 1
        return found

    def _repeated(self) -> NDArray[np.bool_]:
        """Which rows have an equal piece further up."""
        found = np.zeros(len(self), np.bool_)
        ordered = self.hashes[self.by_hash]
        alike = ordered[1:] == ordered[:-1]
        rows = self.by_hash[1:][alike]
        found[rows] = self.strings.take(rows).equal(self.strings.take(self.by_hash[:-1][alike]))
        clashes = self.hashes[rows[~found[rows]]]  # unequal pieces of one hash may stand between equal ones
        seen: set[bytes] = set()
        for row in np.flatnonzero(np.isin(self.hashes, clashes)) if len(clashes) else ():
            piece = self.strings[int(row)]
            found[row] = piece in seen
            seen.add(piece)
        return found


class _Items(ItemsView[bytes, int]):
    _mapping: Pieces

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        for ids, pieces in self._mapping.chunks():
            yield from zip(pieces, ids, strict=True)


def order_by_id(strings: Strings, ids: NDArray[np.integer]) -> Rows:
    """Positions in the order of (id, bytes)."""
    order: Rows = np.argsort(ids, kind="stable")
    if (ids[order[1:]] == ids[order[:-1]]).any():
        by_bytes = strings.order()
        order = by_bytes[np.argsort(ids[by_bytes], kind="stable")]
    return order
