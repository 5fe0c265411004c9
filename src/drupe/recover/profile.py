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
from numpy.typing import NDArray

from drupe.messages import msg
from drupe.model import Matrix
from drupe.readers.interface import Absent, FloatArray
from drupe.recover.parts import Parts, Place
from drupe.recover.units import finite, mutual_nearest
from drupe.signals.interface import Baseline, Component, Effect, Evidence, Finding, Measured, Skipped
from drupe.stats import log10_bonferroni, log10_poisson_sf, wilson

SIGNAL = "weights.profile"
NULL_HITS = 0.75
TOKENS = 600
MIN_TOKENS = 200
MAX_UNITS = 1536
SIGNIFICANT = -6.0
PAIRED_Z = 6.0
"""Mantel z of the token tables from which a null profile means something."""
MAX_DEPENDENCE = 0.7
"""Own agreement of the votes; trained models reach 0.66 and stay at null, tied gate and up do not."""
CONTROL = 1.5
"""The mean hits of the layers that do not correspond, times this, bound the null from below."""


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


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of the two embedding tables that belong to the same tokens."""

    suspect: NDArray[np.intp]
    source: NDArray[np.intp]
    by_string: bool


def shared_tokens(a: Parts, b: Parts, limit: int = TOKENS) -> TokenRows | None:
    """Tokens by string where both tokenizers are readable, else by id when the tables have equal length."""
    left, right = a.places.get(("embed", None)), b.places.get(("embed", None))
    if left is None or right is None:
        return None
    mine, theirs = a.model.tokenizer, b.model.tokenizer
    if not isinstance(mine, Absent) and not isinstance(theirs, Absent):
        pairs = [
            (index, theirs.pieces[piece])
            for piece, index in mine.pieces.items()
            if index < left.rows and theirs.pieces.get(piece, right.rows) < right.rows
        ]
        if len(pairs) >= MIN_TOKENS:
            return _token_rows(np.array(sorted(pairs), np.intp), limit, by_string=True)
    if left.rows == right.rows >= MIN_TOKENS:
        rows = np.arange(left.rows)
        return _token_rows(np.stack([rows, rows], axis=1), limit, by_string=False)
    return None


def _token_rows(pairs: NDArray[np.intp], limit: int, *, by_string: bool) -> TokenRows:
    """At most ``limit`` pairs (0: all), evenly spread over the suspect's ids."""
    if 0 < limit < len(pairs):
        pairs = pairs[np.linspace(0, len(pairs) - 1, limit).astype(np.intp)]
    return TokenRows(pairs[:, 0], pairs[:, 1], by_string)


def compare(a: Parts, b: Parts, layer_pairs: Sequence[tuple[int, int]] | None) -> ProfileResult:
    """Count hits. ``layer_pairs`` = a recovered layer map; None = search every source layer for each."""
    tokens = shared_tokens(a, b)
    if tokens is None:
        return skipped("profile.no_tokens")
    votes = _vote_roles(a, b)
    if votes is None:
        return skipped("profile.no_ffn")
    pairs = (
        _candidates(a, b)
        if layer_pairs is None
        else [p for p in layer_pairs if min(p) > 0 or len(layer_pairs) == 1]
    )
    if not pairs:
        return skipped("profile.no_layers")
    embeds = (_token_table(a, tokens.suspect), _token_table(b, tokens.source))
    if layer_pairs is None and pairing_z(*embeds) < PAIRED_Z:
        return skipped("profile.tokens_unpaired")
    cache: dict[tuple[int, int], list[FloatArray]] = {}
    dependence = 0.0
    table: dict[int, list[tuple[int, int, int]]] = {}
    for i, j in pairs:
        for side, layer, parts in ((0, i, a), (1, j, b)):
            if (side, layer) not in cache:
                cache[side, layer] = [_profile(parts, role, layer, embeds[side]) for role in votes]
        dependence = max(dependence, vote_dependence(cache[0, i]), vote_dependence(cache[1, j]))
        count, units = _hits(cache[0, i], cache[1, j])
        table.setdefault(i, []).append((count, j, units))
    if dependence > MAX_DEPENDENCE:
        return skipped("profile.dependent_votes")
    return _result(table, tokens, searched=layer_pairs is None)


