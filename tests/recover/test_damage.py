"""Damaged and lying models under every disguise: an answer without a crash, and none that the damage forbids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from drupe.workflows import compare
from zoo_files import MODELS, Checkpoint, read_model, save

Edit = tuple[str, dict[str, Any]]
RELATED = frozenset({"copy", "derivative"})
DISGUISES: dict[str, tuple[Edit, ...]] = {
    "none": (),
    "rotated": (("permute_units", {}), ("rotate", {})),
    "hidden": (("permute_hidden", {"flip": True}),),
    "narrow": (("prune_hidden", {"keep": 0.75}),),
    "rotated, narrow": (("rotate", {}), ("prune_hidden", {"keep": 0.75})),
    "grid": (("quantise", {"bits": 8}), ("noise", {"sigma": 0.02})),
    "tokens": (("permute_vocabulary", {}),),
    "units": (("prune_units", {"keep": 0.5}),),
}


def _one(model: Checkpoint, name: str, value: float) -> Checkpoint:
    tensors = dict(model.tensors)
    tensors[name] = tensors[name].copy()
    tensors[name].flat[7] = value
    return model.with_tensors(tensors)


def _filled(model: Checkpoint, part: str, value: float) -> Checkpoint:
    return model.with_tensors(
        {n: np.full_like(v, value) if part in n else v for n, v in model.tensors.items()}
    )


DAMAGES: dict[str, Callable[[Checkpoint], Checkpoint]] = {
    "a NaN in a matrix": lambda m: _one(m, "model.layers.1.mlp.up_proj.weight", np.nan),
    "an Inf in the tokens": lambda m: _one(m, "model.embed_tokens.weight", np.inf),
    "a value near the end of the type": lambda m: _one(m, "model.layers.1.mlp.down_proj.weight", 3e38),
    "a layer of zeros": lambda m: zoo.apply(m, "poison", value=0.0, layer=1),
    "gains of zero": lambda m: _filled(m, "layernorm", 0.0),
    "gains that are no numbers": lambda m: _filled(m, "layernorm", np.nan),
    "tokens of zero": lambda m: _filled(m, "embed_tokens", 0.0),
    "heads of zero": lambda m: _filled(m, "o_proj", 0.0),
}
LIES: dict[str, dict[str, Any]] = {
    "fewer layers": {"num_hidden_layers": 1},
    "many heads": {"num_attention_heads": 1 << 30, "num_key_value_heads": 7},
    "no width": {"hidden_size": 0, "intermediate_size": -4},
    "words": {"num_attention_heads": "eight", "hidden_size": None},
}


def label(suspect: Checkpoint, folder: Path, *sources: Checkpoint) -> str:
    paths = [str(save(source, folder / f"source{k}")) for k, source in enumerate(sources)]
    verdict = compare(str(save(suspect, folder / "suspect")), *paths, keep_maps=folder / "maps.npz")[
        "verdict"
    ]
    assert isinstance(verdict, dict)
    return str(verdict["label"])


def disguised(model: Checkpoint, name: str) -> Checkpoint:
    for kind, parameters in DISGUISES[name]:
        model = zoo.apply(model, kind, **parameters)
    return model


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, while the test itself edits damaged values
def test_damage_is_survived_and_related_models_stay_so_or_doubtful(
    damage: str, disguise: str, tmp_path: Path
) -> None:
    suspect = disguised(DAMAGES[damage](read_model("r0")), disguise)
    found = label(suspect, tmp_path, read_model("r0"))
    assert found in RELATED | {"inconclusive", "same_design", "unrelated"}
    if damage in ("a NaN in a matrix", "a layer of zeros") and disguise in ("none", "units", "grid"):
        assert found in RELATED


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_damage_makes_no_stranger_a_relative(damage: str, tmp_path: Path) -> None:
    suspect, source = DAMAGES[damage](read_model("r1")), DAMAGES[damage](read_model("r0"))
    assert label(suspect, tmp_path, source) not in RELATED


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("lie", LIES)
def test_a_configuration_that_lies_misleads_nobody(lie: str, disguise: str, tmp_path: Path) -> None:
    suspect = disguised(read_model("r0"), disguise).with_tensors(
        disguised(read_model("r0"), disguise).tensors, **LIES[lie]
    )
    assert label(suspect, tmp_path, read_model("r0")) in RELATED
    other = read_model("r1").with_tensors(dict(read_model("r1").tensors), **LIES[lie])
    assert label(other, tmp_path / "other", read_model("r0")) not in RELATED


@pytest.mark.parametrize("disguise", ["none", "rotated", "hidden", "units"])
def test_one_layer_is_enough_or_too_little_but_no_crash(disguise: str, tmp_path: Path) -> None:
    one = zoo.apply(read_model("r0"), "map_layers", order=[2])
    assert label(disguised(one, disguise), tmp_path, one) in RELATED | {"inconclusive"}
    stranger = zoo.apply(read_model("r1"), "map_layers", order=[2])
    assert label(stranger, tmp_path / "other", one) not in RELATED


def test_equal_models_and_a_model_against_itself_in_many_roles(tmp_path: Path) -> None:
    """Every difference is zero: nothing is divided by it."""
    r0 = read_model("r0")
    assert label(r0, tmp_path, r0, r0, r0) == "copy"
    assert label(read_model("r0_cpt"), tmp_path / "two", r0, r0) == "derivative"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_damaged_sources_take_no_part_in_mixtures_and_triples(tmp_path: Path) -> None:
    broken = zoo.apply(read_model("r0_cpt2"), "poison", value=float("nan"), layer=0)
    merged = zoo.apply(read_model("r0_cpt"), "merge", other=read_model("r0_cpt2"), share=0.3)
    assert label(merged, tmp_path, read_model("r0_cpt"), broken) in RELATED | {"inconclusive"}


def test_storage_types_may_be_mixed(tmp_path: Path) -> None:
    source = str(MODELS / "r0")
    for number, kind in enumerate(("fp16", "fp32")):
        model = disguised(zoo.apply(read_model("r0"), "cast", to=kind), "rotated")
        verdict = compare(str(save(model, tmp_path / str(number))), source)["verdict"]
        assert isinstance(verdict, dict)
        assert verdict["label"] == "copy"
