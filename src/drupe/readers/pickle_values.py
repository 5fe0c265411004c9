"""What a pickle describes, as plain data: names stay names, calls stay calls, nothing is imported or built."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from drupe.readers.pickle_globals import Danger

Value: TypeAlias = object
"""None, bool, int, float, str, bytes, tuple, list (also of a set), or one of the classes below. It may be
shared and may contain itself: whoever walks it counts its steps."""


@dataclass(slots=True, eq=False)
class Pairs:
    """A dictionary, as its pairs in order: a key need not be hashable, and none is ever hashed."""

    pairs: list[tuple[Value, Value]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Global:
    """A name to be imported."""

    module: str
    name: str

    @property
    def path(self) -> str:
        """Module and name, joined by a dot."""
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Call:
    """What calling ``function`` would give, and what is done to it afterwards."""

    function: Value
    arguments: tuple[Value, ...]
    state: Value = None
    items: list[Value] = field(default_factory=list)
    pairs: list[tuple[Value, Value]] = field(default_factory=list)

    @property
    def path(self) -> str:
        """The dotted name of the function; empty when it is not a name."""
        return self.function.path if isinstance(self.function, Global) else ""


@dataclass(slots=True, eq=False)
class Persistent:
    """A reference to something outside of the pickle."""

    key: Value


@dataclass(frozen=True, slots=True)
class Use:
    """A name that a stream imports, where it does so first, and what that means."""

    path: str
    position: int
    """Byte of the file (of the archive entry) at which the name is asked for."""
    danger: Danger


@dataclass(frozen=True, slots=True)
class Stream:
    """One pickle, from its first byte to the one after its STOP."""

    value: Value
    stop: int
    uses: tuple[Use, ...]
    references: tuple[Persistent, ...]
    """Every reference to something outside, in the order of the stream."""
