"""Quantised copies of really trained models, from their files to the verdict, in the layouts people publish."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drupe.comparison import AUTO, compare
from drupe.diagnose import Kind, diagnose
from drupe.fingerprint import extract
from drupe.model import open_model
from drupe.readers.interface import Absent
from drupe.readers.quantised import QuantisedFile
from drupe.sources.locator import open_tree
from drupe.subject import Subject
from drupe.verdict import judge
from pairs import Judged, subject
from readers.quantised_packers import PACKERS, quantised
from zoo_files import read_model

BITS = {"fp8": 8}
GRID = ("gptq", "awq", "mlx", "hqq")
"""Codes on a grid per group, which the values themselves show."""


def packed(name: str, scheme: str, folder: Path) -> Subject:
    model = open_model(open_tree(str(quantised(read_model(name), scheme, folder / "packed")), offline=True))
    return Subject(extract(model), model)


def judged(a: Subject, b: Subject) -> Judged:
    comparison = compare(a, b, AUTO)
    diagnosis = diagnose(comparison)
    return Judged(comparison, diagnosis, judge(diagnosis))


@pytest.mark.parametrize("scheme", PACKERS)
def test_a_quantised_copy_is_a_copy_that_was_quantised(scheme: str, tmp_path: Path) -> None:
    suspect = packed("r0", scheme, tmp_path)
    assert suspect.model is not None
    assert isinstance(suspect.model.weights, QuantisedFile)
    assert suspect.model.parameters == sum(values.size for values in read_model("r0").tensors.values())
    found = judged(suspect, subject("r0", tmp_path))
    assert (found.label, found.relation) == ("copy", "equivalent")
    (change,) = [item for item in found.diagnosis.transformations if item.kind is Kind.QUANTISED]
    assert change.parameters["bits"] == BITS.get(scheme, 4)
    assert change.parameters["group"] == (32 if scheme in GRID else None)
    assert found.diagnosis.direction == "suspect_from_source"


@pytest.mark.parametrize("scheme", PACKERS)
@pytest.mark.parametrize(("source", "relation"), [("r1", "independent"), ("r3", "shared_initialisation")])
def test_quantisation_makes_no_relation(scheme: str, source: str, relation: str, tmp_path: Path) -> None:
    found = judged(packed("r0", scheme, tmp_path), subject(source, tmp_path))
    assert (found.label, found.relation) == ("same_design", relation)
    assert not found.kinds


@pytest.mark.parametrize("scheme", GRID)
def test_a_quantised_fine_tune_is_a_derivative(scheme: str, tmp_path: Path) -> None:
    found = judged(packed("r0_ft", scheme, tmp_path), subject("r0", tmp_path))
    assert (found.label, found.relation) == ("derivative", "derived")
    assert "quantised" in found.kinds


@pytest.mark.parametrize(("one", "other"), [("gptq", "nf4"), ("awq", "mlx"), ("hqq", "fp8")])
def test_two_quantised_copies_of_one_model_are_related(one: str, other: str, tmp_path: Path) -> None:
    found = judged(packed("r0", one, tmp_path / "a"), packed("r0", other, tmp_path / "b"))
    assert (found.label, found.diagnosis.direction) == ("copy", "undetermined")
    assert (
        judged(packed("r0", one, tmp_path / "c"), packed("r1", other, tmp_path / "d")).label == "same_design"
    )


@pytest.mark.parametrize("scheme", ["nf4", "fp8", "gptq"])
def test_the_original_of_a_packed_source_is_a_copy(scheme: str, tmp_path: Path) -> None:
    found = judged(subject("r0", tmp_path), packed("r0", scheme, tmp_path))
    assert (found.label, found.diagnosis.direction) == ("copy", "source_from_suspect")
    assert found.kinds == {"quantised"}
    tuned = judged(subject("r0_ft", tmp_path), packed("r0", scheme, tmp_path / "other"))
    assert (tuned.label, tuned.relation) == ("derivative", "derived")


def test_values_are_those_of_the_source_up_to_a_step(tmp_path: Path) -> None:
    model = packed("r0", "gptq", tmp_path).model
    assert model is not None
    truth = read_model("r0").tensors
    for matrix in model.matrices:
        found, original = model.load(matrix), truth[matrix.tensor]
        assert np.abs(found - original).max() <= np.abs(original).max() / 7


def test_no_part_is_left_among_the_matrices(tmp_path: Path) -> None:
    for scheme in PACKERS:
        model = packed("r0", scheme, tmp_path / scheme).model
        assert model is not None
        assert not isinstance(model.weights, Absent)
        assert {matrix.tensor for matrix in model.matrices} <= set(read_model("r0").tensors)
        assert list(model.weights.tensors) == list(read_model("r0").tensors)
