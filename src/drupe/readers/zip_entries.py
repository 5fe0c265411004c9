"""The entries of a zip archive, found by ranges: the directory when opened, contents when asked for.

Stricter than the readers that files are made to fool: one directory, no gap in meaning between it and the
local headers, no two entries in one place, nothing in front of the first, nothing behind the last. Two readers
then cannot see two different archives. Format facts: PKWARE APPNOTE.TXT 6.3.10
(https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT), sections 4.3 (records) and 4.5.3 (zip64).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from drupe.errors import FormatError, LimitError, UnsafePathError, UnsupportedError
from drupe.sources.interface import Blob, Span
from drupe.sources.paths import is_safe
from drupe.sources.spans import check_span

MAX_DIRECTORY = 64 << 20
"""Bytes of a central directory; a million tensors take about 60 MB."""
MAX_ENTRIES = 150_000
"""The largest published mixtures of experts hold about 100,000 tensors, in many files."""
MAX_RATIO = 1032
"""Deflate cannot do better (https://zlib.net/zlib_tech.html): a larger ratio is a lie."""
MAX_GROWTH = 4
"""Times the size of the archive (and a floor) that one unpacked entry may take in memory."""
STORED, DEFLATED = 0, 8

_MEMORY_FLOOR = 64 << 20

_TAIL = 4096
"""Read first: the end of the archive and, of a small one, the whole directory."""
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_LOCAL_EXTRA = 64
"""Bytes of a local extra field that are looked at: a zip64 field comes first and has 20."""
_CODES = 512
"""Bytes of deflated data that may hold nothing but the code tables of its first block."""
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_STREAMED = 0x0008
"""Sizes and checksum follow the data: the local header may hold zeros."""
_UTF8 = 0x0800
_ZIP64, _UNICODE_PATH, _UNICODE_COMMENT = 0x0001, 0x7075, 0x6375


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive, as the central directory describes it."""

    name: str
    method: int
    size: int
    """Bytes of the content."""
    compressed: int
    """Bytes in the archive; the same as ``size`` when stored."""
    crc: int
    header: int
    """Offset of the local header."""
    flags: int

    @property
    def raw_name(self) -> bytes:
        """The name as the archive spells it."""
        return self.name.encode(_encoding(self.flags, self.name.isascii()))

    @property
    def is_stored(self) -> bool:
        """Whether the content lies in the archive as it is, to be read by ranges."""
        return self.method == STORED


@dataclass(slots=True)
class ZipFile:
    """An opened archive. ``entries`` by name, in the order of the directory; folders are left out."""

    blob: Blob
    entries: Mapping[str, Entry]
    directory: bytes
    """The raw central directory, for digests and evidence."""
    _stops: Mapping[int, int]
    """Offset of a local header -> where the entry ends at the latest."""
    _starts: dict[str, int] = field(default_factory=dict)

    def read(self, name: str, limit: int) -> bytes:
        """The content of an entry, its checksum verified.

        Raises LimitError when it is longer than ``limit`` bytes, FormatError when it is damaged.
        """
        entry = self._entry(name)
        where = f"{self.blob.name}: {name[:200]}"
        if entry.size > limit:
            raise LimitError("bytes of an archive entry", limit=limit, actual=entry.size, where=where)
        start = self._locate([entry])[0]
        data = self.blob.read(start, entry.compressed)
        if entry.method == DEFLATED:
            data = _inflate(data, entry.size, where)
        if zlib.crc32(data) != entry.crc:
            raise FormatError("the checksum (CRC-32) of an archive entry does not match", where=where)
        return data

    def span(self, name: str) -> Span | None:
        """Where the content of a stored entry lies in the archive; None when it is compressed."""
        return self.spans([name])[0]

    def spans(self, names: Sequence[str]) -> list[Span | None]:
        """As :meth:`span` for many entries; their local headers are read together."""
        entries = [self._entry(name) for name in names]
        return [
            (start, entry.size) if entry.is_stored else None
            for entry, start in zip(entries, self._locate(entries), strict=True)
        ]

    def heads(self, names: Sequence[str], length: int) -> list[bytes]:
        """The first ``length`` bytes (or fewer) of entries, compressed or not, read together; unverified."""
        entries = [self._entry(name) for name in names]
        starts = self._locate(entries)
        spans = [
            (start, min(entry.compressed, length + (0 if entry.is_stored else _CODES)))
            for entry, start in zip(entries, starts, strict=True)
        ]
        raw = self.blob.read_many(spans) if spans else []
        return [
            data
            if entry.is_stored
            else _first(data, min(length, entry.size), f"{self.blob.name}: {entry.name}")
            for entry, data in zip(entries, raw, strict=True)
        ]

    def _entry(self, name: str) -> Entry:
        entry = self.entries.get(name)
        if entry is None:
            raise FormatError(f"the archive has no entry {name[:200]!r}", where=self.blob.name)
        return entry

    def _locate(self, entries: Sequence[Entry]) -> list[int]:
        """Offsets of the contents, local headers verified against the directory."""
        missing = [entry for entry in entries if entry.name not in self._starts]
        spans = [
            (e.header, min(_LOCAL.size + len(e.raw_name) + _LOCAL_EXTRA, self._stops[e.header] - e.header))
            for e in missing
        ]
        for entry, raw in zip(missing, self.blob.read_many(spans) if spans else [], strict=True):
            self._starts[entry.name] = self._content_start(entry, raw)
        return [self._starts[entry.name] for entry in entries]

    def _content_start(self, entry: Entry, raw: bytes) -> int:
        """Offset of the content, from a local header that must agree with the directory."""
        where = f"{self.blob.name}: {entry.name[:200]}"
        if len(raw) < _LOCAL.size or raw[:4] != b"PK\x03\x04":
            raise FormatError(f"no archive entry starts at {entry.header}", where=where)
        _, _, flags, method, _, _, crc, compressed, size, name_length, extra_length = _LOCAL.unpack_from(raw)
        names = _LOCAL.size + name_length
        if raw[_LOCAL.size : names] != entry.raw_name or (flags, method) != (entry.flags, entry.method):
            raise FormatError("the local header of an archive entry contradicts the directory", where=where)
        if _FULL32 in (size, compressed):
            wide = _extra_fields(_whole_fields(raw[names : names + extra_length]), where).get(_ZIP64, b"")
            (size, compressed), _ = _widen((size, compressed), wide, where)
        said, expected = (crc, compressed, size), (entry.crc, entry.compressed, entry.size)
        if said != expected and not (
            flags & _STREAMED and all(a in (0, b) for a, b in zip(said, expected, strict=True))
        ):
            raise FormatError("the local header of an archive entry contradicts the directory", where=where)
        start = entry.header + names + extra_length
        if start + entry.compressed > self._stops[entry.header]:
            raise FormatError("an archive entry reaches into the next one", where=where)
        return int(start)


@dataclass(frozen=True, slots=True)
class EntryBlob:
    """The content of a compressed entry as a file; unpacked anew for each read, so that memory holds one."""

    archive: ZipFile
    entry: str

    @property
    def name(self) -> str:
        """Archive and entry."""
        return f"{self.archive.blob.name}: {self.entry}"

    @property
    def size(self) -> int:
        """Bytes when unpacked."""
        return self.archive.entries[self.entry].size

    def read(self, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``."""
        return self.read_many([(start, length)])[0]

    def read_many(self, spans: Sequence[Span]) -> list[bytes]:
        """Several spans in the given order."""
        content = self.archive.read(self.entry, MAX_GROWTH * self.archive.blob.size + _MEMORY_FLOOR)
        for start, length in spans:
            check_span(start, length, len(content), self.name)
        return [content[start : start + length] for start, length in spans]


def open_zip(blob: Blob) -> ZipFile:
    """Read the directory of an archive. Raises FormatError (or its kin) on any inconsistency."""
    tail_start = max(0, blob.size - _TAIL)
    tail = blob.read(tail_start, blob.size - tail_start)
    start, length, count, stop = _find_directory(tail, tail_start, blob)
    if count > MAX_ENTRIES:
        raise LimitError("entries of an archive", limit=MAX_ENTRIES, actual=count, where=blob.name)
    if length > MAX_DIRECTORY:
        raise LimitError("bytes of a zip directory", limit=MAX_DIRECTORY, actual=length, where=blob.name)
    if start + length != stop:
        raise FormatError(
            f"the zip directory ends at {start + length}, not at {stop} where its end is declared",
            where=blob.name,
        )
    known = start >= tail_start
    directory = tail[start - tail_start : stop - tail_start] if known else blob.read(start, length)
    found = list(_parse(directory, blob.name))
    if len(found) != count:
        raise FormatError(f"the zip directory has {len(found)} entries, not {count}", where=blob.name)
    return ZipFile(blob, _by_name(found, blob.name), directory, _stretches(found, start, blob.name))


def _find_directory(tail: bytes, tail_start: int, blob: Blob) -> tuple[int, int, int, int]:
    """Start, length and entries of the directory, and where it must end.

    An archive comment is refused: it can hold a second end record, and no known writer of models makes one.
    """
    at = len(tail) - _END.size
    if at < 0 or tail[at : at + 4] != b"PK\x05\x06":
        raise FormatError("no end of a zip directory at the end of the file", where=blob.name)
    _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(tail, at)
    if comment:
        raise FormatError(f"the zip end record announces {comment} bytes beyond the file", where=blob.name)
    plain = (here, count, length, start)
    stop = tail_start + at
    if tail[max(at - _LOCATOR.size, 0) :][:4] == b"PK\x06\x07" and at >= _LOCATOR.size:
        wide, stop = _find_wide(tail, at - _LOCATOR.size, tail_start, blob.name)
        full = (_FULL16, _FULL16, _FULL32, _FULL32)
        if any(a not in (b, top) for a, b, top in zip(plain, wide, full, strict=True)):
            raise FormatError("the two end records of the zip directory disagree", where=blob.name)
        here, count, length, start = wide
    if here != count or disk not in (0, _FULL16) or first_disk not in (0, _FULL16):
        raise UnsupportedError("a zip archive split over several files", where=blob.name)
    return start, length, count, stop


def _find_wide(tail: bytes, at: int, tail_start: int, where: str) -> tuple[tuple[int, int, int, int], int]:
    """The values of a zip64 end record and its offset; it must lie right before its locator."""
    _, disk, offset, disks = _LOCATOR.unpack_from(tail, at)
    before = at - _END64.size
    if (
        disk
        or disks > 1
        or before < 0
        or offset != tail_start + before
        or tail[before : before + 4] != b"PK\x06\x06"
    ):
        raise FormatError("the zip64 end record is not where its locator says", where=where)
    _, length, _, _, disk, first_disk, here, count, size, start = _END64.unpack_from(tail, before)
    if length != _END64.size - 12 or disk or first_disk:
        raise FormatError("a zip64 end record of an unknown form", where=where)
    return (here, count, size, start), offset


def _parse(directory: bytes, where: str) -> Iterator[Entry]:
    """The records of the central directory."""
    at = 0
    while at < len(directory):
        if at + _CENTRAL.size > len(directory) or directory[at : at + 4] != b"PK\x01\x02":
            raise FormatError(f"byte {at} of the zip directory starts no entry", where=where)
        fields = _CENTRAL.unpack_from(directory, at)
        _, _, _, flags, method, _, _, crc, compressed, size = fields[:10]
        name_length, extra_length, comment_length, disk, _, _, header = fields[10:]
        names = at + _CENTRAL.size
        at = names + name_length + extra_length + comment_length
        if at > len(directory):
            raise FormatError("the zip directory is cut off", where=where)
        raw_name = directory[names : names + name_length]
        name = _name(raw_name, flags, where)
        here = f"{where}: {name[:200]}"
        extra = directory[names + name_length : names + name_length + extra_length]
        wide = _extra_fields(extra, here).get(_ZIP64, b"")
        (size, compressed, header), rest = _widen((size, compressed, header), wide, here)
        if disk not in (0, _FULL16) or (rest and rest != bytes(4)):
            raise UnsupportedError("a zip archive split over several files", where=here)
        yield _readable(Entry(name, method, size, compressed, crc, header, flags), here)


def _name(raw: bytes, flags: int, where: str) -> str:
    """The path of an entry; raises UnsafePathError when it leaves the archive."""
    try:
        name = raw.decode(_encoding(flags, raw.isascii()))
    except UnicodeDecodeError:
        raise FormatError(f"the name {raw[:80]!r} in the archive is not UTF-8", where=where) from None
    if not is_safe(name[:-1] if name.endswith("/") else name):
        raise UnsafePathError(f"the archive holds the path {name[:200]!r}", where=where)
    return name


def _encoding(flags: int, is_ascii: bool) -> str:
    return "utf-8" if flags & _UTF8 or is_ascii else "cp437"


def _extra_fields(extra: bytes, where: str) -> dict[int, bytes]:
    """Kind -> content. A second name for the entry is refused: readers would choose differently."""
    fields: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        at += 4 + length
        if at > len(extra) or kind in fields:
            raise FormatError("the extra fields of an archive entry are damaged", where=where)
        if kind in (_UNICODE_PATH, _UNICODE_COMMENT):
            raise FormatError("an archive entry with two names", where=where)
        fields[kind] = extra[at - length : at]
    return fields


def _widen(values: Sequence[int], wide: bytes, where: str) -> tuple[list[int], bytes]:
    """Values that are all ones stand in the zip64 field, in order; also what is left of it."""
    result, at = list(values), 0
    for index, value in enumerate(values):
        if value == _FULL32:
            if at + 8 > len(wide):
                raise FormatError("a size of an archive entry is missing", where=where)
            result[index] = int.from_bytes(wide[at : at + 8], "little")
            at += 8
    return result, wide[at:] if at else b""


def _readable(entry: Entry, where: str) -> Entry:
    """The entry when this module can read it."""
    if entry.flags & _ENCRYPTED:
        raise FormatError("an encrypted archive entry: it cannot be looked into", where=where)
    if entry.method not in (STORED, DEFLATED):
        raise UnsupportedError(f"compression method {entry.method} of an archive entry", where=where)
    if entry.is_stored and entry.size != entry.compressed:
        raise FormatError(f"a stored entry of {entry.size} bytes takes {entry.compressed}", where=where)
    if entry.size > MAX_RATIO * entry.compressed + 64:
        most = MAX_RATIO * entry.compressed
        raise LimitError("bytes that an entry claims to hold", limit=most, actual=entry.size, where=where)
    if entry.name.endswith("/") and entry.size:
        raise FormatError("a folder in the archive has content", where=where)
    return entry


def _stretches(found: Sequence[Entry], stop: int, where: str) -> dict[int, int]:
    """Local header -> where its entry ends at the latest. Raises FormatError unless they lie in a row."""
    ends: dict[int, int] = {}
    for entry in sorted(found, key=lambda entry: entry.header, reverse=True):
        least = _LOCAL.size + len(entry.name) + entry.compressed
        if entry.header + least > stop or entry.header in ends:
            raise FormatError(f"the entry {entry.name[:200]!r} overlaps what follows it", where=where)
        ends[entry.header] = stop
        stop = entry.header
    if stop:
        raise FormatError(f"{stop} bytes before the first entry of the archive", where=where)
    return ends


def _by_name(found: Sequence[Entry], where: str) -> dict[str, Entry]:
    """The files of the archive; raises FormatError when two have the same name."""
    entries: dict[str, Entry] = {}
    for entry in found:
        if entry.name in entries:
            raise FormatError(f"the archive holds {entry.name[:200]!r} twice", where=where)
        entries[entry.name] = entry
    return {name: entry for name, entry in entries.items() if not name.endswith("/")}


def _whole_fields(extra: bytes) -> bytes:
    """The extra fields that lie whole within what was read of them."""
    at = 0
    while at + 4 <= len(extra):
        length = int.from_bytes(extra[at + 2 : at + 4], "little")
        if at + 4 + length > len(extra):
            break
        at += 4 + length
    return extra[:at]


def _first(data: bytes, size: int, where: str) -> bytes:
    """At most ``size`` bytes from the start of deflated data."""
    try:
        return zlib.decompressobj(-15).decompress(data, size) if size else b""
    except zlib.error as error:
        raise FormatError(f"a compressed entry is damaged: {error}", where=where) from None


def _inflate(data: bytes, size: int, where: str) -> bytes:
    """Exactly ``size`` bytes, or FormatError; never more memory than that."""
    engine = zlib.decompressobj(-15)
    try:
        content = engine.decompress(data, size) if size else b""
        more = engine.decompress(engine.unconsumed_tail or (b"" if size else data), 1)
    except zlib.error as error:
        raise FormatError(f"a compressed entry is damaged: {error}", where=where) from None
    if more or len(content) != size or not engine.eof or engine.unused_data:
        raise FormatError(f"a compressed entry does not hold the {size} bytes it claims", where=where)
    return content
