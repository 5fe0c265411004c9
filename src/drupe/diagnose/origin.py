"""Where the weights come from: descent, a shared random start, nothing, or not known. Pure."""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from drupe.comparison import Comparison
from drupe.diagnose.pool import TRAINED_EDGE
from drupe.messages import Message, msg
from drupe.recover.findings import Basis, Lineage
from drupe.recover.spectrum import Start
from drupe.signals.interface import Skipped
from drupe.signals.sketch.compare import SIGNIFICANT

CLOSE_TABLE = 0.5
"""Relative change below which a table of tokens alone proves descent; a shared start is at 0.74 and more."""
MIN_GAINS = 0.5
"""Correlation of the gains below which a trained change is no descent: at most 0.46 from a shared start, 0.70 and
more in descendants, 0.55 when a merge holds two fifths of the source."""
SUGGESTIVE = -3.0
"""log10 p below which a null result is not taken for independence."""


class Origin(StrEnum):
    """What the weights say about where they come from."""

    DESCENT = "descent"
    SHARED_START = "shared_start"
    NONE = "none"
    EXCLUDED = "excluded"
    UNTESTED = "untested"
    UNDETERMINED = "undetermined"
    ABSENT = "absent"


def origin_of(c: Comparison) -> tuple[Origin, tuple[Message, ...], float | None]:
    """Descent, shared start, nothing, or not known, with the decisive number."""
    missing = [
        reason for reason in (c.suspect.absent.get("weights"), c.source.absent.get("weights")) if reason
    ]
    if missing:
        return Origin.ABSENT, tuple(missing), None
    silent = not c.suspect.weights.informative.any() or not c.source.weights.informative.any()
    if silent and (c.lineage is None or c.lineage.basis is Basis.NONE):
        return Origin.UNTESTED, (msg("diagnosis.uninformative"),), None
    if c.lineage is None:
        return _origin_from_sketch(c)
    if c.lineage.basis is Basis.NONE:
        return _origin_of_null(c, c.lineage)
    return _origin_of_match(c, c.lineage)


def _origin_from_sketch(c: Comparison) -> tuple[Origin, tuple[Message, ...], float | None]:
    log10_p = c.sketch.log10_p
    if not c.sketch.significant:
        return Origin.UNTESTED, (msg("diagnosis.sketch_null_untested"),), log10_p
    if not _learned_matches(c):
        return Origin.UNDETERMINED, (msg("diagnosis.one_tensor"),), log10_p
    if 2 * c.sketch.agreement - 1 >= 0.8 or c.same_values == 1.0:
        return Origin.DESCENT, (_sketch_reason(c),), log10_p
    return Origin.UNDETERMINED, (msg("diagnosis.start_or_descent_untested"),), log10_p


def _origin_of_null(c: Comparison, lineage: Lineage) -> tuple[Origin, tuple[Message, ...], float | None]:
    possible = lineage.map_possible
    assert possible is not None
    if min(c.sketch.log10_p, lineage.profile.log10_p) < SUGGESTIVE:
        log10_p = min(c.sketch.log10_p, lineage.profile.log10_p)
        return Origin.UNDETERMINED, (msg("diagnosis.suggestive", log10_p=round(log10_p, 1)),), log10_p
    if not possible.possible:
        return Origin.EXCLUDED, (msg("diagnosis.excluded", why=possible.reason),), c.sketch.log10_p
    if lineage.profile.tested:
        reason = msg(
            "diagnosis.null_tested",
            hits=lineage.profile.hits,
            units=lineage.profile.units,
            why=possible.reason,
        )
        return Origin.NONE, (reason,), lineage.profile.log10_p
    rows = lineage.rows
    if rows is not None and rows.tested:
        if rows.hits >= 2 and rows.log10_p <= SIGNIFICANT:
            return Origin.DESCENT, (msg("diagnosis.rows_permuted", hits=rows.hits),), rows.log10_p
        if rows.hits == 0:
            return (
                Origin.NONE,
                (msg("diagnosis.rows_null", tries=rows.tries, z=f"{rows.z:.1f}"),),
                rows.log10_p,
            )
        return Origin.UNDETERMINED, (msg("diagnosis.one_tensor"),), rows.log10_p
    because = [finding.reason for finding in lineage.profile.findings if isinstance(finding, Skipped)]
    reasons = [msg("diagnosis.null_untested", why=possible.reason), *because]
    return Origin.UNTESTED, tuple(reasons), c.sketch.log10_p


