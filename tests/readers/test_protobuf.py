from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobs import MemoryBlob
from drupe.errors import FormatError, LimitError
from drupe.readers.protobuf import BlobCursor, WireType, float32, iter_fields, iter_spans, signed, text


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(fields: list[tuple[int, int, int | bytes]]) -> bytes:
    parts = []
    for number, kind, value in fields:
        parts.append(varint(number << 3 | kind))
        if isinstance(value, bytes):
            parts.append((varint(len(value)) if kind == 2 else b"") + value)
        else:
            parts.append(varint(value))
    return b"".join(parts)


NUMBERS = st.integers(1, (1 << 29) - 1)
FIELDS = st.lists(
    st.one_of(
        st.tuples(NUMBERS, st.just(0), st.integers(0, (1 << 64) - 1)),
        st.tuples(NUMBERS, st.just(1), st.binary(min_size=8, max_size=8)),
        st.tuples(NUMBERS, st.just(2), st.binary(max_size=300)),
        st.tuples(NUMBERS, st.just(5), st.binary(min_size=4, max_size=4)),
    ),
    max_size=12,
)


def plain(kind: int, value: int | bytes) -> int | bytes:
    return int.from_bytes(value, "little") if isinstance(value, bytes) and kind != 2 else value


@given(FIELDS)
def test_every_message_comes_back(fields: list[tuple[int, int, int | bytes]]) -> None:
    found = [
        (f.number, int(f.wire_type), bytes(f.value) if isinstance(f.value, memoryview) else f.value)
        for f in iter_fields(memoryview(message(fields)), "x")
    ]
    assert found == [(number, kind, plain(kind, value)) for number, kind, value in fields]


@given(FIELDS, st.integers(0, 30))
def test_a_file_is_walked_like_memory(fields: list[tuple[int, int, int | bytes]], padding: int) -> None:
    data = message(fields)
    blob = MemoryBlob("m", b"\xff" * padding + data + b"\xff" * padding)
    spans = list(iter_spans(BlobCursor(blob), padding, padding + len(data)))
    assert [(f.number, f.wire_type, f.bits) for f in spans] == [
        (f.number, f.wire_type, f.value if isinstance(f.value, int) else 0)
        for f in iter_fields(memoryview(data), "m")
    ]
    payloads = [blob.data[f.start : f.stop] for f in spans if f.wire_type is WireType.LENGTH]
    assert payloads == [value for _, kind, value in fields if kind == 2]


def test_payloads_of_a_file_are_skipped() -> None:
    big = b"\0" * 3_000_000
    blob = MemoryBlob("m", message([(1, 2, big), (2, 2, big), (3, 0, 7)]))
    assert [f.number for f in iter_spans(BlobCursor(blob), 0, blob.size)] == [1, 2, 3]
    assert sum(length for _, length in blob.spans) < 50_000


def test_reads_grow_while_the_walk_is_sequential() -> None:
    blob = MemoryBlob("m", message([(1, 2, b"x" * 40)]) * 20_000)
    assert sum(1 for _ in iter_spans(BlobCursor(blob), 0, blob.size)) == 20_000
    assert len(blob.spans) < 12


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\x0a", "ends within the number"),
        (b"\x0a\x05hi", "claims 5 bytes"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "claims 9223372036854775807 bytes"),
        (b"\x08\x80\x80", "ends within the number"),
        (b"\x08" + b"\x80" * 10 + b"\x01", "more than 10 bytes"),
        (b"\x08" + b"\xff" * 9 + b"\x7f", "exceeds 64 bits"),
        (b"\x0d\x00\x00", "ends within the number"),
        (b"\x09\x00\x00\x00\x00\x00\x00\x00", "ends within the number"),
        (b"\x0b\x0c", "wire type 3"),
        (b"\x0c", "wire type 4"),
        (b"\x0e\x00", "wire type 6"),
        (b"\x0f\x00", "wire type 7"),
        (b"\x02\x00", "field number 0"),
        (varint(1 << 32) + b"\x00", "field number 536870912"),
    ],
)
def test_damage_is_a_format_error_naming_the_file(data: bytes, complaint: str) -> None:
    for walk in (
        lambda: list(iter_fields(memoryview(data), "some.file")),
        lambda: list(iter_spans(BlobCursor(MemoryBlob("some.file", data)), 0, len(data))),
    ):
        with pytest.raises(FormatError, match=complaint) as caught:
            walk()
        assert caught.value.where == "some.file"


def test_an_inner_message_cannot_reach_beyond_its_end() -> None:
    inner = b"\x0a\x05hi"
    data = message([(1, 2, inner), (2, 2, b"abcdef")])
    cursor = BlobCursor(MemoryBlob("m", data))
    outer = next(iter_spans(cursor, 0, len(data)))
    with pytest.raises(FormatError, match="claims 5 bytes"):
        list(iter_spans(cursor, outer.start, outer.stop))


def test_fields_are_counted_over_all_messages_of_a_cursor() -> None:
    data = b"\x08\x01" * 60
    cursor = BlobCursor(MemoryBlob("m", data), max_fields=100)
    assert len(list(iter_spans(cursor, 0, len(data)))) == 60
    with pytest.raises(LimitError) as caught:
        list(iter_spans(cursor, 0, len(data)))
    assert (caught.value.limit, caught.value.actual) == (100, 101)


def test_numbers_and_strings() -> None:
    assert float32(int.from_bytes(struct.pack("<f", -2.5), "little")) == -2.5
    assert signed((1 << 64) - 1) == -1
    assert text(memoryview("核果".encode()), "x", 6) == "核果"
    with pytest.raises(LimitError, match="7 exceeds the limit of 6"):
        text(b"1234567", "x", 6)
    with pytest.raises(FormatError, match="not UTF-8"):
        text(b"\xff\xfe", "x", 6)


@given(st.binary(max_size=200))
def test_random_bytes_give_fields_or_a_format_error(data: bytes) -> None:
    try:
        total = sum(
            len(f.value) for f in iter_fields(memoryview(data), "x") if isinstance(f.value, memoryview)
        )
    except FormatError:
        return
    assert total <= len(data)
