"""Every value of a written file, led back by the map, against the value it was made of; beside the writing."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from drupe.convert.plan import Output, Source
from drupe.convert.values import ITEM_BYTES, Raw, Values, indices
from drupe.errors import SourceError
from drupe.readers.safetensors import open_safetensors
from drupe.sources.interface import Meter
from drupe.sources.local import LocalBlob

Bytes = NDArray[np.uint8]


class ReadBack:
    """Reads tensors back from a file while the next ones are written to it.

    Values that lie on this machine are read again and compared; others would have to be fetched twice, so the digest
    taken while they passed must be that of the file. ``digests``: tensor -> SHA-256, of all when they are ``wanted``.
    """

    def __init__(self, path: Path, values: Values, *, wanted: bool) -> None:
        self.digests: dict[str, str] = {}
        self._path, self._values, self._wanted = path, values, wanted
        self._worker = ThreadPoolExecutor(1)
        self._pending: list[Future[None]] = []

    def __enter__(self) -> ReadBack:
        self._file = self._path.open("rb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._worker.shutdown(cancel_futures=kind is not None)
        self._file.close()
        for pending in self._pending if kind is None else ():
            pending.result()

    def add(self, output: Output, start: int, digest: str | None) -> None:
        """A tensor that lies in the file from ``start``. Raises what an earlier one raised."""
        while self._pending and self._pending[0].done():
            self._pending.pop(0).result()
        self._pending.append(self._worker.submit(self._check, output, start, digest))

    def _check(self, output: Output, start: int, digest: str | None) -> None:
        written = _mapped(self._file.fileno(), start, self._values.size(output))
        if digest is not None or self._wanted:
            self.digests[output.name] = hashlib.sha256(written.data).hexdigest()
        if digest is not None:
            same = digest == self.digests[output.name]
        elif output.is_copy or self._values.spans(output) is not None:
            same = _same_bytes(written, output, self._values)
        else:
            same = _same_rows(written, output, self._values)
        if not same:
            raise SourceError(f"{output.name} was read back with other values", where=str(self._path))


def check_header(path: Path, starts: Mapping[str, int]) -> None:
    """Raise SourceError when the header of a file does not say where its tensors were written."""
    blob = LocalBlob(str(path), path.name, Meter())
    try:
        said = {name: place.start for name, place in open_safetensors([blob]).places.items()}
    finally:
        blob.close()
    if said != starts:
        raise SourceError("the header does not say where the tensors lie", where=str(path))


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
