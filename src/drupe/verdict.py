"""Diagnosis -> relation of each component, label, disclosure, originality. One table, pure.

=================================  =================================================================
label                              when
=================================  =================================================================
copy                               weights identical or equivalent
derivative                         weights derived, partial or common_source
same_design                        weights independent or shared_initialisation (or absent), and
                                   architecture, code or tokenizer identical, equivalent or derived
unrelated                          nothing beyond what unrelated models share
inconclusive                       the evidence cannot carry any of these
=================================  =================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from drupe.comparison import Comparison
from drupe.diagnose import SURFACE, Diagnosis, Kind, Origin
from drupe.messages import Message, msg
from drupe.signals.interface import Component


class Relation(StrEnum):
    """How a component of the suspect relates to the source's."""

    IDENTICAL = "identical"
    EQUIVALENT = "equivalent"
    DERIVED = "derived"
    PARTIAL = "partial"
    COMMON_SOURCE = "common_source"
    SHARED_INITIALISATION = "shared_initialisation"
    INDEPENDENT = "independent"
    INCONCLUSIVE = "inconclusive"
    ABSENT = "absent"


class Label(StrEnum):
    """What the suspect is, seen from the source."""

    COPY = "copy"
    DERIVATIVE = "derivative"
    SAME_DESIGN = "same_design"
    WRAPPER = "wrapper"
    UNRELATED = "unrelated"
    INCONCLUSIVE = "inconclusive"


