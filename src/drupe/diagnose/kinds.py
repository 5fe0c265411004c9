"""The closed list of what can be done to a model, and one thing that was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

Value = str | int | float | bool | None | Mapping[str, "Value"] | Sequence["Value"]


class Kind(StrEnum):
    """``transformations[].kind`` of the report: a closed list."""

    RENAMED = "renamed"
    RESHARDED = "resharded"
    REFORMATTED = "reformatted"
    CAST = "cast"
    QUANTISED = "quantised"
    GAUSSIAN_NOISE = "gaussian_noise"
    RESCALED = "rescaled"
    PERMUTED = "permuted"
    ROTATED = "rotated"
    FINE_TUNED = "fine_tuned"
    LOW_RANK_UPDATE = "low_rank_update"
    CONTINUED_PRETRAINING = "continued_pretraining"
    MERGED = "merged"
    PRUNED = "pruned"
    WIDTH_PRUNED = "width_pruned"
    LAYERS_DROPPED = "layers_dropped"
    LAYERS_REORDERED = "layers_reordered"
    DEPTH_UPSCALED = "depth_upscaled"
    MOE_UPCYCLED = "moe_upcycled"
    VOCABULARY_CHANGED = "vocabulary_changed"
    ADAPTER = "adapter"
    DISTILLED = "distilled"
    UNKNOWN_CHANGE = "unknown_change"


SURFACE = frozenset(
    {
        Kind.RENAMED,
        Kind.RESHARDED,
        Kind.REFORMATTED,
        Kind.CAST,
        Kind.QUANTISED,
        Kind.GAUSSIAN_NOISE,
        Kind.RESCALED,
        Kind.PERMUTED,
        Kind.ROTATED,
    }
)
"""Changes with no trained component: undoing them gives the source."""


@dataclass(frozen=True, slots=True)
class Transformation:
    """One thing that was done to the source, with its public parameters."""

    kind: Kind
    parameters: Mapping[str, Value] = field(default_factory=dict)
