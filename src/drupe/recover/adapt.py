"""Read tensors as the other side reads its own: opaque names by their stored shape, fused matrices by their role.

A name says whether a matrix is stored transposed or holds q, k and v at once. When the names are gone, the other
model's reading of that shape is the best hypothesis: taken over when it is unanimous, tested by everything after. A
fused q, k and v that interleaves its heads needs their number: without a configuration the other's split is tried.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from drupe.model import Matrix, Model
from drupe.readers.interface import Absent, Layout
from drupe.signals.sketch.facts import extract
from drupe.subject import Subject

FUSED = "+"
"""Between the roles of a matrix that holds several and was not split."""
Reading = tuple[Matrix, ...]
"""The matrices of one tensor, without its name."""


def adapt(subject: Subject, other: Subject) -> Subject:
    """The subject with its opaque and its unsplit tensors read like the other's; unchanged when nothing differs."""
    if subject.model is None or other.model is None:
        return subject
    opaque = {matrix.tensor for matrix in subject.model.matrices if matrix.role is None}
    readings = _readings(other.model) if opaque else {}
    matrices: list[Matrix] = []
    seen: set[str] = set()
    for matrix in subject.model.matrices:
        if FUSED in (matrix.role or ""):
            matrices.extend(_split_like(subject.model, matrix, other.model))
        elif matrix.tensor not in opaque:
            matrices.append(matrix)
        elif matrix.tensor not in seen:
            seen.add(matrix.tensor)
            matrices.extend(_read_like(subject.model, matrix, readings))
    if tuple(matrices) == subject.model.matrices:
        return subject
    model = replace(subject.model, matrices=tuple(matrices))
    return replace(subject, model=model, fingerprint=replace(subject.fingerprint, weights=extract(model)))


def _split_like(model: Model, matrix: Matrix, other: Model) -> list[Matrix]:
    """The parts of a fused matrix as the other splits its own of that role and shape, when it does so in one way."""
    assert not isinstance(model.weights, Absent)
    assert not isinstance(other.weights, Absent)
    prefix, _, last = (matrix.role or "").rpartition(".")
    roles = [f"{prefix}.{part}" if prefix else part for part in last.split(FUSED)]
    shape = model.weights.tensors[matrix.tensor].shape
    groups: dict[str, list[Matrix]] = defaultdict(list)
    for theirs in other.matrices:
        if theirs.role in roles and other.weights.tensors[theirs.tensor].shape == shape:
            groups[theirs.tensor].append(replace(theirs, tensor=matrix.tensor, layer=matrix.layer))
    found = {
        tuple(group) for group in groups.values() if sorted(str(part.role) for part in group) == sorted(roles)
    }
    return list(found.pop()) if len(found) == 1 else [matrix]


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
