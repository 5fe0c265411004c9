"""What was fetched, kept on disk: a second run asks a server only whether its files are still the same.

::

    ranges/AB/ABCD.../record                    what is known of one address: JSON
    ranges/AB/ABCD.../VERSION/START-STOP-CRC    bytes of one span of one version

ABCD... is the SHA-256 of the address, VERSION that of the identity of the content: its entity tag and size, or a
size alone when the address itself names a commit or a digest. Spans of two versions therefore never meet (RFC 9110,
13.3: only a strong validator allows parts to be combined). Files are written beside, renamed and never changed, so
several processes may share the folder; what is longest unused goes first when the limit is reached. A cache that
cannot be read or written is a miss, never an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import threading
import zlib
from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from drupe.errors import SourceError, UsageError
from drupe.files import cache_folder, write_atomically

DEFAULT_LIMIT = 2 << 30
"""Bytes of all spans together; DRUPE_CACHE_LIMIT says otherwise, 0 keeps nothing."""
MAX_RECORD = 32 << 20
_SPAN = re.compile(r"(\d{1,18})-(\d{1,18})-([0-9a-f]{8})")
_SIZE = re.compile(r"(\d{1,15})([KMGT]?)B?", re.ASCII | re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class _Kept(NamedTuple):
    start: int
    stop: int
    name: str


class RangeCache:
    """Spans and records by address, at most ``limit`` bytes of them."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._room = 0
        self._lock = threading.Lock()

    def recall(self, address: str) -> Mapping[str, Any] | None:
        """The record of an address, or None."""
        place = self._place(address)
        try:
            with (place / "record").open("rb") as file:
                text = file.read(MAX_RECORD + 1)
            os.utime(place)  # used now: the last to be given up
            record = json.loads(text) if len(text) <= MAX_RECORD else None
        except (OSError, ValueError, RecursionError):
            return None
        return record if isinstance(record, dict) else None

    def remember(self, address: str, record: Mapping[str, Any]) -> None:
        """Replace the record of an address."""
        data = json.dumps(record, sort_keys=True).encode()
        if len(data) <= MAX_RECORD:
            self.write(self._place(address) / "record", data)

    def spans(self, address: str, identity: str) -> Spans:
        """What is kept of one version of the content at an address."""
        return Spans(self, self._place(address) / _digest(identity)[:32])

    def drop(self, address: str, identity: str) -> None:
        """Give up one version, which the server no longer has."""
        _discard(str(self._place(address) / _digest(identity)[:32]))

    def write(self, path: Path, data: bytes) -> bool:
        """Add a file; False when there is no room for it or it cannot be written."""
        with self._lock:
            if self._room < len(data):
                self._room = self._trim()
            if self._room < len(data):
                return False
            self._room -= len(data)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # some of it may be private
            write_atomically(path, data)
        except (SourceError, OSError):
            return False
        return True

    def _place(self, address: str) -> Path:
        name = _digest(address)
        return self._folder / name[:2] / name

    def _trim(self) -> int:
        """Give up what was not used for longest; how much may be written before the next look.

        An eighth of the limit stays free for what is written between two looks.
        """
        found = sorted(self._entries())
        total = sum(size for _, size, _ in found)
        for _, size, path in found:
            if total <= self._limit - self._limit // 8:
                break
            _discard(path)
            total -= size
        return self._limit // 8 if total <= self._limit - self._limit // 8 else 0

    def _entries(self) -> Iterator[tuple[float, int, str]]:
        """Last use, bytes and folder of each address."""
        for shard in _folders(self._folder):
            for entry in _folders(shard):
                try:
                    yield os.stat(entry).st_mtime, _bytes_in(entry), entry
                except OSError:
                    continue


class Spans:
    """Bytes of one version of one file. What another process adds meanwhile is not seen."""

    def __init__(self, owner: RangeCache, folder: Path) -> None:
        self._owner = owner
        self._folder = folder
        self._kept: list[_Kept] | None = None
        self._last: tuple[str, bytes] = ("", b"")
        self._lock = threading.Lock()

    def get(self, start: int, stop: int) -> bytes | None:
        """The bytes from ``start`` to ``stop``, or None unless all are kept."""
        pieces: list[bytes] = []
        with self._lock:
            while start < stop:
                kept = self._best(start)
                content = self._load(kept) if kept else None
                if kept is None or content is None:
                    return None
                pieces.append(content[start - kept.start : stop - kept.start])
                start = kept.stop
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def put(self, start: int, data: bytes) -> None:
        """Keep the bytes that begin at ``start``."""
        if not data:
            return
        kept = _Kept(start, start + len(data), f"{start}-{start + len(data)}-{zlib.crc32(data):08x}")
        if self._owner.write(self._folder / kept.name, data):
            with self._lock:
                if kept not in self._index():
                    insort(self._index(), kept)

    def _index(self) -> list[_Kept]:
        if self._kept is None:
            try:
                names = os.listdir(self._folder)
            except OSError:
                names = []
            found = [(match, name) for name in names if (match := _SPAN.fullmatch(name))]
            self._kept = sorted(_Kept(int(match[1]), int(match[2]), name) for match, name in found)
        return self._kept

    def _best(self, start: int) -> _Kept | None:
        """Of the spans that hold the byte at ``start``, the one that goes on longest."""
        index = self._index()
        before = index[: bisect_right(index, start, key=lambda kept: kept.start)]
        best = max(before, key=lambda kept: kept.stop, default=None)
        return best if best is not None and best.stop > start else None

    def _load(self, kept: _Kept) -> bytes | None:
        """The whole of one file, if it is what its name says; else it is forgotten."""
        if self._last[0] == kept.name:
            return self._last[1]
        try:
            path = self._folder / kept.name
            content = path.read_bytes() if path.stat().st_size == kept.stop - kept.start else b""
        except OSError:
            content = b""
        if not content or f"{zlib.crc32(content):08x}" != kept.name[-8:]:
            self._index().remove(kept)
            return None
        self._last = (kept.name, content)
        return content


def open_cache() -> RangeCache | None:
    """The user's cache, or None when it is switched off. Raises UsageError on a malformed limit."""
    limit = _limit(os.environ.get("DRUPE_CACHE_LIMIT", ""))
    try:
        return _shared(cache_folder() / "ranges", limit) if limit else None
    except RuntimeError:  # this user has no home
        return None


@cache
def _shared(folder: Path, limit: int) -> RangeCache:
    """One per process and folder, so that the limit is counted once."""
    return RangeCache(folder, limit)


def _limit(text: str) -> int:
    if not text:
        return DEFAULT_LIMIT
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"DRUPE_CACHE_LIMIT={text[:40]!r} is no size", hint="write bytes or a size such as 500M or 2G"
        )
    return int(match[1]) << _UNITS[match[2].upper()]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _folders(folder: str | os.PathLike[str]) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _bytes_in(folder: str) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            total += os.lstat(os.path.join(parent, name)).st_size
    return total


def _discard(path: str) -> None:
    """Out of sight at once, then deleted: another process sees all of it or nothing."""
    doomed = f"{os.path.dirname(path)}/.{secrets.token_hex(8)}"
    try:
        os.rename(path, doomed)
    except OSError:
        doomed = path
    shutil.rmtree(doomed, ignore_errors=True)
