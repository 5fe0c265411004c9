"""Where tensors live and how their values are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from blobs import MemoryBlob
from drupe.errors import FormatError, UnsafePathError
from drupe.readers.interface import FloatArray, Window
from drupe.readers.onnx import OnnxFile, open_onnx
from drupe.sources.local import LocalTree
from onnx_models import FLOAT, MemoryTree, constant, graph, model, numbers, opened, whole

node = helper.make_node


def test_initialisers_and_constants_in_order_of_first_use() -> None:
    late, early, idle = numbers(4, 4, seed=1), numbers(4, 4, seed=2), numbers(2, seed=3)
    nodes = [
        node("MatMul", ["x", "early"], ["h"], name="first"),
        constant("middle", np.float32([1, 2, 3, 4])),
        node("Add", ["h", "middle"], ["k"], name="second"),
        node("MatMul", ["k", "late"], ["y"], name="third"),
    ]
    file = opened(model(nodes, {"idle": idle, "late": late, "early": early}))
    assert list(file.tensors) == ["early", "middle", "late", "idle"]
    assert file.consumers == {"early": "MatMul:first", "middle": "Add:second", "late": "MatMul:third"}
    for name, truth in (("late", late), ("early", early), ("idle", idle[None])):
        assert np.array_equal(whole(file, name), truth)
    assert file.metadata["graph"] == "g"


def test_weights_scaled_first_are_ordered_by_their_use() -> None:
    scales = {f"s{i}": np.float32([1 + i]) for i in range(2)}
    weights = {f"q{i}": np.ones((2, 2), np.int8) for i in range(2)}
    nodes = [
        n
        for i in (1, 0)
        for n in (node("Cast", [f"q{i}"], [f"f{i}"], to=FLOAT), node("Mul", [f"f{i}", f"s{i}"], [f"w{i}"]))
    ]
    nodes += [node("MatMul", ["x", "w0"], ["h"]), node("MatMul", ["h", "w1"], ["y"])]
    file = opened(model(nodes, {**weights, **scales}))
    assert [name for name in file.tensors if name not in file.auxiliary] == ["q0", "q1"]


def test_sub_graphs_are_entered_and_named_by_their_path() -> None:
    inner = {"w": numbers(2, 2, seed=1)}
    then = graph([node("MatMul", ["x", "w"], ["t"])], inner, (), ("t",))
    nested = node("If", ["c"], ["e"], then_branch=then, else_branch=then, name="deep")
    other = graph([nested, constant("unused", np.float32([7]))], {"w": numbers(2, 2, seed=2)}, (), ("e",))
    body = graph(
        [node("Identity", ["cond"], ["again"]), node("MatMul", ["v", "w"], ["o"])],
        {"w": numbers(2, 2, seed=3)},
        ("i", "cond", "v"),
        ("again", "o"),
    )
    nodes = [
        node("If", ["c"], ["h"], then_branch=then, else_branch=other, name="if_node"),
        node("Loop", ["n", "c", "h"], ["y"], body=body, name="loop"),
    ]
    file = opened(model(nodes, {}, inputs=("x", "c", "n")))
    assert set(file.tensors) == {
        "if_node/then/w",
        "if_node/else/w",
        "if_node/else/unused",
        "if_node/else/deep/then/w",
        "if_node/else/deep/else/w",
        "loop/body/w",
    }
    assert np.array_equal(whole(file, "if_node/else/deep/else/w"), inner["w"])
    assert np.array_equal(whole(file, "loop/body/w"), numbers(2, 2, seed=3))


def test_nodes_without_names_keep_their_tensors_apart() -> None:
    then = graph([node("MatMul", ["x", "w"], ["t"])], {"w": numbers(2, 2)}, (), ("t",))
    nodes = [node("If", ["c"], [f"h{i}"], then_branch=then, else_branch=then) for i in range(3)]
    nodes += [node("If", ["c"], ["y"], then_branch=then, else_branch=then, name="If_1")]
    assert len(opened(model(nodes, {}, inputs=("x", "c"))).tensors) == 8


def test_functions_and_tensors_passed_to_them() -> None:
    body = [constant("bias", np.float32([1, 2])), node("MatMul", ["a", "b"], ["m"], name="inside")]
    body += [node("Add", ["m", "bias"], ["r"])]
    function = helper.make_function("own", "Linear", ["a", "b"], ["r"], body, [helper.make_opsetid("", 21)])
    nodes = [node("Linear", ["x", "w"], ["h"], domain="own"), node("Linear", ["h", "v"], ["y"], domain="own")]
    file = opened(model(nodes, {"v": numbers(2, 2), "w": numbers(2, 2)}, functions=[function]))
    assert set(file.tensors) == {"w", "v", "function/own.Linear/bias"}
    assert file.consumers["w"] == "MatMul:inside"
    assert file.tensors["w"].layout == "in_out"


def test_a_tensor_in_an_attribute_of_any_operator_is_found() -> None:
    own = node("Mystery", ["x"], ["y"], name="m", domain="own")
    own.attribute.append(helper.make_attribute("weights", numpy_helper.from_array(numbers(3, 3))))
    file = opened(
        model([own, node("ConstantOfShape", ["x"], ["z"], value=numpy_helper.from_array(np.ones(1)))], {})
    )
    assert list(file.tensors) == ["m/weights"]


def test_sparse_and_strange_types_are_skipped_with_a_reason() -> None:
    proto = model([node("Identity", ["x"], ["y"])], {"kept": numbers(2)})
    values, indices = (
        helper.make_tensor("thin", FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("i", 7, [2], [0, 3]),
    )
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [9]))
    proto.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], ["hello"]))
    nbits = node("MatMulNBits", ["x", "packed", "scales"], ["z"], domain="com.microsoft", K=32, N=2)
    proto.graph.node.append(nbits)
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((2, 1, 16), np.uint8), "packed"))
    file = opened(proto)
    assert {name: reason.key for name, reason in file.skipped.items()} == {
        "thin": "onnx.sparse",
        "words": "onnx.unread_type",
        "packed": "onnx.own_packing",
    }
    assert list(file.tensors) == ["kept"]
    assert all(reason.text("en") and reason.text("zh") for reason in file.skipped.values())


INTEGERS = np.array([0, 1, -1, 5, -7, 7, -8, 3, 2, 6, -3, 4])
STORED: list[tuple[int, str, float, Any]] = [
    (TensorProto.FLOAT, "F32", 32, np.linspace(-3, 3, 12).astype(np.float32)),
    (TensorProto.DOUBLE, "F64", 64, np.linspace(-3, 3, 12)),
    (TensorProto.FLOAT16, "F16", 16, np.linspace(-3, 3, 12).astype(np.float16)),
    (TensorProto.BFLOAT16, "BF16", 16, np.linspace(-3, 3, 12).astype(ml_dtypes.bfloat16)),
    (TensorProto.FLOAT8E4M3FN, "F8_E4M3", 8, np.linspace(-3, 3, 12).astype(ml_dtypes.float8_e4m3fn)),
    (TensorProto.FLOAT8E5M2, "F8_E5M2", 8, np.linspace(-3, 3, 12).astype(ml_dtypes.float8_e5m2)),
    (TensorProto.INT8, "I8", 8, (INTEGERS * 16).astype(np.int8)),
    (TensorProto.UINT8, "U8", 8, (INTEGERS * 16 + 128).clip(0, 255).astype(np.uint8)),
    (TensorProto.INT16, "I16", 16, (INTEGERS * 4000).astype(np.int16)),
    (TensorProto.UINT16, "U16", 16, (INTEGERS * 4000 + 32000).astype(np.uint16)),
    (TensorProto.INT32, "I32", 32, (INTEGERS * 250_000_000).astype(np.int32)),
    (TensorProto.UINT32, "U32", 32, (INTEGERS + 8).astype(np.uint32)),
    (TensorProto.INT64, "I64", 64, INTEGERS * 2**55),
    (TensorProto.UINT64, "U64", 64, (INTEGERS + 8).astype(np.uint64)),
    (TensorProto.BOOL, "BOOL", 8, INTEGERS > 0),
    (TensorProto.INT4, "I4", 4, INTEGERS.astype(ml_dtypes.int4)),
    (TensorProto.UINT4, "U4", 4, (INTEGERS + 8).astype(ml_dtypes.uint4)),
]


@pytest.mark.parametrize("is_raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("count", [12, 11])
@pytest.mark.parametrize(("code", "dtype", "bits", "values"), STORED, ids=[entry[1] for entry in STORED])
def test_every_type_equals_the_reference_implementation(
    code: int, dtype: str, bits: float, values: Any, count: int, is_raw: bool
) -> None:
    values = values[:count]
    if is_raw:
        tensor = numpy_helper.from_array(values, "t")
        assert tensor.HasField("raw_data")
    else:
        tensor = helper.make_tensor("t", code, [count], values.tolist())
        assert not tensor.HasField("raw_data")
    file = opened(model([node("Identity", ["x"], ["y"])], {"t": tensor}))
    truth = numpy_helper.to_array(tensor).astype(np.float32)
    assert np.array_equal(whole(file, "t")[0], truth)
    assert (file.tensors["t"].dtype, file.tensors["t"].stored_bits) == (dtype, bits)


def test_long_typed_data_are_decoded_in_pieces() -> None:
    values = np.random.default_rng(0).integers(-(2**62), 2**62, 300_000) >> np.arange(300_000) % 60
    tensor = helper.make_tensor("t", TensorProto.INT64, [300, 1000], values)
    file = opened(model([node("Identity", ["x"], ["y"])], {"t": tensor}))
    assert np.array_equal(whole(file, "t").ravel(), values.astype(np.float32))


def test_scalars_empty_tensors_and_vectors() -> None:
    tensors = {"scalar": np.float32(4), "empty": np.zeros((0, 3), np.float32), "cube": numbers(2, 3, 4)}
    file = opened(model([node("Identity", ["x"], ["y"])], tensors))
    assert whole(file, "scalar").tolist() == [[4.0]]
    assert whole(file, "empty").size == 0
    assert np.array_equal(whole(file, "cube"), tensors["cube"].reshape(2, 12))


MIXED_ARRAYS = {
    "f32": numbers(7, 9, seed=1),
    "f16": numbers(5, 3, 3, seed=2).astype(np.float16),
    "i4": (numbers(7, 9, seed=3) * 3).astype(ml_dtypes.int4),
    "vector": numbers(31, seed=4),
}


def mixed() -> tuple[OnnxFile, MemoryBlob, dict[str, FloatArray]]:
    """A file with rows that begin within a byte, and typed data."""
    typed = helper.make_tensor("typed", TensorProto.INT8, [6, 5], list(range(-15, 15)))
    proto = model([node("Identity", ["x"], ["y"])], {**MIXED_ARRAYS, "typed": typed})
    truth = {name: array.astype(np.float32) for name, array in MIXED_ARRAYS.items()}
    truth["typed"] = np.arange(-15, 15, dtype=np.float32).reshape(6, 5)
    data = proto.SerializeToString()
    blob = MemoryBlob("model.onnx", data)
    return open_onnx(blob, MemoryTree({"model.onnx": data})), blob, truth


MIXED, MIXED_BLOB, TRUTH = mixed()


@st.composite
def windows(draw: st.DrawFn) -> Window:
    name = draw(st.sampled_from(sorted(TRUTH)))
    rows, columns = MIXED.tensors[name].matrix_shape
    top, left = draw(st.integers(0, rows)), draw(st.integers(0, columns))
    return Window(name, top, draw(st.integers(top, rows)), left, draw(st.integers(left, columns)))


@settings(deadline=None)
@given(st.lists(windows(), max_size=6))
def test_any_windows_are_read_in_one_request(wanted: list[Window]) -> None:
    before = MIXED_BLOB.batches
    values = MIXED.read(wanted)
    for window, found in zip(wanted, values, strict=True):
        truth = TRUTH[window.tensor].reshape(MIXED.tensors[window.tensor].matrix_shape)
        part = truth[window.row_start : window.row_stop, window.column_start : window.column_stop]
        assert found.dtype == np.float32
        assert np.array_equal(found, part)
    assert MIXED_BLOB.batches <= before + 1


def test_whole_rows_are_one_span() -> None:
    MIXED_BLOB.spans.clear()
    MIXED.read([Window("f32", 2, 6, 0, 9)])
    assert [length for _, length in MIXED_BLOB.spans] == [4 * 9 * 4]


@pytest.mark.parametrize("bounds", [(0, 8, 0, 9), (0, 7, 0, 10), (-1, 3, 0, 9), (4, 3, 0, 9), (0, 7, 5, 4)])
@pytest.mark.parametrize("name", ["f32", "i4"])
def test_windows_outside_are_refused(name: str, bounds: tuple[int, int, int, int]) -> None:
    with pytest.raises(FormatError, match="outside"):
        MIXED.read([Window(name, *bounds)])


def test_opening_reads_no_values() -> None:
    data = model([node("MatMul", ["x", "w"], ["y"])], {"w": numbers(1000, 1000)}).SerializeToString()
    blob = MemoryBlob("model.onnx", data)
    open_onnx(blob, MemoryTree({}))
    assert sum(length for _, length in blob.spans) < 20_000 < len(data)


def save_external(folder: Path, location: str = "weights.bin") -> dict[str, FloatArray]:
    arrays = {"a": numbers(4, 6, seed=5), "b": numbers(3, seed=6)}
    proto = model([node("MatMul", ["x", "a"], ["y"])], dict(arrays))
    onnx.save(
        proto,
        str(folder / "model.onnx"),
        save_as_external_data=True,
        location=location,
        size_threshold=0,
        all_tensors_to_one_file=True,
    )
    return arrays


def test_external_data_are_read_in_ranges(tmp_path: Path) -> None:
    arrays = save_external(tmp_path)
    tree = LocalTree(tmp_path)
    file = open_onnx(tree.open("model.onnx"), tree)
    assert np.array_equal(whole(file, "a"), arrays["a"])
    assert np.array_equal(whole(file, "b"), arrays["b"][None])
    assert file.tensors["a"].file == "weights.bin"


def relocated(folder: Path, **entries: str) -> None:
    proto = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        entry.value = entries.get(entry.key, entry.value)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    "location",
    ["../outside.bin", "/etc/passwd", "sub/../../outside.bin", "C:\\secret", "..\\outside.bin", "", "a\0b"],
)
def test_external_paths_must_stay_in_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(1000))
    save_external(folder)
    relocated(folder, location=location)
    tree = LocalTree(folder)
    with pytest.raises(UnsafePathError):
        open_onnx(tree.open("model.onnx"), tree)


def test_an_external_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_external(folder)
    (folder / "weights.bin").rename(tmp_path / "outside.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "outside.bin")
    tree = LocalTree(folder)
    with pytest.raises(UnsafePathError):
        open_onnx(tree.open("model.onnx"), tree)


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"location": "absent.bin"}, "absent.bin"),
        ({"offset": "999999"}, "weights.bin"),
        ({"length": "5"}, "5 bytes of external data, 96 expected"),
        ({"offset": "-4"}, "not a number"),
        ({"offset": "9" * 30}, "not a number"),
        ({"length": "٣"}, "not a number"),
    ],
)
def test_external_data_that_do_not_fit(tmp_path: Path, entries: dict[str, str], complaint: str) -> None:
    save_external(tmp_path)
    relocated(tmp_path, **entries)
    tree = LocalTree(tmp_path)
    with pytest.raises(FormatError, match=complaint) as caught:
        open_onnx(tree.open("model.onnx"), tree)
    assert caught.value.where == "model.onnx"


def test_external_paths_are_relative_to_the_model(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    arrays = save_external(tmp_path / "onnx")
    tree = LocalTree(tmp_path)
    file = open_onnx(tree.open("onnx/model.onnx"), tree)
    assert np.array_equal(whole(file, "a"), arrays["a"])
