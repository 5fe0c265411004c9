"""Tied heads: the embedding as head, once in the files or twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from drupe.convert.blueprint import Blueprint
from drupe.convert.pieces import Inventory, Key, Piece
from drupe.convert.plan import Output, Plan, Source
from drupe.convert.values import Values

EMBED, HEAD = ("embed", None), ("head", None)


def without_copy(parts: Inventory, target: Blueprint, values: Values) -> tuple[Inventory, tuple[str, ...]]:
    """The model without a head that only repeats its embedding, where the target has none; the tensor left out."""
    embed, head = parts.pieces.get(EMBED), parts.pieces.get(HEAD)
    if embed is None or head is None or _slot_of(target, HEAD) is not None:
        return parts, ()
    if not _is_equal(embed, head, values):
        return parts, ()
    return replace(parts, pieces={key: piece for key, piece in parts.pieces.items() if key != HEAD}), (
        head.tensor,
    )


def with_copy(made: Plan, parts: Inventory, target: Blueprint) -> Plan:
    """The plan with the embedding as head too, for a target whose code has no setting that ties them."""
    slot, embed = _slot_of(target, HEAD), parts.pieces.get(EMBED)
    if slot is None or embed is None or HEAD in parts.pieces or _can_tie(target):
        return made
    shape = parts.shapes[embed.tensor]
    source = Source(replace(embed, key=HEAD), embed.part)
    head = Output(slot, shape, embed.transposed, (source,), is_copy=True)
    return replace(made, outputs=(*made.outputs, head))


def _can_tie(target: Blueprint) -> bool:
    """Every class of transformers reads ``tie_word_embeddings``; Meta's code does not."""
    return target.config is None or target.config.model_type is not None


def _slot_of(target: Blueprint, key: Key) -> str | None:
    """What the target calls it."""
    return next((slot.name(None, None) for slot in target.slots if slot.roles == (key[0],)), None)


def _is_equal(a: Piece, b: Piece, values: Values) -> bool:
    if values.info(a.tensor).dtype != values.info(b.tensor).dtype or a.shape != b.shape:
        return False
    return all(np.array_equal(x, y) for (_, x), (_, y) in zip(values.rows(a), values.rows(b), strict=True))
