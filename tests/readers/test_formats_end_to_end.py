"""A trained model in every further format is the same model to ``drupe inspect`` and ``drupe compare``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

import format_writers
from drupe import cli
from drupe.readers.packed import decode
from drupe.readers.packed_iq import _IQ4_VALUES
from zoo_files import MODELS, Checkpoint, Tensors, read_model, save, to_bf16

Array = NDArray[np.float32]
LLAMA = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


# Writers
def write_npz(model: Checkpoint, folder: Path) -> None:
    np.savez(folder / "weights.npz", **model.tensors)  # type: ignore[arg-type]


def write_columns(model: Checkpoint, folder: Path) -> None:
    turned = {name: np.asfortranarray(values) for name, values in model.tensors.items()}
    np.savez_compressed(folder / "weights.npz", **turned)  # type: ignore[arg-type]


def write_npy(model: Checkpoint, folder: Path) -> None:
    for name, values in model.tensors.items():
        np.save(folder / f"{name}.npy", values)


def write_flax(model: Checkpoint, folder: Path) -> None:
    """Flax's names: kernels are transposed, an embedding and a norm's scale are not."""
    arrays: dict[str, Array] = {}
    for name, values in model.tensors.items():
        stem = name.removesuffix(".weight")
        if values.ndim == 1:
            arrays[f"{stem}.scale"] = values
        elif "embed" in name:
            arrays[f"{stem}.embedding"] = values
        else:
            arrays[f"{stem}.kernel"] = values.T
    (folder / "flax_model.msgpack").write_bytes(format_writers.pack(format_writers.nested(arrays)))


def write_ctranslate2(model: Checkpoint, folder: Path) -> None:
    """As its converter for Llama: q, k and v in one, names with slashes, the head an alias; bf16."""
    names = {
        "self_attn.o_proj": "self_attention/linear_1", "mlp.gate_proj": "ffn/linear_0",
        "mlp.up_proj": "ffn/linear_0_noact", "mlp.down_proj": "ffn/linear_1",
    }  # fmt: skip
    tensors = model.tensors
    arrays = {"decoder/embeddings/weight": tensors["model.embed_tokens.weight"]}
    arrays["decoder/layer_norm/gamma"] = tensors["model.norm.weight"]
    for layer in range(model.config["num_hidden_layers"]):
        old, new = f"model.layers.{layer}.", f"decoder/layer_{layer}/"
        arrays[f"{new}self_attention/layer_norm/gamma"] = tensors[f"{old}input_layernorm.weight"]
        arrays[f"{new}ffn/layer_norm/gamma"] = tensors[f"{old}post_attention_layernorm.weight"]
        qkv = [tensors[f"{old}self_attn.{part}_proj.weight"] for part in "qkv"]
        arrays[f"{new}self_attention/linear_0/weight"] = np.concatenate(qkv)
        arrays |= {f"{new}{theirs}/weight": tensors[f"{old}{ours}.weight"] for ours, theirs in names.items()}
    packed = {name: to_bf16(values) for name, values in arrays.items()}
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}
    data = format_writers.ctranslate2(packed, aliases, name="TransformerDecoderSpec")
    (folder / "model.bin").write_bytes(data)


def gguf_name(name: str) -> str:
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in outer:
        return outer[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{LLAMA[rest.removesuffix('.weight')]}.weight"


def interleaved(name: str, values: Array, config: dict[str, Any]) -> Array:
    """The row order of q and k in GGUF."""
    kind = name.rpartition("_proj")[0][-1:]
    heads = config["num_attention_heads" if kind == "q" else "num_key_value_heads"]
    if kind not in ("q", "k"):
        return values
    return values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def write_gguf(model: Checkpoint, folder: Path, kind: str, parts: int = 0) -> None:
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama", split_max_tensors=parts)
    config = model.config
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    for name, values in model.tensors.items():
        values = interleaved(name, values, config)
        if values.ndim == 1:
            writer.add_tensor(gguf_name(name), values)
        else:
            packed = ENCODERS[kind](values)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def nearest(values: Array, step: Array) -> NDArray[np.uint8]:
    """Codes of IQ4's table, two in a byte: the first half of 32 values in the low nibbles."""
    scaled = np.divide(values, step, out=np.zeros_like(values), where=step != 0)
    codes = np.abs(scaled[..., None] - _IQ4_VALUES).argmin(-1).astype(np.uint8)
    return codes[..., :16] | codes[..., 16:] << 4


def extreme(blocks: Array) -> Array:
    """The step that maps the largest value of each group to the end of the table."""
    place = np.abs(blocks).argmax(-1)[..., None]
    return np.take_along_axis(blocks, place, -1) / np.float32(-127)


def iq4_nl(values: Array) -> NDArray[np.uint8]:
    blocks = values.reshape(values.shape[0], -1, 32)
    step = extreme(blocks).astype("<f2")
    packed = np.concatenate([step.view(np.uint8), nearest(blocks, step.astype(np.float32))], -1)
    return packed.reshape(values.shape[0], -1)


