"""Weight files that are made of others: what those say of themselves is passed on in one place.

Not every format has raw headers, flags or helper tensors; the functions here say what a file has of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from drupe.readers.interface import Flag, WeightFile


def headers_of(file: WeightFile) -> Mapping[str, bytes]:
    """File name -> raw header, which the evidence folder and the digest keep."""
    return cast(Mapping[str, bytes], getattr(file, "headers", {}))


def flags_of(file: WeightFile) -> tuple[Flag, ...]:
    """What a reader noticed that a user must know: dangerous names, tensors that are not read."""
    return cast(tuple[Flag, ...], getattr(file, "flags", ()))


def auxiliary_of(file: WeightFile) -> frozenset[str]:
    """Tensors that only help to read others (scales and zero points of a graph)."""
    return cast(frozenset[str], getattr(file, "auxiliary", frozenset()))


class Wrapping:
    """The common part of every file that reads through others."""

    __slots__ = ()

    @property
    def inside(self) -> Sequence[WeightFile]:
        """The files that are read."""
        raise NotImplementedError

    @property
    def format(self) -> str:
        """Their formats."""
        return "+".join(dict.fromkeys(file.format for file in self.inside))

    @property
    def metadata(self) -> Mapping[str, str]:
        """The texts of their headers; the first file's win."""
        return {key: text for file in reversed(self.inside) for key, text in file.metadata.items()}

    @property
    def headers(self) -> Mapping[str, bytes]:
        """Their raw headers."""
        return {name: header for file in self.inside for name, header in headers_of(file).items()}

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Their flags."""
        return tuple(flag for file in self.inside for flag in flags_of(file))

    @property
    def auxiliary(self) -> frozenset[str]:
        """Their helper tensors, under the names that these have there."""
        return frozenset(name for file in self.inside for name in auxiliary_of(file))
