"""Parts by the names of tensors: known words, folders, unknown prefixes, and models that are one whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drupe.division import divide, part_names
from drupe.fingerprint import from_bytes, to_bytes
from drupe.subject import Subject
from pairs import subject
from zoo_files import Checkpoint, read_model

NAMES = {
    "model.vision_tower.encoder.layers.0.q_proj.weight": "vision_tower",
    "visual.merger.mlp.0.weight": "vision_tower",
    "vpm.blocks.3.attn.qkv.weight": "vision_tower",
    "resampler.attn.in_proj_weight": "projector",
    "multi_modal_projector.linear_1.weight": "projector",
    "audio_tower.layers.0.fc1.weight": "audio_tower",
    "language_model.model.layers.0.mlp.up_proj.weight": "language_model",
    "lm_head.weight": "language_model",
}
DIFFUSION = {
    "model.diffusion_model.input_blocks.0.0.weight": "unet",
    "first_stage_model.decoder.conv_in.weight": "vae",
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": "text_encoder",
    "alphas_cumprod": "model",
}
FOLDERS = {
    "unet:conv_in.weight": "unet",
    "vae:encoder.conv_in.weight": "vae",
    "2_Dense:linear.weight": "2_Dense",
}
CODERS = {
    "model.encoder.layers.0.fc1.weight": "encoder",
    "model.decoder.layers.0.encoder_attn.q_proj.weight": "decoder",
    "shared.weight": None,
}


@pytest.mark.parametrize("names", [NAMES, DIFFUSION, FOLDERS, CODERS])
def test_known_words_divide(names: dict[str, str | None]) -> None:
    assert part_names(list(names), {}) == names


@pytest.mark.parametrize("name", ["r0", "g0", "b0", "q0", "w0"])
def test_one_whole_is_one_part(name: str, tmp_path: Path) -> None:
    parts = divide(subject(name, tmp_path))
    assert [(part.name, part.parameters) for part in parts] == [
        ("model", sum(values.size for values in read_model(name).tensors.values()))
    ]


def assembled(prefix: str) -> Checkpoint:
    model = read_model("r0")
    return model.with_tensors(
        {**model.tensors, **{prefix + name: values for name, values in read_model("g0").tensors.items()}}
    )


def shape_of(side: Subject) -> list[tuple[str, int, list[tuple[str, str | None]]]]:
    return [
        (p.name, p.parameters, sorted((m.tensor, m.role) for m in p.subject.fingerprint.weights.matrices))
        for p in divide(side)
    ]


@pytest.mark.parametrize(
    ("prefix", "name"), [("vision.", "vision_tower"), ("vison.", "tower2"), ("x.y.", "tower2")]
)
def test_a_tower_is_a_part_under_any_prefix(prefix: str, name: str, tmp_path: Path) -> None:
    parts = {part.name: part for part in divide(subject(assembled(prefix), tmp_path))}
    assert set(parts) == {name, "language_model" if name == "vision_tower" else "model"}
    tower = parts[name].subject
    assert tower.model is not None
    assert {matrix.role for matrix in tower.model.matrices} >= {"up", "down", "embed"}
    expected = read_model("g0").tensors["transformer.h.1.mlp.c_fc.weight"]
    matrix = next(m for m in tower.model.matrices if m.tensor == f"{prefix}transformer.h.1.mlp.c_fc.weight")
    assert np.array_equal(tower.model.load(matrix).T, expected)


@pytest.mark.parametrize("prefix", ["vision.", "vison."])
def test_a_fingerprint_is_divided_like_its_model(prefix: str, tmp_path: Path) -> None:
    whole = subject(assembled(prefix), tmp_path)
    stored = Subject(from_bytes(to_bytes(whole.fingerprint), "x"))
    assert shape_of(stored) == shape_of(whole)
