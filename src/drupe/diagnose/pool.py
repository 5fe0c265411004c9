"""What the changed pairs have in common, pooled, and whether it is noise, training or an update of low rank. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drupe.diagnose.kinds import Kind, Transformation
from drupe.diagnose.noise import hidden_change, noise
from drupe.messages import Message, msg
from drupe.recover.align import SAMPLE_ROWS
from drupe.recover.findings import Lineage, PairFacts
from drupe.residual import Residual
from drupe.roles import is_table_role

TRAINED_EDGE = 1.15
"""Median edge (see residual.spectral_edge) from which a residual is training by itself."""
CLEAR_EDGE, MIN_CLEAR = 1.2, 2
"""Edge of a single pair, eight standard deviations from white, and how many such pairs are no accident."""
MIN_NOISE_PAIRS, DOUBTFUL_Z = 4, 3.0
"""From fewer pairs than these a residual with such a pooled z is not called noise."""
TRAINED_Z = 6.0
"""Pooled z of the log edges from which a residual has a trained component."""
EDGE_SD = 0.025
"""Standard deviation of log edge under the null, measured."""
CONTINUED_RHO = 0.30
"""Relative change from which training counts as continued pretraining; a convention."""
MAX_NOISE_KURTOSIS = 8.0
"""Excess kurtosis that noise does not have: 0 when Gaussian, 6 when in proportion to Gaussian weights."""
FLOAT_ROUNDING = 3e-7
"""Relative change that float32 sums leave when they are taken in another order."""
ROUNDING = 3.0
"""Changes below this many rounding errors of the storage type cannot be told from rounding."""
REWRITE, TURNED = 6.0, 1e-4
"""Change under a rotation, in rounding errors of the storage type, and as such in float32, that is no change."""
MAX_FEW_ROWS = 0.5
RANK_SLACK = 0.15
"""Share of a rank that rounding may add to it in single matrices."""
MIN_TRAINED_EDGE = 1.05
"""Mean edge below which a trained component, however significant, is too small to be named."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The changes of the values, largest first; ``unchanged`` = every compared value is equal."""

    changes: tuple[Transformation, ...]
    unchanged: bool
    reasons: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Pool:
    """Medians over the pairs whose residual spectrum was computed."""

    rho: float
    sigma: float
    floor: float
    edge: float
    mean_edge: float
    trained_z: float
    kurtosis: float
    values: int
    pairs: int
    clear: int
    """Pairs whose own edge is beyond what white residuals show."""


def pairs_of(lineage: Lineage) -> list[PairFacts]:
    """Proven pairs; the matrices of layers speak for the whole where they are most of it."""
    proven = [pair for pair in lineage.pairs if pair.proven]
    hidden = [pair for pair in proven if pair.place[1] is not None]
    outside = [pair for pair in proven if pair.place[1] is None and not is_table_role(pair.place[0])]
    if sum(pair.suspect.size for pair in hidden) < sum(pair.suspect.size for pair in outside):
        hidden = []  # a net without known layers
    changed = [pair for pair in hidden or proven if pair.residual.equal < 1.0]
    beyond = [pair for pair in changed if pair.residual.sigma >= ROUNDING * pair.residual.floor]
    return beyond or changed or proven


def pool_of(residuals: Sequence[Residual]) -> Pool:
    """Of the residuals whose spectrum is known, or of all where none is; not empty."""
    deep = [residual for residual in residuals if not np.isnan(residual.edge)] or list(residuals)
    logs = [float(np.log(residual.edge)) for residual in deep if residual.edge > 0]
    return Pool(
        rho=float(np.median([r.rho for r in deep])),
        sigma=float(np.median([r.sigma for r in deep])),
        floor=float(np.median([r.floor for r in deep])),
        edge=float(np.median([r.edge for r in deep])),
        mean_edge=float(np.exp(np.mean(logs))) if logs else 1.0,
        trained_z=float(np.mean(logs) / EDGE_SD * np.sqrt(len(logs))) if logs else 0.0,
        kurtosis=float(np.median([r.kurtosis for r in deep])),
        values=sum(residual.size for residual in deep),
        pairs=len(deep),
        clear=sum(residual.edge >= CLEAR_EDGE for residual in deep),
    )


