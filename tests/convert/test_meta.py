"""Meta's names: rows of q and k in pairs, few settings in ``params.json``, a head that is never tied."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from convert.test_convert import same, saved, values
from drupe import cli
from drupe.workflows import convert
from zoo_files import Checkpoint, Tensor, read_model, read_safetensors

NAMES = {
    "model.": "",
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
HEADS = {"attention.wq": 4, "attention.wk": 2}


def in_pairs(matrix: Tensor, heads: int) -> Tensor:
    """The inverse of ``permute`` in transformers' convert_llama_weights_to_hf.py."""
    half = matrix.shape[0] // heads // 2
    return matrix.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(matrix.shape)


def as_meta(model: Checkpoint, **more: Any) -> Checkpoint:
    """A Llama as Meta publishes it, in the order and with the head that its code wants."""
    found: dict[str, Tensor] = {}
    for name, tensor in model.tensors.items():
        new = name
        for old, their in NAMES.items():
            new = new.replace(old, their)
        heads = next((count for part, count in HEADS.items() if part in new), 0)
        found[new] = in_pairs(tensor, heads) if heads else tensor
    found.setdefault("output.weight", found["tok_embeddings.weight"])
    params = {"dim": 64, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-6, "vocab_size": -1}
    return replace(model, tensors=found, config=params | {"multiple_of": 32} | more, tokenizer=None)


def meta(model: Checkpoint, folder: Path, **more: Any) -> str:
    path = Path(saved(as_meta(model, **more), folder))
    (path / "config.json").rename(path / "params.json")
    return str(path)


def untied(model: Checkpoint) -> Checkpoint:
    head = {"lm_head.weight": model.tensors["model.embed_tokens.weight"]}
    return replace(model, tensors=model.tensors | head)


def test_rows_in_pairs_come_half_a_head_apart_and_sizes_from_the_tensors(tmp_path: Path) -> None:
    convert(meta(read_model("r0"), tmp_path / "meta"), "llama", tmp_path / "out")
    assert same(values(tmp_path / "out"), untied(read_model("r0")))
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    wanted = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 1024, "num_key_value_heads": 2}
    assert {key: config[key] for key in wanted} == wanted
    assert (config["tie_word_embeddings"], "multiple_of" in config) == (False, False)
    modules = json.loads((tmp_path / "out" / "rename.json").read_text("utf-8"))["modules"]
    assert (modules["ffn_norm"], modules["attention_norm"]) == ("post_attention_layernorm", "input_layernorm")


def test_a_tied_llama_gets_metas_order_and_a_head_of_its_own(tmp_path: Path) -> None:
    like = meta(read_model("r1"), tmp_path / "like", rope_theta=10000.0)
    convert(saved(read_model("r0"), tmp_path / "r0"), like, tmp_path / "out")
    assert same(read_safetensors(tmp_path / "out" / "model.safetensors")[0], as_meta(read_model("r0")))
    assert not (tmp_path / "out" / "config.json").exists()
    params = json.loads((tmp_path / "out" / "params.json").read_text("utf-8"))
    assert params["multiple_of"] == 32
    assert (params["dim"], params["vocab_size"], "model_type" in params) == (64, 1024, False)


def test_a_head_that_repeats_the_embedding_is_left_out_where_the_target_ties(tmp_path: Path) -> None:
    like = saved(read_model("r1"), tmp_path / "like")
    convert(meta(read_model("r0"), tmp_path / "meta"), like, tmp_path / "out")
    assert same(values(tmp_path / "out"), read_model("r0"))
    table = json.loads((tmp_path / "out" / "rename.json").read_text("utf-8"))
    assert table["dropped"] == ["output.weight"]


def test_a_head_of_its_own_is_not_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = read_model("r0")
    head = np.flip(other.tensors["model.embed_tokens.weight"], 0).copy()
    model = meta(replace(other, tensors=other.tensors | {"lm_head.weight": head}), tmp_path / "meta")
    like = saved(read_model("r1"), tmp_path / "like")
    assert cli.main(["convert", model, "--like", like, "-o", str(tmp_path / "out")]) == 2
    assert "output.weight" in capsys.readouterr().err


def test_pairs_go_into_a_fused_matrix(tmp_path: Path) -> None:
    fused = zoo.apply(untied(read_model("r0")), "fuse_qkv")
    convert(meta(read_model("r0"), tmp_path / "meta"), saved(fused, tmp_path / "fused"), tmp_path / "out")
    assert same(values(tmp_path / "out"), fused)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"use_scaled_rope": True}, "use_scaled_rope"),
        ({"yarn": {"factor": 4}}, "yarn"),
        ({"n_heads": 5}, "another order"),
        ({"n_heads": None}, "another order"),
    ],
)
def test_what_another_dialect_cannot_say_is_refused(
    more: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = meta(read_model("r0"), tmp_path / "meta", **more)
    assert cli.main(["convert", model, "--like", "llama", "-o", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_settings_that_metas_code_has_no_key_for_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = read_model("r0")
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    ours = saved(replace(model, config={**model.config, "rope_parameters": scaled}), tmp_path / "r0")
    like = meta(read_model("r1"), tmp_path / "like")
    assert cli.main(["convert", ours, "--like", like, "-o", str(tmp_path / "out")]) == 2
    assert "rope_type linear" in capsys.readouterr().err


def test_norms_under_a_name_that_no_scheme_knows_are_found_by_the_source(tmp_path: Path) -> None:
    model = read_model("r0")
    renamed = {name.replace("input_layernorm", "pre_attn_gain"): t for name, t in model.tensors.items()}
    shell = saved(replace(model, tensors=renamed), tmp_path / "shell")
    convert(shell, saved(model, tmp_path / "r0"), tmp_path / "out")
    assert same(values(tmp_path / "out"), model)
