"""Experts in another order: found, named with their map, and not invented between strangers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from drupe.recover.experts import in_order
from drupe.workflows import compare
from pairs import parts
from zoo_files import Checkpoint, read_model, save

SAME = tuple((layer, layer) for layer in range(4))


def mixture(name: str, sigma: float, experts: int = 8) -> Checkpoint:
    return zoo.apply(read_model(name), "to_experts", experts=experts, sigma=sigma)


def weights(suspect: Checkpoint, source: Checkpoint, folder: Path) -> dict[str, Any]:
    components = compare(str(save(suspect, folder / "suspect")), str(save(source, folder / "source")))[
        "components"
    ]
    assert isinstance(components, dict)
    found = components["weights"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("sigma", [0.3, 3.0])
def test_the_order_of_the_experts_is_found(sigma: float, tmp_path: Path) -> None:
    """Alike (upcycled from one FFN) or not."""
    source = mixture("r0", sigma)
    found = weights(zoo.apply(source, "permute_experts", seed=5), source, tmp_path)
    assert found["relation"] == "equivalent"
    (change,) = found["transformations"]
    assert change["kind"] == "permuted"
    assert change["parameters"]["what"] == "experts"
    dice = np.random.default_rng(5)
    orders = [dice.permutation(8) for _ in range(4)]
    expected = {
        f"{layer}.{new}": int(old) for layer, order in enumerate(orders) for new, old in enumerate(order)
    }
    assert change["parameters"]["map"] == expected


def test_experts_in_place_are_not_called_moved(tmp_path: Path) -> None:
    source = mixture("r0", 1.0)
    found = weights(zoo.apply(source, "noise", sigma=0.05), source, tmp_path)
    assert [change["kind"] for change in found["transformations"]] == ["gaussian_noise"]


def test_copies_of_one_expert_and_strangers_are_left_in_place(tmp_path: Path) -> None:
    equal, other = mixture("r0", 0.0), mixture("r1", 1.0)
    mine, theirs = parts(equal, tmp_path), parts(other, tmp_path)
    assert in_order(mine, mine, SAME).places == mine.places
    assert in_order(theirs, mine, SAME).places == theirs.places
