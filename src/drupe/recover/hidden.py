"""The residual stream's dimensions: which one of the suspect is which of the source, and with which sign.

Permuting them, negating some, or keeping only a part (width pruning) leaves every value of the matrices as it is, so
the map is found without a rotation: column i of the suspect's token table is column j of the source's. The map is
found on one half of the shared tokens and tested on the other, so its z is honest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.readers.interface import FloatArray
from drupe.recover.parts import OUTPUT_ROLES, Parts
from drupe.recover.tokens import shared_tokens, token_table
from drupe.recover.units import SIGNIFICANT_Z, mapped_z, match_rows

MAX_TOKENS = 4096
FOUND = 0.9
"""Share of the suspect's dimensions that must find their own partner; under a rotation none does."""


@dataclass(frozen=True, slots=True)
class HiddenMap:
    """``columns[i]`` = dimension of the source that is dimension i of the suspect, ``signs[i]`` its sign."""

    columns: NDArray[np.intp]
    signs: FloatArray
    source_width: int
    z: float

    @property
    def flipped(self) -> int:
        """Dimensions that were negated."""
        return int((self.signs < 0).sum())

    @property
    def kept(self) -> float:
        """Share of the source's dimensions that the suspect has."""
        return len(self.columns) / self.source_width

    def restore(self, role: str, values: FloatArray) -> FloatArray:
        """Values in the suspect's dimensions, all of which are the source's, in the source's order and signs."""
        order = np.argsort(self.columns)
        if role.rpartition(".")[2] in OUTPUT_ROLES:
            return (values * self.signs[:, None])[order]
        return (values * self.signs)[:, order]

    def apply(self, role: str, source: FloatArray) -> FloatArray | None:
        """The source's matrix in the suspect's dimensions; None when it does not live in the residual stream."""
        if role.rpartition(".")[2] in OUTPUT_ROLES:
            if source.shape[0] != self.source_width:
                return None
            return source[self.columns] * self.signs[:, None]
        if source.shape[1] != self.source_width:
            return None
        return source[:, self.columns] * self.signs


def find_hidden(a: Parts, b: Parts) -> HiddenMap | None:
    """The map of dimensions, or None when there is none or it is the identity."""
    tokens = shared_tokens(a, b, limit=MAX_TOKENS)
    if tokens is None:
        return None
    left, right = token_table(a, tokens.suspect).T, token_table(b, tokens.source).T
    if len(left) > len(right):
        return None
    half = left.shape[1] // 2
    first = match_rows(left[:, :half], right[:, :half])
    signs = _signs(left[:, :half], right[:, :half], first.source_rows)
    z = mapped_z(left[:, half:] * signs[:, None], right[:, half:], first)
    if first.share < FOUND or z < SIGNIFICANT_Z:
        return None
    columns = _complete(match_rows(left, right).source_rows, left, right)
    found = HiddenMap(columns, _signs(left, right, columns), len(right), z)
    in_place = found.kept == 1.0 and (columns == np.arange(len(columns))).all()
    return None if in_place and not found.flipped else found


def _signs(left: FloatArray, right: FloatArray, columns: NDArray[np.intp]) -> FloatArray:
    products = np.einsum("it,it->i", left, right[columns])
    result: FloatArray = np.where(products < 0, -1.0, 1.0).astype(np.float32)
    return result


def _complete(found: NDArray[np.intp], left: FloatArray, right: FloatArray) -> NDArray[np.intp]:
    """Dimensions without a mutual partner take the likest of those that are left."""
    columns = found.copy()
    free = sorted(set(range(len(right))) - set(columns[columns >= 0].tolist()))
    for i in np.flatnonzero(columns < 0):
        likeness = np.abs(right[free] @ left[i])
        columns[i] = free.pop(int(likeness.argmax()))
    return columns
