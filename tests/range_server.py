"""A real HTTP server on this machine: ranges, redirects, errors, lies.

The endpoints of hubs and registries stand in service_routes.py.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from service_routes import OllamaModel, Repository, ServiceRoutes

__all__ = ["Mode", "OllamaModel", "OnDisk", "RangeServer", "Repository", "Request"]


class Mode(StrEnum):
    """How the server behaves for one path."""

    NORMAL = "normal"
    IGNORE_RANGE = "ignore_range"
    CHUNKED = "chunked"
    PAGE = "page"
    WRONG_RANGE = "wrong_range"
    NO_CONTENT_RANGE = "no_content_range"
    WRONG_LENGTH = "wrong_length"
    TRUNCATED = "truncated"
    TRUNCATED_ONCE = "truncated_once"
    DRIP = "drip"
    CHANGING = "changing"
    CHANGING_SIZE = "changing_size"
    WEAK_CHANGING = "weak_changing"
    COMPRESSED = "compressed"
    ENDLESS = "endless"
    HANG = "hang"
    NO_ETAG = "no_etag"
    OTHER_ETAG = "other_etag"
    IGNORE_CONDITION = "ignore_condition"
    NOT_MODIFIED = "not_modified"
    NOT_MODIFIED_OTHER = "not_modified_other"


class Content(Protocol):
    """What a path serves: bytes, or a file too large to be held in memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> bytes: ...


