"""Three models: the one between two others is found, and nothing is said where the angles do not tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import zoo
from drupe.model import Model
from drupe.opening import open_subject
from drupe.recover.placing import SUSPECT, place
from drupe.workflows import compare
from zoo_files import MODELS, Checkpoint, read_model, save


def opened(model: str | Checkpoint, folder: Path) -> Model:
    where = (
        MODELS / model if isinstance(model, str) else save(model, folder / str(len(list(folder.iterdir()))))
    )
    found = open_subject(str(where), offline=True).model
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("suspect", "sources", "between"),
    [
        ("r0_cpt2", ("r0", "r0_cpt"), 1),
        ("r0_cpt", ("r0", "r0_cpt2"), SUSPECT),
        ("r0_cpt", ("r0_cpt2", "r0"), SUSPECT),
        ("r0", ("r0_cpt", "r0_cpt2"), 0),
    ],
)
def test_the_middle_of_a_chain_whoever_is_asked(
    suspect: str, sources: tuple[str, str], between: int, tmp_path: Path
) -> None:
    (found,) = place(opened(suspect, tmp_path), [opened(source, tmp_path) for source in sources])
    assert found.between == between


def test_siblings_meet_at_their_parent(tmp_path: Path) -> None:
    children = [zoo.apply(read_model("r0"), "noise", sigma=0.1 * (1 + k), seed=k) for k in range(2)]
    (found,) = place(opened(children[0], tmp_path), [opened("r0", tmp_path), opened(children[1], tmp_path)])
    assert found.between == 0
    assert found.cosine == pytest.approx(0.0, abs=0.02)


def test_children_of_an_unseen_parent_meet_elsewhere(tmp_path: Path) -> None:
    children = [zoo.apply(read_model("r0"), "noise", sigma=0.1, seed=k) for k in range(3)]
    (found,) = place(opened(children[0], tmp_path), [opened(child, tmp_path) for child in children[1:]])
    assert found.between is None
    assert found.elsewhere
    assert found.cosine == pytest.approx(0.5, abs=0.02)


def test_a_point_and_its_neighbour_say_nothing(tmp_path: Path) -> None:
    """A short fine-tune and its parent are one point, seen from a long training."""
    (found,) = place(opened("r0_cpt", tmp_path), [opened("r0", tmp_path), opened("r0_ft", tmp_path)])
    assert found.between is None


@pytest.mark.parametrize("stranger", ["r1", "g0"])
def test_strangers_have_no_place(stranger: str, tmp_path: Path) -> None:
    models = [opened(name, tmp_path) for name in ("r0", stranger)]
    assert place(opened("r0_cpt", tmp_path), models) == ()
    assert place(opened("r0_cpt", tmp_path), models[:1]) == ()
    assert (
        place(opened("r0", tmp_path), [models[0], opened("r0_cpt", tmp_path)]) == ()
    )  # the same model twice


def test_damage_has_no_place(tmp_path: Path) -> None:
    broken = zoo.apply(read_model("r0_cpt"), "poison", value=float("nan"))
    found = place(opened(broken, tmp_path), [opened("r0", tmp_path), opened("r0_cpt2", tmp_path)])
    assert all(np.isfinite(placing.ways).all() for placing in found)


def test_the_report_says_who_lies_between() -> None:
    report = compare(str(MODELS / "r0_cpt2"), str(MODELS / "r0"), str(MODELS / "r0_cpt"))
    assert "lies between the suspect and" in str(report["components"])
    findings = [finding for finding in report["findings"] if finding["signal"] == "weights.placing"]  # type: ignore[index, union-attr]
    assert len(findings) == 1
    assert abs(findings[0]["statistic"]) <= 0.2
