"""One change of one tensor of a base model, and the portable facts of all of them.

LoRA: W + s B A (arxiv.org/abs/2106.09685), s = alpha / rank; rsLoRA alpha / sqrt(rank) (arxiv.org/abs/2312.03732).
LoHa: W + s (B1 A1) * (B2 A2) (arxiv.org/abs/2108.06098). IA3: W times a vector, by output or input unit
(arxiv.org/abs/2205.05638). DoRA: rows of W + s B A, scaled to learned norms (arxiv.org/abs/2402.09353).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np

from drupe.errors import FormatError
from drupe.readers.interface import FloatArray, TensorInfo, Window


class Method(StrEnum):
    """How a change is stored. The name begins the dtype of its tensor, the rank follows."""

    LORA = "LORA"
    LOHA = "LOHA"
    IA3 = "IA3_"
    WHOLE = ""
    """The tensor itself, trained and saved whole."""


MAGNITUDE = ".lora_magnitude_vector"
"""Ends the name of the norms that DoRA learns, which stand beside their tensor."""


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """Portable. ``rank`` is the most frequent of ``ranks``; ``alpha`` what the settings or the first module say.

    ``changed`` tensors are added to or scaled, ``saved`` ones stored whole, ``unread`` ones are of a kind that is
    not read. ``base`` is the declared name, ``base_digest`` the sha256 of the base's file where it is stated.
    """

    layout: str
    methods: tuple[str, ...]
    rank: int
    ranks: tuple[int, ...]
    stated_rank: int | None
    alpha: float | None
    changed: int
    saved: int
    unread: int
    stored_values: int
    base: str | None
    base_digest: str | None


@dataclass(frozen=True, slots=True)
class Scale:
    """A factor: stated in the settings, or alpha / rank with alpha in a tensor of one value."""

    factor: float
    alpha: str | None = None
    rank: int = 1

    @property
    def needs(self) -> list[Window]:
        """What must be read of the file."""
        return [] if self.alpha is None else [Window(self.alpha, 0, 1, 0, 1)]

    def of(self, parts: Sequence[FloatArray], where: str) -> np.float32:
        """The factor; an alpha of 0 means the rank, as in sd-scripts. Raises FormatError when it is no number."""
        if self.alpha is None:
            return np.float32(self.factor)
        alpha = float(parts[0].ravel()[0])
        if not np.isfinite(alpha):
            raise FormatError(f"{self.alpha[:80]!r} is {alpha}, no factor", where=where)
        return np.float32(alpha / self.rank if alpha else 1.0)


@dataclass(frozen=True, slots=True)
class LowRank:
    """s B A, ``down`` = A, ``up`` = B; ``turned``: stored as the transpose (tables, Conv1D)."""

    info: TensorInfo
    down: str
    up: str
    rank: int
    scale: Scale
    turned: bool = False

    @property
    def method(self) -> Method:
        """LoRA."""
        return Method.LORA

    def needs(self, window: Window) -> list[Window]:
        """The rows of B and columns of A that make the window, and the scale."""
        down, across = _out_in(window, self.turned)
        return [
            Window(self.up, *down, 0, self.rank),
            Window(self.down, 0, self.rank, *across),
            *self.scale.needs,
        ]

    def values(self, parts: Sequence[FloatArray]) -> FloatArray:
        """The values of the window."""
        product = parts[0] @ parts[1] * self.scale.of(parts[2:], self.info.file)
        return product.T if self.turned else product


@dataclass(frozen=True, slots=True)
class Hadamard:
    """s (B1 A1) * (B2 A2); ``factors`` in the order B1, A1, B2, A2."""

    info: TensorInfo
    factors: tuple[str, str, str, str]
    rank: int
    scale: Scale
    ranks: tuple[int, int]

    @property
    def method(self) -> Method:
        """LoHa."""
        return Method.LOHA

    def needs(self, window: Window) -> list[Window]:
        """Rows of both B, columns of both A, and the scale."""
        down, across = _out_in(window, turned=False)
        found = []
        for place, rank in enumerate(self.ranks):
            found.append(Window(self.factors[2 * place], *down, 0, rank))
            found.append(Window(self.factors[2 * place + 1], 0, rank, *across))
        return [*found, *self.scale.needs]

    def values(self, parts: Sequence[FloatArray]) -> FloatArray:
        """The values of the window."""
        scale = self.scale.of(parts[4:], self.info.file)
        return (parts[0] @ parts[1]) * (parts[2] @ parts[3]) * scale


@dataclass(frozen=True, slots=True)
class Stored:
    """Values as they lie in the file: a tensor saved whole, a vector of IA3, the norms of DoRA."""

    info: TensorInfo
    name: str
    method: Method
    rank: int = 0

    def needs(self, window: Window) -> list[Window]:
        """The same window of the stored tensor."""
        return [Window(self.name, window.row_start, window.row_stop, window.column_start, window.column_stop)]

    def values(self, parts: Sequence[FloatArray]) -> FloatArray:
        """The values of the window."""
        return parts[0]


Change = LowRank | Hadamard | Stored


def _out_in(window: Window, turned: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """Output units and input units of a window of the stored tensor."""
    rows, columns = (window.row_start, window.row_stop), (window.column_start, window.column_stop)
    return (columns, rows) if turned else (rows, columns)


@lru_cache(maxsize=256)
def method_of(dtype: str) -> Method:
    """The method that the dtype of a change names; real types are tensors saved whole."""
    return next(
        (m for m in (Method.LORA, Method.LOHA, Method.IA3) if dtype.startswith(m.value)), Method.WHOLE
    )
