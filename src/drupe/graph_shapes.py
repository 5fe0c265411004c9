"""Shapes alone -> what of the module graph they leave open, when names tell no roles.

A layer is what repeats. Vectors and matrices of a layer are counted by their extents; every known graph predicts
these counts (norms, biases, matrices of attention and FFN), and what all graphs that fit agree on is the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from drupe.configurations import table
from drupe.graph import FIELDS, UNKNOWN, VISIBLE, Graph
from drupe.readers.interface import TensorInfo

_TOLD = (VISIBLE - {"inputs"}) | {"norm", "residual"}
_PLAIN = frozenset({"none", "embed_norm", "token_type", "embed_norm+token_type"})
_NORMS = {"pre": (2,), "post": (2,), "sandwich": (4,), "none": (0,)}


@dataclass(frozen=True, slots=True)
class LayerCounts:
    """One layer by extents: matrices of attention (a fused one counts three) and FFN, and vectors: as long as the
    state, as the inside of the FFN, as another matrix of attention, and all others."""

    attention: int
    ffn: int
    states: int
    inner: int
    keys: int
    rest: int
    is_fused: bool


def graph_of_shapes(tensors: Sequence[TensorInfo], hidden: int, depth: int) -> Graph:
    """What all known graphs with these counts answer alike; all unknown when none fits or nothing repeats."""
    counts = count_layer(tensors, hidden, depth)
    if counts is None:
        return Graph()
    fitting = [graph for graph in {row.graph for row in table().rows} if _fits(graph, counts)]
    answers = {name: {getattr(graph, name) for graph in fitting} for name in FIELDS if name in _TOLD}
    return Graph(**{name: next(iter(words)) for name, words in answers.items() if len(words) == 1})


def count_layer(tensors: Iterable[TensorInfo], hidden: int, depth: int) -> LayerCounts | None:
    """The counts of one layer; None without a layer of attention and FFN."""
    sizes: Counter[tuple[int, ...]] = Counter(tuple(sorted(tensor.shape)) for tensor in tensors)
    layer = {size: count // depth for size, count in sizes.items() if depth > 1 and count >= depth}
    matrices = {
        size[0] if size[1] == hidden else size[1]: count
        for size, count in layer.items()
        if len(size) == 2 and hidden in size
    }
    wide = {extent: count for extent, count in matrices.items() if extent > hidden}
    fused = sum(1 for extent, count in wide.items() if count == 1 and extent <= 3 * hidden)
    inner = [extent for extent, count in wide.items() if count in (2, 3)]
    narrow = sum(count for extent, count in matrices.items() if extent <= hidden)
    if len(inner) != 1 or fused > 1 or len(wide) != 1 + fused:
        return None
    vectors = {size[0]: count for size, count in layer.items() if len(size) == 1}
    states, within = vectors.pop(hidden, 0), vectors.pop(inner[0], 0)
    keys = sum(vectors.pop(extent, 0) for extent in matrices)
    rest = sum(vectors.values())
    return LayerCounts(narrow + 3 * fused, wide[inner[0]], states, within, keys, rest, fused == 1)


def _fits(graph: Graph, counts: LayerCounts) -> bool:
    """Whether a graph of attention and one FFN per layer predicts these counts."""
    if graph.mixer != "attention" or graph.experts != "none" or graph.form == "encoder_decoder":
        return False
    if (
        graph.others not in _PLAIN
        or graph.ffn not in ("gated", "plain")
        or UNKNOWN in (graph.placement, graph.norm)
    ):
        return False
    biased = graph.ffn_bias == "yes"
    matrices = 3 if graph.ffn == "gated" else 2
    if counts.attention != 4 or counts.ffn != matrices or counts.inner != (matrices - 1) * biased:
        return False
    if counts.rest != 2 * (graph.qk_norm == "head"):
        return False
    letters = "" if graph.attention_bias == "none" else graph.attention_bias
    queries = sum(letter in letters for letter in "qkv")
    inside = (1 if counts.is_fused and queries == 3 else queries) + 2 * (graph.qk_norm == "full")
    fixed = ("o" in letters) + biased
    single = (1,) if graph.residual == "parallel" and graph.placement == "pre" else ()
    each = 2 if graph.norm == "layer" else 1
    return any(
        counts.states + counts.keys == norms * each + fixed + inside and counts.states >= norms * each + fixed
        for norms in _NORMS[graph.placement] + single
    )
