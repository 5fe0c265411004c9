"""Windows of plain tensors and of views, against numpy's own indexing of the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobs import MemoryBlob
from drupe.errors import FormatError, UnsupportedError
from drupe.readers.dense import DenseFile, Place
from drupe.readers.interface import TensorInfo, Window

VALUES = np.arange(960, dtype="<f4")


def file_of(
    shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: str = "F32", start: int = 0
) -> DenseFile:
    blob = MemoryBlob("x", VALUES.tobytes())
    info = TensorInfo("t", shape, dtype, "x")
    return DenseFile("raw", {"t": info}, {}, {"t": Place(blob, start, 4, strides)}, {})


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Shapes and strides of views as torch saves them: transposed, sliced, of rank 1 to 4."""
    base = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    array = np.empty(base, np.int8)
    cut = array[tuple(slice(None, None, draw(st.integers(1, 2))) for _ in base)]
    turned = cut.transpose(draw(st.permutations(range(len(base)))))
    return turned.shape, draw(st.sampled_from([None, turned.strides]))


@given(views(), st.integers(0, 100), st.data())
def test_any_window_of_any_view(
    view: tuple[tuple[int, ...], tuple[int, ...] | None], start: int, data: st.DataObject
) -> None:
    shape, strides = view
    file = file_of(shape, strides, start=4 * start)
    rows, columns = file.tensors["t"].matrix_shape
    top, left = data.draw(st.integers(0, rows)), data.draw(st.integers(0, columns))
    window = Window("t", top, data.draw(st.integers(top, rows)), left, data.draw(st.integers(left, columns)))
    steps = None if strides is None else [4 * step for step in strides]
    truth = np.ndarray(shape, "<f4", VALUES.tobytes(), 4 * start, steps).reshape(rows, columns)
    got = file.read([window])[0]
    assert np.array_equal(
        got, truth[window.row_start : window.row_stop, window.column_start : window.column_stop]
    )


def test_whole_numbers_stay_whole_numbers() -> None:
    blob = MemoryBlob("x", np.array([[-1, 2], [3, 1 << 30]], "<i4").tobytes())
    file = DenseFile("raw", {"t": TensorInfo("t", (2, 2), "I32", "x")}, {}, {"t": Place(blob, 0, 4)}, {})
    stored = file.read_stored([Window("t", 0, 2, 0, 2)])[0]
    assert stored.dtype == np.int32
    assert stored.tolist() == [[-1, 2], [3, 1 << 30]]
    assert file.read([Window("t", 0, 2, 0, 2)])[0].dtype == np.float32


def test_a_transposed_view_is_read_by_its_columns() -> None:
    blob = MemoryBlob("x", VALUES.tobytes())
    info = TensorInfo("t", (30, 32), "F32", "x")
    file = DenseFile("raw", {"t": info}, {}, {"t": Place(blob, 0, 4, (1, 30))}, {})
    file.read([Window("t", 3, 5, 0, 4)])
    assert sum(length for _, length in blob.spans) == 2 * 4 * 4


def test_outside_and_too_small_numbers_are_refused() -> None:
    with pytest.raises(FormatError, match="outside"):
        file_of((4, 4), None).read([Window("t", 0, 5, 0, 4)])
    info = TensorInfo("t", (4, 4), "F4", "x")
    with pytest.raises(UnsupportedError, match="F4"):
        DenseFile("raw", {"t": info}, {}, {"t": Place(MemoryBlob("x", b""), 0, 0)}, {}).read(
            [Window("t", 0, 1, 0, 1)]
        )
