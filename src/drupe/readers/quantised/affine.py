"""Weights of the form code * scale + offset: small numbers, and tables of numbers that each serve a rectangle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from drupe.errors import FormatError
from drupe.readers.interface import FloatArray, StoredArray, TensorInfo, Window
from drupe.readers.packed import decode
from drupe.readers.quantised.table import Table, step

Places = NDArray[np.intp]
_VALUES_AT_ONCE = 1 << 20
_STEPS: Mapping[str, Callable[..., FloatArray]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide,
}  # fmt: skip
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The values of the 4-bit float of OCP Microscaling Formats (MX) 1.0, table 5."""


@cache
def byte_values(dtype: str) -> FloatArray:
    """What each byte stands for in a float type of 8 bits that lies in the file as uint8."""
    return decode(bytes(range(256)), dtype, 256)


class Codes(Protocol):
    """The numbers of a weight before any scale."""

    def needs(self, window: Window) -> list[Window]:
        """What to read."""

    def take(self, window: Window, stored: Sequence[StoredArray]) -> StoredArray:
        """The numbers of the window."""


@dataclass(frozen=True, slots=True)
class TableCodes:
    """Codes that lie as a table; ``lookup`` gives the value of each, where it is not the number itself."""

    table: Table
    lookup: tuple[float, ...] = ()

    def needs(self, window: Window) -> list[Window]:
        """One rectangle."""
        return [self.table.needs(*_ranges(window))]

    def take(self, window: Window, stored: Sequence[StoredArray]) -> StoredArray:
        """The numbers of the window."""
        codes = self.table.take(*_ranges(window), stored[0])
        return np.asarray(self.lookup, np.float32)[codes] if self.lookup else codes


def _ranges(window: Window) -> tuple[range, range]:
    return range(window.row_start, window.row_stop), range(window.column_start, window.column_stop)


@dataclass(frozen=True, slots=True)
class Applied:
    """A block of a spread, and which of its rows and columns serve those of a window (None: all or the only)."""

    block: FloatArray
    rows: Places | None
    columns: Places | None

    def part(self, start: int, stop: int) -> FloatArray:
        """What serves rows ``start`` to ``stop`` of the window."""
        if self.rows is not None:
            block = self.block[self.rows[start:stop]]
        else:
            block = self.block if len(self.block) == 1 else self.block[start:stop]
        return block if self.columns is None else block[:, self.columns]


class Operand(Protocol):
    """Numbers over a matrix, each of which serves several values."""

    def needs(self, window: Window) -> list[Window]:
        """What to read."""

    def applied(self, window: Window, stored: Sequence[StoredArray]) -> Applied:
        """The numbers, ready to be applied to the rows of a window."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Numbers that each serve ``row_step`` x ``column_step`` values: scales, zero points, offsets."""

    table: Table
    row_step: int
    column_step: int
    order: TensorInfo | None = None
    """Tensor that names the column group of each column (activation order); all -1 = none."""
    plus: int = 0
    modulo: int = 0
    code: str = ""
    """Type of the bytes when floats of 8 bits are stored as uint8."""

    def needs(self, window: Window) -> list[Window]:
        """The rectangle of the table that serves a window, and the order of its columns."""
        first = self.table.needs(*self._ranges(window))
        if self.order is None:
            return [first]
        return [first, Window(self.order.name, 0, 1, window.column_start, window.column_stop)]

    def applied(self, window: Window, stored: Sequence[StoredArray]) -> Applied:
        """The numbers, ready to be applied to the rows of a window."""
        rows, columns = self._ranges(window)
        block = self._values(self.table.take(rows, columns, stored[0]))
        down = _places(window.row_start, window.row_stop, self.row_step, len(rows))
        if self.order is None:
            return Applied(
                block, down, _places(window.column_start, window.column_stop, self.column_step, len(columns))
            )
        return Applied(block, down, self._ordered(self.order, window, stored[1]))

    def _values(self, block: StoredArray) -> FloatArray:
        if self.code:
            return np.asarray(byte_values(self.code)[block], np.float32)
        if self.modulo:
            return ((block.astype(np.int32) + self.plus) % self.modulo).astype(np.float32)
        values = block.astype(np.float32)
        return values + np.float32(self.plus) if self.plus else values

    def _ranges(self, window: Window) -> tuple[range, range]:
        rows = _groups(window.row_start, window.row_stop, self.row_step)
        if self.order is not None:
            return rows, range(self.table.columns)
        return rows, _groups(window.column_start, window.column_stop, self.column_step)

    def _ordered(self, order: TensorInfo, window: Window, stored: StoredArray) -> Places:
        groups = stored.ravel().astype(np.intp)
        if (groups == -1).all():
            return np.arange(window.column_start, window.column_stop) // self.column_step
        if groups.min() < 0 or groups.max() >= self.table.columns:
            worst = int(groups.min() if groups.min() < 0 else groups.max())
            raise FormatError(
                f"{order.name[:80]!r} names group {worst} of {self.table.columns}", where=order.file
            )
        return groups


def _groups(start: int, stop: int, size: int) -> range:
    return range(start // size, (stop - 1) // size + 1)


def _places(start: int, stop: int, size: int, groups: int) -> Places | None:
    if size == 1 or groups == 1:
        return None
    return np.arange(start, stop) // size - start // size


def spread(
    info: TensorInfo, rows: int, columns: int, hints: tuple[int | None, int | None], code: str = ""
) -> Spread:
    """A tensor of plain scales over a matrix: one, one per row, or a grid of blocks.

    Raises FormatError when its shape serves no blocks of equal size.
    """
    down, across = info.matrix_shape
    if info.size == 1:
        return Spread(Table(info.name, 1, 1), max(rows, 1), max(columns, 1), code=code)
    if len(info.shape) == 1 and across == rows:
        return Spread(Table(info.name, rows, 1, turned=True), 1, max(columns, 1), code=code)
    sizes = step(rows, down, hints[0], info), step(columns, across, hints[1], info)
    return Spread(Table(info.name, down, across), *sizes, code=code)


@dataclass(frozen=True, slots=True)
class Affine:
    """A weight: codes, then one operation (``+ - * /``) after the other."""

    info: TensorInfo
    parts: tuple[str, ...]
    codes: Codes
    steps: tuple[tuple[str, Operand | float], ...]

    def needs(self, window: Window) -> list[Window]:
        """Rectangles of the codes and of every table."""
        operands = [operand for _, operand in self.steps if not isinstance(operand, float)]
        return [*self.codes.needs(window), *(need for each in operands for need in each.needs(window))]

    def decode(self, window: Window, stored: Sequence[StoredArray]) -> FloatArray:
        """The values of the window."""
        at = len(self.codes.needs(window))
        values = np.array(self.codes.take(window, stored[:at]), np.float32)
        operands: list[tuple[str, Applied | float]] = []
        for sign, operand in self.steps:
            if isinstance(operand, float):
                operands.append((sign, operand))
            else:
                count = len(operand.needs(window))
                operands.append((sign, operand.applied(window, stored[at : at + count])))
                at += count
        chunk = max(1, _VALUES_AT_ONCE // max(values.shape[1], 1))
        with np.errstate(all="ignore"):  # NaN and overflow are facts about the file
            for start in range(0, len(values), chunk):
                _apply(values[start : start + chunk], start, operands)
        return values


def _apply(values: FloatArray, start: int, operands: Sequence[tuple[str, Applied | float]]) -> None:
    for sign, operand in operands:
        number = operand if isinstance(operand, float) else operand.part(start, start + len(values))
        _STEPS[sign](values, np.asarray(number, np.float32), out=values)