class Disclosure(StrEnum):
    """Whether the suspect's documents name the source."""

    DISCLOSED = "disclosed"
    UNDISCLOSED = "undisclosed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ComponentVerdict:
    """The relation of one component and why."""

    relation: Relation
    reasons: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Originality:
    """How much is the suspect's own. Shares are of the suspect's parameters and code; None = not known."""

    weights_inherited: float | None
    code_inherited: float | None
    surface_only: bool | None
    credit: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The three axes: what it is, whether it was said, how much is its own."""

    components: Mapping[Component, ComponentVerdict]
    label: Label
    disclosure: Disclosure
    originality: Originality
    summary: Message
    caveats: tuple[Message, ...]


WHOLE = 0.95
"""Share of the comparable values that must be proven before a model counts as inherited as a whole."""
_SAME = frozenset({Relation.IDENTICAL, Relation.EQUIVALENT, Relation.DERIVED})
_DESIGN = (Component.ARCHITECTURE, Component.CODE, Component.TOKENIZER)


def judge(diagnosis: Diagnosis) -> Verdict:
    """The verdict of a pair."""
    c = diagnosis.comparison
    components = {
        Component.ARCHITECTURE: _architecture(c),
        Component.CODE: _code(c),
        Component.TOKENIZER: _tokenizer(c),
        Component.WEIGHTS: _weights(diagnosis),
        Component.BEHAVIOUR: ComponentVerdict(Relation.ABSENT, (msg("verdict.no_behaviour"),)),
    }
    label = label_of({component: verdict.relation for component, verdict in components.items()})
    disclosure = _disclosure(diagnosis, label)
    originality = _originality(diagnosis, components)
    return Verdict(
        components,
        label,
        disclosure,
        originality,
        _summary(label, components, diagnosis),
        diagnosis.caveats,
    )


def label_of(relations: Mapping[Component, Relation]) -> Label:
    """The label: a pure function of the relations."""
    weights = relations[Component.WEIGHTS]
    same_design = any(relations[component] in _SAME for component in _DESIGN)
    match weights:
        case Relation.IDENTICAL | Relation.EQUIVALENT:
            return Label.COPY
        case Relation.DERIVED | Relation.PARTIAL | Relation.COMMON_SOURCE:
            return Label.DERIVATIVE
        case Relation.INDEPENDENT:
            return Label.SAME_DESIGN if same_design else Label.UNRELATED
        case Relation.SHARED_INITIALISATION:
            return Label.SAME_DESIGN if same_design else Label.INCONCLUSIVE
        case Relation.ABSENT:
            return Label.SAME_DESIGN if same_design else Label.INCONCLUSIVE
        case Relation.INCONCLUSIVE:
            return Label.INCONCLUSIVE


def _weights(d: Diagnosis) -> ComponentVerdict:
    return ComponentVerdict(weights_relation(d), d.reasons)


def weights_relation(d: Diagnosis) -> Relation:
    """From origin, share and kind of change to the relation of the weights."""
    match d.origin:
        case Origin.ABSENT:
            return Relation.ABSENT
        case Origin.NONE | Origin.EXCLUDED:
            return Relation.INDEPENDENT
        case Origin.UNTESTED | Origin.UNDETERMINED:
            return Relation.INCONCLUSIVE
        case Origin.SHARED_START:
            return Relation.SHARED_INITIALISATION
        case Origin.DESCENT:
            return _relation_of_descent(d)


def _relation_of_descent(d: Diagnosis) -> Relation:
    if Kind.ADAPTER in d.kinds and not d.shared_fraction:
        return Relation.DERIVED  # by its own declaration: nothing of its values is inherited
    if d.shared_fraction < WHOLE or d.foreign:
        return Relation.PARTIAL
    if d.unchanged and not d.kinds - {Kind.RENAMED, Kind.RESHARDED}:
        return Relation.IDENTICAL if not d.kinds else Relation.EQUIVALENT
    if d.direction == "siblings":
        return Relation.COMMON_SOURCE
    return Relation.EQUIVALENT if d.kinds <= SURFACE else Relation.DERIVED


def _architecture(c: Comparison) -> ComponentVerdict:
    a, b = c.suspect, c.source
    if a.adapter is not None or b.adapter is not None:
        return ComponentVerdict(Relation.ABSENT, (msg("adapters.no_architecture"),))
    if not (a.structure.matrices or a.structure.canonical) or not (
        b.structure.matrices or b.structure.canonical
    ):
        return ComponentVerdict(Relation.ABSENT, (msg("verdict.no_architecture"),))
    relation = Relation(c.structure.relation_hint)
    return ComponentVerdict(relation, (msg(f"verdict.architecture_{relation.value}"),))


def _code(c: Comparison) -> ComponentVerdict:
    code = c.code
    if not code.suspect_files or not code.source_files:
        side = msg("diagnosis.suspect" if not code.suspect_files else "diagnosis.source")
        return ComponentVerdict(Relation.ABSENT, (msg("verdict.no_code", side=side),))
    if code.same_bytes == code.suspect_files == code.source_files:
        return ComponentVerdict(Relation.IDENTICAL, (msg("verdict.code_identical", count=code.same_bytes),))
    counts = {"same": code.same_text, "count": code.suspect_files}
    return ComponentVerdict(Relation.INCONCLUSIVE, (msg("verdict.code_not_compared", **counts),))


def _tokenizer(c: Comparison) -> ComponentVerdict:
    if c.tokenizer is None:
        reasons = [c.suspect.absent.get("tokenizer"), c.source.absent.get("tokenizer")]
        side = msg("diagnosis.suspect" if reasons[0] else "diagnosis.source")
        why = reasons[0] or reasons[1] or msg("compare.no_tokenizer")
        return ComponentVerdict(Relation.ABSENT, (msg("verdict.absent_on", side=side, why=why),))
    return ComponentVerdict(Relation(c.tokenizer.outcome.value), (c.tokenizer.reason,))


def _disclosure(d: Diagnosis, label: Label) -> Disclosure:
    """Unknown also when the source was made of the suspect: nobody can name what came after."""
    c = d.comparison
    if label in (Label.UNRELATED, Label.INCONCLUSIVE) or d.direction == "source_from_suspect":
        return Disclosure.UNKNOWN
    return Disclosure(c.declared.disclosure)


def _originality(d: Diagnosis, components: Mapping[Component, ComponentVerdict]) -> Originality:
    c = d.comparison
    relation = components[Component.WEIGHTS].relation
    known = relation not in (Relation.ABSENT, Relation.INCONCLUSIVE)
    inherited = round(d.shared_fraction, 4) if known else None
    code = (
        round(c.code.same_text / c.code.suspect_files, 4)
        if c.code.source_files and c.code.suspect_files
        else None
    )
    surface = None if not known else relation in (Relation.IDENTICAL, Relation.EQUIVALENT)
    credit = []
    if relation in (Relation.INDEPENDENT, Relation.SHARED_INITIALISATION):
        credit.append(msg("verdict.credit_weights"))
    if components[Component.TOKENIZER].relation is Relation.INDEPENDENT:
        credit.append(msg("verdict.credit_tokenizer"))
    if Kind.CONTINUED_PRETRAINING in d.kinds:
        credit.append(msg("verdict.credit_training"))
    return Originality(inherited, code, surface, tuple(credit))


def _summary(label: Label, components: Mapping[Component, ComponentVerdict], d: Diagnosis) -> Message:
    relation = components[Component.WEIGHTS].relation
    if Kind.ADAPTER in d.kinds:
        return msg("adapters.summary")
    if label is Label.DERIVATIVE and relation is Relation.COMMON_SOURCE:
        return msg("verdict.summary_siblings")
    if label is Label.DERIVATIVE and relation is Relation.PARTIAL:
        return msg("verdict.summary_partial", share=f"{d.shared_fraction:.0%}")
    if label is Label.SAME_DESIGN and relation is Relation.SHARED_INITIALISATION:
        return msg("verdict.summary_shared")
    if label is Label.SAME_DESIGN and relation is Relation.ABSENT:
        return msg("verdict.summary_no_weights")
    return msg(f"verdict.summary_{label.value}")
