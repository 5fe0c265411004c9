"""A graph in words: the nearest well-known design and what differs, as messages."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from drupe.configurations import Configuration, table
from drupe.graph import FIELDS, SEVERAL, UNKNOWN, Graph, differences
from drupe.messages import Message, msg

_LISTED = frozenset({"mixer", "softcap", "others"})
"""Questions whose answer is a list of words."""
_NAMED = frozenset({"activation", "rope", "attention_bias"})
"""Questions whose answer is quoted."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """The anchor design with fewest differences. ``fused``: parts that its published files hold in one matrix."""

    title: str
    graph: Graph
    fused: str
    differences: tuple[str, ...]


@cache
def anchors() -> tuple[tuple[str, Graph, str], ...]:
    """Title, graph and fused parts of the designs that others are told by, the best known first."""
    text = (resources.files("drupe") / "data" / "graph_rules.toml").read_text(encoding="utf-8")
    known = table().by_type
    return tuple(
        (title, known[model_type].graph, fused) for title, model_type, fused in tomllib.loads(text)["anchors"]
    )


def nearest(graph: Graph) -> Nearest:
    """The design with fewest differences; among equals the best known."""
    found = [Nearest(title, anchor, fused, differences(graph, anchor)) for title, anchor, fused in anchors()]
    return min(found, key=lambda each: len(each.differences))


def closest(graph: Graph) -> Configuration:
    """The known configuration with fewest differences; among equals the one with most answers."""
    return min(
        table().rows,
        key=lambda row: (len(differences(graph, row.graph)), -len(row.graph.known()), row.also == 0),
    )


def told(graph: Graph, other: Graph) -> tuple[Message, ...]:
    """What ``graph`` has where ``other`` answers differently, one sentence part per difference."""
    return tuple(part for name in differences(graph, other) for part in _parts(name, graph, other))


def _parts(name: str, graph: Graph, other: Graph) -> Sequence[Message]:
    value, before = getattr(graph, name), getattr(other, name)
    if name == "others":
        return _others(set(value.split(SEVERAL)) - {"none"}, set(before.split(SEVERAL)) - {"none"})
    return (phrase(name, value),)


def _others(ours: set[str], theirs: set[str]) -> Sequence[Message]:
    more = [msg("genome.with", what=msg(f"genome.others.{word}")) for word in sorted(ours - theirs)]
    return more + [msg("genome.without", what=msg(f"genome.others.{word}")) for word in sorted(theirs - ours)]


def phrase(name: str, value: str) -> Message:
    """One answer in words."""
    if name in _LISTED and value != "none":
        return msg(
            f"genome.{name}.is", what=listed([msg(f"genome.{name}.{word}") for word in value.split(SEVERAL)])
        )
    if name in _NAMED and value not in ("none", "default"):
        quoted = ", ".join(value) if name == "attention_bias" else value
        return msg(f"genome.{name}.is", what=quoted)
    return msg(f"genome.{name}.{value.replace(SEVERAL, '_')}")


def listed(parts: Sequence[Message]) -> Message:
    """Several parts in a row."""
    if len(parts) == 1:
        return parts[0]
    return msg("genome.list", first=parts[0], rest=listed(parts[1:]))


def unknown_questions(graph: Graph) -> tuple[str, ...]:
    """The questions without an answer."""
    return tuple(name for name in FIELDS if getattr(graph, name) == UNKNOWN)
