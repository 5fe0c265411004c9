"""A module graph without its sizes: one short word per question, ``?`` where nothing tells.

The graph is what is left of a model when every number is taken away: which modules a layer holds, how they are
wired, which function each computes. Extents and counts (width, depth, heads, key-value heads, experts, window, theta)
are sizes. See docs/design/009-genome.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

UNKNOWN = "?"
SEVERAL = "+"
"""Joins the words of a field that holds several."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Answers by question; :data:`UNKNOWN` where neither tensors nor configuration tell.

    ``attention_bias``: the letters of q, k, v, o that have biases. ``experts`` and ``window``: ``none``, ``some`` or
    ``all`` layers. ``others``: modules that the remaining fields have no word for.
    """

    inputs: str = UNKNOWN
    form: str = UNKNOWN
    mixer: str = UNKNOWN
    attention_bias: str = UNKNOWN
    qk_norm: str = UNKNOWN
    norm: str = UNKNOWN
    placement: str = UNKNOWN
    residual: str = UNKNOWN
    ffn: str = UNKNOWN
    ffn_bias: str = UNKNOWN
    activation: str = UNKNOWN
    experts: str = UNKNOWN
    shared_experts: str = UNKNOWN
    positions: str = UNKNOWN
    rope: str = UNKNOWN
    window: str = UNKNOWN
    softcap: str = UNKNOWN
    head: str = UNKNOWN
    others: str = UNKNOWN

    def known(self) -> dict[str, str]:
        """The answered questions."""
        return {name: value for name in FIELDS if (value := getattr(self, name)) != UNKNOWN}

    def words(self) -> tuple[str, ...]:
        """The answers in the order of :data:`FIELDS`."""
        return tuple(getattr(self, name) for name in FIELDS)


FIELDS = tuple(field.name for field in fields(Graph))
VISIBLE = frozenset(
    {
        *("inputs", "mixer", "attention_bias", "qk_norm", "placement", "ffn", "ffn_bias"),
        *("experts", "shared_experts", "others"),
    }
)
"""What tensors always show. The rest they show at times: a table of positions, a bias of a norm, a head."""


def differences(graph: Graph, other: Graph) -> tuple[str, ...]:
    """The questions that both answer, differently.

    >>> differences(Graph(ffn="gated", head="own"), Graph(ffn="plain"))
    ('ffn',)
    """
    return tuple(
        name
        for name in FIELDS
        if UNKNOWN not in (mine := getattr(graph, name), theirs := getattr(other, name)) and mine != theirs
    )


def agree(graph: Graph, other: Graph) -> bool:
    """Whether no question is answered differently."""
    return not differences(graph, other)


def overlaid(below: Graph, above: Graph) -> Graph:
    """``above`` where it answers, else ``below``.

    >>> overlaid(Graph(ffn="plain", head="tied"), Graph(ffn="gated")).known()
    {'ffn': 'gated', 'head': 'tied'}
    """
    return with_words(below, above.known())


def with_words(graph: Graph, words: Mapping[str, str]) -> Graph:
    """A graph with some answers replaced. Raises TypeError for an unknown question."""
    return replace(graph, **words)


def joined(words: set[str] | frozenset[str], empty: str = "none") -> str:
    """The words of a field that holds several."""
    return SEVERAL.join(sorted(words)) or empty
