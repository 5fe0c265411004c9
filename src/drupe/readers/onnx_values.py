"""Values of ONNX tensors: spans of windows, four-bit and varint storage, scales and zero points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from drupe.errors import FormatError
from drupe.readers.interface import FloatArray, TensorInfo, Window
from drupe.readers.onnx_types import DataType
from drupe.readers.onnx_usage import Quantisation
from drupe.readers.packed import decode
from drupe.sources.interface import Span

_CHUNK = 256 << 10
_MAX_VARINT = 10


def full_window(info: TensorInfo) -> Window:
    """All values of a tensor."""
    rows, columns = info.matrix_shape
    return Window(info.name, 0, rows, 0, columns)


def check_window(window: Window, info: TensorInfo) -> None:
    """Raise FormatError when a window does not lie in its tensor."""
    rows, columns = info.matrix_shape
    is_inside = (
        0 <= window.row_start <= window.row_stop <= rows
        and 0 <= window.column_start <= window.column_stop <= columns
    )
    if not is_inside:
        raise FormatError(f"{window} lies outside of {rows} x {columns} values", where=info.file)


def window_spans(window: Window, info: TensorInfo, start: int, bits: int) -> list[Span]:
    """The bytes of a window whose tensor starts at byte ``start``: one span when it covers whole rows."""
    return [
        (start + first * bits // 8, (last * bits + 7) // 8 - first * bits // 8)
        for first, last in _runs(window, info.matrix_shape[1])
    ]


def _runs(window: Window, columns: int) -> list[tuple[int, int]]:
    """First and last (exclusive) element of each contiguous run of a window."""
    if window.row_start == window.row_stop or window.column_start == window.column_stop:
        return []
    if window.column_start == 0 and window.column_stop == columns:
        return [(window.row_start * columns, window.row_stop * columns)]
    return [
        (row * columns + window.column_start, row * columns + window.column_stop)
        for row in range(window.row_start, window.row_stop)
    ]


def unpack(pieces: Sequence[bytes], kind: DataType, window: Window, info: TensorInfo) -> FloatArray:
    """The bytes of :func:`window_spans` as numbers, shape (rows, columns)."""
    shape = (window.row_stop - window.row_start, window.column_stop - window.column_start)
    if kind.bits >= 8:
        raw = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return decode(raw, kind.name, shape[0] * shape[1]).reshape(shape)
    runs = _runs(window, info.matrix_shape[1])
    parts = [
        _nibbles(np.frombuffer(piece, np.uint8), kind)[first % 2 : first % 2 + last - first]
        for piece, (first, last) in zip(pieces, runs, strict=True)
    ]
    return np.concatenate(parts).reshape(shape) if parts else np.zeros(shape, np.float32)


def _nibbles(data: NDArray[np.uint8], kind: DataType) -> FloatArray:
    """Two values in each byte, the low half first."""
    values = np.empty(2 * data.size, np.float32)
    values[0::2] = data & 15
    values[1::2] = data >> 4
    if kind.name == "I4":
        values[values > 7] -= 16
    return values


def unpack_typed(data: bytes, kind: DataType, info: TensorInfo) -> FloatArray:
    """All values of int32_data or int64_data, one-dimensional; decoded in pieces to bound the memory."""
    per_entry = 2 if kind.bits < 8 else 1
    values = np.empty(-(-info.size // per_entry) * per_entry, np.float32)
    done = start = 0
    while start < len(data):
        stop = _after_number(data, min(start + _CHUNK, len(data)), info)
        numbers = _varints(np.frombuffer(data, np.uint8)[start:stop])
        part = _typed_values(numbers, kind)
        if done + part.size > values.size:
            break
        values[done : done + part.size] = part
        done, start = done + part.size, stop
    if done != values.size or start != len(data):
        raise FormatError(
            f"tensor {info.name[:80]!r}: typed data do not hold {info.size} numbers", where=info.file
        )
    return values[: info.size]


def _after_number(data: bytes, stop: int, info: TensorInfo) -> int:
    """The end of the number that byte ``stop - 1`` belongs to."""
    for end in range(stop, min(stop + _MAX_VARINT, len(data)) + 1):
        if data[end - 1] < 0x80:
            return end
    raise FormatError(f"tensor {info.name[:80]!r}: typed data end within a number", where=info.file)


def _varints(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Packed base-128 numbers; the data end with a complete one. Bits beyond the 64th are dropped."""
    ends = np.flatnonzero(data < 0x80)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    values = np.zeros(ends.size, np.uint64)
    for place in range(min(_MAX_VARINT, int(lengths.max(initial=0)))):
        has = np.flatnonzero(lengths > place)
        values[has] |= (data[starts[has] + place] & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * place)
    return values.view(np.int64)


