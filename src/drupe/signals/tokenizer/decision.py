"""From the overlap of two vocabularies to one outcome. Pure; thresholds and their reasons stand here.

Measured on real vendors' vocabularies and on small ones trained for the purpose, see
``docs/design/003-tokenizer-decision.md``. Without a reference set of third vocabularies ``common_source``
cannot be told from ``derived``, so an incomplete agreement of order stays ``inconclusive``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from drupe.messages import Message, msg
from drupe.signals.tokenizer.order import random_order
from drupe.signals.tokenizer.overlap import Overlap
from drupe.signals.tokenizer.sketch import VocabularyFacts

MIN_SHARED = 500
"""Shared pieces from which agreement of order can prove a relation: 8 x 2/sqrt(500) is .72 already."""
MIN_JUDGED = 100
"""Shared pieces from which disagreement of order shows independence: LIS about .17, related pairs .64."""
MIN_SAME = 50
"""Pieces below which equal sets are no evidence: digits, letters, k-mers agree by themselves."""
RELATED_LIS = 0.30
"""Independent real pairs reach .075, related ones start at .643."""
RELATED_NULLS = 8.0
"""Multiple of a random order's LIS that related pairs must reach: keeps small vocabularies honest."""
NULL_LIS = 0.10
NULL_NULLS = 4.0
"""Up to max(.10, 4 x 2/sqrt(n)), at most .30, is what independent pairs show (q99 is 3.3 x 2/sqrt(n))."""
WHOLE_LIS = 0.95
CONTAINED = 0.98
"""Order and containment of a direct descent; independent containment reaches .979 at an LIS below .08."""
REORDERED_JACCARD = 0.90
REORDERED_CONTAINED = 0.999
REORDERED_PIECES = 5_000
"""Retraining on 90 % of the same text reaches Jaccard .97 and containment .985, never completeness."""
SUBSET_CONTAINED = 0.985
SUBSET_RATIO = 0.5
SMALL_OVERLAP = 0.25
"""Containment below which too few shared pieces speak for independence, not for ignorance."""
RULE_ORDER = 0.30
"""LIS against an alphabetical order from which the order of ids counts as following a rule."""


class Outcome(StrEnum):
    """The relation of two tokenizers; the values are those of the relations of a component."""

    IDENTICAL = "identical"
    EQUIVALENT = "equivalent"
    DERIVED = "derived"
    INDEPENDENT = "independent"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Decision:
    """An outcome and the sentence that gives its reason."""

    outcome: Outcome
    reason: Message


def related_bar(count: int) -> float:
    """LIS from which ``count`` shared pieces count as related, max(.30, 8 x 2/sqrt(n)).

    >>> related_bar(30_000), round(related_bar(1024), 3)
    (0.3, 0.5)
    """
    return max(RELATED_LIS, RELATED_NULLS * random_order(count))


def null_ceiling(count: int) -> float:
    """LIS up to which ``count`` shared pieces look independent, max(.10, 4 x 2/sqrt(n)), at most .30.

    >>> null_ceiling(30_000), round(null_ceiling(1024), 3), null_ceiling(100)
    (0.1, 0.25, 0.3)
    """
    return min(RELATED_LIS, max(NULL_LIS, NULL_NULLS * random_order(count)))


def can_relate(overlap: Overlap) -> bool:
    """Whether enough pieces are shared to prove a relation; a sample stands for the whole."""
    return overlap.shared >= MIN_SHARED and overlap.order.count >= MIN_JUDGED


def follows_rule(a: VocabularyFacts, b: VocabularyFacts) -> bool:
    """Whether both vocabularies are numbered alphabetically, or by length: then they agree by themselves."""
    return min(a.alphabetical, b.alphabetical) >= RULE_ORDER or min(a.by_length, b.by_length) >= RULE_ORDER


def decide(a: VocabularyFacts, b: VocabularyFacts, overlap: Overlap) -> Decision:
    """The outcome for two vocabularies; ``a`` and ``b`` give the digests, ``overlap`` the agreement."""
    if is_identical(a, b):
        return Decision(Outcome.IDENTICAL, msg("tokenizer.reason.identical", pieces=a.raw_size))
    if not overlap.total_a or not overlap.total_b:
        return Decision(Outcome.INCONCLUSIVE, msg("tokenizer.reason.empty"))
    if overlap.same_pieces and overlap.total_a >= MIN_SAME:
        return _same_pieces(a, b, overlap)
    is_ordered = overlap.order.lis > null_ceiling(overlap.order.count)
    if overlap.order.count < MIN_JUDGED or (is_ordered and not can_relate(overlap)):
        return _few_shared(overlap)
    if overlap.order.lis >= related_bar(overlap.order.count):
        return _ordered(a, b, overlap)
    return _unordered(overlap)


