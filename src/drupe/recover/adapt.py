"""Read tensors with opaque names as the other side reads its tensors of the same stored shape.

A name says whether a matrix is stored transposed or holds q, k and v at once. When the names are gone, the other
model's reading of that shape is the best hypothesis: taken over when it is unanimous, tested by everything after.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from drupe.model import Matrix, Model
from drupe.readers.interface import Absent, Layout
from drupe.signals.sketch.facts import extract
from drupe.subject import Subject

Reading = tuple[Matrix, ...]
"""The matrices of one tensor, without its name."""


def adapt(subject: Subject, other: Subject) -> Subject:
    """The subject with its opaque tensors read like the other's; unchanged when nothing differs."""
    if subject.model is None or other.model is None:
        return subject
    opaque = {matrix.tensor for matrix in subject.model.matrices if matrix.role is None}
    readings = _readings(other.model) if opaque else {}
    matrices: list[Matrix] = []
    seen: set[str] = set()
    for matrix in subject.model.matrices:
        if matrix.tensor not in opaque:
            matrices.append(matrix)
        elif matrix.tensor not in seen:
            seen.add(matrix.tensor)
            matrices.extend(_read_like(subject.model, matrix, readings))
    if tuple(matrices) == subject.model.matrices:
        return subject
    model = replace(subject.model, matrices=tuple(matrices))
    return replace(subject, model=model, fingerprint=replace(subject.fingerprint, weights=extract(model)))


def _readings(model: Model) -> dict[tuple[int, ...], set[Reading]]:
    """Stored shape -> how tensors of that shape with known roles are read."""
    assert not isinstance(model.weights, Absent)
    by_tensor: dict[str, list[Matrix]] = defaultdict(list)
    for matrix in model.matrices:
        if matrix.role is not None:
            by_tensor[matrix.tensor].append(matrix)
    found: dict[tuple[int, ...], set[Reading]] = defaultdict(set)
    for tensor, group in by_tensor.items():
        reading = tuple(replace(matrix, tensor="", role=None, layer=None) for matrix in group)
        found[model.weights.tensors[tensor].shape].add(reading)
    return found


def _read_like(model: Model, matrix: Matrix, readings: dict[tuple[int, ...], set[Reading]]) -> list[Matrix]:
    assert not isinstance(model.weights, Absent)
    info = model.weights.tensors[matrix.tensor]
    known = readings.get(info.shape, set())
    if len(known) != 1 or info.layout is not Layout.UNKNOWN:  # a graph says how its weights are used
        return [matrix]
    return [replace(part, tensor=matrix.tensor) for part in next(iter(known))]
