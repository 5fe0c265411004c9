"""Random access to a file that is far away: few requests, near spans joined, the beginning kept in memory."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from drupe.sources.cache import Spans
from drupe.sources.interface import Meter, Span
from drupe.sources.spans import carve, check_span, coalesce, split
from drupe.sources.transfer import Limits


class WindowedBlob(ABC):
    """A blob over :meth:`_fetch_pieces`. What ``_kept`` holds on disk needs no request."""

    def __init__(self, name: str, limits: Limits, meter: Meter) -> None:
        self._name = name
        self._limits = limits
        self._meter = meter
        self._kept: Spans | None = None
        self._head = b""
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """Path relative to the root of its tree."""
        return self._name

    @property
    @abstractmethod
    def size(self) -> int:
        """Length in bytes."""

    @abstractmethod
    def _open(self) -> None:
        """Whatever must be known before a read."""

    @abstractmethod
    def _fetch_pieces(self, pieces: Sequence[tuple[int, int]]) -> list[bytes]:
        """Ranges of bounded length, each exactly, with what is kept on disk spared."""

    def read(self, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``. Reading on from the beginning gets ahead."""
        check_span(start, length, self.size, self._name)
        if length == 0:
            return b""
        self._open()
        stop = start + length
        with self._lock:
            if start <= len(self._head) < stop <= self._limits.kept:
                self._grow(stop)
            if stop <= len(self._head):
                return self._head[start:stop]
        return self._fetch_all([(start, length)])[0]

    def read_many(self, spans: Sequence[Span]) -> list[bytes]:
        """Several spans in the given order, near ones in one request, several requests at once."""
        for start, length in spans:
            check_span(start, length, self.size, self._name)
        if not any(length for _, length in spans):
            return [b""] * len(spans)
        self._open()
        return self._fetch_all(spans)

    def _fetch_all(self, spans: Sequence[Span]) -> list[bytes]:
        found = dict(self._at_hand(spans))
        remote = [span for span in spans if span not in found]
        ranges = coalesce(remote, self._limits.gap, self._limits.request)
        pieces = [list(split(start, stop, self._limits.request)) for start, stop in ranges]
        flat = [piece for group in pieces for piece in group]
        fetched = iter(self._fetch_pieces(flat) if flat else [])
        contents = [b"".join([next(fetched) for _ in group]) for group in pieces]
        found |= zip(remote, carve(remote, ranges, contents), strict=True)
        return [found[span] for span in spans]

    def _at_hand(self, spans: Sequence[Span]) -> Iterator[tuple[Span, bytes]]:
        """The spans that need no request, in the order of the file."""
        for start, length in sorted(set(spans)):
            if start + length <= len(self._head):
                yield (start, length), self._head[start : start + length]
            elif (content := self._recall(start, start + length)) is not None:
                yield (start, length), content

    def _recall(self, start: int, stop: int) -> bytes | None:
        content = self._kept.get(start, stop) if self._kept else None
        if content:
            self._meter.add(len(content))
        return content

    def _grow(self, stop: int) -> None:
        """Extend the kept beginning at least twofold: a parser that reads on asks log(n) times, not n."""
        known = len(self._head)
        limits = self._limits
        further = max(stop, 2 * known, limits.window)
        goal = min(further, max(stop, known + limits.request), self.size, limits.kept)
        self._head += b"".join(self._fetch_pieces(list(split(known, goal, limits.request))))
