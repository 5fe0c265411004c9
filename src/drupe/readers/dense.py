"""Tensors that lie as plain numbers in files: what every format of that kind shares once its header is read.

A format says where each tensor starts, and its strides when it is a view; windows are read from there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from drupe.errors import FormatError, LimitError, UnsupportedError
from drupe.readers.interface import Flag, FloatArray, StoredArray, TensorInfo, Window
from drupe.readers.packed import decode, decode_stored
from drupe.sources.interface import Blob, Span

_BYTES_PER_TENSOR = 2500
_MEMORY_FLOOR = 80 << 20
"""A tensor costs about 1.5 KB on its way to a verdict: a model may use 4 x its size and this."""

Values = TypeVar("Values", FloatArray, StoredArray)
Decoder = Callable[[bytes, str, int], Values]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies. ``item_bytes`` is 0 for numbers smaller than a byte, which are not read."""

    blob: Blob
    start: int
    item_bytes: int
    strides: tuple[int, ...] | None = None
    """In values, one per axis, none negative; None = row after row without gaps."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """The spans ``first`` to ``last`` of a file hold the window; with strides, a view that contains it."""

    first: int
    last: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    turned: bool = False
    """The window is the transpose of what was read."""


@dataclass(frozen=True, slots=True)
class DenseFile:
    """The tensors of one checkpoint; values are read on demand."""

    format: str
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    places: Mapping[str, Place]
    headers: Mapping[str, bytes]
    """File name -> raw header, which the evidence folder and the digest keep."""
    flags: tuple[Flag, ...] = ()
    """What else must be said of the files."""

    def read(self, windows: Sequence[Window]) -> list[FloatArray]:
        """The values of each window as float32; spans are read once per file."""
        return self._read(windows, decode)

    def read_stored(self, windows: Sequence[Window]) -> list[StoredArray]:
        """As :meth:`read`, whole numbers as they are."""
        return self._read(windows, decode_stored)

    def _read(self, windows: Sequence[Window], decoder: Decoder[Values]) -> list[Values]:
        wanted: dict[str, list[Span]] = defaultdict(list)
        plans = [self._plan(window, wanted) for window in windows]
        blobs = {place.blob.name: place.blob for place in (self.places[w.tensor] for w in windows)}
        data = {name: blobs[name].read_many(spans) for name, spans in wanted.items()}
        return [self._assemble(w, plan, data, decoder) for w, plan in zip(windows, plans, strict=True)]

    def _plan(self, window: Window, wanted: dict[str, list[Span]]) -> _Plan:
        """Append the spans of a window."""
        info, place = self.tensors[window.tensor], self.places[window.tensor]
        rows, columns = info.matrix_shape
        inside = 0 <= window.row_start <= window.row_stop <= rows
        if not (inside and 0 <= window.column_start <= window.column_stop <= columns):
            raise FormatError(f"{window} lies outside of {rows} x {columns}", where=info.file)
        if place.item_bytes == 0:
            raise UnsupportedError(f"dtype {info.dtype} of {info.name!r}", where=info.file)
        down = range(window.row_start, window.row_stop)
        across = range(window.column_start, window.column_stop)
        spans = wanted[place.blob.name]
        if place.strides is None or not info.shape:
            return _runs(down, across, columns, place, spans)
        if len(info.shape) > 1 and _is_contiguous(info.shape[1:], place.strides[1:]):
            return _runs(down, across, place.strides[0], place, spans)
        if len(info.shape) == 2 and place.strides[0] == 1:  # stored as the transposed matrix
            return replace(_runs(across, down, place.strides[1], place, spans), turned=True)
        if len(info.shape) == 1:  # a vector with gaps is one row of a matrix
            return _covering(down, across, (1, *info.shape), (0, *place.strides), place, spans)
        return _covering(down, across, info.shape, place.strides, place, spans)

    def _assemble(
        self, window: Window, plan: _Plan, data: Mapping[str, list[bytes]], decoder: Decoder[Values]
    ) -> Values:
        info, place = self.tensors[window.tensor], self.places[window.tensor]
        parts = data[place.blob.name][plan.first : plan.last]
        raw = parts[0] if len(parts) == 1 else b"".join(parts)
        values = decoder(raw, info.dtype, len(raw) // place.item_bytes)
        if plan.strides is None:
            table = values.reshape(plan.shape)
            return table.T if plan.turned else table
        steps = [step * values.itemsize for step in plan.strides]
        view = np.lib.stride_tricks.as_strided(values, plan.shape, steps, writeable=False)
        across = slice(window.column_start, window.column_stop)
        return np.ascontiguousarray(view.reshape(plan.shape[0], -1)[:, across])


def check_density(count: int, size: int, where: str) -> None:
    """Raise LimitError when tensors without values cost memory and time that ``size`` bytes do not pay for."""
    limit = (4 * size + _MEMORY_FLOOR) // _BYTES_PER_TENSOR
    if count > limit:
        raise LimitError("tensors in a file of this size", limit=limit, actual=count, where=where)


def _is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    step = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True


def _runs(down: range, across: range, step: int, place: Place, spans: list[Span]) -> _Plan:
    """Rows ``step`` values apart, each of whose values lie together; rows without a gap are one span."""
    first, item, width = len(spans), place.item_bytes, len(across)
    if width == step or len(down) == 1:
        spans.append((place.start + (down.start * step + across.start) * item, len(down) * width * item))
    else:
        spans.extend((place.start + (row * step + across.start) * item, width * item) for row in down)
    return _Plan(first, len(spans), (len(down), width))


def _covering(
    down: range,
    across: range,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    place: Place,
    spans: list[Span],
) -> _Plan:
    """Any other view: one span from its first to its last value."""
    view = (len(down), *shape[1:])
    first, item = len(spans), place.item_bytes
    if 0 in view or not across:
        return _Plan(first, first, (len(down), len(across)))
    reach = 1 + sum((extent - 1) * stride for extent, stride in zip(view, strides, strict=True))
    spans.append((place.start + down.start * strides[0] * item, reach * item))
    return _Plan(first, first + 1, view, strides)
