"""One file on a server, read by ranges that all come from one version of it, or from what is kept on disk."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from drupe.errors import LocatorError, SourceError
from drupe.sources.cache import RangeCache
from drupe.sources.transfer import Expected, RefusedError, Reply, Session
from drupe.sources.urls import redact
from drupe.sources.windowed import WindowedBlob

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_EMPTY_RANGE = re.compile(r"bytes \*/0+", re.ASCII)
_ERROR_PAGE = 64 << 10


@dataclass(frozen=True, slots=True)
class Version:
    """What a file was when it was first touched."""

    size: int
    etag: str = ""
    modified: str = ""
    media_type: str = ""

    @property
    def is_strong(self) -> bool:
        """Whether the entity tag promises equal bytes (RFC 9110, 8.8.3)."""
        return self.etag.startswith('"')

    @property
    def condition(self) -> Mapping[str, str]:
        """If-Range takes a strong validator only (RFC 9110, 13.1.5)."""
        return {"If-Range": self.etag} if self.is_strong else {}


class HttpBlob(WindowedBlob):
    """One file on a server. Its beginning is fetched at the first touch and kept; the rest by ranges.

    ``pinned``: the address names a commit or a digest, so that what is kept of it needs no question to the
    server. Of any other address, the first touch asks whether the version that is kept is still the present one.
    """

    def __init__(
        self,
        session: Session,
        url: str,
        name: str,
        size: int | None = None,
        *,
        pinned: bool = False,
        cache: RangeCache | None = None,
    ) -> None:
        super().__init__(name, session.limits, session.meter)
        self._session = session
        self._url = url
        self._where = redact(url)
        self._announced = size
        self._pinned = pinned
        self._cache = cache
        self._direct: str | None = None
        self._version: Version | None = None
        self._version_lock = (
            threading.Lock()
        )  # of its own: threads of a read take it while that holds the other

    @property
    def size(self) -> int:
        """Length in bytes; costs the first request unless the repository announced it."""
        return self._opened().size if self._announced is None else self._announced

    @property
    def is_page(self) -> bool:
        """Whether the server calls it a web page: some answer so for files they do not have."""
        return self._opened().media_type.lower().startswith("text/html")

    def _open(self) -> None:
        self._opened()

    def _fetch_pieces(self, pieces: Sequence[tuple[int, int]]) -> list[bytes]:
        if len(pieces) == 1:
            return [self._fetch(pieces[0])]
        return self._session.map(self._fetch, pieces)

    # -- which version -----------------------------------------------------------------------------------------

    def _opened(self) -> Version:
        """Touch the file once: that tells size and version, fetches the first window, follows redirects."""
        with self._lock:
            if self._version is None:
                known = self._known()
                if known is not None and (self._pinned or self._session.offline):
                    self._adopt(known)
                else:
                    self._touch(known)
            assert self._version is not None
            return self._version

    def _known(self) -> Version | None:
        """The version of which something is kept. Offline, an absent file is remembered as such."""
        record = self._cache.recall(self._url) if self._cache else None
        if record is None:
            return None
        if self._session.offline and isinstance(record.get("absent"), str):
            raise LocatorError(record["absent"], where=self._where)
        size, texts = record.get("size"), [record.get(key) for key in ("etag", "modified", "media_type")]
        if not isinstance(size, int) or size < 0 or not all(isinstance(text, str) for text in texts):
            return None
        known = Version(size, *map(str, texts))
        wanted = self._announced in (None, size)
        return known if wanted and (self._pinned or known.is_strong) else None

    def _touch(self, known: Version | None) -> None:
        headers = {"If-None-Match": known.etag} if known and known.is_strong else {}
        try:
            reply = self._request(0, self._limits.window, headers)
        except (LocatorError, RefusedError) as error:
            if self._cache:
                self._cache.remember(self._url, {"absent": error.what})
            raise
        self._direct = None if reply.url == self._url else reply.url
        if reply.status == 304 and known is not None:
            if reply.headers.get("etag", known.etag) != known.etag:
                raise self._wrong("the server calls a file unchanged and states another entity tag")
            self._adopt(known)
            return
        self._version = self._identify(reply)
        self._head = b"" if reply.status == 416 else reply.body
        if self._cache and (self._pinned or self._version.is_strong):
            if known is not None and self._identity(known) != self._identity(self._version):
                self._cache.drop(self._url, self._identity(known))
            self._cache.remember(self._url, asdict(self._version))
            self._kept = self._cache.spans(self._url, self._identity(self._version))
            self._kept.put(0, self._head)

    def _adopt(self, known: Version) -> None:
        """Go on with the version of which something is kept.

        A pinned address says enough about the content: its entity tag may differ from one mirror to the next, and
        counts from the first answer of this run only.
        """
        assert self._cache is not None
        self._kept = self._cache.spans(self._url, self._identity(known))
        self._version = replace(known, etag="", modified="") if self._pinned else known
        self._head = self._recall(0, min(self._limits.window, known.size)) or b""

    def _identity(self, version: Version) -> str:
        return f"{version.size}" if self._pinned else f"{version.size} {version.etag}"

    def _identify(self, reply: Reply) -> Version:
        whole = reply.status == 200
        size = len(reply.body) if whole else int(reply.headers["content-range"].rpartition("/")[2])
        self._check_size(size)
        return Version(size, *_validators(reply.headers), reply.headers.get("content-type", ""))

    # -- requests ----------------------------------------------------------------------------------------------

    def _fetch(self, piece: tuple[int, int]) -> bytes:
        start, stop = piece
        if (content := self._recall(start, stop)) is not None:
            return content
        reply = self._request(start, stop)
        if self._kept:
            self._kept.put(0 if reply.status == 200 else start, reply.body)
        return reply.body[start:stop] if reply.status == 200 else reply.body

    def _request(self, start: int, stop: int, condition: Mapping[str, str] | None = None) -> Reply:
        """One range; the target of an earlier redirect is used until it expires."""
        headers = {"Range": f"bytes={start}-{stop - 1}", **(condition or {})}
        if self._version is not None:
            headers |= self._version.condition
        accept = partial(self._accept, start, stop)
        if self._direct is not None:
            try:
                return self._session.get(self._direct, headers, accept, expected=stop - start)
            except (RefusedError, LocatorError):
                self._direct = None
        reply = self._session.get(self._url, headers, accept, expected=stop - start)
        if self._version is not None and reply.url != self._url:
            self._direct = reply.url
        return reply

    def _accept(self, start: int, stop: int, status: int, headers: Mapping[str, str]) -> Expected:
        if status == 304:
            return Expected(0, False)
        self._check_version(headers)
        if status == 200:
            return self._accept_whole(headers)
        stated = headers.get("content-range", "")
        if status == 416:
            if _EMPTY_RANGE.fullmatch(stated) and start == 0:
                self._check_size(0)
                return Expected(_ERROR_PAGE, False)
            raise self._wrong(f"the server refuses the range {start}-{stop - 1}, stating {stated[:80]!r}")
        match = _CONTENT_RANGE.fullmatch(stated)
        if match is None:
            raise self._wrong(f"Content-Range is {stated[:80]!r}")
        first, last, size = (int(group) for group in match.groups())
        self._check_size(size)
        if (first, last) != (start, min(stop, size) - 1):
            raise self._wrong(f"asked for bytes {start}-{stop - 1}, the server answers with {stated!r}")
        length = last - first + 1
        if headers.get("content-length", str(length)) != str(length):
            raise self._wrong(
                f"Content-Length {headers['content-length'][:40]} for a range of {length} bytes"
            )
        return Expected(length, True)

    def _accept_whole(self, headers: Mapping[str, str]) -> Expected:
        """The server ignores ranges: only a file that memory can hold is taken."""
        stated = headers.get("content-length", "")
        limit = self._limits.unranged
        if not stated.isdecimal():
            return Expected(limit, False)
        size = int(stated) if len(stated) <= 18 else 10**18
        if size > limit:
            raise SourceError(
                f"the server ignores range requests and the file has {size} bytes, more than {limit}",
                where=self._where,
                hint="download the file and give its path",
            )
        self._check_size(size)
        return Expected(size, True)

    def _check_version(self, headers: Mapping[str, str]) -> None:
        with self._version_lock:
            version = self._version
            if version is None:
                return
            etag, modified = _validators(headers)
            if not version.etag and not version.modified:  # kept by an earlier run: this is the first answer
                self._version = replace(version, etag=etag, modified=modified)
                return
        by_etag = version.etag and etag
        same = version.etag == etag if by_etag else not modified or version.modified in ("", modified)
        if not same:
            raise self._changed()

    def _check_size(self, size: int) -> None:
        if self._version is not None and size != self._version.size:
            raise self._changed()
        if self._announced is not None and size != self._announced:
            raise self._wrong(f"the file has {size} bytes, the repository announced {self._announced}")

    def _changed(self) -> SourceError:
        return SourceError("the file changed while it was read", where=self._where, hint="start again")

    def _wrong(self, what: str) -> SourceError:
        return SourceError(
            what, where=self._where, hint="the server or a proxy answers wrongly; try another one"
        )


def _validators(headers: Mapping[str, str]) -> tuple[str, str]:
    return headers.get("etag", ""), headers.get("last-modified", "")
