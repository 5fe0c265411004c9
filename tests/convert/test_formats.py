"""What is converted may lie in any format that is read; the order of rotary rows is put right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import zoo
from drupe.model import open_model
from drupe.readers.interface import Absent, Window
from drupe.sources.locator import open_tree
from drupe.workflows import convert
from readers.quantised_packers import quantised
from readers.test_formats_end_to_end import write_gguf
from torch_writer import write_torch
from zoo_files import MODELS, read_model, save


def test_gguf_becomes_a_checkpoint_with_its_rows_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    folder.mkdir()
    model = read_model("r0")
    write_gguf(model, folder, "F16")
    convert(str(folder), "llama", tmp_path / "out")
    found = values_of_any(tmp_path / "out")
    assert found.keys() == model.tensors.keys()
    for name, tensor in model.tensors.items():
        exact = tensor.astype(np.float16).astype(np.float32) if tensor.ndim > 1 else tensor
        assert np.array_equal(found[name], exact), name


def values_of_any(folder: Path) -> dict[str, np.ndarray]:
    """Of a file with several types: what Drupe itself reads."""
    weights = open_model(open_tree(str(folder), offline=True)).weights
    assert not isinstance(weights, Absent)
    found = {}
    for name, info in weights.tensors.items():
        rows, columns = info.matrix_shape
        found[name] = weights.read([Window(name, 0, rows, 0, columns)])[0].reshape(info.shape)
    return found


def test_a_pytorch_checkpoint_keeps_its_bits(tmp_path: Path) -> None:
    model = zoo.apply(read_model("r0"), "rename_yi")
    folder = tmp_path / "torch"
    folder.mkdir()
    write_torch(model, folder)
    convert(str(folder), "llama", tmp_path / "out")
    found = values_of_any(tmp_path / "out")
    assert all(np.array_equal(found[name], tensor) for name, tensor in read_model("r0").tensors.items())


def test_a_packed_model_is_written_as_the_values_that_its_library_reads(tmp_path: Path) -> None:
    model = read_model("r0")
    packed = quantised(model, "gptq", tmp_path / "gptq")
    convert(str(packed), "llama", tmp_path / "out")
    before, after = values_of_any(Path(packed)), values_of_any(tmp_path / "out")
    assert after.keys() == model.tensors.keys()
    assert all(np.array_equal(before[name], after[name]) for name in after)
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text("utf-8")


def test_conv1d_is_turned_for_a_target_with_linear_layers(tmp_path: Path) -> None:
    g0 = read_model("g0")
    turned = {name: v.T if name.endswith(CONV1D) else v for name, v in g0.tensors.items()}
    written = write_linear_gguf(turned, g0.config, tmp_path / "linear")
    convert(str(written), str(MODELS / "g0"), tmp_path / "out")
    found = values_of_any(tmp_path / "out")
    assert all(np.array_equal(found[name], v.astype(np.float32)) for name, v in g0.tensors.items())


CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
GGUF_NAMES = {
    "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm", "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip


def write_linear_gguf(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], folder: Path) -> Path:
    """GPT-2 as GGUF has it: matrices output by input."""
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "model.gguf", "gpt2")
    writer.add_head_count(config["n_head"])
    for name, v in tensors.items():
        parts = name.removeprefix("transformer.").split(".")
        inside = parts[0] == "h"
        stem = GGUF_NAMES[".".join(parts[2:-1] if inside else parts[:-1])]
        prefix = f"blk.{parts[1]}." if inside else ""
        writer.add_tensor(f"{prefix}{stem}.{parts[-1]}", np.ascontiguousarray(v, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def test_several_shards_of_float32_without_configuration(tmp_path: Path) -> None:
    model = replace(read_model("r1"), dtype="fp32", shards=4)
    folder = save(model, tmp_path / "r1")
    (folder / "config.json").unlink()
    convert(str(folder), "llama", tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()
    found = values_of_any(tmp_path / "out")
    assert all(np.array_equal(found[n], t) for n, t in model.tensors.items())
