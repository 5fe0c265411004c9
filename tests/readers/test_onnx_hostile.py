"""Files that lie, break off or explode: only errors of drupe.errors may come out, early and cheaply."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from blobs import MemoryBlob
from drupe.errors import DrupeError, FormatError, LimitError
from drupe.readers.interface import Window
from drupe.readers.onnx import OnnxFile, open_onnx
from onnx_models import FLOAT, MemoryTree, constant, graph, model, numbers, opened

node = helper.make_node


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def part(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def count(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def many(make: Callable[[int], bytes], times: int) -> bytes:
    return b"".join(make(index) for index in range(times))


def rich() -> bytes:
    """A little of everything in about a kilobyte."""
    then = graph([constant("c", np.float32([1, 2]))], {"w": numbers(2, 2)}, (), ("c",))
    body = [node("MatMul", ["a", "b"], ["r"], name="in")]
    function = helper.make_function("own", "F", ["a", "b"], ["r"], body, [helper.make_opsetid("", 21)])
    nodes = [
        node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=1),
        node("Transpose", ["d"], ["t"], perm=[1, 0]),
        node("Gemm", ["x", "t"], ["h"], transB=1, name="gemm"),
        node("If", ["c"], ["i"], then_branch=then, else_branch=then, name="if"),
        node("F", ["h", "v"], ["y"], domain="own"),
    ]
    tensors = {
        "q": helper.make_tensor("q", TensorProto.INT8, [2, 3], [1, -2, 3, -4, 5, -6]),
        "s": np.float32([0.5, 1, 2]),
        "z": np.int8([0, 1, 2]),
        "v": helper.make_tensor("v", FLOAT, [3, 2], [1, 2, 3, 4, 5, 6]),
        "i4": helper.make_tensor("i4", TensorProto.INT4, [3], [1, 2, 3]),
    }
    proto = model(nodes, tensors, functions=[function])
    external = numpy_helper.from_array(np.float32([1, 2]), "e")
    onnx.external_data_helper.set_external_data(external, "x.bin", 0, 8)
    external.ClearField("raw_data")
    proto.graph.initializer.append(external)
    return proto.SerializeToString()


FILES = {"x.bin": bytes(8)}


def read_all(file: OnnxFile) -> None:
    windows = [Window(name, 0, i.matrix_shape[0], 0, i.matrix_shape[1]) for name, i in file.tensors.items()]
    file.read([window for window in windows if file.tensors[window.tensor].size < 10_000])


def test_the_rich_file_is_well_formed() -> None:
    file = opened(rich(), FILES)
    assert len(file.tensors) == 10
    assert file.quantisations.keys() == {"q"}
    read_all(file)


def test_truncation_at_every_byte_is_an_error_or_a_smaller_model() -> None:
    data = rich()
    refused = 0
    for stop in range(len(data)):
        try:
            read_all(opened(data[:stop], FILES))
        except DrupeError:
            refused += 1
    assert refused > 0.95 * len(data)  # a cut between two fields of the model itself leaves a model


def test_flipped_bytes_raise_only_our_errors() -> None:
    data, rng = rich(), np.random.default_rng(20260101)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(4000):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        try:
            read_all(opened(bytes(damaged), FILES))
            outcomes["read"] += 1
        except DrupeError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 200


@given(st.binary(max_size=400))
def test_random_bytes_as_a_graph(data: bytes) -> None:
    try:
        read_all(opened(part(7, data), FILES))
    except DrupeError:
        return


def nested(depth: int) -> bytes:
    """A graph in an attribute of a node of a graph ..., built from the inside in linear time."""
    parts, total = [], 0
    for _ in range(depth):
        heads = []
        for number in (6, 5, 1):
            heads.append(varint(number << 3 | 2) + varint(total))
            total += len(heads[-1])
        parts.append(b"".join(reversed(heads)))
    return part(7, b"".join(reversed(parts)))


def tensor(*dims: int, kind: int = 1, raw: bytes = b"", name: bytes = b"t") -> bytes:
    return many(lambda i: count(1, dims[i]), len(dims)) + count(2, kind) + part(8, name) + part(9, raw)


def initialiser(content: bytes) -> bytes:
    return part(7, part(5, content))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "empty"),
        (b"PK\x03\x04 not a model at all", "."),
        (b'{"a": 1}', "."),
        (part(2, b"pytorch"), "no graph"),
        (part(7, b"") * 2, "more than one graph"),
        (varint(7 << 3 | 2) + varint(1 << 40), "claims 1099511627776 bytes"),
        (count(7, 1), "wire type 0, expected 2"),
        (initialiser(tensor(3, raw=b"1234")), "4 bytes of values, 12 expected"),
        (initialiser(tensor(1, raw=b"12345678")), "8 bytes of values, 4 expected"),
        (initialiser(count(1, 3) + count(2, 1) + part(8, b"t")), "3 values of type F32 are missing"),
        (initialiser(count(1, 3) + count(2, 3) + part(8, b"t") + part(5, b"\x01")), "cannot hold 3 numbers"),
        (initialiser(tensor(4, raw=bytes(16), name=b"")), "no name"),
        (part(7, part(5, tensor(1, raw=bytes(4))) * 2), "duplicate tensor name 't'"),
        (initialiser(part(8, b"\xff\xff")), "not UTF-8"),
    ],
)
def test_lies_are_named(data: bytes, complaint: str) -> None:
    with pytest.raises(FormatError, match=complaint) as caught:
        opened(data)
    assert "model.onnx" in caught.value.where


def test_values_in_two_places_are_skipped_with_a_reason() -> None:
    file = opened(initialiser(tensor(3, kind=3, raw=b"123") + part(5, b"123")))
    assert (list(file.tensors), file.skipped["t"].key) == ([], "onnx.split")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (initialiser(tensor(1 << 20, 1 << 20, 1 << 20)), "values of a tensor"),
        (initialiser(tensor((1 << 64) - 5)), "negative extent"),
        (initialiser(tensor(*[1] * 9)), "rank"),
        (initialiser(part(1, b"\x01" * 4000)), "bytes of dims"),
        (initialiser(part(8, b"n" * 5000)), "length of a name"),
        (nested(40), "nesting depth of graphs: 33"),
        (nested(1_000_000), "nesting depth of graphs: 33"),
        (part(7, part(1, part(1, b"a") * 400_001)), "fields of a message|bytes of memory"),
        (part(14, part(1, b"k") + part(2, b"v")) * 200_000, "fields of a message: 400001"),
        (part(7, part(1, b"") * 300_000), "bytes of memory"),
        (part(7, many(lambda i: part(5, part(8, b"%x" % i)), 100_000)), "bytes of memory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_explosions_meet_a_limit_first(data: bytes, complaint: str) -> None:
    with pytest.raises(LimitError, match=complaint):
        opened(data)


@pytest.mark.parametrize("tensors", [15_000, 100_000], ids=["accepted", "refused"])
def test_memory_stays_in_proportion_to_the_file(tensors: int) -> None:
    names = many(lambda i: part(5, tensor(1, kind=3, raw=b"a", name=b"%x" % i)), tensors)
    data = part(7, part(1, part(5, part(1, b"p" * 3000) + part(6, names))))
    tracemalloc.start()
    try:
        assert len(opened(data).tensors) == tensors
    except LimitError:
        assert tensors == 100_000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 * len(data) + (100 << 20)


def test_long_names_do_not_multiply_along_the_path() -> None:
    inner = graph([node("Identity", ["w"], ["t"])], {"w": numbers(1)}, (), ("t",))
    for _ in range(3):
        inner = graph([node("If", ["c"], ["t"], then_branch=inner, name="n" * 1500)], {}, (), ("t",))
    with pytest.raises(LimitError, match="length of a name"):
        opened(model(list(inner.node), {}, inputs=("c",)))


def test_a_web_of_operators_is_given_up() -> None:
    edges = many(
        lambda i: part(1, part(1, b"w") + part(1, b"w%d" % (i % 3000)) + part(2, b"w") + part(4, b"Cast")),
        40_000,
    )
    tensors = many(lambda i: part(5, tensor(0, kind=3, name=b"w%d" % i)), 3_000)
    with pytest.raises(LimitError, match="steps"):
        opened(part(7, edges + tensors))


def function(name: str, *calls: str) -> onnx.FunctionProto:
    body = [node(call, ["a", "b"], [f"r{i}"], domain="own") for i, call in enumerate(calls)]
    return helper.make_function("own", name, ["a", "b"], ["r0"], body, [helper.make_opsetid("", 21)])


@pytest.mark.parametrize(
    "functions",
    [
        [function("F", "F")],
        [function("F", "G"), function("G", "F")],
        [function("F", *["F1"] * 10), *(function(f"F{i}", *[f"F{i + 1}"] * 10) for i in range(1, 20))],
    ],
    ids=["itself", "each_other", "doubling"],
)
def test_functions_that_call_without_end(functions: list[onnx.FunctionProto]) -> None:
    file = opened(
        model([node("F", ["x", "w"], ["y"], domain="own")], {"w": numbers(2, 2)}, functions=functions)
    )
    assert list(file.tensors) == ["w"]


def test_a_long_chain_of_functions_is_refused() -> None:
    functions = [function(f"F{i}", f"F{i + 1}") for i in range(50)]
    with pytest.raises(LimitError, match="nesting depth of calls"):
        opened(model([node("F0", ["x", "w"], ["y"], domain="own")], {"w": numbers(2)}, functions=functions))


@pytest.mark.parametrize("data", [b"\x80" * 12, b"\x01\x02\x80", b"\x01\x02\x03\x04", b"\x80\x80\x80\x01"])
def test_typed_data_of_the_wrong_length_are_found_when_read(data: bytes) -> None:
    file = opened(initialiser(count(1, 3) + count(2, 3) + part(8, b"t") + part(5, data)))
    with pytest.raises(FormatError, match="typed data"):
        read_all(file)


def test_a_file_that_shrank_after_opening() -> None:
    data = model([node("Identity", ["x"], ["y"])], {"w": numbers(50, 50)}).SerializeToString()
    blob = MemoryBlob("model.onnx", data)
    file = open_onnx(blob, MemoryTree({}))
    blob.data = data[:1000]
    with pytest.raises(FormatError):
        read_all(file)


def test_not_a_number_values_are_delivered() -> None:
    array = np.float32([np.nan, np.inf, -np.inf, 0])
    file = opened(model([node("Identity", ["x"], ["y"])], {"w": numpy_helper.from_array(array)}))
    assert np.array_equal(file.read([Window("w", 0, 1, 0, 4)])[0][0], array, equal_nan=True)
