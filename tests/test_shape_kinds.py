"""Norms, attention, FFN and token tables are told apart by shapes alone, names opaque and shuffled."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from drupe.convert import blueprint
from drupe.readers.interface import TensorInfo
from drupe.roles import FFN_ROLES
from drupe.shape_kinds import ShapeKind, kinds_of_shapes
from zoo_files import read_model

ATTENTION = {"q", "k", "v", "o"}
PLAIN = (
    *(
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "phi",
        "phi3",
        "gpt2",
        "gpt_neo",
        "gpt_neox",
        "gptj",
    ),
    *(
        "codegen",
        "starcoder2",
        "bloom",
        "opt",
        "mpt",
        "xglm",
        "persimmon",
        "glm",
        "glm4",
        "cohere",
        "olmo",
        "olmo2",
    ),
    *(
        "stablelm",
        "nemotron",
        "granite",
        "smollm3",
        "exaone4",
        "bert",
        "roberta",
        "distilbert",
        "electra",
        "yi",
    ),
    *("baichuan",),
)


def shuffled(tensors: list[TensorInfo]) -> list[TensorInfo]:
    order = np.random.default_rng(0).permutation(len(tensors))
    return [TensorInfo(f"t{k}", tensors[k].shape, "F32", "f") for k in order]


@pytest.mark.parametrize("name", ["r0", "q0", "w0", "g0"])
def test_trained_models(name: str) -> None:
    tensors = [TensorInfo(key, v.shape, "F32", "f") for key, v in read_model(name).tensors.items()]
    truth = Counter(_by_name(info.name, len(info.shape)) for info in tensors)
    assert Counter(kinds_of_shapes(shuffled(tensors)).values()) == truth


def _by_name(name: str, rank: int) -> ShapeKind:
    if rank == 1:
        return ShapeKind.NORM_OR_BIAS
    if re.search(r"embed|wte|wpe|head", name):
        return ShapeKind.TABLE
    return ShapeKind.FFN if ".mlp." in name else ShapeKind.ATTENTION


@pytest.mark.parametrize("family", PLAIN)
def test_every_matrix_of_a_layer_by_its_role(family: str) -> None:
    scheme = blueprint.of_scheme(family)
    kinds = kinds_of_shapes(list(scheme.tensors.values()))
    for name, role in scheme.roles.by_tensor.items():
        if len(scheme.tensors[name].shape) != 2 or role.layer is None:
            continue
        parts = set(role.parts)
        if parts <= ATTENTION:
            assert kinds[name] is ShapeKind.ATTENTION, name
        elif parts <= FFN_ROLES:
            assert kinds[name] is ShapeKind.FFN, name


def test_nothing_is_told_where_nothing_repeats() -> None:
    tensors = [TensorInfo(f"t{k}", (10 + k, 20 + k), "F32", "f") for k in range(5)]
    assert set(kinds_of_shapes(tensors).values()) == {ShapeKind.OTHER}
    assert kinds_of_shapes([]) == {}