def iq4_xs(values: Array) -> NDArray[np.uint8]:
    blocks = values.reshape(values.shape[0], -1, 8, 32)
    fine = extreme(blocks)
    d = (np.abs(fine).max(-2, keepdims=True) / 31).astype("<f2")
    scale = np.clip(np.round(fine / d.astype(np.float32)), -32, 31).astype(int)
    codes = nearest(blocks, scale * d.astype(np.float32)).reshape(*blocks.shape[:2], -1)
    stored = (scale[..., 0] + 32).astype(np.uint16)
    upper = np.bitwise_or.reduce((stored >> 4) << (2 * np.arange(8, dtype=np.uint16)), -1)[..., None]
    lower = (stored[..., ::2] & 15 | (stored[..., 1::2] & 15) << 4).astype(np.uint8)
    head = d[..., 0, 0, None].view(np.uint8).reshape(*blocks.shape[:2], 2)
    packed = np.concatenate([head, upper.astype("<u2").view(np.uint8), lower, codes], -1)
    return packed.reshape(values.shape[0], -1)


ENCODERS: dict[str, Callable[[Array], NDArray[Any]]] = {
    "F16": lambda values: values.astype(np.float16),
    "IQ4_NL": iq4_nl,
    "IQ4_XS": iq4_xs,
}


# What the command line says
def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code = cli.main([*map(str, arguments), "--offline", "--format", "json"])
    out, err = capsys.readouterr()
    assert not err
    return code, json.loads(out)


Capture = pytest.CaptureFixture[str]
WRITERS: dict[str, tuple[Callable[[Checkpoint, Path], None], str, set[str]]] = {
    "npz": (write_npz, "numpy", {"cast"}),
    "npz, compressed": (write_columns, "numpy", {"cast"}),
    "npy": (write_npy, "numpy", {"cast"}),
    "flax": (write_flax, "flax", {"cast", "renamed"}),
    "ctranslate2": (write_ctranslate2, "ctranslate2", {"renamed"}),
    "split gguf": (lambda model, folder: write_gguf(model, folder, "F16", 10), "gguf", {"cast", "renamed"}),
    "gguf IQ4_NL": (
        lambda model, folder: write_gguf(model, folder, "IQ4_NL"),
        "gguf",
        {"quantised", "renamed"},
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_trained_model_in_another_format_is_a_copy(name: str, tmp_path: Path, capsys: Capture) -> None:
    write, file_format, changes = WRITERS[name]
    write(read_model("r0"), tmp_path)
    code, inspected = report(capsys, "inspect", tmp_path)
    assert code == 0
    assert file_format in json.dumps(inspected)
    code, compared = report(capsys, "compare", tmp_path, MODELS / "r0")
    assert (code, compared["verdict"]["label"]) == (1, "copy")
    weights = compared["components"]["weights"]
    assert (weights["relation"], weights["shared_fraction"]) == ("equivalent", 1.0)
    assert {change["kind"] for change in weights["transformations"]} == changes
    assert compared["components"]["architecture"]["relation"] in ("identical", "equivalent")


@pytest.mark.parametrize("name", ["npz", "flax", "ctranslate2", "split gguf", "gguf IQ4_NL"])
def test_another_model_in_that_format_is_none(name: str, tmp_path: Path, capsys: Capture) -> None:
    WRITERS[name][0](read_model("r1"), tmp_path)
    code, compared = report(capsys, "compare", tmp_path, MODELS / "r0")
    assert (code, compared["components"]["weights"]["relation"]) == (0, "independent")


def wide() -> Checkpoint:
    """IQ4_XS needs rows of 256."""
    dice = np.random.default_rng(0)
    tensors: Tensors = {"model.embed_tokens.weight": dice.standard_normal((64, 256), np.float32) / 16}
    shapes = {
        **{f"self_attn.{part}_proj": (256, 256) for part in "qkvo"}, "mlp.gate_proj": (512, 256),
        "mlp.up_proj": (512, 256), "mlp.down_proj": (256, 512),
    }  # fmt: skip
    for layer in range(2):
        for name, shape in shapes.items():
            values = dice.standard_normal(shape, np.float32) / 16
            tensors[f"model.layers.{layer}.{name}.weight"] = values
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = 1 + dice.standard_normal(256, np.float32) / 10
    tensors["model.norm.weight"] = np.ones(256, np.float32)
    config = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    return Checkpoint(tensors, config | {"num_attention_heads": 4, "num_key_value_heads": 4})


def test_iq4_xs_is_a_copy(tmp_path: Path, capsys: Capture) -> None:
    source = save(wide(), tmp_path / "source")
    (tmp_path / "suspect").mkdir()
    write_gguf(wide(), tmp_path / "suspect", "IQ4_XS")
    code, compared = report(capsys, "compare", tmp_path / "suspect", source)
    assert (code, compared["verdict"]["label"]) == (1, "copy")
    changes = compared["components"]["weights"]["transformations"]
    assert (
        next(change for change in changes if change["kind"] == "quantised")["parameters"]["scheme"]
        == "IQ4_XS"
    )


@pytest.mark.parametrize("kind", ["IQ4_NL", "IQ4_XS"])
def test_the_encoders_of_this_test_resemble_what_they_encode(kind: str) -> None:
    values = np.random.default_rng(1).standard_normal((32, 512), np.float32)
    read = decode(ENCODERS[kind](values).tobytes(), kind, values.size).reshape(values.shape)
    assert np.corrcoef(read.ravel(), values.ravel())[0, 1] > 0.995
