"""The conclusions of a comparison, as they are handed on."""

from __future__ import annotations

from dataclasses import dataclass

from drupe.comparison import Comparison
from drupe.diagnose.kinds import Kind, Transformation
from drupe.diagnose.origin import Origin
from drupe.messages import Message


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
