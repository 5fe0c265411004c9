"""Pairs in one coordinate system: each proven by itself, moved rows undone, structure no proof."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import zoo
from drupe.recover.admissible import admissible
from drupe.recover.align import Plan, align, spread
from drupe.recover.parts import parts_of
from drupe.recover.refine import refine_rotation
from drupe.recover.rotation import find_rotation, undo_rotation
from pairs import parts, subject
from zoo_exact import orthogonal
from zoo_files import Checkpoint, read_model

SAME = tuple((layer, layer) for layer in range(4))


def proven(suspect: Checkpoint | str, source: Checkpoint | str, folder: Path, plan: Plan) -> list[bool]:
    return [pair.proven for pair in align(parts(suspect, folder), parts(source, folder), plan)]


def test_related_pairs_are_proven_and_independent_ones_are_not(tmp_path: Path) -> None:
    plan = Plan(SAME, None, True)
    assert all(proven("r0_cpt", "r0", tmp_path, plan))
    for suspect in ("r1", "r2"):
        assert not any(proven(suspect, "r0", tmp_path, plan))
    assert not any(proven("r1", "r5", tmp_path, plan))


def test_a_wrong_layer_map_proves_nothing_inside_layers(tmp_path: Path) -> None:
    """A map always comes out of an alignment: each pair must stand by itself."""
    pairs = align(
        parts("r0_cpt", tmp_path), parts("r0", tmp_path), Plan(((0, 1), (1, 2), (2, 3)), None, True)
    )
    assert not any(pair.proven for pair in pairs if pair.place[1] is not None)


def test_moved_units_and_heads_are_undone(tmp_path: Path) -> None:
    model = zoo.apply(zoo.apply(read_model("r0"), "permute_units"), "permute_heads")
    moved = {}
    for pair in align(parts(model, tmp_path), parts("r0", tmp_path), Plan(SAME, None, True)):
        assert pair.proven
        assert np.array_equal(pair.suspect_values, pair.source_values)
        moved[pair.place[0]] = pair.moved
    assert moved["gate"] == moved["up"] == moved["down"] == "units"
    assert moved["q"] == moved["o"] == "heads"
    assert moved["embed"] is None


def test_nothing_is_moved_that_stands_in_place(tmp_path: Path) -> None:
    model = zoo.apply(read_model("r0_cpt2"), "noise", sigma=1.0)
    for pair in align(parts(model, tmp_path), parts("r0", tmp_path), Plan(SAME, None, True)):
        assert pair.moved is None


def test_independent_models_are_not_moved_into_agreement(tmp_path: Path) -> None:
    for pair in align(parts("r1", tmp_path), parts("r0", tmp_path), Plan(SAME, None, True)):
        assert pair.moved is None
        norms = np.linalg.norm(pair.suspect_values) * np.linalg.norm(pair.source_values)
        assert abs((pair.suspect_values * pair.source_values).sum()) < 0.2 * norms


@pytest.mark.parametrize("sigma", [0.0, 0.1, 1.0])
def test_a_rotation_is_found_refined_and_undone(sigma: float, tmp_path: Path) -> None:
    model = zoo.apply(zoo.apply(read_model("r0"), "rotate", seed=3), "noise", sigma=sigma)
    mine, theirs = parts(model, tmp_path), parts("r0", tmp_path)
    truth = orthogonal(64, 3)
    first = find_rotation(mine, theirs)
    assert first is not None
    refined = refine_rotation(align(mine, theirs, Plan(SAME, first.matrix, True)), first.matrix)
    errors = [float(np.linalg.norm(q - truth)) for q in (first.matrix, refined)]
    assert np.allclose(refined @ refined.T, np.eye(64), atol=1e-4)
    assert errors[1] <= errors[0] + 1e-3
    assert errors[1] < 0.03 + 1.2 * sigma
    assert all(pair.proven for pair in align(mine, theirs, Plan(SAME, refined, True)))


def test_a_rotation_between_independent_models_proves_nothing(tmp_path: Path) -> None:
    mine, theirs = parts("r1", tmp_path), parts("r0", tmp_path)
    q = find_rotation(mine, theirs)
    assert q is not None  # some rotation always comes out
    hidden = [pair for pair in align(mine, theirs, Plan(SAME, q.matrix, True)) if pair.place[1] is not None]
    assert not any(pair.proven for pair in hidden)


def test_rotations_are_undone_on_the_side_that_lives_in_the_stream() -> None:
    dice = np.random.default_rng(0)
    q = orthogonal(64, 1).astype(np.float32)
    for role, shape in (("q", (32, 64)), ("down", (64, 128)), ("o", (64, 64)), ("embed", (100, 64))):
        values = dice.standard_normal(shape).astype(np.float32)
        turned = q.T @ values if role in ("o", "down") else values @ q
        assert np.allclose(undo_rotation(role, turned, q), values, atol=1e-4)


def test_maps_are_excluded_by_widths_and_gates_alone(tmp_path: Path) -> None:
    def possible(left: Checkpoint | str, right: Checkpoint | str) -> bool:
        sides = [subject(model, tmp_path) for model in (left, right)]
        models = [side.model for side in sides if side.model is not None]
        facts = [side.fingerprint.weights for side in sides]
        return admissible(*(parts_of(model) for model in models), *facts).possible

    assert possible("r1", "r0")
    assert not possible("w0", "r0")  # narrower stream, wider FFN
    assert not possible("g0", "r0")  # gated against plain
    assert possible(zoo.apply(read_model("r1"), "set_config", values={"num_attention_heads": 16}), "r0")


def test_a_spread_keeps_both_ends() -> None:
    layers = [(i, i) for i in range(40)]
    for most in (1, 2, 3, 8):
        chosen = spread(layers, most)
        assert len(chosen) <= most
        assert chosen[0] == (0, 0)
        assert most == 1 or chosen[-1] == (39, 39)
    assert spread(layers[:3], 8) == tuple(layers[:3])


def test_a_lean_plan_finds_what_a_whole_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every matrix a part: the units that moved are found among all of the source's."""
    monkeypatch.setattr("drupe.recover.align.LEAN_ROWS", 64)
    model = zoo.apply(zoo.apply(read_model("r0"), "permute_units"), "rotate", seed=3)
    mine, theirs = parts(model, tmp_path), parts("r0", tmp_path)
    rotation = find_rotation(mine, theirs)
    assert rotation is not None
    for pair in align(mine, theirs, Plan(SAME, rotation.matrix, True, lean=True)):
        assert pair.proven
        assert 16 <= min(pair.suspect_values.shape) <= 64
        change = pair.suspect_values - pair.source_values
        assert np.linalg.norm(change) < 1e-2 * np.linalg.norm(pair.source_values)  # bf16
        assert pair.moved == ("units" if pair.place[0] in ("gate", "up", "down") else None)


def test_a_lean_plan_moves_heads_and_proves_nothing_between_strangers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drupe.recover.align.LEAN_ROWS", 64)
    plan = Plan(SAME, None, True, lean=True)
    heads = zoo.apply(read_model("r0"), "permute_heads")
    for pair in align(parts(heads, tmp_path), parts("r0", tmp_path), plan):
        assert np.array_equal(pair.suspect_values, pair.source_values)
    assert not any(proven("r1", "r0", tmp_path, plan))
