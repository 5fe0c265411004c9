"""The genome of an architecture: its module graph in words, and how many known configurations share it.

The graph (drupe.graph) is read from the tensors; what tensors cannot show (positions, windows, the activation) comes
from the configuration and the class that it names. Tensors win: where they contradict ``model_type``, its class is
not believed in anything. The table (drupe.configurations) is a convenience sample, so counts say what is usual, and
are no probabilities; an unusual graph that two models share is a lead and proves nothing about their weights.

When it lies: two graphs may be alike in every question asked here and differ in a line of code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from drupe.configurations import Configuration, same_sizes, table
from drupe.graph import FIELDS, UNKNOWN, VISIBLE, Graph, differences, overlaid, with_words
from drupe.graph_config import Family, Settings, graph_of_config
from drupe.graph_shapes import graph_of_shapes
from drupe.graph_tensors import fused_modules, graph_of_tensors, shown_sizes
from drupe.graph_words import closest, listed, nearest, told, unknown_questions
from drupe.messages import Message, msg
from drupe.name_groups import Named
from drupe.readers.interface import TensorInfo
from drupe.roles import Roles, assign_roles
from drupe.signals.interface import Component, Effect, Evidence, Finding, Measured, Skipped
from drupe.signals.structure import StructureFacts
from drupe.stats import wilson

MIN_ANSWERS = 8
"""Questions that must be answered before a graph is looked up."""
COMMON = 0.02
"""Share of the known configurations from which on a graph is called common."""
MAX_NAMES = 4
"""Models named as examples."""
_FURTHER_EXPERT = re.compile(r"experts?\.(?:[2-9]|\d\d+)\.")
_SIZES = MappingProxyType(
    {
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "ffn": "intermediate_size",
        "experts": "num_experts",
        "expert_ffn": "moe_intermediate_size",
        "vocab": "vocab_size",
    }
)
NO_RENAMES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class GenomeFacts:
    """Portable and small; made of what a fingerprint holds.

    ``basis``: ``tensors``, ``shapes`` (of tensors whose names tell nothing), ``config`` (with a known class),
    ``dialect`` (with an unknown one) or ``nothing``.
    ``contradicted``: questions that the class of ``model_type`` answers otherwise than the tensors.
    ``fused``: module -> the parts it holds together.
    """

    graph: Graph
    sizes: Mapping[str, float]
    basis: str
    model_type: str | None
    contradicted: tuple[str, ...]
    fused: Mapping[str, str]

    @property
    def is_read(self) -> bool:
        """Whether enough is known to look the graph up."""
        return len(self.graph.known()) >= MIN_ANSWERS


@dataclass(frozen=True, slots=True)
class Rarity:
    """How usual a graph is. ``sharing`` and ``sizes`` count rows of the table, ``total`` is all of them."""

    sharing: tuple[Configuration, ...]
    sizes: tuple[Configuration, ...]
    total: int

    @property
    def interval(self) -> Effect:
        """The share of the table with Wilson's 95 % interval."""
        count = len(self.sharing)
        return Effect(count / self.total, *wilson(count, self.total))


@dataclass(frozen=True, slots=True)
class GenomeResult:
    """Two graphs. ``same_graph``: None when one is not read. Moves no verdict."""

    same_graph: bool | None
    rarity: Rarity | None
    findings: tuple[Finding, ...]


def extract(
    facts: StructureFacts, tensors: Sequence[Named | TensorInfo] = (), roles: Roles | None = None
) -> GenomeFacts:
    """The genome of one model, from its structure facts and its tensors' names and shapes.

    ``roles`` where they are at hand already; a fingerprint keeps names and shapes only.
    """
    settings = Settings(facts.canonical, facts.spelled, facts.settings, facts.model_type, facts.architectures)
    default = table().by_type.get(facts.model_type or "")
    effects = table().effects.get(facts.model_type or "", {})
    family = Family(default.graph, default.switches, effects) if default else None
    stated = graph_of_config(settings, family)
    sizes = {name: float(facts.canonical[key]) for name, key in _SIZES.items() if key in facts.canonical}
    infos = [_info(tensor) for tensor in tensors if not _FURTHER_EXPERT.search(tensor.name)]
    roles = roles or assign_roles(infos, {facts.model_type} if facts.model_type else ())
    seen, basis = graph_of_tensors(infos, roles), "tensors"
    if not seen.known() and infos:
        seen, basis = graph_of_shapes(infos, facts.hidden, facts.depth), "shapes"
    if not seen.known():
        basis = "nothing" if not stated.known() else "config" if family else "dialect"
        return GenomeFacts(stated, sizes, basis, facts.model_type, (), {})
    wrong = tuple(name for name in differences(stated, seen) if name in VISIBLE) if family else ()
    if wrong:
        stated = graph_of_config(settings, None)
    sizes = {**_depth(facts), **shown_sizes(infos, roles), **sizes}
    graph = _sure(overlaid(stated, seen), seen, is_sure=family is not None and not wrong)
    return GenomeFacts(graph, sizes, basis, facts.model_type, wrong, fused_modules(roles))


def _info(tensor: Named | TensorInfo) -> TensorInfo:
    return (
        tensor if isinstance(tensor, TensorInfo) else TensorInfo(tensor.name, tensor.shape, tensor.dtype, "")
    )


def _depth(facts: StructureFacts) -> dict[str, float]:
    return {"layers": float(facts.depth)} if facts.depth else {}


