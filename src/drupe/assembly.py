"""A suspect against one or several sources, part by part: which part comes from where, and what that makes of all.

A model that is one whole is compared as a whole. Otherwise every part of the suspect is compared with the part of
any source that is most like it: by sketch, then by name, then by shapes. The whole inherits what its parts do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from drupe.comparison import AUTO, FULL, Budget, Comparison, compare, coverage_level
from drupe.diagnose import Diagnosis, Kind, Origin, PartResult, Transformation, diagnose
from drupe.diagnose.kinds import Value
from drupe.division import Part, divide
from drupe.messages import Message, msg
from drupe.model import Model
from drupe.recover.merge import find_mixture
from drupe.recover.placing import finding_of, place, reason_of
from drupe.roles import is_table_role
from drupe.signals import declared
from drupe.signals.interface import Component, Finding, Measured, Skipped
from drupe.signals.sketch.compare import SIGNIFICANT
from drupe.signals.sketch.compare import compare as compare_sketches
from drupe.signals.sketch.facts import WeightFacts
from drupe.subject import Subject

_TRAINED = frozenset(
    {
        Kind.FINE_TUNED,
        Kind.CONTINUED_PRETRAINING,
        Kind.LOW_RANK_UPDATE,
        Kind.UNKNOWN_CHANGE,
        Kind.GAUSSIAN_NOISE,
    }
)
"""Changes of one source that a mixture with others may explain better."""
MIN_OVERLAP = 0.3
"""Share of the values in matrices of equal size from which two parts may be the same part."""
_STRENGTH = (
    *(Origin.DESCENT, Origin.UNDETERMINED, Origin.UNTESTED, Origin.SHARED_START),
    *(Origin.NONE, Origin.EXCLUDED, Origin.ABSENT),
)
"""Which origin speaks for a whole of several: doubt about one part is doubt about the whole, unless one is proven."""

Candidate = tuple[int, Part]
"""Number of the source, and its part."""


def examine(suspect: Subject, sources: Sequence[Subject], budget: Budget = AUTO) -> Diagnosis:
    """The diagnosis of a suspect against its first source and any further ones."""
    if suspect.fingerprint.adapter is not None or sources[0].fingerprint.adapter is not None:
        return _examine_adapter(suspect, sources, budget)
    mine = divide(suspect)
    theirs = [(number, part) for number, source in enumerate(sources) for part in divide(source)]
    if len(mine) == 1 and (len(theirs) == 1 or (len(sources) == 1 and _is_opaque(suspect))):
        return diagnose(compare(suspect, sources[0], budget))
    whole = compare(suspect, sources[0], budget, deep=False)
    levels = {coverage_level(suspect, source, budget) for source in sources}
    inner = FULL if levels == {"full"} else replace(budget, full_below=0)
    total = sum(part.parameters for part in mine) + mine[0].common
    results = [_examine_part(part, theirs, inner, total) for part in mine]
    if not any(result.diagnosis for result in results):
        return diagnose(
            compare(suspect, sources[0], budget)
        )  # nothing corresponds: that is a result of the whole
    level = next((level for level in ("headers", "sample") if level in levels), "full")
    combined = _combine(replace(whole, level=level), results, suspect, sources)
    if len(mine) > 1 or level != "full" or suspect.model is None:
        return combined
    models = [side.model for side in sources if side.model is not None]
    if combined.origin is not Origin.DESCENT or len(models) < len(sources):
        return combined
    return _placed(_merged(combined, suspect.model, models, sources), suspect.model, models, sources)


def _is_opaque(suspect: Subject) -> bool:
    """Whether no name tells a role: then nothing divides the model, and its matrices may be of any part."""
    matrices = suspect.fingerprint.weights.matrices
    return bool(matrices) and not any(matrix.role for matrix in matrices)


def _placed(
    found: Diagnosis, suspect: Model, models: Sequence[Model], sources: Sequence[Subject]
) -> Diagnosis:
    """The same with what three points tell: which of them lies between the two others."""
    findings: list[Finding] = []
    reasons: list[Message] = []
    for placing in place(suspect, models):
        names = [msg("placing.suspect")]
        names += [msg("placing.source", number=k + 1, name=_name_of(sources[k], k)) for k in placing.sources]
        findings.append(finding_of(placing, names))
        reason = reason_of(placing, names)
        reasons += [reason] if reason is not None else []
    comparison = replace(found.comparison, findings=(*found.comparison.findings, *findings))
    return replace(found, comparison=comparison, reasons=(*found.reasons, *reasons))


def _merged(
    found: Diagnosis, suspect: Model, models: Sequence[Model], sources: Sequence[Subject]
) -> Diagnosis:
    """The same with the parents named, when several of the sources together explain what one of them does not."""
    if not _TRAINED & found.kinds:
        return found
    mixture = find_mixture(suspect, models)
    if mixture is None:
        return found
    parents: list[Value] = [
        {"name": _name_of(sources[k], k), "source": k, "share": None if share is None else round(share, 4)}
        for k, share in mixture.shares
    ]
    change = Transformation(Kind.MERGED, {"parents": parents, "method": mixture.method})
    others = tuple(item for item in found.transformations if item.kind not in _TRAINED)
    reason = msg("diagnosis.merged", count=len(parents), rest=f"{mixture.unexplained:.2f}")
    return replace(
        found,
        transformations=(change, *others),
        direction=found.direction if mixture.method == "task_arithmetic" else "suspect_from_source",
        reasons=(*found.reasons, reason),
    )


def _name_of(source: Subject, number: int) -> str:
    names = source.fingerprint.declared.names
    return names[0] if names else f"source {number + 1}"


def _examine_adapter(suspect: Subject, sources: Sequence[Subject], budget: Budget) -> Diagnosis:
    """An adapter is one whole: against each source, the one that says most speaks."""
    found = [diagnose(compare(suspect, source, budget)) for source in sources]
    number = min(range(len(found)), key=lambda place: (_STRENGTH.index(found[place].origin), place))
    best = found[number]
    if len(sources) == 1:
        return best
    first = replace(found[0].comparison, declared=best.comparison.declared, findings=best.comparison.findings)
    return replace(best, comparison=first, parts=(PartResult("adapter", 1.0, number, "model", best),))


def _examine_part(part: Part, theirs: Sequence[Candidate], budget: Budget, total: int) -> PartResult:
    share = part.parameters / total if total else 0.0
    candidates = [
        (number, other)
        for number, other in theirs
        if part.name == other.name
        or _overlap(part.subject.fingerprint.weights, other.subject.fingerprint.weights) >= MIN_OVERLAP
    ]
    if not candidates:
        return PartResult(part.name, share)
    number, other = _most_alike(part, candidates)
    found = diagnose(compare(part.subject, other.subject, budget))
    if found.log10_p is not None:
        found = replace(found, log10_p=min(0.0, found.log10_p + float(np.log10(len(candidates)))))
    own, common = _inherited(part, found)
    return PartResult(
        part.name, share, number, other.name, found, own / max(total, 1), common / max(total, 1)
    )


def _inherited(part: Part, diagnosis: Diagnosis) -> tuple[float, float]:
    """Inherited values: the part's own, and those that it shares (a token table: in all parts or in none)."""
    if diagnosis.origin is not Origin.DESCENT:
        return 0.0, 0.0
    found = diagnosis.shared_fraction * (part.parameters + part.common)
    common = float(part.common) if part.common and _table_is_proven(diagnosis) else 0.0
    return min(max(found - common, 0.0), float(part.parameters)), common


