"""Every value of a written file, led back by the map, against the value it was made of; and the digests of both."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Queue
from threading import Thread

import numpy as np
from numpy.typing import NDArray

from drupe.convert.plan import Output, Source
from drupe.convert.values import ITEM_BYTES, Raw, Values, indices
from drupe.errors import SourceError
from drupe.readers.safetensors import open_safetensors
from drupe.sources.interface import Meter
from drupe.sources.local import LocalBlob

Bytes = NDArray[np.uint8]
_AHEAD = 4
"""Tensors that wait for their digest at most."""


def verify(
    path: Path, outputs: Sequence[Output], values: Values, done: Callable[[int], None], *, digests: bool
) -> dict[str, str]:
    """Read the file back; returns tensor -> SHA-256 of its bytes when ``digests`` are wanted.

    Raises SourceError at the first tensor whose values are not those of the model. ``done``: bytes compared so far.
    """
    blob = LocalBlob(str(path), path.name, Meter())
    try:
        places = open_safetensors([blob]).places
    finally:
        blob.close()
    with path.open("rb") as file, _Digests(wanted=digests) as hashing:
        for output in outputs:
            start = places[output.name].start
            written = _mapped(file.fileno(), start, values.size(output))
            hashing.add(output.name, written)
            in_order = output.is_copy or values.spans(output) is not None
            if not (_same_bytes if in_order else _same_rows)(written, output, values):
                raise SourceError(f"{output.name} was read back with other values", where=str(path))
            done(start + written.size)
    return hashing.found


def _mapped(descriptor: int, start: int, size: int) -> Bytes:
    """The bytes of one tensor, mapped alone, so that no more than that counts as memory."""
    before = start % mmap.ALLOCATIONGRANULARITY
    if size == 0:
        return np.empty(0, np.uint8)
    pages = mmap.mmap(descriptor, size + before, access=mmap.ACCESS_READ, offset=start - before)
    return np.frombuffer(pages, np.uint8)[before:]


def _same_bytes(written: Bytes, output: Output, values: Values) -> bool:
    place = 0
    for chunk in values.chunks(output):
        expected = np.frombuffer(chunk, np.uint8)
        if not _equal(written[place : place + expected.size], expected):
            return False
        place += expected.size
    return place == written.size


def _equal(a: Bytes, b: Bytes) -> bool:
    """Compared eight bytes at a time, wherever they begin."""
    if a.size != b.size:
        return False
    whole = a.size // 8 * 8
    wide = whole == 0 or np.array_equal(a[:whole].view(np.uint64), b[:whole].view(np.uint64))
    return wide and np.array_equal(a[whole:], b[whole:])


def _same_rows(written: Bytes, output: Output, values: Values) -> bool:
    item = ITEM_BYTES[values.dtype(output.tensors[0])]
    array = written.view(np.dtype(f"u{item}")).reshape(output.shape)
    return all(_undone(array, source, output, values) for source in output.sources)


def _undone(array: Raw, source: Source, output: Output, values: Values) -> bool:
    table = array if source.expert is None else array[source.expert]
    table = table.T if output.transposed else table
    places = indices(source.rows)
    for rows, expected in values.rows(source.piece):
        found = table[places[rows]]
        if not np.array_equal(found, expected if found.ndim > 1 else expected[:, 0]):
            return False
    return True


class _Digests:
    """SHA-256 of each tensor, computed beside the comparison."""

    def __init__(self, *, wanted: bool) -> None:
        self.found: dict[str, str] = {}
        self._wanted = wanted
        self._queue: Queue[tuple[str, Bytes] | None] = Queue(_AHEAD)
        self._thread = Thread(target=self._work, daemon=True)

    def __enter__(self) -> _Digests:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def add(self, name: str, data: Bytes) -> None:
        """One more tensor."""
        if self._wanted:
            self._queue.put((name, data))

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            self.found[item[0]] = hashlib.sha256(item[1].data).hexdigest()
