"""Which matrices of a remote suspect are sketched: those of a few layers, because each costs a request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from drupe.model import Matrix
from drupe.roles import is_table_role

SPREAD_LAYERS, SPREAD_MATRICES, SPREAD_OUTSIDE = 8, 48, 48
"""At most so many layers, matrices in layers, and matrices outside of layers but token tables."""

SAMPLED_EXPERTS = 4
"""Experts of a layer that are sketched: 128 of them in 48 layers would be 18,000 matrices."""
SAMPLED_CHANGES = 512
"""Matrices of an adapter that are sketched: all its fingerprint can say is whether they are equal."""
_EXPERT = re.compile(r"(?:^|\.)experts\.([0-9]+)\.")

T = TypeVar("T")


def sample_experts(matrices: Sequence[Matrix]) -> tuple[Matrix, ...]:
    """All matrices but those of experts beyond the first few of each layer."""
    return tuple(matrix for matrix in matrices if is_sampled(matrix.role))


def is_sampled(role: str | None) -> bool:
    """Whether a role is none of the experts that samples leave out."""
    expert = _EXPERT.search(role or "")
    return expert is None or int(expert[1]) < SAMPLED_EXPERTS


def sample_changes(matrices: Sequence[Matrix]) -> tuple[Matrix, ...]:
    """Of an adapter, which may change every matrix of 128 experts: evenly spread ones."""
    return tuple(_evenly(matrices, SAMPLED_CHANGES))


def spread_matrices(matrices: Sequence[Matrix]) -> tuple[Matrix, ...]:
    """The matrices of a few layers, first and last included, and the token tables: what a remote suspect costs.

    Each matrix lies alone and costs one request; of more than six per layer, every layer leaves out others.
    """
    matrices = sample_experts(matrices)
    layers = _evenly(sorted({m.layer for m in matrices if m.layer is not None}), SPREAD_LAYERS)
    inside: list[Matrix] = []
    for turn, layer in enumerate(layers):
        own = [matrix for matrix in matrices if matrix.layer == layer]
        shift = turn % len(own)
        inside += _evenly(own[shift:] + own[:shift], SPREAD_MATRICES // len(layers), last=False)
    outside = [matrix for matrix in matrices if matrix.layer is None]
    tables = [matrix for matrix in outside if is_table_role(matrix.role)]
    rest = _evenly([matrix for matrix in outside if matrix not in tables], SPREAD_OUTSIDE)
    chosen = {*inside, *tables, *rest}
    return tuple(matrix for matrix in matrices if matrix in chosen)


def _evenly(items: Sequence[T], most: int, *, last: bool = True) -> list[T]:
    """At most ``most`` of the items, the first one and (unless they lie in a circle) the last one included."""
    if len(items) <= most:
        return list(items)
    places = np.linspace(0, len(items) - 1 if last else len(items), most, endpoint=last)
    return [items[int(place)] for place in places]
