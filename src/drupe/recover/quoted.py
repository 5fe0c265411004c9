"""Statistics that the public quotes as proof, each with the null that it needs. No accusation rests on any of them.

- **Norm gains.** Their cosine is near 1 for any two models: gains are positive with a small spread. Expected without
  any relation: mu_a mu_b / sqrt((mu_a^2 + s_a^2)(mu_b^2 + s_b^2)). What could speak is the centred correlation r of
  the dimensions. Null: dimensions in any other order, the same in all layers. Then E sum r = 0 and
  Var sum r = sum_lm A_lm B_lm / (n - 1), with A, B the correlations between the layers of each side: exact, and
  layers count as the dependent ones they are. (In January 2026 cosines of 0.95 were called proof; r was 0.01.)
- **Deviations over depth.** The spread of q, k, v, o, layer by layer, is a smooth curve in every model: two smooth
  curves correlate. Null: one curve shifted along the depth, cyclically: p is at least 1 / layers.
- **Axes of the embeddings.** The first principal axes of token tables are the tokens' frequency and language: models
  that share neither weights nor data share them. No null by permutation is right, so none is given; beside it stands
  what independent models show.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from drupe.messages import Message, msg
from drupe.model import Model
from drupe.readers.interface import FloatArray
from drupe.recover.parts import Parts, parts_of
from drupe.recover.tokens import shared_tokens, token_table
from drupe.signals.interface import Baseline, Component, Effect, Evidence, Finding, Measured
from drupe.signals.sketch.facts import WeightFacts
from drupe.stats import log10_normal_sf

MIN_LAYERS, MIN_SIZE = 3, 16
AXES = 8
AXES_UNRELATED = (0.19, 0.36)
"""Median and 99 % quantile of the shared part of the first axes, independent pairs of one tokenizer (dev half)."""
ATTENTION = ("q", "k", "v", "o")
Curves = Mapping[str, NDArray[np.float64]]


def quoted(a: Model, b: Model, facts: tuple[WeightFacts, WeightFacts]) -> tuple[Finding, ...]:
    """The findings that apply."""
    sides = parts_of(a), parts_of(b)
    found = (_gains(a, b), _deviations(*facts), _axes(*sides))
    return tuple(finding for finding in found if finding is not None)


def expected_cosine(mean_a: float, sd_a: float, mean_b: float, sd_b: float) -> float:
    """Cosine of two vectors of those means and deviations whose entries have nothing to do with each other.

    >>> round(expected_cosine(0.24, 0.03, 0.34, 0.086), 3)
    0.962
    """
    return mean_a * mean_b / float(np.sqrt((mean_a**2 + sd_a**2) * (mean_b**2 + sd_b**2)))


def gain_test(a: FloatArray, b: FloatArray) -> tuple[float, float]:
    """Mean centred correlation over layers, and its z under one permutation of the dimensions for all layers.

    ``a``, ``b``: (layers, dimensions), no constant row.
    """
    left, right = (_standard(side) for side in (a, b))
    size = left.shape[1]
    r = np.einsum("ld,ld->l", left, right) / size
    variance = float(((left @ left.T / size) * (right @ right.T / size)).sum()) / (size - 1)
    return float(r.mean()), float(r.sum() / np.sqrt(variance)) if variance > 0 else 0.0


def _standard(rows: FloatArray) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    wide -= wide.mean(axis=1, keepdims=True)
    result: NDArray[np.float64] = wide / wide.std(axis=1, keepdims=True)
    return result


def gain_correlation(a: Model, b: Model, renamed: Mapping[str, str]) -> float | None:
    """Mean over a's norm gains of the largest centred correlation with any of b's; None without enough that vary.

    ``renamed``: a's tensor -> b's. Any of them, since names may lie about layers. Gains start as ones, so all that
    they hold is learned: two trainings of one start agree by at most 0.46, also when they hardly left it, descendants
    by 0.70 and more.
    """
    found = _paired_gains(a, b, {theirs: mine for mine, theirs in renamed.items()})
    if found is None:
        return None
    left, right = (_standard(side) for side in found)
    return float((left @ right.T / left.shape[1]).max(axis=1).mean())


def _paired_gains(a: Model, b: Model, renamed: Mapping[str, str]) -> tuple[FloatArray, FloatArray] | None:
    """Gains of both sides (layers, dimensions). Layer 0 is left out: its norm sees the embeddings."""
    pairs = []
    for place, theirs in sorted(b.roles.tensors.items(), key=str):
        mine = a.roles.tensors.get(place) or renamed.get(theirs)
        if mine is None or place[0].rpartition(".")[2] not in ("norm1", "norm2") or not place[1]:
            continue
        left, right = a.load_vector(mine), b.load_vector(theirs)
        if left.shape == right.shape and _varies(left) and _varies(right):
            pairs.append((left, right))
    if len(pairs) < MIN_LAYERS or len({left.size for left, _ in pairs}) > 1 or pairs[0][0].size < MIN_SIZE:
        return None
    return np.stack([left for left, _ in pairs]), np.stack([right for _, right in pairs])


def _gains(a: Model, b: Model) -> Finding | None:
    found = _paired_gains(a, b, {})
    if found is None:
        return None
    left, right = found
    pairs = list(zip(left, right, strict=True))
    cosine = float(np.median([_cosine(mine, theirs) for mine, theirs in pairs]))
    expected = float(np.median([expected_cosine(m.mean(), m.std(), t.mean(), t.std()) for m, t in pairs]))
    r, z = gain_test(left, right)
    log10_p = min(0.0, log10_normal_sf(abs(z)) + float(np.log10(2.0)))
    half = 1.96 * abs(r / z) if z else 0.0
    return Measured(
        "weights.gains",
        Component.WEIGHTS,
        cosine,
        msg("quoted.gains_null", expected=f"{expected:.3f}"),
        left.size,
        log10_p,
        Effect(r, r - half, r + half),
        Baseline(msg("quoted.gains_baseline"), expected, expected),
        (),
        (_weak(log10_p),),
    )


def _varies(vector: FloatArray) -> bool:
    return bool(np.isfinite(vector).all() and vector.std() > 0)


def _cosine(a: FloatArray, b: FloatArray) -> float:
    return float(a @ b) / (float(np.linalg.norm(a) * np.linalg.norm(b)) or 1.0)


def _weak(log10_p: float | None) -> Message:
    return msg("quoted.weak" if log10_p is not None and log10_p < -2.0 else "quoted.not_significant")


def shift_test(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Correlation of two curves of equal length, and the share of cyclic shifts of one that reach it."""
    shifts = [float(np.corrcoef(a, np.roll(b, shift))[0, 1]) for shift in range(len(b))]
    return shifts[0], sum(value >= shifts[0] - 1e-12 for value in shifts) / len(shifts)


