"""Row matching: which hidden unit of one matrix is which of the other, and whether rows correspond at all."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.readers.interface import FloatArray

MAX_COLUMNS = 512
"""Columns that enter a cosine; more add cost and no decision (cosine null sd is 1/sqrt(columns))."""
MAX_ROWS = 256
"""Rows of the permutation test."""
MOVED_GAIN = 1.1
"""A map must raise the permutation z by this factor over the rows as they stand."""
MISPLACED = 0.05
"""Share of rows that wrong partners may leave out of order; after long training a few units look like others."""
SIGNIFICANT_Z = 6.0
"""Permutation z of one matrix from which its rows are taken as corresponding (p < 1e-9)."""


@dataclass(frozen=True, slots=True)
class RowMap:
    """``source_rows[i]`` = row of the source that is row i of the suspect, -1 when none is.

    ``share`` = matched rows / rows; ``moved`` = share of the matched rows that changed place.
    """

    source_rows: NDArray[np.intp]
    share: float
    moved: float


def finite(values: FloatArray) -> FloatArray:
    """Values that are no numbers, or too large to be squared, as zeros."""
    result: FloatArray = np.where(np.abs(values) < 1e15, values, np.float32(0.0))
    return result


def unit_rows(matrix: FloatArray, columns: int = MAX_COLUMNS) -> FloatArray:
    """Rows of length one, in at most ``columns`` evenly spread columns."""
    step = max(1, matrix.shape[1] // columns)
    thinned = finite(matrix[:, ::step][:, :columns])
    norms = np.linalg.norm(thinned, axis=1, keepdims=True)
    result: FloatArray = thinned / np.maximum(norms, 1e-20)
    return result


def mutual_nearest(similarity: FloatArray) -> NDArray[np.intp]:
    """For each row the column that is its nearest and whose nearest it is, else -1."""
    forward = similarity.argmax(axis=1)
    backward = similarity.argmax(axis=0)
    rows = np.arange(similarity.shape[0])
    return np.where(backward[forward] == rows, forward, -1)


def match_rows(suspect: FloatArray, source: FloatArray) -> RowMap:
    """Mutual nearest rows by cosine; signs are free (a unit may be negated).

    Under independence about half of the rows find some mutual partner at cosine ~ sqrt(2 ln n / d), so the
    share alone proves nothing: test the aligned votes (weights.rows) before believing a map.
    """
    similarity = np.abs(unit_rows(suspect) @ unit_rows(source).T)
    rows = mutual_nearest(similarity)
    found = rows >= 0
    moved = float(np.mean(rows[found] != np.flatnonzero(found))) if found.any() else 0.0
    return RowMap(rows, float(found.mean()), moved)


def row_permutation_z(suspect: FloatArray, source: FloatArray) -> float:
    """z of sum_i cos(a_i, b_i) under random pairings of the rows; mean and variance in closed form.

    With C the matrix of cosines, doubly centred, n rows: mean = sum(C)/n, variance = sum(centred^2)/(n - 1)
    (Hoeffding, Ann. Math. Stat. 1951). Exact under exchangeable units (Zhu et al., ICML 2025, section 3):
    no model of the weights. Measured on independent pairs: sd 0.95. Rows beyond 256 are thinned.
    """
    step = max(1, min(suspect.shape[0], source.shape[0]) // MAX_ROWS)
    rows = min(suspect.shape[0], source.shape[0]) // step
    left = unit_rows(suspect[::step][:rows])
    cosines = np.asarray(left @ unit_rows(source[::step][:rows]).T, np.float64)
    centred = cosines - cosines.mean(axis=0) - cosines.mean(axis=1, keepdims=True) + cosines.mean()
    variance = float((centred**2).sum()) / max(rows - 1, 1)
    return float(np.trace(centred)) / np.sqrt(variance) if variance > 0 else 0.0


def is_reordered(partners: NDArray[np.intp]) -> bool:
    """Whether rows stand in another order, not only with gaps and a few wrong partners.

    By the longest increasing subsequence: two halves that changed places leave a half of the rows outside of it.

    >>> is_reordered(np.array([0, 2, 3, 7, 9])), is_reordered(np.array([3, 4, 5, 0, 1, 2]))
    (False, True)
    """
    tails: list[int] = []
    for value in partners.tolist():
        place = bisect_left(tails, value)
        tails[place : place + 1] = [value]
    return len(tails) < (1.0 - MISPLACED) * len(partners)


@dataclass(frozen=True, slots=True)
class RowRecovery:
    """A row map and its evidence on values that did not choose it."""

    rows: RowMap | None
    z: float


def recover_rows(suspect: FloatArray, source: FloatArray, whole: FloatArray | None = None) -> RowRecovery:
    """Find the row map on one half of the columns and test it on the other (held out, so z is honest).

    ``rows`` is None when no map is significant, or none explains more than the rows as they stand. When the two are
    the same sample of the rows, ``whole`` has all rows of the source, and the map is one into it.
    """
    in_place = row_permutation_z(suspect, source)
    if suspect.shape != source.shape:
        return RowRecovery(None, in_place)
    half = suspect.shape[1] // 2
    choice = source if whole is None else whole
    candidate = match_rows(suspect[:, :half], choice[:, :half])
    z = mapped_z(suspect[:, half:], choice[:, half:], candidate)
    stays = mapped_z(suspect[:, half:], source[:, half:], in_order(candidate))
    if z < SIGNIFICANT_Z or z < MOVED_GAIN * stays:
        return RowRecovery(None, in_place)
    return RowRecovery(match_rows(suspect, choice), z)


def in_order(rows: RowMap) -> RowMap:
    """The same rows, each paired with the row of its own number."""
    own = np.where(rows.source_rows >= 0, np.arange(rows.source_rows.size), -1)
    return RowMap(own, rows.share, 0.0)


def mapped_z(suspect: FloatArray, source: FloatArray, rows: RowMap) -> float:
    """Permutation z of the rows that a map found elsewhere pairs; 0 with fewer than 8 of them."""
    found = np.flatnonzero(rows.source_rows >= 0)
    if found.size < 8:
        return 0.0
    return row_permutation_z(suspect[found], source[rows.source_rows[found]])


def held_out_z(suspect: FloatArray, source: FloatArray) -> float:
    """Permutation z of the row map, found on the first half of the columns and tested on the second.

    Halves, not every other column: neighbours in a smooth filter are the same information twice.
    """
    half = suspect.shape[1] // 2
    rows = match_rows(suspect[:, :half], source[:, :half])
    return mapped_z(suspect[:, half:], source[:, half:], rows)