def _table_is_proven(diagnosis: Diagnosis) -> bool:
    c = diagnosis.comparison
    if c.lineage is not None and c.lineage.pairs:
        return any(pair.proven and is_table_role(pair.place[0]) for pair in c.lineage.pairs)
    return any(is_table_role(c.suspect.weights.matrices[match.suspect].role) for match in c.sketch.matched)


def _most_alike(part: Part, candidates: Sequence[Candidate]) -> Candidate:
    """By what the sketches prove, else by name, else by shapes; the first source in case of doubt."""
    if len(candidates) == 1:
        return candidates[0]
    mine = part.subject.fingerprint.weights

    def likeness(candidate: Candidate) -> tuple[float, bool, float, int]:
        number, other = candidate
        theirs = other.subject.fingerprint.weights
        log10_p = compare_sketches(mine, theirs).log10_p
        proven = log10_p if log10_p <= SIGNIFICANT else 0.0
        return -proven, part.name == other.name, _overlap(mine, theirs), -number

    return max(candidates, key=likeness)


def _overlap(a: WeightFacts, b: WeightFacts) -> float:
    """Values in matrices of equal size / values of the smaller part."""
    left, right = (Counter((m.rows, m.columns) for m in side.matrices) for side in (a, b))
    common = sum((left & right)[size] * size[0] * size[1] for size in left & right)
    smaller = min(sum(count * size[0] * size[1] for size, count in side.items()) for side in (left, right))
    return common / smaller if smaller else 0.0


