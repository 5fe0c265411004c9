"""Weights whose packed numbers run on from row to row: windows as runs of the flat sequence of values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from drupe.readers.interface import FloatArray, StoredArray, TensorInfo, Window


class Sequenced(Protocol):
    """The values of a weight by their places in the flat sequence."""

    def needs(self, run: range) -> list[Window]:
        """What to read for a run that is not empty."""

    def take(self, run: range, stored: Sequence[StoredArray]) -> FloatArray:
        """The values of the run, one-dimensional."""


@dataclass(frozen=True, slots=True)
class Flat:
    """A weight over such values."""

    info: TensorInfo
    parts: tuple[str, ...]
    values: Sequenced

    def needs(self, window: Window) -> list[Window]:
        """What all runs of the window need, run after run."""
        return [need for run in self._runs(window) for need in self.values.needs(run)]

    def decode(self, window: Window, stored: Sequence[StoredArray]) -> FloatArray:
        """The values of the window."""
        found, at = [], 0
        for run in self._runs(window):
            count = len(self.values.needs(run))
            found.append(self.values.take(run, stored[at : at + count]))
            at += count
        values = found[0] if len(found) == 1 else np.concatenate(found)
        return values.reshape(window.row_stop - window.row_start, window.column_stop - window.column_start)

    def _runs(self, window: Window) -> list[range]:
        columns = self.info.matrix_shape[1]
        if window.column_stop - window.column_start == columns:
            return [range(window.row_start * columns, window.row_stop * columns)]
        return [
            range(row * columns + window.column_start, row * columns + window.column_stop)
            for row in range(window.row_start, window.row_stop)
        ]
