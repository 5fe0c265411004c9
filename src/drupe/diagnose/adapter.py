"""What an adapter proves: against a base by its own declaration only, against another adapter by its values. Pure.

Thresholds and what was measured: docs/design/008-adapters.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drupe.comparison import Comparison
from drupe.diagnose.kinds import Kind, Transformation
from drupe.diagnose.origin import SUGGESTIVE, Origin
from drupe.diagnose.result import Diagnosis
from drupe.messages import Message, msg
from drupe.readers.adapters.fit import Outcome
from drupe.recover.adapter_factors import Rest
from drupe.recover.adapters import LOG10_ALPHA, Declared, DeltaPair, Deltas
from drupe.signals.sketch.compare import SIGNIFICANT
from drupe.stats import log10_at_least, log10_bonferroni

PROVEN_COSINE = 0.99
"""Median of the tensors, or at least two of them among strangers. One random start on one text gave up to 0.98 (0.988
of a tensor), larger batches more: only the order differs. Trained apart from another start: 0.60 (0.81)."""
ALIKE_COSINE = 0.95
"""Of one tensor of those whose median is beyond: it counts as taken over."""
DOUBTFUL_COSINE = 0.6
"""Median from which likeness is not taken for that of strangers on one base, which reaches 0.60."""
ROUNDING = 1e-3
"""Relative change that rounding of the factors explains (bf16: 0.004 of each factor is a cast, seen as one)."""
NOISE_EDGE = 1.08
"""Of stacked residuals: white ones of 8 rows and more stay below 19 times of 20; training gives 1.08 and more."""
TRAINED_EDGE = 1.15
NOISE_Z = 4.0
"""Standardised distance from Gaussian noise up to which it is taken for it: of a normal variable, 1 in 16,000."""


def diagnose_adapter(c: Comparison) -> Diagnosis | None:
    """The conclusions when a side is an adapter; None when neither is."""
    if c.declared_base is not None:
        return _against_base(c, c.declared_base)
    if c.suspect.adapter is None or c.source.adapter is None:
        return None
    if c.deltas is None:
        return _from_fingerprints(c)
    return _against_adapter(c, c.deltas)


def _result(
    c: Comparison, origin: Origin, reasons: Sequence[Message], log10_p: float | None = None
) -> Diagnosis:
    return Diagnosis(c, origin, (), False, 0.0, "undetermined", log10_p, tuple(reasons), ())


def _against_base(c: Comparison, found: Declared) -> Diagnosis:
    if not found.suspect_is_adapter:
        return _result(c, Origin.UNDETERMINED, (msg("adapters.source_is_adapter"),))
    facts = c.suspect.adapter
    assert facts is not None
    wrong = "; ".join(found.fit.wrong)
    match found.fit.outcome:
        case Outcome.OTHER_NAMES:
            return _result(
                c, Origin.UNTESTED, (msg("adapters.other_names", wrong=wrong, count=found.fit.count),)
            )
        case Outcome.OTHER_SHAPES if found.declares:
            return _result(c, Origin.UNDETERMINED, (msg("adapters.contradiction", wrong=wrong),))
        case Outcome.OTHER_SHAPES:
            return _result(
                c, Origin.EXCLUDED, (msg("adapters.excluded", wrong=wrong, count=found.fit.count),)
            )
        case Outcome.FITS if not found.declares:
            said = (
                msg("adapters.declares_other", base=facts.base)
                if facts.base
                else msg("adapters.declares_none")
            )
            return _result(c, Origin.UNDETERMINED, (msg("adapters.fits", count=len(found.fit.places)), said))
    base = found.place.text if found.place is not None else str(facts.base_digest)
    where = found.place.file if found.place is not None else "sha256"
    change = Transformation(Kind.ADAPTER, {"rank": facts.rank, "base": base})
    reasons = (
        msg("adapters.fits", count=len(found.fit.places)),
        msg("adapters.declares", base=base, where=where),
    )
    caveats = (msg("adapters.own_declaration"),)
    return Diagnosis(c, Origin.DESCENT, (change,), False, 0.0, "suspect_from_source", None, reasons, caveats)


def _from_fingerprints(c: Comparison) -> Diagnosis:
    """Sketches of matrices of low rank are no coins: only equality of what was sampled counts."""
    if c.same_values == 1.0:
        reason = msg("adapters.same_samples", count=int(c.suspect.weights.informative.sum()))
        return Diagnosis(
            c, Origin.DESCENT, (), True, 1.0, "undetermined", None, (reason,), (msg("diagnosis.sampled"),)
        )
    return _result(c, Origin.UNTESTED, (msg("adapters.needs_weights"),))


def _against_adapter(c: Comparison, deltas: Deltas) -> Diagnosis:
    if not deltas.common:
        if deltas.sizes_met:
            return _result(c, Origin.UNTESTED, (msg("adapters.nothing_common"),))
        return _result(c, Origin.EXCLUDED, (msg("adapters.nothing_common"),))
    speaking = [pair for pair in deltas.pairs if pair.speaks]
    if not speaking:
        return _result(c, Origin.UNTESTED, (msg("adapters.untrained"),))
    cosine = float(np.median([abs(pair.cosine) for pair in speaking]))
    if deltas.cast is not None or max(pair.after_scale for pair in speaking) <= ROUNDING:
        likeness = msg("adapters.likeness", cosine=f"{cosine:.3f}", count=len(speaking), proven=len(speaking))
        drawn = [pair for pair in speaking if pair.random_start]
        return _descent(c, deltas, speaking, speaking, _log10_p(speaking, drawn), likeness)
    proven = _proven(deltas, speaking, cosine)
    log10_p = _log10_p(speaking, proven)
    likeness = msg("adapters.likeness", cosine=f"{cosine:.3f}", count=len(speaking), proven=len(proven))
    if log10_p <= SIGNIFICANT:
        return _descent(c, deltas, speaking, proven, log10_p, likeness)
    if cosine >= DOUBTFUL_COSINE or proven:
        drawn_by_chance = all(pair.random_start for pair in speaking)
        why = msg("adapters.doubtful" if drawn_by_chance else "adapters.known_start")
        return _result(c, Origin.UNDETERMINED, (likeness, why), log10_p)
    if deltas.log10_signs <= SUGGESTIVE:
        why = msg("adapters.one_start", p=f"{deltas.log10_signs:.0f}")
        return _result(c, Origin.UNDETERMINED, (likeness, why), log10_p)
    return _result(c, Origin.NONE, (likeness, msg("adapters.strangers")), log10_p)


def _proven(deltas: Deltas, speaking: Sequence[DeltaPair], cosine: float) -> list[DeltaPair]:
    """The tensors that were taken over. One alone is no evidence; one start on one text makes all fairly alike."""
    drawn = [pair for pair in speaking if pair.random_start]
    inside = [pair for pair in drawn if pair.log10_contained <= LOG10_ALPHA]
    if 2 * len(inside) >= len(speaking):
        return inside
    alike = [pair for pair in drawn if abs(pair.cosine) >= ALIKE_COSINE and pair.log10_p <= LOG10_ALPHA]
    if cosine >= PROVEN_COSINE:
        return alike
    verbatim = [pair for pair in alike if abs(pair.cosine) >= PROVEN_COSINE]
    rest = [abs(pair.cosine) for pair in speaking if pair not in verbatim]
    apart = float(np.median(rest)) < DOUBTFUL_COSINE  # else all are alike, and these the most alike of them
    return verbatim if len(verbatim) >= 2 and apart else []


def _log10_p(speaking: Sequence[DeltaPair], proven: Sequence[DeltaPair]) -> float:
    """The better of two tests, corrected: so many of them, or the clearest one."""
    if not proven:
        return 0.0
    best = log10_bonferroni(min(min(pair.log10_p, pair.log10_contained) for pair in proven), len(speaking))
    return log10_bonferroni(min(log10_at_least(len(proven), len(speaking), LOG10_ALPHA), best), 2)


def _descent(
    c: Comparison,
    deltas: Deltas,
    speaking: Sequence[DeltaPair],
    proven: Sequence[DeltaPair],
    log10_p: float,
    likeness: Message,
) -> Diagnosis:
    """``log10_p`` 0: equal values of a start that was not drawn by chance, for which there is no null."""
    equal = [pair for pair in speaking if pair.equal == 1.0]
    kept = {pair.tensor: pair for pair in (*proven, *equal)}
    inside = sum(pair.size for pair in kept.values()) / sum(pair.size for pair in speaking)
    change, reason = _change(list(kept.values()), deltas)
    unchanged = len(equal) == len(speaking) and deltas.others_equal is not False
    share = inside * deltas.common / max(deltas.total, 1)
    changes = (change,) if change is not None else ()
    if not changes and not unchanged and deltas.others_equal is False:
        changes = (Transformation(Kind.FINE_TUNED, {"relative_change": 0.0}),)
    sampled = len(deltas.pairs) < deltas.common
    return Diagnosis(
        c,
        Origin.DESCENT,
        changes,
        unchanged,
        share if share < 1.0 - 1e-9 else 1.0,
        "undetermined",
        log10_p or None,
        (likeness, reason),
        (msg("diagnosis.sampled"),) if sampled else (),
    )


def _change(kept: Sequence[DeltaPair], deltas: Deltas) -> tuple[Transformation | None, Message]:
    """What was done to the differences, from the least to the most."""
    rho = float(np.median([pair.rho for pair in kept]))
    rest = max(pair.after_scale for pair in kept)
    if max(pair.rho for pair in kept) <= ROUNDING:
        return None, msg("adapters.same_differences")
    if deltas.cast is not None:
        return Transformation(Kind.CAST, {"from": "F32", "to": deltas.cast}), msg("diagnosis.cast_exact")
    if rest <= ROUNDING:
        factors = {pair.tensor: round(pair.scale, 5) for pair in kept}
        return Transformation(Kind.RESCALED, {"factors": factors}), msg("adapters.rescaled")
    left = deltas.rest
    if left.edge is None or (left.edge < TRAINED_EDGE and not _is_noise(left)):
        key = "adapters.change_untold" if left.edge is None else "adapters.change_between"
        change = Transformation(Kind.UNKNOWN_CHANGE, {"relative_change": round(rho, 5)})
        return change, msg(key, rho=f"{rho:.3f}")
    if left.edge < TRAINED_EDGE:
        half = 1.96 * left.sigma / float(np.sqrt(2.0 * max(left.values, 1)))
        numbers = {"relative_sigma": left.sigma, "low": left.sigma - half, "high": left.sigma + half}
        change = Transformation(Kind.GAUSSIAN_NOISE, {key: round(value, 6) for key, value in numbers.items()})
        return change, msg("adapters.noise", edge=f"{left.edge:.2f}")
    change = Transformation(Kind.FINE_TUNED, {"relative_change": round(rho, 5)})
    return change, msg("adapters.trained", edge=f"{left.edge:.2f}", rho=f"{rho:.3f}")


def _is_noise(left: Rest) -> bool:
    """Whether nothing contradicts Gaussian noise of one relative size: direction, distribution, sizes.

    A white rest alone does not say it: the first steps of training are white as well.
    """
    white = left.edge is not None and left.edge < NOISE_EDGE
    return white and abs(left.kurtosis_z) <= NOISE_Z and left.levels_z <= NOISE_Z