def _origin_of_match(c: Comparison, lineage: Lineage) -> tuple[Origin, tuple[Message, ...], float | None]:
    log10_p = min(lineage.evidence.log10_p, lineage.profile.log10_p)
    if lineage.pairs and not any(pair.proven for pair in lineage.pairs) and not lineage.evidence.by_role:
        return Origin.UNDETERMINED, (msg("diagnosis.no_pair_proven"),), log10_p
    if lineage.tables_only or lineage.basis is Basis.ROTATED:
        return _origin_of_part(c, lineage, log10_p)
    if not _learned_matches(c) and not lineage.profile.significant:
        return Origin.UNDETERMINED, (msg("diagnosis.one_tensor"),), log10_p
    start = lineage.spectrum.start if lineage.spectrum else None
    if _learned_apart(lineage) and start is not Start.SHARED:
        r = f"{lineage.gains:.2f}"
        return Origin.UNDETERMINED, (_sketch_reason(c), msg("diagnosis.learned_apart", r=r)), log10_p
    if _is_descent(lineage) or _plain(c, lineage):
        reasons: list[Message] = [_sketch_reason(c)]
        if lineage.profile.tested:
            reasons.append(_profile_reason(lineage))
        return Origin.DESCENT, tuple(reasons), log10_p
    if lineage.profile.tested and start is Start.SHARED and _powerful(c):
        return Origin.SHARED_START, (_sketch_reason(c), _shared_reason(lineage)), log10_p
    return Origin.UNDETERMINED, (_sketch_reason(c), msg("diagnosis.start_or_descent")), log10_p


def _origin_of_part(
    c: Comparison, lineage: Lineage, log10_p: float
) -> tuple[Origin, tuple[Message, ...], float | None]:
    if lineage.basis is Basis.ROTATED and not _is_descent(lineage):
        reasons = (_profile_reason(lineage), msg("diagnosis.start_or_descent"))
        return Origin.UNDETERMINED, reasons, lineage.profile.log10_p
    if lineage.basis is Basis.ROTATED:
        return Origin.DESCENT, (_profile_reason(lineage), msg("diagnosis.rotated")), lineage.profile.log10_p
    proven = [pair for pair in lineage.pairs if pair.proven]
    # Only closeness counts: one table of a shared start, trained on the same text, keeps its learned directions too.
    if any(pair.residual.rho < CLOSE_TABLE for pair in proven):
        names = ", ".join(sorted(pair.suspect.label for pair in proven))
        z = round(max((pair.z for pair in proven), default=0.0), 1)
        return Origin.DESCENT, (msg("diagnosis.tables_only", names=names, z=z),), log10_p
    return Origin.UNDETERMINED, (msg("diagnosis.tables_doubtful"),), log10_p


def _learned_apart(lineage: Lineage) -> bool:
    """Whether the gains, which hold nothing but what was learned, do not correspond although the weights changed.

    So it is when two trainings hardly left the start that they share: then all else agrees as in a descendant. White
    changes are left to the other rules, since noise on gains hides their correlation as well.
    """
    if lineage.gains is None or lineage.gains >= MIN_GAINS:
        return False
    changed = [pair for pair in lineage.pairs if pair.proven and pair.residual.edge > 0.0]
    if any(pair.folded is not None for pair in changed):
        return False  # scales that went into the matrices are missing from the gains
    return bool(changed) and float(np.median([pair.residual.edge for pair in changed])) >= TRAINED_EDGE


def _is_descent(lineage: Lineage) -> bool:
    """Many units answer alike, or the source's learned directions are kept: a shared start explains neither.

    A few units that answer alike are not enough: so do two trainings of one start on one text.
    """
    if lineage.profile.proves_descent:
        return True
    spectrum = lineage.spectrum
    return spectrum is not None and spectrum.start is Start.LINEAGE and spectrum.trained


def _plain(c: Comparison, lineage: Lineage) -> bool:
    """So close that no shared start explains it: nearly every bit, or every value, agrees."""
    return c.same_values == 1.0 or 2 * c.sketch.agreement - 1 >= 0.8


def _powerful(c: Comparison) -> bool:
    """Weights this alike would show profile hits if they descended: below, a null means nothing."""
    return c.sketch.agreement >= 0.55


def _learned_matches(c: Comparison) -> bool:
    """At least two matched matrices, or the sum over roles: one shared tensor may be a fixed transform."""
    if c.lineage is not None:
        return len(c.lineage.evidence.matched) >= 2 or bool(c.lineage.evidence.by_role)
    return len(c.sketch.matched) >= 2 or c.sketch.role_log10_p < c.sketch.content_log10_p


def _sketch_reason(c: Comparison) -> Message:
    found = c.lineage.evidence if c.lineage else None
    return msg(
        "diagnosis.sketch",
        matched=len(found.matched if found else c.sketch.matched),
        comparable=found.comparable if found else c.sketch.comparable,
        agreement=f"{c.sketch.agreement:.3f}",
        log10_p=round(found.log10_p if found else c.sketch.log10_p, 1),
    )


def _profile_reason(lineage: Lineage) -> Message:
    return msg("diagnosis.profile", hits=lineage.profile.hits, units=lineage.profile.units)


def _shared_reason(lineage: Lineage) -> Message:
    spectrum = lineage.spectrum
    top, bulk = (spectrum.top, spectrum.bulk) if spectrum else (0.0, 0.0)
    return msg(
        "diagnosis.shared_start",
        hits=lineage.profile.hits,
        units=lineage.profile.units,
        top=f"{top:.2f}",
        bulk=f"{bulk:.2f}",
    )
