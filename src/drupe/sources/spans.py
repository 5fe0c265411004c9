"""Arithmetic on byte spans: bounds, and merging near ones into few reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from drupe.errors import FormatError
from drupe.sources.interface import Span


def check_span(start: int, length: int, size: int, where: str) -> None:
    """Raise FormatError unless ``[start, start + length)`` lies inside a file of ``size`` bytes."""
    if start < 0 or length < 0 or start + length > size:
        raise FormatError(f"{length} bytes at {start} asked for, the file has {size}", where=where)


def coalesce(spans: Iterable[Span], gap: int, cap: int) -> list[tuple[int, int]]:
    """Sorted ``(start, stop)`` ranges that cover all spans, each span whole inside one range.

    Neighbours no more than ``gap`` bytes apart are joined as long as the joined range stays within ``cap``;
    a single span longer than ``cap`` stays whole.

    >>> coalesce([(40, 10), (0, 10), (15, 5), (12, 0)], gap=5, cap=100)
    [(0, 20), (40, 50)]
    """
    ranges: list[tuple[int, int]] = []
    for start, length in sorted(span for span in spans if span[1] > 0):
        stop = start + length
        if ranges:
            first, last = ranges[-1]
            joined = max(last, stop)
            if stop <= last or (start <= last + gap and joined - first <= cap):
                ranges[-1] = (first, joined)
                continue
        ranges.append((start, stop))
    return ranges


def split(start: int, stop: int, cap: int) -> Iterator[tuple[int, int]]:
    """The range in consecutive pieces of at most ``cap`` bytes.

    >>> list(split(0, 10, 4))
    [(0, 4), (4, 8), (8, 10)]
    """
    for first in range(start, stop, cap):
        yield first, min(first + cap, stop)


def carve(spans: Sequence[Span], ranges: Sequence[tuple[int, int]], contents: Sequence[bytes]) -> list[bytes]:
    """The bytes of each span, in the given order, from the ranges of :func:`coalesce` and their contents."""
    found: dict[Span, bytes] = {}
    index = 0
    for span in sorted(span for span in set(spans) if span[1] > 0):
        start, length = span
        while not (ranges[index][0] <= start and start + length <= ranges[index][1]):
            index += 1
        offset = start - ranges[index][0]
        content = contents[index]
        whole = offset == 0 and length == len(content)
        found[span] = content if whole else content[offset : offset + length]
    return [found[span] if span[1] > 0 else b"" for span in spans]