def noise_or_training(pool: Pool, lineage: Lineage) -> Outcome:
    """White residuals are noise; one stronger along some direction than under random signs is training."""
    if _is_rewrite(pool, lineage):
        return Outcome((), False, (msg("diagnosis.only_rounding", sigma=f"{pool.sigma:.5f}"),))
    rank = _low_rank(lineage)
    if rank is not None:
        modules = sorted({pair.place[0] for pair in pairs_of(lineage)})
        change = Transformation(Kind.LOW_RANK_UPDATE, {"rank": rank, "modules": modules})
        return Outcome((change,), False, (msg("diagnosis.low_rank", rank=rank),))
    if np.isnan(pool.edge):
        change = Transformation(Kind.UNKNOWN_CHANGE, {"relative_change": round(pool.rho, 5)})
        return Outcome((change,), False, (msg("diagnosis.unseen_change", rho=f"{pool.rho:.4f}"),))
    if not is_trained(pool):
        if pool.sigma < ROUNDING * max(pool.floor, 1e-7):
            return Outcome((), False, (msg("diagnosis.only_rounding", sigma=f"{pool.sigma:.5f}"),))
        if pool.pairs < MIN_NOISE_PAIRS and pool.trained_z >= DOUBTFUL_Z:
            change = Transformation(Kind.UNKNOWN_CHANGE, {"relative_change": round(pool.rho, 5)})
            return Outcome((change,), False, (msg("diagnosis.few_pairs", **numbers_of(pool)),))
        if pool.kurtosis > MAX_NOISE_KURTOSIS:
            change = Transformation(Kind.UNKNOWN_CHANGE, {"relative_change": round(pool.rho, 5)})
            return Outcome((change,), False, (msg("diagnosis.white_heavy", **numbers_of(pool)),))
        return Outcome((white_noise(pool, lineage),), False, (msg("diagnosis.white", **numbers_of(pool)),))
    if _few_rows(lineage):
        change = Transformation(Kind.UNKNOWN_CHANGE, {"relative_change": round(pool.rho, 5)})
        return Outcome((change,), False, (msg("diagnosis.few_rows"),))
    if pool.edge < TRAINED_EDGE and abs(pool.kurtosis) < 0.15:
        changes = (white_noise(pool, lineage), training(pool))
        return Outcome(changes, False, (msg("diagnosis.noise_and_training", **numbers_of(pool)),))
    return Outcome((training(pool),), False, (msg("diagnosis.trained", **numbers_of(pool)),))


def is_trained(pool: Pool) -> bool:
    """Whether the residual has directions that neither noise nor rounding has, in all pairs or in some."""
    if pool.edge >= TRAINED_EDGE or pool.clear >= MIN_CLEAR:
        return True
    return pool.trained_z >= TRAINED_Z and pool.mean_edge >= MIN_TRAINED_EDGE


def _few_rows(lineage: Lineage) -> bool:
    """Whether the changes of every changed matrix are confined to some of its rows, the others equal."""
    changed = [pair.residual.changed_rows for pair in pairs_of(lineage) if pair.residual.equal < 1.0]
    return bool(changed) and max(changed) < MAX_FEW_ROWS


def _low_rank(lineage: Lineage) -> int | None:
    """The rank when every changed matrix moved in few directions only: at most a quarter of its side."""
    known = [
        pair for pair in pairs_of(lineage) if pair.residual.rank is not None and pair.residual.equal < 1.0
    ]
    side = 1 << 30 if lineage.full else SAMPLE_ROWS
    limits = [min(pair.suspect.rows, pair.suspect.columns, side) / 4 for pair in known]
    ranks = [pair.residual.rank or 0 for pair in known]
    if not any(ranks):
        return None
    rank = Counter(rank for rank in ranks if rank).most_common(1)[0][0]
    most = rank + max(1.0, RANK_SLACK * rank)  # rounding may add a direction
    low = [found <= max(limit, most) for found, limit in zip(ranks, limits, strict=True)]
    return rank if all(low) and rank <= float(np.median(limits)) else None


def _is_rewrite(pool: Pool, lineage: Lineage) -> bool:
    """A rotation is undone up to the rounding of both files and of the sums; what is left below that is no change."""
    return lineage.basis.value == "rotated" and pool.rho < max(REWRITE * pool.floor, TURNED)


def numbers_of(pool: Pool) -> dict[str, str]:
    """What the sentences on noise and training quote."""
    return {
        "edge": f"{pool.edge:.2f}",
        "z": f"{pool.trained_z:.1f}",
        "kurtosis": f"{pool.kurtosis:.2f}",
        "rho": f"{pool.rho:.3f}",
    }


def seen_change(pool: Pool, lineage: Lineage) -> float:
    """Relative size from which a trained change would be seen in the residual, white as it is.

    The level is that of the pooled test (:func:`is_trained`).
    """
    least = max(float(np.log(MIN_TRAINED_EDGE)), TRAINED_Z * EDGE_SD / float(np.sqrt(max(pool.pairs, 1))))
    level = min(float(np.exp(least)), TRAINED_EDGE)
    return hidden_change(pairs_of(lineage), level) * pool.sigma


def white_noise(pool: Pool, lineage: Lineage) -> Transformation:
    """Noise, with the largest trained change that it could hide."""
    return noise(pool.sigma, pool.floor, pool.values, lineage.rotation_excess, seen_change(pool, lineage))


def training(pool: Pool) -> Transformation:
    """A trained change, by its size."""
    kind = Kind.FINE_TUNED if pool.rho < CONTINUED_RHO else Kind.CONTINUED_PRETRAINING
    return Transformation(kind, {"relative_change": round(pool.rho, 5)})
