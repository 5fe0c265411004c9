"""Hostile GGUF files: lies, damage, truncation and flipped bytes end in typed errors."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import numpy as np
import pytest

from blobs import MemoryBlob
from drupe.errors import DrupeError, FormatError, LimitError, UnsupportedError
from drupe.readers import gguf_header
from drupe.readers.gguf import GgufFile, open_gguf
from drupe.readers.interface import Window


def opened(data: bytes) -> GgufFile:
    return open_gguf(MemoryBlob("model.gguf", data))


def whole(file: GgufFile, name: str) -> np.ndarray:
    rows, columns = file.tensors[name].matrix_shape
    return file.read([Window(name, 0, rows, 0, columns)])[0]


U32, U64 = struct.Struct("<I").pack, struct.Struct("<Q").pack


def text(value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return U64(len(raw)) + raw


def tensor(name: bytes | str, extents: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + U32(len(extents)) + b"".join(map(U64, extents)) + U32(kind) + U64(offset)


def crafted(
    fields: Sequence[bytes] = (), tensors: Sequence[bytes] = (), data: int = 0, version: int = 3
) -> bytes:
    head = (
        b"GGUF" + U32(version) + U64(len(tensors)) + U64(len(fields)) + b"".join(fields) + b"".join(tensors)
    )
    return head + bytes(-len(head) % 32 + data if tensors else 0)


def test_the_crafted_form_is_valid() -> None:
    for version in (2, 3):
        file = opened(crafted([text("a") + U32(0) + b"\7"], [tensor("t", [4, 2])], 32, version))
        assert file.fields == {"a": 7}
        assert file.tensors["t"].shape == (2, 4)
        assert whole(file, "t").tolist() == [[0.0] * 4] * 2


U8_ARRAY, STRINGS, NESTED = U32(9) + U32(0), U32(9) + U32(8), U32(9) + U32(9)
HUGE = 1 << 60
LIES = {
    "tensor count": b"GGUF" + U32(3) + U64(HUGE) + U64(0) + bytes(19),
    "field count": b"GGUF" + U32(3) + U64(0) + U64(HUGE) + bytes(19),
    "both counts, 43 bytes": b"GGUF" + U32(3) + U64(2**64 - 1) + U64(2**64 - 1) + bytes(19),
    "length of a key": crafted([U64(HUGE) + b"a"]),
    "long key": crafted([text("k" * 5000) + U32(0) + b"\7"]),
    "length of a text": crafted([text("a") + U32(8) + U64(HUGE) + bytes(40)]),
    "bytes of an array": crafted([text("a") + U8_ARRAY + U64(HUGE) + bytes(40)]),
    "strings of an array": crafted([text("a") + STRINGS + U64(HUGE) + bytes(40)]),
    "a string in an array": crafted([text("a") + STRINGS + U64(2) + text("x") + U64(2**64 - 1) + bytes(40)]),
    "nested arrays": crafted([text("a") + NESTED + U64(HUGE) + bytes(40)]),
    "depth": crafted([text("a") + U32(9) + (U32(9) + U64(1)) * 1000 + U32(0) + U64(0)]),
    "rank": crafted(tensors=[tensor("t", [1] * 9)], data=64),
    "rank of four billion": crafted(tensors=[text("t") + U32(2**32 - 1) + bytes(200)]),
    "shape": crafted(tensors=[tensor("t", [1 << 40, 1 << 40])], data=64),
    "extent": crafted(tensors=[tensor("t", [2**64 - 1])], data=64),
    "long tensor name": crafted(tensors=[tensor("t" * 5000, [1])], data=64),
    "data beyond the end": crafted(tensors=[tensor("t", [17])], data=64),
    "offset beyond the end": crafted(tensors=[tensor("t", [1], 0, 64)], data=64),
    "offset of 2^63": crafted(tensors=[tensor("t", [1], 0, 1 << 63)], data=64),
    "offset of an unknown type": crafted(tensors=[tensor("t", [1], 99, 96)], data=64),
    "many strings": crafted([text("a") + STRINGS + U64(1_600_000) + bytes(8 * 1_600_000)]),
}
DAMAGE = {
    "magic": b"GGML" + bytes(40),
    "duplicate key": crafted([text("a") + U32(0) + b"\7"] * 2),
    "duplicate tensor": crafted(tensors=[tensor("t", [8]), tensor("t", [8], 0, 32)], data=64),
    "overlap": crafted(tensors=[tensor("t", [9]), tensor("u", [8], 0, 32)], data=128),
    "same place": crafted(tensors=[tensor("t", [8]), tensor("u", [8])], data=128),
    "not aligned": crafted(tensors=[tensor("t", [8], 0, 4)], data=64),
    "alignment of 3": crafted([text("general.alignment") + U32(4) + U32(3)], [tensor("t", [8])], 64),
    "alignment of 0": crafted([text("general.alignment") + U32(4) + U32(0)], [tensor("t", [8])], 64),
    "alignment as text": crafted([text("general.alignment") + U32(8) + text("x")], [tensor("t", [8])], 64),
    "half a block": crafted(tensors=[tensor("t", [48, 2], 2)], data=64),
    "scalar block": crafted(tensors=[tensor("t", [], 2)], data=64),
    "metadata type": crafted([text("a") + U32(13) + bytes(40)]),
    "element type": crafted([text("a") + U32(9) + U32(13) + U64(1) + bytes(40)]),
    "key": crafted([text(b"\xff") + U32(0) + b"\7"]),
    "tensor name": crafted(tensors=[tensor(b"\xff", [8])], data=64),
}


@pytest.mark.parametrize("what", sorted(LIES))
def test_a_value_beyond_its_limit_names_both(what: str) -> None:
    with pytest.raises(LimitError) as caught:
        opened(LIES[what])
    assert isinstance(caught.value.actual, int)
    assert caught.value.actual > caught.value.limit
    assert caught.value.where.startswith("model.gguf")


@pytest.mark.parametrize("what", sorted(DAMAGE))
def test_a_damaged_file_is_a_format_error(what: str) -> None:
    with pytest.raises(FormatError) as caught:
        opened(DAMAGE[what])
    assert not isinstance(caught.value, LimitError)
    assert caught.value.where.startswith("model.gguf")


@pytest.mark.parametrize("version", [0, 1, 4, 2**31, 3 << 24])
def test_other_versions_and_big_endian_are_unsupported(version: int) -> None:
    with pytest.raises(UnsupportedError, match="GGUF"):
        opened(crafted(version=version))


@pytest.mark.parametrize(("kind", "dtype"), [(99, "TYPE_99"), (9, "Q8_1"), (15, "Q8_K"), (4, "TYPE_4")])
def test_a_tensor_of_an_unread_type_is_listed_and_not_read(kind: int, dtype: str) -> None:
    file = opened(crafted(tensors=[tensor("t", [256, 1], kind), tensor("u", [8], 0, 320)], data=352))
    assert file.tensors["t"].dtype == dtype
    assert file.tensors["t"].is_quantised
    assert whole(file, "u").shape == (1, 8)
    with pytest.raises(UnsupportedError, match=dtype):
        whole(file, "t")


def test_a_tensor_without_values_can_be_read() -> None:
    file = opened(crafted(tensors=[tensor("t", [0, 1 << 40])], data=32))
    assert whole(file, "t").shape == (1 << 40, 0)


def test_arrays_of_arrays_are_stepped_over() -> None:
    inner = U32(0) + U64(2) + b"ab"
    file = opened(crafted([text("a") + NESTED + U64(2) + inner * 2, text("b") + U32(0) + b"\7"]))
    assert file.fields["b"] == 7
    with pytest.raises(UnsupportedError, match="array of arrays"):
        file.array("a")


class ZeroBlob(MemoryBlob):
    """A start, then zeros up to a size that is never held."""

    @property
    def size(self) -> int:
        return 1 << 40

    def read(self, start: int, length: int) -> bytes:
        self.spans.append((start, length))
        return self.data[start : start + length].ljust(length, b"\0")


@pytest.mark.parametrize(
    "array", [U8_ARRAY + U64(1 << 32), STRINGS + U64(1 << 30), U32(8) + U64(1 << 32)], ids=str
)
def test_an_array_that_the_file_could_hold_is_limited_too(array: bytes) -> None:
    blob = ZeroBlob("sparse.gguf", crafted([text("a") + array]))
    with pytest.raises(LimitError):
        open_gguf(blob)
    assert sum(length for _, length in blob.spans) <= 1 << 20


def test_a_header_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = crafted([text("a") + U8_ARRAY + U64(5000) + bytes(5000)])
    assert opened(data).fields
    monkeypatch.setattr(gguf_header, "MAX_HEADER", 4096)
    with pytest.raises(LimitError):
        opened(data)


def valid() -> bytes:
    """Every kind of metadata and of tensor, as small as it gets."""
    scalars = "BbHhIif?"
    fields = [text(f"s{kind}") + U32(kind) + struct.pack("<" + code, 1) for kind, code in enumerate(scalars)]
    fields += [text(f"s{kind}") + U32(kind) + struct.pack("<" + "Qqd"[kind - 10], 1) for kind in (10, 11, 12)]
    fields += [
        text("general.architecture") + U32(8) + text("llama"),
        text("llama.attention.head_count") + U32(4) + U32(2),
        text("general.alignment") + U32(4) + U32(64),
        text("tokenizer.ggml.tokens")
        + STRINGS
        + U64(5)
        + b"".join(map(text, ("a", "bc", "", b"\xff", "核"))),
        text("tokenizer.ggml.token_type") + U32(9) + U32(5) + U64(3) + struct.pack("<3i", 1, 2, 3),
        text("flags") + U32(9) + U32(7) + U64(3) + b"\1\0\2",
    ]
    tensors = [
        tensor("blk.0.attn_q.weight", [32, 8], 8, 0),
        tensor("blk.0.attn_q.bias", [8], 0, 320),
        tensor("token_embd.weight", [256, 2], 14, 384),
        tensor("output_norm.weight", [32], 1, 832),
        tensor("blk.0.ffn_up_exps.weight", [64, 2, 2], 2, 896),
    ]
    head = b"GGUF" + U32(3) + U64(len(tensors)) + U64(len(fields)) + b"".join(fields) + b"".join(tensors)
    rng = random.Random(7)
    return head + bytes(-len(head) % 64) + bytes(rng.randrange(256) for _ in range(896 + 8 * 18 - 1)) + b"\1"


def test_the_texts_together_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    data = crafted([text(name) + U32(8) + text("x" * 600) for name in "ab"])
    assert set(opened(data).fields) == {"a", "b"}
    monkeypatch.setattr(gguf_header, "MAX_TEXT", 1000)
    with pytest.raises(LimitError) as caught:
        opened(data)
    assert (caught.value.limit, caught.value.actual) == (400, 600)


def read_everything(data: bytes) -> None:
    file = opened(data)
    for key, value in file.fields.items():
        if not isinstance(value, str | int | float):
            file.array(key)
    assert all(isinstance(value, str) for value in file.metadata.values())
    for name, info in file.tensors.items():
        rows, columns = info.matrix_shape
        file.read([Window(name, 0, min(rows, 50), 0, min(columns, 500))])


def test_every_truncation_is_a_typed_error() -> None:
    data = valid()
    read_everything(data)
    for length in range(len(data)):
        with pytest.raises(DrupeError):
            read_everything(data[:length])


def test_byte_flips_raise_typed_errors_or_nothing() -> None:
    original = valid()
    rng = random.Random(0)
    header = len(opened(original).header)
    typed, fine = 0, 0
    for _ in range(5000):
        data = bytearray(original)
        for _ in range(rng.choice((1, 1, 1, 3))):
            data[rng.randrange(header)] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        try:
            read_everything(bytes(data))
            fine += 1
        except DrupeError:
            typed += 1
    assert typed > 500
    assert fine > 500
