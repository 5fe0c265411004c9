"""JSON from strangers: what is accepted equals the standard library's reading, the rest is refused by name."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobs import MemoryBlob
from drupe.errors import FormatError, LimitError
from drupe.readers import strict_json
from drupe.readers.strict_json import as_object, parse_json, read_json, read_json_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_valid_json_is_read_as_the_standard_library_reads_it(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return
    assert parse_json(data, "x") == json.loads(text)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a":1,}', "not valid JSON"),
        (b"{} x", "not valid JSON"),
        (b"\xff", "utf-8"),
        (b'{"a":1,"a":2}', "duplicate JSON key 'a'"),
        (b'[{"b":{"a":1,"a":2}}]', "duplicate JSON key 'a'"),
        (b'{"a":1,"\\u0061":2}', "duplicate JSON key 'a'"),
        (b"9" * 5000, "not valid JSON"),
        ('"\ud800"'.encode("utf-8", "surrogatepass"), "utf-8"),
        ("{}".encode("utf-16"), "utf-8"),
    ],
)
def test_what_is_not_strict_json_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(FormatError, match=says) as caught:
        parse_json(data, "config.json")
    assert caught.value.where == "config.json"


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_nesting_names_the_limit(opening: bytes) -> None:
    with pytest.raises(LimitError, match="nesting depth: more than") as caught:
        parse_json(opening * 100_000, "x")
    assert caught.value.limit > 100


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}', "x") == {"a": 1}


@pytest.mark.parametrize(
    "unit", [b"[],", b"{},", b'"",', b"0,", b'"\xe6\xa0\xb8",', b"1.5,", b"[[]],", b'{"a":0},']
)
def test_memory_stays_below_4_times_the_size_and_100_mb(unit: bytes) -> None:
    """Near the limit of what is accepted, and far beyond it, where it is refused before anything is built."""
    for target in (3_000_000, 10_000_000):
        data = b"[" + unit * (target // len(unit)) + b"0]"
        tracemalloc.start()
        try:
            parse_json(data, "x")
        except LimitError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak <= 4 * len(data) + (100 << 20)


def test_keys_are_counted_too() -> None:
    data = b"{" + b",".join(b'"%x":1' % i for i in range(600_000)) + b"}"
    with pytest.raises(LimitError, match="bytes of memory"):
        parse_json(data, "x")


@pytest.mark.parametrize("last", ["\U0001f600", "\\ud83d\\ude00"])
def test_one_wide_character_in_a_large_text(monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    monkeypatch.setattr(strict_json, "MAX_WIDE_BYTES", 1000)
    assert parse_json(('"' + "x" * 900 + last + '"').encode(), "x")
    assert parse_json(('"' + "核" * 900 + '"').encode(), "x")
    with pytest.raises(LimitError, match="U\\+FFFF") as caught:
        parse_json(('"' + "x" * 2000 + last + '"').encode(), "x")
    assert caught.value.limit == 1000


def test_the_largest_known_vocabulary_is_accepted() -> None:
    """The counts of a published tokenizer.json: 262,144 pieces and 514,000 merges written as pairs."""
    merges = ",\n".join(f'      [\n        "a{i}",\n        "b{i}"\n      ]' for i in range(514_000))
    vocab = ",\n".join(f'      "piece{i}": {i}' for i in range(262_144))
    strict_json._check_nodes(f'{{"vocab": {{{vocab}}}, "merges": [{merges}]}}'.encode(), "x")


class HugeBlob(MemoryBlob):
    """Claims a size and must not be read."""

    @property
    def size(self) -> int:
        return strict_json.MAX_BYTES + 1


def test_a_file_beyond_the_limit_is_not_read() -> None:
    blob = HugeBlob("tokenizer.json", b"{}")
    with pytest.raises(LimitError) as caught:
        read_json(blob)
    assert (caught.value.actual, blob.spans) == (strict_json.MAX_BYTES + 1, [])


@pytest.mark.parametrize("text", ["[]", "1", '"x"', "null", "true"])
def test_an_object_is_asked_for(text: str) -> None:
    with pytest.raises(FormatError, match="expected a JSON object, found"):
        read_json_object(MemoryBlob("config.json", text.encode()))
    assert as_object({"a": 1}, "x") == {"a": 1}
