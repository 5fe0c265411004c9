"""Every value of a written file, led back by the map, against the value it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drupe.convert.plan import Output, Source
from drupe.convert.values import CHUNK, ITEM_BYTES, Raw, Values, indices
from drupe.errors import SourceError
from drupe.readers.safetensors import open_safetensors
from drupe.sources.interface import Meter
from drupe.sources.local import LocalBlob


def verify(path: Path, outputs: Sequence[Output], values: Values) -> None:
    """Read the file back. Raises SourceError at the first tensor whose values are not those of the model."""
    blob = LocalBlob(str(path), path.name, Meter())
    try:
        places = open_safetensors([blob]).places
        for output in outputs:
            start, size = places[output.name].start, values.size(output)
            if not (_same_bytes if output.is_copy else _same_rows)(blob, start, size, output, values):
                raise SourceError(f"{output.name} was read back with other values", where=str(path))
    finally:
        blob.close()


def _same_bytes(blob: LocalBlob, start: int, size: int, output: Output, values: Values) -> bool:
    place = start
    for chunk in values.chunks(output):
        if blob.read(place, len(chunk)) != chunk:
            return False
        place += len(chunk)
    return place == start + size


def _same_rows(blob: LocalBlob, start: int, size: int, output: Output, values: Values) -> bool:
    item = ITEM_BYTES[values.dtype(output.tensors[0])]
    raw = b"".join(blob.read(start + k, min(CHUNK, size - k)) for k in range(0, size, CHUNK))
    array = np.frombuffer(raw, np.dtype(f"u{item}")).reshape(output.shape)
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
