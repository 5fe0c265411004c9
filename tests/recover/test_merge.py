"""Mixtures of known models: the parents, their shares and the method; nothing said where the given ones do not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from drupe.workflows import compare
from zoo_files import MODELS, Checkpoint, read_model, save


def weights(model: Checkpoint, folder: Path, *sources: str) -> dict[str, Any]:
    first, *further = (str(MODELS / name) for name in sources)
    components = compare(str(save(model, folder / "suspect")), first, *further)["components"]
    assert isinstance(components, dict)
    found = components["weights"]
    assert isinstance(found, dict)
    return found


def merged(found: dict[str, Any]) -> dict[str, Any]:
    first = found["transformations"][0]
    assert first["kind"] == "merged"
    parameters = first["parameters"]
    assert isinstance(parameters, dict)
    return parameters


def shares(parameters: dict[str, Any]) -> dict[str, float]:
    return {parent["name"]: parent["share"] for parent in parameters["parents"]}


@pytest.mark.parametrize(("kind", "method"), [("merge", "linear"), ("slerp", "slerp")])
def test_shares_of_two_known_parents(kind: str, method: str, tmp_path: Path) -> None:
    model = zoo.apply(read_model("r0_cpt"), kind, other=read_model("r0_cpt2"), share=0.3)
    found = weights(model, tmp_path, "r0_cpt", "r0_cpt2")
    parameters = merged(found)
    assert parameters["method"] == method
    assert shares(parameters) == pytest.approx({"r0_cpt": 0.3, "r0_cpt2": 0.7}, abs=0.02)
    assert found["direction"] == "suspect_from_source"


def test_task_arithmetic_names_the_base_by_its_coefficient(tmp_path: Path) -> None:
    parents = {name: read_model(name) for name in ("r0_ft", "r0_cpt")}
    model = zoo.apply(read_model("r0"), "arithmetic", parents=parents, scale=0.8)
    parameters = merged(weights(model, tmp_path, "r0", "r0_ft", "r0_cpt"))
    assert parameters["method"] == "task_arithmetic"
    assert shares(parameters) == pytest.approx({"r0": -0.6, "r0_ft": 0.8, "r0_cpt": 0.8}, abs=0.02)


@pytest.mark.parametrize(("kind", "options"), [("dare", {"drop": 0.7}), ("ties", {"density": 0.3})])
def test_sparse_mixtures_are_told_apart(kind: str, options: dict[str, float], tmp_path: Path) -> None:
    parents = {name: read_model(name) for name in ("r0_cpt", "r0_cpt2")}
    model = zoo.apply(read_model("r0"), kind, parents=parents, **options)
    parameters = merged(weights(model, tmp_path, "r0", "r0_cpt", "r0_cpt2"))
    assert parameters["method"] == kind
    assert shares(parameters) == {"r0_cpt": None, "r0_cpt2": None}


def test_an_unknown_further_parent_leaves_the_shares_unsaid(tmp_path: Path) -> None:
    model = zoo.apply(read_model("r0_ft"), "merge", other=read_model("r0_cpt2"), share=0.5)
    kinds = [change["kind"] for change in weights(model, tmp_path, "r0", "r0_ft")["transformations"]]
    assert "merged" not in kinds


def test_a_child_of_one_of_the_sources_is_no_mixture(tmp_path: Path) -> None:
    kinds = [
        item["kind"]
        for item in weights(read_model("r0_ft"), tmp_path, "r0", "r0_cpt", "r1")["transformations"]
    ]
    assert kinds == ["fine_tuned"]


def test_noise_on_a_mixture_is_more_than_rounding(tmp_path: Path) -> None:
    mixed = zoo.apply(read_model("r0_cpt"), "merge", other=read_model("r0_cpt2"), share=0.5)
    noisy = zoo.apply(mixed, "noise", sigma=0.1)
    kinds = [change["kind"] for change in weights(noisy, tmp_path, "r0_cpt", "r0_cpt2")["transformations"]]
    assert "merged" not in kinds
    assert np.isfinite(noisy.tensors["model.embed_tokens.weight"]).all()


@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
def test_a_parent_is_not_made_of_its_child_and_the_other_parent(share: float, tmp_path: Path) -> None:
    first, second = read_model("r0_cpt"), read_model("r0_cpt2")
    child = save(zoo.apply(first, "merge", other=second, share=share), tmp_path / "child")
    components = compare(str(MODELS / "r0_cpt"), str(child), str(MODELS / "r0_cpt2"))["components"]
    assert isinstance(components, dict)
    found = components["weights"]
    assert isinstance(found, dict)
    assert "merged" not in [change["kind"] for change in found["transformations"]]
