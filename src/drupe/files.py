"""Reading and writing files of our own: bounded and atomic."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from drupe.errors import LimitError, LocatorError, SourceError


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a file that the user named. Raises LocatorError, SourceError or LimitError."""
    if not path.is_file():
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

    Raises SourceError when the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise SourceError(error.strerror or "cannot be written", where=str(path)) from None
