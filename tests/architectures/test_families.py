"""Every family that transformers makes: scheme by name, a role for every matrix, the rows of what is fused."""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.matrices import Matrix, list_matrices
from drupe.model import open_model
from drupe.readers.interface import TensorInfo
from drupe.recover.parts import parts_of
from drupe.roles import Roles, assign_roles
from drupe.sources.local import LocalTree
from zoo_files import Tensors, write_model

FACTS = Path(__file__).with_name("families.json")
_RANGE = re.compile(r"\{(\d+)-(\d+)\}")

GATED = "q k v o gate up down"
PLAIN = "q k v o up down"
MIXED = "q k v o router experts.0.gate experts.0.up experts.0.down experts.3.gate experts.3.up experts.3.down"
LATENT = "q_a q_b kv_a kv_b o"
CODERS = " ".join(
    [*(f"encoder.{role}" for role in PLAIN.split()), *(f"decoder.{role}" for role in PLAIN.split())]
    + [f"decoder.cross_{role}" for role in "qkvo"]
)
SHARED = "shared.gate shared.up shared.down"
# Roles that every layer must have, by kind; the families of each kind, and the scheme where it is called otherwise.
KINDS: dict[str, str] = {
    GATED: """llama mistral=llama qwen2 qwen3 gemma gemma2 gemma3_text=gemma3 phi3 glm glm4 cohere=llama
        cohere2=llama olmo=llama olmo2 stablelm granite=llama smollm3=llama exaone4=olmo2 modernbert nomic_bert
        llava=llama qwen2_vl=qwen2 qwen2_5_vl=qwen2 qwen3_vl=qwen3 gemma3 internvl=qwen2 paligemma=gemma""",
    PLAIN: """phi gpt2 gpt_neo gpt_neox gptj codegen gpt_bigcode gpt_bigcode_heads=gpt_bigcode starcoder2 bloom
        falcon_7b=bloom falcon_40b=falcon falcon_rw=bloom opt mpt xglm=opt persimmon nemotron=stablelm bert roberta
        xlm_roberta=roberta distilbert albert deberta deberta_v2 electra mpnet esm wav2vec2 hubert=wav2vec2
        wavlm=wav2vec2 clip siglip=clip vit deit=vit dinov2 dinov3_vit=dinov3 beit=vit vit_mae""",
    MIXED.replace("router ", ""): "mixtral phimoe qwen3_moe olmoe=qwen3_moe gpt_oss granitemoe",
    f"{MIXED.replace('router ', '')} {SHARED}": "qwen2_moe llama4 granitemoeshared=granitemoe",
    LATENT: "deepseek_v2=deepseek deepseek_v3=deepseek",
    f"{LATENT} gate up down": "minicpm3=deepseek",
    "q k v o": "glm4_moe=deepseek",
    CODERS: "bart mbart pegasus=mbart marian=bart m2m_100=mbart whisper t5",
    CODERS + " encoder.gate decoder.gate": "t5_gated=t5",
    "ssm_in ssm_out": "mamba mamba2 falcon_mamba=mamba",
    "rwkv_r rwkv_k rwkv_v rwkv_o up down": "rwkv",
}
NO_TABLE = {"wav2vec2", "hubert", "wavlm", "vit", "deit", "dinov2", "dinov3_vit", "beit", "vit_mae"}
"""Families that read no tokens."""


def expected() -> Iterator[tuple[str, str, str]]:
    """Family, scheme, roles of each layer."""
    kinds: dict[str, tuple[str, str]] = {}
    for roles, families in KINDS.items():
        for entry in families.split():
            family, _, scheme = entry.partition("=")
            kinds[family] = (scheme or family, roles)
    for family in facts():
        yield family, *kinds[family]


@cache
def facts() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FACTS.read_text(encoding="utf-8"))
    return found


