"""The zoo does what it says: exact rewrites keep the function, edits change what they name, nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

import zoo
from zoo_exact import depth
from zoo_files import MODELS, Checkpoint, Tensors, clone, decode, encode, from_bf16, to_bf16
from zoo_forward import logits

IDS = list(range(5, 21))


@pytest.fixture
def r0() -> Checkpoint:
    return zoo.read_model("r0")


def changed(before: Checkpoint, after: Checkpoint) -> set[str]:
    assert before.tensors.keys() == after.tensors.keys()
    return {n for n, v in before.tensors.items() if not np.array_equal(v, after.tensors[n])}


def contents(model: Checkpoint) -> list[bytes]:
    return sorted(values.tobytes() for values in model.tensors.values())


def stored(path: Path) -> dict[str, Any]:
    """What the safetensors package finds in a file."""
    return dict(safetensors.deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]


# Files
def test_every_bf16_pattern_survives_a_round_trip() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    again = to_bf16(from_bf16(bits))
    nan = np.isnan(from_bf16(bits))
    assert np.array_equal(again[~nan], bits[~nan])
    assert np.isnan(from_bf16(again[nan])).all()


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_the_safetensors_package_reads_what_we_write(r0: Checkpoint, tmp_path: Path, dtype: str) -> None:
    zoo.write_model(tmp_path, r0.tensors, r0.config, dtype=dtype)
    theirs = stored(tmp_path / "model.safetensors")
    assert theirs.keys() == r0.tensors.keys()
    for name, values in r0.tensors.items():
        assert bytes(theirs[name]["data"]) == encode(values, dtype)
        again = decode(theirs[name]["data"], theirs[name]["dtype"], values.shape)
        # fp16 has no exponent below 2^-14: the smallest bf16 values lose bits there
        assert again == pytest.approx(values, abs=2**-25 if dtype == "fp16" else 0.0, rel=0.0)


def test_reading_and_writing_a_committed_model_gives_the_same_bytes_of_values(tmp_path: Path) -> None:
    first = zoo.read_model("g0")
    second = zoo.read_model(zoo.save(first, tmp_path / "again"))
    assert not changed(first, second)
    assert first.tokenizer == second.tokenizer


def test_shards_hold_every_tensor_once_and_the_index_finds_them(r0: Checkpoint, tmp_path: Path) -> None:
    zoo.save(zoo.apply(r0, "reshard", files=3), tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == r0.tensors.keys()
    assert len(set(index["weight_map"].values())) == 3
    for file in sorted(set(index["weight_map"].values())):
        held = set(stored(tmp_path / file))
        assert held == {name for name, place in index["weight_map"].items() if place == file}


# Exact rewrites
@pytest.mark.parametrize("name", ["r0", "r0_cpt2", "w0", "q0"])
def test_the_forward_pass_agrees_with_transformers(name: str) -> None:
    expected = json.loads((MODELS / "training.json").read_text())[name]["logits"]
    assert logits(zoo.read_model(name), IDS)[-1, :8] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("name", ["r0", "w0", "q0"])
@pytest.mark.parametrize("kind", ["permute_units", "permute_heads", "fold_gains", "rotate", "rescale_units"])
def test_exact_rewrites_keep_the_function(name: str, kind: str) -> None:
    model = zoo.read_model(name)
    rewritten = zoo.apply(model, kind)
    assert any(not np.array_equal(rewritten.tensors[n], v) for n, v in model.tensors.items())
    assert logits(rewritten, IDS) == pytest.approx(logits(model, IDS), abs=1e-4)


def test_the_forward_pass_notices_a_wrong_rewrite(r0: Checkpoint) -> None:
    wrong = dict(r0.tensors)
    name = "model.layers.1.mlp.up_proj.weight"
    wrong[name] = wrong[name][::-1]
    assert np.abs(logits(r0.with_tensors(wrong), IDS) - logits(r0, IDS)).max() > 0.1


def test_a_rotation_leaves_nothing_readable_in_the_old_basis(r0: Checkpoint) -> None:
    rotated = zoo.apply(r0, "rotate")
    a, b = (m.tensors["model.layers.1.mlp.up_proj.weight"].ravel() for m in (r0, rotated))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1
    assert rotated.config["tie_word_embeddings"] is False


def test_gpt2_units_are_permuted_on_the_right_axes() -> None:
    model = zoo.read_model("g0")
    permuted = zoo.apply(model, "permute_units").tensors
    base = "transformer.h.1.mlp."
    x = np.random.default_rng(0).standard_normal((5, model.config["n_embd"]))

    def block(tensors: Tensors) -> Any:
        inner = np.tanh(x @ tensors[base + "c_fc.weight"] + tensors[base + "c_fc.bias"])
        return inner @ tensors[base + "c_proj.weight"]

    assert block(permuted) == pytest.approx(block(model.tensors), abs=1e-5)
    assert not np.array_equal(permuted[base + "c_fc.weight"], model.tensors[base + "c_fc.weight"])


# Names
def test_yi_renames_exactly_the_two_norms(r0: Checkpoint) -> None:
    renamed = zoo.apply(r0, "rename_yi").tensors
    fresh = set(renamed) - set(r0.tensors)
    assert len(fresh) == 2 * depth(r0.tensors)
    assert {name.split(".")[3] for name in fresh} == {"ln1", "ln2"}


def test_opaque_names_say_nothing_and_lose_nothing(r0: Checkpoint) -> None:
    renamed = zoo.apply(r0, "rename_all", seed=3)
    assert all(name.startswith("t_") for name in renamed.tensors)
    assert contents(renamed) == contents(r0)
    assert [v.shape for v in renamed.tensors.values()] != [v.shape for v in r0.tensors.values()]
    assert list(zoo.apply(r0, "rename_all", seed=3).tensors) == list(renamed.tensors)


def test_fused_qkv_holds_q_then_k_then_v(r0: Checkpoint) -> None:
    fused = zoo.apply(r0, "fuse_qkv").tensors
    pack = fused["model.layers.0.self_attn.W_pack.weight"]
    q = r0.tensors["model.layers.0.self_attn.q_proj.weight"]
    assert np.array_equal(pack[: len(q)], q)
    assert pack.shape[0] == len(q) * 2
    assert not [name for name in fused if "q_proj" in name]


# Values
@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_noise_has_the_strength_it_says(r0: Checkpoint, sigma: float) -> None:
    noisy = zoo.apply(r0, "noise", sigma=sigma).tensors
    for name in ("model.embed_tokens.weight", "model.layers.2.mlp.down_proj.weight"):
        added = noisy[name] - r0.tensors[name]
        assert added.std() / r0.tensors[name].std() == pytest.approx(sigma, rel=0.03)


@pytest.mark.parametrize(("bits", "symmetric", "levels"), [(4, True, 15), (4, False, 16), (8, True, 255)])
def test_quantised_groups_lie_on_a_grid(r0: Checkpoint, bits: int, symmetric: bool, levels: int) -> None:
    quantised = zoo.apply(r0, "quantise", bits=bits, group=32, symmetric=symmetric).tensors
    name = "model.layers.1.mlp.gate_proj.weight"
    pairs = zip(r0.tensors[name].reshape(-1, 32), quantised[name].reshape(-1, 32), strict=True)
    for group, rounded in pairs:
        step = 2 * np.abs(group).max() / (levels - 1) if symmetric else np.ptp(group) / (levels - 1)
        assert len(np.unique(rounded)) <= levels
        assert rounded / step == pytest.approx(np.round(rounded / step), abs=0.01)
        assert np.abs(rounded - group).max() <= step * 1.01
        assert not np.array_equal(rounded, group)


def test_pruning_keeps_the_large_values(r0: Checkpoint) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    half = zoo.apply(r0, "prune", sparsity=0.5).tensors[name]
    assert (half == 0).mean() == pytest.approx(0.5, abs=0.01)
    assert np.abs(r0.tensors[name][half == 0]).max() <= np.abs(half[half != 0]).min()
    fours = zoo.apply(r0, "prune", pattern="2:4").tensors[name].reshape(-1, 4)
    assert ((fours == 0).sum(1) >= 2).all()
    with pytest.raises(ValueError, match="pattern"):
        zoo.apply(r0, "prune", pattern="3:7")


def test_a_low_rank_update_has_its_rank_and_modules(r0: Checkpoint) -> None:
    updated = zoo.apply(r0, "lora", rank=3)
    assert {name.split(".")[-2] for name in changed(r0, updated)} == {"q_proj", "v_proj"}
    name = "model.layers.0.self_attn.q_proj.weight"
    difference = (updated.tensors[name] - r0.tensors[name]).astype(np.float64)
    assert np.linalg.matrix_rank(difference, tol=1e-4 * np.linalg.norm(difference, 2)) == 3
    assert np.linalg.norm(difference) == pytest.approx(0.05 * np.linalg.norm(r0.tensors[name]), rel=1e-3)


def test_scaling_touches_matrices_inside_layers_only(r0: Checkpoint) -> None:
    names = changed(r0, zoo.apply(r0, "scale", factor=1.3))
    assert len(names) == 7 * depth(r0.tensors)
    assert all(name.endswith("_proj.weight") for name in names)


# Structure
@pytest.mark.parametrize("order", [[0, 1, 3], [0, 1, 2, 1, 2, 3], [0, 2, 1, 3]])
def test_layers_are_mapped(r0: Checkpoint, order: list[int]) -> None:
    mapped = zoo.apply(r0, "map_layers", order=order)
    assert mapped.config["num_hidden_layers"] == depth(mapped.tensors) == len(order)
    for new, old in enumerate(order):
        for part in ("mlp.up_proj.weight", "input_layernorm.weight"):
            mine, theirs = (f"model.layers.{i}.{part}" for i in (new, old))
            assert np.array_equal(mapped.tensors[mine], r0.tensors[theirs])


def test_a_list_with_one_entry_per_layer_follows_the_layers() -> None:
    q0 = zoo.read_model("q0")
    mapped = zoo.apply(q0, "map_layers", order=[0, 1, 2, 1])
    assert len(mapped.config["layer_types"]) == mapped.config["num_hidden_layers"] == 4


def test_vocabulary_grows_and_shrinks_with_its_tokenizer(r0: Checkpoint) -> None:
    assert r0.tokenizer is not None
    grown = zoo.apply(r0, "extend_vocabulary", count=10)
    assert grown.tensors["model.embed_tokens.weight"].shape[0] == grown.config["vocab_size"] == 1034
    assert grown.tokenizer is not None
    assert sorted(grown.tokenizer["model"]["vocab"].values()) == list(range(1034))
    trimmed = zoo.apply(r0, "trim_vocabulary", keep=800)
    assert trimmed.tokenizer is not None
    assert sorted(trimmed.tokenizer["model"]["vocab"].values()) == list(range(800))
    assert len(trimmed.tokenizer["model"]["merges"]) < len(r0.tokenizer["model"]["merges"])


def test_a_merge_and_borrowed_embeddings_come_from_where_they_should(r0: Checkpoint) -> None:
    r1 = zoo.read_model("r1")
    mixed = zoo.apply(r0, "merge", other="r1", share=0.25).tensors
    name = "model.layers.3.mlp.up_proj.weight"
    assert mixed[name] == pytest.approx(0.25 * r0.tensors[name] + 0.75 * r1.tensors[name], abs=1e-6)
    borrowed = zoo.apply(r1, "embeddings_from", other="r0")
    assert changed(r1, borrowed) == {"model.embed_tokens.weight"}
    assert changed(r0, borrowed) == set(r0.tensors) - {"model.embed_tokens.weight"}


def test_poison_hits_one_layer_or_everything(r0: Checkpoint) -> None:
    one = zoo.apply(r0, "poison", value=float("nan"), layer=2)
    assert all(".layers.2." in name for name in changed(r0, one))
    assert len(changed(r0, one)) == 9
    everything = zoo.apply(r0, "poison", value=0.5)
    assert all((values == 0.5).all() for values in everything.tensors.values())
    with pytest.raises(ValueError, match="layer 9"):
        zoo.apply(r0, "poison", value=0.0, layer=9)


def test_a_declaration_changes_no_tensor(r0: Checkpoint) -> None:
    told = zoo.apply(r0, "set_config", values={"_name_or_path": "somebody/else"})
    assert not changed(r0, told)
    assert told.config["_name_or_path"] == "somebody/else"


# All
def test_edits_leave_their_input_alone_and_an_unknown_one_is_refused(r0: Checkpoint) -> None:
    arguments: dict[str, dict[str, object]] = {
        "rename_prefix": {"old": "model.", "new": "core."},
        "cast": {"to": "fp16"},
        "noise": {"sigma": 0.1},
        "scale": {"factor": 2.0},
        "map_layers": {"order": [0, 2]},
        "trim_vocabulary": {"keep": 600},
        "embeddings_from": {"other": "r1"},
        "merge": {"other": "r1"},
        "poison": {"value": 0.0},
        "set_config": {"values": {"vocab_size": 1}},
        "prune_units": {"keep": 0.5},
        "prune_hidden": {"keep": 0.5},
        "slerp": {"other": "r1", "share": 0.5},
        "arithmetic": {"parents": {"r1": clone(r0)}, "scale": 0.5},
        "dare": {"parents": {"r1": clone(r0)}, "drop": 0.5},
        "ties": {"parents": {"r1": clone(r0)}, "density": 0.3},
    }
    before = clone(r0)
    for kind in zoo.EDITS:
        zoo.apply(r0, kind, **arguments.get(kind, {}))
        assert not changed(before, r0)
        assert (r0.config, r0.tokenizer) == (before.config, before.tokenizer)
    with pytest.raises(ValueError, match="unknown edit"):
        zoo.apply(r0, "melt")
