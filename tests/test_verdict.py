"""The one table from relations to labels, and from labels to exit codes, over every combination."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

import zoo
from drupe import cli
from drupe.diagnose import SURFACE, Diagnosis, Kind, Origin, Transformation
from drupe.errors import UsageError
from drupe.signals.interface import Component
from drupe.verdict import Disclosure, Label, Relation, judge, label_of, weights_relation
from pairs import Judged, judged
from zoo_files import read_model

DESIGN = (Component.ARCHITECTURE, Component.CODE, Component.TOKENIZER)
SAME = {Relation.IDENTICAL, Relation.EQUIVALENT, Relation.DERIVED}
OTHERS = (Relation.IDENTICAL, Relation.EQUIVALENT, Relation.DERIVED, Relation.INDEPENDENT, Relation.ABSENT)
# DESIGN section 2: weights -> (label with a shared design, label without one).
TABLE = {
    Relation.IDENTICAL: (Label.COPY, Label.COPY),
    Relation.EQUIVALENT: (Label.COPY, Label.COPY),
    Relation.DERIVED: (Label.DERIVATIVE, Label.DERIVATIVE),
    Relation.PARTIAL: (Label.DERIVATIVE, Label.DERIVATIVE),
    Relation.COMMON_SOURCE: (Label.DERIVATIVE, Label.DERIVATIVE),
    Relation.SHARED_INITIALISATION: (Label.SAME_DESIGN, Label.INCONCLUSIVE),
    Relation.INDEPENDENT: (Label.SAME_DESIGN, Label.UNRELATED),
    Relation.ABSENT: (Label.SAME_DESIGN, Label.INCONCLUSIVE),
    Relation.INCONCLUSIVE: (Label.INCONCLUSIVE, Label.INCONCLUSIVE),
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    return judged("r0", "r0", tmp_path_factory.mktemp("copy"))


def test_the_table_holds_for_every_combination() -> None:
    assert set(TABLE) == set(Relation)
    for weights, behaviour, *design in product(Relation, OTHERS, Relation, Relation, Relation):
        relations = dict(zip(DESIGN, design, strict=True))
        relations |= {Component.WEIGHTS: weights, Component.BEHAVIOUR: behaviour}
        shared = bool(SAME & set(design))
        assert label_of(relations) is TABLE[weights][0 if shared else 1]


@pytest.mark.parametrize("weights", [Relation.ABSENT, Relation.INDEPENDENT, Relation.INCONCLUSIVE])
def test_nothing_but_weights_makes_a_copy_or_a_derivative(weights: Relation) -> None:
    relations = dict.fromkeys(Component, Relation.IDENTICAL) | {Component.WEIGHTS: weights}
    assert label_of(relations) not in {Label.COPY, Label.DERIVATIVE}


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (Origin.ABSENT, Relation.ABSENT),
        (Origin.NONE, Relation.INDEPENDENT),
        (Origin.EXCLUDED, Relation.INDEPENDENT),
        (Origin.UNTESTED, Relation.INCONCLUSIVE),
        (Origin.UNDETERMINED, Relation.INCONCLUSIVE),
        (Origin.SHARED_START, Relation.SHARED_INITIALISATION),
    ],
)
def test_what_was_not_shown_is_not_claimed(origin: Origin, expected: Relation, copied: Judged) -> None:
    assert weights_relation(replace(copied.diagnosis, origin=origin)) is expected


def with_kinds(d: Diagnosis, kinds: set[Kind], *, share: float = 1.0, unchanged: bool = False) -> Diagnosis:
    changes = tuple(Transformation(kind) for kind in kinds)
    return replace(d, transformations=changes, shared_fraction=share, unchanged=unchanged)


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_of_change_decides_between_equivalent_and_derived(kind: Kind, copied: Judged) -> None:
    expected = Relation.EQUIVALENT if kind in SURFACE else Relation.DERIVED
    assert weights_relation(with_kinds(copied.diagnosis, {kind})) is expected
    assert weights_relation(with_kinds(copied.diagnosis, {kind, Kind.RENAMED})) is expected
    assert weights_relation(with_kinds(copied.diagnosis, {kind}, share=0.5)) is Relation.PARTIAL


def test_identical_means_no_change_of_any_kind(copied: Judged) -> None:
    assert weights_relation(with_kinds(copied.diagnosis, set(), unchanged=True)) is Relation.IDENTICAL
    assert weights_relation(with_kinds(copied.diagnosis, set())) is Relation.EQUIVALENT
    renamed = with_kinds(copied.diagnosis, {Kind.RENAMED}, unchanged=True)
    assert weights_relation(renamed) is Relation.EQUIVALENT


def test_layers_that_do_not_map_one_to_one_are_never_equivalent() -> None:
    for kind in (Kind.LAYERS_DROPPED, Kind.LAYERS_REORDERED, Kind.DEPTH_UPSCALED, Kind.MOE_UPCYCLED):
        assert kind not in SURFACE


@pytest.mark.parametrize(("label", "expected"), [("unrelated", 0), ("same_design", 0), ("copy", 1)])
def test_labels_that_are_settled_have_fixed_exit_codes(label: str, expected: int) -> None:
    assert exit_of(label, "unknown", None) == expected


def exit_of(label: str, disclosure: str, fail_on: str | None) -> int:
    report = {"verdict": {"label": label, "disclosure": disclosure}}
    return cli.exit_code(report, cli.parse_fail_on(fail_on))  # type: ignore[arg-type]


@pytest.mark.parametrize("disclosure", Disclosure)
@pytest.mark.parametrize("label", Label)
def test_exit_codes_without_options(label: Label, disclosure: Disclosure) -> None:
    related = {Label.COPY, Label.DERIVATIVE, Label.WRAPPER}
    expected = 1 if label in related else 3 if label is Label.INCONCLUSIVE else 0
    assert exit_of(label.value, disclosure.value, None) == expected


@pytest.mark.parametrize("disclosure", Disclosure)
@pytest.mark.parametrize("label", Label)
def test_fail_on_undisclosed_lets_the_honest_pass(label: Label, disclosure: Disclosure) -> None:
    fires = label in {Label.COPY, Label.DERIVATIVE, Label.WRAPPER} and disclosure is Disclosure.UNDISCLOSED
    expected = 3 if label is Label.INCONCLUSIVE else int(fires)
    assert exit_of(label.value, disclosure.value, "undisclosed") == expected


def test_fail_on_narrows_and_never_hides_doubt() -> None:
    assert exit_of("derivative", "undisclosed", "copy") == 0
    assert exit_of("copy", "disclosed", "copy") == 1
    assert exit_of("copy", "disclosed", "copy:undisclosed") == 0
    assert exit_of("same_design", "undisclosed", "copy,same_design:undisclosed") == 1
    assert exit_of("inconclusive", "unknown", "copy") == 3
    with pytest.raises(UsageError):
        cli.parse_fail_on("theft")


def test_labels_without_a_relation_leave_disclosure_unknown(tmp_path: Path) -> None:
    unrelated = judged("g0", "r0", tmp_path)
    assert unrelated.label == "unrelated"
    assert unrelated.verdict.disclosure is Disclosure.UNKNOWN
    doubtful = judged(zoo.apply(read_model("r0"), "poison", value=0.0), "r0", tmp_path)
    assert doubtful.label == "inconclusive"
    assert doubtful.verdict.disclosure is Disclosure.UNKNOWN
    assert doubtful.verdict.originality.weights_inherited is None


def test_originality_counts_and_credits(tmp_path: Path) -> None:
    own = judged("r1", "r0", tmp_path).verdict.originality
    assert (own.weights_inherited, own.surface_only) == (0.0, False)
    assert own.credit
    shell = judged(zoo.apply(read_model("r0"), "rename_yi"), "r0", tmp_path).verdict.originality
    assert (shell.weights_inherited, shell.surface_only) == (1.0, True)
    trained = judged("r0_cpt", "r0", tmp_path).verdict.originality
    assert trained.surface_only is False
    assert trained.credit


def test_judging_is_pure(copied: Judged) -> None:
    assert judge(copied.diagnosis) == judge(copied.diagnosis) == copied.verdict