def _sure(graph: Graph, seen: Graph, *, is_sure: bool) -> Graph:
    """No answers: a head that is not there, and what a dialect guesses though tensors may show it."""
    doubtful = () if is_sure else ("form", "placement")
    words = {name: UNKNOWN for name in doubtful if getattr(seen, name) == UNKNOWN}
    if graph.head == "own" and seen.head == UNKNOWN:
        words["head"] = UNKNOWN
    return with_words(graph, words)


def rarity(facts: GenomeFacts) -> Rarity | None:
    """How many known configurations share the graph, and how many of them the sizes; None when it is not read."""
    if not facts.is_read:
        return None
    sharing = table().sharing(facts.graph)
    equal = tuple(row for row in sharing if same_sizes(facts.sizes, row.sizes))
    return Rarity(sharing, equal, len(table().rows))


def describe(facts: GenomeFacts, renamed: Mapping[str, str] = NO_RENAMES) -> tuple[Message, ...]:
    """One model in sentences: its design, how usual that is, and what is not known.

    ``renamed``: names of modules of the design -> the model's, from the signal of names.
    """
    found = rarity(facts)
    if found is None:
        return (msg("genome.unread", count=len(facts.graph.known()), total=len(FIELDS)),)
    sentences = [_design(facts, renamed), *(_usual(found) if found.sharing else _alone(facts.graph, found))]
    if facts.contradicted:
        sentences.append(_contradiction(facts))
    if facts.basis != "tensors":
        sentences.append(msg(f"genome.basis.{facts.basis}"))
    unknown = unknown_questions(facts.graph)
    if unknown:
        questions = [msg(f"genome.question.{name}") for name in unknown]
        sentences.append(msg("genome.unknown", what=listed(questions)))
    return tuple(sentences)


def _design(facts: GenomeFacts, renamed: Mapping[str, str]) -> Message:
    """The nearest well-known graph, what differs, and how it is stored under other names or in fewer matrices."""
    base = nearest(facts.graph)
    parts = told(facts.graph, base.graph)
    same = msg("genome.same", base=base.title)
    design = msg("genome.differs", base=base.title, differences=listed(parts)) if parts else same
    stored = [
        msg("genome.fused", module=module, parts=held)
        for module, held in sorted(facts.fused.items())
        if held != base.fused
    ]
    if renamed:
        pairs = ", ".join(f"{old} -> {new}" for old, new in list(renamed.items())[:MAX_NAMES])
        stored.append(msg("genome.renamed", count=len(renamed), pairs=pairs))
    return msg("genome.stored", design=design, how=listed(stored)) if stored else design


def _usual(found: Rarity) -> list[Message]:
    sharers = ", ".join(row.name for row in found.sharing[:MAX_NAMES])
    interval = found.interval
    sentences = [
        msg(
            "genome.sharing",
            count=len(found.sharing),
            total=found.total,
            low=round(100 * interval.low, 1),
            high=round(100 * interval.high, 1),
            names=sharers,
        )
    ]
    if found.sizes:
        names = ", ".join(row.name for row in found.sizes[:MAX_NAMES])
        sentences.append(msg("genome.same_sizes", count=len(found.sizes), names=names))
    else:
        sentences.append(msg("genome.other_sizes"))
    return sentences


def _alone(graph: Graph, found: Rarity) -> list[Message]:
    other = closest(graph)
    parts = listed(told(graph, other.graph))
    return [
        msg("genome.nobody", total=found.total),
        msg("genome.closest", name=other.name, differences=parts),
    ]


def _contradiction(facts: GenomeFacts) -> Message:
    row = table().by_type[facts.model_type or ""]
    return msg(
        "genome.contradicted", model_type=row.model_type, differences=listed(told(facts.graph, row.graph))
    )


def compare(
    suspect: GenomeFacts, source: GenomeFacts, renamed: Mapping[str, str] = NO_RENAMES
) -> GenomeResult:
    """Whether both have one graph, and how many known configurations share it.

    ``renamed``: the source's names of modules -> the suspect's (names.NamesResult.renamed_modules).
    """
    found = rarity(suspect)
    if found is None or not source.is_read:
        reason = msg("genome.not_compared")
        return GenomeResult(None, found, (Skipped("genome", Component.ARCHITECTURE, reason),))
    parts = told(suspect.graph, source.graph)
    same = not differences(suspect.graph, source.graph)
    evidence = [
        Evidence("*", _verdict(same, found, parts)),
        *(Evidence("suspect", sentence) for sentence in describe(suspect, renamed if same else NO_RENAMES)),
        *(Evidence("source", sentence) for sentence in describe(source)),
    ]
    finding = Measured(
        signal="genome",
        component=Component.ARCHITECTURE,
        statistic=float(len(found.sharing)),
        null=msg("genome.null"),
        sample_size=found.total,
        effect=found.interval,
        evidence=tuple(evidence),
        caveats=(msg("genome.sample", total=found.total), msg("genome.normal_practice")),
    )
    return GenomeResult(same, found, (finding,))


def _verdict(same: bool, found: Rarity, parts: Sequence[Message]) -> Message:
    if not same:
        return msg("genome.pair.different", differences=listed(parts))
    if found.interval.estimate >= COMMON:
        return msg("genome.pair.common", count=len(found.sharing), total=found.total)
    return msg("genome.pair.rare", count=len(found.sharing), total=found.total)
