"""Singular directions: did the suspect keep what the source learned, or only what the source started from?

A = U S V'. b_i = u_i' B v_i / s_i, the share of A's i-th direction that B keeps. b_top = mean of the first 8,
b_bulk = mean of i = 9 .. k/2, averaged over hidden matrices. A random start lives in the bulk; training makes
the top. Descent keeps both; a shared start, trained apart, keeps the bulk and loses the top. Taken in the
direction with the larger b_top, since a long training moves B's own top away.
Rules and thresholds were chosen on a development zoo; see docs/design/004-shared-initialisation.md.
Lies when the source is itself hardly trained (then its bulk is all there is): see ``trained``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from drupe.messages import msg
from drupe.readers.interface import FloatArray
from drupe.signals.interface import Baseline, Component, Effect, Finding, Measured

SIGNAL = "weights.spectrum"
TOP = 8
MAX_SIDE = 4096
MAX_PAIRS = 12
TRAINED_OUTLIER = 1.2
LINEAGE_TOP, LINEAGE_RATIO = 0.45, 0.85
SHARED_TOP, SHARED_RATIO, SHARED_GAP = 0.40, 0.75, 0.10


class Start(StrEnum):
    """What the spectra say of a pair whose weights are related in one basis."""

    LINEAGE = "lineage"
    SHARED = "shared_initialisation"
    UNDETERMINED = "undetermined"


@dataclass(frozen=True, slots=True)
class SpectrumResult:
    """Means over matrices, in the direction that keeps more of the top."""

    top: float
    bulk: float
    matrices: int
    start: Start
    trained: bool
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """Shares of A's directions that B keeps, and A's largest singular value over its random edge."""

    top: float
    bulk: float
    outlier: float


def kept_directions(a: FloatArray, b: FloatArray) -> Kept:
    """b_top and b_bulk of A's directions in B, both (rows, columns) of equal shape.

    ``outlier`` = s_1 / (sd(A) (sqrt m + sqrt c)), about 1 at a random start (Marchenko-Pastur edge).
    """
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    kept = np.einsum("ic,ic->i", u.T @ b, vt) / np.maximum(s, 1e-20)
    half = max(TOP + 1, len(s) // 2)
    edge = float(a.std()) * float(np.sqrt(a.shape[0]) + np.sqrt(a.shape[1]))
    return Kept(float(kept[:TOP].mean()), float(kept[TOP:half].mean()), float(s[0]) / edge if edge else 0.0)


def compare(pairs: Sequence[tuple[FloatArray, FloatArray]]) -> SpectrumResult | None:
    """Judge aligned (suspect, source) matrices; None without any."""
    usable = [
        (s, o) for s, o in pairs if s.size <= MAX_SIDE**2 and s.shape == o.shape and min(s.shape) > 2 * TOP
    ]
    if not usable:
        return None
    step = max(1, len(usable) // MAX_PAIRS)
    usable = usable[::step][:MAX_PAIRS]
    forward = [kept_directions(source, suspect) for suspect, source in usable]
    backward = [kept_directions(suspect, source) for suspect, source in usable]
    tops = max(([k.top for k in side] for side in (forward, backward)), key=lambda values: sum(values))
    chosen = forward if tops == [k.top for k in forward] else backward
    top, bulk = float(np.mean(tops)), float(np.mean([k.bulk for k in chosen]))
    trained = float(np.median([k.outlier for k in forward])) > TRAINED_OUTLIER
    ratios = [_ratio(side) for side in (forward, backward)]
    start = _judge(top, bulk, max(ratios))
    spread = 1.96 * float(np.std(tops)) / float(np.sqrt(len(usable)))
    finding = Measured(
        SIGNAL,
        Component.WEIGHTS,
        top / bulk if bulk else 0.0,
        msg("spectrum.null"),
        len(usable),
        effect=Effect(top, top - spread, top + spread),
        baseline=Baseline(msg("spectrum.baseline"), 0.0, 0.02),
        caveats=(msg("spectrum.caveat", top=round(top, 3), bulk=round(bulk, 3)),),
    )
    return SpectrumResult(top, bulk, len(usable), start, trained, (finding,))


def _ratio(side: Sequence[Kept]) -> float:
    """b_top / b_bulk of one direction."""
    bulk = float(np.mean([kept.bulk for kept in side]))
    return float(np.mean([kept.top for kept in side])) / bulk if bulk > 0 else 0.0


def _judge(top: float, bulk: float, largest_ratio: float) -> Start:
    """A shared start loses the top in both directions; a merge keeps top and bulk alike in one of them."""
    ratio = top / bulk if bulk > 0 else 0.0
    if top >= LINEAGE_TOP and ratio >= LINEAGE_RATIO:
        return Start.LINEAGE
    if top <= SHARED_TOP and largest_ratio <= SHARED_RATIO and bulk - top >= SHARED_GAP:
        return Start.SHARED
    return Start.UNDETERMINED
