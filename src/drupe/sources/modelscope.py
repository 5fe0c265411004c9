"""Repositories on ModelScope (MODELSCOPE_ENDPOINT, MODELSCOPE_DOMAIN), by its public HTTP interface.

What is used of it, as its own library does (https://pypi.org/project/modelscope-hub, ``_legacy_api.py``, and
https://github.com/modelscope/modelscope, ``hub/api.py`` and ``hub/file_download.py``):

- ``GET /api/v1/models/ORG/NAME/repo/files?Revision=REV&Recursive=True[&Root=FOLDER]`` lists ``Data.Files`` with
  Path, Type (blob, tree), Size, Sha256 and Revision (the commit that last changed the file). One answer is cut at
  3000 entries without a word; folders are then listed one by one. An unknown revision is an answer without files.
- ``Data.LatestCommitter`` holds the commit: its Id, or only the first eight digits of it (ShortId), which the
  Revision of some file completes.
- ``GET /api/v1/models/ORG/NAME/repo?Revision=REV&FilePath=PATH`` delivers a file, ranges included.
- A token (MODELSCOPE_API_TOKEN) goes as Authorization and as the cookie ``m_session_id``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote_plus, urlencode

from drupe.errors import DrupeError, LimitError, LocatorError, OfflineError, SourceError
from drupe.sources.cache import open_cache
from drupe.sources.interface import Meter
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
from drupe.sources.urls import check_scheme, modelscope_endpoint, origin

CUT = 3000
"""Entries at which one answer ends (REPO_FILES_TRUNCATION_LIMIT of the library)."""
MAX_ANSWER = 8 << 20
MAX_REQUESTS = 256
"""Listings of folders of one repository."""
_DEFAULT = "master"


class ModelScopeTree(RepositoryTree):
    """A repository at one commit, or at a branch where ModelScope does not say the commit."""

    def __init__(self, locator: str, *, offline: bool = False, limits: Limits | None = None) -> None:
        place, cache = parse_place(locator, _DEFAULT), open_cache()
        base = f"{modelscope_endpoint()}/api/v1/models/{place.repository}/repo"
        check_scheme(base)
        session = Session(
            Meter(),
            limits,
            credentials=_credentials(),
            explain=lambda status, _: _refusal(status, place),
            offline=offline,
        )
        key = f"{base}@{place.revision}"
        if offline:
            listing = from_record(cache.recall(key) if cache else None)
            if listing is None:
                what = f"{place.repository} at {place.revision} is not in the cache"
                raise OfflineError(what, where=locator)
        else:
            listing = _Lister(session, base, locator).listing(place.revision)
        pinned = COMMIT.fullmatch(listing.commit) is not None
        revision = quote_plus(listing.commit if pinned else place.revision)
        super().__init__(
            locator,
            place,
            listing,
            session=session,
            address=lambda full: f"{base}?Revision={revision}&FilePath={quote_plus(full)}",
            cache=cache,
            pinned=pinned,
        )
        if cache and not offline:
            cache.remember(key, self.record())

    @property
    def revision(self) -> str | None:
        """The commit that every file is read from; None when ModelScope does not say it."""
        return self._listing.commit or None


class _Lister:
    """Asks for the listing, and again at the commit that it names: then nothing can move underneath."""

    def __init__(self, session: Session, base: str, where: str) -> None:
        self._session = session
        self._base = base
        self._where = where
        self._requests = 0

    def listing(self, revision: str) -> Listing:
        files, committer = self._files(revision)
        if files is None:
            raise LocatorError(
                f"no revision {revision!r}", where=self._where, hint="give a branch, tag or commit"
            )
        commit = revision if COMMIT.fullmatch(revision) else _commit(files, committer)
        if commit and commit != revision:
            at_commit, _ = self._files(commit)
            files, commit = (files, "") if at_commit is None else (at_commit, commit)
        sizes: dict[str, int | None] = {}
        digests: dict[str, str] = {}
        for entry in files:
            name, size, digest = entry.get("Path"), entry.get("Size"), entry.get("Sha256")
            if entry.get("Type") != "tree" and isinstance(name, str):
                sizes[name] = size if isinstance(size, int) and size >= 0 else None
                if isinstance(digest, str) and digest:
                    digests[name] = digest
        return Listing(commit, checked(sizes, self._where), digests)

    def _files(self, revision: str) -> tuple[list[dict[str, Any]] | None, object]:
        """All entries, and what is said of the commit; None when there is no such revision."""
        files, committer = self._page(revision, "", recursive=True)
        if files is None or len(files) < CUT:
            return files, committer
        found: dict[str, dict[str, Any]] = {}
        pending = [""]
        while pending:
            folder = pending.pop()
            below = self._page(revision, folder, recursive=True)[0] or []
            if len(below) >= CUT:
                below = self._page(revision, folder, recursive=False)[0] or []
                pending += [str(entry.get("Path")) for entry in below if entry.get("Type") == "tree"]
                if len(below) >= CUT:
                    what = "files of one folder: ModelScope lists no more, so the listing would be incomplete"
                    raise LimitError(
                        what, limit=CUT, actual=f"{CUT} or more", where=f"{self._where}/{folder}"
                    )
            found |= {str(entry.get("Path")): entry for entry in below}
        return list(found.values()), committer

    def _page(
        self, revision: str, folder: str, *, recursive: bool
    ) -> tuple[list[dict[str, Any]] | None, object]:
        self._requests += 1
        if self._requests > MAX_REQUESTS:
            raise LimitError(
                "folders to list", limit=MAX_REQUESTS, actual=f"more than {MAX_REQUESTS}", where=self._where
            )
        query = {"Revision": revision, "Recursive": str(recursive), **({"Root": folder} if folder else {})}
        reply = self._session.fetch(f"{self._base}/files?{urlencode(query)}", MAX_ANSWER)
        data = _data(reply.body, self._where)
        files = data.get("Files")
        if files is not None and not (
            isinstance(files, list) and all(isinstance(entry, dict) for entry in files)
        ):
            raise _malformed("Files is no list", self._where)
        return files, data.get("LatestCommitter")


def _data(body: bytes, where: str) -> Mapping[str, Any]:
    """The ``Data`` of an answer. Raises SourceError when ModelScope reports a failure or answers nonsense."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise _malformed("no JSON", where) from None
    if not isinstance(answer, dict):
        raise _malformed("no object", where)
    if answer.get("Success") is False:
        message = " ".join(str(answer.get("Message", "")).split())[:200]
        raise SourceError(f"ModelScope reports a failure: {message}", where=where)
    data = answer.get("Data")
    if not isinstance(data, dict):
        raise _malformed("Data is no object", where)
    return data


