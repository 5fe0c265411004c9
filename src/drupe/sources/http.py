"""Files on a web server, read by ranges: a weight file and the files that lie beside it."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from posixpath import basename, dirname
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from drupe.errors import LocatorError, SourceError
from drupe.sources.interface import Meter, Span
from drupe.sources.paths import INDEX_SUFFIX, SIBLINGS, check_count, check_name, is_safe
from drupe.sources.spans import carve, check_span, coalesce, split
from drupe.sources.transfer import Expected, Limits, RefusedError, Reply, Session
from drupe.sources.urls import check_scheme, origin, redact, take_credentials

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_EMPTY_RANGE = re.compile(r"bytes \*/0+", re.ASCII)
_SHARD = re.compile(rb'"([^"\\]{1,512}\.safetensors)"')
_MAX_INDEX = 64 << 20
_ERROR_PAGE = 64 << 10


@dataclass(frozen=True, slots=True)
class _Version:
    """What a file was when it was first touched."""

    size: int
    etag: str
    modified: str
    media_type: str

    @property
    def condition(self) -> Mapping[str, str]:
        """If-Range takes a strong validator only (RFC 9110, 13.1.5)."""
        return {"If-Range": self.etag} if self.etag.startswith('"') else {}


class HttpBlob:
    """One file on a server. Its beginning is fetched at the first touch and kept; the rest by ranges."""

    def __init__(self, session: Session, url: str, name: str, size: int | None = None) -> None:
        self._session = session
        self._limits = session.limits
        self._url = url
        self._where = redact(url)
        self._name = name
        self._announced = size
        self._direct: str | None = None
        self._version: _Version | None = None
        self._head = b""
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """Path relative to the root of its tree."""
        return self._name

    @property
    def size(self) -> int:
        """Length in bytes; costs the first request unless the repository announced it."""
        return self._opened().size if self._announced is None else self._announced

    @property
    def is_page(self) -> bool:
        """Whether the server calls it a web page: some answer so for files they do not have."""
        return self._opened().media_type.lower().startswith("text/html")

    def read(self, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``. Reading on from the beginning gets ahead."""
        check_span(start, length, self.size, self._name)
        if length == 0:
            return b""
        self._opened()
        stop = start + length
        with self._lock:
            if start <= len(self._head) < stop <= self._limits.kept:
                self._grow(stop)
            if stop <= len(self._head):
                return self._head[start:stop]
        return self._fetch_all([(start, length)])[0]

    def read_many(self, spans: Sequence[Span]) -> list[bytes]:
        """Several spans in the given order, near ones in one request, several requests at once."""
        for start, length in spans:
            check_span(start, length, self.size, self._name)
        if not any(length for _, length in spans):
            return [b""] * len(spans)
        self._opened()
        return self._fetch_all(spans)

    def _fetch_all(self, spans: Sequence[Span]) -> list[bytes]:
        head = self._head
        remote = [span for span in spans if sum(span) > len(head)]
        ranges = coalesce(remote, self._limits.gap, self._limits.request)
        pieces = [list(split(start, stop, self._limits.request)) for start, stop in ranges]
        fetched = iter(self._fetch_pieces([piece for group in pieces for piece in group]))
        contents = [b"".join([next(fetched) for _ in group]) for group in pieces]
        carved = iter(carve(remote, ranges, contents))
        return [
            next(carved) if start + length > len(head) else head[start : start + length]
            for start, length in spans
        ]

    def _fetch_pieces(self, pieces: Sequence[tuple[int, int]]) -> list[bytes]:
        if len(pieces) == 1:
            return [self._fetch(pieces[0])]
        return self._session.map(self._fetch, pieces) if pieces else []

    def _grow(self, stop: int) -> None:
        """Extend the kept beginning at least twofold: a parser that reads on asks log(n) times, not n."""
        known = len(self._head)
        goal = min(
            max(stop, 2 * known), max(stop, known + self._limits.request), self.size, self._limits.kept
        )
        pieces = list(split(known, goal, self._limits.request))
        self._head += b"".join(self._fetch_pieces(pieces))

    def _opened(self) -> _Version:
        """Fetch the first window once: it tells size and version and follows the redirects."""
        with self._lock:
            if self._version is None:
                reply = self._request(0, self._limits.window)
                self._version = self._identify(reply)
                self._direct = None if reply.url == self._url else reply.url
                self._head = b"" if reply.status == 416 else reply.body
            return self._version

    def _identify(self, reply: Reply) -> _Version:
        whole = reply.status == 200
        size = len(reply.body) if whole else int(reply.headers["content-range"].rpartition("/")[2])
        self._check_size(size)
        etag, modified, media_type = (
            reply.headers.get(key, "") for key in ("etag", "last-modified", "content-type")
        )
        return _Version(size, etag, modified, media_type)

    def _fetch(self, piece: tuple[int, int]) -> bytes:
        start, stop = piece
        reply = self._request(start, stop)
        return reply.body[start:stop] if reply.status == 200 else reply.body

    def _request(self, start: int, stop: int) -> Reply:
        """One range; the target of an earlier redirect is used until it expires."""
        headers = {"Range": f"bytes={start}-{stop - 1}"}
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
        size = int(stated)
        if size > limit:
            raise SourceError(
                f"the server ignores range requests and the file has {size} bytes, more than {limit}",
                where=self._where,
                hint="download the file and give its path",
            )
        self._check_size(size)
        return Expected(size, True)

    def _check_version(self, headers: Mapping[str, str]) -> None:
        version = self._version
        if version is None:
            return
        etag, modified = headers.get("etag", ""), headers.get("last-modified", "")
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


