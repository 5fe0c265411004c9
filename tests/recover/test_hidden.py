"""Dimensions of the residual stream: found when moved, negated or left out, and never between independent models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import zoo
from drupe.model import Model, open_model
from drupe.recover.hidden import find_hidden
from drupe.recover.parts import Parts, parts_of
from drupe.sources.locator import open_tree
from zoo_files import MODELS, Checkpoint, read_model, save


def parts(model: Checkpoint | str, folder: Path) -> Parts:
    path = MODELS / model if isinstance(model, str) else save(model, folder)
    opened: Model = open_model(open_tree(str(path), offline=True))
    return parts_of(opened)


@pytest.mark.parametrize("flip", [False, True])
def test_the_map_of_a_permutation_is_exact(flip: bool, tmp_path: Path) -> None:
    suspect = parts(zoo.apply(read_model("r0"), "permute_hidden", flip=flip, seed=4), tmp_path / "s")
    found = find_hidden(suspect, parts("r0", tmp_path))
    assert found is not None
    order = np.random.default_rng(4).permutation(64)
    assert found.columns.tolist() == order.tolist()
    assert (found.flipped > 0) == flip
    table = suspect.load("embed")
    source = parts("r0", tmp_path).load("embed")
    assert source is not None
    assert np.array_equal(found.apply("embed", source), table)


@pytest.mark.parametrize("disguise", [("noise", {"sigma": 1.0}), ("quantise", {"bits": 3, "group": 16})])
def test_it_is_found_under_noise_and_rounding(disguise: tuple[str, dict[str, float]], tmp_path: Path) -> None:
    model = zoo.apply(read_model("r0"), "permute_hidden", seed=1)
    found = find_hidden(
        parts(zoo.apply(model, disguise[0], **disguise[1]), tmp_path / "s"), parts("r0", tmp_path)
    )
    assert found is not None
    assert found.columns.tolist() == np.random.default_rng(1).permutation(64).tolist()


def test_kept_dimensions_are_found_after_training(tmp_path: Path) -> None:
    suspect = zoo.apply(read_model("r0_cpt"), "prune_hidden", keep=0.75)
    found = find_hidden(parts(suspect, tmp_path / "s"), parts("r0", tmp_path))
    assert found is not None
    assert found.kept == 0.75
    assert found.columns.tolist() == np.sort(np.random.default_rng(0).choice(64, 48, replace=False)).tolist()


@pytest.mark.parametrize("other", ["r0", "r1", "r2", "r3", "r5"])
def test_independent_models_a_shared_start_and_a_model_itself_have_no_map(other: str, tmp_path: Path) -> None:
    assert find_hidden(parts(other, tmp_path), parts("r0", tmp_path)) is None


def test_a_rotation_is_no_permutation(tmp_path: Path) -> None:
    suspect = parts(zoo.apply(read_model("r0"), "rotate"), tmp_path / "s")
    assert find_hidden(suspect, parts("r0", tmp_path)) is None
