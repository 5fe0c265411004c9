"""From what the user wrote to a tree of files."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from drupe.errors import LocatorError, OfflineError
from drupe.sources.interface import Tree
from drupe.sources.urls import HUB, endpoint, parse, redact

FORMS = (
    "a path, file://PATH, hf:ORG/NAME[@REVISION][/FOLDER], ms:ORG/NAME[@REVISION], ollama:NAME[:TAG], "
    "https://HOST/FILE, s3://, gs:// or zip://[MEMBER]::FILE"
)
"""The accepted forms, for error messages and help texts."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_HUB_PAGE = re.compile(r"/([\w.-]+/[\w.-]+)(?:/(?:tree|blob|resolve|raw)/([^/]+)(?:/(.+))?)?/?", re.ASCII)
_CLOUD = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "memory", "zip")
"""Opened through fsspec."""
_NOT_MODELS = ("api", "blog", "collections", "datasets", "docs", "papers", "spaces")


def open_tree(locator: str, *, offline: bool) -> Tree:
    """The files that a locator names. Offline, no connection is ever made."""
    scheme = _SCHEME.match(locator)
    kind = scheme[1].lower() if scheme else ""
    if kind == "hf":
        return _hub(locator, offline=offline)
    if kind in ("http", "https"):
        return _web(locator, offline=offline)
    if kind == "ms":
        return _modelscope(locator, offline=offline)
    if kind == "ollama":
        return _ollama(locator, offline=offline)
    if kind in _CLOUD and "://" in locator:
        return _cloud(locator, offline=offline)
    if kind == "file":
        return _local(_file_path(locator), locator)
    if kind and not Path(locator).exists():
        raise LocatorError(
            f"unknown kind of locator {kind!r}", where=redact(locator), hint=f"accepted: {FORMS}"
        )
    return _local(locator, locator)


def _hub(locator: str, *, offline: bool, shown: str | None = None) -> Tree:
    from drupe.sources.hub import HubTree

    return HubTree(locator, offline=offline, shown=shown)


def _modelscope(locator: str, *, offline: bool) -> Tree:
    from drupe.sources.modelscope import ModelScopeTree

    return ModelScopeTree(locator, offline=offline)


def _ollama(locator: str, *, offline: bool) -> Tree:
    from drupe.sources.ollama import OllamaTree

    return OllamaTree(locator, offline=offline)


def _cloud(locator: str, *, offline: bool) -> Tree:
    from drupe.sources.fs import FsTree

    return FsTree(locator, offline=offline)


def _web(locator: str, *, offline: bool) -> Tree:
    as_hub = hub_locator(locator)
    if as_hub is not None:
        return _hub(as_hub, offline=offline, shown=redact(locator))
    from drupe.sources.http import HttpTree

    tree = HttpTree(locator, offline=offline)
    if offline:
        try:
            tree.open(tree.selected)
        except OfflineError:
            what = "reading from a web server needs a connection"
            raise OfflineError(what, where=redact(locator)) from None
    return tree


def hub_locator(url: str) -> str | None:
    """A page or file address of the hub as an ``hf:`` locator, else None: one listing beats many probes.

    >>> hub_locator("https://huggingface.co/org/name/blob/main/onnx/model.onnx")
    'hf:org/name@main/onnx/model.onnx'
    >>> hub_locator("https://example.org/org/name") is None
    True
    """
    hosts = (parse(HUB).netloc, "hf.co", parse(endpoint()).netloc)
    parts = parse(url)
    page = _HUB_PAGE.fullmatch(parts.path)
    if parts.netloc not in hosts or page is None or parts.path.split("/")[1] in _NOT_MODELS:
        return None
    repository, revision, path = page.groups()
    return f"hf:{repository}" + (f"@{revision}" if revision else "") + (f"/{unquote(path)}" if path else "")


def _file_path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise LocatorError(
            "a file:// address on another machine", where=redact(url), hint="write file:///PATH"
        )
    return unquote(parts.path)


def _local(path: str, locator: str) -> Tree:
    from drupe.sources.local import LocalTree

    if not path.strip():
        raise LocatorError("an empty locator", hint=f"accepted: {FORMS}")
    try:
        return LocalTree(Path(path).expanduser(), locator=locator)
    except (LocatorError, RuntimeError):
        raise LocatorError("no such file or folder", where=locator, hint=_hint(path)) from None


def _hint(path: str) -> str:
    if _WINDOWS.match(path):
        return "a Windows path: on this system the drive is mounted elsewhere, such as /mnt/c"
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path):
        return f"for the repository on the hub write hf:{path}"
    return f"accepted: {FORMS}"