def is_identical(a: VocabularyFacts, b: VocabularyFacts) -> bool:
    """The same (text, id) table, or the same pieces, ids and special tokens in the same number."""
    if a.digest == b.digest:
        return True
    return a.pieces > 0 and (a.map_digest, a.added_digest, a.raw_size) == (
        b.map_digest,
        b.added_digest,
        b.raw_size,
    )


def _same_pieces(a: VocabularyFacts, b: VocabularyFacts, overlap: Overlap) -> Decision:
    order, pieces = overlap.order, overlap.total_a
    if order.equal == 1.0:
        both_list = a.lists_added and b.lists_added
        key = "tokenizer.reason.specials" if both_list else "tokenizer.reason.unlisted"
        return Decision(Outcome.EQUIVALENT, msg(key, pieces=pieces))
    if order.offset_mass == 1.0:
        reason = msg("tokenizer.reason.offset", pieces=pieces, offset=order.offset)
        return Decision(Outcome.EQUIVALENT, reason)
    reason = msg("tokenizer.reason.order", pieces=pieces, equal=_percent(order.equal))
    return Decision(Outcome.EQUIVALENT, reason)


def _few_shared(overlap: Overlap) -> Decision:
    smaller = min(overlap.total_a, overlap.total_b)
    key = "few" if smaller >= MIN_SHARED else "small"
    is_independent = overlap.containment < SMALL_OVERLAP and smaller >= MIN_SHARED
    outcome = Outcome.INDEPENDENT if is_independent else Outcome.INCONCLUSIVE
    reason = msg(
        f"tokenizer.reason.{key}_{outcome}",
        shared=overlap.order.count,
        containment=_percent(overlap.containment),
        smaller=smaller,
        least=MIN_SHARED,
    )
    return Decision(outcome, reason)


def _ordered(a: VocabularyFacts, b: VocabularyFacts, overlap: Overlap) -> Decision:
    """The ids agree in order far beyond independent pairs."""
    order = overlap.order
    shares = {"lis": _percent(order.lis), "containment": _percent(overlap.containment)}
    if follows_rule(a, b):
        return Decision(Outcome.INCONCLUSIVE, msg("tokenizer.reason.rule", **shares))
    if overlap.containment < CONTAINED:
        return Decision(Outcome.INCONCLUSIVE, msg("tokenizer.reason.common", **shares))
    if order.lis < WHOLE_LIS:
        return Decision(Outcome.INCONCLUSIVE, msg("tokenizer.reason.partly_ordered", **shares))
    key = "kept" if order.equal >= 0.99 else "offset" if order.offset_mass >= 0.5 else "shifted"
    reason = msg(
        f"tokenizer.reason.derived_{key}",
        offset=order.offset,
        mass=_percent(order.offset_mass),
        only_a=overlap.total_a - overlap.shared,
        only_b=overlap.total_b - overlap.shared,
        **shares,
    )
    return Decision(Outcome.DERIVED, reason)


def _unordered(overlap: Overlap) -> Decision:
    """The ids do not agree in order; only near-equal sets of pieces can still speak."""
    order = overlap.order
    shares = {
        "lis": _percent(order.lis),
        "containment": _percent(overlap.containment),
        "jaccard": _percent(overlap.jaccard),
    }
    if overlap.jaccard >= REORDERED_JACCARD:
        is_complete = overlap.containment >= REORDERED_CONTAINED and overlap.shared >= REORDERED_PIECES
        outcome = Outcome.DERIVED if is_complete else Outcome.INCONCLUSIVE
        return Decision(outcome, msg(f"tokenizer.reason.reordered_{outcome}", **shares))
    if overlap.containment >= SUBSET_CONTAINED and overlap.size_ratio >= SUBSET_RATIO:
        return Decision(Outcome.INCONCLUSIVE, msg("tokenizer.reason.subset_reordered", **shares))
    if order.lis > null_ceiling(order.count):
        return Decision(Outcome.INCONCLUSIVE, msg("tokenizer.reason.between", **shares))
    return Decision(Outcome.INDEPENDENT, msg("tokenizer.reason.independent", **shares))


def _percent(share: float) -> str:
    """A share for a sentence; never rounded up to 100 %.

    >>> _percent(1.0), _percent(0.99996), _percent(0.021)
    ('100 %', '99.9 %', '2.1 %')
    """
    return "100 %" if share == 1.0 else f"{min(100 * share, 99.9):.1f} %"
