"""The bytes of the tensors to be written: copied as they lie, or put together row by row, in chunks.

Values are never computed with: they are moved as whole numbers of their size, so that every bit stays. Packed
(quantised) tensors are decoded to float32, as a comparison reads them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from drupe.convert.pieces import Piece
from drupe.convert.plan import Output
from drupe.errors import UnsupportedError
from drupe.fused import Part
from drupe.model import Model
from drupe.readers.dense import DenseFile
from drupe.readers.interface import Absent, TensorInfo, Window
from drupe.sources.interface import Blob
from drupe.sources.local import LocalBlob, LocalTree

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
        if self._is_plain(tensor) or info.dtype in _EXACT:
            return info.dtype
        if info.is_quantised or info.dtype not in ITEM_BYTES:
            return "F32"
        problem = f"{tensor!r} holds {info.dtype} values that do not lie together; they are not converted"
        raise UnsupportedError(problem, where=info.file)

    def size(self, output: Output) -> int:
        """Bytes of one output."""
        count = 1
        for extent in output.shape:
            count *= extent
        return count * ITEM_BYTES[self.dtype(output.tensors[0])]

    def write(self, output: Output, file: BinaryIO) -> str | None:
        """Append one output to an open file; spans of local files stay inside the kernel where that can be.

        Returns the SHA-256 of what was fetched from elsewhere, None for files on this machine.
        """
        spans = self.spans(output)
        if spans is not None and all(isinstance(blob, LocalBlob) for blob, _, _ in spans):
            file.flush()
            for blob, start, size in spans:
                assert isinstance(blob, LocalBlob)
                if not blob.copy_to(file.fileno(), start, size):
                    file.writelines(_read(blob, start, size))
                    file.flush()
            return None
        digest = hashlib.sha256()
        for chunk in self.chunks(output):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        return None if self.is_local else digest.hexdigest()

    @property
    def is_local(self) -> bool:
        """Whether reading a value again costs no request."""
        return isinstance(self.model.tree, LocalTree) or bool(getattr(self.model.tree, "is_local", False))

    def chunks(self, output: Output) -> Iterator[bytes | memoryview]:
        """The bytes of one output, in order."""
        spans = self.spans(output)
        if spans is not None:
            for blob, start, size in spans:
                yield from _read(blob, start, size)
        elif output.is_copy:
            yield from self._copy(output.tensors[0])
        else:
            flat = self._assemble(output).reshape(-1).view(np.uint8).data
            for start in range(0, len(flat), CHUNK):
                yield flat[start : start + CHUNK]

    def spans(self, output: Output) -> list[tuple[Blob, int, int]] | None:
        """Where the bytes of an output lie in files, in order; None when they must be turned round or decoded."""
        weights = self.model.weights
        if not isinstance(weights, DenseFile) or not all(map(self._is_plain, output.tensors)):
            return None
        if output.is_copy:
            place = weights.places[output.tensors[0]]
            return [(place.blob, place.start, self.size(output))]
        pieces = [source.piece for source in output.sources]
        if output.transposed or any(piece.transposed or piece.columns == 0 for piece in pieces):
            return None
        found = []
        for number, first, count in _runs(output, self.info):
            place = weights.places[pieces[number].tensor]
            width = pieces[number].columns * place.item_bytes
            found.append((place.blob, place.start + first * width, count * width))
        return found

    def _copy(self, tensor: str) -> Iterator[memoryview]:
        """Of a tensor that is decoded on the way."""
        rows, columns = self.info(tensor).matrix_shape
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


def _read(blob: Blob, start: int, size: int) -> Iterator[bytes]:
    for place in range(start, start + size, CHUNK):
        yield blob.read(place, min(CHUNK, start + size - place))


def _runs(output: Output, info: Callable[[str], TensorInfo]) -> Iterator[tuple[int, int, int]]:
    """Rows of an output that lie together in a stored tensor: number of the source, first row there, how many."""
    height = sum(source.piece.part.rows for source in output.sources if source.expert in (None, 0))
    experts = max((source.expert or 0 for source in output.sources), default=0) + 1
    owner = np.empty(experts * height, np.intp)
    row = np.empty(experts * height, np.intp)
    for number, source in enumerate(output.sources):
        piece = source.piece
        above = info(piece.tensor).shape[1] * piece.expert if piece.expert is not None else 0
        places = indices(source.rows) + (source.expert or 0) * height
        owner[places], row[places] = number, indices(piece.part) + above
    breaks = np.flatnonzero((np.diff(owner) != 0) | (np.diff(row) != 1)) + 1
    starts = np.concatenate([[0], breaks])
    for start, stop in zip(starts, [*breaks, owner.size], strict=True):
        yield int(owner[start]), int(row[start]), int(stop - start)


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
