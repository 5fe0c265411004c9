"""What an adapter proves: against a base by its own declaration only, against another adapter by its values. Pure.

Thresholds and what was measured: docs/design/008-adapters.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drupe.comparison import Comparison
from drupe.diagnose.kinds import Kind, Transformation
from drupe.diagnose.origin import Origin
from drupe.diagnose.result import Diagnosis
from drupe.messages import Message, msg
from drupe.readers.adapters.fit import Outcome
from drupe.recover.adapters import LOG10_ALPHA, Declared, DeltaPair, Deltas
from drupe.signals.sketch.compare import SIGNIFICANT
from drupe.stats import log10_at_least, log10_bonferroni

PROVEN_COSINE = 0.95
"""Of one tensor. Trained apart on one base: up to 0.70, from one random start on one text 0.91; trained on: 0.96."""
VERBATIM_COSINE = 0.99
"""Of a tensor that was taken over, where most others were not; two of them are needed."""
DOUBTFUL_COSINE = 0.6
"""Median from which likeness is not taken for that of strangers on one base, which reaches 0.49."""
ROUNDING = 1e-3
"""Relative change that rounding of the factors explains (bf16: 0.004 of each factor is a cast, seen as one)."""
SCALE_TOLERANCE = 0.005
NOISE_EDGE = 1.08
"""Of stacked residuals: white ones of 8 rows and more stay below 19 times of 20; 3 steps of training give 1.3."""
TRAINED_EDGE = 1.15


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
        return _result(c, Origin.EXCLUDED, (msg("adapters.nothing_common"),))
    speaking = [pair for pair in deltas.pairs if pair.speaks]
    if not speaking:
        return _result(c, Origin.UNTESTED, (msg("adapters.untrained"),))
    proven = [pair for pair in speaking if abs(pair.cosine) >= PROVEN_COSINE and pair.log10_p <= LOG10_ALPHA]
    cosine = float(np.median([abs(pair.cosine) for pair in speaking]))
    if (
        cosine < PROVEN_COSINE
    ):  # one alike tensor is no evidence, and one start on one text makes all fairly alike
        proven = [pair for pair in proven if abs(pair.cosine) >= VERBATIM_COSINE]
        proven = proven if len(proven) >= 2 else []
    log10_p = _log10_p(speaking, proven)
    likeness = msg("adapters.likeness", cosine=f"{cosine:.3f}", count=len(speaking), proven=len(proven))
    if all(pair.equal == 1.0 for pair in speaking) or log10_p <= SIGNIFICANT:
        return _descent(c, deltas, speaking, proven, log10_p, likeness)
    if cosine >= DOUBTFUL_COSINE or proven:
        return _result(c, Origin.UNDETERMINED, (likeness, msg("adapters.doubtful")), log10_p)
    return _result(c, Origin.NONE, (likeness, msg("adapters.strangers")), log10_p)


def _log10_p(speaking: Sequence[DeltaPair], proven: Sequence[DeltaPair]) -> float:
    """The better of two tests, corrected: so many of them, or the clearest one."""
    if not proven:
        return 0.0
    best = log10_bonferroni(min(pair.log10_p for pair in proven), len(speaking))
    return log10_bonferroni(min(log10_at_least(len(proven), len(speaking), LOG10_ALPHA), best), 2)


def _descent(
    c: Comparison,
    deltas: Deltas,
    speaking: Sequence[DeltaPair],
    proven: Sequence[DeltaPair],
    log10_p: float,
    likeness: Message,
) -> Diagnosis:
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
        log10_p,
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
    if rest <= SCALE_TOLERANCE:
        factors = {pair.tensor: round(pair.scale, 5) for pair in kept}
        return Transformation(Kind.RESCALED, {"factors": factors}), msg("adapters.rescaled")
    if deltas.edge is None or NOISE_EDGE <= deltas.edge < TRAINED_EDGE:
        change = Transformation(Kind.UNKNOWN_CHANGE, {"relative_change": round(rho, 5)})
        return change, msg("adapters.change_untold", rho=f"{rho:.3f}")
    if deltas.edge < NOISE_EDGE:
        half = 1.96 * deltas.sigma / float(np.sqrt(2.0 * max(deltas.values, 1)))
        numbers = {"relative_sigma": deltas.sigma, "low": deltas.sigma - half, "high": deltas.sigma + half}
        change = Transformation(Kind.GAUSSIAN_NOISE, {key: round(value, 6) for key, value in numbers.items()})
        return change, msg("adapters.noise", edge=f"{deltas.edge:.2f}")
    change = Transformation(Kind.FINE_TUNED, {"relative_change": round(rho, 5)})
    return change, msg("adapters.trained", edge=f"{deltas.edge:.2f}", rho=f"{rho:.3f}")
