"""Which folders are one model, which files of a folder are variants, and several files read as one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from drupe.readers.folders import part_folders, without_variants
from drupe.readers.interface import Absent, Window
from drupe.readers.weights import open_weights
from drupe.sources.local import LocalTree
from zoo_files import write_safetensors

WEIGHT = np.arange(64, dtype=np.float32).reshape(8, 8)


def write(path: Path, **tensors: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, tensors, "fp32")


def test_a_pipeline_names_its_folders(tmp_path: Path) -> None:
    write(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", w=WEIGHT)
    write(tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors", w=WEIGHT + 1)
    write(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", w=WEIGHT + 2)
    (tmp_path / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "X",
                "unet": ["d", "U"],
                "vae": ["d", "V"],
                "scheduler": ["d", "S"],
                "../up": ["d", "x"],
            }
        )
    )
    tree = LocalTree(tmp_path)
    assert part_folders(tree) == ("unet", "vae")
    file = open_weights(tree)
    assert not isinstance(file, Absent)
    assert list(file.tensors) == ["unet:w", "vae:w"]
    windows = [Window("vae:w", 0, 1, 0, 8), Window("unet:w", 1, 2, 0, 8), Window("vae:w", 7, 8, 0, 8)]
    first, second, third = file.read(windows)
    assert (first[0, 0], second[0, 0], third[0, 0]) == (2.0, 8.0, 58.0)
    assert {info.file for info in file.tensors.values()} == {
        f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")
    }


def test_a_sentence_transformer_keeps_its_dense_layer_apart(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", w=WEIGHT)
    write(tmp_path / "2_Dense" / "model.safetensors", w=WEIGHT)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    modules = [{"path": path} for path in ("", "1_Pooling", "2_Dense")]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    file = open_weights(LocalTree(tmp_path))
    assert not isinstance(file, Absent)
    assert list(file.tensors) == ["w", "2_Dense:w"]


@pytest.mark.parametrize(
    ("text", "expected"), [("[1, 2]", ()), ('{"path": "x"}', ()), ('[{"path": "../up"}, {"path": 7}]', ())]
)
def test_strange_lists_of_modules_name_no_folder(
    text: str, expected: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "modules.json").write_text(text)
    assert part_folders(LocalTree(tmp_path)) == expected


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["a/m.safetensors", "a/m.fp16.safetensors"], ["a/m.safetensors"]),
        (["m.fp16.safetensors", "m.bf16.safetensors"], ["m.bf16.safetensors"]),
        (["m.fp16-00001-of-00002.safetensors", "m.fp16-00002-of-00002.safetensors"], None),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None),
    ],
)
def test_one_variant_is_kept(names: list[str], kept: list[str] | None) -> None:
    assert without_variants(names) == (names if kept is None else kept)
