"""Two tokenizers, from whole vocabularies where both are at hand, else from what fingerprints keep."""

from __future__ import annotations

from dataclasses import dataclass

from drupe.messages import Message
from drupe.readers.tokenizer import Tokenizer
from drupe.signals.interface import Finding
from drupe.signals.tokenizer.decision import Outcome, decide
from drupe.signals.tokenizer.findings import (
    digest_findings,
    order_finding,
    overlap_finding,
    specials_finding,
)
from drupe.signals.tokenizer.overlap import sample_overlap, whole_overlap
from drupe.signals.tokenizer.sketch import TokenizerSketch


@dataclass(frozen=True, slots=True)
class TokenizerResult:
    """The comparison of a suspect's tokenizer (A) with a source's (B).

    ``n_shared`` canonical pieces are in both (an estimate when ``is_sample``), ``only_suspect`` and
    ``only_source`` in one. ``in_suspect`` is the share of the suspect's pieces that the source has,
    ``in_source`` the reverse. ``lis`` and ``equal_ids`` are shares of the shared pieces; ``offset`` is the
    most frequent difference suspect id minus source id, ``offset_mass`` its share.
    """

    outcome: Outcome
    reason: Message
    n_shared: int
    only_suspect: int
    only_source: int
    in_suspect: float
    in_source: float
    jaccard: float
    lis: float
    equal_ids: float
    offset: int
    offset_mass: float
    is_sample: bool
    findings: tuple[Finding, ...]


def compare(
    a: TokenizerSketch, b: TokenizerSketch, whole_a: Tokenizer | None = None, whole_b: Tokenizer | None = None
) -> TokenizerResult:
    """Suspect ``a`` against source ``b``. Whole vocabularies count when both are given, else the samples."""
    overlap = whole_overlap(whole_a, whole_b) if whole_a and whole_b else sample_overlap(a, b)
    decision = decide(a.facts, b.facts, overlap)
    findings: list[Finding] = [
        order_finding(a.facts, b.facts, overlap),
        overlap_finding(overlap),
        specials_finding(a, b, whole_a, whole_b),
        *digest_findings(a.facts, b.facts),
    ]
    shared = overlap.shared
    return TokenizerResult(
        outcome=decision.outcome,
        reason=decision.reason,
        n_shared=shared,
        only_suspect=max(0, overlap.total_a - shared),
        only_source=max(0, overlap.total_b - shared),
        in_suspect=overlap.in_a,
        in_source=overlap.in_b,
        jaccard=overlap.jaccard,
        lis=overlap.order.lis,
        equal_ids=overlap.order.equal,
        offset=overlap.order.offset,
        offset_mass=overlap.order.offset_mass,
        is_sample=overlap.is_sample,
        findings=tuple(findings),
    )
