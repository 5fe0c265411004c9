"""The findings of a comparison: each number with its null, the same on unrelated pairs, and examples."""

from __future__ import annotations

import math
from collections.abc import Iterator

from drupe.messages import Message, msg
from drupe.readers.tokenizer import Tokenizer
from drupe.signals.interface import Baseline, Component, Evidence, Measured, Skipped
from drupe.signals.tokenizer.decision import MIN_JUDGED, can_relate, follows_rule, related_bar
from drupe.signals.tokenizer.order import random_order
from drupe.signals.tokenizer.overlap import Overlap
from drupe.signals.tokenizer.sketch import MAX_NAMES, TokenizerSketch, VocabularyFacts, printable

FAMILY_PAIRS = 171
"""Pairs of independent families of real vocabularies, none of which reached LIS .30."""
_LOG10_P_RELATED = math.log10(3 / FAMILY_PAIRS)
_ORDER_BASELINE = (0.021, 0.058)
_JACCARD_BASELINE = (0.244, 0.588)
_SHOWN = 5


def order_finding(a: VocabularyFacts, b: VocabularyFacts, overlap: Overlap) -> Measured | Skipped:
    """The agreement of the order of ids, LIS over the shared pieces.

    p is the rule of three over independent family pairs, 3/171, whatever the size of the LIS: the number of
    independent vocabularies limits what can be claimed, a model of random order would claim far too much.
    """
    order = overlap.order
    if order.count < MIN_JUDGED:
        reason = msg("tokenizer.order.skipped", shared=order.count, least=MIN_JUDGED)
        return Skipped("tokenizer.order", Component.TOKENIZER, reason)
    by_rule = follows_rule(a, b)
    is_significant = can_relate(overlap) and order.lis >= related_bar(order.count) and not by_rule
    caveats = [msg("tokenizer.order.not_weights")]
    caveats += [msg("tokenizer.order.limited", pairs=FAMILY_PAIRS)] if is_significant else []
    caveats += [msg("tokenizer.order.ancestor")] if is_significant and not overlap.same_pieces else []
    caveats += [msg("tokenizer.order.by_rule")] if by_rule else []
    caveats += [_sample_caveat(overlap)] if overlap.is_sample else []
    return Measured(
        signal="tokenizer.order",
        component=Component.TOKENIZER,
        statistic=order.lis,
        null=msg("tokenizer.order.null", random=round(random_order(order.count), 4)),
        sample_size=order.count,
        log10_p=_LOG10_P_RELATED if is_significant else None,
        effect=overlap.containment_effect(),
        baseline=Baseline(msg("tokenizer.order.baseline"), *_ORDER_BASELINE),
        evidence=tuple(_order_evidence(overlap)),
        caveats=tuple(caveats),
    )


def _order_evidence(overlap: Overlap) -> Iterator[Evidence]:
    order = overlap.order
    yield Evidence(
        "ids", msg("tokenizer.order.equal_ids", share=round(order.equal, 4), shared=overlap.shared)
    )
    if order.offset and order.offset_mass > 0.01:
        parameters = {"offset": order.offset, "share": round(order.offset_mass, 4)}
        yield Evidence("ids", msg("tokenizer.order.offset", **parameters))


def _sample_caveat(overlap: Overlap) -> Message:
    return msg("tokenizer.sampled", size=overlap.size_a + overlap.size_b)


def overlap_finding(overlap: Overlap) -> Measured:
    """The shared pieces, Jaccard: descriptive, because unrelated vocabularies share most common words."""
    evidence = [
        Evidence(
            side, msg("tokenizer.overlap.only", pieces=", ".join(f"'{example}'" for example in examples))
        )
        for side, examples in (("suspect", overlap.only_a), ("source", overlap.only_b))
        if examples
    ]
    return Measured(
        signal="tokenizer.overlap",
        component=Component.TOKENIZER,
        statistic=overlap.jaccard,
        null=msg("tokenizer.overlap.null"),
        sample_size=overlap.size_a + overlap.size_b - overlap.order.count,
        effect=overlap.jaccard_effect(),
        baseline=Baseline(msg("tokenizer.overlap.baseline"), *_JACCARD_BASELINE),
        evidence=tuple(evidence),
        caveats=(_sample_caveat(overlap),) if overlap.is_sample else (),
    )


def specials_finding(
    a: TokenizerSketch, b: TokenizerSketch, whole_a: Tokenizer | None, whole_b: Tokenizer | None
) -> Measured | Skipped:
    """Special tokens equal in text and id, as a share of all; renamed ones are shown."""
    if not (a.facts.lists_added and b.facts.lists_added):
        side = "suspect" if not a.facts.lists_added else "source"
        reason = msg(f"tokenizer.specials.unlisted_{side}")
        return Skipped("tokenizer.special_tokens", Component.TOKENIZER, reason)
    names_a, names_b = _special_names(a, whole_a), _special_names(b, whole_b)
    same = names_a.items() & names_b.items()
    union = len(names_a.keys() | names_b.keys())
    by_id = {id_: text for text, id_ in names_b.items() if text not in names_a}
    renamed = [
        (id_, text, by_id[id_]) for text, id_ in names_a.items() if id_ in by_id and text not in names_b
    ]
    evidence = [
        Evidence(f"id {id_}", msg("tokenizer.specials.renamed", suspect=text, source=other))
        for id_, text, other in sorted(renamed)[:_SHOWN]
    ]
    counts = {"same": len(same), "renamed": len(renamed), "suspect": a.facts.added, "source": b.facts.added}
    evidence.append(Evidence("special tokens", msg("tokenizer.specials.counts", **counts)))
    is_cut = max(a.facts.added, b.facts.added) > MAX_NAMES and not (whole_a and whole_b)
    return Measured(
        signal="tokenizer.special_tokens",
        component=Component.TOKENIZER,
        statistic=len(same) / union if union else 1.0,
        null=msg("tokenizer.specials.null"),
        sample_size=union,
        evidence=tuple(evidence),
        caveats=(msg("tokenizer.specials.cut", shown=MAX_NAMES),) if is_cut else (),
    )


def _special_names(sketch: TokenizerSketch, whole: Tokenizer | None) -> dict[str, int]:
    """Shown text -> id, of all special tokens when the tokenizer is at hand, else of those kept."""
    if whole is None:
        return {token.text: token.id for token in sketch.facts.names}
    return {printable(text): id_ for text, id_ in whole.added.items() if text not in whole.words}


def digest_findings(a: VocabularyFacts, b: VocabularyFacts) -> Iterator[Measured]:
    """Chat template and pre-tokenizer, equal byte for byte or not, where both models have one.

    Formats write splitting rules in different ways, so these are compared within one format only.
    """
    for name, one, other in (
        ("chat_template", a.template_digest, b.template_digest),
        ("pre_tokenizer", a.pre_tokenizer_digest, b.pre_tokenizer_digest),
    ):
        if one and other and (name == "chat_template" or a.format == b.format):
            key = "equal" if one == other else "different"
            yield Measured(
                signal=f"tokenizer.{name}",
                component=Component.TOKENIZER,
                statistic=float(one == other),
                null=msg(f"tokenizer.{name}.null"),
                sample_size=1,
                evidence=(Evidence(f"sha256 {one[:12]} / {other[:12]}", msg(f"tokenizer.{name}.{key}")),),
            )