class HttpTree:
    """One weight file on a web server, or a ``.safetensors.index.json`` with its shards.

    :meth:`files` asks for each known sibling (configuration, tokenizer, card, licence) and shard once, by
    getting the first window and keeping it: a small file then costs one request in all, an absent one too.
    :meth:`open` alone asks only for the file it is given.
    """

    def __init__(self, url: str, *, limits: Limits | None = None, meter: Meter | None = None) -> None:
        bare, authorization = take_credentials(url)
        check_scheme(bare)
        self._locator = redact(url)
        self._parts = urlsplit(bare)
        self._folder = dirname(self._parts.path)
        self.selected = unquote(basename(self._parts.path))
        if not is_safe(self.selected):
            raise LocatorError(
                "the URL names no file",
                where=self._locator,
                hint="give the URL of a weight file or of a .safetensors.index.json",
            )
        self._meter = meter or Meter()
        credentials = {origin(bare): authorization} if authorization else {}
        self._session = Session(self._meter, limits, credentials=credentials)
        self.close = self._session.close
        self._blobs: dict[str, HttpBlob | None] = {}
        self._files: dict[str, int] | None = None

    @property
    def locator(self) -> str:
        """What the user wrote, without password and tokens."""
        return self._locator

    @property
    def revision(self) -> str | None:
        """None: a web server has no revisions."""
        return None

    @property
    def meter(self) -> Meter:
        """What was fetched so far, redirects and retries included."""
        return self._meter

    def files(self) -> Mapping[str, int]:
        """The selected file, its shards, and those known siblings that exist."""
        if self._files is None:
            main = self.open(self.selected)
            shards = self._shards(main) if self.selected.endswith(INDEX_SUFFIX) else []
            self._session.map(self._probe, [name for name in (*SIBLINGS, *shards) if name != self.selected])
            present = {name: blob.size for name, blob in self._blobs.items() if blob is not None}
            self._files = dict(sorted(present.items()))
        return self._files

    def open(self, name: str) -> HttpBlob:
        """The file beside the selected one; asks the server whether it exists."""
        check_name(name, self._locator)
        if name not in self._blobs:
            blob = HttpBlob(self._session, self._address(name), name)
            self._blobs[name] = blob if self._exists(blob) else None
        known = self._blobs[name]
        if known is None:
            raise LocatorError("no such file on the server", where=redact(self._address(name)))
        return known

    def _exists(self, blob: HttpBlob) -> bool:
        try:
            return not blob.is_page
        except LocatorError:
            return False

    def _probe(self, name: str) -> None:
        """A sibling that is refused or answered wrongly is not part of the model."""
        try:
            self.open(name)
        except (LocatorError, RefusedError):
            self._blobs.setdefault(name, None)

    def _shards(self, index: HttpBlob) -> list[str]:
        """File names that the index mentions; which tensor lies where is the reader's business."""
        if index.size > _MAX_INDEX:
            return []
        mentioned = sorted(set(_SHARD.findall(index.read(0, index.size))))
        names = [name.decode("utf-8", "replace") for name in mentioned]
        check_count(len(names), self._locator)
        return [name for name in names if is_safe(name)]

    def _address(self, name: str) -> str:
        """The query of the URL belongs to the selected file alone: it may be a signature."""
        query = self._parts.query if name == self.selected else ""
        path = self._parts.path if name == self.selected else f"{self._folder.rstrip('/')}/{quote(name)}"
        return urlunsplit((self._parts.scheme, self._parts.netloc, path, query, ""))
