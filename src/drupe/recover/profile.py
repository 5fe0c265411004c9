"""Token-response profile: what each hidden unit answers to the tokens both models know.

P = W diag(g) E' (units x tokens), E the embedding rows of shared tokens, W an FFN input matrix, g the norm gain
in front of it. A rotation Q of the residual stream cancels, (W Q)(E Q)' = W E'; a permutation of units permutes
rows. Rows and columns are centred, rows scaled to length one. Two votes name a unit's partner in the other model:
gate and up profiles (without a gate: input rows W_in and output columns W_out'). A hit = both votes are mutual
nearest neighbours and name the same unit. Layer 0 is left out: independent models converge there.

Null: the votes of unrelated models have nothing to agree on. Measured hits of independent pairs are at most 1 per
layer pair (mean 0.014 at 352 units, 0.3 to 0.6 at 256 of 1,536 units of real models); the Poisson mean used,
0.75 per layer pair, lies above all of them. Lies for early checkpoints of one training run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drupe.messages import msg
from drupe.model import Matrix
from drupe.readers.interface import FloatArray
from drupe.recover.parts import Parts, Place, runs
from drupe.recover.tokens import TokenRows, respond, shared_tokens, token_table, tokens_are_paired
from drupe.recover.units import mutual_nearest
from drupe.signals.interface import Baseline, Component, Effect, Evidence, Finding, Measured, Skipped
from drupe.stats import log10_bonferroni, log10_poisson_sf, wilson

SIGNAL = "weights.profile"
NULL_HITS = 0.75
MAX_UNITS = 1536
SEARCHED_LAYERS = 6
SPARING_BYTES = 1 << 30
MAX_CHANCE = 3
"""Hits of one layer pair that chance gives; a layer with no more stays out of the map."""
SIGNIFICANT = -6.0
DESCENT_SHARE = 0.1
"""Share of the units that answer alike from which descent is proven by them alone: one start trained twice on one
text has 0.03, the weakest descendants (a second training as long as the first) 0.08 to 0.9."""
MAX_DEPENDENCE = 0.7
"""Own agreement of the votes; trained models reach 0.66 and stay at null, tied gate and up do not."""
CONTROL = 1.5
"""The mean hits of the layers that do not correspond, times this, bound the null from below."""


STACKS = ("", "encoder.", "decoder.", "experts.0.")
Roles = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Votes:
    """The two roles whose matrices vote on each side."""

    suspect: Roles
    source: Roles


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """Hits over the layer pairs tested, and each suspect layer's best partner."""

    tested: bool
    hits: int = 0
    units: int = 0
    log10_p: float = 0.0
    layer_map: tuple[tuple[int, int], ...] = ()
    findings: tuple[Finding, ...] = ()
    borrowed: tuple[tuple[Matrix, Place], ...] = ()
    """What matrices with opaque names were found to be."""
    borrowed_is_suspect: bool = True

    @property
    def significant(self) -> bool:
        """Whether unit responses agree beyond chance."""
        return self.tested and self.log10_p <= SIGNIFICANT

    @property
    def proves_descent(self) -> bool:
        """Whether so many units agree that a shared start, trained on the same data, does not explain it."""
        return self.significant and self.hits >= DESCENT_SHARE * self.units


def compare(
    a: Parts, b: Parts, layer_pairs: Sequence[tuple[int, int]] | None, *, sparing: bool = False
) -> ProfileResult:
    """Count hits. ``layer_pairs`` = a recovered layer map; None = search every source layer for each.

    ``sparing``: the models are large, so three layers against those of equal relative depth, and only when that
    reads less than a GiB.
    """
    tokens = shared_tokens(a, b)
    if tokens is None:
        return skipped("profile.no_tokens")
    votes = _vote_roles(a, b)
    if votes is None:
        return skipped("profile.no_ffn")
    pairs = _layer_pairs(a, b, votes, layer_pairs, sparing=sparing)
    if not pairs:
        return skipped("profile.no_layers")
    if sparing and _bytes(b, votes.source, pairs) > SPARING_BYTES:
        return skipped("profile.too_large")
    embeds = (token_table(a, tokens.suspect), token_table(b, tokens.source))
    if layer_pairs is None and not tokens_are_paired(*embeds):
        return skipped("profile.tokens_unpaired")
    table: dict[int, list[tuple[int, int, int]]] = {}
    dependence = 0.0
    mine = {
        i: [_profile(a, role, i, embeds[0], MAX_UNITS) for role in votes.suspect]
        for i in {i for i, _ in pairs}
    }
    for j in sorted({j for _, j in pairs}):
        theirs = [_profile(b, role, j, embeds[1], None) for role in votes.source]
        dependence = max(dependence, vote_dependence(theirs))
        for i in [i for i, partner in pairs if partner == j]:
            dependence = max(dependence, vote_dependence(mine[i]))
            count, units = _hits(mine[i], theirs)
            table.setdefault(i, []).append((count, j, units))
    if dependence > MAX_DEPENDENCE:
        return skipped("profile.dependent_votes")
    return _result(table, tokens, searched=layer_pairs is None and not sparing)


def _layer_pairs(
    a: Parts, b: Parts, votes: Votes, given: Sequence[tuple[int, int]] | None, *, sparing: bool
) -> list[tuple[int, int]]:
    """Layer 0 is left out unless it is all there is."""
    if given is not None:
        return [pair for pair in given if min(pair) > 0 or len(given) == 1]
    left, right = (
        sorted(layer for name, layer in parts.places if name == roles[1] and layer is not None)
        for parts, roles in ((a, votes.suspect), (b, votes.source))
    )
    if not left or not right:
        return []
    if sparing:
        chosen = _evenly(left[1:] or left, 3)
        scale = (len(right) - 1) / max(len(left) - 1, 1)
        return [(i, right[max(round(left.index(i) * scale), min(1, len(right) - 1))]) for i in chosen]
    return [(i, j) for i in _evenly(left[1:] or left, SEARCHED_LAYERS) for j in right[1:] or right]


