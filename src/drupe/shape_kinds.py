"""What kind of tensor is which when names say nothing: token table, attention, FFN, or a vector, by shapes alone.

In a transformer every matrix of a layer has the hidden width on one side. The other tells the rest: it occurs once or
twice in the model (token and position tables), or it is the inside of an FFN, which is the widest that occurs in both
orientations (in and out), or it belongs to attention. Vectors as long as the state are gains of norms or biases.
Where q, k, v and gate, up are both fused to one width (ModernBERT), attention passes for FFN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum

from drupe.readers.interface import TensorInfo

MAX_TABLES = 2
"""Of one shape: embedding and head."""
MIN_LAYERS = 2


class ShapeKind(StrEnum):
    """What shapes tell."""

    TABLE = "table"
    ATTENTION = "attention"
    FFN = "ffn"
    NORM_OR_BIAS = "norm_or_bias"
    OTHER = "other"


def kinds_of_shapes(tensors: Sequence[TensorInfo]) -> Mapping[str, ShapeKind]:
    """The kind of every tensor; ``other`` for all matrices where no FFN can be told."""
    matrices = [tensor.shape for tensor in tensors if len(tensor.shape) == 2]
    extents = Counter(extent for shape in matrices for extent in set(shape))
    hidden = max(extents, key=lambda extent: (extents[extent], -extent), default=0)
    counts: Counter[tuple[int, ...]] = Counter(shape for shape in matrices if hidden in shape)
    tables = _tables(counts, hidden)
    inside = _inside(Counter({shape: n for shape, n in counts.items() if shape not in tables}), hidden)
    return {tensor.name: _kind(tensor.shape, hidden, tables, inside) for tensor in tensors}


def _other(shape: tuple[int, ...], hidden: int) -> int:
    """The side that is not the hidden width."""
    return shape[1] if shape[0] == hidden else shape[0]


def _tables(counts: Counter[tuple[int, ...]], hidden: int) -> set[tuple[int, ...]]:
    """Wide matrices that do not repeat over layers."""
    rare = {
        shape for shape, count in counts.items() if count <= MAX_TABLES and _other(shape, hidden) != hidden
    }
    layers = max((count for shape, count in counts.items() if shape not in rare), default=0)
    return rare if layers > MAX_TABLES else set()


def _inside(counts: Counter[tuple[int, ...]], hidden: int) -> set[int]:
    """Extents of the FFN: what goes in and comes out again; a fused gate and up is twice as wide as down."""
    wide = {_other(shape, hidden) for shape in counts}
    both = [
        e for e in wide if e != hidden and counts[e, hidden] >= MIN_LAYERS and counts[hidden, e] >= MIN_LAYERS
    ]
    if both:
        return {max(both)}
    fused = [e for e in wide if hidden not in (e, 2 * e) and _is_fused(counts, hidden, e)]
    return {*fused, *(2 * e for e in fused)}


def _is_fused(counts: Counter[tuple[int, ...]], hidden: int, down: int) -> bool:
    """Whether that extent occurs in one orientation only and its double in the other."""
    either = ((2 * down, hidden), (hidden, down)), ((hidden, 2 * down), (down, hidden))
    return any(min(counts[into], counts[out]) >= MIN_LAYERS for into, out in either)


def _kind(shape: tuple[int, ...], hidden: int, tables: set[tuple[int, ...]], inside: set[int]) -> ShapeKind:
    if len(shape) == 1:
        return ShapeKind.NORM_OR_BIAS
    if len(shape) != 2 or hidden not in shape or not inside:
        return ShapeKind.TABLE if shape in tables else ShapeKind.OTHER
    if shape in tables:
        return ShapeKind.TABLE
    return ShapeKind.FFN if _other(shape, hidden) in inside else ShapeKind.ATTENTION
