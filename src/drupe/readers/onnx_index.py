"""Who makes and who uses each value of an ONNX model, across sub-graphs and functions."""

from __future__ import annotations

from collections.abc import Iterator

from drupe.errors import LimitError
from drupe.readers.onnx_graph import MAX_DEPTH, Graph, Model, Node, StoredTensor, Use

Calls = tuple[tuple[Graph, Node], ...]
"""The function calls that lead to a graph: where the call stands, outermost first."""

MAX_STEPS = 200_000
"""Steps of following values in one file, so that a crafted web of operators cannot take minutes."""

_MAX_BACKWARD = 6
_SAME_VALUES = frozenset({"Identity", "Cast", "CastLike", "Reshape", "Squeeze", "Unsqueeze", "Transpose"})


class Index:
    """Numbers the nodes in order of execution and links values to the operators that use them."""

    def __init__(self, model: Model, where: str) -> None:
        self._model = model
        self._where = where
        self._entered: set[int] = set()
        self._steps = 0
        self.graphs: list[Graph] = []
        self.last_position = 0
        for graph in (model.graph, *model.functions.values()):
            self._enter(graph, {}, 1)

    def tensors(self) -> Iterator[tuple[Graph, str, StoredTensor]]:
        """Every stored tensor with its graph and its name there, in the order of execution of the graphs."""
        for graph in self.graphs:
            for name, tensor in graph.tensors.items():
                yield graph, name, tensor

    def step(self) -> None:
        """Account for one step of following a value, forward or backward."""
        self._steps += 1
        if self._steps > MAX_STEPS:
            what, actual = "steps to follow tensors through the graph", f"more than {MAX_STEPS}"
            raise LimitError(what, limit=MAX_STEPS, actual=actual, where=self._where)

    def _enter(self, graph: Graph, scope: dict[str, list[Graph]], depth: int) -> None:
        """``scope``: value name -> the graphs around that define it, innermost last.

        Functions are entered at their first call, so that their nodes stand where they run first.
        """
        if id(graph) in self._entered:
            return
        if depth > MAX_DEPTH:
            raise LimitError("nesting depth of calls", limit=MAX_DEPTH, actual=depth, where=self._where)
        self._entered.add(id(graph))
        self.graphs.append(graph)
        _define(graph)
        names = graph.producers.keys() | graph.tensors.keys() | graph.formals.keys()
        for name in names:
            scope.setdefault(name, []).append(graph)
        for node in graph.nodes:
            self._visit(graph, node, scope, depth)
        for name in names:
            scope[name].pop()

    def _visit(self, graph: Graph, node: Node, scope: dict[str, list[Graph]], depth: int) -> None:
        self.last_position += 1
        node.position = self.last_position
        for slot, name in enumerate(node.inputs):
            owners = scope.get(name)
            if owners:
                owners[-1].uses.setdefault(name, []).append(Use(graph, node, slot))
        for inner in node.graphs:
            self._enter(inner, scope, depth + 1)
        node.function = self._model.functions.get(node.op)
        if node.function is not None:
            self._enter(node.function, {}, depth + 1)

    def stored_behind(self, graph: Graph, name: str, calls: Calls) -> StoredTensor | float | None:
        """The stored tensor (or scalar constant) that a value comes from unchanged, if it does."""
        for _ in range(_MAX_BACKWARD):
            owner = self._owner(graph, name)
            if owner is None:
                return None
            if name in owner.tensors:
                return owner.tensors[name]
            if name in owner.scalars:
                return owner.scalars[name]
            producer = owner.producers.get(name)
            if producer is not None and producer.op in _SAME_VALUES and producer.inputs:
                graph, name = owner, producer.inputs[0]
                continue
            slot = owner.formals.get(name)
            if producer is not None or slot is None or owner.parent is not None or not calls:
                return None
            (graph, call), calls = calls[-1], calls[:-1]
            if slot >= len(call.inputs):
                return None
            name = call.inputs[slot]
        return None

    def _owner(self, graph: Graph | None, name: str) -> Graph | None:
        """The innermost graph around ``graph`` that defines the value."""
        while graph is not None:
            self.step()
            if name in graph.producers or name in graph.tensors or name in graph.formals:
                return graph
            graph = graph.parent
        return None


def _define(graph: Graph) -> None:
    """Look-up tables of one graph; the empty name means "no value"."""
    for node in graph.nodes:
        graph.producers.update(dict.fromkeys(filter(None, node.outputs), node))
    graph.formals = {name: slot for slot, name in enumerate(graph.inputs) if name}
    graph.results = {name: slot for slot, name in enumerate(graph.outputs) if name}