def _evenly(layers: Sequence[int], most: int) -> list[int]:
    return [layers[k] for k in sorted(set(np.linspace(0, len(layers) - 1, most).astype(int)))]


def _bytes(source: Parts, votes: Roles, pairs: Sequence[tuple[int, int]]) -> int:
    """What the source's whole FFN matrices cost, at 2 bytes a value."""
    sizes = [source.places[role, j].size for role in votes for j in {j for _, j in pairs}]
    return 2 * sum(sizes)


def vote_dependence(votes: Sequence[FloatArray]) -> float:
    """Mean |cosine| of the two profiles of one unit inside one model: 0.1 to 0.66 in trained models.

    Votes that agree inside each model (tied gate and up) agree between unrelated models too.
    """
    if votes[0].shape != votes[1].shape or not votes[0].size:
        return 0.0
    return float(np.abs(np.einsum("ut,ut->u", votes[0], votes[1])).mean())


def skipped(key: str) -> ProfileResult:
    """Not tested, because ..."""
    return ProfileResult(False, findings=(Skipped(SIGNAL, Component.WEIGHTS, msg(key)),))


def _vote_roles(a: Parts, b: Parts) -> Votes | None:
    """The two FFN roles that vote, in the stack with most layers on both sides (encoder before decoder).

    Of a mixture the first expert votes, unless more layers are dense. Only where no stack is on both sides, one is
    set against another: a mixture may have been made of a dense model.
    """
    same = [(stack, stack) for stack in STACKS]
    others = [(one, other) for one in STACKS for other in STACKS if one != other]
    for choices in (same, others):
        best: tuple[int, Votes | None] = (0, None)
        for left, right in choices:
            mine, theirs = (
                _votes_of({role for role, _ in parts.places}, stack)
                for parts, stack in ((a, left), (b, right))
            )
            if mine is None or theirs is None or mine[0][len(left) :] != theirs[0][len(right) :]:
                continue
            depth = min(
                sum(role == roles[1] for role, _ in parts.places) for parts, roles in ((a, mine), (b, theirs))
            )
            best = max(best, (depth, Votes(mine, theirs)), key=lambda entry: entry[0])
        if best[1] is not None:
            return best[1]
    return None


def _votes_of(roles: set[str], stack: str) -> Roles | None:
    gate, up, down = (stack + role for role in ("gate", "up", "down"))
    if {gate, up} <= roles:
        return gate, up
    return (up, down) if {up, down} <= roles else None


def _profile(parts: Parts, role: str, layer: int, tokens: FloatArray, most: int | None) -> FloatArray:
    """Centred, row-normalised responses (units, tokens) of one matrix, of at most ``most`` units."""
    place = parts.places.get((role, layer))
    is_output = role.rpartition(".")[2] == "down"
    if place is None or tokens.shape[1] != (place.rows if is_output else place.columns):
        return np.zeros((0, tokens.shape[0]), np.float32)
    units = place.columns if is_output else place.rows
    taken = runs(units, most or units)
    if is_output:
        return respond(parts.model.load(place).T[taken], tokens)
    matrix = parts.rows(place, taken)
    gain = parts.gain(role, layer)
    return respond(matrix if gain is None or gain.size != matrix.shape[1] else matrix * gain, tokens)


def _hits(left: Sequence[FloatArray], right: Sequence[FloatArray]) -> tuple[int, int]:
    """Units whose two votes are mutual and agree; large layers were thinned on the suspect's side."""
    partners = []
    for mine, theirs in zip(left, right, strict=True):
        if not mine.size or not theirs.size:
            return 0, 0
        partners.append(mutual_nearest(mine @ theirs.T))
    agree = (partners[0] == partners[1]) & (partners[0] >= 0)
    return int(agree.sum()), int(agree.size)


def _result(
    table: dict[int, list[tuple[int, int, int]]], tokens: TokenRows, *, searched: bool
) -> ProfileResult:
    best = {i: max(row) for i, row in table.items()}
    hits = sum(count for count, _, _ in best.values())
    units = sum(size for _, _, size in best.values())
    candidates = max(len(row) for row in table.values())
    others = [count for i, row in table.items() for count, j, _ in row if j != best[i][1]]
    expected = max(NULL_HITS, CONTROL * float(np.mean(others))) if others and searched else NULL_HITS
    mean = expected * len(best)
    log10_p = log10_poisson_sf(hits, mean)
    log10_p = log10_bonferroni(log10_p, candidates ** len(best) if searched else 1)
    low, high = wilson(hits, units)
    quantiles = np.quantile(others, (0.5, 0.99)) if others else (NULL_HITS, 4.0)
    finding = Measured(
        SIGNAL,
        Component.WEIGHTS,
        float(hits),
        msg("profile.null", mean=round(expected, 2), layers=len(best), tokens=len(tokens.suspect)),
        units,
        log10_p,
        Effect(hits / units if units else 0.0, low, high),
        Baseline(msg("profile.baseline" if others else "profile.baseline_published"), *map(float, quantiles)),
        tuple(
            Evidence(f"layer {i}", msg("profile.layer", source=j, hits=count, units=size))
            for i, (count, j, size) in sorted(best.items())
        ),
        () if tokens.by_string else (msg("profile.tokens_by_id"),),
    )
    layer_map = tuple((i, j) for i, (count, j, _) in sorted(best.items()) if count > MAX_CHANCE)
    return ProfileResult(True, hits, units, log10_p, layer_map, (finding,))
