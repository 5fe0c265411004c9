"""HTTP requests to servers that may be slow, wrong or hostile: redirects, retries, deadlines, byte limits.

The client is the one that huggingface_hub brings (httpx2 since its version 2, httpx before), imported at the
first request.
"""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from importlib import import_module
from types import ModuleType, TracebackType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urljoin

from drupe.errors import DrupeError, LocatorError, OfflineError, SourceError
from drupe.sources.interface import Meter
from drupe.sources.urls import check_scheme, is_loopback, origin, parse, redact

T = TypeVar("T")
R = TypeVar("R")
_REDIRECTS = (301, 302, 303, 307, 308)
_AGAIN = (429, 500, 502, 503, 504)
_DRAIN = 64 << 10
_BUSY = "the server limits how often it is asked: try again later, with your token if it knows you"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is asked for at once, and how long is waited. Bytes and seconds."""

    window: int = 256 << 10
    """Read at the first touch of a file: most headers and all small files fit."""
    gap: int = 256 << 10
    """Spans no further apart are fetched together: cheaper than another round trip."""
    request: int = 8 << 20
    """Largest single request."""
    kept: int = 32 << 20
    """Longest beginning of a file kept in memory."""
    unranged: int = 64 << 20
    """Largest file taken whole from a server that ignores ranges."""
    connections: int = 8
    redirects: int = 5
    retries: int = 3
    backoff_s: float = 0.5
    longest_wait_s: float = 30.0
    """Longest pause that a server may ask for (Retry-After)."""
    silence_s: float = 20.0
    deadline_s: float = 60.0
    slowest: int = 16 << 10
    """Bytes per second below which a transfer is given up, beyond ``deadline_s``."""


class Expected(NamedTuple):
    """How many body bytes an accepted answer brings; ``exact`` when it announced them."""

    length: int
    exact: bool


class Reply(NamedTuple):
    """An accepted answer: headers in lower case, the whole body, and the address it came from at last."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str


Accept = Callable[[int, Mapping[str, str]], Expected]
"""Judges status and headers before the body is read: says how much to read, or raises."""


Explain = Callable[[int, Mapping[str, str]], DrupeError | None]
"""From the status and headers of a refusal to the error of that service, or None for the general one."""


class RefusedError(SourceError):
    """The server wants other credentials (401, 403)."""

    default_hint = "the file is not public: check the credentials of the URL"


class _AgainError(Exception):
    """Worth another attempt, after ``wait_s`` seconds if the server said so; ``busy``: it limits requests."""

    def __init__(self, what: str, wait_s: float | None = None, *, busy: bool = False) -> None:
        self.wait_s = wait_s
        self.busy = busy
        super().__init__(what)


