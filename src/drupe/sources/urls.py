"""Addresses: what may be connected to, and what of them may be shown."""

from __future__ import annotations

import ipaddress
import os
from base64 import b64encode
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit, urlunsplit

from drupe.errors import LocatorError, SourceError

HUB = "https://huggingface.co"
MODELSCOPE = "https://www.modelscope.cn"
OLLAMA = "https://registry.ollama.ai"


def endpoint() -> str:
    """The hub or its mirror: HF_ENDPOINT as it is now, not as it was when a library was imported."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def modelscope_endpoint() -> str:
    """ModelScope or its mirror, from the variables of its own library: MODELSCOPE_ENDPOINT, MODELSCOPE_DOMAIN."""
    given = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN", "").strip()
    return (given if "://" in given else f"https://{given}").rstrip("/") if given else MODELSCOPE


def ollama_registry() -> str:
    """The registry of Ollama's library, or what stands in for it (DRUPE_OLLAMA_REGISTRY)."""
    return (os.environ.get("DRUPE_OLLAMA_REGISTRY") or OLLAMA).rstrip("/")


def parse(url: str) -> SplitResult:
    """The parts of an absolute http(s) URL. Raises LocatorError when it is none."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises on a port that is no number
    except ValueError as error:
        raise LocatorError(f"not a valid URL: {error}", where=redact(url)) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise LocatorError("not an http(s) URL with a host", where=redact(url))
    return parts


def origin(url: str) -> str:
    """Scheme, host and port: what credentials are bound to.

    >>> origin("https://user:secret@Example.org/a?b")
    'https://example.org:443'
    """
    parts = parse(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def redact(url: str) -> str:
    """The URL without its password and the values of its query, which may be tokens.

    >>> redact("https://user:secret@example.org/a?token=abc#x")
    'https://***@example.org/a?token=***'
    """
    head, separator, rest = url.partition("://")
    if not separator:
        return url
    rest = rest.partition("#")[0]
    path, mark, query = rest.partition("?")
    host, slash, tail = path.partition("/")
    user, at, name = host.rpartition("@")
    keys = [key for key, _ in parse_qsl(query, keep_blank_values=True)]
    shown = "&".join(f"{quote(key)}=***" for key in keys)
    return f"{head}://{'***@' if at and user else ''}{name}{slash}{tail}{mark}{shown}"


def is_loopback(url: str) -> bool:
    """Whether the host is this machine by its literal name or address (no look-up is made)."""
    host = parse(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_scheme(url: str, *, redirected_from: str | None = None) -> None:
    """Refuse plain http, but to this machine or to a mirror that the user configured; never from https."""
    if parse(url).scheme == "https":
        return
    if redirected_from is not None and parse(redirected_from).scheme == "https":
        raise SourceError(
            f"the server redirects to plain http on {parse(url).hostname}",
            where=redact(redirected_from),
            hint="the content could be replaced on the way; fetch it by other means and give a local path",
        )
    if is_loopback(url) or origin(url) in map(origin, (endpoint(), modelscope_endpoint(), ollama_registry())):
        return
    raise SourceError(
        "plain http is refused: what arrives could have been replaced on the way",
        where=redact(url),
        hint="use https, or set HF_ENDPOINT to this host if it is your own mirror",
    )


def take_credentials(url: str) -> tuple[str, str | None]:
    """The URL without user, password and fragment, and the Authorization header they stand for."""
    parts = parse(url)
    host = parts.netloc.rpartition("@")[2]
    bare = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    if parts.username is None:
        return bare, None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return bare, "Basic " + b64encode(pair.encode()).decode("ascii")
