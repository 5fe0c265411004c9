from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from drupe.sources.spans import carve, coalesce, split

SPANS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 100)), max_size=20)
CONTENT = bytes(index * 7 % 251 for index in range(600))


@given(SPANS, st.integers(0, 60), st.integers(1, 200))
def test_ranges_cover_each_span_whole_and_respect_gap_and_cap(
    spans: list[tuple[int, int]], gap: int, cap: int
) -> None:
    ranges = coalesce(spans, gap, cap)
    wanted = {byte for start, length in spans for byte in range(start, start + length)}
    for start, stop in ranges:
        idle = 0
        for byte in range(start, stop):
            idle = 0 if byte in wanted else idle + 1
            assert idle <= gap
        assert stop - start <= max([cap, *(length for _, length in spans)])
    contents = [CONTENT[start:stop] for start, stop in ranges]
    assert carve(spans, ranges, contents) == [CONTENT[start : start + length] for start, length in spans]


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 300))
def test_split_tiles_the_range(start: int, length: int, cap: int) -> None:
    pieces = list(split(start, start + length, cap))
    assert b"".join(bytes(stop - first) for first, stop in pieces) == bytes(length)
    assert all(0 < stop - first <= cap for first, stop in pieces)
    assert [first for first, _ in pieces[1:]] == [stop for _, stop in pieces[:-1]]