class OnDisk:
    """A file on disk, read as it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return self.path.stat().st_size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(len(self))
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    port: int
    """Of the client: one per connection."""

    @property
    def range(self) -> tuple[int, int] | None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return (int(match[1]), int(match[2])) if match else None


class RangeServer:
    """``with RangeServer() as server``: put bytes in ``files`` by path, behaviours in ``modes``."""

    def __init__(self) -> None:
        self.files: dict[str, Content] = {}
        self.modes: dict[str, Mode] = {}
        self.failures: dict[str, list[int | tuple[int, dict[str, str]]]] = {}
        self.redirects: dict[str, str] = {}
        self.repositories: dict[str, Repository] = {}
        self.scopes: dict[str, Repository] = {}
        """Repositories of ModelScope."""
        self.ollama: dict[str, OllamaModel] = {}
        self.log: list[Request] = []
        self.expired: set[str] = set()
        self.stopping = threading.Event()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def cdn_url(self) -> str:
        """Another host by name: the hub's client takes redirects inside one host for renamed repositories."""
        return self.url.replace("127.0.0.1", "localhost")

    def __enter__(self) -> RangeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def paths(self) -> list[str]:
        return [request.path for request in self.log]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    owner: RangeServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests."""


class _Handler(ServiceRoutes, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        owner = self.server.owner
        path = unquote(urlsplit(self.path).path)
        headers = {key.lower(): value for key, value in self.headers.items()}
        owner.log.append(Request(self.command, self.path, headers, self.client_address[1]))
        if owner.failures.get(path):
            failure = owner.failures[path].pop(0)
            status, extra = failure if isinstance(failure, tuple) else (failure, {})
            self.refuse(status, {"Retry-After": "0", **extra})
        elif path in owner.redirects:
            self.refuse(302, {"Location": owner.redirects[path]})
        elif self.serve_service(path):
            return
        elif path.startswith("/cdn/") and self.path in owner.expired:
            self.refuse(403, {})
        elif path in owner.files:
            self.serve_file(path, owner.files[path], {})
        else:
            self.refuse(404, {})

    # -- plain files ---------------------------------------------------------------------------------------

    def serve_file(self, path: str, data: Content, extra: dict[str, str]) -> None:
        mode = self.server.owner.modes.get(path, Mode.NORMAL)
        etag = extra.get("ETag") or f'"{_digest(data)[:16]}"'
        if mode in (Mode.CHANGING, Mode.WEAK_CHANGING):
            count = self.server.owner.paths().count(self.path)
            etag = f'{"W/" if mode is Mode.WEAK_CHANGING else ""}"version-{count}"'
        if mode is Mode.CHANGING_SIZE:
            data, etag = data[:] + bytes(self.server.owner.paths().count(self.path)), ""
        if mode is Mode.NO_ETAG:
            etag = ""
        if mode is Mode.OTHER_ETAG:
            etag = '"other"'
        headers = {"Accept-Ranges": "bytes", **extra}
        if mode is Mode.PAGE:
            headers["Content-Type"] = "text/html; charset=utf-8"
        if etag:
            headers["ETag"] = etag
        span = self._range(data, etag)
        if mode in (Mode.NOT_MODIFIED, Mode.NOT_MODIFIED_OTHER):
            other = {"ETag": '"other"'} if mode is Mode.NOT_MODIFIED_OTHER else {}
            self.answer(304, b"", other)
        elif etag and self.headers.get("If-None-Match") == etag and mode is not Mode.IGNORE_CONDITION:
            self.answer(304, b"", {"ETag": etag})
        elif mode in _SPECIAL:
            _SPECIAL[mode](self, data, span, headers)
        elif span is None:
            self.answer(200, data[:], headers)
        elif span[0] >= len(data):
            self.answer(416, b"sorry", {**headers, "Content-Range": f"bytes */{len(data)}"})
        else:
            self._partial(data, span, headers)

    def _range(self, data: Content, etag: str) -> tuple[int, int] | None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if match is None or (condition is not None and condition != etag):
            return None
        stop = int(match[2]) + 1 if match[2] else len(data)
        return int(match[1]), min(stop, len(data))

    def _partial(self, data: Content, span: tuple[int, int], headers: dict[str, str]) -> None:
        start, stop = span
        stated = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        self.answer(206, data[start:stop], stated)

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        length = {} if status == 304 else {"Content-Length": str(len(body))}
        for key, value in {**length, **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD" and body:
            self.wfile.write(body)

    def refuse(self, status: int, headers: dict[str, str]) -> None:
        self.answer(status, b"<html>no</html>" if status >= 400 else b"", headers)

    # -- lies ------------------------------------------------------------------------------------------------

    def _ignore_range(self, data: bytes, _: object, headers: dict[str, str]) -> None:
        self.answer(200, data, headers)

    def _chunked(self, data: bytes, _: object, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in {**headers, "Transfer-Encoding": "chunked"}.items():
            self.send_header(key, value)
        self.end_headers()
        for start in range(0, len(data), 1000):
            piece = data[start : start + 1000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def _wrong_range(self, data: bytes, span: tuple[int, int], headers: dict[str, str]) -> None:
        start, stop = span
        stated = {**headers, "Content-Range": f"bytes {start + 1}-{stop}/{len(data)}"}
        self.answer(206, data[start:stop], stated)

    def _no_content_range(self, data: bytes, span: tuple[int, int], headers: dict[str, str]) -> None:
        self.answer(206, data[slice(*span)], headers)

    def _wrong_length(self, data: bytes, span: tuple[int, int], headers: dict[str, str]) -> None:
        stated = {"Content-Range": f"bytes {span[0]}-{span[1] - 1}/{len(data)}", "Content-Length": "3"}
        self.answer(206, data[slice(*span)], {**headers, **stated})
        self.close_connection = True

    def _truncated(self, data: bytes, span: tuple[int, int] | None, headers: dict[str, str]) -> None:
        if span is None:
            self.answer(200, data[: len(data) // 2], {**headers, "Content-Length": str(len(data))})
            self.close_connection = True
            return
        body = data[slice(*span)]
        stated = {
            "Content-Range": f"bytes {span[0]}-{span[1] - 1}/{len(data)}",
            "Content-Length": str(len(body)),
        }
        self.answer(206, body[: len(body) // 2], {**headers, **stated})
        self.close_connection = True

    def _truncated_once(self, data: bytes, span: tuple[int, int], headers: dict[str, str]) -> None:
        first = self.server.owner.paths().count(self.path) == 1
        (self._truncated if first else self._partial)(data, span, headers)

    def _drip(self, data: bytes, span: tuple[int, int], headers: dict[str, str]) -> None:
        """Header lines forever, one byte at a time: no single silence is long."""
        self.wfile.write(b"HTTP/1.1 206 Partial Content\r\nX-Slow: ")
        while not self.server.owner.stopping.wait(0.02):
            self.wfile.write(b".")

    def _compressed(self, data: bytes, _: object, headers: dict[str, str]) -> None:
        self.answer(200, gzip.compress(data), {**headers, "Content-Encoding": "gzip"})

    def _endless(self, _: bytes, span: tuple[int, int], headers: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while not self.server.owner.stopping.is_set():
            self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    def _hang(self, *_: object) -> None:
        self.server.owner.stopping.wait()


def _digest(data: Content) -> str:
    return hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else f"{len(data):016x}"


_SPECIAL: dict[Mode, Callable[..., None]] = {
    Mode.IGNORE_RANGE: _Handler._ignore_range,
    Mode.CHUNKED: _Handler._chunked,
    Mode.WRONG_RANGE: _Handler._wrong_range,
    Mode.NO_CONTENT_RANGE: _Handler._no_content_range,
    Mode.WRONG_LENGTH: _Handler._wrong_length,
    Mode.TRUNCATED: _Handler._truncated,
    Mode.TRUNCATED_ONCE: _Handler._truncated_once,
    Mode.DRIP: _Handler._drip,
    Mode.COMPRESSED: _Handler._compressed,
    Mode.ENDLESS: _Handler._endless,
    Mode.HANG: _Handler._hang,
}
