"""Models without known structure: were channels permuted? The only map that hides such a net from its sketches.

A network of convolutions or plain layers keeps its function when the channels between two layers change places.
Its first layer then has permuted rows (its inputs stay pixels or samples), its last one permuted columns. So every
pair of equally shaped matrices is tried with its rows free and with its columns free; the map is found on one half
of the values and tested on the other (weights.rows). At null, no channel permutation is left as an explanation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drupe.messages import msg
from drupe.model import Model
from drupe.recover.contents import equal_shapes
from drupe.recover.units import held_out_z
from drupe.signals.interface import Baseline, Component, Evidence, Finding, Measured, Skipped
from drupe.signals.sketch.compare import LOG10_ALPHA
from drupe.signals.sketch.facts import WeightFacts
from drupe.stats import log10_at_least, log10_bonferroni, log10_normal_sf, robust_scale

SIGNAL = "weights.rows"
MAX_PAIRS = 1024
MAX_ROWS = 1024
MIN_SIDE = 16
MIN_CONTROL = 4


@dataclass(frozen=True, slots=True)
class RowsResult:
    """Best z over all pairs and both orientations; ``hits`` pairs below the corrected threshold."""

    tested: bool
    tries: int = 0
    hits: int = 0
    z: float = 0.0
    log10_p: float = 0.0
    findings: tuple[Finding, ...] = ()


def compare_rows(a: Model, b: Model, facts: tuple[WeightFacts, WeightFacts]) -> RowsResult:
    """Try every pair of equal shape; skipped when the models are too large or too small for it."""
    groups = equal_shapes(*facts)
    pairs = [(i, j) for left, right in groups for i in left for j in right]
    if not pairs or len(pairs) > MAX_PAIRS:
        return _skipped("rows.too_many" if pairs else "rows.none")
    scores: list[Score] = []
    for left, right in groups:
        for turned in (False, True):
            scores.extend(_standardised(_scores(a, b, facts, left, right, turned=turned)))
    if not scores:
        return _skipped("rows.none")
    return _result(scores, facts)


Score = tuple[float, int, int]
"""z, index of the suspect's matrix, index of the source's."""


def _scores(
    a: Model,
    b: Model,
    facts: tuple[WeightFacts, WeightFacts],
    left: Sequence[int],
    right: Sequence[int],
    *,
    turned: bool,
) -> list[Score]:
    """Held-out z of every pair of one shape, with the rows free or (turned) the columns."""
    found = []
    for i in left:
        for j in right:
            suspect, source = a.load(facts[0].matrices[i]), b.load(facts[1].matrices[j])
            if turned:
                suspect, source = suspect.T, source.T
            if min(suspect.shape) >= MIN_SIDE and suspect.shape[0] <= MAX_ROWS:
                found.append((held_out_z(suspect, source), i, j))
    return found


def _standardised(scores: list[Score]) -> list[Score]:
    """Smooth filters give every pair of one shape a z: judge each against the others of its shape."""
    if len(scores) < MIN_CONTROL:
        return scores
    centre, scale = robust_scale(np.array([z for z, *_ in scores]))
    return [((z - max(centre, 0.0)) / scale, i, j) for z, i, j in scores]


def _skipped(key: str) -> RowsResult:
    return RowsResult(False, findings=(Skipped(SIGNAL, Component.WEIGHTS, msg(key)),))


def _result(scores: list[tuple[float, int, int]], facts: tuple[WeightFacts, WeightFacts]) -> RowsResult:
    tries = len(scores)
    corrected = [log10_bonferroni(log10_normal_sf(z), tries) for z, *_ in scores]
    hits = len({i for (_, i, _), p in zip(scores, corrected, strict=True) if p <= LOG10_ALPHA})
    z, i, j = max(scores)
    middle = sorted(score for score, *_ in scores)[tries // 2]
    matrices = len({i for _, i, _ in scores})
    log10_p = log10_at_least(hits, matrices, LOG10_ALPHA) if hits >= 2 else min(corrected)
    finding = Measured(
        SIGNAL,
        Component.WEIGHTS,
        z,
        msg("rows.null", tries=tries),
        tries,
        log10_p,
        baseline=Baseline(msg("rows.baseline"), middle, max(score for score, *_ in scores)),
        evidence=(
            Evidence(
                facts[0].matrices[i].tensor,
                msg("rows.best", source=facts[1].matrices[j].tensor, z=round(z, 1)),
            ),
        ),
    )
    return RowsResult(True, tries, hits, z, log10_p, (finding,))
