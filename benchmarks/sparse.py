"""Model folders made of holes: as large as real ones on paper, with values only in the rows that are sampled."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama; ``kv`` = width of keys and values."""

    width: int
    ffn: int
    layers: int
    kv: int
    heads: int
    vocabulary: int

    @property
    def config(self) -> dict[str, object]:
        """Its config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.width,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads * self.kv // self.width,
            "vocab_size": self.vocabulary,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes in file order."""
        yield "model.embed_tokens.weight", (self.vocabulary, self.width)
        for layer in range(self.layers):
            stem = f"model.layers.{layer}."
            yield stem + "input_layernorm.weight", (self.width,)
            yield stem + "mlp.down_proj.weight", (self.width, self.ffn)
            yield stem + "mlp.gate_proj.weight", (self.ffn, self.width)
            yield stem + "mlp.up_proj.weight", (self.ffn, self.width)
            yield stem + "post_attention_layernorm.weight", (self.width,)
            yield stem + "self_attn.k_proj.weight", (self.kv, self.width)
            yield stem + "self_attn.o_proj.weight", (self.width, self.width)
            yield stem + "self_attn.q_proj.weight", (self.width, self.width)
            yield stem + "self_attn.v_proj.weight", (self.kv, self.width)
        yield "model.norm.weight", (self.width,)
        yield "lm_head.weight", (self.vocabulary, self.width)


LLAMA_7B = Shape(4096, 11008, 32, 4096, 32, 32000)
LLAMA_7B_128K = Shape(4096, 14336, 32, 1024, 32, 128256)
LLAMA_70B = Shape(8192, 28672, 80, 1024, 64, 32000)
LLAMA_70B_128K = Shape(8192, 28672, 80, 1024, 64, 128256)
TINY = Shape(128, 352, 6, 128, 4, 2048)

Filled = Callable[[str], int]
"""Tensor name -> how many of its first rows have values."""
Rows = Callable[[str, int, int], NDArray[np.float32]]
"""Tensor name, rows, columns -> the values of its first rows."""


def random_rows(seed: int) -> Rows:
    """Independent Gaussians of standard deviation 0.02."""

    def make(name: str, rows: int, columns: int) -> NDArray[np.float32]:
        generator = np.random.default_rng([seed, *name.encode()])
        values = generator.standard_normal((rows, columns), np.float32)
        values *= np.float32(0.02)
        return values

    return make


def trained_rows(base: Rows, seed: int, change: float = 0.1, noise: float = 0.01) -> Rows:
    """The rows of ``base`` after a change of rank 4 and a little noise, relative to their scale."""

    def make(name: str, rows: int, columns: int) -> NDArray[np.float32]:
        values = base(name, rows, columns)
        generator = np.random.default_rng([seed, *name.encode()])
        low = generator.standard_normal((rows, 4)) @ generator.standard_normal((4, columns)) / 2.0
        rest = generator.standard_normal((rows, columns), np.float32)
        return np.asarray(values + 0.02 * (change * low.astype(np.float32) + noise * rest), np.float32)

    return make


def language_rows(base: Rows, seed: int, factors: int = 64) -> Rows:
    """The rows of ``base``, but token tables as training leaves them: what two models of one language share.

    A token is a mixture of ``factors`` meanings (the same in every model), each a direction of the model's own, and
    as much of its own: the cosines between tokens agree between independent models, as those of published ones do.
    """

    def make(name: str, rows: int, columns: int) -> NDArray[np.float32]:
        values = base(name, rows, columns)
        if rows > 1 and ("embed" in name or "head" in name):
            meanings = np.random.default_rng(0).standard_normal((rows, factors), np.float32)
            directions = np.random.default_rng([seed, 1]).standard_normal((factors, columns), np.float32)
            values += np.float32(0.02 / np.sqrt(factors)) * (meanings @ directions)
        return values

    return make


def to_bf16(values: NDArray[np.float32]) -> bytes:
    """Rounded to nearest even."""
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype("<u2").tobytes()


def write_model(
    folder: Path,
    shape: Shape,
    rows: Rows,
    *,
    filled: int | Filled,
    shards: int = 1,
    tokenizer: Path | None = None,
    padding: int = 0,
) -> Path:
    """A bf16 checkpoint whose tensors hold ``filled`` rows of values each (or by name), the rest being holes.

    ``padding``: spaces at the end of each header, which move the tensors against the pages.
    """
    amount = filled if callable(filled) else lambda name: filled
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config, indent=2))
    if tokenizer is not None:
        (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    tensors = list(shape.tensors())
    total = sum(2 * int(np.prod(extents)) for _, extents in tensors)
    groups = _split(tensors, total / shards)
    names = [_shard_name(place, len(groups)) for place in range(len(groups))]
    for name, group in zip(names, groups, strict=True):
        _write_shard(folder / name, group, rows, amount, padding)
    if len(groups) > 1:
        places = {tensor: name for name, group in zip(names, groups, strict=True) for tensor, _ in group}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


Tensors = list[tuple[str, tuple[int, ...]]]


def _split(tensors: Tensors, most: float) -> list[Tensors]:
    groups: list[Tensors] = [[]]
    size = 0.0
    for name, extents in tensors:
        bytes_ = 2 * int(np.prod(extents))
        if groups[-1] and size + bytes_ > most * 1.02:
            groups.append([])
            size = 0.0
        groups[-1].append((name, extents))
        size += bytes_
    return groups


def _shard_name(place: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{place + 1:05d}-of-{count:05d}.safetensors"


def _write_shard(path: Path, group: Tensors, rows: Rows, filled: Filled, padding: int) -> None:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    starts = {}
    for name, extents in group:
        size = 2 * int(np.prod(extents))
        entries[name] = {"dtype": "BF16", "shape": list(extents), "data_offsets": [offset, offset + size]}
        starts[name] = offset
        offset += size
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8 + padding)
    base = 8 + len(header)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, extents in group:
            height, width = (1, extents[0]) if len(extents) == 1 else extents
            file.seek(base + starts[name])
            file.write(
                to_bf16(
                    1.0 + rows(name, 1, width)
                    if len(extents) == 1
                    else rows(name, min(filled(name), height), width)
                )
            )
        file.truncate(base + offset)
        file.flush()
        os.fsync(file.fileno())


def write_tokenizer(path: Path, size: int, seed: int = 0) -> Path:
    """A byte-level BPE ``tokenizer.json`` of ``size`` pieces, about as long as published ones of that size."""
    generator = np.random.default_rng(seed)
    letters = [chr(c) for c in range(33, 127)] + [chr(c) for c in range(161, 256)] + ["Ġ"]
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    merges: list[list[str] | str] = []
    pieces = list(letters)
    while len(pieces) < size - 64:
        left, right = (pieces[int(k)] for k in (generator.random(2) ** 2 * len(pieces)).astype(int))
        joined = left + right
        if len(joined) <= 12 and joined not in vocabulary:
            vocabulary[joined] = len(pieces)
            pieces.append(joined)
            merges.append(f"{left} {right}")
    added = [
        {"id": len(pieces) + k, "content": f"<|reserved_{k}|>", "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": True}
        for k in range(64)
    ]  # fmt: skip
    document = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "byte_fallback": False,
                  "ignore_merges": True, "vocab": vocabulary, "merges": merges},
    }  # fmt: skip
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")
    return path
