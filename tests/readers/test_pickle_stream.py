"""Pickles as data: what Python writes is understood; nothing is hashed, imported or unbounded."""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drupe.errors import DrupeError, FormatError, LimitError
from drupe.readers.pickle_globals import Danger, danger_of
from drupe.readers.pickle_stream import MAX_OPERATIONS, Budget, read_stream, read_streams
from drupe.readers.pickle_values import Call, Global, Pairs, Persistent, Value
from pickle_corpus import GADGETS, octets, pickled

PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()),
    lambda inner: st.one_of(st.lists(inner), st.tuples(inner, inner), st.dictionaries(st.text(), inner)),
    max_leaves=20,
)


def understood(data: bytes) -> Value:
    (stream,) = read_streams(data, "x", Budget.of_file(len(data)))
    return stream.value


def rebuilt(value: Value) -> object:
    """Our value as Python's, of plain data."""
    if isinstance(value, Pairs):
        return {key: rebuilt(item) for key, item in value.pairs}
    if isinstance(value, list):
        return [rebuilt(item) for item in value]
    return tuple(rebuilt(item) for item in value) if isinstance(value, tuple) else value


@given(PLAIN, st.integers(3, 5))
def test_plain_data_is_what_python_wrote(value: object, protocol: int) -> None:
    assert rebuilt(understood(pickle.dumps(value, protocol))) == value


@given(
    st.recursive(st.one_of(st.integers(), st.text(), st.floats(allow_nan=False)), st.lists), st.integers(0, 2)
)
def test_the_old_protocols_too(value: object, protocol: int) -> None:
    assert rebuilt(understood(pickle.dumps(value, protocol))) == value


def test_a_call_stays_a_call() -> None:
    found = understood(pickle.dumps(OrderedDict(a=1), 4))
    assert isinstance(found, Call)
    assert isinstance(found.function, Global)
    assert (found.path, found.arguments, found.pairs) == ("collections.OrderedDict", (), [("a", 1)])


def test_streams_in_a_row_and_where_they_end() -> None:
    data = pickle.dumps(1, 2) + pickle.dumps([2], 4)
    first, second = read_streams(data, "x", Budget.of_file(len(data)))
    assert (first.value, second.value, second.stop) == (1, [2], len(data))
    assert read_stream(lambda s, n: data[s : s + n], len(data), first.stop, "x", Budget.of_file(9)).value == [
        2
    ]


def test_references_are_kept_in_order() -> None:
    (stream,) = read_streams(b"\x80\x02(K\x01QK\x02QPthree\nt.", "x", Budget.of_file(20))
    assert [reference.key for reference in stream.references] == [1, 2, "three"]
    assert isinstance(stream.value, tuple)
    assert all(isinstance(value, Persistent) for value in stream.value)


def test_a_pickle_longer_than_the_window_is_read_once_through() -> None:
    data = pickle.dumps(["x" * 1000] + [str(k) for k in range(50_000)], 4)
    asked: list[int] = []

    def read(start: int, length: int) -> bytes:
        asked.append(length)
        return data[start : start + length]

    found = read_stream(read, len(data), 0, "x", Budget.of_file(len(data))).value
    assert isinstance(found, list)
    assert found[-1] == "49999"
    assert sum(asked) < 3 * len(data)


def test_keys_are_never_hashed() -> None:
    """Numbers that all have one hash would take a dictionary hours."""
    modulus = (1 << 61) - 1
    keys = [(modulus * k).to_bytes(12, "little") for k in range(1, 50_000)]
    data = b"\x80\x02}(" + b"".join(b"\x8a\x0c" + key + b"N" for key in keys) + b"u."
    found = understood(data)
    assert isinstance(found, Pairs)
    assert len(found.pairs) == len(keys)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "ends in the middle"),
        (b"N", "ends in the middle"),
        (b".", "the stack is empty"),
        (b"(0.", "the stack is empty"),
        (b"K\x01(R.", "the stack is empty"),
        (b"t.", "no MARK"),
        (b"h\x00.", "nothing is remembered as 0"),
        (b"N\xff", "0xff is no instruction"),
        (b"\x80\x06N.", "protocol 6"),
        (b"K\x01K\x02\x93.", "a name that is no string"),
        (b"(K\x01d.", "a key without a value"),
        (b"NK\x01a.", "items or a state"),
        (b"I12x\n.", "malformed"),
        (b"X\x01\x00\x00\x00\xff.", "malformed"),
        (b"Snope\n.", "a string without quotes"),
        (b"(o.", "an object without a class"),
        (b"\x97.", "buffers outside"),
        (b"\x8e" + struct.pack("<Q", 1 << 50) + b".", "exceeds the limit of 1"),
        (b"\x8b\x00\x10\x00\x00" + bytes(5000), "4096 exceeds the limit of 1024"),
        (b"L" + b"9" * 5000, "exceeds the limit of 4096"),
        (b"L" + b"9" * 4000 + b"L\n.", ""),
        (b"c" + b"a" * 5000, "exceeds the limit of 4096"),
    ],
)
def test_a_damaged_pickle_is_a_typed_error(data: bytes, says: str) -> None:
    if not says:
        assert isinstance(understood(data), int)
        return
    with pytest.raises(FormatError, match=says):
        understood(data)


