"""Object stores and archives through fsspec (the extra ``cloud``): ``s3://``, ``gs://``, ``zip://...::...``.

Listed protocols only: fsspec knows others that run commands, follow instructions in files, or connect anywhere.
Credentials are those of its own libraries (environment, profiles, ``FSSPEC_S3_ANON=true`` for a public bucket).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from types import ModuleType
from typing import Any

from drupe.errors import (
    DrupeError,
    FormatError,
    LimitError,
    LocatorError,
    OfflineError,
    SourceError,
    UnsupportedError,
    UsageError,
)
from drupe.sources.cache import RangeCache, open_cache
from drupe.sources.interface import Meter
from drupe.sources.local import LocalTree
from drupe.sources.paths import (
    MAX_DEPTH,
    belonging,
    check_count,
    check_depth,
    check_name,
    is_hidden,
    is_safe,
)
from drupe.sources.transfer import Limits
from drupe.sources.urls import redact
from drupe.sources.windowed import WindowedBlob

REMOTE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss")
LOCAL = ("memory", "zip", "file", "local")
PROTOCOLS = (*REMOTE, *LOCAL)
MAX_DIRECTORY = 16 << 20
"""Bytes of the directory at the end of a zip file: about 100,000 entries."""
MAX_COMPRESSED = 64 << 20
"""Of a compressed member of a zip file: nothing in it can be reached without unpacking all before it."""
_VALIDATORS = ("ETag", "etag", "generation", "mtime", "created", "LastModified", "last_modified")
_STRONG = ("ETag", "etag", "generation")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file as it was listed: where fsspec has it, and what changes when its content does."""

    path: str
    size: int
    validator: str
    """``key value``, or "" when the file system states none."""
    packed: bool = False


