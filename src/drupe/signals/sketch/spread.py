"""Which matrices of a remote suspect are sketched: those of a few layers, because each costs a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from drupe.model import Matrix
from drupe.roles import is_table_role

SPREAD_LAYERS, SPREAD_MATRICES, SPREAD_OUTSIDE = 8, 48, 48
"""At most so many layers, matrices in layers, and matrices outside of layers but token tables."""

T = TypeVar("T")


def spread_matrices(matrices: Sequence[Matrix]) -> tuple[Matrix, ...]:
    """The matrices of a few layers, first and last included, and the token tables: what a remote suspect costs.

    Each matrix lies alone and costs one request; of more than six per layer, every layer leaves out others.
    """
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