def expand(line: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shape of ``h.{0-2}.mlp.weight 96x64``."""
    pattern, _, size = line.partition(" ")
    shape = tuple(int(extent) for extent in size.split("x") if extent)
    spans = [range(int(low), int(high) + 1) for low, high in _RANGE.findall(pattern)]
    for numbers in itertools.product(*spans):
        filled = iter(numbers)
        yield _RANGE.sub(lambda _, left=filled: str(next(left)), pattern), shape  # type: ignore[misc]


def tensors_of(family: str) -> list[TensorInfo]:
    lines = facts()[family]["tensors"]
    lines = facts()[lines]["tensors"] if isinstance(lines, str) else lines
    return [TensorInfo(name, shape, "F32", "f") for line in lines for name, shape in expand(line)]


def heads_of(family: str) -> int | None:
    config = facts()[family]["config"]
    return next((config[key] for key in ("num_attention_heads", "n_head", "n_heads") if key in config), None)


def read(family: str) -> tuple[Roles, list[Matrix]]:
    config, tensors = facts()[family]["config"], tensors_of(family)
    kinds = {config["model_type"], config.get("text_config", {}).get("model_type")}
    roles = assign_roles(tensors, kinds)
    return roles, list(list_matrices(tensors, roles, heads_of(family)))


@pytest.mark.parametrize(("family", "scheme", "layer_roles"), list(expected()))
def test_every_matrix_of_every_layer_has_its_role(family: str, scheme: str, layer_roles: str) -> None:
    roles, matrices = read(family)
    assert roles.scheme is not None
    assert roles.scheme.name == scheme
    assert roles.by_tensor.keys() == {info.name for info in tensors_of(family)}
    layers: dict[int, set[str]] = defaultdict(set)
    for matrix in matrices:
        assert matrix.role is not None, matrix
        assert "+" not in matrix.role, matrix
        if matrix.layer is not None and not matrix.role.startswith(("tower", "deepstack", "features")):
            layers[matrix.layer].add(matrix.role)
    wanted = set(layer_roles.split())
    assert sorted(layers) == ([0] if family == "albert" else [0, 1, 2])
    for layer, found in layers.items():
        assert wanted <= found, (layer, wanted - found)
    assert any(matrix.role == "embed" for matrix in matrices) is (family not in NO_TABLE)
    assert len({matrix.label for matrix in matrices}) == len(matrices)


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "glm4_moe"])
def test_the_first_layers_of_a_mixture_may_be_dense(family: str) -> None:
    layers: dict[int, set[str]] = defaultdict(set)
    for matrix in read(family)[1]:
        layers[-1 if matrix.layer is None else matrix.layer].add(matrix.role or "")
    assert {"gate", "up", "down"} <= layers[0]
    for layer in (1, 2):
        assert {"experts.3.up", "shared.up", "shared.gate", "shared.down"} <= layers[layer]
        assert "up" not in layers[layer]


@pytest.mark.parametrize(
    "family", ["llava", "gemma3", "paligemma", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"]
)
def test_the_language_model_speaks_for_the_whole_and_the_images_have_a_tower(family: str) -> None:
    towers: dict[int, set[str]] = defaultdict(set)
    for matrix in read(family)[1]:
        if matrix.role is not None and matrix.role.startswith("tower2.") and matrix.layer is not None:
            towers[matrix.layer].add(matrix.role.removeprefix("tower2."))
    assert len(towers) >= 3
    blocks = [roles for roles in towers.values() if "q" in roles]
    assert all(set(PLAIN.split()) <= roles for roles in blocks)


def numbered(info: TensorInfo, is_fused: bool) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Row numbers as values; a stack of experts (experts, in, out) counts its outputs, Conv1D too."""
    rows = max(info.shape[-2:]) if is_fused and len(info.shape) > 1 else 0
    if not rows:
        return np.ones(info.shape, np.float32)
    count = np.arange(rows, dtype=np.float32)
    last = info.shape[-1] == rows
    return np.broadcast_to(count if last else count[:, None], info.shape).astype(np.float32)


@pytest.mark.parametrize("family", [name for name, entry in facts().items() if entry["rows"]])
def test_fused_rows_are_those_that_the_code_of_the_family_reads(family: str, tmp_path: Path) -> None:
    roles, _ = read(family)
    rows = facts()[family]["rows"]
    values: Tensors = {}
    for info in tensors_of(family):
        role = roles.by_tensor[info.name]
        values[info.name] = numbered(info, role.name in rows)
    write_model(tmp_path, values, facts()[family]["config"], dtype="fp32")
    model = open_model(LocalTree(tmp_path))
    for fused, parts in rows.items():
        tensors = {name for name, role in roles.by_tensor.items() if role.name == fused and role.layer == 1}
        for part, listed in parts.items():
            wanted = [row for first, count in listed for row in range(first, first + count)]
            mine = [m for m in model.matrices if m.tensor in tensors and (m.role or "").endswith(part)]
            assert mine
            for matrix in mine:
                loaded = model.load(matrix)
                assert loaded.shape == (matrix.rows, matrix.columns)
                assert loaded[:, 0].tolist() == wanted
                assert loaded[:, -1].tolist() == wanted


GAINS = [
    ("llama", "q", "input_layernorm", 0.0),
    ("llama", "up", "post_attention_layernorm", 0.0),
    ("gemma", "gate", "post_attention_layernorm", 1.0),  # Gemma stores gain - 1
    ("gemma2", "gate", "pre_feedforward_layernorm", 1.0),
    ("falcon_7b", "up", "input_layernorm", 0.0),  # attention and FFN side by side, behind one norm
    ("mixtral", "experts.2.up", "post_attention_layernorm", 0.0),
    ("qwen2_moe", "shared.up", "post_attention_layernorm", 0.0),
    ("deepseek_v3", "kv_a", "input_layernorm", 0.0),
    ("olmo2", "up", None, 0.0),
    ("bart", "encoder.up", None, 0.0),
]


@pytest.mark.parametrize(("family", "role", "norm", "offset"), GAINS)
def test_the_gain_in_front_of_a_matrix(
    family: str, role: str, norm: str | None, offset: float, tmp_path: Path
) -> None:
    values = {
        info.name: np.full(info.shape, place, np.float32) for place, info in enumerate(tensors_of(family))
    }
    write_model(tmp_path, values, facts()[family]["config"], dtype="fp32")
    parts = parts_of(open_model(LocalTree(tmp_path)))
    assert (role, 1) in parts.places
    gain = parts.gain(role, 1)
    if norm is None:
        assert gain is None
        return
    (stored,) = (value for name, value in values.items() if name.endswith(f".1.{norm}.weight"))
    assert gain is not None
    assert np.array_equal(gain, stored + offset)


@pytest.mark.filterwarnings("ignore")
def test_the_facts_are_those_of_the_installed_transformers() -> None:
    pytest.importorskip("transformers", reason="pip install 'drupe[train]'")
    from architectures import make

    for family in make.FAMILIES:
        made, kept = make.facts_of(family), facts()[family]
        if isinstance(kept["tensors"], str):
            kept = {**kept, "tensors": facts()[kept["tensors"]]["tensors"]}
        assert json.loads(json.dumps(made)) == kept, family
