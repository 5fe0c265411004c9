"""Reading and writing files of our own: bounded and atomic."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from drupe.errors import LimitError, LocatorError, SourceError


def cache_folder() -> Path:
    """``$DRUPE_CACHE``, else ``$XDG_CACHE_HOME/drupe``, else ``~/.cache/drupe``."""
    own, shared = os.environ.get("DRUPE_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if own:
        return Path(own)
    # A relative XDG_CACHE_HOME is to be ignored (XDG Base Directory Specification).
    return (Path(shared) if Path(shared).is_absolute() else Path.home() / ".cache") / "drupe"


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a file that the user named. Raises LocatorError, SourceError or LimitError."""
    if not os.path.isfile(path):  # Path.is_file raises on a name that is too long
        raise LocatorError("no such file", where=str(path))
    try:
        size = path.stat().st_size
        if size > limit:
            raise LimitError("file size in bytes", limit=limit, actual=size, where=str(path))
        return path.read_bytes()
    except OSError as error:
        raise SourceError(error.strerror or "cannot be read", where=str(path)) from None


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary neighbour and rename, so that a broken run leaves the old file or none.

    A device or pipe (``/dev/null``) is written to, never replaced; a link keeps pointing at its target.
    Raises SourceError when the folder cannot be written.
    """
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            target.write_bytes(data)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".drupe-{secrets.token_hex(8)}")
        try:
            with draft.open("xb") as file:
                file.write(data)
            draft.replace(target)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:  # ValueError: an empty name, or a zero byte in it
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SourceError(reason or "cannot be written", where=str(path)) from None
