"""The contract of every packing: which stored tensors make one weight, and what its values are.

A packing looks at names, shapes and types first and at the configuration second: shapes cannot lie about
what is in the file, a configuration can be stripped or wrong. Where both speak, shapes win.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from drupe.errors import FormatError
from drupe.messages import Message
from drupe.readers.interface import (
    FloatArray,
    Layout,
    StoredArray,
    StoredFile,
    TensorInfo,
    Window,
    check_shape,
)
from drupe.readers.strict_json import Json

Settings = Mapping[str, Json]
"""The model's raw configuration."""


class Packed(Protocol):
    """One weight that several stored tensors make."""

    @property
    def info(self) -> TensorInfo:
        """The weight as a model would hold it."""

    @property
    def parts(self) -> Sequence[str]:
        """The stored tensors that it replaces, the packed numbers first; scales of activations included."""

    def needs(self, window: Window) -> list[Window]:
        """What to read of the parts for a window that is not empty."""

    def decode(self, window: Window, stored: Sequence[StoredArray]) -> FloatArray:
        """The values of the window, from what :meth:`needs` asked for, in that order."""


@dataclass(frozen=True, slots=True)
class Unread:
    """A weight whose parts are recognised and not decoded, and why."""

    name: str
    parts: Sequence[str]
    reason: Message


Claim = Packed | Unread


@dataclass(frozen=True, slots=True)
class Inventory:
    """The stored tensors by the last part of their dotted names, so that each packing looks at its own only."""

    file: StoredFile
    tensors: Mapping[str, TensorInfo]
    by_ending: Mapping[str, Sequence[str]]

    def stems(self, ending: str) -> Iterator[str]:
        """``a.b`` for every tensor ``a.b.ending``."""
        for name in self.by_ending.get(ending, ()):
            yield name[: -len(ending) - 1]

    def present(self, stem: str, endings: Iterable[str]) -> list[str]:
        """Those of the names ``stem.ending`` that exist."""
        return [name for ending in endings if (name := f"{stem}.{ending}") in self.tensors]

    def need(self, name: str, because: str) -> TensorInfo:
        """A tensor without which another has no meaning. Raises FormatError when it is missing."""
        info = self.tensors.get(name)
        if info is None:
            where = self.tensors[because].file
            raise FormatError(f"{name[:80]!r} is missing: {because[:80]!r} cannot be decoded", where=where)
        return info


Packing = Callable[[Inventory, Settings], Iterable[Claim]]
"""A scheme. Raises FormatError when parts contradict each other."""


def take_stock(file: StoredFile, without: Container[str] = ()) -> Inventory:
    """The inventory of a file, less some tensors."""
    tensors = {name: info for name, info in file.tensors.items() if name not in without}
    by_ending: dict[str, list[str]] = defaultdict(list)
    for name in tensors:
        _, dot, ending = name.rpartition(".")
        if dot:
            by_ending[ending].append(name)
    return Inventory(file, tensors, by_ending)


def logical(
    name: str, shape: Sequence[int], dtype: str, inventory: Inventory, parts: Sequence[str]
) -> TensorInfo:
    """The weight that parts make; its stored bits count all of them."""
    where = inventory.tensors[parts[0]].file
    extents = check_shape(shape, f"{where}: {name[:80]}")
    count = 1
    for extent in extents:
        count *= extent
    bits = sum(inventory.tensors[part].size * inventory.tensors[part].stored_bits for part in parts)
    layout = Layout.OUT_IN if len(extents) == 2 else Layout.UNKNOWN
    return TensorInfo(name, extents, dtype, where, layout, bits / max(count, 1), is_quantised=True)


def contradiction(a: TensorInfo, b: TensorInfo) -> FormatError:
    """Two parts whose shapes cannot belong to one weight."""
    return FormatError(
        f"{a.name[:80]!r} {a.dtype} {a.shape} and {b.name[:80]!r} {b.dtype} {b.shape} do not fit together",
        where=a.file,
    )
