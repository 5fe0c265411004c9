"""The matrices of a model by role and layer: the common language of all recovery steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.model import Block, Matrix, Model
from drupe.readers.interface import Absent, FloatArray

Place = tuple[str, int | None]
"""Role and layer."""

INPUT_ROLES = ("q", "k", "v", "gate", "up")
"""Matrices whose columns live in the residual stream, behind a norm gain."""
OUTPUT_ROLES = ("o", "down")
"""Matrices whose rows live in the residual stream."""
HIDDEN_ROLES = INPUT_ROLES + OUTPUT_ROLES
TOKEN_ROLES = ("embed", "head")
AFTER_NORM1 = ("q", "k", "v", "q_a", "kv_a")
RUN = 64
"""Neighbouring rows that are read together where some rows speak for all."""
_SHARING = re.compile(r"(?:^|\.)(?:experts\.[0-9]+|shared)$")
"""Experts share the norm of their layer."""


_EXPERT = re.compile(r"(?<![^.])experts\.[0-9]+\.")


def dense_role(role: str) -> str:
    """The role of an expert's matrix in a model without experts.

    >>> dense_role("experts.3.up"), dense_role("encoder.experts.0.down"), dense_role("q")
    ('up', 'encoder.down', 'q')
    """
    return _EXPERT.sub("", role)


def runs(count: int, most: int) -> NDArray[np.intp]:
    """At most ``most`` of the numbers below ``count``, in evenly spread runs: a disk reads neighbours at one price.

    >>> runs(1000, 128)[[0, 63, 64, 127]].tolist()
    [0, 63, 936, 999]
    """
    if count <= most:
        return np.arange(count)
    starts = np.linspace(0, count - RUN, max(1, most // RUN)).astype(np.intp)
    return (starts[:, None] + np.arange(RUN)).ravel()


@dataclass(frozen=True, slots=True)
class Parts:
    """A model with its matrices by place. ``places`` may be borrowed from the other side of a match."""

    model: Model
    places: Mapping[Place, Matrix]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer numbers, sorted."""
        return tuple(sorted({layer for _, layer in self.places if layer is not None}))

    def load(self, role: str, layer: int | None = None) -> FloatArray | None:
        """All values of the matrix at a place; None when there is none."""
        matrix = self.places.get((role, layer))
        return None if matrix is None else self.model.load(matrix)

    def rows(self, matrix: Matrix, numbers: NDArray[np.intp]) -> FloatArray:
        """The rows of the given numbers; no other is read, unless they are most of them."""
        if 2 * len(numbers) > matrix.rows:
            return self.model.load(matrix)[numbers]
        found = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
        blocks = [
            Block(matrix, int(run[0]), int(run[-1]) + 1, 0, matrix.columns) for run in found if run.size
        ]
        return np.concatenate(self.model.read(blocks))

    def gain(self, role: str, layer: int | None) -> NDArray[np.float32] | None:
        """The norm gain in front of a matrix, or None (post-norm models, unknown names)."""
        scheme = self.model.roles.scheme_of(role)
        if scheme is None or scheme.norm_after or isinstance(self.model.weights, Absent):
            return None
        inside, _, last = role.rpartition(".")
        stack = _SHARING.sub("", inside)
        norm = "norm1" if last in AFTER_NORM1 else "norm2" if layer is not None else "final_norm"
        for name in (norm, "norm1") if layer is not None else (norm,):  # attention and FFN may share one norm
            tensor = self.model.roles.tensors.get((f"{stack}.{name}" if stack else name, layer))
            if tensor is not None:
                gain: NDArray[np.float32] = self.model.load_vector(tensor) + np.float32(scheme.norm_offset)
                return gain
        return None


def parts_of(model: Model, borrowed: Mapping[Matrix, Place] | None = None) -> Parts:
    """Matrices by (role, layer); ``borrowed`` gives places to matrices whose names say nothing."""
    places: dict[Place, Matrix] = {}
    for matrix in model.matrices:
        place = (borrowed or {}).get(matrix)
        if place is None and matrix.role is not None:
            place = (matrix.role, matrix.layer)
        places.setdefault(
            place or (matrix.tensor, None), matrix
        )  # unknown: equal names are tried, and tested
    return Parts(model, places)
