"""Where bytes come from. A source never interprets what it delivers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

Span = tuple[int, int]
"""Start and length, in bytes."""


@dataclass(slots=True)
class Meter:
    """Counts what a tree has delivered: payload bytes and requests (system calls or HTTP)."""

    bytes_read: int = 0
    requests: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def add(self, bytes_read: int = 0, requests: int = 0) -> None:
        """Count, from any thread."""
        with self._lock:
            self.bytes_read += bytes_read
            self.requests += requests


class Blob(Protocol):
    """One immutable file with random access."""

    @property
    def name(self) -> str:
        """Path relative to the root of its tree, with forward slashes; shown in errors."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def read(self, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``.

        Raises FormatError when the span lies outside the file, SourceError when the bytes cannot be had.
        """

    def read_many(self, spans: Sequence[Span]) -> list[bytes]:
        """Several spans in the given order; a remote blob coalesces near ones into few requests."""


class Tree(Protocol):
    """The files of one model: a directory, a repository at one revision, or a single file."""

    @property
    def locator(self) -> str:
        """What the user wrote."""

    @property
    def revision(self) -> str | None:
        """The pinned revision (commit) of a repository, or None."""

    @property
    def selected(self) -> str | None:
        """The one weight file of a folder that the user named; None for a whole folder or repository."""

    @property
    def meter(self) -> Meter:
        """What was read so far from any blob of this tree."""

    def files(self) -> Mapping[str, int]:
        """Relative path -> size in bytes, sorted by path. Never follows a link out of the tree."""

    def open(self, name: str) -> Blob:
        """The file of that relative path. Raises LocatorError when absent, UnsafePathError when outside."""