class Session:
    """Connections, threads and credentials of one tree.

    ``credentials``: headers by origin, sent nowhere else. An ``offline`` session connects to nothing.
    """

    def __init__(
        self,
        meter: Meter,
        limits: Limits | None = None,
        *,
        credentials: Mapping[str, Mapping[str, str]] | None = None,
        explain: Explain | None = None,
        offline: bool = False,
    ) -> None:
        self.meter = meter
        self.limits = limits or Limits()
        self.offline = offline
        self._credentials = dict(credentials or {})
        self._explain = explain
        self._lock = threading.Lock()
        self._library: ModuleType | None = None
        self._clients: dict[bool, Any] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._closing: list[Callable[[], object]] = []
        self.close = weakref.finalize(self, _close_all, self._closing)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """The function of each item, in order, several at once. An error drops what has not begun."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.limits.connections, "drupe-http")
                # not waiting: the last reference may fall in a thread of the pool itself
                self._closing.insert(0, partial(self._pool.shutdown, wait=False))
        futures = [self._pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def get(self, url: str, headers: Mapping[str, str], accept: Accept, *, expected: int) -> Reply:
        """GET with redirects and retries; ``expected`` bytes set the deadline."""
        if self.offline:
            raise OfflineError("these bytes are not in the cache", where=redact(url))
        limits = self.limits
        with _Watch(limits.deadline_s + expected / limits.slowest, self._interrupt) as watch:
            for attempt in range(limits.retries + 1):
                try:
                    return self._follow(url, headers, accept)
                except _AgainError as reason:
                    watch.check(url)
                    if attempt == limits.retries:
                        hint = _BUSY if reason.busy else ""
                        what = f"{reason}, {attempt + 1} attempts"
                        raise SourceError(what, where=redact(url), hint=hint) from None
                    wait_s = limits.backoff_s * 2**attempt if reason.wait_s is None else reason.wait_s
                    if wait_s > limits.longest_wait_s:
                        what = f"{reason}, and the server asks to wait {wait_s:.0f} s"
                        raise SourceError(what, where=redact(url), hint=_BUSY) from None
                    watch.sleep(wait_s)
                    watch.check(url)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def fetch(self, url: str, limit: int, headers: Mapping[str, str] | None = None) -> Reply:
        """A whole document of at most ``limit`` bytes."""

        def accept(status: int, fields: Mapping[str, str]) -> Expected:
            length = fields.get("content-length", "")
            if status != 200:
                raise SourceError(f"unexpected answer (HTTP {status})", where=redact(url))
            if length.isdecimal() and float(length) > limit:
                raise SourceError(f"the answer has {length[:20]} bytes, more than {limit}", where=redact(url))
            return Expected(int(length), True) if length.isdecimal() else Expected(limit, False)

        return self.get(url, headers or {}, accept, expected=min(limit, 1 << 20))

    def _follow(self, url: str, headers: Mapping[str, str], accept: Accept) -> Reply:
        library = self._load()
        current = url
        try:
            for _ in range(self.limits.redirects + 1):
                answer = self._once(current, headers, accept)
                if isinstance(answer, Reply):
                    return answer
                check_scheme(answer, redirected_from=current)
                current = answer
        except (library.ConnectError, library.TimeoutException, library.ProxyError) as error:
            hint = "check the connection, or use --offline with what earlier runs have read"
            raise SourceError(_describe(error), where=redact(current), hint=hint) from None
        except library.TransportError as error:
            raise _AgainError(_describe(error)) from None
        except library.InvalidURL as error:
            raise SourceError(f"not a valid address: {error}", where=redact(current)) from None
        raise SourceError(f"more than {self.limits.redirects} redirects", where=redact(url))

    def _once(self, url: str, headers: Mapping[str, str], accept: Accept) -> Reply | str:
        """One request: the accepted reply, or the address that it redirects to."""
        asked = {"Accept-Encoding": "identity", "User-Agent": "drupe", **headers}
        asked |= self._credentials.get(origin(url), {})
        self.meter.add(requests=1)
        with self._client(url).stream(
            "GET", url, headers=asked, extensions={"trace": self._trace}
        ) as response:
            fields = {str(key).lower(): str(value) for key, value in response.headers.items()}
            status = int(response.status_code)
            if status in _REDIRECTS:
                self._drain(response, fields)
                return _target(url, fields)
            if status not in (200, 206, 416) and not (status == 304 and "If-None-Match" in headers):
                self._drain(response, fields)
                self._refuse(status, fields, url)
            if fields.get("content-encoding", "identity").lower() != "identity":
                raise SourceError("the server compresses although it was asked not to", where=redact(url))
            return Reply(status, fields, self._body(response, accept(status, fields), url), url)

    def _body(self, response: Any, expected: Expected, url: str) -> bytes:
        pieces: list[bytes] = []
        total = 0
        for piece in response.iter_raw():
            total += len(piece)
            self.meter.add(len(piece))
            if total > expected.length:
                raise SourceError(f"the server sends more than {expected.length} bytes", where=redact(url))
            pieces.append(piece)
        if expected.exact and total != expected.length:
            raise _AgainError(f"{total} of {expected.length} bytes arrived")
        return b"".join(pieces)

    def _drain(self, response: Any, fields: Mapping[str, str]) -> None:
        """Read a short body that nobody wants, so that the connection can be used again."""
        length = fields.get("content-length", "")
        if length.isdecimal() and int(length) <= _DRAIN:
            for piece in response.iter_raw():
                self.meter.add(len(piece))

    def _refuse(self, status: int, fields: Mapping[str, str], url: str) -> None:
        where = redact(url)
        if status in _AGAIN:
            wait_s = retry_after(fields.get("retry-after", ""))
            raise _AgainError(f"HTTP {status}", wait_s, busy=status == 429)
        explained = self._explain(status, fields) if self._explain else None
        if explained is not None:
            raise explained
        if status in (404, 410):
            raise LocatorError(f"not found (HTTP {status})", where=where)
        if status in (401, 403):
            raise RefusedError(f"access refused (HTTP {status})", where=where)
        raise SourceError(f"unexpected answer (HTTP {status})", where=where)

    def _load(self) -> ModuleType:
        with self._lock:
            if self._library is None:
                self._library = _client_library()
            return self._library

    def _client(self, url: str) -> Any:
        """The client for this machine (no proxy) or for others (proxies of the environment)."""
        library = self._load()
        local = is_loopback(url)
        with self._lock:
            if local not in self._clients:
                count = self.limits.connections
                client = library.Client(
                    follow_redirects=False,
                    trust_env=not local,
                    timeout=library.Timeout(self.limits.silence_s, pool=None),
                    limits=library.Limits(max_connections=count, max_keepalive_connections=count),
                )
                self._clients[local] = client
                self._closing.append(client.close)
            return self._clients[local]

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Remember each socket as it is made, for :meth:`_interrupt`."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            made = info["return_value"].get_extra_info("socket")
            if isinstance(made, socket.socket):
                with self._lock:
                    self._sockets.add(made)

    def _interrupt(self) -> None:
        """End every transfer: a thread blocked in recv() wakes only when its socket is shut down."""
        with self._lock:
            sockets: Sequence[socket.socket] = list(self._sockets)
        for each in sockets:
            try:
                # the plain method: SSLSocket.shutdown drops the TLS state that another thread is using
                socket.socket.shutdown(each, socket.SHUT_RDWR)
            except OSError:
                continue


class _Watch:
    """A deadline over several attempts, whatever they block on."""

    def __init__(self, seconds: float, interrupt: Callable[[], None]) -> None:
        self._seconds = seconds
        self._expired = threading.Event()
        self._interrupt = interrupt
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> _Watch:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def _expire(self) -> None:
        self._expired.set()
        self._interrupt()

    def sleep(self, seconds: float) -> None:
        """Wait, but not beyond the deadline."""
        self._expired.wait(seconds)

    def check(self, url: str) -> None:
        """Raise SourceError after the deadline."""
        if self._expired.is_set():
            raise SourceError(f"no complete answer within {self._seconds:.0f} s", where=redact(url))


def _target(url: str, fields: Mapping[str, str]) -> str:
    location = fields.get("location")
    if not location:
        raise SourceError("a redirect without a target", where=redact(url))
    try:
        target = urljoin(url, location)
        parse(target)
    except (ValueError, LocatorError):
        raise SourceError("a redirect to a malformed address", where=redact(url)) from None
    return target


def retry_after(value: str) -> float | None:
    """Seconds of a Retry-After field, a number or a date (RFC 9110, 10.2.3); None when it is neither.

    >>> retry_after("120"), retry_after("Fri, 31 Dec 1999 23:59:59 GMT"), retry_after("soon")
    (120.0, 0.0, None)
    """
    if value.isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, IndexError, TypeError):
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _client_library() -> ModuleType:
    try:
        return import_module("httpx2")
    except ModuleNotFoundError:
        return import_module("httpx")


def _close_all(steps: Sequence[Callable[[], object]]) -> None:
    for step in steps:
        step()
