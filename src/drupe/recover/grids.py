"""The quantisation grids of a pair, in whichever coordinates they are seen.

A grid is a property of stored values: groups along a row, before or after the rows and columns were turned or
reordered. Rounded last, it is seen in the suspect as it is stored; rounded first and then permuted, in the source's
order; rounded first and then turned, only in the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from drupe.lattice import DeltaGrid, Lattice, delta_grid, explains, find_lattice
from drupe.readers.interface import FloatArray
from drupe.recover.align import AlignedPair, Plan
from drupe.recover.hidden import HiddenMap
from drupe.recover.parts import OUTPUT_ROLES
from drupe.recover.rotation import undo_rotation
from drupe.replay import replay
from drupe.residual import Residual, measure


@dataclass(frozen=True, slots=True)
class Grids:
    """Of the suspect's values, of the source's own (with the suspect's distances), and of the difference alone."""

    suspect: Lattice | None = None
    source: Lattice | None = None
    difference: DeltaGrid | None = None
    replayed: Lattice | None = None
    """How the source was rounded, found by doing so."""
    remainder: Residual | None = None
    """What is left of the suspect then."""


def find_grids(pair: AlignedPair, source: FloatArray, unscaled: FloatArray, plan: Plan, dtype: str) -> Grids:
    """``source``: with scales applied; ``unscaled``: the suspect's values with them taken away; ``dtype``: stored."""
    if not pair.raw:
        return _turned(pair, plan, dtype)
    values = pair.suspect_values
    views = list(_views(pair, values, source, plan))
    lattice = next((grid for view in views if (grid := find_lattice(*view)) is not None), None)
    of_source = find_lattice(pair.source_values, unscaled)
    if of_source is not None and lattice is not None and not explains(lattice):
        lattice = None  # the source's own grid, still to be seen in the suspect
    seen = (delta_grid(view[1], view[0]) for view in views)
    difference = next((grid for grid in seen if grid is not None), None)
    if lattice is not None or of_source is not None:
        return Grids(lattice, of_source, difference)
    return replace(_replayed(views, dtype), difference=difference)


def _replayed(views: Sequence[tuple[FloatArray, FloatArray]], dtype: str) -> Grids:
    """Pairs of suspect and source, in the order in which the grid may have been laid."""
    for suspect, source in views:
        found = replay(source, suspect)
        if found is not None:
            return Grids(replayed=found.grid, remainder=measure(found.rounded, suspect, dtype))
    return Grids()


def _views(
    pair: AlignedPair, values: FloatArray, source: FloatArray, plan: Plan
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Suspect and source as they stand, in the source's order, and with the rows that the file has."""
    yield values, source
    if isinstance(plan.hidden, HiddenMap) and plan.hidden.kept == 1.0:
        restore = plan.hidden.restore
        yield restore(pair.place[0], values), restore(pair.place[0], source)
    if pair.partners is not None and pair.place[0].rpartition(".")[2] in OUTPUT_ROLES:
        order = np.argsort(pair.partners[:, 1])  # columns in the source's order
        yield values[:, order], source[:, order]
    if pair.suspect.transposed:  # groups along the rows of the matrix as it is stored
        yield values.T, source.T


def _turned(pair: AlignedPair, plan: Plan, dtype: str) -> Grids:
    """The source is turned to the suspect, whose stored values show the grid; gains come out of the columns again."""
    if plan.rotation is None or pair.stored is None or pair.stored.shape != pair.source_values.shape:
        return Grids()
    turned = undo_rotation(pair.place[0], pair.source_values, plan.rotation.T)
    lattice = find_lattice(pair.stored, turned)
    if lattice is not None:
        return Grids(lattice)
    source, suspect = (_over(side, pair.gains[1]) for side in (pair.source_values, pair.suspect_values))
    difference = delta_grid(source, suspect)
    return replace(_replayed([(pair.stored, turned), (suspect, source)], dtype), difference=difference)


def _over(values: FloatArray, gain: FloatArray | None) -> FloatArray:
    """The values without a gain that was folded into the columns; columns of gain 0 stay."""
    if gain is None or gain.size != values.shape[1]:
        return values
    return np.divide(values, gain, out=values.copy(), where=gain != 0)
