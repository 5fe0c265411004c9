"""Files on this machine: a folder, or one weight file with the files that describe it."""

from __future__ import annotations

import errno
import os
import stat
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from drupe.errors import LocatorError, SourceError, UnsafePathError
from drupe.sources.interface import Meter, Span
from drupe.sources.paths import belonging, check_count, check_depth, check_name, is_hidden, is_safe
from drupe.sources.spans import carve, check_span, coalesce

SEQUENTIAL = 1 << 20
"""Reads longer than this let the kernel read ahead; shorter ones cost only their own pages."""
_MERGED = 8 << 20


class LocalBlob:
    """One regular file, read at random positions. Closed with :meth:`close` or when it is collected."""

    def __init__(self, path: str, name: str, meter: Meter) -> None:
        self._name = name
        self._meter = meter
        self._descriptor = _open_regular(path, name)
        self.close = weakref.finalize(self, os.close, self._descriptor)
        state = os.fstat(self._descriptor)
        self._size = state.st_size
        self._modified = state.st_mtime_ns
        self._advise("POSIX_FADV_RANDOM")

    @property
    def name(self) -> str:
        """Path relative to the root of its tree."""
        return self._name

    @property
    def size(self) -> int:
        """Length in bytes when it was opened."""
        return self._size

    @property
    def modified(self) -> int:
        """When it was last written, in nanoseconds since 1970."""
        return self._modified

    def read(self, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``; SourceError when the file changes meanwhile."""
        check_span(start, length, self._size, self._name)
        if not self.close.alive:
            raise SourceError("the file was closed", where=self._name)
        if length == 0:
            return b""
        try:
            content = self._read(start, length)
            state = os.fstat(self._descriptor)
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror}", where=self._name) from None
        if len(content) != length or (state.st_size, state.st_mtime_ns) != (self._size, self._modified):
            raise SourceError(
                "the file changed while it was read", where=self._name, hint="try again when it is complete"
            )
        return content

    def read_many(self, spans: Sequence[Span]) -> list[bytes]:
        """Several spans in the given order; only touching ones are joined, no gap is read."""
        for start, length in spans:
            check_span(start, length, self._size, self._name)
        ranges = coalesce(spans, gap=0, cap=_MERGED)
        self._announce(ranges)
        return carve(spans, ranges, [self.read(start, stop - start) for start, stop in ranges])

    def copy_to(self, descriptor: int, start: int, length: int) -> bool:
        """Append a span to an open file inside the kernel; False, and nothing done, where that cannot be.

        Raises FormatError and SourceError as :meth:`read` does, OSError when the other file cannot be written.
        """
        check_span(start, length, self._size, self._name)
        done = 0
        while done < length:
            try:
                step = os.copy_file_range(self._descriptor, descriptor, length - done, start + done)
            except (AttributeError, OSError) as error:
                full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
                if full or done:
                    raise
                return False
            if step == 0:
                raise SourceError("the file changed while it was read", where=self._name)
            done += step
        self._meter.requests += 1
        self._meter.bytes_read += length
        state = os.fstat(self._descriptor)
        if (state.st_size, state.st_mtime_ns) != (self._size, self._modified):
            raise SourceError("the file changed while it was read", where=self._name)
        return True

    def _read(self, start: int, length: int) -> bytes:
        if length <= SEQUENTIAL:
            return self._read_exactly(start, length)
        self._advise("POSIX_FADV_SEQUENTIAL")
        try:
            return self._read_exactly(start, length)
        finally:
            self._advise("POSIX_FADV_RANDOM")

    def _read_exactly(self, start: int, length: int) -> bytes:
        """One system call as a rule; the kernel may deliver less, and at most 2 GiB."""
        pieces: list[bytes] = []
        missing = length
        while missing:
            piece = os.pread(self._descriptor, missing, start + length - missing)
            self._meter.requests += 1
            self._meter.bytes_read += len(piece)
            if not piece:
                break
            pieces.append(piece)
            missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _announce(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Name several short ranges before they are read: the disk then works on them at once, not one by one."""
        if len(ranges) > 1 and self.close.alive:
            for start, stop in ranges:
                if stop - start <= SEQUENTIAL:
                    self._advise("POSIX_FADV_WILLNEED", start, stop - start)

    def _advise(self, advice: str, start: int = 0, length: int = 0) -> None:
        """Advice is optional: some systems and file systems have none."""
        if hasattr(os, "posix_fadvise"):
            try:
                os.posix_fadvise(self._descriptor, start, length, getattr(os, advice))
            except OSError:
                return


def _open_regular(path: str, name: str) -> int:
    """A descriptor of a regular file; a pipe or device is never opened, nor a link put in its place."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise UnsafePathError("not a regular file", where=name)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise LocatorError("no such file", where=name) from None
    except OSError as error:
        raise SourceError(f"cannot be opened: {error.strerror}", where=name) from None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise UnsafePathError("not a regular file", where=name)


class LocalTree:
    """A folder, or one ``selected`` weight file of a folder.

    With a selected file, :meth:`files` lists it and its known siblings (configuration, tokenizer, card,
    licence, shards of an index); :meth:`open` reads any file of the folder, since a weight file may name
    another one. Links are followed inside the folder, and inside the enclosing ``models--*`` folder of a
    Hugging Face cache (``snapshots/REV/file -> ../../blobs/HASH``).
    """

    def __init__(
        self, path: str | os.PathLike[str], *, locator: str | None = None, meter: Meter | None = None
    ) -> None:
        given = Path(path)
        self._locator = os.fspath(path) if locator is None else locator
        self._meter = meter or Meter()
        try:
            mode = given.stat().st_mode
        except (OSError, ValueError):
            raise LocatorError("no such file or folder", where=self._locator) from None
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise LocatorError("neither a regular file nor a folder", where=self._locator)
        self.selected = None if stat.S_ISDIR(mode) else given.name
        folder = given if self.selected is None else given.parent
        self._root = os.path.realpath(folder)
        self._boundary = _boundary(Path(self._root))
        self._files: dict[str, int] | None = None

    @property
    def locator(self) -> str:
        """What the user wrote."""
        return self._locator

    @property
    def revision(self) -> str | None:
        """None: a folder has no revision."""
        return None

    @property
    def meter(self) -> Meter:
        """What was read so far."""
        return self._meter

    def files(self) -> Mapping[str, int]:
        """Relative path -> size, sorted; hidden files, links out and special files are left out."""
        if self._files is None:
            found = dict(self._walk() if self.selected is None else self._beside(self.selected))
            self._files = dict(sorted(found.items()))
        return self._files

    def open(self, name: str, shown: str | None = None) -> LocalBlob:
        """The file of that relative path, whether listed or not; ``shown``: under another name."""
        check_name(name, self._locator)
        path = self._resolve(name)
        if path is None:
            raise UnsafePathError("a link leads out of the model's folder", where=f"{self._locator}: {name}")
        return LocalBlob(path, shown or name, self._meter)

    def _resolve(self, name: str) -> str | None:
        """The real path, or None when it lies outside. The file that the user named may be any link."""
        path = os.path.realpath(os.path.join(self._root, name))
        allowed = name == self.selected or any(
            path.startswith(os.path.join(root, "")) for root in (self._root, self._boundary)
        )
        return path if allowed else None

    def _beside(self, selected: str) -> Iterator[tuple[str, int]]:
        with os.scandir(self._root) as entries:
            names = [entry.name for entry in entries]
        for name in belonging(names, selected):
            size = self._size(name)
            if size is not None:
                yield name, size

    def _walk(self) -> Iterator[tuple[str, int]]:
        pending = [""]
        seen = 0
        while pending:
            folder = pending.pop()
            for name, is_folder in self._entries(folder):
                seen += 1
                check_count(seen, self._locator)
                if is_folder:
                    check_depth(f"{name}/", self._locator)
                    pending.append(name)
                elif (size := self._size(name)) is not None:
                    yield name, size

    def _entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        """Relative names in one folder and whether each is a real folder; linked folders count as files."""
        try:
            with os.scandir(os.path.join(self._root, folder)) as entries:
                for entry in entries:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if is_safe(name) and not is_hidden(name):
                        yield name, entry.is_dir(follow_symlinks=False)
        except OSError as error:
            raise SourceError(
                f"the folder cannot be listed: {error.strerror}", where=f"{self._locator}: {folder}"
            ) from None

    def _size(self, name: str) -> int | None:
        path = self._resolve(name)
        if path is None:
            return None
        try:
            state = os.lstat(path)
        except OSError:
            return None
        return state.st_size if stat.S_ISREG(state.st_mode) else None


def _boundary(root: Path) -> str:
    """The ``models--*`` folder when the root is a snapshot in a Hugging Face cache, else the root itself."""
    for folder in (root, *root.parents):
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
            return str(folder.parent.parent)
    return str(root)
