"""Compare two sets of sketches: which matrix of the suspect is which of the source, and is it chance?

Two tests, the better one corrected for having tried both:

1. Content. Every informative matrix of the suspect against every matrix of equal shape of the source, whatever
   the names say. Best |z| of m candidates, two signs: p = 2 m Q(|z| / s). Null: sketches of unrelated matrices
   agree like coins; s >= 1 is the robust spread of all mismatched pairs of these very models (in-pair control).
   Model level: at least k of n matrices with p <= 1e-5 by the union bound.
2. Role. Sum over matrices of equal role and layer, after the best cyclic shift of the layers, z = sum / (s sqrt n),
   corrected for the shifts. Finds what is too weak to be seen in a single matrix (ten times noise).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.messages import msg
from drupe.model import Matrix
from drupe.roles import is_table_role
from drupe.signals.interface import Baseline, Component, Effect, Evidence, Finding, Measured, Skipped
from drupe.signals.sketch.bits import WORDS, agreement_z
from drupe.signals.sketch.facts import WeightFacts, speaking
from drupe.stats import (
    correlation_from_agreement,
    log10_at_least,
    log10_bonferroni,
    log10_normal_sf,
    robust_scale,
    wilson,
)

SIGNAL = "weights.sketch"
LOG10_ALPHA = -5.0
"""A single matrix counts as matched below this corrected p."""
SIGNIFICANT = -9.0
"""log10 p of the model-level test from which a relation of the weights is taken as proven."""
MIN_BITS = 64


@dataclass(frozen=True, slots=True)
class Match:
    """The best candidate of one suspect matrix; indices into the two WeightFacts."""

    suspect: int
    source: int
    z: float
    log10_p: float
    candidates: int

    @property
    def significant(self) -> bool:
        """Below the threshold of a single matrix, corrected for its candidates."""
        return self.log10_p <= LOG10_ALPHA


@dataclass(frozen=True, slots=True)
class SketchResult:
    """Outcome of both tests. ``comparable`` = suspect matrices that had any candidate."""

    matches: tuple[Match, ...]
    comparable: int
    log10_p: float
    content_log10_p: float
    role_z: float
    role_log10_p: float
    role_pairs: tuple[tuple[int, int], ...]
    scale: float
    agreement: float
    findings: tuple[Finding, ...]

    @property
    def significant(self) -> bool:
        """Whether the weights are related beyond chance in their present basis."""
        return self.log10_p <= SIGNIFICANT

    @property
    def matched(self) -> tuple[Match, ...]:
        """The matrices that were found in the source."""
        return tuple(match for match in self.matches if match.significant)


def compare(a: WeightFacts, b: WeightFacts) -> SketchResult:
    """The suspect's sketches against the source's. Never fails; too little to compare is a Skipped finding."""
    groups = _groups(a, b)
    tables = {key: _table(a, b, *members, key) for key, members in groups.items()}
    null = _mismatched(tables)
    _, scale = robust_scale(null)
    matches = [
        match for key, members in groups.items() for match in _best(tables[key], *members, scale, (a, b))
    ]
    matches.sort(key=lambda match: match.suspect)
    hits = sum(match.significant for match in matches)
    content = log10_at_least(hits, len(matches), LOG10_ALPHA) if hits >= 2 else 0.0
    role_z, role_p, role_pairs = _role_test(a, b, scale)
    log10_p = log10_bonferroni(min(content, role_p), 2)
    agreement = _agreement(a, b, matches, role_pairs)
    finding = _finding(a, b, matches, null, scale, log10_p, role_z, agreement)
    return SketchResult(
        tuple(matches),
        len(matches),
        log10_p,
        content,
        role_z,
        role_p,
        tuple(role_pairs),
        scale,
        agreement,
        (finding,),
    )


Key = tuple[int, int, int]


def _groups(a: WeightFacts, b: WeightFacts) -> dict[Key, tuple[list[int], list[int]]]:
    """Candidates: equal rows, columns and bits; tables of tokens need equal columns only."""
    groups: dict[Key, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    named = all(any(is_table_role(matrix.role) for matrix in facts.matrices) for facts in (a, b))
    for side, (facts, mask) in enumerate(zip((a, b), speaking(a, b), strict=True)):
        for index in np.flatnonzero(mask & (facts.counts >= MIN_BITS)):
            matrix = facts.matrices[index]
            rows = 0 if named and is_table_role(matrix.role) else matrix.rows
            groups[rows, matrix.columns, int(facts.counts[index])][side].append(int(index))
    return {key: group for key, group in groups.items() if group[0] and group[1]}


def _table(
    a: WeightFacts, b: WeightFacts, left: Sequence[int], right: Sequence[int], key: Key
) -> NDArray[np.float64]:
    return agreement_z(a.words[left], b.words[right], key[2])


def _mismatched(tables: Mapping[Key, NDArray[np.float64]]) -> NDArray[np.float64]:
    """All z but the largest of each row: what matrices that have nothing to do with each other give."""
    rest = []
    for table in tables.values():
        if table.shape[1] > 1:
            keep = np.ones(table.shape, bool)
            keep[np.arange(table.shape[0]), np.abs(table).argmax(axis=1)] = False
            rest.append(table[keep])
    return np.concatenate(rest) if rest else np.zeros(0)


def _best(
    table: NDArray[np.float64],
    left: Sequence[int],
    right: Sequence[int],
    scale: float,
    sides: tuple[WeightFacts, WeightFacts],
) -> list[Match]:
    """The largest |z| of each row; of equal ones (repeated layers) the one of the same role and layer."""
    found = []
    for row, scores in enumerate(np.abs(table)):
        equals = np.flatnonzero(scores == scores.max())
        own = sides[0].matrices[left[row]]
        column = min(equals, key=lambda c: _distance(own, sides[1].matrices[right[int(c)]]))
        z = float(table[row, column])
        log10_p = log10_bonferroni(log10_normal_sf(abs(z) / scale), 2 * table.shape[1])
        found.append(Match(left[row], right[int(column)], z, log10_p, table.shape[1]))
    return found


def _distance(a: Matrix, b: Matrix) -> tuple[bool, int]:
    """Other role first, then how far apart the layers are."""
    return a.role != b.role, abs((a.layer or 0) - (b.layer or 0))


def _role_test(a: WeightFacts, b: WeightFacts, scale: float) -> tuple[float, float, list[tuple[int, int]]]:
    """Best z over cyclic layer shifts, its corrected log10 p, and the pairs of that shift."""
    places: dict[tuple[str | None, int | None, int], int] = {
        (m.role, m.layer, m.columns): i for i, m in enumerate(b.matrices) if m.role is not None
    }
    depth = 1 + max((m.layer for m in b.matrices if m.layer is not None), default=0)
    best: tuple[float, list[tuple[int, int]]] = (0.0, [])
    for shift in range(depth):
        pairs = list(_shifted(a, b, places, shift, depth))
        if len(pairs) < 2:
            continue
        z = float(_pair_z(a, b, pairs).sum()) / (scale * np.sqrt(len(pairs)))
        if not best[1] or abs(z) > abs(best[0]):
            best = (z, pairs)
    log10_p = log10_bonferroni(log10_normal_sf(abs(best[0])), 2 * depth) if best[1] else 0.0
    return best[0], log10_p, best[1]


def _shifted(
    a: WeightFacts,
    b: WeightFacts,
    places: Mapping[tuple[str | None, int | None, int], int],
    shift: int,
    depth: int,
) -> list[tuple[int, int]]:
    pairs = []
    mine, theirs = a.informative, b.informative
    for index, matrix in enumerate(a.matrices):
        layer = None if matrix.layer is None else (matrix.layer + shift) % depth
        other = places.get((matrix.role, layer, matrix.columns))
        if other is None or not (mine[index] and theirs[other]):
            continue
        if a.counts[index] == b.counts[other] >= MIN_BITS:
            pairs.append((index, other))
    return pairs


def _pair_z(a: WeightFacts, b: WeightFacts, pairs: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """z of each pair: (bits - 2 unequal) / sqrt bits."""
    left, right = np.array(pairs, np.intp).T
    bits = a.counts[left].astype(np.float64)
    unequal = np.bitwise_count(a.words[left] ^ b.words[right]).sum(axis=1, dtype=np.int64)
    result: NDArray[np.float64] = (bits - 2.0 * unequal) / np.sqrt(bits)
    return result


def _agreement(
    a: WeightFacts, b: WeightFacts, matches: Sequence[Match], role_pairs: Sequence[tuple[int, int]]
) -> float:
    """Share of equal bits over the matched matrices (over the role pairs when none is matched)."""
    pairs = [(match.suspect, match.source) for match in matches if match.significant] or role_pairs
    bits = sum(int(a.counts[left]) for left, _ in pairs)
    unequal = sum(int(np.bitwise_count(a.words[left] ^ b.words[right]).sum()) for left, right in pairs)
    return 1.0 - unequal / bits if bits else 0.5


def _finding(
    a: WeightFacts,
    b: WeightFacts,
    matches: Sequence[Match],
    null: NDArray[np.float64],
    scale: float,
    log10_p: float,
    role_z: float,
    agreement: float,
) -> Finding:
    if not matches:
        return Skipped(SIGNAL, Component.WEIGHTS, msg("sketch.nothing_comparable"))
    matched = [match for match in matches if match.significant]
    bits = sum(int(a.counts[m.suspect]) for m in (matched or matches))
    low, high = (correlation_from_agreement(rate) for rate in wilson(agreement * bits, bits))
    quantiles = np.quantile(np.abs(null), (0.5, 0.99)) if null.size else np.zeros(2)
    return Measured(
        signal=SIGNAL,
        component=Component.WEIGHTS,
        statistic=float(np.median([abs(m.z) for m in matched]) if matched else role_z),
        null=msg("sketch.null", scale=round(scale, 3), matched=len(matched), comparable=len(matches)),
        log10_p=log10_p,
        effect=Effect(correlation_from_agreement(agreement), low, high),
        sample_size=bits,
        baseline=Baseline(msg("sketch.baseline"), float(quantiles[0]), float(quantiles[1])),
        evidence=_evidence(a.matrices, b.matrices, matched or matches),
        caveats=(msg("sketch.caveat_basis"),),
    )


def _evidence(
    left: Sequence[Matrix], right: Sequence[Matrix], matches: Sequence[Match], limit: int = 8
) -> tuple[Evidence, ...]:
    """A few matches, spread over the model, weakest included."""
    order = sorted(matches, key=lambda match: abs(match.z))
    step = max(1, len(order) // limit)
    return tuple(
        Evidence(
            left[match.suspect].tensor,
            msg("sketch.match", source=right[match.source].tensor, z=round(match.z, 1)),
        )
        for match in order[::step][:limit]
    )


assert WORDS == 8  # the fingerprint format fixes it