EXPLOSIONS: dict[str, Callable[[], bytes]] = {
    "lists": lambda: b"]" * 3_000_000,
    "dictionaries": lambda: b"}" * 3_000_000,
    "marks": lambda: b"(" * 3_000_000,
    "copies": lambda: b"N" + b"2" * 3_000_000,
    "tuples in tuples": lambda: b"N" + b"\x85" * 3_000_000,
    "memory": lambda: b"N" + b"\x94" * 3_000_000,
    "calls": lambda: b"ccollections\nOrderedDict\n" + b")R" * 1_500_000,
    "names": lambda: b"".join(b"ca%d\nb\n" % k for k in range(20_000)),
}


@pytest.mark.parametrize("name", EXPLOSIONS)
def test_a_budget_ends_what_would_not_end(name: str) -> None:
    data = EXPLOSIONS[name]()
    with pytest.raises(LimitError, match="exceeds the limit"):
        understood(data)


def test_the_budget_is_of_the_whole_file() -> None:
    data = pickled(b"N0" * 20_000 + b"N")
    budget = Budget.of_file(100)
    read_streams(data, "x", budget)
    with pytest.raises(LimitError, match=f"more than {MAX_OPERATIONS}"):
        read_streams(data * 60, "x", budget)


def test_a_damaged_pickle_names_what_it_would_have_called() -> None:
    with pytest.raises(FormatError, match=r"calls for 'os\.system'") as caught:
        understood(b"\x80\x02cos\nsystem\n\xff")
    assert caught.value.hint == "do not load this file anywhere"


def test_a_string_that_only_looks_like_a_pickle_is_a_string() -> None:
    (stream,) = read_streams(pickled(octets(b"\x80\x02\xff\xff\xff\xff")), "x", Budget.of_file(20))
    assert stream.uses == ()


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes(data: bytes) -> None:
    with suppress(DrupeError):
        read_streams(b"\x80\x02" + data, "x", Budget.of_file(len(data)))


@pytest.mark.parametrize(
    ("module", "attribute", "danger"),
    [
        ("collections", "OrderedDict", Danger.HARMLESS),
        ("torch", "FloatStorage", Danger.HARMLESS),
        ("torch.nn.modules.linear", "Linear", Danger.HARMLESS),
        ("torch.nn.modules.linear", "Linear.forward", Danger.UNKNOWN),
        ("torch.nn.modules.linear", "torch.load", Danger.DANGEROUS),
        ("torch.nn.modules.module", "os.system", Danger.DANGEROUS),
        ("__torch__.my", "Net", Danger.HARMLESS),
        ("numpy", "dtype", Danger.HARMLESS),
        ("builtins", "dict", Danger.HARMLESS),
        ("builtins", "print", Danger.DANGEROUS),
        ("my.package", "Thing", Danger.UNKNOWN),
        ("my.package", "Thing.__reduce__", Danger.DANGEROUS),
        ("my.package", "_os.system", Danger.DANGEROUS),
        ("", "", Danger.UNKNOWN),
        ("a" + ".a" * 100, "b", Danger.DANGEROUS),
    ],
)
def test_what_a_name_means(module: str, attribute: str, danger: Danger) -> None:
    assert danger_of(module, attribute) is danger


def test_every_gadget_of_the_corpus_but_one_is_on_the_list() -> None:
    seen = {}
    for gadget, (_, body) in GADGETS.items():
        (stream,) = read_streams(pickled(body, 4), "x", Budget.of_file(len(body)))
        seen[gadget] = max((use.danger for use in stream.uses), key=list(Danger).index)
    assert [name for name, danger in seen.items() if danger is not Danger.DANGEROUS] == ["an unknown name"]
