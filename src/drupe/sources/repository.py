"""What repositories of every hub have in common: one listing at one version, files read by ranges."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import unquote

from drupe.errors import LocatorError
from drupe.sources.cache import RangeCache
from drupe.sources.interface import Blob, Meter
from drupe.sources.local import LocalTree
from drupe.sources.paths import belonging, check_count, check_name, is_hidden, is_safe
from drupe.sources.ranged import HttpBlob
from drupe.sources.transfer import Session

COMMIT = re.compile(r"[0-9a-f]{40}")
_FORM = re.compile(
    r"[a-z]+:(?://)?(?P<repository>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/@]+))?(?:/(?P<path>.*))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Place:
    """A repository, a revision of it, and a folder or file inside."""

    repository: str
    revision: str
    path: str


def parse_place(locator: str, default: str = "main") -> Place:
    """The parts of ``hf:ORG/NAME[@REV][/FOLDER or FILE]``; a slash inside a branch name is written %2F.

    >>> parse_place("hf:org/name@refs/pr/1/onnx")
    Place(repository='org/name', revision='refs/pr/1', path='onnx')
    """
    match = _FORM.fullmatch(locator)
    if match is None:
        kind = locator.partition(":")[0]
        raise LocatorError(f"not of the form {kind}:ORG/NAME[@REVISION][/FOLDER]", where=locator)
    revision = unquote(match["revision"] or default)
    path = (match["path"] or "").strip("/")
    for part in (match["repository"], revision, path):
        if part:
            check_name(part, locator)
    return Place(match["repository"], revision, path)


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository. ``commit`` is what they are read at; size None: not stated."""

    commit: str
    sizes: Mapping[str, int | None]
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 in hex, as the hub states it."""


def from_record(record: Mapping[str, Any] | None) -> Listing | None:
    """The listing that an earlier run put into the cache."""
    match record:
        case {"commit": str(commit), "sizes": dict(sizes), "digests": dict(digests)}:
            whole = all(is_safe(name) and isinstance(size, int) for name, size in sizes.items())
            return Listing(commit, sizes, digests) if whole else None
        case _:
            return None


def checked(sizes: Mapping[str, int | None], where: str) -> dict[str, int | None]:
    """What of a stranger's listing may be a file of a model. Raises LimitError when there are too many."""
    check_count(len(sizes), where)
    return {name: size for name, size in sizes.items() if is_safe(name) and not is_hidden(name)}


class RepositoryTree:
    """A listed repository. ``address`` gives the URL of a file; files of the ``local`` copy need none."""

    def __init__(
        self,
        shown: str,
        place: Place,
        listing: Listing,
        *,
        session: Session,
        address: Callable[[str], str],
        local: LocalTree | None = None,
        cache: RangeCache | None = None,
        pinned: bool = True,
    ) -> None:
        self._locator = shown
        self._listing = listing
        self._session = session
        self._address = address
        self._local = local
        self._cache = cache
        self._pinned = pinned
        self._remote: dict[str, HttpBlob] = {}
        sizes = listing.sizes.items()
        self._sizes = {
            name: self._blob(name, name, None).size if size is None else size for name, size in sizes
        }
        self._prefix, self.selected = _split_path(place, self._sizes, shown)
        self._files = self._select()

    @property
    def locator(self) -> str:
        """What the user wrote."""
        return self._locator

    @property
    def revision(self) -> str | None:
        """The commit that every file is read from."""
        return self._listing.commit

    def record(self) -> dict[str, Any]:
        """The listing, for the cache."""
        return asdict(Listing(self._listing.commit, self._sizes, self._listing.digests))

    @property
    def meter(self) -> Meter:
        """What was fetched or read so far."""
        return self._session.meter

    @property
    def known_digests(self) -> Mapping[str, str]:
        """Relative path -> SHA-256 in hex, as the hub states it; not verified."""
        stated = self._listing.digests
        return {name: stated[full] for name in self._files if (full := self._prefix + name) in stated}

    def files(self) -> Mapping[str, int]:
        """Relative path -> size; hidden files are left out."""
        return self._files

    def open(self, name: str) -> Blob:
        """The file of that relative path: from the local copy when it is there, else from the server."""
        check_name(name, self._locator)
        full = self._prefix + name
        size = self._sizes.get(full)
        if size is None:
            raise LocatorError("no such file in the repository", where=f"{self._locator}: {name}")
        if self._local is not None and self._local.files().get(full) == size:
            return self._local.open(full, name)
        return self._blob(full, name, size)

    def close(self) -> None:
        """End the connections; also happens when the tree is collected."""
        self._session.close()

    def _blob(self, full: str, name: str, size: int | None) -> HttpBlob:
        if full not in self._remote:
            url, cache = self._address(full), self._cache
            self._remote[full] = HttpBlob(self._session, url, name, size, pinned=self._pinned, cache=cache)
        return self._remote[full]

    def _select(self) -> dict[str, int]:
        names = [name.removeprefix(self._prefix) for name in self._sizes if name.startswith(self._prefix)]
        if self.selected is not None:
            names = belonging([name for name in names if "/" not in name], self.selected)
        return {name: self._sizes[self._prefix + name] for name in sorted(names)}


def _split_path(place: Place, listed: Mapping[str, int], where: str) -> tuple[str, str | None]:
    """The folder as a prefix, and the file that the locator selects in it."""
    if not place.path:
        return "", None
    if place.path in listed:
        folder, slash, name = place.path.rpartition("/")
        return folder + slash, name
    if any(name.startswith(place.path + "/") for name in listed):
        return place.path + "/", None
    raise LocatorError(f"no folder or file {place.path!r} in {place.repository}", where=where)
