"""What a stored tensor of an ONNX graph is for: its consumer, its layout, how its integers become numbers.

Nothing here looks at names: exporters destroy them, while the way a weight is used cannot be hidden from the
runtime. A tensor is followed forward through operators that keep its values until one uses it as a weight.

Operators: https://onnx.ai/onnx/operators/ and, for com.microsoft,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from drupe.errors import FormatError
from drupe.readers.interface import Layout
from drupe.readers.onnx_graph import Graph, Model, Node, StoredTensor, Use
from drupe.readers.onnx_index import Calls, Index
from drupe.readers.onnx_types import DATA_TYPES, DataType

_MAX_HOPS = 8
_MAX_STATES = 64

_MS = "com.microsoft."
_KEEPS_VALUES = frozenset({"Identity", "Cast", "CastLike", "QuantizeLinear", "Dropout"})
_KEEPS_SCALE = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})


class _Slots(NamedTuple):
    """Input slots of an operator that takes an integer weight with its own scale and zero point."""

    weight: int
    scale: int | None
    zero_point: int
    axis: int
    """The axis of the weight that several scales run along."""


_QUANTISED: Mapping[str, tuple[_Slots, ...]] = {
    "MatMulInteger": (_Slots(1, None, 3, -1), _Slots(0, None, 2, 0)),
    "ConvInteger": (_Slots(1, None, 3, 0),),
    "QLinearMatMul": (_Slots(3, 4, 5, -1), _Slots(0, 1, 2, 0)),
    "QLinearConv": (_Slots(3, 4, 5, 0),),
    _MS + "MatMulIntegerToFloat": (_Slots(1, 3, 5, -1),),
    _MS + "DynamicQuantizeMatMul": (_Slots(1, 2, 3, -1),),
    _MS + "QGemm": (_Slots(3, 4, 5, -1),),
    _MS + "QAttention": (_Slots(1, 4, 7, -1),),
}
_AUXILIARY: Mapping[str, tuple[int, ...]] = {
    "DequantizeLinear": (1, 2),
    "QuantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "ConvInteger": (2, 3),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    _MS + "MatMulIntegerToFloat": (2, 3, 4, 5),
    _MS + "DynamicQuantizeMatMul": (2, 3),
    _MS + "QGemm": (1, 2, 4, 5, 7, 8),
    _MS + "QAttention": (3, 4, 6, 7),
    _MS + "DequantizeLinear": (1, 2),
    _MS + "QuantizeLinear": (1, 2),
    _MS + "MatMulNBits": (2, 3, 4),
}
_OWN_PACKING: Mapping[str, int] = {_MS + "MatMulNBits": 1, _MS + "GatherBlockQuantized": 0}
_SCALED_LATER = frozenset({"MatMulInteger", "ConvInteger", "Gather"})
"""The scale of the weight is applied to their result."""


class _Product(NamedTuple):
    """A matrix product: slots of its operands and the attributes that transpose them."""

    left: int | None
    right: int
    left_flag: str = ""
    right_flag: str = ""


_PRODUCTS: Mapping[str, _Product] = {
    "MatMul": _Product(0, 1),
    "MatMulInteger": _Product(0, 1),
    "QLinearMatMul": _Product(0, 3),
    "Gemm": _Product(0, 1, "transA", "transB"),
    _MS + "FusedMatMul": _Product(0, 1, "transA", "transB"),
    _MS + "FusedGemm": _Product(0, 1, "transA", "transB"),
    _MS + "QGemm": _Product(0, 3, "transA", "transB"),
    _MS + "MatMulIntegerToFloat": _Product(None, 1),
    _MS + "DynamicQuantizeMatMul": _Product(None, 1),
    _MS + "Attention": _Product(None, 1),
    _MS + "QAttention": _Product(None, 1),
}
_CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, _MS + "FusedConv": 1}


@dataclass(frozen=True, slots=True)
class Quantisation:
    """``value = (integer - zero_point) * scale``; names of stored tensors, or the number itself.

    ``axis`` is the axis of the weight along which there are several scales; ``block`` is the number of
    neighbours along it that share one (0: not blocked). ``scale`` None: not found, taken as 1.
    """

    scale: str | float | None
    zero_point: str | None
    axis: int
    block: int = 0


@dataclass(slots=True)
class Usage:
    """What the graph does with one stored tensor."""

    position: int
    """Where in the order of execution it is used as a weight (or touched at all)."""
    consumer: str = ""
    """``operator:node name``."""
    layout: Layout = Layout.UNKNOWN
    quantisation: Quantisation | None = None
    is_integer_weight: bool = False
    own_packing: str = ""
    """The operator that packs this weight in a way of its own, which is not read."""


@dataclass(frozen=True, slots=True)
class Usages:
    """``tensors``: all of them, by first use; ``by_name``: how; ``auxiliary``: scales and zero points."""

    tensors: Sequence[StoredTensor]
    by_name: Mapping[str, Usage]
    auxiliary: frozenset[str]


def analyse(model: Model, where: str) -> Usages:
    """How each stored tensor is used. Raises LimitError on graphs made to take long."""
    index = Index(model, where)
    analysis = _Analysis(index)
    stored, usages = [], {}
    for graph, name, tensor in index.tensors():
        if tensor.name in usages:
            raise FormatError(f"duplicate tensor name {tensor.name[:80]!r}", where=where)
        usages[tensor.name] = analysis.follow(graph, name, tensor, index.last_position + 1)
        stored.append(tensor)
    stored.sort(key=lambda tensor: usages[tensor.name].position)
    return Usages(stored, usages, frozenset(analysis.auxiliary))


class _State(NamedTuple):
    """A value on its way from the stored tensor."""

    graph: Graph
    name: str
    calls: Calls
    hops: int
    is_swapped: bool
    behind: str
    """Empty on the weight itself, else the operator whose result this is: only the scale is looked for."""


@dataclass(slots=True)
class _Trace:
    """What has been found out about one tensor."""

    tensor: StoredTensor
    type: DataType | None
    usage: Usage
    is_used: bool = False
    queue: deque[_State] = field(default_factory=deque)

    def axis(self, axis: int, is_swapped: bool) -> int:
        """The axis of the stored tensor that is ``axis`` of the value at hand."""
        rank = len(self.tensor.dims)
        axis = axis + rank if axis < 0 else axis
        return 1 - axis if is_swapped and rank == 2 else axis

    def advance(self, state: _State, name: str, *, swap: bool = False, behind: str = "") -> None:
        """Go on with the result of an operator."""
        if name and state.hops < _MAX_HOPS and len(self.queue) < _MAX_STATES:
            swapped = state.is_swapped != swap
            behind = behind or state.behind
            self.queue.append(_State(state.graph, name, state.calls, state.hops + 1, swapped, behind))

    def pass_on(self, state: _State, node: Node, *, swap: bool = False, behind: str = "") -> None:
        """Go on with the first result of a node."""
        if node.outputs:
            self.advance(state, node.outputs[0], swap=swap, behind=behind)


class _Analysis:
    def __init__(self, index: Index) -> None:
        self.index = index
        self.auxiliary: set[str] = set()

    def follow(self, graph: Graph, name: str, tensor: StoredTensor, never: int) -> Usage:
        """Breadth first from the stored tensor to the operators that use it."""
        uses = graph.uses.get(name, ())
        usage = Usage(uses[0].node.position if uses else never, _label(uses[0].node) if uses else "")
        trace = _Trace(tensor, DATA_TYPES.get(tensor.data_type), usage)
        trace.queue.append(_State(graph, name, (), 0, False, ""))
        for _ in range(_MAX_STATES):
            if not trace.queue:
                break
            self.visit(trace.queue.popleft(), trace)
        return usage

    def visit(self, state: _State, trace: _Trace) -> None:
        """All consumers of a value, and the caller when the value is the result of a function."""
        if state.calls and state.graph.parent is None:
            caller, call = state.calls[-1]
            output = state.graph.results.get(state.name)
            if output is not None and output < len(call.outputs):
                outer = state._replace(graph=caller, calls=state.calls[:-1])
                trace.advance(outer, call.outputs[output])
        for use in state.graph.uses.get(state.name, ())[:_MAX_STATES]:
            self.index.step()
            self.use(state._replace(graph=use.graph), use, trace)

    def use(self, state: _State, use: Use, trace: _Trace) -> None:
        """One consumer: step into it, pass through it, or take it as the use."""
        node, slot = use.node, use.slot
        if node.function is not None:
            if slot < len(node.function.inputs):
                inner = state._replace(graph=node.function, calls=(*state.calls, (use.graph, node)))
                trace.advance(inner, node.function.inputs[slot])
        elif node.op == "Loop" and node.graphs and slot < len(node.graphs[0].inputs):
            trace.advance(state._replace(graph=node.graphs[0]), node.graphs[0].inputs[slot])
        elif slot in _AUXILIARY.get(node.op, ()):
            self.mark(None if state.behind else trace.tensor.name)
        elif node.op in _KEEPS_VALUES or (state.behind and node.op in _KEEPS_SCALE):
            trace.pass_on(state, node)
        elif node.op == "Transpose":
            self.transpose(state, node, trace)
        elif node.op.removeprefix(_MS) == "DequantizeLinear":
            self.dequantise(state, node, trace)
        elif node.op in ("Mul", "Sub") and len(node.inputs) == 2 and trace.type and trace.type.is_narrow:
            self.rescale(state, node, slot, trace)
        elif not state.behind:
            self.sink(state, node, slot, trace)

    def transpose(self, state: _State, node: Node, trace: _Trace) -> None:
        rank = len(trace.tensor.dims)
        order = node.attributes.get("perm", tuple(reversed(range(rank))))
        if state.behind or order == tuple(range(rank)):
            trace.pass_on(state, node)
        elif rank == 2 and order == (1, 0):
            trace.pass_on(state, node, swap=True)
        else:
            self.sink(state, node, 0, trace)

    def dequantise(self, state: _State, node: Node, trace: _Trace) -> None:
        scale, usage = self.stored(state, node, 1), trace.usage
        if scale is not None and trace.type and trace.type.can_be_quantised and not _has_scale(usage):
            axis = trace.axis(-1 if state.behind else node.integer("axis", 1), state.is_swapped)
            zero_point = self.stored_name(state, node, 2)
            usage.quantisation = Quantisation(scale, zero_point, axis, node.integer("block_size", 0))
            usage.is_integer_weight = True
        if not state.behind:
            trace.pass_on(state, node)

    def rescale(self, state: _State, node: Node, slot: int, trace: _Trace) -> None:
        """Sub of a zero point or Mul by a scale, on the weight or on the result of its product."""
        usage = trace.usage
        if node.op == "Sub" and slot == 0 and not state.behind:
            zero_point = self.stored_name(state, node, 1)
            self.mark(zero_point)
            usage.quantisation = usage.quantisation or Quantisation(None, zero_point, 0)
        elif node.op == "Mul" and not _has_scale(usage):
            scale = self.lookup(state, node, 1 - slot)
            if scale is None and state.behind:
                scale = self.factor(state, node, 1 - slot)
            if scale is not None:
                known = usage.quantisation.zero_point if usage.quantisation else None
                axis = self.scale_axis(scale, state, trace)
                usage.quantisation = Quantisation(_name(scale), known, axis)
                self.mark(_name(scale))
        usage.is_integer_weight = True
        if not state.behind or not _has_scale(usage):
            trace.pass_on(state, node)

    def factor(self, state: _State, node: Node, slot: int) -> StoredTensor | float | None:
        """The stored one of ``activation_scale * weight_scale``; the last one when both are stored."""
        producer = state.graph.producers.get(node.inputs[slot])
        if producer is None or producer.op != "Mul":
            return None
        found = [self.lookup(state, producer, index) for index in range(len(producer.inputs))]
        return next((scale for scale in reversed(found) if scale is not None), None)

    def scale_axis(self, scale: StoredTensor | float, state: _State, trace: _Trace) -> int:
        """The axis that a multiplied scale runs along: broadcasting aligns shapes at the last axis."""
        if state.behind == "ConvInteger":
            return 0
        dims = scale.dims if isinstance(scale, StoredTensor) else []
        wide = [index - len(dims) for index, extent in enumerate(dims) if extent != 1]
        return trace.axis(wide[0] if wide else -1, state.is_swapped)

    def sink(self, state: _State, node: Node, slot: int, trace: _Trace) -> None:
        """An operator that uses the values; the earliest one in the order of execution counts."""
        usage = trace.usage
        if not trace.is_used or node.position < usage.position:
            usage.position, usage.consumer = node.position, _label(node)
            trace.is_used = True
        if usage.layout is Layout.UNKNOWN:
            usage.layout = _layout(node, slot, len(trace.tensor.dims), state.is_swapped)
        if _OWN_PACKING.get(node.op) == slot:
            usage.own_packing = node.op
        if trace.type is None or not trace.type.is_narrow:
            return
        usage.is_integer_weight |= usage.layout is not Layout.UNKNOWN and node.op != "Gather"
        for slots in _QUANTISED.get(node.op, ()):
            if slots.weight == slot and not _has_scale(usage):
                self.own_scale(state, node, slots, trace)
        if node.op in _SCALED_LATER and not _has_scale(usage):
            trace.pass_on(state, node, behind=node.op)

    def own_scale(self, state: _State, node: Node, slots: _Slots, trace: _Trace) -> None:
        scale = None if slots.scale is None else self.stored(state, node, slots.scale)
        zero_point = self.stored_name(state, node, slots.zero_point)
        is_transposed = slots.axis == -1 and node.integer("transB", 0) != 0
        axis = trace.axis(slots.axis, state.is_swapped != is_transposed)
        trace.usage.quantisation = Quantisation(scale, zero_point, axis)
        trace.usage.is_integer_weight = True

    def lookup(self, state: _State, node: Node, slot: int) -> StoredTensor | float | None:
        if slot >= len(node.inputs) or not node.inputs[slot]:
            return None
        return self.index.stored_behind(state.graph, node.inputs[slot], state.calls)

    def stored(self, state: _State, node: Node, slot: int) -> str | float | None:
        found = self.lookup(state, node, slot)
        return None if found is None else _name(found)

    def stored_name(self, state: _State, node: Node, slot: int) -> str | None:
        found = self.lookup(state, node, slot)
        return found.name if isinstance(found, StoredTensor) else None

    def mark(self, name: str | float | None) -> None:
        if isinstance(name, str):
            self.auxiliary.add(name)


def _name(value: StoredTensor | float) -> str | float:
    return value.name if isinstance(value, StoredTensor) else value


def _label(node: Node) -> str:
    return f"{node.op}:{node.name}"


def _has_scale(usage: Usage) -> bool:
    return usage.quantisation is not None and usage.quantisation.scale is not None


def _layout(node: Node, slot: int, rank: int, is_swapped: bool) -> Layout:
    """Row = output unit, or row = input unit, from the place that a matrix has in a product."""
    if _CONVOLUTIONS.get(node.op) == slot:
        return Layout.OUT_IN
    if rank != 2:
        return Layout.UNKNOWN
    product = _PRODUCTS.get(node.op)
    if node.op == "Gather" and slot == 0:
        is_in_out = node.integer("axis", 0) != 0
    elif product is not None and slot == product.right:
        is_in_out = not node.integer(product.right_flag, 0)
    elif product is not None and slot == product.left:
        is_in_out = bool(node.integer(product.left_flag, 0))
    else:
        return Layout.UNKNOWN
    return Layout.IN_OUT if is_in_out != is_swapped else Layout.OUT_IN
