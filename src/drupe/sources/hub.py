"""Repositories on the Hugging Face hub or a mirror of it (HF_ENDPOINT), pinned to one commit."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from drupe.errors import DrupeError, LocatorError, OfflineError, SourceError
from drupe.sources.cache import open_cache
from drupe.sources.interface import Meter
from drupe.sources.local import LocalTree
from drupe.sources.repository import (
    COMMIT,
    Listing,
    Place,
    RepositoryTree,
    checked,
    from_record,
    parse_place,
)
from drupe.sources.transfer import Limits, RefusedError, Session
from drupe.sources.urls import check_scheme, endpoint, origin, redact

MAX_LISTING = 8 << 20
"""Bytes of a listing; a file takes about 250."""
_TRUE = ("1", "ON", "YES", "TRUE")


def page(place: Place) -> str:
    """Where a person reads about a repository."""
    return f"{endpoint()}/{place.repository}"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids connections, as it does for every client of the hub."""
    return any(
        os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def hub_cache() -> Path:
    """The hub's cache on this machine, from the environment as it is now."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if given:
        return Path(os.path.expandvars(given)).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def cached_snapshot(repository: str, revision: str) -> Path | None:
    """The folder ``models--ORG--NAME/snapshots/COMMIT`` of a revision, when this machine has it."""
    folder = hub_cache() / ("models--" + repository.replace("/", "--"))
    commit = revision
    try:
        if not COMMIT.fullmatch(commit):
            with (folder / "refs" / commit).open("rb") as reference:
                commit = reference.read(64).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if COMMIT.fullmatch(commit) and snapshot.is_dir() else None


class HubTree(RepositoryTree):
    """A repository at one commit: listed by one request, files read by ranges, or from what this machine keeps.

    Offline, it is listed as an earlier run has seen it, or else as far as the hub's own cache holds it.
    """

    def __init__(
        self, locator: str, *, offline: bool = False, shown: str | None = None, limits: Limits | None = None
    ) -> None:
        place, cache = parse_place(locator), open_cache()
        where = shown or locator
        if any(pair in place.repository for pair in ("--", "..")):  # the hub has no such names
            raise LocatorError("not a valid repository name", where=where)
        check_scheme(page(place))
        key = f"{page(place)}@{place.revision}"
        offline = offline or is_offline()
        session = Session(
            Meter(),
            limits,
            credentials={} if offline else _credentials(),
            explain=lambda status, headers: _refusal(status, headers, place, where),
            offline=offline,
        )
        if offline:
            listing = _list_offline(place, from_record(cache.recall(key) if cache else None), where)
        else:
            listing = _list_online(session, place, where)
        snapshot = cached_snapshot(place.repository, listing.commit)
        super().__init__(
            where,
            place,
            listing,
            session=session,
            address=lambda full: f"{page(place)}/resolve/{listing.commit}/{quote(full)}",
            local=LocalTree(snapshot, meter=session.meter) if snapshot else None,
            cache=cache,
        )
        if cache and not offline:
            cache.remember(key, self.record())


def _list_offline(place: Place, remembered: Listing | None, where: str) -> Listing:
    snapshot = cached_snapshot(place.repository, place.revision)
    if remembered is not None and (snapshot is None or snapshot.name == remembered.commit):
        return remembered
    if snapshot is None:
        raise OfflineError(
            f"{place.repository} at {place.revision} is not in the cache {hub_cache()}", where=where
        )
    return Listing(snapshot.name, dict(LocalTree(snapshot).files()))


def _list_online(session: Session, place: Place, where: str) -> Listing:
    """``GET /api/models/ORG/NAME/revision/REV?blobs=true``: the commit; each file's name, size and LFS digest."""
    path = f"{place.repository}/revision/{quote(place.revision, safe='')}"
    body = session.fetch(f"{endpoint()}/api/models/{path}?blobs=true", MAX_LISTING).body
    try:
        info = json.loads(body)
    except (ValueError, RecursionError):
        raise _malformed("no JSON", where) from None
    siblings = info.get("siblings") if isinstance(info, dict) else None
    if not isinstance(siblings, list):
        raise _malformed("it lists no files", where)
    commit = info.get("sha")
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise SourceError("the hub names no commit for this revision", where=where)
    sizes: dict[str, int | None] = {}
    digests: dict[str, str] = {}
    for entry in siblings:
        match entry:
            case {"rfilename": str(name)}:
                size, lfs = entry.get("size"), entry.get("lfs")
                sizes[name] = size if isinstance(size, int) and size >= 0 else None
                if isinstance(lfs, dict) and isinstance(lfs.get("sha256"), str):
                    digests[name] = lfs["sha256"]
            case _:
                raise _malformed("an entry without a name", where)
    return Listing(commit, checked(sizes, where), digests)


def _malformed(what: str, where: str) -> SourceError:
    return SourceError(f"the hub's answer is malformed ({what})", where=where)


# -- access ------------------------------------------------------------------------------------------------


def _token() -> str | None:
    """The user's token as every client of the hub finds it: HF_TOKEN, or what ``hf auth login`` stored."""
    from huggingface_hub import get_token

    return None if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in _TRUE else get_token()


def _credentials() -> dict[str, Mapping[str, str]]:
    """The token, for the configured hub and for no other host."""
    token = _token()
    return {origin(endpoint()): {"Authorization": f"Bearer {token}"}} if token else {}


def _refusal(status: int, headers: Mapping[str, str], place: Place, where: str) -> DrupeError | None:
    """What a refusal of the hub means: gated, private or absent, a bad token, or one without the right.

    The hub says which in X-Error-Code and X-Error-Message; 401 without a code is also its answer for what does
    not exist (https://github.com/huggingface/huggingface_hub, utils/_http.py: ``hf_raise_for_status``).
    """
    code, message = headers.get("x-error-code", ""), headers.get("x-error-message", "")
    if code == "RevisionNotFound":
        hint = "give a branch, tag or commit"
        return LocatorError(f"no revision {place.revision!r}", where=where, hint=hint)
    known = _token() is not None
    address = redact(page(place))
    if code == "GatedRepo":
        hint = f"accept its conditions at {address}" + (
            " with the account of your token, and wait for the approval if it asks for one"
            if known
            else f", then set HF_TOKEN to a token of that account ({endpoint()}/settings/tokens)"
        )
        return RefusedError(f"the repository is gated (HTTP {status})", where=where, hint=hint)
    if message == "Access to this resource is disabled.":
        return RefusedError("the hub has disabled this repository", where=where, hint=f"see {address}")
    if status == 401 and message.startswith("Invalid credentials"):
        return RefusedError(
            "the hub does not know your token", where=where, hint="renew HF_TOKEN, or run: hf auth login"
        )
    if code == "RepoNotFound" or status == 401:
        hint = "check the spelling; if it is private, " + (
            "your token must belong to an account that may see it"
            if known
            else "set HF_TOKEN to a token that may see it"
        )
        return LocatorError(f"no such repository (HTTP {status})", where=where, hint=hint)
    if status == 403:
        hint = (
            "give the token the right to read this repository (a fine-grained token names its repositories)"
        )
        return RefusedError("the token may not read this repository (HTTP 403)", where=where, hint=hint)
    return None
