"""What the deep comparison found: facts without values, for diagnose to draw conclusions from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from drupe.lattice import DeltaGrid, Lattice
from drupe.model import Matrix
from drupe.readers.interface import FloatArray
from drupe.recover.admissible import Admissible
from drupe.recover.hidden import HiddenMap
from drupe.recover.parts import Place
from drupe.recover.permuted import RowsResult
from drupe.recover.profile import ProfileResult
from drupe.recover.spectrum import SpectrumResult
from drupe.residual import Residual
from drupe.signals.interface import Finding
from drupe.signals.sketch.compare import Match


class Basis(StrEnum):
    """In which coordinates the two models were found to correspond."""

    RAW = "raw"
    ROTATED = "rotated"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class PairFacts:
    """One aligned pair, without its values. ``place``: role and layer, borrowed where the names say nothing."""

    place: Place
    suspect: Matrix
    source: Matrix
    z: float
    proven: bool
    moved: str | None
    raw: bool
    residual: Residual
    lattice: Lattice | None = None
    source_lattice: Lattice | None = None
    """The grid of the source's own values, with the suspect's distances from it."""
    delta: DeltaGrid | None = None
    replayed: Lattice | None = None
    """The rounding of the source that explains most of the difference, where no grid is seen."""
    kept: Residual | None = None
    """What is left where the suspect is not zero, when it is so in many places."""
    remainder: Residual | None = None
    """What is left beside that rounding."""
    negated: bool = False
    reordered: bool = False
    folded: Residual | None = None
    """Before scales of rows and columns were undone, which explain most of it; None when they do not."""
    scales: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """Those scales: of rows and of columns."""
    partners: NDArray[np.intp] | None = None
    """(k, 2): units or tokens of the suspect and of the source that belong together; None: all stand in place."""
    gains: tuple[FloatArray | None, FloatArray | None] = (None, None)
    """Norm gains that were folded into the columns of the suspect and of the source, before a rotation was undone."""
    shape: tuple[int, int] = (1, 1)
    """Of the values that were compared."""


STRONG_SHARE = 0.4
"""Of the median |z| of the matches: what a match must have before a name or a layer is read off it."""


@dataclass(frozen=True, slots=True)
class Matches:
    """Which matrix is which, from the sketches or, where names say nothing, from whole matrices."""

    matches: tuple[Match, ...]
    comparable: int
    log10_p: float
    by_role: tuple[tuple[int, int], ...] = ()
    """Pairs of equal role whose sum is significant although no single matrix need be; empty otherwise."""

    @property
    def matched(self) -> tuple[Match, ...]:
        """The significant ones."""
        return tuple(match for match in self.matches if match.significant)

    @property
    def strong(self) -> tuple[Match, ...]:
        """The significant ones without those that look like chance beside the others: a map may rest on these.

        Of many matrices a few match a stranger at the level of significance; when rows were permuted, nothing
        outvotes them.
        """
        matched = self.matched
        least = STRONG_SHARE * float(np.median([abs(match.z) for match in matched])) if matched else 0.0
        return tuple(match for match in matched if abs(match.z) >= least)


@dataclass(frozen=True, slots=True)
class Feedback:
    """What rounding with error feedback leaves unexplained in matrices on a grid (recover/feedback.py).

    ``excess``: mean over inputs and matrices of log var(E) beyond that of rounding, dependence on the other inputs
    taken out: 0 when nothing but rounding was done, log(1 + d^2) after a white change d times as large as that.
    ``sd``: its standard deviation without a change; ``largest``: what the excess of one matrix certainly exceeds;
    ``energy``: |E|^2 over that of rounding to the nearest, the median; ``bulk``: log of the same without the
    strongest eighth of the directions, the mean: feedback adds to all directions, an update of low rank does not.
    """

    excess: float
    sd: float
    largest: float
    energy: float
    bulk: float
    pairs: int


@dataclass(frozen=True, slots=True)
class Lineage:
    """Facts of the deep comparison; ``map_possible`` is None when a relation was found."""

    basis: Basis
    evidence: Matches
    profile: ProfileResult
    full: bool
    layer_map: tuple[tuple[int, int], ...] = ()
    pairs: tuple[PairFacts, ...] = ()
    spectrum: SpectrumResult | None = None
    map_possible: Admissible | None = None
    vectors_equal: float | None = None
    vectors_change: float | None = None
    """Median relative distance of the suspect's small tensors to the nearest of the source's."""
    tables_only: bool = False
    rows: RowsResult | None = None
    feedback: Feedback | None = None
    tensors: Mapping[str, str] = field(default_factory=dict)
    """Suspect's tensor -> source's, gains and biases too, where names say nothing."""
    gains: float | None = None
    """Centred correlation of the norm gains at equal places; None where there are none to compare."""
    rotation: FloatArray | None = None
    """Q (hidden, hidden): the suspect's residual stream is the source's times Q."""
    rotation_excess: float = 0.0
    """Share of a white residual that the error of the rotation adds to it; 0 in place, and when it was refined."""
    hidden: HiddenMap | None = None
    """Dimensions of the residual stream that moved, were negated or left out; None when they stand in place."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Findings of the steps that ran or said why not."""
        spectrum = self.spectrum.findings if self.spectrum else ()
        return (*self.profile.findings, *spectrum, *(self.rows.findings if self.rows else ()))
