"""Pickle-based files that are no weights (optimizer states, arguments of a training): what they would import.

The layouts are those of :mod:`drupe.readers.torch_file`, and plain pickles in a row. No tensor is listed.
"""

from __future__ import annotations

from drupe.errors import UnsupportedError
from drupe.readers.interface import Flag
from drupe.readers.pickle_stream import Budget, read_stream
from drupe.readers.pickle_values import Stream, Use
from drupe.readers.torch_file import MAGIC, legacy_end, legacy_storages
from drupe.readers.torch_pickles import (
    HEAD,
    ZIP_HEAD,
    archive_root,
    flags_of_uses,
    follow,
    follow_entry,
    follow_others,
    is_tar,
    refuse_foreign,
)
from drupe.readers.zip_entries import open_zip
from drupe.sources.interface import Blob


def scan_pickles(blob: Blob, budget: Budget, found: list[Flag]) -> None:
    """Add what the pickles of a file would import to ``found``; reads pickles and directories only.

    Raises FormatError or UnsupportedError where the file cannot be followed; what was named until there is added.
    """
    head = blob.read(0, min(blob.size, HEAD))
    refuse_foreign(head, blob.name)
    if head.startswith(ZIP_HEAD):
        archive = open_zip(blob)
        root = archive_root(archive)
        if f"{root}data.pkl" in archive.entries:
            follow_entry(archive, f"{root}data.pkl", budget, found)
        follow_others(archive, root, budget, found)
    elif is_tar(head):
        raise UnsupportedError("a tar archive", where=blob.name)
    else:
        _scan_rows(blob, budget, found)


def _scan_rows(blob: Blob, budget: Budget, found: list[Flag]) -> None:
    """Pickles in a row; in PyTorch's layout before 1.6 the numbers come behind the fifth."""
    first = _next(blob, 0, budget, found)
    if first.value != MAGIC:
        follow(blob.read, blob.size, blob.name, budget, found, first.stop)
        return
    streams = [first]
    for _ in range(4):
        streams.append(_next(blob, streams[-1].stop, budget, found))
    stop = streams[-1].stop
    end = legacy_end(legacy_storages(blob, streams[3].references, streams[4].value, stop), stop)
    follow(blob.read, blob.size, blob.name, budget, found, end)


def _next(blob: Blob, at: int, budget: Budget, found: list[Flag]) -> Stream:
    uses: dict[str, Use] = {}
    try:
        return read_stream(blob.read, blob.size, at, blob.name, budget, uses=uses)
    finally:
        found += flags_of_uses(uses.values(), blob.name)
