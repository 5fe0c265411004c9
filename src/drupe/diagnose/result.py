"""The conclusions of a comparison, as they are handed on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from drupe.comparison import Comparison
from drupe.diagnose.kinds import Kind, Transformation
from drupe.diagnose.origin import Origin
from drupe.messages import Message
from drupe.uninformative import State

_COUNTED = frozenset({State.INFORMATIVE, State.NOT_FINITE, State.ALL_ZERO})
"""Matrices that say something, or are damaged."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The conclusions about the weights; the other components are read from the comparison."""

    comparison: Comparison
    origin: Origin
    transformations: tuple[Transformation, ...]
    unchanged: bool
    shared_fraction: float
    direction: str
    log10_p: float | None
    reasons: tuple[Message, ...]
    caveats: tuple[Message, ...]
    foreign: tuple[str, ...] = ()
    """Matrices or parts that were compared and are not the source's, though the rest is: never a whole copy."""
    parts: tuple[PartResult, ...] = ()
    """The parts of a model that was judged part by part; none when it is one whole."""

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of all transformations."""
        return frozenset(item.kind for item in self.transformations)


@dataclass(frozen=True, slots=True)
class LayerShare:
    """One layer of the suspect: the source's layer that it is, if any, and the share of its values that is proven."""

    layer: int
    source: int | None
    inherited: float


def layer_shares(diagnosis: Diagnosis) -> tuple[LayerShare, ...]:
    """Of every layer whose matrices were compared; empty where they were not, or only in part."""
    lineage = diagnosis.comparison.lineage
    if diagnosis.origin is not Origin.DESCENT or lineage is None or not lineage.full:
        return ()
    states = diagnosis.comparison.suspect.weights
    total: Counter[int] = Counter()
    for matrix, state in zip(states.matrices, states.states, strict=True):
        if matrix.layer is not None and state in _COUNTED:
            total[matrix.layer] += matrix.size
    places = {pair.suspect: pair.place[1] for pair in lineage.pairs}
    proven: Counter[int] = Counter()
    for matrix in {pair.suspect for pair in lineage.pairs if pair.proven}:
        layer = matrix.layer if matrix.layer is not None else places[matrix]
        if layer is not None:
            proven[layer] += matrix.size
    source = dict(lineage.layer_map)
    return tuple(
        LayerShare(layer, source.get(layer), min(1.0, proven[layer] / size))
        for layer, size in sorted(total.items())
    )


@dataclass(frozen=True, slots=True)
class PartResult:
    """One part of the suspect against the part of a source that is most like it.

    ``share`` is of the suspect's parameters; ``source`` the number of the source, ``like`` the name of its part;
    ``diagnosis`` None: no source has a part that could correspond. ``inherited``: its own values that are proven, and
    ``common_inherited`` those that it shares with other parts, both as shares of the suspect's parameters.
    """

    name: str
    share: float
    source: int | None = None
    like: str | None = None
    diagnosis: Diagnosis | None = None
    inherited: float = 0.0
    common_inherited: float = 0.0
