"""Which expert of the suspect is which of the source: their order in a layer is a convention of the router's rows.

Experts are compared as they stand (no rotation, units in place): cosine of the same part of their input matrices. The
map of a layer is used only when every expert has a partner of its own and all are mutual nearest; the pairs are then
tested like any other, so a map by chance proves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from drupe.model import Block, Matrix
from drupe.readers.interface import FloatArray
from drupe.recover.parts import Parts, Place
from drupe.recover.units import finite, mutual_nearest

ROWS, COLUMNS = 64, 256
MIN_COSINE = 0.1
"""Mean cosine of the partners; between independent matrices 0, sd 1 / sqrt(rows columns) = 0.008."""
_EXPERT = re.compile(r"(?<![^.])experts\.([0-9]+)\.([^.]+)$")


def expert_of(role: str | None) -> tuple[str, int, str] | None:
    """What stands before, number and matrix of an expert's role.

    >>> expert_of("experts.3.up"), expert_of("up")
    (('', 3, 'up'), None)
    """
    found = _EXPERT.search(role or "")
    return None if role is None or found is None else (role[: found.start()], int(found[1]), found[2])


def in_order(mine: Parts, theirs: Parts, layer_map: Sequence[tuple[int, int]]) -> Parts:
    """The suspect's parts with every expert at the place of its partner; unchanged where nothing moved."""
    moved: dict[Place, Matrix] = {}
    for i, j in layer_map:
        for prefix in sorted(
            {found[0] for role, layer in mine.places if layer == i and (found := expert_of(role))}
        ):
            for old, new in _layer(mine, theirs, prefix, i, j).items():
                for role, layer in mine.places:
                    found = expert_of(role)
                    if layer == i and found is not None and found[:2] == (prefix, old) and old != new:
                        moved[f"{prefix}experts.{new}.{found[2]}", i] = mine.places[role, layer]
    return replace(mine, places={**mine.places, **moved}) if moved else mine


def _layer(mine: Parts, theirs: Parts, prefix: str, i: int, j: int) -> Mapping[int, int]:
    """Suspect's expert -> source's, of one layer; empty when no map is clear."""
    left, right = _inputs(mine, prefix, i), _inputs(theirs, prefix, j)
    if (
        len(left) < 2
        or set(left) != set(right)
        or len({values.size for values in (*left.values(), *right.values())}) > 1
    ):
        return {}
    numbers = sorted(left)
    tables = [np.stack([_unit(side[number]) for number in numbers]) for side in (left, right)]
    cosines = tables[0] @ tables[1].T
    partner = mutual_nearest(cosines)
    if (partner < 0).any() or float(cosines[np.arange(len(partner)), partner].mean()) < MIN_COSINE:
        return {}
    return {numbers[k]: numbers[int(place)] for k, place in enumerate(partner)}


def _inputs(parts: Parts, prefix: str, layer: int) -> dict[int, FloatArray]:
    """A corner of each expert's input matrix."""
    found = {}
    for (role, here), matrix in parts.places.items():
        expert = expert_of(role)
        if here == layer and expert is not None and expert[0] == prefix and expert[2] == "up":
            block = Block(matrix, 0, min(ROWS, matrix.rows), 0, min(COLUMNS, matrix.columns))
            found[expert[1]] = parts.model.read([block])[0].ravel()
    return found


def _unit(values: FloatArray) -> FloatArray:
    clean = finite(values)
    result: FloatArray = clean / max(float(np.linalg.norm(clean)), 1e-20)
    return result