def _combine(
    whole: Comparison, parts: Sequence[PartResult], suspect: Subject, sources: Sequence[Subject]
) -> Diagnosis:
    found = [(part, part.diagnosis) for part in parts if part.diagnosis is not None]
    origins = {diagnosis.origin for _, diagnosis in found} or {Origin.ABSENT}
    origin = next(origin for origin in _STRENGTH if origin in origins)
    proven = [(part, diagnosis) for part, diagnosis in found if diagnosis.origin is Origin.DESCENT]
    numbers = [diagnosis.log10_p for _, diagnosis in found if diagnosis.log10_p is not None]
    log10_p = min(0.0, min(numbers) + float(np.log10(len(parts)))) if numbers else None
    transformations = _transformations([diagnosis for _, diagnosis in proven])
    directions = {diagnosis.direction for _, diagnosis in proven}
    comparison = replace(
        whole,
        findings=(*(finding for pair in found for finding in _findings(*pair)), *whole.findings),
        declared=_declared(whole, proven, suspect, sources),
    )
    return Diagnosis(
        comparison=comparison,
        origin=origin,
        transformations=transformations,
        unchanged=bool(proven) and all(diagnosis.unchanged for _, diagnosis in proven),
        shared_fraction=_shared(parts),
        direction=directions.pop() if len(directions) == 1 else "undetermined",
        log10_p=log10_p,
        reasons=tuple(reason for part in parts for reason in _reasons(part)),
        caveats=tuple({str(caveat): caveat for _, d in found for caveat in d.caveats}.values()),
        foreign=tuple(part.name for part in parts if _is_foreign(part)) if proven else (),
        parts=tuple(parts),
    )


def _shared(parts: Sequence[PartResult]) -> float:
    """What the parts inherit, tensors that several of them share counted once."""
    own = sum(part.inherited for part in parts)
    return min(1.0, own + max((part.common_inherited for part in parts), default=0.0))


def _is_foreign(part: PartResult) -> bool:
    """Whether a part was compared and is no source's, wholly or in some of its matrices."""
    if part.diagnosis is None:
        return True
    return part.diagnosis.origin in (Origin.NONE, Origin.EXCLUDED) or bool(part.diagnosis.foreign)


def _transformations(diagnoses: Sequence[Diagnosis]) -> tuple[Transformation, ...]:
    """Each kind once, as the largest part shows it; maps of names are joined."""
    merged: dict[Kind, Transformation] = {}
    for diagnosis in diagnoses:
        for item in diagnosis.transformations:
            known = merged.setdefault(item.kind, item)
            if known is not item and item.kind is Kind.RENAMED:
                merged[item.kind] = Transformation(item.kind, _joined(known, item))
    return tuple(merged.values())


def _joined(one: Transformation, other: Transformation) -> dict[str, Value]:
    maps = [item.parameters.get("map") for item in (one, other)]
    table: dict[str, Value] = {}
    for entry in maps:
        if isinstance(entry, dict):
            table.update(entry)
    return {"count": len(table), "map": table}


def _reasons(part: PartResult) -> list[Message]:
    share = f"{part.share:.1%}"
    if part.diagnosis is None:
        return [msg("assembly.no_such_part", part=part.name, share=share)]
    return [
        msg("assembly.reason", part=part.name, share=share, like=str(part.like), why=reason)
        for reason in part.diagnosis.reasons
    ]


def _findings(part: PartResult, diagnosis: Diagnosis) -> list[Finding]:
    """What was measured on the weights of one part, said so."""
    found: list[Finding] = []
    for finding in diagnosis.comparison.findings:
        if finding.component is not Component.WEIGHTS:
            continue
        if isinstance(finding, Measured):
            found.append(
                replace(finding, caveats=(msg("assembly.on_part", part=part.name), *finding.caveats))
            )
        elif isinstance(finding, Skipped):
            found.append(replace(finding, reason=msg("assembly.skipped", part=part.name, why=finding.reason)))
        else:
            found.append(finding)
    return found


def _declared(
    whole: Comparison,
    proven: Sequence[tuple[PartResult, Diagnosis]],
    suspect: Subject,
    sources: Sequence[Subject],
) -> declared.DeclaredResult:
    """Disclosed only when every source is named from which a part descends."""
    numbers = sorted({part.source for part, _ in proven if part.source is not None})
    results = [
        whole.declared
        if number == 0
        else declared.compare(
            suspect.fingerprint.declared, sources[number].fingerprint.declared, suspect.texts
        )
        for number in numbers or [0]
    ]
    silent = [result for result in results if result.disclosure != "disclosed"]
    return silent[0] if silent else results[0]
