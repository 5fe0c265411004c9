"""One side of a comparison: a fingerprint and, when the files are at hand, the lazy model."""

from __future__ import annotations

from dataclasses import dataclass

from drupe.fingerprint import Fingerprint
from drupe.model import Model
from drupe.name_groups import Named, expand
from drupe.readers.interface import Absent, TensorInfo
from drupe.signals import declared


@dataclass(frozen=True, slots=True)
class Subject:
    """One side of a comparison."""

    fingerprint: Fingerprint
    model: Model | None = None
    texts: tuple[declared.SearchText, ...] | None = None
    """The documents to be searched for a declared source; None = only what the fingerprint kept of them."""

    @property
    def listed(self) -> list[Named | TensorInfo]:
        """Names and shapes of all tensors: in file order when the model is at hand, else in natural order."""
        if self.model is not None and not isinstance(self.model.weights, Absent):
            return list(self.model.weights.tensors.values())
        return list(expand(self.fingerprint.names.groups))
