"""Matching by content when names say nothing: every matrix of one side against every equally shaped one.

The sketch of eight rows settles clear cases; whole matrices settle the weak ones (a shared random start, heavy
noise) and the leftovers. Statistic: permutation z of the rows, best of m candidates, corrected.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drupe.model import Model
from drupe.readers.interface import FloatArray
from drupe.recover.units import SIGNIFICANT_Z, held_out_z, row_permutation_z
from drupe.signals.sketch.compare import Match
from drupe.signals.sketch.facts import WeightFacts, speaking
from drupe.stats import MAD_TO_SD, log10_bonferroni, log10_normal_sf

MAX_VALUES = 1 << 26
"""Values of one side that may be held in memory for this."""
MAX_PAIRS = 4096
MIN_CONTROL = 4


def match_contents(a: Model, b: Model, facts: tuple[WeightFacts, WeightFacts]) -> tuple[Match, ...]:
    """One-to-one matches within equal shapes, best first; empty when the models are too large for it."""
    groups = equal_shapes(*facts)
    pairs = sum(len(left) * len(right) for left, right in groups)
    values = max(sum(m.size for m in side.matrices) for side in facts)
    if pairs > MAX_PAIRS or values > MAX_VALUES:
        return ()
    found: list[Match] = []
    for left, right in groups:
        mine = [a.load(facts[0].matrices[index]) for index in left]
        theirs = [b.load(facts[1].matrices[index]) for index in right]
        found.extend(_assign(left, right, _table(mine, theirs)))
    return tuple(sorted(found, key=lambda match: match.suspect))


def equal_shapes(a: WeightFacts, b: WeightFacts) -> list[tuple[list[int], list[int]]]:
    """Informative matrices by shape: (indices of the suspect, indices of the source)."""
    shapes: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for side, (facts, mask) in enumerate(zip((a, b), speaking(a, b), strict=True)):
        for index in np.flatnonzero(mask):
            matrix = facts.matrices[index]
            shapes.setdefault((matrix.rows, matrix.columns), ([], []))[side].append(int(index))
    return [group for group in shapes.values() if group[0] and group[1]]


def _table(mine: list[FloatArray], theirs: list[FloatArray]) -> NDArray[np.float64]:
    """z of every pair in place; where neither found a partner, z after a row or column map, held out."""
    table = np.array([[row_permutation_z(left, right) for right in theirs] for left in mine])
    table = _standardised(table)
    found = np.abs(table) >= SIGNIFICANT_Z
    for i in np.flatnonzero(~found.any(axis=1)):
        for j in np.flatnonzero(~found.any(axis=0)):
            views = ((mine[i], theirs[j]), (mine[i].T, theirs[j].T))
            z = max(held_out_z(left, right) for left, right in views)
            table[i, j] = max(table[i, j], z)
    return table


def _standardised(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """z relative to the row's other candidates: structured starts give every pair of matrices the same z.

    The in-pair control; needs four candidates, and never raises a z (scale at least 1).
    """
    if table.shape[1] < MIN_CONTROL:
        return table
    centre = np.maximum(
        0.0, np.quantile(table, 0.25, axis=1, keepdims=True)
    )  # repeats may fill the upper half
    scale = np.maximum(1.0, MAD_TO_SD * np.median(np.abs(table - centre), axis=1, keepdims=True))
    result: NDArray[np.float64] = (table - centre) / scale
    return result


def _assign(left: list[int], right: list[int], table: NDArray[np.float64]) -> list[Match]:
    """Greedy by |z|: each matrix of the source is given away once; ties fall to the earlier one."""
    order = np.argsort(-np.abs(table), axis=None, kind="stable")
    taken_rows: set[int] = set()
    taken_columns: set[int] = set()
    found = []
    for flat in order:
        row, column = divmod(int(flat), table.shape[1])
        if row in taken_rows or column in taken_columns:
            continue
        taken_rows.add(row)
        taken_columns.add(column)
        z = float(table[row, column])
        log10_p = log10_bonferroni(log10_normal_sf(abs(z)), 2 * table.shape[1])
        found.append(Match(left[row], right[column], z, log10_p, table.shape[1]))
    return found
