"""Files on a web server, read by ranges: a weight file and the files that lie beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from posixpath import basename, dirname
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from drupe.errors import LocatorError
from drupe.sources.cache import open_cache
from drupe.sources.interface import Meter
from drupe.sources.paths import INDEX_SUFFIXES, SIBLINGS, check_count, check_name, is_safe
from drupe.sources.ranged import HttpBlob
from drupe.sources.transfer import Limits, RefusedError, Session
from drupe.sources.urls import check_scheme, origin, redact, take_credentials

_SHARD = re.compile(rb'"([^"\\]{1,512}\.(?:safetensors|bin))"')
_MAX_INDEX = 64 << 20


class HttpTree:
    """One weight file on a web server, or a ``.safetensors.index.json`` with its shards.

    :meth:`files` asks for each known sibling (configuration, tokenizer, card, licence) and shard once, by
    getting the first window and keeping it: a small file then costs one request in all, an absent one too.
    :meth:`open` alone asks only for the file it is given. Offline, all of this is answered from the cache.
    """

    def __init__(
        self,
        url: str,
        *,
        offline: bool = False,
        limits: Limits | None = None,
        meter: Meter | None = None,
    ) -> None:
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
        credentials = {origin(bare): {"Authorization": authorization}} if authorization else {}
        self._session = Session(self._meter, limits, credentials=credentials, offline=offline)
        self._cache = open_cache()
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
            shards = self._shards(main) if self.selected.endswith(INDEX_SUFFIXES) else []
            self._session.map(self._probe, [name for name in (*SIBLINGS, *shards) if name != self.selected])
            present = {name: blob.size for name, blob in self._blobs.items() if blob is not None}
            self._files = dict(sorted(present.items()))
        return self._files

    def open(self, name: str) -> HttpBlob:
        """The file beside the selected one; asks the server whether it exists."""
        check_name(name, self._locator)
        if name not in self._blobs:
            blob = HttpBlob(self._session, self._address(name), name, cache=self._cache)
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