class FsTree:
    """A folder, object prefix or archive, or one weight file in it with the files that describe it."""

    def __init__(self, locator: str, *, offline: bool = False, limits: Limits | None = None) -> None:
        self._locator = shown(locator)
        self._meter = Meter()
        self._limits = limits or Limits()
        protocols = [_protocol(part, self._locator) for part in locator.split("::")]
        self.is_local = not any(protocol in REMOTE for protocol in protocols)
        self._cache = None if self.is_local else open_cache()
        self._system: Any = None
        self.lock = threading.Lock()
        """One thread at a time: an archive has one position."""
        key = f"fsspec {locator}"
        if offline and not self.is_local:
            record = self._cache.recall(key) if self._cache else None
            self._restore(record or {})
            return
        if protocols[0] == "zip":
            self._check_archive(locator)
        with translated(self._locator):
            self._system, root = _fsspec().core.url_to_fs(locator)
            self._meter.add(requests=1)
            self._list(root.rstrip("/"))
        if self._cache:
            entries = {name: [e.path, e.size, e.validator, e.packed] for name, e in self._entries.items()}
            self._cache.remember(key, {"selected": self.selected, "entries": entries})

    @property
    def locator(self) -> str:
        """What the user wrote, without password and tokens."""
        return self._locator

    @property
    def revision(self) -> str | None:
        """None: an object store has no revision of a whole folder."""
        return None

    @property
    def meter(self) -> Meter:
        """What was fetched or read so far."""
        return self._meter

    def files(self) -> Mapping[str, int]:
        """Relative path -> size, sorted; hidden files are left out."""
        return {name: entry.size for name, entry in self._entries.items()}

    def open(self, name: str) -> FsBlob:
        """The file of that relative path. Raises UnsupportedError for a large compressed member of a zip."""
        check_name(name, self._locator)
        entry = self._entries.get(name)
        if entry is None:
            raise LocatorError("no such file", where=f"{self._locator}: {name}")
        if entry.packed and entry.size > MAX_COMPRESSED:
            raise UnsupportedError(
                f"{entry.size} bytes, compressed inside the zip file",
                where=f"{self._locator}: {name}",
                hint="unpack it, or store it uncompressed (zip -0)",
            )
        return FsBlob(self, self._system, entry, name, self._limits, self._cache)

    def _list(self, root: str) -> None:
        info = self._system.info(root)
        self.selected = str(info["name"]).rstrip("/").rpartition("/")[2] if info["type"] == "file" else None
        if self.selected is not None:
            root = root.rpartition("/")[0]
            self._meter.add(requests=1)
            near = [each for each in self._system.ls(root, detail=True) if each["type"] == "file"]
            listed = {_relative(each["name"], root): each for each in near}
            listed = {name: listed[name] for name in belonging(list(listed), self.selected)}
        else:
            listed = dict(self._walk(root))
        kept = {name: _entry(each) for name, each in listed.items() if is_safe(name) and not is_hidden(name)}
        self._entries = dict(sorted(kept.items()))

    def _walk(self, root: str) -> Iterator[tuple[str, dict[str, Any]]]:
        count = 0
        for folder, folders, files in self._system.walk(root, maxdepth=MAX_DEPTH + 1, detail=True):
            self._meter.add(requests=1)
            count += len(folders) + len(files)
            check_count(count, self._locator)
            for each in folders.values():
                check_depth(f"{_relative(each['name'], root)}/", self._locator)
            for each in files.values():
                if each["name"].rstrip("/") != folder.rstrip("/"):  # an object that stands for its folder
                    yield _relative(each["name"], root), each

    def _check_archive(self, locator: str) -> None:
        """Bound what the zip library reads at once, and refuse a pipe or device in place of the archive."""
        outer = locator.partition("::")[2]
        if _protocol(outer.partition("::")[0], self._locator) in ("file", "local"):
            path = outer.removeprefix("file://").removeprefix("local://")
            if LocalTree(os.path.expanduser(path), locator=self._locator).selected is None:
                raise LocatorError("a folder, not a zip file", where=self._locator)
        with translated(self._locator):
            system, path = _fsspec().core.url_to_fs(outer)
            size = system.info(path)["size"]
            tail = system.cat_file(path, start=max(0, size - (64 << 10) - 128), end=size)
        length = directory_length(tail, self._locator)
        if length > MAX_DIRECTORY:
            what = "directory of the zip file in bytes"
            raise LimitError(what, limit=MAX_DIRECTORY, actual=length, where=self._locator)

    def _restore(self, record: Mapping[str, Any]) -> None:
        try:
            self.selected = record["selected"]
            self._entries = {name: _Entry(*entry) for name, entry in record["entries"].items()}
        except (KeyError, TypeError, AttributeError):
            raise OfflineError("reading from a store needs a connection", where=self._locator) from None


class FsBlob(WindowedBlob):
    """One file of such a tree. What was read of a remote one is kept on disk, by its entity tag."""

    def __init__(
        self, tree: FsTree, system: Any, entry: _Entry, name: str, limits: Limits, cache: RangeCache | None
    ) -> None:
        super().__init__(name, limits, tree.meter)
        self._tree = tree
        self._system = system
        self._entry = entry
        if cache and entry.validator.startswith(_STRONG):
            self._kept = cache.spans(f"fsspec {entry.path}", f"{entry.size} {entry.validator}")

    @property
    def size(self) -> int:
        """Length in bytes when it was listed."""
        return self._entry.size

    def _open(self) -> None:
        with self._lock:
            if not self._head and self._entry.packed and self.size:
                (self._head,) = self._fetch_pieces([(0, self.size)])  # unpacked once, not once for each span
            elif not self._head:
                self._head = self._recall(0, min(self._limits.window, self.size)) or b""

    def _fetch_pieces(self, pieces: Sequence[tuple[int, int]]) -> list[bytes]:
        found = {piece: content for piece in pieces if (content := self._recall(*piece)) is not None}
        missing = [piece for piece in pieces if piece not in found]
        if missing:
            found |= zip(missing, self._fetch(missing), strict=True)
        return [found[piece] for piece in pieces]

    def _fetch(self, pieces: Sequence[tuple[int, int]]) -> list[bytes]:
        if self._system is None:
            raise OfflineError("these bytes are not in the cache", where=self._name)
        paths = [self._entry.path] * len(pieces)
        starts, stops = [start for start, _ in pieces], [stop for _, stop in pieces]
        with self._tree.lock, translated(self._name):
            contents: list[bytes] = self._system.cat_ranges(paths, starts, stops, on_error="raise")
            self._check_version()
        self._meter.add(sum(map(len, contents)), len(pieces) + 1)
        for (start, stop), content in zip(pieces, contents, strict=True):
            if len(content) != stop - start:
                raise SourceError(f"{len(content)} of {stop - start} bytes arrived", where=self._name)
            if self._kept:
                self._kept.put(start, content)
        return contents

    def _check_version(self) -> None:
        """Ranges of an object store carry no condition: the object is looked at again after each read."""
        self._system.invalidate_cache(self._entry.path.rpartition("/")[0])
        now = _entry(self._system.info(self._entry.path))
        if (now.size, now.validator) != (self._entry.size, self._entry.validator):
            raise SourceError("the file changed while it was read", where=self._name, hint="start again")


