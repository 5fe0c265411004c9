"""One contract over every weight reader: the same matrices, written in each format, read to the same values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from safetensors.numpy import save_file

import format_writers
import pickle_corpus
from drupe.errors import FormatError
from drupe.model import open_weights
from drupe.readers.interface import Absent, WeightFile, Window
from drupe.sources.local import LocalTree

Arrays = dict[str, NDArray[np.float32]]
RANDOM = np.random.default_rng(0)
ARRAYS: Arrays = {
    "blk.0.up.weight": RANDOM.standard_normal((48, 64)).astype(np.float32),
    "blk.1.up.weight": RANDOM.standard_normal((48, 64)).astype(np.float32),
    "norm.weight": RANDOM.standard_normal(64).astype(np.float32),
}


def write_safetensors(folder: Path) -> None:
    save_file(ARRAYS, folder / "model.safetensors")


def write_shards(folder: Path) -> None:
    names = list(ARRAYS)
    for number, part in enumerate((names[:1], names[1:])):
        save_file({name: ARRAYS[name] for name in part}, folder / f"part-{number}.safetensors")
    index = {name: f"part-{0 if name == names[0] else 1}.safetensors" for name in names}
    text = '{"weight_map": {' + ", ".join(f'"{k}": "{v}"' for k, v in index.items()) + "}}"
    (folder / "model.safetensors.index.json").write_text(text)


def write_gguf(folder: Path) -> None:
    writer = gguf.GGUFWriter(folder / "model.gguf", "test")
    for name, values in ARRAYS.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_onnx(folder: Path) -> None:
    tensors = [numpy_helper.from_array(values, name) for name, values in ARRAYS.items()]
    nodes = [helper.make_node("Identity", [name], [f"out.{name}"]) for name in ARRAYS]
    outputs = [
        helper.make_tensor_value_info(f"out.{name}", onnx.TensorProto.FLOAT, values.shape)
        for name, values in ARRAYS.items()
    ]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], outputs, tensors)), folder / "model.onnx")


def write_gguf_parts(folder: Path) -> None:
    """One tensor in each part."""
    writer = gguf.GGUFWriter(folder / "model.gguf", "test", split_max_tensors=1)
    for name, values in ARRAYS.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_npz(folder: Path) -> None:
    np.savez(folder / "weights.npz", **ARRAYS)  # type: ignore[arg-type]


def write_npz_columns(folder: Path) -> None:
    """Compressed, and in Fortran's order."""
    turned = {name: np.asfortranarray(values) for name, values in ARRAYS.items()}
    np.savez_compressed(folder / "weights.npz", **turned)  # type: ignore[arg-type]


def write_npy(folder: Path) -> None:
    for number, (name, values) in enumerate(ARRAYS.items()):
        np.save(folder / f"{name}.npy", np.asfortranarray(values) if number else values)


def write_msgpack(folder: Path) -> None:
    (folder / "flax_model.msgpack").write_bytes(format_writers.pack(format_writers.nested(ARRAYS)))


def write_ctranslate2(folder: Path) -> None:
    (folder / "model.bin").write_bytes(format_writers.ctranslate2(ARRAYS))


def write_torch(folder: Path) -> None:
    """One storage per tensor; the layout that PyTorch itself writes is in test_torch_file.py."""
    bodies, storages = {}, {}
    for key, (name, values) in enumerate(ARRAYS.items()):
        steps = tuple(step // 4 for step in values.strides)
        bodies[name] = pickle_corpus.tensor(str(key), values.size, values.shape, steps)
        storages[f"data/{key}"] = values.tobytes()
    data = pickle_corpus.pickled(pickle_corpus.dictionary(**bodies))
    (folder / "pytorch_model.bin").write_bytes(pickle_corpus.archive(data, storages))


WRITERS: dict[str, Callable[[Path], None]] = {
    "safetensors": write_safetensors,
    "shards": write_shards,
    "gguf": write_gguf,
    "gguf_parts": write_gguf_parts,
    "npz": write_npz,
    "npz_columns": write_npz_columns,
    "npy": write_npy,
    "msgpack": write_msgpack,
    "ctranslate2": write_ctranslate2,
    "onnx": write_onnx,
    "torch": write_torch,
}


FORMATS = ("safetensors", "gguf", "onnx", "numpy", "flax", "ctranslate2", "torch")


@pytest.fixture(scope="module", params=sorted(WRITERS))
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WeightFile:
    folder = tmp_path_factory.mktemp(request.param)
    WRITERS[request.param](folder)
    opened = open_weights(LocalTree(folder))
    assert not isinstance(opened, Absent)
    return opened


def test_names_shapes_and_types_are_those_written(weights: WeightFile) -> None:
    assert {name: info.shape for name, info in weights.tensors.items()} == {
        name: values.shape for name, values in ARRAYS.items()
    }
    assert {info.dtype for info in weights.tensors.values()} == {"F32"}
    assert all(name == info.name for name, info in weights.tensors.items())
    assert weights.format in FORMATS


def test_whole_tensors_are_read_exactly(weights: WeightFile) -> None:
    windows = [Window(name, 0, *_shape(name)[:1], 0, _shape(name)[1]) for name in ARRAYS]
    for name, values in zip(ARRAYS, weights.read(windows), strict=True):
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, ARRAYS[name].reshape(_shape(name)))


def _shape(name: str) -> tuple[int, int]:
    values = ARRAYS[name]
    return (1, values.size) if values.ndim == 1 else (values.shape[0], values.shape[1])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_window_is_a_crop(weights: WeightFile, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(ARRAYS)))
    rows, columns = _shape(name)
    top, left = data.draw(st.integers(0, rows)), data.draw(st.integers(0, columns))
    bottom, right = data.draw(st.integers(top, rows)), data.draw(st.integers(left, columns))
    (values,) = weights.read([Window(name, top, bottom, left, right)])
    np.testing.assert_array_equal(values, ARRAYS[name].reshape(rows, columns)[top:bottom, left:right])


@pytest.mark.parametrize("rows", [(0, 49), (-1, 4), (5, 3)])
def test_a_window_outside_is_a_typed_error(weights: WeightFile, rows: tuple[int, int]) -> None:
    with pytest.raises(FormatError):
        weights.read([Window("blk.0.up.weight", *rows, 0, 64)])


def test_many_windows_keep_their_order(weights: WeightFile) -> None:
    windows = [Window(f"blk.{k % 2}.up.weight", k, k + 1, 0, 64) for k in (7, 2, 31, 0)]
    for window, values in zip(windows, weights.read(windows), strict=True):
        np.testing.assert_array_equal(values[0], ARRAYS[window.tensor][window.row_start])
