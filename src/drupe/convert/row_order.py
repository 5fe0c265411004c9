"""The rows of q and k under rotary positions: the two of a pair side by side (Meta), or half a head apart.

A pair (i, i + d/2) of a head of size d in transformers' order is (2 i, 2 i + 1) in Meta's. Formula: ``permute`` of
``transformers/models/llama/convert_llama_weights_to_hf.py``; the sums are the same, since q and k move alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from drupe.convert.pieces import Inventory
from drupe.convert.plan import Output, Plan, Source
from drupe.errors import UnsupportedError
from drupe.fused import Part

_TURNED = frozenset({"q", "k", "q_bias", "k_bias"})


def reordered(made: Plan, model: Inventory, heads: int | None, *, to_pairs: bool) -> Plan:
    """The plan with the rows of q and k in the order of the target. ``to_pairs``: into Meta's, else out of it.

    Raises UnsupportedError when the size of a head is not known or odd.
    """
    rows = {piece.part.rows for key, piece in model.pieces.items() if key[0] == "q"}
    size = next(iter(rows)) // heads if heads and len(rows) == 1 else 0
    return replace(
        made, outputs=tuple(_reordered(output, size, to_pairs=to_pairs) for output in made.outputs)
    )


def _reordered(output: Output, size: int, *, to_pairs: bool) -> Output:
    if _TURNED.isdisjoint(source.piece.key[0] for source in output.sources):
        return output
    sources = [part for source in output.sources for part in _halves(source, size, to_pairs=to_pairs)]
    return replace(output, sources=tuple(sources), is_copy=False)


def _halves(source: Source, size: int, *, to_pairs: bool) -> Sequence[Source]:
    """The first and the second of all pairs, each a pattern of rows of its own."""
    piece = source.piece
    if piece.key[0] not in _TURNED:
        return [source]
    taken, put = piece.part, source.rows
    if size < 2 or size % 2 or taken.rows % size or taken.run or put.run:
        problem = "the rows of q and k stand in another order, and the size of a head does not tell which"
        raise UnsupportedError(
            problem, where=piece.tensor, hint="state num_attention_heads in the configuration"
        )
    ours = _apart(taken, size) if to_pairs else _beside(taken)
    theirs = _beside(put) if to_pairs else _apart(put, size)
    return [
        Source(replace(piece, part=first, whole=False), second, source.expert)
        for first, second in zip(ours, theirs, strict=True)
    ]


def _apart(part: Part, size: int) -> list[Part]:
    """First and second half of every head."""
    half = size // 2
    return [
        replace(part, start=part.start + k * half, rows=part.rows // 2, run=half, stride=size) for k in (0, 1)
    ]


def _beside(part: Part) -> list[Part]:
    """Even and odd rows."""
    return [replace(part, start=part.start + k, rows=part.rows // 2, run=1, stride=2) for k in (0, 1)]
