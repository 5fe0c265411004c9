"""Gains and biases: which of them also stand in the source, whatever their names and the order of their values."""

from __future__ import annotations

import numpy as np

from drupe.model import Model
from drupe.readers.interface import Absent, FloatArray


def compare_vectors(a: Model, b: Model) -> tuple[float | None, float | None]:
    """Share of the small tensors (gains, biases) whose values also stand in the source, by content, and the median
    relative distance to the nearest one of equal size: values sorted, since units may have been permuted.

    A gain w that is stored as 1 + w (Gemma in GGUF) is the same gain.
    """
    theirs = _vectors(b)
    known_sizes = {values.size for values in theirs} - (
        _units(a) - _units(b)
    )  # of other units: no such vector
    mine = [values for values in _vectors(a) if values.size in known_sizes]
    if not mine:
        return None, None
    known = {values.tobytes() for values in theirs}
    equal = sum(values.tobytes() in known for values in mine) / len(mine)
    tables = {size: np.stack([v for v in theirs if v.size == size]) for size in known_sizes}
    return equal, float(np.median([_nearest(values, tables[values.size]) for values in mine]))


def _units(model: Model) -> set[int]:
    """Numbers of FFN units."""
    return {m.rows for m in model.matrices if m.role is not None and m.role.rpartition(".")[2] == "up"}


def _nearest(values: FloatArray, table: FloatArray) -> float:
    norm = float(np.linalg.norm(values)) or 1.0
    return min(
        float(np.linalg.norm(table + shift - values, axis=1).min()) / norm for shift in (0.0, 1.0, -1.0)
    )


def _vectors(model: Model) -> list[FloatArray]:
    """Small float tensors, sorted; constants (all ones, all zeros) are left out."""
    assert not isinstance(model.weights, Absent)
    large = {matrix.tensor for matrix in model.matrices}
    found = []
    for name, info in model.weights.tensors.items():
        if name in large or info.size == 0 or info.size > 1 << 20 or not info.dtype.startswith(("F", "BF")):
            continue
        values = np.sort(model.load_vector(name))
        if np.isfinite(values).all() and values[0] != values[-1]:
            found.append(np.ascontiguousarray(values, "<f4"))
    return found
