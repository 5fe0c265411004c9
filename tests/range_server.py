"""A real HTTP server on this machine: ranges, redirects, errors, lies, and the endpoints of the hub."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".gguf", ".onnx", ".bin")
"""Files that the hub keeps in LFS and serves from another address."""


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


@dataclass(slots=True)
class Repository:
    files: dict[str, bytes]
    commit: str
    token: str | None = None
    gated: bool = False
    sizes: bool = True
    listed: dict[str, int] = field(default_factory=dict)


class RangeServer:
    """``with RangeServer() as server``: put bytes in ``files`` by path, behaviours in ``modes``."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.modes: dict[str, Mode] = {}
        self.failures: dict[str, list[int]] = {}
        self.redirects: dict[str, str] = {}
        self.repositories: dict[str, Repository] = {}
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


class _Handler(BaseHTTPRequestHandler):
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
            self._empty(owner.failures[path].pop(0), {"Retry-After": "0"})
        elif path in owner.redirects:
            self._empty(302, {"Location": owner.redirects[path]})
        elif path.startswith("/api/models/"):
            self._hub_listing(path.removeprefix("/api/models/"))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._hub_file(*match.groups())
        elif path.startswith("/cdn/") and self.path in owner.expired:
            self._empty(403, {})
        elif path in owner.files:
            self._file(path, owner.files[path], {})
        else:
            self._empty(404, {})

    # -- plain files ---------------------------------------------------------------------------------------

    def _file(self, path: str, data: bytes, extra: dict[str, str]) -> None:
        mode = self.server.owner.modes.get(path, Mode.NORMAL)
        etag = extra.get("ETag") or f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        if mode in (Mode.CHANGING, Mode.WEAK_CHANGING):
            count = self.server.owner.paths().count(self.path)
            etag = f'{"W/" if mode is Mode.WEAK_CHANGING else ""}"version-{count}"'
        if mode is Mode.CHANGING_SIZE:
            data, etag = data + bytes(self.server.owner.paths().count(self.path)), ""
        headers = {"Accept-Ranges": "bytes", **extra}
        if mode is Mode.PAGE:
            headers["Content-Type"] = "text/html; charset=utf-8"
        if etag:
            headers["ETag"] = etag
        span = self._range(data, etag)
        if mode in _SPECIAL:
            _SPECIAL[mode](self, data, span, headers)
        elif span is None:
            self._answer(200, data, headers)
        elif span[0] >= len(data):
            self._answer(416, b"sorry", {**headers, "Content-Range": f"bytes */{len(data)}"})
        else:
            self._partial(data, span, headers)

    def _range(self, data: bytes, etag: str) -> tuple[int, int] | None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if match is None or (condition is not None and condition != etag):
            return None
        stop = int(match[2]) + 1 if match[2] else len(data)
        return int(match[1]), min(stop, len(data))

    def _partial(self, data: bytes, span: tuple[int, int], headers: dict[str, str]) -> None:
        start, stop = span
        stated = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        self._answer(206, data[start:stop], stated)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _empty(self, status: int, headers: dict[str, str]) -> None:
        self._answer(status, b"<html>no</html>" if status >= 400 else b"", headers)

    # -- lies ------------------------------------------------------------------------------------------------

    def _ignore_range(self, data: bytes, _: object, headers: dict[str, str]) -> None:
        self._answer(200, data, headers)

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
        self._answer(206, data[start:stop], stated)

    def _no_content_range(self, data: bytes, span: tuple[int, int], headers: dict[str, str]) -> None:
        self._answer(206, data[slice(*span)], headers)

    def _wrong_length(self, data: bytes, span: tuple[int, int], headers: dict[str, str]) -> None:
        stated = {"Content-Range": f"bytes {span[0]}-{span[1] - 1}/{len(data)}", "Content-Length": "3"}
        self._answer(206, data[slice(*span)], {**headers, **stated})
        self.close_connection = True

    def _truncated(self, data: bytes, span: tuple[int, int], headers: dict[str, str]) -> None:
        body = data[slice(*span)]
        stated = {
            "Content-Range": f"bytes {span[0]}-{span[1] - 1}/{len(data)}",
            "Content-Length": str(len(body)),
        }
        self._answer(206, body[: len(body) // 2], {**headers, **stated})
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
        self._answer(200, gzip.compress(data), {**headers, "Content-Encoding": "gzip"})

    def _endless(self, _: bytes, span: tuple[int, int], headers: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while not self.server.owner.stopping.is_set():
            self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    # -- the hub ------

    def _hub_listing(self, rest: str) -> None:
        name, _, revision = rest.partition("/revision/")
        repository = self.server.owner.repositories.get(name)
        if repository is None or not self._authorised(repository):
            self._empty(401, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("", "main", repository.commit):
            self._empty(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = [_sibling(file, data, repository) for file, data in repository.files.items()]
            body = {"id": name, "sha": repository.commit, "siblings": siblings}
            self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _hub_file(self, name: str, revision: str, file: str) -> None:
        owner = self.server.owner
        repository = owner.repositories.get(name)
        if repository is None or not self._authorised(repository):
            self._empty(401, {"X-Error-Code": "RepoNotFound"})
        elif repository.gated:
            self._empty(403, {"X-Error-Code": "GatedRepo"})
        elif revision not in ("main", repository.commit) or file not in repository.files:
            self._empty(404, {"X-Error-Code": "EntryNotFound"})
        else:
            self._hub_bytes(name, file, repository)

    def _hub_bytes(self, name: str, file: str, repository: Repository) -> None:
        owner = self.server.owner
        data = repository.files[file]
        headers = {"X-Repo-Commit": repository.commit}
        if not file.endswith(LARGE):
            digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
            self._file(f"/{name}/{file}", data, {**headers, "ETag": f'"{digest}"'})
            return
        digest = hashlib.sha256(data).hexdigest()
        owner.files[f"/cdn/{name}/{file}"] = data
        links = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{digest}"', "ETag": f'"{digest}"'}
        signature = f"signature={len(owner.expired)}"
        self._empty(302, {**headers, **links, "Location": f"{owner.cdn_url}/cdn/{name}/{file}?{signature}"})

    def _authorised(self, repository: Repository) -> bool:
        wanted = f"Bearer {repository.token}"
        return repository.token is None or self.headers.get("Authorization") == wanted


def _sibling(file: str, data: bytes, repository: Repository) -> dict[str, object]:
    entry: dict[str, object] = {"rfilename": file}
    if repository.sizes:
        entry["size"] = repository.listed.get(file, len(data))
        if file.endswith(LARGE):
            digest = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
    return entry


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
}
