"""A stored tensor seen as a matrix of numbers, whichever way round and however packed it lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drupe.errors import FormatError
from drupe.readers.interface import StoredArray, TensorInfo, Window
from drupe.readers.quantised.bits import unpack

_WORDS = {8: ("U8",), 32: ("I32", "U32")}
_SIZES = (128, 64, 32, 256, 16, 512, 1024, 8, 2048, 4)
"""Usual group sizes, the most usual first."""


@dataclass(frozen=True, slots=True)
class Table:
    """``rows`` x ``columns`` numbers in the matrix view of a stored tensor."""

    tensor: str
    rows: int
    columns: int
    turned: bool = False
    """The stored matrix is the transpose."""
    bits: int = 0
    """Of each packed number; 0 = not packed."""
    down: bool = False
    """Packed along the rows (words hold numbers of one column), else along the columns."""
    word: int = 32
    """Bits of a stored number when packed."""
    order: tuple[int, ...] = ()
    """See :func:`unpack`."""

    def needs(self, rows: range, columns: range) -> Window:
        """Where a rectangle of it lies."""
        if self.bits and self.down:
            rows = self._words(rows)
        elif self.bits:
            columns = self._words(columns)
        if self.turned:
            rows, columns = columns, rows
        return Window(self.tensor, rows.start, rows.stop, columns.start, columns.stop)

    def take(self, rows: range, columns: range, stored: StoredArray) -> StoredArray:
        """The rectangle, from what :meth:`needs` asked for; packed numbers as uint8."""
        values = stored.T if self.turned else stored
        if not self.bits:
            return values
        if self.down:
            return unpack(values.T, self.bits, self._skip(rows), len(rows), self.order).T
        return unpack(values, self.bits, self._skip(columns), len(columns), self.order)

    def checked(self, tensors: Mapping[str, TensorInfo]) -> Table:
        """The table itself when the stored tensor has just that size. Raises FormatError otherwise."""
        info = tensors[self.tensor]
        if self.bits and info.dtype not in _WORDS[self.word]:
            raise FormatError(
                f"{self.tensor[:80]!r} is {info.dtype}; packed numbers are {_WORDS[self.word][0]}",
                where=info.file,
            )
        window = self.needs(range(self.rows), range(self.columns))
        fits = info.matrix_shape == (window.row_stop, window.column_stop)
        if not fits and info.size + window.row_stop * window.column_stop > 0:  # nothing has no shape
            wanted = f"{window.row_stop} x {window.column_stop}"
            raise FormatError(
                f"{self.tensor[:80]!r} is {info.dtype} {info.shape}; its weight needs {wanted}",
                where=info.file,
            )
        return self

    def _words(self, numbers: range) -> range:
        return range(numbers.start * self.bits // self.word, -(-numbers.stop * self.bits // self.word))

    def _skip(self, numbers: range) -> int:
        return numbers.start * self.bits % self.word


def step(extent: int, count: int, hint: int | None, info: TensorInfo) -> int:
    """How many of ``extent`` values share one of ``count`` scales.

    The size that the configuration names is used where it gives that count, and ignored where it does not; then
    powers of two that divide the extent, then those that leave a rest, then any that divides it. Raises FormatError
    when no size does.
    """
    if count == extent:
        return 1
    if count == 1:
        return extent
    fitting = [size for size in (hint, *_SIZES) if size and size > 0 and -(-extent // size) == count]
    if hint in fitting:
        return fitting[0]
    if 0 < count < extent and extent % count == 0 and (extent // count in _SIZES or not fitting):
        return extent // count
    if fitting:
        return fitting[0]
    raise FormatError(
        f"{info.name[:80]!r} {info.shape}: {count} scales cannot serve {extent} values", where=info.file
    )
