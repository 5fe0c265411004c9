"""Repositories on the Hugging Face hub or a mirror of it (HF_ENDPOINT), pinned to one commit."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from drupe.errors import DrupeError, LocatorError, OfflineError, SourceError
from drupe.sources.http import HttpBlob
from drupe.sources.interface import Blob, Meter
from drupe.sources.local import LocalTree
from drupe.sources.paths import belonging, check_count, check_name, is_hidden, is_safe
from drupe.sources.transfer import Limits, Session
from drupe.sources.urls import endpoint, origin, redact

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

_FORM = re.compile(
    r"hf:(?://)?(?P<repository>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/@]+))?(?:/(?P<path>.*))?",
    re.ASCII,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_S = 20.0
_TRUE = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True, slots=True)
class Place:
    """A repository, a revision of it, and a folder or file inside."""

    repository: str
    revision: str
    path: str

    @property
    def page(self) -> str:
        """Where a person reads about it."""
        return f"{endpoint()}/{self.repository}"


def parse_place(locator: str) -> Place:
    """The parts of ``hf:ORG/NAME[@REV][/FOLDER or FILE]``; a slash inside a branch name is written %2F.

    >>> parse_place("hf:org/name@refs/pr/1/onnx")
    Place(repository='org/name', revision='refs/pr/1', path='onnx')
    """
    match = _FORM.fullmatch(locator)
    if match is None:
        raise LocatorError("not of the form hf:ORG/NAME[@REVISION][/FOLDER]", where=locator)
    revision = unquote(match["revision"] or "main")
    path = (match["path"] or "").strip("/")
    for part in (match["repository"], revision, path):
        if part:
            check_name(part, locator)
    return Place(match["repository"], revision, path)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids connections, as it does for every client of the hub."""
    return any(
        os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def cache_folder() -> Path:
    """The hub's cache on this machine, from the environment as it is now."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if given:
        return Path(os.path.expandvars(given)).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def cached_snapshot(place: Place) -> Path | None:
    """The folder ``models--ORG--NAME/snapshots/COMMIT`` of a revision, when this machine has it."""
    repository = cache_folder() / ("models--" + place.repository.replace("/", "--"))
    commit = place.revision
    try:
        if not _COMMIT.fullmatch(commit):
            with (repository / "refs" / commit).open("rb") as reference:
                commit = reference.read(64).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = repository / "snapshots" / commit
    return snapshot if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None


class HubTree:
    """A repository at one commit: listed by one request, files read by ranges, or from the local cache.

    ``known_digests`` gives the SHA-256 (hex) that the hub states for its large files. Offline, only what the
    cache holds is listed.
    """

    def __init__(
        self, locator: str, *, offline: bool = False, shown: str | None = None, limits: Limits | None = None
    ) -> None:
        self._locator = shown or locator
        self._place = parse_place(locator)
        self._meter = Meter()
        self._remote: dict[str, HttpBlob] = {}
        self._digests: dict[str, str] = {}
        self._session: Session | None = None
        listed = self._list_cached() if offline or is_offline() else self._list_remote(limits)
        self._prefix, self.selected = _split_path(self._place, listed)
        self._files = self._select(listed)

    @property
    def locator(self) -> str:
        """What the user wrote."""
        return self._locator

    @property
    def revision(self) -> str | None:
        """The commit that every file is read from."""
        return self._commit

    @property
    def meter(self) -> Meter:
        """What was fetched or read so far."""
        return self._meter

    @property
    def known_digests(self) -> Mapping[str, str]:
        """Relative path -> SHA-256 in hex, as the hub states it; not verified."""
        return {
            name: self._digests[self._prefix + name]
            for name in self._files
            if self._prefix + name in self._digests
        }

    def files(self) -> Mapping[str, int]:
        """Relative path -> size; hidden files are left out."""
        return self._files

    def open(self, name: str) -> Blob:
        """The file of that relative path: from the cache when it is there, else from the hub."""
        check_name(name, self._locator)
        full = self._prefix + name
        size = self._listed.get(full)
        if size is None:
            raise LocatorError("no such file in the repository", where=f"{self._locator}: {name}")
        if self._cached is not None and self._cached.files().get(full) == size:
            return self._cached.open(full)
        return self._blob(full, name, size)

    def close(self) -> None:
        """End the connections; also happens when the tree is collected."""
        if self._session is not None:
            self._session.close()

    def _blob(self, full: str, name: str, size: int | None) -> HttpBlob:
        assert self._session is not None, "offline trees list cached files only"
        if full not in self._remote:
            address = f"{self._place.page}/resolve/{self._commit}/{quote(full)}"
            self._remote[full] = HttpBlob(self._session, address, name, size)
        return self._remote[full]

    def _list_cached(self) -> dict[str, int]:
        snapshot = cached_snapshot(self._place)
        if snapshot is None:
            raise OfflineError(
                f"{self._place.repository} at {self._place.revision} is not in the cache {cache_folder()}",
                where=self._locator,
            )
        self._use_cache(snapshot)
        self._commit = snapshot.name
        self._listed = dict(self._cached.files()) if self._cached else {}
        return self._listed

    def _list_remote(self, limits: Limits | None) -> dict[str, int]:
        info = _model_info(self._place, self._locator, self._meter)
        if not info.sha or not _COMMIT.fullmatch(info.sha):
            raise SourceError("the hub names no commit for this revision", where=self._locator)
        self._commit = info.sha
        self._session = Session(
            self._meter, limits, credentials=_credentials(), refusal_hint=_access_hint(self._place)
        )
        self._use_cache(cached_snapshot(Place(self._place.repository, info.sha, "")))
        siblings = info.siblings or []
        check_count(len(siblings), self._locator)
        self._listed = {}
        for sibling in siblings:
            name = sibling.rfilename
            if not isinstance(name, str) or not is_safe(name) or is_hidden(name):
                continue
            if sibling.lfs is not None:
                self._digests[name] = str(sibling.lfs.sha256)
            size = sibling.size
            self._listed[name] = size if isinstance(size, int) else self._blob(name, name, None).size
        return self._listed

    def _use_cache(self, snapshot: Path | None) -> None:
        self._cached = LocalTree(snapshot, meter=self._meter) if snapshot else None

    def _select(self, listed: Mapping[str, int]) -> dict[str, int]:
        names = [name.removeprefix(self._prefix) for name in listed if name.startswith(self._prefix)]
        if self.selected is not None:
            names = belonging([name for name in names if "/" not in name], self.selected)
        return {name: listed[self._prefix + name] for name in sorted(names)}


def _split_path(place: Place, listed: Mapping[str, int]) -> tuple[str, str | None]:
    """The folder as a prefix, and the file that the locator selects in it."""
    if not place.path:
        return "", None
    if place.path in listed:
        folder, slash, name = place.path.rpartition("/")
        return folder + slash, name
    if any(name.startswith(place.path + "/") for name in listed):
        return place.path + "/", None
    raise LocatorError(
        f"no folder or file {place.path!r} in {place.repository}", where=f"hf:{place.repository}"
    )


def _access_hint(place: Place) -> str:
    return (
        f"if it is private or gated, ask for access at {redact(place.page)}, then set HF_TOKEN to your token"
    )


def _token() -> str | None:
    """The user's token as every client of the hub finds it: HF_TOKEN, or what ``hf auth login`` stored."""
    from huggingface_hub import get_token

    return None if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in _TRUE else get_token()


def _credentials() -> dict[str, str]:
    """The token, for the configured hub and for no other host."""
    token = _token()
    return {origin(endpoint()): f"Bearer {token}"} if token else {}


def _model_info(place: Place, locator: str, meter: Meter, attempts: int = 3) -> ModelInfo:
    """The listing; a busy hub is asked again."""
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(attempts):
        try:
            meter.requests += 1
            return _ask_hub(place)
        except DrupeError:
            raise
        except Exception as error:
            response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
            again = response is not None and response.status_code in (429, 500, 502, 503, 504)
            if not again or attempt == attempts - 1:
                raise _translate(error, place, locator) from None
            time.sleep(0.5 * 2**attempt)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _ask_hub(place: Place) -> ModelInfo:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # no request that nobody asked for
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint(), token=_token() or False)
    return api.model_info(place.repository, revision=place.revision, files_metadata=True, timeout=_TIMEOUT_S)


def _translate(error: Exception, place: Place, locator: str) -> DrupeError:
    """The error of the hub's client in our own words; its texts hold addresses and stack noise."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    access = _access_hint(place)
    match error:
        case GatedRepoError():
            return SourceError("the repository is gated", where=locator, hint=access)
        case RepositoryNotFoundError():
            return LocatorError("no such repository", where=locator, hint=f"check the spelling; {access}")
        case RevisionNotFoundError():
            return LocatorError(
                f"no revision {place.revision!r}", where=locator, hint="give a branch, tag or commit"
            )
        case HFValidationError():
            return LocatorError("not a valid repository name", where=locator)
        case HfHubHTTPError():
            status = error.response.status_code
            hint = access if status in (401, 403) else ""
            return SourceError(f"the hub answers HTTP {status}", where=locator, hint=hint)
        case KeyError() | TypeError() | AttributeError() | ValueError():
            return SourceError(f"the hub's answer is malformed ({type(error).__name__})", where=locator)
        case _:
            what = f"{origin(endpoint())} cannot be reached ({type(error).__name__})"
            return SourceError(
                what, where=locator, hint="check the connection, or use --offline with a cached copy"
            )
