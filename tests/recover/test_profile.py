"""Token responses: what no rotation and no permutation touches, and when they may not be asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from drupe.recover import profile
from pairs import parts, untrained, with_tokens_of
from zoo_files import Checkpoint, read_model


def edited(model: str | Checkpoint, *edits: tuple[str, dict[str, Any]]) -> Checkpoint:
    result = read_model(model) if isinstance(model, str) else model
    for kind, parameters in edits:
        result = zoo.apply(result, kind, **parameters)
    return result


def hits(suspect: Checkpoint | str, source: Checkpoint | str, folder: Path) -> profile.ProfileResult:
    return profile.compare(parts(suspect, folder), parts(source, folder), None)


ROTATED = (("rotate", {}), ("permute_units", {}), ("permute_heads", {}))


def test_rotation_and_permutation_leave_every_hit(tmp_path: Path) -> None:
    result = hits(edited("r0", *ROTATED), "r0", tmp_path)
    assert result.hits == result.units == 384
    assert result.layer_map == ((1, 1), (2, 2), (3, 3))


@pytest.mark.parametrize(
    ("suspect", "edits", "floor"),
    [
        ("r0", (("noise", {"sigma": 0.5}),), 370),
        ("r0", (("noise", {"sigma": 1.0}),), 120),
        ("r0", (("quantise", {"bits": 3}),), 370),
        ("r0_ft", (), 380),
        ("r0_cpt", (), 200),
        ("r0_cpt2", (), 80),
    ],
    ids=["noise 0.5", "noise 1", "int3", "fine-tune", "continued", "continued twice"],
)
def test_power_floor_under_rotation(
    suspect: str, edits: tuple[tuple[str, dict[str, Any]], ...], floor: int, tmp_path: Path
) -> None:
    result = hits(edited(suspect, *ROTATED, *edits), "r0", tmp_path)
    assert result.hits >= floor
    assert result.significant


def test_a_shared_random_start_leaves_no_hits(tmp_path: Path) -> None:
    for suspect in ("r3", "r5"):
        result = hits(suspect, "r0", tmp_path)
        assert result.tested
        assert not result.significant


def test_renumbered_layers_are_found(tmp_path: Path) -> None:
    result = hits(edited("r0", ("map_layers", {"order": [0, 2, 3]}), ("rotate", {})), "r0", tmp_path)
    assert dict(result.layer_map) == {1: 2, 2: 3}


def test_tokens_are_paired_by_string_when_ids_moved(tmp_path: Path) -> None:
    model = edited("r0", ("rotate", {}))
    assert model.tokenizer is not None
    order = np.random.default_rng(0).permutation(1024)
    place = np.argsort(order)
    inner = dict(model.tokenizer["model"])
    inner["vocab"] = {piece: int(place[number]) for piece, number in inner["vocab"].items()}
    tensors = dict(model.tensors)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][order]
    moved = replace(model.with_tensors(tensors), tokenizer={**model.tokenizer, "model": inner})
    result = hits(moved, "r0", tmp_path)
    assert result.hits == 384


def test_tokens_that_cannot_be_paired_are_not_tested(tmp_path: Path) -> None:
    """A null with the wrong pairing would say independent of anything."""
    model = edited("r0", ("rotate", {}))
    order = np.random.default_rng(0).permutation(1024)
    name = "model.embed_tokens.weight"
    shuffled = model.with_tensors({**model.tensors, name: model.tensors[name][order]})
    for suspect in (shuffled, edited(shuffled, ("drop_tokenizer", {}))):
        result = hits(suspect, "r0", tmp_path)
        assert not result.tested
        assert result.findings


def test_too_few_common_tokens_are_not_tested(tmp_path: Path) -> None:
    assert not hits(edited("r0", ("trim_vocabulary", {"keep": 150})), "r0", tmp_path).tested


def test_votes_that_depend_on_each_other_are_not_tested(tmp_path: Path) -> None:
    def tied(name: str) -> Checkpoint:
        model = read_model(name)
        tensors = dict(model.tensors)
        for up in [tensor for tensor in tensors if "up_proj" in tensor]:
            tensors[up] = tensors[up.replace("up_proj", "gate_proj")]
        return model.with_tensors(tensors)

    assert not hits(tied("r1"), tied("r0"), tmp_path).tested


def test_a_gated_model_has_no_votes_in_common_with_a_plain_one(tmp_path: Path) -> None:
    assert not hits("g0", "r0", tmp_path).tested


def test_damaged_values_give_no_hits_and_no_crash(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf"), 0.0):
        result = hits(edited("r0", ("poison", {"value": value, "layer": 1})), "r0", tmp_path)
        assert result.hits <= 384 - 100


def test_responses_are_centred_and_of_length_one() -> None:
    dice = np.random.default_rng(1)
    response = profile.respond(
        *(dice.standard_normal(s).astype(np.float32) + 1 for s in ((20, 16), (50, 16)))
    )
    assert np.linalg.norm(response, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert response.mean(axis=1) == pytest.approx(0.0, abs=1e-5)


def test_own_dependence_of_votes_is_measured() -> None:
    dice = np.random.default_rng(2)
    first, second = (
        profile.respond(*(dice.standard_normal(s).astype(np.float32) for s in ((64, 64), (300, 64))))
        for _ in range(2)
    )
    assert profile.vote_dependence([first, first]) == pytest.approx(1.0, abs=1e-5)
    assert profile.vote_dependence([first, second]) < 0.3
    assert profile.vote_dependence([first, second[:10]]) == 0.0


def test_untrained_models_share_no_units(tmp_path: Path) -> None:
    mine, theirs = (with_tokens_of(untrained("gaussian", n), f"r{n}") for n in (1, 0))
    result = hits(mine, theirs, tmp_path)
    assert result.tested
    assert result.hits <= 3
