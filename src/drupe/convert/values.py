"""The bytes of the tensors to be written: copied as they lie, or put together row by row, in chunks.

Values are never computed with: they are moved as whole numbers of their size, so that every bit stays. Packed
(quantised) tensors are decoded to float32, as a comparison reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.convert.pieces import Piece
from drupe.convert.plan import Output
from drupe.errors import UnsupportedError
from drupe.fused import Part
from drupe.model import Model
from drupe.readers.dense import DenseFile
from drupe.readers.interface import Absent, TensorInfo, Window

CHUNK = 8 << 20
"""Bytes that are in memory at a time when a tensor is copied."""
Raw = NDArray[np.generic]
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 1),
}
_EXACT = frozenset({"F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class Values:
    """Reads the stored values of one model."""

    model: Model

    def info(self, tensor: str) -> TensorInfo:
        """The tensor as stored."""
        assert not isinstance(self.model.weights, Absent)
        return self.model.weights.tensors[tensor]

    def dtype(self, tensor: str) -> str:
        """The type in which it is written: its own, float32 for what is packed."""
        info = self.info(tensor)
        return info.dtype if self._is_plain(tensor) or info.dtype in _EXACT else "F32"

    def size(self, output: Output) -> int:
        """Bytes of one output."""
        count = 1
        for extent in output.shape:
            count *= extent
        return count * ITEM_BYTES[self.dtype(output.tensors[0])]

    def chunks(self, output: Output) -> Iterator[bytes | memoryview]:
        """The bytes of one output, in order."""
        if output.is_copy:
            yield from self._copy(output.tensors[0])
            return
        array = self._assemble(output)
        flat = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(flat), CHUNK):
            yield flat[start : start + CHUNK]

    def _copy(self, tensor: str) -> Iterator[bytes | memoryview]:
        rows, columns = self.info(tensor).matrix_shape
        if self._is_plain(tensor):
            weights = self.model.weights
            assert isinstance(weights, DenseFile)
            place = weights.places[tensor]
            size = rows * columns * place.item_bytes
            for start in range(0, size, CHUNK):
                yield place.blob.read(place.start + start, min(CHUNK, size - start))
            return
        step = max(1, CHUNK // max(4 * columns, 1))
        for start in range(0, rows, step):
            yield self._stored_rows(tensor, start, min(start + step, rows)).reshape(-1).view(np.uint8).data

    def _assemble(self, output: Output) -> Raw:
        """A tensor whose rows come from several places, or which is turned round."""
        item = ITEM_BYTES[self.dtype(output.tensors[0])]
        array = np.empty(output.shape, _UNSIGNED[item])
        for source in output.sources:
            target = array if source.expert is None else array[source.expert]
            table = target.T if output.transposed else target
            places = indices(source.rows)
            for rows, values in self.rows(source.piece):
                table[places[rows]] = values if table.ndim > 1 else values[:, 0]
        return array

    def rows(self, piece: Piece) -> Iterator[tuple[slice, Raw]]:
        """Rows of a piece in canonical orientation, some at a time, and which they are."""
        info = self.info(piece.tensor)
        item = ITEM_BYTES[self.dtype(piece.tensor)]
        if piece.columns == 0:
            raise UnsupportedError(f"{piece.tensor!r} of shape {info.shape} is no matrix", where=info.file)
        if piece.transposed or piece.expert is not None or len(info.shape) == 1:
            table = self._whole(piece.tensor)
            table = table[piece.expert] if piece.expert is not None else table
            table = table.T if piece.transposed else table
            table = table.reshape(-1, piece.columns)
            yield slice(0, piece.part.rows), table[indices(piece.part)]
            return
        places = indices(piece.part)
        step = max(1, CHUNK // (piece.columns * item))
        for start, stop in _steps(piece.part, step):
            first = int(places[start])
            yield slice(start, stop), self._stored_rows(piece.tensor, first, first + stop - start)

    def _whole(self, tensor: str) -> Raw:
        info = self.info(tensor)
        rows, _ = info.matrix_shape
        return self._stored_rows(tensor, 0, rows).reshape(info.shape)

    def _is_plain(self, tensor: str) -> bool:
        """Whether its bytes lie in the file in order, as numbers."""
        weights = self.model.weights
        if not isinstance(weights, DenseFile):
            return False
        place = weights.places[tensor]
        return place.strides is None and place.item_bytes > 0

    def _stored_rows(self, tensor: str, start: int, stop: int) -> Raw:
        """Rows of the stored matrix view, as whole numbers of its size."""
        info = self.info(tensor)
        columns = info.matrix_shape[1]
        weights = self.model.weights
        assert not isinstance(weights, Absent)
        if self._is_plain(tensor):
            assert isinstance(weights, DenseFile)
            place = weights.places[tensor]
            width = columns * place.item_bytes
            raw = place.blob.read(place.start + start * width, (stop - start) * width)
            return np.frombuffer(raw, _UNSIGNED[place.item_bytes]).reshape(-1, columns)
        floats = weights.read([Window(tensor, start, stop, 0, columns)])[0]
        return np.ascontiguousarray(_encode(floats, self.dtype(tensor)))


def indices(part: Part) -> NDArray[np.intp]:
    """Where the rows of a part lie in the fused matrix."""
    rows = np.arange(part.rows)
    return part.start + (rows if part.run < 1 else rows // part.run * part.stride + rows % part.run)


def _steps(part: Part, most: int) -> Iterator[tuple[int, int]]:
    """Rows of a part that lie together, at most so many at a time."""
    run = part.run if part.run > 0 else max(part.rows, 1)
    for first in range(0, part.rows, run):
        last = min(first + run, part.rows)
        for start in range(first, last, most):
            yield start, min(start + most, last)


def _encode(values: NDArray[np.float32], dtype: str) -> Raw:
    """Back to the type that the values were decoded from; exact."""
    if dtype == "F16":
        return values.astype(np.float16).view(np.uint16)
    if dtype == "BF16":
        return (np.ascontiguousarray(values).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return np.ascontiguousarray(values, np.float32).view(np.uint32)
