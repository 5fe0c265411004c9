"""Hostile NumPy, Flax and CTranslate2 files and split GGUF for the command line: what is built to explode."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

from format_writers import archive, array, ctranslate2, extension, npy, npy_of, pack
from readers.test_gguf_hostile import U32, crafted, text

Case = tuple[str, Callable[[], bytes], str]
"""File name, content, what the message must say."""


def part(number: int, count: int) -> bytes:
    """One part of a split GGUF without tensors."""
    numbers = (("split.no", number), ("split.count", count), ("split.tensors.count", 0))
    return crafted([text(key) + U32(5) + struct.pack("<i", value) for key, value in numbers])


def entries(count: int, value: bytes) -> bytes:
    """A map of msgpack with so many different keys."""
    return b"\xdf" + struct.pack(">I", count) + b"".join(pack(f"{k:x}") + value for k in range(count))


def zeros(count: int) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count},), }}"
    return npy_of(header, bytes(4 * count))


EMPTY = np.zeros(0, np.int8)
CASES: dict[str, Case] = {
    "msgpack: a billion entries": ("flax_model.msgpack", lambda: b"\xdf\x3b\x9a\xca\0", "exceeds the limit"),
    "msgpack: 400,000 empty maps": (
        "flax_model.msgpack",
        lambda: entries(400_000, b"\x80"),
        "exceeds the limit of",
    ),
    "msgpack: 250,000 arrays without values": (
        "flax_model.msgpack",
        lambda: entries(250_000, extension(1, array(EMPTY))),
        "tensors in a file of this size",
    ),
    "msgpack: a million lists in lists": (
        "flax_model.msgpack",
        lambda: b"\x81\xa1w" + b"\x91" * 1_000_000 + b"\xc0",
        "nesting depth",
    ),
    "msgpack: 80 MB of keys": (
        "flax_model.msgpack",
        lambda: (
            b"\xdf"
            + struct.pack(">I", 20_000)
            + b"".join(pack(f"{k:x}".rjust(4090, "k")) + b"\1" for k in range(20_000))
        ),
        "header bytes",
    ),
    "npz: pickled objects": (
        "weights.npz",
        lambda: archive({"w.npy": npy(np.array([{}, None], dtype=object))}),
        "never loaded",
    ),
    "npz: 60,000 arrays without values": (
        "weights.npz",
        lambda: archive({f"{k}.npy": npy(EMPTY) for k in range(60_000)}),
        "tensors in a file of this size",
    ),
    "npz: a bomb": (
        "weights.npz",
        lambda: archive({"w.npy": zeros(25 << 20)}, compressed=True),
        "bytes that a compressed array takes",
    ),
    "npz: many bombs": (
        "weights.npz",
        lambda: archive({f"{k}.npy": zeros(8 << 20) for k in range(10)}, compressed=True),
        "bytes of all compressed arrays",
    ),
    "npy: a call": ("w.npy", lambda: npy_of("{'descr': __import__('os').abort()}"), "no header"),
    "ctranslate2: 100,000 variables without values": (
        "model.bin",
        lambda: ctranslate2({f"{k:x}": EMPTY for k in range(100_000)}),
        "tensors in a file of this size",
    ),
    "ctranslate2: an alias of nothing": (
        "model.bin",
        lambda: ctranslate2({"w": np.ones((2, 2), np.float32)}, {"v": "x"}),
        "names nothing",
    ),
    "gguf: a part alone": ("m-00001-of-00003.gguf", lambda: part(0, 3), "'m-00002-of-00003.gguf' is missing"),
    "gguf: 60,000 parts": (
        "m-00001-of-60000.gguf",
        lambda: part(0, 60_000),
        "60000 exceeds the limit of 512",
    ),
}