def _malformed(what: str, where: str) -> SourceError:
    return SourceError(f"the answer of ModelScope is malformed ({what})", where=where)


def _commit(files: list[dict[str, Any]], committer: object) -> str:
    """The commit of the listing in full, or "" when it is not said."""
    said = committer if isinstance(committer, dict) else {}
    if COMMIT.fullmatch(str(said.get("Id", ""))):
        return str(said["Id"])
    short = str(said.get("ShortId", ""))
    revisions = {str(entry.get("Revision", "")) for entry in files}
    found = [revision for revision in revisions if COMMIT.fullmatch(revision) and revision.startswith(short)]
    return found[0] if len(short) >= 7 and len(found) == 1 else ""


def _token() -> str | None:
    return os.environ.get("MODELSCOPE_API_TOKEN") or None


def _credentials() -> dict[str, Mapping[str, str]]:
    """The token, for the configured endpoint and for no other host."""
    token = _token()
    if token is None or not token.isascii() or not token.isprintable():
        return {}
    headers = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}
    return {origin(modelscope_endpoint()): headers}


def _refusal(status: int, place: Place) -> DrupeError | None:
    page = f"{modelscope_endpoint()}/models/{place.repository}"
    if status in (404, 410):
        hint = "check the spelling" + (
            "" if _token() else "; if it is private, set MODELSCOPE_API_TOKEN to your access token"
        )
        return LocatorError(f"no such repository or file (HTTP {status})", where=page, hint=hint)
    if status in (401, 403):
        hint = f"if it is private or asks for an application, apply at {page}, then set MODELSCOPE_API_TOKEN"
        return RefusedError(f"ModelScope refuses access (HTTP {status})", where=page, hint=hint)
    return None
