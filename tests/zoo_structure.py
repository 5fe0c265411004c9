"""Edits of structure: layers, vocabulary, parts taken from another model, and broken or empty models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from zoo_exact import EMBEDDING, HEAD, depth
from zoo_files import Checkpoint, Tensors

LAYER = re.compile(r"^(.*\b(?:layers|layer|h)\.)(\d+)(\..*)$")
DEPTH_KEYS = ("num_hidden_layers", "n_layer")


def map_layers(model: Checkpoint, *, order: Sequence[int]) -> Checkpoint:
    """Layer i becomes the old layer ``order[i]``: drops, repeats, swaps (SOLAR: 0 1 2 1 2 3)."""
    tensors: Tensors = {}
    for name, values in model.tensors.items():
        hit = LAYER.match(name)
        if hit is None:
            tensors[name] = values
            continue
        for new, old in enumerate(order):
            if old == int(hit.group(2)):
                tensors[f"{hit.group(1)}{new}{hit.group(3)}"] = values
    config: dict[str, Any] = {key: len(order) for key in DEPTH_KEYS if key in model.config}
    if "layer_types" in model.config:  # one entry per layer, or transformers refuses the folder
        config["layer_types"] = [model.config["layer_types"][old] for old in order]
    return model.with_tensors(tensors, **config)


def _vocabulary_tensors(tensors: Tensors) -> list[str]:
    return [name for name in (EMBEDDING, HEAD, "transformer.wte.weight") if name in tensors]


def extend_vocabulary(model: Checkpoint, *, count: int = 64, seed: int = 0) -> Checkpoint:
    """New pieces behind the old ones; their rows are the mean row plus a little noise, as trainers do."""
    tensors, dice = dict(model.tensors), np.random.default_rng(seed)
    for name in _vocabulary_tensors(tensors):
        rows = tensors[name]
        new = rows.mean(0) + 0.02 * rows.std() * dice.standard_normal((count, rows.shape[1]))
        tensors[name] = np.concatenate([rows, new.astype(np.float32)])
    size = tensors[_vocabulary_tensors(tensors)[0]].shape[0]
    tokenizer = None
    if model.tokenizer is not None:
        inner = dict(model.tokenizer["model"])
        first = len(inner["vocab"])
        inner["vocab"] = {**inner["vocab"], **{f"新片段{i}": first + i for i in range(count)}}
        tokenizer = {**model.tokenizer, "model": inner}
    return replace(model.with_tensors(tensors, vocab_size=size), tokenizer=tokenizer)


def trim_vocabulary(model: Checkpoint, *, keep: int) -> Checkpoint:
    """Only the first ``keep`` pieces, and the merges that need no other piece."""
    tensors = dict(model.tensors)
    for name in _vocabulary_tensors(tensors):
        tensors[name] = tensors[name][:keep]
    tokenizer = None
    if model.tokenizer is not None:
        inner = dict(model.tokenizer["model"])
        vocabulary = {piece: i for piece, i in inner["vocab"].items() if i < keep}
        merges = [pair for pair in inner["merges"] if "".join(pair) in vocabulary]
        inner |= {"vocab": vocabulary, "merges": merges}
        tokenizer = {**model.tokenizer, "model": inner}
    return replace(model.with_tensors(tensors, vocab_size=keep), tokenizer=tokenizer)


def embeddings_from(model: Checkpoint, *, other: Checkpoint) -> Checkpoint:
    """This model with the other one's input embeddings (and head, where there is one)."""
    tensors = dict(model.tensors)
    tensors |= {name: other.tensors[name] for name in _vocabulary_tensors(other.tensors)}
    return model.with_tensors(tensors)


def merge(model: Checkpoint, *, other: Checkpoint, share: float = 0.5) -> Checkpoint:
    """share * this + (1 - share) * other, tensor by tensor."""
    mixed = {
        name: (share * values + (1 - share) * other.tensors[name]).astype(np.float32)
        for name, values in model.tensors.items()
    }
    return model.with_tensors(mixed)


def poison(model: Checkpoint, *, value: float, layer: int | None = None) -> Checkpoint:
    """Every value (of one layer, or of all tensors) becomes ``value``; NaN and Inf are allowed."""

    def hit(name: str) -> bool:
        found = LAYER.match(name)
        return layer is None or (found is not None and int(found.group(2)) == layer)

    if layer is not None and not 0 <= layer < depth(model.tensors):
        raise ValueError(f"layer {layer} of a model of {depth(model.tensors)} layers")
    filled = {n: np.full_like(v, value) if hit(n) else v for n, v in model.tensors.items()}
    return model.with_tensors(filled)


def drop_tokenizer(model: Checkpoint) -> Checkpoint:
    """The same folder without tokenizer.json."""
    return replace(model, tokenizer=None)


def set_config(model: Checkpoint, *, values: dict[str, Any]) -> Checkpoint:
    """Other config values, the same tensors (a declaration, not a change)."""
    return model.with_tensors(dict(model.tensors), **values)
