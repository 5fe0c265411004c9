"""Comparison -> Diagnosis: where the weights come from and what was done to them, ranked, with reasons. Pure.

The order of the questions matters and is that of docs/design/005-residual.md: equality and casts, then grids and
zeros on stored values, then scale, then noise against training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from drupe.compare import Comparison
from drupe.messages import Message, msg
from drupe.recover.lineage import Basis, Lineage, PairFacts
from drupe.recover.spectrum import Start
from drupe.uninformative import State

Value = str | int | float | bool | None | Mapping[str, "Value"] | Sequence["Value"]

WHITE_EDGE = 1.06
TRAINED_EDGE = 1.30
TRAINED_Z = 6.0
WHOLE = 0.95
"""Share of the comparable values that must be proven before a model counts as inherited as a whole."""


class Kind(StrEnum):
    """``transformations[].kind`` of the report: a closed list."""

    RENAMED = "renamed"
    RESHARDED = "resharded"
    REFORMATTED = "reformatted"
    CAST = "cast"
    QUANTISED = "quantised"
    GAUSSIAN_NOISE = "gaussian_noise"
    RESCALED = "rescaled"
    PERMUTED = "permuted"
    ROTATED = "rotated"
    FINE_TUNED = "fine_tuned"
    LOW_RANK_UPDATE = "low_rank_update"
    CONTINUED_PRETRAINING = "continued_pretraining"
    MERGED = "merged"
    PRUNED = "pruned"
    WIDTH_PRUNED = "width_pruned"
    LAYERS_DROPPED = "layers_dropped"
    LAYERS_REORDERED = "layers_reordered"
    DEPTH_UPSCALED = "depth_upscaled"
    MOE_UPCYCLED = "moe_upcycled"
    VOCABULARY_CHANGED = "vocabulary_changed"
    ADAPTER = "adapter"
    DISTILLED = "distilled"
    UNKNOWN_CHANGE = "unknown_change"


SURFACE = frozenset(
    {
        Kind.RENAMED,
        Kind.RESHARDED,
        Kind.REFORMATTED,
        Kind.CAST,
        Kind.QUANTISED,
        Kind.GAUSSIAN_NOISE,
        Kind.RESCALED,
        Kind.PERMUTED,
        Kind.ROTATED,
    }
)
"""Changes with no trained component: undoing them gives the source."""


@dataclass(frozen=True, slots=True)
class Transformation:
    """One thing that was done to the source, with its public parameters."""

    kind: Kind
    parameters: Mapping[str, Value] = field(default_factory=dict)


class Origin(StrEnum):
    """What the weights say about where they come from."""

    DESCENT = "descent"
    SHARED_START = "shared_start"
    NONE = "none"
    EXCLUDED = "excluded"
    UNTESTED = "untested"
    UNDETERMINED = "undetermined"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The conclusions about the weights; the other components are read from the comparison."""

    comparison: Comparison
    origin: Origin
    transformations: tuple[Transformation, ...]
    unchanged: bool
    shared_fraction: float
    direction: str
    log10_p: float | None
    reasons: tuple[Message, ...]
    caveats: tuple[Message, ...]

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of all transformations."""
        return frozenset(item.kind for item in self.transformations)


def diagnose(comparison: Comparison) -> Diagnosis:
    """Draw the conclusions that the findings carry, and no others."""
    origin, reasons, log10_p = _origin(comparison)
    if origin is not Origin.DESCENT:
        caveats = _damage(comparison)
        return Diagnosis(comparison, origin, (), False, 0.0, "undetermined", log10_p, reasons, caveats)
    transformations, unchanged, more = _transformations(comparison)
    fraction = _shared_fraction(comparison)
    direction = _direction(comparison, transformations)
    return Diagnosis(
        comparison,
        origin,
        transformations,
        unchanged,
        fraction,
        direction,
        log10_p,
        (*reasons, *more),
        (*_damage(comparison), *_sample_caveats(comparison)),
    )


def _origin(c: Comparison) -> tuple[Origin, tuple[Message, ...], float | None]:
    """Descent, shared start, nothing, or not known, with the decisive number."""
    missing = [reason for reason in (c.suspect.absent.get("weights"), c.source.absent.get("weights")) if reason]
    if missing:
        return Origin.ABSENT, tuple(missing), None
    if not c.suspect.weights.informative.any() or not c.source.weights.informative.any():
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
    if not possible.possible:
        return Origin.EXCLUDED, (msg("diagnosis.excluded", why=possible.reason),), c.sketch.log10_p
    if lineage.profile.tested:
        reason = msg(
            "diagnosis.null_tested", hits=lineage.profile.hits, units=lineage.profile.units, why=possible.reason
        )
        return Origin.NONE, (reason,), lineage.profile.log10_p
    rows = lineage.rows
    if rows is not None and rows.tested:
        if rows.hits >= 2:
            return Origin.DESCENT, (msg("diagnosis.rows_permuted", hits=rows.hits),), rows.log10_p
        if rows.hits == 0:
            return Origin.NONE, (msg("diagnosis.rows_null", tries=rows.tries, z=f"{rows.z:.1f}"),), rows.log10_p
        return Origin.UNDETERMINED, (msg("diagnosis.one_tensor"),), rows.log10_p
    return Origin.UNTESTED, (msg("diagnosis.null_untested", why=possible.reason),), c.sketch.log10_p


def _origin_of_match(c: Comparison, lineage: Lineage) -> tuple[Origin, tuple[Message, ...], float | None]:
    log10_p = min(lineage.evidence.log10_p, lineage.profile.log10_p)
    if lineage.tables_only or lineage.basis is Basis.ROTATED:
        return _origin_of_part(c, lineage, log10_p)
    if not _learned_matches(c):
        return Origin.UNDETERMINED, (msg("diagnosis.one_tensor"),), log10_p
    start = lineage.spectrum.start if lineage.spectrum else None
    trained = lineage.spectrum.trained if lineage.spectrum else True
    if lineage.profile.significant or (start is Start.LINEAGE and trained) or _plain(c, lineage):
        reasons: list[Message] = [_sketch_reason(c)]
        if lineage.profile.tested:
            reasons.append(_profile_reason(lineage))
        return Origin.DESCENT, tuple(reasons), log10_p
    if lineage.profile.tested and start is not Start.LINEAGE and _powerful(c):
        return Origin.SHARED_START, (_sketch_reason(c), _shared_reason(lineage)), log10_p
    return Origin.UNDETERMINED, (_sketch_reason(c), msg("diagnosis.start_or_descent")), log10_p


def _origin_of_part(
    c: Comparison, lineage: Lineage, log10_p: float
) -> tuple[Origin, tuple[Message, ...], float | None]:
    if lineage.basis is Basis.ROTATED:
        return Origin.DESCENT, (_profile_reason(lineage), msg("diagnosis.rotated")), lineage.profile.log10_p
    start = lineage.spectrum.start if lineage.spectrum else None
    proven = [pair for pair in lineage.pairs if pair.proven]
    equal = any(pair.residual.rho < 0.5 for pair in proven)
    if equal or start is Start.LINEAGE:
        names = ", ".join(sorted(pair.suspect.label for pair in proven))
        z = round(max((pair.z for pair in proven), default=0.0), 1)
        return Origin.DESCENT, (msg("diagnosis.tables_only", names=names, z=z),), log10_p
    return Origin.UNDETERMINED, (msg("diagnosis.tables_doubtful"),), log10_p


def _plain(c: Comparison, lineage: Lineage) -> bool:
    """So close that no shared start explains it: nearly every bit, or every value, agrees."""
    return c.same_values == 1.0 or 2 * c.sketch.agreement - 1 >= 0.8


def _powerful(c: Comparison) -> bool:
    """Weights this alike would show profile hits if they descended: below, a null means nothing."""
    return c.sketch.agreement >= 0.55


def _learned_matches(c: Comparison) -> bool:
    """At least two matched matrices, or the sum over roles: one shared tensor may be a fixed transform."""
    if c.lineage is not None:
        return len(c.lineage.evidence.matched) >= 2 or c.lineage.evidence.by_role
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


def _damage(c: Comparison) -> tuple[Message, ...]:
    """Tensors that cannot speak: not finite, all zero, constant."""
    caveats = []
    for side, facts in (("suspect", c.suspect.weights), ("source", c.source.weights)):
        for state in (State.NOT_FINITE, State.ALL_ZERO, State.FEW_VALUES, State.SMOOTH, State.FIXED_TRANSFORM):
            count = int((facts.states == state).sum())
            if count:
                caveats.append(
                    msg(f"diagnosis.state_{state.name.lower()}", side=msg(f"diagnosis.{side}"), count=count)
                )
    return tuple(caveats)


def _sample_caveats(c: Comparison) -> tuple[Message, ...]:
    return () if c.level == "full" else (msg("diagnosis.sampled"),)


def _transformations(c: Comparison) -> tuple[tuple[Transformation, ...], bool, tuple[Message, ...]]:
    """What was done, the largest change first; whether nothing was; reasons."""
    surface = [*_renamed(c), *_resharded(c)]
    if c.lineage is None or not c.lineage.pairs:
        unchanged = c.same_values == 1.0
        changes = [] if unchanged else [Transformation(Kind.UNKNOWN_CHANGE, {"relative_change": None})]
        if c.lineage is not None and c.lineage.basis is Basis.ROTATED:
            changes.insert(0, Transformation(Kind.ROTATED))
        if c.lineage is not None and c.lineage.rows is not None:
            changes.insert(0, Transformation(Kind.PERMUTED, {"what": "units"}))
        return tuple(changes + surface), unchanged, ()
    from drupe.diagnose_residual import classify

    outcome = classify(c, c.lineage)
    changes = [*outcome.changes, *_layers(c, c.lineage), *_vocabulary(c), *_moved(c.lineage), *surface]
    return tuple(changes), outcome.unchanged and not changes, outcome.reasons


def _renamed(c: Comparison) -> list[Transformation]:
    """Renames from the names alone, or, when the names are opaque, from the contents."""
    by_names = c.names
    if by_names is not None and by_names.renamed_tensors and by_names.unexplained == 0:
        parameters: dict[str, Value] = {"count": len(by_names.renamed_modules), "map": dict(by_names.renamed_modules)}
        return [Transformation(Kind.RENAMED, parameters)]
    left, right = c.suspect.weights.matrices, c.source.weights.matrices
    renamed = {
        right[match.source].tensor: left[match.suspect].tensor
        for match in (c.lineage.evidence.matched if c.lineage else c.sketch.matched)
        if right[match.source].tensor != left[match.suspect].tensor
        and not {right[match.source].role, left[match.suspect].role} <= {"embed", "head"}  # a tied head
    }
    if not renamed or (by_names is not None and not by_names.unexplained):
        return []
    if c.lineage is not None and any(i != j for i, j in c.lineage.layer_map):
        return []  # other numbers are a layer map, not names
    return [Transformation(Kind.RENAMED, {"count": len(renamed), "map": renamed})]


def _resharded(c: Comparison) -> list[Transformation]:
    a, b = c.suspect.storage, c.source.storage
    if a.format == b.format and a.files != b.files:
        return [Transformation(Kind.RESHARDED, {"from": b.files, "to": a.files})]
    return []


def _layers(c: Comparison, lineage: Lineage) -> list[Transformation]:
    """Dropped, repeated, reordered: read off the layer map."""
    if not lineage.layer_map:
        return []
    targets = [j for _, j in lineage.layer_map]
    table = {str(i): j for i, j in lineage.layer_map}
    depths = [len({m.layer for m in side.weights.matrices if m.layer is not None}) for side in (c.suspect, c.source)]
    if len(set(targets)) < len(targets):
        return [Transformation(Kind.DEPTH_UPSCALED, {"map": table})]
    if targets != sorted(targets):
        return [Transformation(Kind.LAYERS_REORDERED, {"map": table})]
    if 0 < depths[0] < depths[1] and len(targets) == depths[0]:
        return [Transformation(Kind.LAYERS_DROPPED, {"map": table})]
    return []


def _vocabulary(c: Comparison) -> list[Transformation]:
    tables = [
        next((m for m in side.weights.matrices if m.role == "embed"), None) for side in (c.suspect, c.source)
    ]
    if tables[0] is None or tables[1] is None or tables[0].rows == tables[1].rows:
        return []
    difference = tables[0].rows - tables[1].rows
    added = c.tokenizer.only_suspect if c.tokenizer else max(difference, 0)
    removed = c.tokenizer.only_source if c.tokenizer else max(-difference, 0)
    offset = c.tokenizer.offset if c.tokenizer else 0
    parameters: dict[str, Value] = {"added": max(added, difference, 0), "removed": max(removed, -difference, 0), "offset": offset}
    return [Transformation(Kind.VOCABULARY_CHANGED, parameters)]


def _moved(lineage: Lineage) -> list[Transformation]:
    found = [
        Transformation(Kind.PERMUTED, {"what": what})
        for what in ("units", "heads")
        if any(pair.moved == what for pair in lineage.pairs if pair.proven)
    ]
    if lineage.basis is Basis.ROTATED:
        found.insert(0, Transformation(Kind.ROTATED))
    return found


def _shared_fraction(c: Comparison) -> float:
    """Share of the suspect's comparable values that are proven inherited.

    Matrices that say nothing (constants, tables, tiny ones) count neither way; damaged ones count as not
    inherited. A matrix that is not proven by
    itself counts as inherited only when every proven one is weak too, so that its silence says nothing.
    """
    damaged = (State.INFORMATIVE, State.NOT_FINITE, State.ALL_ZERO)
    facts = c.suspect.weights
    total = sum(m.size for m, state in zip(facts.matrices, facts.states, strict=True) if state in damaged)
    proven, weak = _proven(c)
    share = min(1.0, proven / total) if total else 0.0
    return 1.0 if weak or share > 1.0 - 1e-9 else share


def _proven(c: Comparison) -> tuple[int, bool]:
    matrices = c.suspect.weights.matrices
    if c.lineage is not None and c.lineage.pairs and c.lineage.full:
        found = [pair for pair in c.lineage.pairs if pair.proven]
        weak = bool(found) and float(np.median([pair.z for pair in found])) < 2 * TRAINED_Z
        return sum(matrix.size for matrix in {pair.suspect for pair in found}), weak and not c.lineage.tables_only
    scores = [abs(match.z) for match in c.sketch.matched]
    weak = not scores or float(np.median(scores)) < 2 * TRAINED_Z
    return sum(matrices[match.suspect].size for match in c.sketch.matched), weak


def _direction(c: Comparison, transformations: Sequence[Transformation]) -> str:
    """Only from artefacts that show who was made of whom: casts, grids, dropped or repeated layers."""
    kinds = {item.kind: item for item in transformations}
    if Kind.CAST in kinds and kinds[Kind.CAST].parameters.get("to") == "F32":
        return "source_from_suspect"
    if Kind.QUANTISED in kinds and c.source.storage.quantised_bits and not c.suspect.storage.quantised_bits:
        return "source_from_suspect"
    cues = (Kind.QUANTISED, Kind.PRUNED, Kind.DEPTH_UPSCALED, Kind.CAST)
    return "suspect_from_source" if any(kind in kinds for kind in cues) else "undetermined"


def proven_pairs(lineage: Lineage) -> list[PairFacts]:
    """The pairs that were proven each by itself."""
    return [pair for pair in lineage.pairs if pair.proven]
