"""Is there any map between two sets of matrices at all? Widths, depths and counts may exclude it.

A map that keeps widths needs equal hidden and FFN widths. A map that changes them (width pruning, or its reverse)
is possible only if one side's widths and head counts are all at most the other's. Gated and plain FFNs exclude
each other. Models without known roles: any two informative matrices of one shape admit a map.
"""

from __future__ import annotations

from dataclasses import dataclass

from drupe.messages import Message, msg
from drupe.readers.interface import Absent
from drupe.recover.parts import Parts
from drupe.signals.sketch.facts import WeightFacts


@dataclass(frozen=True, slots=True)
class Admissible:
    """Whether a map is possible, and what excludes or allows it."""

    possible: bool
    reason: Message


@dataclass(frozen=True, slots=True)
class _Sizes:
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    gated: bool


def admissible(a: Parts, b: Parts, left: WeightFacts, right: WeightFacts) -> Admissible:
    """Judge two models from their shapes and configurations alone."""
    mine, theirs = _sizes(a), _sizes(b)
    if mine is None or theirs is None:
        return _by_shape(left, right)
    if mine.gated != theirs.gated:
        return Admissible(False, msg("admissible.gates"))
    if (mine.hidden, mine.ffn) == (theirs.hidden, theirs.ffn):
        return Admissible(True, msg("admissible.same_widths", hidden=mine.hidden, ffn=mine.ffn))
    if _within(mine, theirs) or _within(theirs, mine):
        return Admissible(True, msg("admissible.width_pruning"))
    return Admissible(
        False,
        msg(
            "admissible.widths",
            suspect=f"{mine.hidden} / {mine.ffn} / {mine.heads}",
            source=f"{theirs.hidden} / {theirs.ffn} / {theirs.heads}",
        ),
    )


def _within(small: _Sizes, large: _Sizes) -> bool:
    pairs = (
        (small.hidden, large.hidden),
        (small.ffn, large.ffn),
        (small.heads, large.heads),
        (small.kv_heads, large.kv_heads),
    )
    return all(less <= more for less, more in pairs if less and more)  # 0: the configuration does not say


def _sizes(parts: Parts) -> _Sizes | None:
    up = next((m for (role, _), m in parts.places.items() if role.rpartition(".")[2] == "up"), None)
    if up is None:
        return None
    config = parts.model.config
    canonical = {} if isinstance(config, Absent) else config.canonical
    heads = canonical.get("num_attention_heads", 0)
    kv_heads = canonical.get("num_key_value_heads", heads)
    gated = any(role.rpartition(".")[2] == "gate" for role, _ in parts.places)
    return _Sizes(up.columns, up.rows, _integer(heads), _integer(kv_heads), gated)


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0


def _by_shape(left: WeightFacts, right: WeightFacts) -> Admissible:
    shapes = [
        {(m.rows, m.columns) for m, fine in zip(f.matrices, f.informative, strict=True) if fine}
        for f in (left, right)
    ]
    shared = shapes[0] & shapes[1]
    if shared:
        return Admissible(True, msg("admissible.shared_shapes", count=len(shared)))
    return Admissible(False, msg("admissible.no_shape"))
