"""Layout and dequantisation, judged by what the graph computes when it is run on the identity matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from drupe.readers.interface import FloatArray, Layout, Window
from drupe.readers.onnx import OnnxFile
from onnx_models import FLOAT, Array, constant, graph, model, numbers, opened, whole

node = helper.make_node
INT8 = np.random.default_rng(3).integers(-127, 128, (6, 4)).astype(np.int8)
UINT8 = np.random.default_rng(4).integers(0, 256, (6, 4)).astype(np.uint8)
ROW_SCALES = np.linspace(0.01, 0.06, 6).astype(np.float32)
COLUMN_SCALES = np.linspace(0.01, 0.09, 4).astype(np.float32)


def effect(proto: onnx.ModelProto, inputs: int) -> FloatArray:
    """The matrix that the graph multiplies its input by, row = input."""
    result: FloatArray = ReferenceEvaluator(proto).run(None, {"x": np.eye(inputs, dtype=np.float32)})[0]
    return result


def in_out(file: OnnxFile, name: str) -> FloatArray:
    values, layout = whole(file, name), file.tensors[name].layout
    assert layout is not Layout.UNKNOWN
    return values if layout is Layout.IN_OUT else values.T


def transposed(source: str, to: str) -> onnx.NodeProto:
    return node("Transpose", [source], [to], perm=[1, 0])


W = numbers(6, 4)
LAYOUTS: Mapping[str, tuple[Sequence[onnx.NodeProto], Layout]] = {
    "matmul": ([node("MatMul", ["x", "w"], ["y"])], Layout.IN_OUT),
    "gemm": ([node("Gemm", ["x", "w"], ["y"])], Layout.IN_OUT),
    "gemm_transposed": ([node("Gemm", ["x", "w"], ["y"], transB=1)], Layout.OUT_IN),
    "transpose": ([transposed("w", "v"), node("MatMul", ["x", "v"], ["y"])], Layout.OUT_IN),
    "default_transpose": (
        [node("Transpose", ["w"], ["v"]), node("MatMul", ["x", "v"], ["y"])],
        Layout.OUT_IN,
    ),
    "twice": (
        [transposed("w", "u"), transposed("u", "v"), node("MatMul", ["x", "v"], ["y"])],
        Layout.IN_OUT,
    ),
    "transpose_and_gemm": ([transposed("w", "v"), node("Gemm", ["x", "v"], ["y"], transB=1)], Layout.IN_OUT),
    "through_identity_and_cast": (
        [
            node("Identity", ["w"], ["u"]),
            node("Cast", ["u"], ["v"], to=FLOAT),
            node("MatMul", ["x", "v"], ["y"]),
        ],
        Layout.IN_OUT,
    ),
    "left": ([transposed("x", "t"), node("MatMul", ["w", "t"], ["s"]), transposed("s", "y")], Layout.OUT_IN),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layout_agrees_with_what_the_graph_computes(case: str) -> None:
    nodes, layout = LAYOUTS[case]
    proto = model(nodes, {"w": W})
    file = opened(proto)
    assert file.tensors["w"].layout is layout
    assert np.allclose(in_out(file, "w"), effect(proto, 6 if layout is Layout.IN_OUT else 4))


def test_embeddings_and_convolutions_are_row_per_output() -> None:
    nodes = [
        node("Gather", ["e", "x"], ["h"]),
        node("Conv", ["h", "k"], ["c"]),
        node("Add", ["c", "b"], ["y"]),
    ]
    file = opened(model(nodes, {"e": numbers(9, 4), "k": numbers(3, 2, 5), "b": numbers(1, 3, 1)}))
    assert [file.tensors[name].layout for name in "ekb"] == [Layout.OUT_IN, Layout.OUT_IN, Layout.UNKNOWN]


def test_tied_embeddings_keep_one_layout() -> None:
    nodes = [transposed("e", "head"), node("Gather", ["e", "x"], ["h"]), node("MatMul", ["h", "head"], ["y"])]
    file = opened(model(nodes, {"e": numbers(9, 4)}))
    assert file.tensors["e"].layout is Layout.OUT_IN
    assert file.consumers["e"] == "Gather:"


def test_batched_weights_have_no_layout() -> None:
    file = opened(model([node("MatMul", ["x", "w"], ["y"])], {"w": numbers(2, 3, 4)}))
    assert file.tensors["w"].layout is Layout.UNKNOWN


def dequantise(source: str, to: str, axis: int = 1, **more: Any) -> onnx.NodeProto:
    return node(
        "DequantizeLinear", [source, "s", "z"] if more.pop("zero", True) else [source, "s"], [to], axis=axis
    )


def as_int4(array: Array) -> Array:
    return (array.astype(np.int16) // 32).clip(-8, 7).astype(ml_dtypes.int4)


def as_uint4(array: Array) -> Array:
    return (array // 16).astype(ml_dtypes.uint4)


MATMUL = node("MatMul", ["x", "v"], ["y"])
FLOATED = node("Cast", ["w"], ["f"], to=FLOAT)
QUANTISED: Mapping[str, tuple[Sequence[onnx.NodeProto], Mapping[str, Array]]] = {
    "qdq_per_tensor": (
        [dequantise("w", "v"), MATMUL],
        {"w": INT8, "s": np.float32(0.02), "z": np.int8(5)},
    ),
    "qdq_per_column": (
        [dequantise("w", "v"), MATMUL],
        {"w": INT8, "s": COLUMN_SCALES, "z": np.array([1, -2, 3, 0], np.int8)},
    ),
    "qdq_per_row": ([dequantise("w", "v", 0, zero=False), MATMUL], {"w": INT8, "s": ROW_SCALES}),
    "qdq_negative_axis": ([dequantise("w", "v", -1, zero=False), MATMUL], {"w": INT8, "s": COLUMN_SCALES}),
    "qdq_then_transpose": (
        [dequantise("w", "u", 0, zero=False), transposed("u", "v"), MATMUL],
        {"w": INT8, "s": ROW_SCALES},
    ),
    "transpose_then_qdq": (
        [transposed("w", "u"), dequantise("u", "v", 1, zero=False), MATMUL],
        {"w": INT8, "s": ROW_SCALES},
    ),
    "qdq_uint8": (
        [dequantise("w", "v"), MATMUL],
        {"w": UINT8, "s": np.float32([0.02]), "z": np.uint8([128])},
    ),
    "qdq_int4": ([dequantise("w", "v", zero=False), MATMUL], {"w": as_int4(INT8), "s": COLUMN_SCALES}),
    "qdq_uint4": (
        [dequantise("w", "v"), MATMUL],
        {"w": as_uint4(UINT8), "s": COLUMN_SCALES, "z": np.array([8, 7, 9, 8], ml_dtypes.uint4)},
    ),
    "blocked": (
        [node("DequantizeLinear", ["w", "s"], ["v"], axis=0, block_size=3), MATMUL],
        {"w": INT8, "s": numbers(2, 4)},
    ),
    "constant_scale": (
        [constant("s", np.float32(0.5)), dequantise("w", "v", zero=False), MATMUL],
        {"w": INT8},
    ),
    "cast_mul_per_column": (
        [FLOATED, node("Mul", ["f", "s"], ["v"]), MATMUL],
        {"w": INT8, "s": COLUMN_SCALES[None]},
    ),
    "mul_cast_flat_scale": (
        [FLOATED, node("Mul", ["s", "f"], ["v"]), MATMUL],
        {"w": INT8, "s": COLUMN_SCALES},
    ),
    "cast_mul_per_row": (
        [FLOATED, node("Mul", ["f", "s"], ["v"]), MATMUL],
        {"w": INT8, "s": ROW_SCALES[:, None]},
    ),
    "cast_sub_mul": (
        [
            FLOATED,
            node("Cast", ["z"], ["zf"], to=FLOAT),
            node("Sub", ["f", "zf"], ["d"]),
            node("Mul", ["d", "s"], ["v"]),
            MATMUL,
        ],
        {"w": UINT8, "s": np.float32(0.1), "z": np.uint8(120)},
    ),
    "cast_transpose_mul": (
        [FLOATED, transposed("f", "t"), node("Mul", ["t", "s"], ["v"]), MATMUL],
        {"w": INT8, "s": ROW_SCALES[None]},
    ),
    "scalar_attribute": (
        [node("Constant", [], ["s"], value_float=0.25), FLOATED, node("Mul", ["f", "s"], ["v"]), MATMUL],
        {"w": INT8},
    ),
    "gemm": (
        [dequantise("w", "v", 0, zero=False), node("Gemm", ["x", "v"], ["y"], transB=1)],
        {"w": INT8, "s": ROW_SCALES},
    ),
}


@pytest.mark.parametrize("case", QUANTISED)
def test_integers_come_as_the_numbers_that_the_graph_uses(case: str) -> None:
    nodes, tensors = QUANTISED[case]
    proto = model(nodes, tensors)
    file = opened(proto)
    info = file.tensors["w"]
    assert info.is_quantised
    assert info.stored_bits == (4 if info.dtype in ("I4", "U4") else 8)
    assert file.scale_unknown == frozenset()
    assert file.auxiliary == {name for name in ("s", "z") if name in file.tensors}
    inputs = 6 if info.layout is Layout.IN_OUT else 4
    assert np.allclose(in_out(file, "w"), effect(proto, inputs), rtol=1e-5)
    part = file.read([Window("w", 1, 4, 1, 3), Window("w", 2, 3, 0, 4)])
    assert np.array_equal(part[0], whole(file, "w")[1:4, 1:3])
    assert np.array_equal(part[1], whole(file, "w")[2:3])


def integer_product(scaling: Sequence[onnx.NodeProto], **tensors: Array) -> onnx.ModelProto:
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["a", "a_scale", "a_zero"]),
        node(
            "MatMulInteger", ["a", "w", "a_zero", *(["z"] if "z" in tensors else [])], ["i"], name="product"
        ),
        node("Cast", ["i"], ["f"], to=FLOAT),
        *scaling,
    ]
    return model(nodes, {"w": UINT8, **tensors})


JOINT = [node("Mul", ["a_scale", "s"], ["as"]), node("Mul", ["f", "as"], ["y"])]
ONE_BY_ONE = [node("Mul", ["f", "a_scale"], ["g"]), node("Mul", ["g", "s"], ["y"])]


@pytest.mark.parametrize("scaling", [JOINT, ONE_BY_ONE], ids=["joint", "one_by_one"])
@pytest.mark.parametrize("scale", [np.float32([0.02]), COLUMN_SCALES], ids=["tensor", "column"])
@pytest.mark.parametrize(
    "zero", [None, np.uint8(127), np.uint8([1, 127, 128, 255])], ids=["none", "one", "column"]
)
def test_dynamic_quantisation_is_undone(
    scaling: list[onnx.NodeProto], scale: Array, zero: Array | None
) -> None:
    proto = integer_product(scaling, s=scale, **({} if zero is None else {"z": zero}))
    file = opened(proto)
    assert np.allclose(in_out(file, "w"), effect(proto, 6), rtol=1e-3, atol=1e-4)
    assert file.consumers["w"] == "MatMulInteger:product"
    assert file.auxiliary == {"s", "z"} & file.tensors.keys()


def test_an_unknown_scale_is_said_and_the_signs_are_kept() -> None:
    proto = integer_product([node("Mul", ["f", "a_scale"], ["y"])], z=np.uint8(100))
    file = opened(proto)
    assert file.scale_unknown == {"w"}
    assert np.array_equal(whole(file, "w"), UINT8.astype(np.float32) - 100)


def test_a_scale_that_does_not_fit_is_unknown() -> None:
    file = opened(model([dequantise("w", "v", zero=False), MATMUL], {"w": INT8, "s": numbers(5)}))
    assert file.scale_unknown == {"w"}
    assert np.array_equal(whole(file, "w"), INT8.astype(np.float32))


def test_static_integer_operators_carry_their_scale() -> None:
    slots = ["x", "xs", "xz", "w", "s", "z", "ys", "yz"]
    tensors = {"w": INT8, "s": COLUMN_SCALES, "z": np.zeros(4, np.int8)}
    tensors |= {"xs": np.float32(1), "ys": np.float32(1), "xz": np.uint8(0), "yz": np.uint8(0)}
    file = opened(model([node("QLinearMatMul", slots, ["y"])], tensors))
    assert np.allclose(whole(file, "w"), INT8 * COLUMN_SCALES)
    assert file.tensors["w"].layout is Layout.IN_OUT
    assert file.auxiliary == tensors.keys() - {"w"}


def test_quantised_convolutions_scale_per_output() -> None:
    kernel = np.random.default_rng(0).integers(-9, 9, (3, 2, 5)).astype(np.int8)
    scales = np.float32([0.5, 1, 2])
    nodes = [
        node("ConvInteger", ["x", "k"], ["i"]),
        node("Cast", ["i"], ["f"], to=FLOAT),
        node("Mul", ["f", "s"], ["y"]),
    ]
    file = opened(model(nodes, {"k": kernel, "s": scales[None, :, None]}))
    assert np.array_equal(whole(file, "k"), (kernel * scales[:, None, None]).reshape(3, 10))
    assert file.tensors["k"].layout is Layout.OUT_IN


def test_middle_axes_have_their_own_scales() -> None:
    cube = np.random.default_rng(0).integers(-9, 9, (3, 2, 5)).astype(np.int8)
    proto = model([dequantise("w", "y", 1, zero=False)], {"w": cube, "s": np.float32([1, 10])})
    truth = ReferenceEvaluator(proto).run(None, {"x": np.zeros(1, np.float32)})[0]
    assert np.array_equal(whole(opened(proto), "w"), truth.reshape(3, 10))


def test_embeddings_scaled_after_the_lookup() -> None:
    nodes = [node("Gather", ["w", "x"], ["g"]), node("DequantizeLinear", ["g", "s", "z"], ["y"])]
    file = opened(model(nodes, {"w": UINT8, "s": np.float32(0.5), "z": np.uint8(128)}))
    assert np.array_equal(whole(file, "w"), (UINT8.astype(np.float32) - 128) / 2)
    assert file.tensors["w"].layout is Layout.OUT_IN


def test_float_norm_gains_are_no_scales() -> None:
    nodes = [node("Mul", ["x", "gain"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
    file = opened(model(nodes, {"gain": numbers(6), "w": W}))
    assert file.auxiliary == frozenset()
    assert np.array_equal(whole(file, "w"), W)


def test_small_shape_integers_are_no_weights() -> None:
    nodes = [node("Mul", ["n", "two"], ["m"]), node("Reshape", ["x", "m"], ["y"])]
    file = opened(model(nodes, {"n": np.int64([2, 3]), "two": np.int64([2])}))
    assert not any(info.is_quantised for info in file.tensors.values())
    assert file.auxiliary == frozenset()


def test_weights_carried_by_a_loop_are_followed() -> None:
    body = graph(
        [
            node("Identity", ["c"], ["d"]),
            node("MatMul", ["v", "k"], ["o"], name="in"),
            node("Identity", ["k"], ["l"]),
        ],
        {},
        ("i", "c", "v", "k"),
        ("d", "o", "l"),
    )
    file = opened(model([node("Loop", ["n", "t", "x", "w"], ["y", "q"], body=body)], {"w": W}))
    assert file.consumers["w"] == "MatMul:in"


def test_values_returned_by_functions_are_followed() -> None:
    flip = helper.make_function(
        "own", "T", ["a"], ["b"], [transposed("a", "b")], [helper.make_opsetid("", 21)]
    )
    nodes = [node("T", ["w"], ["v"], domain="own"), MATMUL]
    proto = model(nodes, {"w": W}, functions=[flip])
    assert opened(proto).tensors["w"].layout is Layout.OUT_IN
    assert np.allclose(in_out(opened(proto), "w"), effect(proto, 4))


def test_unknown_types_of_scale_do_not_hide_the_weight() -> None:
    words = helper.make_tensor("s", TensorProto.STRING, [1], ["1"])
    file = opened(model([dequantise("w", "v", zero=False), MATMUL], {"w": INT8, "s": words}))
    assert file.scale_unknown == {"w"}


def test_the_earliest_use_counts_however_it_is_reached() -> None:
    nodes = [
        node("Identity", ["w"], ["u"]),
        node("MatMul", ["x", "u"], ["h"], name="early"),
        node("Gemm", ["h", "w"], ["y"], transB=1, name="late"),
    ]
    assert opened(model(nodes, {"w": W})).consumers["w"] == "MatMul:early"


def test_of_two_stored_factors_the_second_is_the_scale_of_the_weight() -> None:
    scaling = [node("Mul", ["fixed", "s"], ["as"]), node("Mul", ["f", "as"], ["y"])]
    file = opened(integer_product(scaling, fixed=np.float32([9]), s=np.float32([0.5])))
    assert np.array_equal(whole(file, "w"), UINT8 * np.float32(0.5))


def test_what_is_looked_up_for_a_zero_point_is_itself_none() -> None:
    nodes = [node("Gather", ["w", "n"], ["g"]), node("DequantizeLinear", ["x", "s", "g"], ["y"])]
    file = opened(model(nodes, {"w": INT8, "s": np.float32(1)}))
    assert file.auxiliary == {"s"}
