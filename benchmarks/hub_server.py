"""A server with the hub's endpoints over folders on disk: listing, files, large files redirected, ranges.

``tests/range_server.py`` keeps files in memory and hashes them; these are too large for that.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """``with HubServer({"org/name": folder}) as server``; ``log`` holds (path, range or '') of every request."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.log: list[tuple[str, str]] = []
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    owner: HubServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        owner = self.server.owner
        path = unquote(self.path.partition("?")[0])
        owner.log.append((path, self.headers.get("Range", "")))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/.+)?", path):
            self._list(found[1])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._file(found[1], found[2], redirect=found[2].endswith(".safetensors"))
        elif found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            self._file(found[1], found[2], redirect=False)
        else:
            self._answer(404, b"", {})

    def _list(self, name: str) -> None:
        folder = self.server.owner.repositories[name]
        siblings = [
            {"rfilename": path.name, "size": path.stat().st_size} for path in sorted(folder.iterdir())
        ]
        body = json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
        self._answer(200, body, {"Content-Type": "application/json"})

    def _file(self, name: str, file: str, *, redirect: bool) -> None:
        folder = self.server.owner.repositories.get(name)
        path = None if folder is None else folder / file
        if path is None or not path.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        size = path.stat().st_size
        headers = {"ETag": f'"{size:x}"', "Accept-Ranges": "bytes", "X-Repo-Commit": COMMIT}
        if redirect:
            target = f"{self.server.owner.url.replace('127.0.0.1', 'localhost')}/cdn/{name}/{file}"
            self._answer(302, b"", {**headers, "X-Linked-Size": str(size), "Location": target})
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, stop = (int(wanted[1]), min(int(wanted[2]) + 1, size)) if wanted else (0, size)
        with path.open("rb") as opened:
            opened.seek(start)
            body = opened.read(stop - start)
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._answer(206 if wanted else 200, body, headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
