"""What a model's code implies, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from drupe.implied.values import Dims, Place

__all__ = ["Entry", "Gap", "Implied", "Place"]


@dataclass(frozen=True, slots=True)
class Entry:
    """The class that was followed, where it stands, and why this one.

    ``how``: ``architecture`` (the configuration names it), ``auto_map``, or ``contains_most``.
    """

    name: str
    place: Place
    how: str


@dataclass(frozen=True, slots=True)
class Gap:
    """A place that could not be worked out. Names that begin with ``prefix`` (None: no names) are open."""

    place: Place
    why: str
    prefix: str | None = None
    doubt: str = ""
    """``all``: nothing is said of what can be loaded; ``misfit``: nothing of what cannot."""


@dataclass(frozen=True, slots=True)
class Implied:
    """The tensors that a model's code registers under a configuration: its ``state_dict()``, never run.

    ``parameters``: name -> shape; an extent that is not known is None, and so is a shape of unknown rank.
    ``buffers`` are the persistent buffers among them; ``transient`` names buffers that are not saved.
    ``optional``: names that depend on a condition which is not known. ``tied``: names that a file may leave
    out because another tensor holds the same values (its name, or "" when any may). ``may_lack`` and
    ``may_have`` are the patterns that the code itself allows to be missing or left over.
    ``base_prefix``: what loaders add or strip between a model and its core (``base_model_prefix``).
    """

    entry: Entry | None
    parameters: Mapping[str, Dims | None] = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    transient: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    tied: Mapping[str, str] = field(default_factory=dict)
    may_lack: tuple[str, ...] = ()
    may_have: tuple[str, ...] = ()
    base_prefix: str = ""
    unknown: tuple[Gap, ...] = ()

    def doubts(self, what: str) -> bool:
        """Code that is not followed exactly leaves this open: ``all`` or ``misfit``."""
        return any(gap.doubt == what for gap in self.unknown)

    @property
    def open_prefixes(self) -> tuple[str, ...]:
        """Beginnings of names that lie where the code could not be worked out."""
        return tuple(gap.prefix for gap in self.unknown if gap.prefix is not None)

    def is_open(self, name: str) -> bool:
        """The name lies where the code could not be worked out."""
        return name.startswith(self.open_prefixes)
