"""The zoo: what people do to a model's weights, as pure functions Checkpoint -> Checkpoint, seeded.

``EDITS`` names them for the truth tables of ``tests/cases``; ``apply`` runs one by name. Weights have
Hugging Face's Llama names; Qwen2, GPT-2 and BERT work where only values, names or layers are touched.

>>> apply(read_model("r0"), "noise", sigma=0.1).tensors.keys() == read_model("r0").tensors.keys()
True
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from zoo_exact import fold_gains, permute_heads, permute_units, rescale_units, rotate
from zoo_files import Checkpoint, Tensor, Tensors, read_model, save, write_model
from zoo_maps import (
    permute_any_units,
    permute_experts,
    permute_hidden,
    permute_vocabulary,
    prune_hidden,
    prune_units,
    rescale_heads,
    to_experts,
)
from zoo_merges import arithmetic, dare, slerp, ties
from zoo_structure import (
    drop_tokenizer,
    embeddings_from,
    extend_vocabulary,
    map_layers,
    merge,
    poison,
    set_config,
    trim_vocabulary,
)

__all__ = ["EDITS", "Checkpoint", "apply", "read_model", "save", "write_model"]


# Names and files
def rename_yi(model: Checkpoint) -> Checkpoint:
    """Yi v0's two renames of Llama's norms."""
    renames = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}
    pattern = re.compile("|".join(renames))
    return model.with_tensors(
        {pattern.sub(lambda hit: renames[hit.group()], name): v for name, v in model.tensors.items()}
    )


def rename_prefix(model: Checkpoint, *, old: str, new: str) -> Checkpoint:
    """Another prefix (Llama3-V: ``vpm.`` -> ``vison.``)."""
    tensors = {new + n[len(old) :] if n.startswith(old) else n: v for n, v in model.tensors.items()}
    return model.with_tensors(tensors)


def rename_all(model: Checkpoint, *, seed: int = 0, shuffle: bool = True) -> Checkpoint:
    """Opaque names (``t_9f3a``), and the tensors in another order unless ``shuffle`` is false."""
    dice = np.random.default_rng(seed)
    names = list(model.tensors)
    if shuffle:
        names = [names[i] for i in dice.permutation(len(names))]
    codes = dice.choice(1 << 20, size=len(names), replace=False)
    return model.with_tensors(
        {f"t_{code:05x}": model.tensors[n] for n, code in zip(names, codes, strict=True)}
    )


def fuse_qkv(model: Checkpoint) -> Checkpoint:
    """Baichuan's layout: q, k and v stacked into ``self_attn.W_pack``."""
    tensors: Tensors = {}
    for name, values in model.tensors.items():
        hit = re.match(r"(.*self_attn\.)([qkv])_proj\.(weight|bias)$", name)
        if hit is None:
            tensors[name] = values
        elif hit.group(2) == "q":
            parts = [model.tensors[f"{hit.group(1)}{part}_proj.{hit.group(3)}"] for part in "qkv"]
            tensors[f"{hit.group(1)}W_pack.{hit.group(3)}"] = np.concatenate(parts)
    return model.with_tensors(tensors)


def reshard(model: Checkpoint, *, files: int = 3) -> Checkpoint:
    """The same tensors in several files with an index."""
    return replace(model, shards=files)


def cast(model: Checkpoint, *, to: str) -> Checkpoint:
    """Another dtype: ``bf16``, ``fp16`` or ``fp32``."""
    return replace(model, dtype=to)


# Values
def linear_names(tensors: Tensors) -> list[str]:
    """The matrices inside layers: what quantisers and pruners touch, embeddings and head left out."""
    return [n for n, v in tensors.items() if v.ndim == 2 and re.search(r"\b(?:layers|layer|h)\.\d+\.", n)]


def _on_linear(model: Checkpoint, change: Callable[[Tensor], Tensor]) -> Checkpoint:
    changed = {name: change(model.tensors[name]).astype(np.float32) for name in linear_names(model.tensors)}
    return model.with_tensors({**model.tensors, **changed})


def noise(model: Checkpoint, *, sigma: float, seed: int = 0) -> Checkpoint:
    """White noise of ``sigma`` times each tensor's own standard deviation, on every tensor."""
    dice = np.random.default_rng(seed)
    return model.with_tensors(
        {
            name: values
            + np.float32(sigma * values.std()) * dice.standard_normal(values.shape, dtype=np.float32)
            for name, values in model.tensors.items()
        }
    )


