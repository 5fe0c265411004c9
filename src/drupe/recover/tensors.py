"""Which stored tensor is which when names say nothing: every one against every equally shaped one, by a few values.

Unlike the proof of descent (contents.py), this is bookkeeping for tensors that are taken to correspond: gains and
biases, which carry too little for a test, are matched too. A match must be the best of both sides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from drupe.model import Model
from drupe.readers.interface import Absent, Window

Samples = NDArray[np.float64]
"""A row of values for each tensor."""

SAMPLED_ROWS, SAMPLED_COLUMNS = 8, 512
"""Of each tensor, from its first value: enough to tell 10,000 tensors of one shape apart."""
MIN_COSINE = 0.5
"""Of the samples less their mean over the group. 4,096 independent values: sd 0.016; 64 of a gain: 0.125."""
MARGIN = 1e-4
"""Cosines closer than this do not tell two tensors of the source apart."""
MAX_GROUP = 4096
"""Tensors of one shape and side; stacks of experts have thousands."""


def match_tensors(a: Model, b: Model, wanted: Iterable[str], among: Iterable[str]) -> dict[str, str]:
    """Tensor of ``a`` -> tensor of ``b``, one to one."""
    groups: dict[tuple[int, ...], tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, (model, names) in enumerate(((a, wanted), (b, among))):
        assert not isinstance(model.weights, Absent)
        for name in names:
            groups[model.weights.tensors[name].shape][side].append(name)
    found: dict[str, str] = {}
    for left, right in groups.values():
        if left and right and max(len(left), len(right)) <= MAX_GROUP:
            found.update(_match(_samples(a, left), _samples(b, right), left, right))
    return found


def _samples(model: Model, names: list[str]) -> Samples:
    """A row of values for each tensor."""
    assert not isinstance(model.weights, Absent)
    windows = []
    for name in names:
        rows, columns = model.weights.tensors[name].matrix_shape
        width = SAMPLED_COLUMNS if rows > 1 else SAMPLED_ROWS * SAMPLED_COLUMNS
        windows.append(Window(name, 0, min(rows, SAMPLED_ROWS), 0, min(columns, width)))
    samples = np.stack([values.ravel() for values in model.weights.read(windows)])
    found: Samples = np.nan_to_num(samples.astype(np.float64), posinf=0.0, neginf=0.0)
    return found


def _match(mine: Samples, theirs: Samples, left: list[str], right: list[str]) -> Mapping[str, str]:
    """Greedy by cosine; equal tensors go to each other in their order."""
    table = _unit(mine) @ _unit(theirs).T
    if len(left) == len(right) == 1:
        table = np.ones((1, 1))  # the only one of its shape
    found: dict[str, str] = {}
    taken: set[int] = set()
    table += np.array(
        [[np.array_equal(one, other) for other in theirs] for one in mine]
    )  # equal: beyond doubt
    unsure = _ambiguous(table, mine)
    for flat in np.argsort(-table, axis=None, kind="stable"):
        row, column = divmod(int(flat), len(right))
        if table[row, column] < MIN_COSINE or len(found) == min(len(left), len(right)):
            break
        if left[row] not in found and column not in taken:
            taken.add(column)
            found[left[row]] = right[column]
    doubtful = {left[row] for row in unsure}
    return {name: other for name, other in found.items() if name not in doubtful}


def _ambiguous(table: Samples, mine: Samples) -> set[int]:
    """Tensors that fit two of the source alike though they differ among themselves: copied layers, trained on."""
    best = table.max(axis=1)
    rivals = [np.flatnonzero(row >= top - MARGIN) for row, top in zip(table, best, strict=True)]
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, columns in enumerate(rivals):
        if columns.size > 1:
            groups[tuple(columns.tolist())].append(row)
    return {
        row
        for rows in groups.values()
        for row in rows
        if not all(np.array_equal(mine[row], mine[other]) for other in rows)
    }


def _unit(samples: Samples) -> Samples:
    """Less the mean of the group where there are several, and of length one; equal groups stay as they are."""
    centred = samples - samples.mean(axis=0) if len(samples) > 1 else samples
    centred = centred if centred.any() else samples
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit: Samples = centred / np.where(length > 0, length, 1.0)
    return unit
