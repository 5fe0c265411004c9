"""The structure of an ONNX file: nodes, edges and where tensor values lie, without reading any value.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (IR version 13). The file is walked once
through a small window; payloads are skipped by their length.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from drupe.errors import FormatError, LimitError
from drupe.readers.interface import MAX_NAME, MAX_RANK
from drupe.readers.protobuf import BlobCursor, SpanField, WireType, float32, iter_spans, signed, text
from drupe.sources.interface import Blob

MAX_DEPTH = 32
"""Graphs inside of graphs (If, Loop, Scan), and functions calling functions."""
MAX_ONNX_FIELDS = 400_000
"""Protobuf fields of one file; a language model of 10,000 nodes has about 150,000."""

_MEMORY_FLOOR = 80 << 20
_NODE_COST, _EDGE_COST, _TENSOR_COST = 500, 350, 1300
"""Bytes of memory, measured with tracemalloc on CPython 3.11 (upper estimates)."""
_MAX_TEXT = 4096
_MAX_LIST = 64
_MODEL_TEXTS = {2: "producer_name", 3: "producer_version", 4: "domain", 6: "doc_string"}
_ATTRIBUTES = frozenset(
    {"axis", "axes", "bits", "block_size", "K", "N", "perm", "transA", "transB", "value_float", "value_int"}
)
_NO_WEIGHTS = frozenset({"ConstantOfShape"})
"""Operators whose tensor attribute is a fill value."""


class External(NamedTuple):
    """Values in another file, as the tensor states it; nothing is checked yet."""

    location: str
    offset: int
    length: int | None


@dataclass(slots=True)
class StoredTensor:
    """A TensorProto without its values: ``[start, stop)`` is the span of field ``payload`` in the file."""

    name: str = ""
    dims: list[int] = field(default_factory=list)
    data_type: int = 0
    payload: int = 0
    start: int = 0
    stop: int = 0
    external: External | None = None
    is_sparse: bool = False
    is_split: bool = False
    """Values written in several pieces, or unpacked: legal, never produced, not read."""


Attribute = int | float | tuple[int, ...]


@dataclass(slots=True)
class Node:
    """One operator; ``op`` carries its domain unless that is the default one."""

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Attribute]
    graphs: list[Graph] = field(default_factory=list)
    function: Graph | None = None
    position: int = 0
    """Place in the order of execution, functions entered at their first call."""

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default


class Use(NamedTuple):
    """A value is input ``slot`` of ``node``, which lies in ``graph``."""

    graph: Graph
    node: Node
    slot: int


@dataclass(slots=True)
class Graph:
    """A graph, sub-graph or function body. Names are local; ``prefix`` makes them unique in the file."""

    prefix: str
    parent: Graph | None
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    producers: dict[str, Node] = field(default_factory=dict)
    uses: dict[str, list[Use]] = field(default_factory=dict)
    """Consumers of the values defined here, those in sub-graphs included, in order of execution."""
    formals: dict[str, int] = field(default_factory=dict)
    results: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Model:
    """Everything that an ONNX file says besides the values."""

    graph: Graph
    functions: Mapping[str, Graph]
    metadata: Mapping[str, str]


def parse_model(blob: Blob) -> Model:
    """The structure of the file. Raises FormatError or LimitError; reads no tensor values."""
    return _Parser(blob).model()


class _Parser:
    def __init__(self, blob: Blob) -> None:
        self.blob = blob
        self.where = blob.name
        self.cursor = BlobCursor(blob, MAX_ONNX_FIELDS)
        self.memory_left = 4 * blob.size + _MEMORY_FLOOR
        self.prefixes: set[str] = set()

    def spend(self, cost: int) -> None:
        """Account for memory before it is used."""
        self.memory_left -= cost
        if self.memory_left < 0:
            limit = 4 * self.blob.size + _MEMORY_FLOOR
            raise LimitError(
                "bytes of memory for the graph", limit=limit, actual=f"more than {limit}", where=self.where
            )

    def text(self, item: SpanField) -> str:
        """A string field, interned because names and operators repeat."""
        self.need(item, WireType.LENGTH)
        self.check_length(item.stop - item.start)
        value = sys.intern(text(self.cursor.read(item.start, item.stop), self.where, MAX_NAME))
        self.spend(sys.getsizeof(value))
        return value

    def check_length(self, length: int) -> None:
        if length > MAX_NAME:
            raise LimitError("length of a name", limit=MAX_NAME, actual=length, where=self.where)

    def head(self, item: SpanField) -> str:
        """The beginning of a free text."""
        self.need(item, WireType.LENGTH)
        stop = min(item.stop, item.start + _MAX_TEXT)
        return bytes(self.cursor.read(item.start, stop)).decode("utf-8", errors="replace")

    def need(self, item: SpanField, wire_type: WireType) -> None:
        if item.wire_type != wire_type:
            what = f"field {item.number} before byte {item.stop} has wire type {item.wire_type.value}"
            raise FormatError(f"{what}, expected {wire_type.value}", where=self.where)

    def number(self, item: SpanField) -> int:
        self.need(item, WireType.VARINT)
        return signed(item.bits)

    def model(self) -> Model:
        if not self.blob.size:
            raise FormatError("the file is empty", where=self.where)
        metadata: dict[str, str] = {}
        functions: dict[str, Graph] = {}
        graph: Graph | None = None
        for item in iter_spans(self.cursor, 0, self.blob.size):
            if item.number == 7:
                if graph is not None:
                    raise FormatError("more than one graph", where=self.where)
                graph = self.graph(item, "", None, 1, metadata)
            elif item.number == 25:
                self.function(item, functions)
            elif item.number == 14:
                key, value = self.entry(item)
                if len(metadata) < _MAX_LIST:
                    metadata[f"metadata_props.{key}"] = value
            elif item.number in _MODEL_TEXTS:
                metadata[_MODEL_TEXTS[item.number]] = self.head(item)
        if graph is None:
            raise FormatError("not an ONNX model: it holds no graph", where=self.where)
        return Model(graph, functions, metadata)

    def entry(self, item: SpanField) -> tuple[str, str]:
        """Key and value of a StringStringEntryProto."""
        self.need(item, WireType.LENGTH)
        parts = {1: "", 2: ""}
        for part in iter_spans(self.cursor, item.start, item.stop):
            if part.number in parts:
                parts[part.number] = self.head(part)
        return parts[1], parts[2]

    def prefix(self, wanted: str) -> str:
        """A prefix that no other graph of this file has."""
        result, count = f"{wanted}/", 1
        while result in self.prefixes:
            count += 1
            result = f"{wanted}#{count + len(self.prefixes)}/"
        self.check_length(len(result))
        self.prefixes.add(result)
        return result

    def function(self, item: SpanField, functions: dict[str, Graph]) -> None:
        self.need(item, WireType.LENGTH)
        self.spend(_NODE_COST)
        texts = {1: "", 10: "", 13: ""}
        bodies = []
        graph = Graph("", None)
        for part in iter_spans(self.cursor, item.start, item.stop):
            if part.number in texts:
                texts[part.number] = self.text(part)
            elif part.number in (4, 5):
                self.spend(_EDGE_COST)
                (graph.inputs if part.number == 4 else graph.outputs).append(self.text(part))
            elif part.number == 7:
                bodies.append(part)
        key = operator(texts[10], texts[1])
        graph.prefix = self.prefix(f"function/{key}")
        for body in bodies:
            self.node(body, graph, 1)
        functions.setdefault(key, graph)  # overloads share a name; the first stands for all

    def graph(
        self, item: SpanField, prefix: str, parent: Graph | None, depth: int, metadata: dict[str, str]
    ) -> Graph:
        self.need(item, WireType.LENGTH)
        if depth > MAX_DEPTH:
            raise LimitError("nesting depth of graphs", limit=MAX_DEPTH, actual=depth, where=self.where)
        self.spend(_NODE_COST)
        graph = Graph(prefix, parent)
        for part in iter_spans(self.cursor, item.start, item.stop):
            if part.number == 1:
                self.node(part, graph, depth)
            elif part.number == 5:
                tensor = self.tensor(part)
                self.keep(graph, tensor.name, tensor)
            elif part.number == 15:
                self.sparse(part, graph)
            elif part.number in (11, 12):
                self.spend(_EDGE_COST)
                (graph.inputs if part.number == 11 else graph.outputs).append(self.value_name(part))
            elif part.number == 2 and parent is None:
                metadata["graph"] = self.head(part)
        return graph

    def keep(self, graph: Graph, name: str, tensor: StoredTensor) -> None:
        if not name:
            raise FormatError("a tensor has no name", where=self.where)
        if name in graph.tensors:
            raise FormatError(f"duplicate tensor name {name[:80]!r}", where=self.where)
        self.check_length(len(graph.prefix) + len(name))
        tensor.name = graph.prefix + name
        self.spend(sys.getsizeof(tensor.name))
        graph.tensors[name] = tensor

    def value_name(self, item: SpanField) -> str:
        """The name of a ValueInfoProto; it is the first field, the rest is not looked at."""
        self.need(item, WireType.LENGTH)
        for part in iter_spans(self.cursor, item.start, item.stop):
            if part.number == 1:
                return self.text(part)
        return ""

    def sparse(self, item: SpanField, graph: Graph) -> None:
        self.need(item, WireType.LENGTH)
        for part in iter_spans(self.cursor, item.start, item.stop):
            if part.number == 1:
                tensor = self.tensor(part)
                tensor.is_sparse = True
                self.keep(graph, tensor.name, tensor)

    def node(self, item: SpanField, graph: Graph, depth: int) -> None:
        self.need(item, WireType.LENGTH)
        self.spend(_NODE_COST)
        texts = {3: "", 4: "", 7: ""}
        node = Node("", "", [], [], {})
        attributes = []
        for part in iter_spans(self.cursor, item.start, item.stop):
            if part.number in (1, 2):
                self.spend(_EDGE_COST)
                (node.inputs if part.number == 1 else node.outputs).append(self.text(part))
            elif part.number in texts:
                texts[part.number] = self.text(part)
            elif part.number == 5:
                attributes.append(part)
        node.name, node.op = texts[3], operator(texts[7], texts[4])
        graph.nodes.append(node)
        label = node.name or f"{node.op}_{len(graph.nodes) - 1}"
        for attribute in attributes:
            self.attribute(attribute, node, label, graph, depth)

    def attribute(self, item: SpanField, node: Node, label: str, graph: Graph, depth: int) -> None:
        self.need(item, WireType.LENGTH)
        name, values, tensors, graphs = "", list[int | float](), list[SpanField](), list[SpanField]()
        for part in iter_spans(self.cursor, item.start, item.stop):
            if part.number == 1:
                name = self.text(part)
            elif part.number in (5, 10):
                tensors.append(part)
            elif part.number in (6, 11):
                graphs.append(part)
            elif part.number == 2 and part.wire_type == WireType.FIXED32:
                values.append(float32(part.bits))
            elif part.number in (3, 8) and part.wire_type == WireType.VARINT and len(values) < _MAX_LIST:
                values.append(signed(part.bits))
        if name in _ATTRIBUTES and values:
            self.set_attribute(node, name, values, graph)
        for index, part in enumerate(tensors):
            if node.op not in _NO_WEIGHTS:
                is_constant = node.op == "Constant" and node.outputs
                own = node.outputs[0] if is_constant else f"{label}/{name}" + (f"/{index}" if index else "")
                self.keep(graph, own, self.tensor(part))
        for part in graphs:
            branch = name.removesuffix("_branch")
            prefix = self.prefix(f"{graph.prefix}{label}/{branch}")
            node.graphs.append(self.graph(part, prefix, graph, depth + 1, {}))

    def set_attribute(self, node: Node, name: str, values: list[int | float], graph: Graph) -> None:
        if name in ("perm", "axes"):
            node.attributes[name] = tuple(int(value) for value in values)
        else:
            node.attributes[name] = values[0]
        if node.op == "Constant" and name in ("value_float", "value_int") and node.outputs:
            graph.scalars[node.outputs[0]] = float(values[0])

    def tensor(self, item: SpanField) -> StoredTensor:
        self.need(item, WireType.LENGTH)
        self.spend(_TENSOR_COST)
        tensor = StoredTensor()
        entries: dict[str, str] = {}
        is_external = False
        for part in iter_spans(self.cursor, item.start, item.stop):
            if part.number == 1:
                self.dims(part, tensor)
            elif part.number == 2:
                tensor.data_type = self.number(part)
            elif part.number == 8:
                tensor.name = self.text(part)
            elif part.number == 14:
                is_external = self.number(part) == 1
            elif part.number == 13 and len(entries) < _MAX_LIST:
                key, value = self.entry(part)
                entries[key] = value
            elif part.number in (4, 5, 6, 7, 9, 10, 11):
                tensor.is_split |= tensor.payload != 0 or part.wire_type != WireType.LENGTH
                tensor.payload, tensor.start, tensor.stop = part.number, part.start, part.stop
        if is_external:
            tensor.external = self.external(entries, tensor.name)
        return tensor

    def dims(self, item: SpanField, tensor: StoredTensor) -> None:
        if item.wire_type == WireType.VARINT:
            tensor.dims.append(signed(item.bits))
        else:  # packed: one byte for each extent at least
            self.need(item, WireType.LENGTH)
            if item.stop - item.start > 10 * MAX_RANK:
                actual = item.stop - item.start
                raise LimitError("bytes of dims", limit=10 * MAX_RANK, actual=actual, where=self.where)
            tensor.dims.extend(unpack_varints(self.cursor.read(item.start, item.stop), self.where))
        if len(tensor.dims) > MAX_RANK:
            raise LimitError("tensor rank", limit=MAX_RANK, actual=len(tensor.dims), where=self.where)

    def external(self, entries: Mapping[str, str], name: str) -> External:
        numbers: dict[str, int] = {}
        for key in ("offset", "length"):
            value = entries.get(key)
            if value is not None:
                if not (value.isascii() and value.isdigit() and len(value) < 19):
                    what = f"external data of {name[:80]!r}: {key} is {value[:40]!r}, not a number"
                    raise FormatError(what, where=self.where)
                numbers[key] = int(value)
        return External(entries.get("location", ""), numbers.get("offset", 0), numbers.get("length"))


def operator(domain: str, op: str) -> str:
    """Domain and operator type as one key; the default domain is left out."""
    return op if domain in ("", "ai.onnx") else f"{domain}.{op}"


def unpack_varints(data: memoryview, where: str) -> list[int]:
    """A few packed numbers; long arrays are decoded by the reader with NumPy."""
    values, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            values.append(signed(value & ((1 << 64) - 1)))
            value = shift = 0
    if shift:
        raise FormatError("a packed array ends within a number", where=where)
    return values
