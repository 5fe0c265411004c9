"""Model: which file is the weights, what is a matrix, and reading blocks in canonical orientation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from drupe.errors import FormatError, LimitError, UsageError
from drupe.model import Block, Matrix, Model, open_model
from drupe.name_groups import expand, group_names
from drupe.readers.interface import Absent, TensorInfo
from drupe.readers.weights import open_weights
from drupe.sources.local import LocalTree
from hostile_files import save_small, small
from torch_writer import write_torch
from zoo_files import MODELS, Tensors, read_model, save, write_model, write_safetensors


def opened(folder: Path) -> Model:
    return open_model(LocalTree(folder))


def by_label(model: Model) -> dict[str, Matrix]:
    return {matrix.label: matrix for matrix in model.matrices}


def write(path: Path, tensors: Tensors) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(dict(tensors), path)


def test_every_matrix_of_a_llama_has_its_role_and_its_values(tmp_path: Path) -> None:
    checkpoint = small()
    model = opened(save(checkpoint, tmp_path / "model"))
    found = by_label(model)
    assert set(found) == {"embed", *(f"0.{role}" for role in ("q", "k", "v", "o", "gate", "up", "down"))}
    assert model.parameters == sum(values.size for values in checkpoint.tensors.values())
    for matrix in model.matrices:
        exact = checkpoint.tensors[matrix.tensor]
        assert np.allclose(model.load(matrix), exact, rtol=2**-8)
        assert matrix.size == exact.size


def test_matrices_stored_as_in_by_out_are_turned() -> None:
    checkpoint = read_model("g0")
    model = opened(MODELS / "g0")
    up = by_label(model)["0.up"]
    assert up.transposed
    assert (up.rows, up.columns) == checkpoint.tensors[up.tensor].shape[::-1]
    assert np.array_equal(model.load(up), checkpoint.tensors[up.tensor].T)


def test_fused_tensors_are_split_into_their_parts() -> None:
    checkpoint = read_model("g0")
    model = opened(MODELS / "g0")
    parts = [by_label(model)[f"1.{part}"] for part in "qkv"]
    assert len({part.tensor for part in parts}) == 1
    stacked = np.concatenate([model.load(part) for part in parts])
    assert np.array_equal(stacked, checkpoint.tensors[parts[0].tensor].T)


def test_blocks_are_rectangles_of_the_canonical_matrix(tmp_path: Path) -> None:
    for folder in (save_small(tmp_path / "model"), MODELS / "g0"):
        model = opened(folder)
        blocks = [Block(m, 1, min(9, m.rows), 3, 20) for m in model.matrices]
        for block, values in zip(blocks, model.read(blocks), strict=True):
            whole = model.load(block.matrix)
            assert np.array_equal(values, whole[1 : block.row_stop, 3:20])


def test_what_was_read_is_counted_once(tmp_path: Path) -> None:
    model = opened(save_small(tmp_path / "model"))
    assert sum(model.used.values()) == 0
    first = model.matrices[0]
    model.load(first)
    model.load(first)
    assert model.used == {first.tensor: first.size}
    for matrix in model.matrices:
        model.load(matrix)
    for name in ("model.norm.weight", *(n for n in small().tensors if "layernorm" in n)):
        assert model.load_vector(name).tolist() == [1.0] * 32
    assert sum(model.used.values()) == model.parameters


def test_opening_reads_no_values(tmp_path: Path) -> None:
    write_model(tmp_path, {"w": np.zeros((1000, 1000), np.float32)}, {"model_type": "x"})
    assert opened(tmp_path).tree.meter.bytes_read < 10_000


def test_vectors_small_matrices_and_integers_are_no_matrices(tmp_path: Path) -> None:
    tensors = {
        "vector": np.zeros(4096, np.float32),
        "few_rows": np.zeros((7, 64), np.float32),
        "few_columns": np.zeros((64, 31), np.float32),
        "positions": np.zeros((64, 64), np.int64),
        "fits": np.zeros((8, 32), np.float32),
        "kernel": np.zeros((8, 4, 3, 3), np.float32),
        "empty": np.zeros((0, 64), np.float32),
        "scalar": np.zeros((), np.float32),
    }
    write(tmp_path / "model.safetensors", tensors)
    model = opened(tmp_path)
    assert {m.tensor: (m.rows, m.columns) for m in model.matrices} == {"fits": (8, 32), "kernel": (8, 36)}
    assert model.load(by_label(model)["kernel"]).shape == (8, 36)


ONE = {"w": np.ones((8, 32), np.float32)}


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["a.safetensors"], ["a.safetensors"]),
        (["sub/model.safetensors", "x.safetensors"], ["x.safetensors"]),
        (["b/model.safetensors", "a/model.safetensors"], ["a/model.safetensors"]),
    ],
)
def test_the_weights_of_a_folder_are_chosen_by_name_and_depth(
    files: list[str], chosen: list[str], tmp_path: Path
) -> None:
    for name in files:
        write(tmp_path / name, ONE)
    weights = open_weights(LocalTree(tmp_path))
    assert not isinstance(weights, Absent)
    assert sorted({info.file for info in weights.tensors.values()}) == chosen


def test_unlisted_shards_are_read_together(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", {"a": ONE["w"]})
    write(tmp_path / "b.safetensors", {"b": ONE["w"]})
    assert set(by_label(opened(tmp_path))) == {"a", "b"}
    write(tmp_path / "b.safetensors", {"a": ONE["w"]})
    with pytest.raises(FormatError, match=r"also in a\.safetensors"):
        opened(tmp_path)


def test_an_index_decides_over_loose_files(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", {"a": ONE["w"]})
    write(tmp_path / "stray.safetensors", {"a": ONE["w"]})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))
    assert opened(tmp_path).matrices[0].tensor == "a"


def test_the_selected_file_wins(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"a": ONE["w"]})
    write(tmp_path / "other.safetensors", {"b": ONE["w"]})
    model = opened(tmp_path / "other.safetensors")
    assert set(by_label(model)) == {"b"}


@pytest.mark.parametrize("suffix", ["gguf", "onnx"])
def test_several_models_are_the_users_choice(tmp_path: Path, suffix: str) -> None:
    for name in "ab":
        (tmp_path / f"{name}.{suffix}").write_bytes(b"x")
    with pytest.raises(UsageError, match=f"several models in one folder: a.{suffix}, b.{suffix}"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["tf_model.h5", "model.tflite", "noise.bin"])
def test_weights_that_are_not_read_say_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x01\x02.")
    weights = open_weights(LocalTree(tmp_path))
    assert isinstance(weights, Absent)
    assert name in str(weights.reason)
    nothing = open_weights(LocalTree(MODELS.parent / "cases"))
    assert isinstance(nothing, Absent)
    assert nothing.reason.key != weights.reason.key


def test_absent_parts_say_why(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", ONE)
    model = opened(tmp_path)
    for part in (model.config, model.tokenizer, model.code, model.documents):
        assert isinstance(part, Absent)
        assert str(part.reason)
        assert part.reason.text("zh") != part.reason.text("en")


def test_names_that_are_longer_than_those_of_any_model_are_refused_on_the_whole(tmp_path: Path) -> None:
    def write(count: int, length: int) -> None:
        names = [f"{layer:05d}" + "x" * (length - 5) for layer in range(count)]
        write_safetensors(tmp_path / "model.safetensors", dict.fromkeys(names, np.zeros((1, 1), np.float32)))

    write(16, 4096)
    assert not isinstance(open_weights(LocalTree(tmp_path)), Absent)
    write(2000, 400)
    with pytest.raises(LimitError, match=r"names.*800000 exceeds the limit of 577536"):
        open_weights(LocalTree(tmp_path))


def test_a_name_of_many_numbers_is_grouped_by_the_first_ones() -> None:
    name = ".".join(map(str, range(40)))
    groups = group_names([TensorInfo(name, (8, 8), "F32", "f")])
    assert len(groups[0].indices[0]) == 16
    assert expand(groups)[0].name == name


@pytest.mark.parametrize("name", ["model", "sha256-0123abcd", "weights.model"])
@pytest.mark.parametrize("kind", ["safetensors", "torch", "numpy"])
def test_a_named_file_with_a_strange_name_is_read_by_its_first_bytes(
    kind: str, name: str, tmp_path: Path
) -> None:
    path, values = tmp_path / name, np.ones((8, 8), np.float32)
    if kind == "safetensors":
        write_safetensors(path, {"w": values}, "fp32")
    elif kind == "torch":
        write_torch(small().with_tensors({"w": values}), tmp_path, name)
    else:
        with path.open("wb") as file:
            np.save(file, values)
    weights = open_weights(LocalTree(path))
    assert not isinstance(weights, Absent)
    assert weights.format == kind