def _typed_values(numbers: NDArray[np.int64], kind: DataType) -> FloatArray:
    """Numbers as written in a typed field -> values: floats of 8 and 16 bits are stored by their bits."""
    if kind.bits < 8:
        return _nibbles(numbers.astype(np.uint8), kind)
    raw = numbers.astype(f"<u{kind.bits // 8}").tobytes()
    return decode(raw, kind.name, numbers.size)


def grid_shape(info: TensorInfo, scale: TensorInfo, how: Quantisation) -> tuple[int, ...] | None:
    """The shape of scales (or zero points), aligned with the axes of the tensor; None when they do not fit.

    >>> weight = TensorInfo("w", (4, 6), "I8", "f")
    >>> grid_shape(weight, TensorInfo("s", (6,), "F32", "f"), Quantisation("s", None, 1))
    (1, 6)
    """
    axes = info.shape or (1,)
    if scale.size == 1:
        return (1,) * len(axes)
    if not 0 <= how.axis < len(axes):
        return None
    if how.block > 0:
        blocks = -(-axes[how.axis] // how.block)
        expected = (*axes[: how.axis], blocks, *axes[how.axis + 1 :])
        return expected if scale.shape == expected else None
    if scale.size != axes[how.axis]:
        return None
    return tuple(extent if axis == how.axis else 1 for axis, extent in enumerate(axes))


def scaled(
    values: FloatArray,
    window: Window,
    tensors: Mapping[str, TensorInfo],
    how: Quantisation,
    numbers: Mapping[str, FloatArray],
) -> FloatArray:
    """``(integer - zero_point) * scale`` in place; ``numbers`` holds scales and zero points by name."""
    info = tensors[window.tensor]
    if how.zero_point is not None:
        values -= _grid(window, info, tensors[how.zero_point], how, numbers)
    if isinstance(how.scale, str):
        values *= _grid(window, info, tensors[how.scale], how, numbers)
    elif how.scale is not None:
        values *= np.float32(how.scale)
    return values


def _grid(
    window: Window, info: TensorInfo, scale: TensorInfo, how: Quantisation, numbers: Mapping[str, FloatArray]
) -> FloatArray:
    """The scales of a window, broadcastable to its shape."""
    extents, shape = info.shape or (1,), grid_shape(info, scale, how)
    if shape is None:
        raise FormatError(f"{scale.name[:80]!r} does not fit {info.name[:80]!r}", where=info.file)
    first_axis = 0
    if len(extents) < 2:  # the matrix view of a vector is one row
        extents, shape, first_axis = (1, *extents), (1, *shape), -1
    rows = np.arange(window.row_start, window.row_stop)
    columns = np.unravel_index(np.arange(window.column_start, window.column_stop), extents[1:])
    places = [
        _place(index, shape[axis], how.block if axis + first_axis == how.axis else 0)
        for axis, index in enumerate((rows, *columns))
    ]
    inner = shape[1:]
    column_places = np.zeros(1, np.intp)
    for place, extent in zip(places[1:], inner, strict=True):
        column_places = column_places * extent + place
    grid = numbers[scale.name].reshape(shape[0], -1)
    return grid[np.ix_(places[0], column_places)]


def _place(index: NDArray[np.intp], extent: int, block: int) -> NDArray[np.intp]:
    """Which scale along one axis belongs to each index."""
    if extent == 1:
        return np.zeros(1, np.intp)
    return index // block if block > 0 else index