def pairing_z(a: FloatArray, b: FloatArray, permutations: int = 30) -> float:
    """Whether the rows of two token tables belong to the same tokens (Mantel, Cancer Research 1967).

    A, B = cosines between the tokens inside each table, off the diagonal; z of sum(A B) against permuted tokens.
    No rotation changes it, and all models of one language agree: independent models 36 to 206, wrongly paired
    tokens below 1.2. Without it a null profile has no power.
    """
    left, right = (respond(table, np.eye(table.shape[1], dtype=np.float32)) for table in (a, b))
    first, second = left @ left.T, right @ right.T
    np.fill_diagonal(first, 0.0)
    np.fill_diagonal(second, 0.0)
    random = np.random.default_rng(0)
    orders = [random.permutation(len(second)) for _ in range(permutations)]
    null = np.array([float((first * second[np.ix_(order, order)]).sum()) for order in orders])
    spread = float(null.std())
    return (float((first * second).sum()) - float(null.mean())) / spread if spread > 0 else 0.0


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


def _vote_roles(a: Parts, b: Parts) -> tuple[str, str] | None:
    kinds = []
    for parts in (a, b):
        names = {role for role, _ in parts.places}
        kinds.append(
            ("gate", "up") if {"gate", "up"} <= names else ("up", "down") if {"up", "down"} <= names else None
        )
    return kinds[0] if kinds[0] == kinds[1] else None


def _candidates(a: Parts, b: Parts, most: int = 6) -> list[tuple[int, int]]:
    """A few suspect layers against every source layer; layer 0 of both left out."""
    left, right = a.layers[1:] or a.layers, b.layers[1:] or b.layers
    chosen = [left[k] for k in sorted(set(np.linspace(0, len(left) - 1, most).astype(int)))] if left else []
    return [(i, j) for i in chosen for j in right]


def _token_table(parts: Parts, rows: NDArray[np.intp]) -> FloatArray:
    embed = parts.load("embed")
    assert embed is not None
    return np.ascontiguousarray(embed[rows])


def _profile(parts: Parts, role: str, layer: int, tokens: FloatArray) -> FloatArray:
    """Centred, row-normalised responses (units, tokens) of one matrix."""
    matrix = parts.load(role, layer)
    if matrix is None:
        return np.zeros((0, tokens.shape[0]), np.float32)
    if role == "down":
        matrix = matrix.T
    if matrix.shape[1] != tokens.shape[1]:
        return np.zeros((0, tokens.shape[0]), np.float32)
    if role != "down":
        gain = parts.gain(role, layer)
        matrix = matrix if gain is None or gain.size != matrix.shape[1] else matrix * gain
    return respond(matrix, tokens)


def respond(matrix: FloatArray, tokens: FloatArray) -> FloatArray:
    """Responses of units (rows) to token embeddings: centred both ways, rows of length one."""
    response = finite(finite(matrix) @ finite(tokens).T)
    response -= response.mean(axis=0)
    response -= response.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(response, axis=1, keepdims=True)
    result: FloatArray = response / np.maximum(norms, 1e-20)
    return result


def _hits(left: Sequence[FloatArray], right: Sequence[FloatArray]) -> tuple[int, int]:
    """Units whose two votes are mutual and agree; large layers are thinned on the suspect's side."""
    partners = []
    for mine, theirs in zip(left, right, strict=True):
        if not mine.size or not theirs.size:
            return 0, 0
        step = max(1, mine.shape[0] // MAX_UNITS)
        partners.append(mutual_nearest(mine[::step] @ theirs.T))
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
    layer_map = tuple((i, j) for i, (_, j, _) in sorted(best.items()))
    return ProfileResult(True, hits, units, log10_p, layer_map, (finding,))
