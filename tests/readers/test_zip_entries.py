"""Zip archives: what zipfile and NumPy write is found by ranges; every disagreement inside is refused."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobs import MemoryBlob
from drupe.errors import DrupeError, FormatError, LimitError, UnsafePathError, UnsupportedError
from drupe.readers.zip_entries import EntryBlob, ZipFile, open_zip

CONTENT = {"a/one.txt": b"first entry", "a/two.bin": bytes(range(256)) * 4, "empty": b"", "é": b"accent"}


def written(method: int = zipfile.ZIP_STORED, **extra: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, content in {**CONTENT, **extra}.items():
            file.writestr(name, content)
    return out.getvalue()


def opened(data: bytes) -> ZipFile:
    return open_zip(MemoryBlob("x.zip", data))


class Unseekable(io.BytesIO):
    """What a pipe is: zipfile then writes sizes behind the data, and zeros before."""

    def seekable(self) -> bool:
        return False

    def seek(self, offset: int, whence: int = 0) -> int:
        raise io.UnsupportedOperation


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_zipfile_writes_is_read(method: int) -> None:
    archive = opened(written(method))
    assert list(archive.entries) == list(CONTENT)
    for name, content in CONTENT.items():
        assert archive.read(name, 10_000) == content
        span = archive.span(name)
        if method == zipfile.ZIP_STORED:
            assert span is not None
            assert archive.blob.read(*span) == content
        else:
            assert span is None


def test_streamed_zip64_and_numpy_archives_are_read() -> None:
    out = Unseekable()
    with zipfile.ZipFile(out, "w") as file, file.open("big", "w", force_zip64=True) as entry:
        entry.write(b"x" * 5000)
    assert opened(out.getvalue()).read("big", 5000) == b"x" * 5000
    out = io.BytesIO()
    np.savez(out, w=np.arange(10))
    archive = opened(out.getvalue())
    span = archive.span("w.npy")
    assert span is not None
    assert np.load(io.BytesIO(archive.blob.read(*span))).tolist() == list(range(10))


def test_opening_reads_the_directory_only_and_once() -> None:
    blob = MemoryBlob("x.zip", written(big=bytes(1 << 20)))
    archive = open_zip(blob)
    assert sum(length for _, length in blob.spans) <= 4096
    blob.batches = 0
    assert len(archive.spans(list(CONTENT))) == len(CONTENT)
    assert archive.span("empty") is not None
    assert blob.batches == 1


def test_a_content_longer_than_asked_for() -> None:
    with pytest.raises(LimitError, match="1024 exceeds the limit of 1023"):
        opened(written()).read("a/two.bin", 1023)
    with pytest.raises(FormatError, match="no entry 'nowhere'"):
        opened(written()).read("nowhere", 10)


def test_a_compressed_entry_as_a_file() -> None:
    blob = EntryBlob(opened(written(zipfile.ZIP_DEFLATED)), "a/two.bin")
    assert (blob.size, blob.read(255, 2)) == (1024, b"\xff\0")
    with pytest.raises(FormatError, match="asked for"):
        blob.read(1000, 25)


def with_entry(old: bytes, new: bytes, times: int = -1) -> bytes:
    return written().replace(old, new, times)


CENTRAL = written().index(b"PK\x01\x02")
END = written().index(b"PK\x05\x06")


def at(offset: int, value: bytes) -> bytes:
    raw = bytearray(written())
    raw[offset : offset + len(value)] = value
    return bytes(raw)


def in_front(extra: bytes) -> bytes:
    """All offsets moved, so that only the first bytes belong to nobody."""
    raw = bytearray(extra + written())
    place = CENTRAL + len(extra)
    while raw[place : place + 4] == b"PK\x01\x02":
        header = struct.unpack_from("<I", raw, place + 42)[0]
        struct.pack_into("<I", raw, place + 42, header + len(extra))
        place += 46 + sum(struct.unpack_from("<3H", raw, place + 28))
    struct.pack_into("<I", raw, place + 16, CENTRAL + len(extra))
    return bytes(raw)


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", FormatError, "no end of a zip directory"),
        (written()[:-1], FormatError, "no end of a zip directory"),
        (written() + b"x", FormatError, "no end of a zip directory"),
        (b"x" + written(), FormatError, "directory ends at"),
        (with_entry(b"a/one.txt", b"../ne.txt"), UnsafePathError, "holds the path"),
        (with_entry(b"a/one.txt", b"/ab/e.txt"), UnsafePathError, "holds the path"),
        (with_entry(b"a/two.bin", b"a/one.txt"), FormatError, "twice"),
        (at(CENTRAL + 8, b"\x01"), FormatError, "encrypted"),
        (at(CENTRAL + 10, b"\x0c"), UnsupportedError, "compression method 12"),
        (at(CENTRAL + 20, b"\xff"), FormatError, "a stored entry"),
        (at(CENTRAL + 42, b"\x01"), FormatError, "overlaps what follows"),
        (in_front(b"abc"), FormatError, "3 bytes before the first entry"),
        (at(CENTRAL + 34, b"\x01"), UnsupportedError, "several files"),
        (at(CENTRAL, b"XX"), FormatError, "starts no entry"),
        (at(END + 8, b"\x09\x00\x09"), FormatError, "has 4 entries, not 9"),
        (at(END + 10, b"\x09"), UnsupportedError, "several files"),
        (at(END + 20, b"\x05"), FormatError, "announces 5 bytes"),
        (at(END + 16, b"\xff\xff"), FormatError, "directory ends at"),
    ],
)
def test_an_archive_that_lies(data: bytes, error: type[DrupeError], says: str) -> None:
    with pytest.raises(error, match=says):
        opened(data)


@pytest.mark.parametrize("offset", [4, 6, 8, 14, 18, 22, 26, 30])
def test_a_local_header_that_contradicts_the_directory(offset: int) -> None:
    """Version apart: flags, method, checksum, both sizes, length of the name, the name."""
    raw = written()
    archive = opened(raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 :])
    if offset == 4:
        assert archive.read("a/one.txt", 100) == CONTENT["a/one.txt"]
        return
    with pytest.raises(FormatError, match="contradicts the directory"):
        archive.span("a/one.txt")


def test_a_checksum_that_does_not_match() -> None:
    with pytest.raises(FormatError, match="checksum"):
        opened(with_entry(b"first entry", b"First entry")).read("a/one.txt", 100)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    data = written(zipfile.ZIP_DEFLATED, zeros=bytes(1 << 20))
    with pytest.raises(LimitError, match="1048576 exceeds the limit of 1000"):
        opened(data).read("zeros", 1000)
    at_size = data.index(struct.pack("<I", 1 << 20), data.index(b"PK\x01\x02"))
    lie = data[:at_size] + struct.pack("<I", 1 << 30) + data[at_size + 4 :]
    with pytest.raises(LimitError, match="1073741824 exceeds the limit"):
        opened(lie)


def test_a_content_shorter_or_longer_than_it_says() -> None:
    data = written(zipfile.ZIP_DEFLATED)
    for change in (-1, 1):
        old, new = struct.pack("<I", 1024), struct.pack("<I", 1024 + change)
        with pytest.raises(FormatError, match="does not hold"):
            opened(data.replace(old, new)).read("a/two.bin", 2000)


def test_an_entry_with_two_names() -> None:
    info = zipfile.ZipInfo("a.txt")
    info.extra = struct.pack("<HH", 0x7075, 9) + b"\x01\0\0\0\0evil"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(info, b"x")
    with pytest.raises(FormatError, match="two names"):
        opened(out.getvalue())


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]), st.data())
def test_flipped_bytes(method: int, data: st.DataObject) -> None:
    """Whatever is changed, a content that is delivered is the one that was written."""
    raw = bytearray(written(method))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    try:
        archive = opened(bytes(raw))
        for name in archive.entries:
            assert archive.read(name, 10_000) == CONTENT.get(name, archive.read(name, 10_000))
    except DrupeError:
        pass