def quantise_groups(values: Tensor, *, bits: int = 4, group: int = 32, symmetric: bool = True) -> Tensor:
    """Round to the nearest of 2^bits levels per group of a row, and back to floats."""
    rows, columns = values.shape
    size = group if group and columns % group == 0 else columns
    blocks = values.reshape(rows, -1, size)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        step = np.maximum(np.abs(blocks).max(-1, keepdims=True) / top, 1e-12)
        return np.asarray((np.round(blocks / step) * step).reshape(rows, columns), dtype=np.float32)
    low = blocks.min(-1, keepdims=True)
    step = np.maximum((blocks.max(-1, keepdims=True) - low) / (2**bits - 1), 1e-12)
    zero = np.round(-low / step)  # an integral zero point, as GPTQ and AWQ store it
    levels = np.clip(np.round(blocks / step) + zero, 0, 2**bits - 1)
    return np.asarray(((levels - zero) * step).reshape(rows, columns), dtype=np.float32)


def quantise(model: Checkpoint, *, bits: int = 4, group: int = 32, symmetric: bool = True) -> Checkpoint:
    """Quantised and dequantised matrices; ``group`` 0 means one step per row."""
    return _on_linear(model, lambda v: quantise_groups(v, bits=bits, group=group, symmetric=symmetric))


def prune(model: Checkpoint, *, sparsity: float = 0.5, pattern: str = "tensor") -> Checkpoint:
    """The smallest values become zero: of each ``tensor``, or two of every four (``2:4``)."""

    def cut(values: Tensor) -> Tensor:
        if pattern == "2:4":
            fours = np.abs(values).reshape(-1, 4)
            kept = fours.argsort(1).argsort(1) >= 2
            return np.where(kept.reshape(values.shape), values, np.float32(0))
        return np.where(np.abs(values) > np.quantile(np.abs(values), sparsity), values, np.float32(0))

    if pattern not in ("tensor", "2:4"):
        raise ValueError(f"unknown pruning pattern {pattern!r}")
    return _on_linear(model, cut)


def lora(
    model: Checkpoint, *, rank: int = 4, size: float = 0.05, modules: str = "q_proj|v_proj", seed: int = 0
) -> Checkpoint:
    """A random update of the given rank, ``size`` times each matrix's norm, merged into the named modules."""
    dice = np.random.default_rng(seed)
    tensors = dict(model.tensors)
    for name in linear_names(tensors):
        if re.search(rf"\b(?:{modules})\b", name):
            rows, columns = tensors[name].shape
            update = dice.standard_normal((rows, rank)) @ dice.standard_normal((rank, columns))
            factor = size * np.linalg.norm(tensors[name]) / np.linalg.norm(update)
            tensors[name] = (tensors[name] + factor * update).astype(np.float32)
    return model.with_tensors(tensors)


def scale(model: Checkpoint, *, factor: float) -> Checkpoint:
    """Every matrix inside layers times one factor."""
    return _on_linear(model, lambda v: v * np.float32(factor))


Edit = Callable[..., Checkpoint]
EDITS: dict[str, Edit] = {
    edit.__name__: edit
    for edit in (
        rename_yi,
        rename_prefix,
        rename_all,
        fuse_qkv,
        reshard,
        cast,
        noise,
        quantise,
        prune,
        lora,
        scale,
        permute_units,
        permute_heads,
        fold_gains,
        rotate,
        rescale_units,
        map_layers,
        extend_vocabulary,
        trim_vocabulary,
        embeddings_from,
        merge,
        poison,
        drop_tokenizer,
        set_config,
        *(
            permute_any_units,
            permute_experts,
            permute_hidden,
            permute_vocabulary,
            prune_units,
            prune_hidden,
            rescale_heads,
        ),
        *(to_experts, slerp, arithmetic, dare, ties),
    )
}


def apply(model: Checkpoint, kind: str, **parameters: Any) -> Checkpoint:
    """Runs the edit of that name; ``other`` may be a model's name."""
    if kind not in EDITS:
        raise ValueError(f"unknown edit {kind!r}; there are {', '.join(sorted(EDITS))}")
    if isinstance(parameters.get("other"), str):
        parameters["other"] = read_model(parameters["other"])
    return EDITS[kind](model, **parameters)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> None:
    """``python tests/zoo.py r0 noise sigma=0.1 rename_all -o DIR``: edits in their order, then a model folder."""
    parser = argparse.ArgumentParser(description="Make an edited model of tests/models.")
    parser.add_argument("model")
    parser.add_argument("edits", nargs="*", metavar="EDIT [name=value ...]")
    parser.add_argument("-o", "--out", required=True)
    arguments = parser.parse_args()
    edits: list[tuple[str, dict[str, Any]]] = []
    for word in arguments.edits:
        name, is_parameter, value = word.partition("=")
        if is_parameter:
            edits[-1][1][name] = _value(value)
        else:
            edits.append((name, {}))
    model = read_model(arguments.model)
    for name, parameters in edits:
        for key in parameters.keys() & {"parents"}:
            parameters[key] = {parent: read_model(parent) for parent in parameters[key].split(",")}
        model = apply(model, name, **parameters)
    save(model, Path(arguments.out))


if __name__ == "__main__":
    main()
