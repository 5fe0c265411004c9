"""Who was made of whom: long changes and artefacts say it, short ones do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from drupe.workflows import compare
from zoo_files import MODELS, Checkpoint, read_model, save


def weights(suspect: Checkpoint | str, source: Checkpoint | str, folder: Path) -> dict[str, Any]:
    paths = [
        str(MODELS / side if isinstance(side, str) else save(side, folder / name))
        for name, side in (("suspect", suspect), ("source", source))
    ]
    components = compare(*paths)["components"]
    assert isinstance(components, dict)
    found = components["weights"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(("child", "parent"), [("r0_cpt", "r0"), ("r0_cpt2", "r0_cpt"), ("r0_cpt2", "r0")])
def test_the_parent_of_a_long_training_is_named_from_both_sides(
    child: str, parent: str, tmp_path: Path
) -> None:
    assert weights(child, parent, tmp_path)["direction"] == "suspect_from_source"
    assert weights(parent, child, tmp_path)["direction"] == "source_from_suspect"


def test_a_short_training_leaves_it_open(tmp_path: Path) -> None:
    assert weights("r0_ft", "r0", tmp_path)["direction"] == "undetermined"
    assert weights("r0", "r0_ft", tmp_path)["direction"] == "undetermined"


def moved(model: Checkpoint, change: Checkpoint, seed: int) -> Checkpoint:
    """The model with a change as long as a training, its rows and columns in another order so that it is its own."""
    dice = np.random.default_rng(seed)
    tensors = dict(model.tensors)
    for name, values in model.tensors.items():
        if values.ndim == 2 and ".layers." in name:
            delta = change.tensors[name] - values
            rows, columns = (dice.permutation(size) for size in delta.shape)
            tensors[name] = values + delta[rows][:, columns]
    return model.with_tensors(tensors)


def test_two_children_of_one_parent_are_siblings(tmp_path: Path) -> None:
    base, long = read_model("r0"), read_model("r0_cpt")
    found = weights(moved(base, long, 1), moved(base, long, 2), tmp_path)
    assert (found["relation"], found["direction"]) == ("common_source", "siblings")


def test_a_pruned_model_is_the_child_although_its_change_points_back(tmp_path: Path) -> None:
    model = zoo.apply(read_model("r0"), "prune", sparsity=0.9)
    assert weights(model, "r0", tmp_path)["direction"] == "suspect_from_source"
    cut = zoo.apply(read_model("r0_cpt"), "prune", sparsity=0.9)
    assert weights(cut, "r0", tmp_path)["direction"] != "source_from_suspect"


def test_a_shared_start_has_no_direction(tmp_path: Path) -> None:
    for other in ("r3", "r5"):
        found = weights(other, "r0", tmp_path)
        assert (found["relation"], found["direction"]) == ("shared_initialisation", "undetermined")


def test_equal_values_in_a_wider_type_have_no_direction(tmp_path: Path) -> None:
    wider = zoo.apply(read_model("r0"), "cast", to="fp32")
    assert weights(wider, "r0", tmp_path)["direction"] == "undetermined"
