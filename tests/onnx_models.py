"""Small ONNX models made with the onnx package, and their opening from memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from blobs import MemoryBlob
from drupe.errors import LocatorError
from drupe.readers.interface import FloatArray, WeightFile, Window
from drupe.readers.onnx import OnnxFile, open_onnx
from drupe.sources.interface import Meter

FLOAT = TensorProto.FLOAT
Array = NDArray[Any]


@dataclass
class MemoryTree:
    """Named bytes as a model folder."""

    content: Mapping[str, bytes]
    locator: str = "memory"
    revision: None = None
    selected: None = None
    meter: Meter = field(default_factory=Meter)

    def files(self) -> Mapping[str, int]:
        return {name: len(data) for name, data in sorted(self.content.items())}

    def open(self, name: str) -> MemoryBlob:
        if name not in self.content:
            raise LocatorError("no such file", where=name)
        return MemoryBlob(name, self.content[name])


def constant(name: str, array: Array) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def graph(
    nodes: Sequence[onnx.NodeProto],
    tensors: Mapping[str, Array | onnx.TensorProto],
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] = ("y",),
    name: str = "g",
) -> onnx.GraphProto:
    stored = []
    for key, value in tensors.items():
        if isinstance(value, onnx.TensorProto):
            value.name = key
        stored.append(value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value, key))
    ins = [helper.make_tensor_value_info(key, FLOAT, None) for key in inputs]
    outs = [helper.make_tensor_value_info(key, FLOAT, None) for key in outputs]
    return helper.make_graph(nodes, name, ins, outs, initializer=stored)


def model(
    nodes: Sequence[onnx.NodeProto],
    tensors: Mapping[str, Array | onnx.TensorProto],
    functions: Sequence[onnx.FunctionProto] = (),
    **more: Any,
) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    return helper.make_model(
        graph(nodes, tensors, **more), opset_imports=opsets, functions=list(functions), ir_version=10
    )


def opened(proto: onnx.ModelProto | bytes, files: Mapping[str, bytes] | None = None) -> OnnxFile:
    data = proto if isinstance(proto, bytes) else proto.SerializeToString()
    tree = MemoryTree({"model.onnx": data, **(files or {})})
    return open_onnx(tree.open("model.onnx"), tree)


def whole(file: WeightFile, name: str) -> FloatArray:
    rows, columns = file.tensors[name].matrix_shape
    return file.read([Window(name, 0, rows, 0, columns)])[0]


def numbers(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
