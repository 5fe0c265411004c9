"""Some of the tensors of a weight file, and several weight files as one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

from drupe.readers.interface import FloatArray, StoredArray, StoredFile, TensorInfo, WeightFile, Window
from drupe.readers.wrapping import Wrapping, auxiliary_of

Values = TypeVar("Values", FloatArray, StoredArray)


@dataclass(frozen=True, slots=True)
class SubsetFile(Wrapping):
    """Some of the tensors of ``file``, in its order."""

    file: WeightFile
    tensors: Mapping[str, TensorInfo]

    @property
    def inside(self) -> Sequence[WeightFile]:
        """The file."""
        return (self.file,)

    def read(self, windows: Sequence[Window]) -> list[FloatArray]:
        """As the file reads them."""
        return self.file.read(windows)


def subset(file: WeightFile, kept: Collection[str]) -> SubsetFile:
    """The tensors of a file that are ``kept``."""
    return SubsetFile(file, {name: info for name, info in file.tensors.items() if name in kept})


@dataclass(frozen=True, slots=True)
class UnionFile(Wrapping):
    """Several files as one: their tensors' names begin with the name of the file's place and a mark."""

    files: Mapping[str, WeightFile]
    """Prefix -> file."""
    tensors: Mapping[str, TensorInfo]
    places: Mapping[str, tuple[str, str]]
    """Tensor -> prefix, and its name in that file."""

    @property
    def inside(self) -> Sequence[WeightFile]:
        """The files."""
        return tuple(self.files.values())

    @property
    def auxiliary(self) -> frozenset[str]:
        """Tensors that only help to read others."""
        return frozenset(prefix + name for prefix, file in self.files.items() for name in auxiliary_of(file))

    def read(self, windows: Sequence[Window]) -> list[FloatArray]:
        """Each file reads its own windows in one pass."""
        return self._read(windows, lambda file, inner: file.read(inner))

    def read_stored(self, windows: Sequence[Window]) -> list[StoredArray]:
        """As :meth:`read`, whole numbers as they are where the file's format knows them."""
        return self._read(windows, _read_stored)

    def _read(
        self, windows: Sequence[Window], read: Callable[[WeightFile, list[Window]], list[Values]]
    ) -> list[Values]:
        asked: dict[str, list[int]] = defaultdict(list)
        for place, window in enumerate(windows):
            asked[self.places[window.tensor][0]].append(place)
        found: dict[int, Values] = {}
        for prefix, places in asked.items():
            inner = [replace(windows[k], tensor=self.places[windows[k].tensor][1]) for k in places]
            found.update(zip(places, read(self.files[prefix], inner), strict=True))
        return [found[place] for place in range(len(windows))]


def _read_stored(file: WeightFile, windows: list[Window]) -> list[StoredArray]:
    if hasattr(file, "read_stored"):
        return cast(StoredFile, file).read_stored(windows)
    return list[StoredArray](file.read(windows))


def unite(files: Mapping[str, WeightFile]) -> UnionFile:
    """The files as one; prefixes keep equal names apart."""
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, tuple[str, str]] = {}
    for prefix, file in files.items():
        for name, info in file.tensors.items():
            tensors[prefix + name] = replace(info, name=prefix + name)
            places[prefix + name] = prefix, name
    return UnionFile(dict(files), tensors, places)