def shown(locator: str) -> str:
    """A chained address without passwords and tokens."""
    return "::".join(redact(part) for part in locator.split("::"))


def directory_length(tail: bytes, where: str) -> int:
    """Bytes of a zip file's directory, from the last 64 KiB of the file (APPNOTE.TXT 4.3.14, 4.3.16).

    Raises FormatError when there is no end record.
    """
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise FormatError("not a zip file: it has no end record", where=where)
    length = int.from_bytes(tail[end + 12 : end + 16], "little")
    large = tail.rfind(b"PK\6\6", 0, end)
    if large >= 0 and tail[end - 20 : end - 16] == b"PK\6\7":
        length = int.from_bytes(tail[large + 40 : large + 48], "little")
    return length


def _protocol(part: str, where: str) -> str:
    """The protocol of one link of a chain; a bare path is a file. Raises LocatorError for those not listed."""
    name, separator, _ = part.partition("://")
    protocol = name.lower() if separator else "file"
    if protocol not in PROTOCOLS:
        listed = ", ".join(f"{each}://" for each in PROTOCOLS)
        raise LocatorError(f"{protocol[:40]}:// is not read", where=where, hint=f"accepted: {listed}")
    return protocol


def _relative(path: str, root: str) -> str:
    return str(path).lstrip("/").removeprefix(root.strip("/")).strip("/")


def _entry(info: Mapping[str, Any]) -> _Entry:
    key = next((key for key in _VALIDATORS if info.get(key) not in (None, "")), None)
    validator = f"{key} {_moment(info[key])}" if key else ""
    packed = bool(info.get("compress_type", 0))
    return _Entry(str(info["name"]), int(info["size"] or 0), validator, packed)


def _moment(value: object) -> str:
    """A time is a number in one call of a file system and a date in the next."""
    seconds = value.timestamp() if isinstance(value, datetime) else value
    return f"{seconds:.6f}" if isinstance(seconds, float) else str(value)


def _fsspec() -> ModuleType:
    try:
        import_module("fsspec.core")
        return import_module("fsspec")
    except ModuleNotFoundError:
        raise _missing("fsspec") from None


def _missing(what: str) -> UsageError:
    return UsageError(f"this locator needs {what}", hint="run: pip install 'drupe[cloud]'")


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Whatever a file system of a stranger raises, as one of our errors."""
    try:
        yield
    except DrupeError:
        raise
    except ImportError as error:
        raise _missing(_first_line(error)) from None
    except FileNotFoundError:
        raise LocatorError("no such file or folder", where=where) from None
    except Exception as error:  # boto, gcsfs and others have trees of their own
        what = f"{type(error).__name__}: {_first_line(error)}"
        hint = "check the credentials of this store; FSSPEC_S3_ANON=true reads a public S3 bucket"
        raise SourceError(what, where=where, hint=hint) from None


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