def _deviations(a: WeightFacts, b: WeightFacts) -> Finding | None:
    curves = [_curves(side) for side in (a, b)]
    tests = [
        (role, *shift_test(curves[0][role], curves[1][role]), len(curves[0][role]))
        for role in ATTENTION
        if role in curves[0] and role in curves[1] and len(curves[0][role]) == len(curves[1][role])
    ]
    if not tests:
        return None
    r = float(np.mean([value for _, value, _, _ in tests]))
    p = min(1.0, len(tests) * min(p for _, _, p, _ in tests))
    layers = tests[0][3]
    log10_p = float(np.log10(p))
    return Measured(
        "weights.deviations",
        Component.WEIGHTS,
        r,
        msg("quoted.deviations_null", layers=layers),
        layers * len(tests),
        log10_p,
        evidence=tuple(
            Evidence(role, msg("quoted.deviations_role", r=f"{value:.2f}", p=f"{p:.2f}"))
            for role, value, p, _ in tests
        ),
        caveats=(_weak(log10_p),),
    )


def _curves(facts: WeightFacts) -> Curves:
    """Role -> root mean square of its sampled rows, by layer, where it varies."""
    found: dict[str, list[tuple[int, float]]] = {}
    for matrix, rms in zip(facts.matrices, facts.rms, strict=True):
        if matrix.role in ATTENTION and matrix.layer is not None and np.isfinite(rms):
            found.setdefault(matrix.role, []).append((matrix.layer, float(rms)))
    curves = {role: np.array([value for _, value in sorted(rows)]) for role, rows in found.items()}
    return {role: curve for role, curve in curves.items() if len(curve) >= MIN_LAYERS and curve.std() > 0}


def shared_axes(a: FloatArray, b: FloatArray, axes: int = AXES) -> float:
    """|U_a' U_b|^2 / axes, U the first principal axes of the tokens: 1 for the same span, axes / n by chance."""
    bases = []
    for table in (a, b):
        centred = table.astype(np.float64) - table.mean(axis=0)
        bases.append(np.linalg.eigh(centred @ centred.T)[1][:, -axes:])
    return float(np.square(bases[0].T @ bases[1]).sum()) / axes


def _axes(a: Parts, b: Parts) -> Finding | None:
    tokens = shared_tokens(a, b)
    if tokens is None:
        return None
    tables = token_table(a, tokens.suspect), token_table(b, tokens.source)
    if min(min(table.shape) for table in tables) <= AXES or not all(
        np.isfinite(table).all() for table in tables
    ):
        return None
    share = shared_axes(*tables)
    return Measured(
        "weights.embedding_axes",
        Component.WEIGHTS,
        share,
        msg("quoted.axes_null", axes=AXES),
        len(tokens.suspect),
        baseline=Baseline(msg("quoted.axes_baseline"), *AXES_UNRELATED),
        caveats=(_weak(None),),
    )
