"""Which rows of a fused matrix are whose. Layouts, with h heads of size d, g groups that share k and v:

- ``stacked``: [q; k; v] and [gate; up] one below the other (GPT-2, Phi-3, Baichuan, Qwen 1, ChatGLM 2, MPT);
- ``grouped``: for every group its h/g heads of q, then k, then v. With g = h it is (heads, 3, d) of GPT-NeoX, BLOOM,
  Persimmon, Megatron-LM; with other g Falcon 40B's and InternLM 2's; with g = 1 (multi-query) it is ``stacked``;
- ``alternating``: row by row (gpt-oss: gate, up, gate, up ...);
- ``blocks:n``: n blocks of equal parts, each stacked (CodeGen: n = 4).

The rows of q are the columns of o, and the rows of gate the columns of down. Only ``grouped`` needs to be told the
number of heads; without it nothing is split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one matrix in a fused one: ``run`` rows every ``stride``; run 0 = all in one piece."""

    start: int
    rows: int
    run: int = 0
    stride: int = 0
    name: str = ""


def split(
    names: Sequence[str],
    layout: str,
    shape: tuple[int, int],
    widths: tuple[int | None, int | None],
    heads: int | None,
) -> list[Part]:
    """The parts of a matrix of that shape, in the order of ``names``.

    ``widths``: columns of o and of down, None where not known. A matrix whose shape or heads do not fit its layout
    is one part with the joined name.
    """
    rows, columns = shape
    if tuple(names) == ("up",) and rows == 2 * (widths[1] or 0):
        names = ("gate", "up")  # fused although the name is that of plain models (Megatron-LM's SwiGLU, GGUF)
    if len(names) == 1:
        return [Part(0, rows, name=names[0])]
    if layout == "alternating" and rows % len(names) == 0:
        count = len(names)
        return [Part(place, rows // count, 1, count, name) for place, name in enumerate(names)]
    if layout.startswith("blocks:"):
        return _blocks(names, rows, int(layout.removeprefix("blocks:")))
    heights = _heights(names, rows, columns, widths[0])
    if heights is None:
        return [Part(0, rows, name="+".join(names))]
    if layout == "grouped" and tuple(names) == ("q", "k", "v"):
        return _grouped(heights, heads)
    starts = [sum(heights[:place]) for place in range(len(heights))]
    return [Part(s, h, name=n) for s, h, n in zip(starts, heights, names, strict=True)]


def _heights(names: Sequence[str], rows: int, columns: int, attention: int | None) -> list[int] | None:
    """Rows of each part: q as the columns of o tell it, all others alike; None when they do not add up."""
    count = len(names)
    if "q" not in names:
        return [rows // count] * count if rows % count == 0 else None
    for first in (attention, columns, rows // count):
        if (
            first
            and first < rows
            and (rows - first) % (count - 1) == 0
            and (rows - first) <= first * (count - 1)
        ):
            rest = (rows - first) // (count - 1)
            return [first if name == "q" else rest for name in names]
    return None


def _grouped(heights: Sequence[int], heads: int | None) -> list[Part]:
    """q, k and v group by group."""
    queries, keys, _ = heights
    size = queries // heads if heads and queries % heads == 0 else 0
    groups = keys // size if size and keys % size == 0 else 0
    if not groups or not heads or heads % groups:
        return [Part(0, sum(heights), name="q+k+v")]
    if groups == 1:
        return [
            Part(0, queries, name="q"),
            Part(queries, keys, name="k"),
            Part(queries + keys, keys, name="v"),
        ]
    inside, stride = queries // groups, queries // groups + 2 * size
    return [
        Part(0, queries, inside, stride, "q"),
        Part(inside, keys, size, stride, "k"),
        Part(inside + size, keys, size, stride, "v"),
    ]


def _blocks(names: Sequence[str], rows: int, blocks: int) -> list[Part]:
    run = rows // (blocks * len(names))
    if run * blocks * len(names) != rows:
        return [Part(0, rows, name="+".join(names))]
    stride = run * len(names)
    return [Part(place * run, run * blocks, run, stride, name) for place, name in enumerate(names)]
