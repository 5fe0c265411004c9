"""The token-response profile when one side's names say nothing: which two matrices could be gate and up?

The known side gives the shapes. Every ordered pair of the opaque side's matrices of that shape is tried as the two
votes against every layer of the known side (layer 0 left out); the best count of agreeing units is judged against
all tries. Norm gains of the opaque side are not known and taken as folded: if they are not, the sketches, which no
gain moves, would have matched.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drupe.messages import msg
from drupe.model import Matrix
from drupe.readers.interface import FloatArray
from drupe.recover.parts import Parts, Place
from drupe.recover.profile import MAX_DEPENDENCE, NULL_HITS, SIGNAL, ProfileResult, skipped, vote_dependence
from drupe.recover.tokens import respond, shared_tokens, token_table, tokens_are_paired
from drupe.recover.units import mutual_nearest
from drupe.signals.interface import Baseline, Component, Effect, Evidence, Measured
from drupe.stats import log10_bonferroni, log10_poisson_sf, wilson

MAX_MATRICES = 64
MAX_LAYERS = 4
MAX_UNITS = 512


def compare_opaque(opaque: Parts, known: Parts, *, opaque_is_suspect: bool) -> ProfileResult:
    """Count hits of the best pair of matrices; ``borrowed`` names what it found."""
    roles = {role for role, _ in known.places}
    votes = ("gate", "up") if {"gate", "up"} <= roles else ("up", "down") if {"up", "down"} <= roles else None
    layers = (known.layers[1:] or known.layers)[-MAX_LAYERS:]
    if votes is None or not layers:
        return skipped("profile.no_ffn")
    shapes = [_shape(known.places[role, layers[0]]) for role in votes]
    firsts, seconds = (_of_shape(opaque, shape) for shape in shapes)
    embeds = _embeds(opaque, known.places.get(("embed", None)), {*firsts, *seconds})
    if not firsts or not seconds or not embeds or len(firsts) > MAX_MATRICES:
        return skipped("profile.no_ffn")
    best: tuple[int, Matrix, Matrix, Matrix, int] | None = None
    units = tries = 0
    for embed in embeds:
        counts, units = _counts(opaque, known, embed, firsts, seconds, votes, layers)
        if counts is None:
            continue
        tries += counts.size
        i, k, j = (int(place) for place in np.unravel_index(int(counts.argmax()), counts.shape))
        if best is None or counts[i, k, j] > best[0]:
            best = (int(counts[i, k, j]), embed, firsts[i], seconds[k], layers[j])
    if best is None:
        return skipped("profile.no_tokens")
    return _result(best, units, tries, votes, opaque_is_suspect=opaque_is_suspect)


def _shape(matrix: Matrix) -> tuple[int, int]:
    return matrix.rows, matrix.columns


def _of_shape(parts: Parts, shape: tuple[int, int]) -> list[Matrix]:
    return [matrix for matrix in parts.model.matrices if _shape(matrix) == shape]


def _embeds(parts: Parts, known: Matrix | None, used: set[Matrix]) -> list[Matrix]:
    """The longest matrices of the known width: the token tables."""
    if known is None:
        return []
    fitting = [m for m in parts.model.matrices if m.columns == known.columns and m not in used]
    return sorted(fitting, key=lambda m: (m.rows != known.rows, -m.rows))[:2]


def _counts(
    opaque: Parts,
    known: Parts,
    embed: Matrix,
    firsts: list[Matrix],
    seconds: list[Matrix],
    votes: tuple[str, str],
    layers: tuple[int, ...],
) -> tuple[NDArray[np.int64] | None, int]:
    """Agreeing units for every (first, second, layer); a matrix cannot be both votes."""
    named = Parts(opaque.model, {("embed", None): embed})
    tokens = shared_tokens(named, known)
    if tokens is None:
        return None, 0
    mine, theirs = token_table(named, tokens.suspect), token_table(known, tokens.source)
    if not tokens_are_paired(mine, theirs):
        return None, 0
    right = [[_thin(_known(known, role, layer, theirs)) for layer in layers] for role in votes]
    left = [
        [_thin(respond(_unit_rows(opaque, matrix, role), mine)) for matrix in group]
        for role, group in zip(votes, (firsts, seconds), strict=True)
    ]
    partners = [
        np.array([[mutual_nearest(row @ column.T) for column in theirs_of] for row in mine_of])
        for mine_of, theirs_of in zip(left, right, strict=True)
    ]
    if any(vote_dependence([a, b]) > MAX_DEPENDENCE for a, b in zip(*right, strict=True)):
        return None, 0
    first, second = partners[0][:, None], partners[1][None]
    counts: NDArray[np.int64] = ((first == second) & (first >= 0)).sum(axis=-1)
    for i, matrix in enumerate(firsts):
        if matrix in seconds:
            counts[i, seconds.index(matrix)] = 0
    return counts, partners[0].shape[-1]


def _known(parts: Parts, role: str, layer: int, tokens: FloatArray) -> FloatArray:
    matrix = parts.places[role, layer]
    values = _unit_rows(parts, matrix, role)
    gain = None if role == "down" else parts.gain(role, layer)
    return respond(values if gain is None or gain.size != values.shape[1] else values * gain, tokens)


def _unit_rows(parts: Parts, matrix: Matrix, role: str) -> FloatArray:
    values = parts.model.load(matrix)
    return values.T if role == "down" else values


def _thin(responses: FloatArray) -> FloatArray:
    return responses[:MAX_UNITS] if responses.shape[0] <= MAX_UNITS else responses


def _result(
    best: tuple[int, Matrix, Matrix, Matrix, int],
    units: int,
    tries: int,
    votes: tuple[str, str],
    *,
    opaque_is_suspect: bool,
) -> ProfileResult:
    hits, embed, first, second, layer = best
    log10_p = log10_bonferroni(log10_poisson_sf(hits, NULL_HITS), tries)
    low, high = wilson(hits, units)
    finding = Measured(
        SIGNAL,
        Component.WEIGHTS,
        float(hits),
        msg("profile.null_opaque", mean=NULL_HITS, tries=tries),
        units,
        log10_p,
        Effect(hits / units if units else 0.0, low, high),
        Baseline(msg("profile.baseline_published"), NULL_HITS, 4.0),
        (Evidence(first.tensor, msg("profile.opaque_pair", other=second.tensor, layer=layer, hits=hits)),),
    )
    places: tuple[tuple[Matrix, Place], ...] = (
        (embed, ("embed", None)),
        (first, (votes[0], layer)),
        (second, (votes[1], layer)),
    )
    return ProfileResult(True, hits, units, log10_p, ((layer, layer),), (finding,), places, opaque_is_suspect)
