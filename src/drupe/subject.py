"""One side of a comparison: a fingerprint and, when the files are at hand, the lazy model."""

from __future__ import annotations

from dataclasses import dataclass

from drupe.fingerprint import Fingerprint
from drupe.model import Model
from drupe.signals import declared


@dataclass(frozen=True, slots=True)
class Subject:
    """One side of a comparison."""

    fingerprint: Fingerprint
    model: Model | None = None
    texts: tuple[declared.SearchText, ...] | None = None
    """The documents to be searched for a declared source; None = only what the fingerprint kept of them."""
