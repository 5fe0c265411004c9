"""Writers of the formats whose libraries the tests do without; ``readers/format_files/make.py`` checks them.

Plain functions from names and arrays to bytes, lies allowed: sizes and counts may be overridden.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


def grid(*shape: int, start: int = 0) -> NDArray[np.float32]:
    """Values that bf16, fp16 and fp32 hold exactly, by a rule: the committed files hold the same."""
    count = int(np.prod(shape))
    return (((np.arange(start, start + count) * 37) % 255 - 127) / 64).astype(np.float32).reshape(shape)


# msgpack, as flax.serialization writes it
def pack(value: object) -> bytes:
    """One value of msgpack; arrays as Flax's extension 1, NumPy scalars as 3."""
    if isinstance(value, np.ndarray):
        return extension(1, array(value))
    if isinstance(value, np.generic):
        return extension(3, array(np.asarray(value)))
    if isinstance(value, Mapping):
        return _sized(len(value), 0x80, 15, 0xDE) + b"".join(pack(k) + pack(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return _sized(len(value), 0x90, 15, 0xDC) + b"".join(map(pack, value))
    if isinstance(value, str):
        raw = value.encode()
        head = b"\xd9" + bytes([len(raw)]) if 31 < len(raw) < 256 else _sized(len(raw), 0xA0, 31, 0xDA)
        return head + raw
    if isinstance(value, bytes):
        return binary(len(value)) + value
    if value is None or isinstance(value, bool):
        return b"\xc0" if value is None else b"\xc3" if value else b"\xc2"
    assert isinstance(value, int)
    if value < 0:
        return struct.pack(">Bq", 0xD3, value)
    if value < 128:
        return bytes([value])
    code, form = next((c, f) for c, f, top in ((0xCC, "B", 1 << 8), (0xCD, "H", 1 << 16), (0xCE, "I", 1 << 32),
                                               (0xCF, "Q", 1 << 64)) if value < top)  # fmt: skip
    return struct.pack(f">B{form}", code, value)


def array(values: NDArray[Any], **lies: Any) -> bytes:
    """The inside of the extension: shape, type, bytes; each may be replaced."""
    parts = {"shape": values.shape, "dtype": values.dtype.name, "data": values.tobytes()} | lies
    return pack((parts["shape"], parts["dtype"], parts["data"]))


def extension(code: int, content: bytes, size: int | None = None) -> bytes:
    """Extension type ``code``; ``size`` may lie."""
    length = len(content) if size is None else size
    kind, form = next(
        (c, f)
        for c, f, top in ((0xC7, "B", 1 << 8), (0xC8, "H", 1 << 16), (0xC9, "I", 1 << 32))
        if length < top
    )
    if length in (1, 2, 4, 8, 16):
        return bytes([0xD4 + length.bit_length() - 1, code]) + content
    return struct.pack(f">B{form}B", kind, length, code) + content


def binary(length: int) -> bytes:
    """The head of bytes."""
    if length < 256:
        return struct.pack(">BB", 0xC4, length)
    return struct.pack(">BH", 0xC5, length) if length < 1 << 16 else struct.pack(">BI", 0xC6, length)


def _sized(count: int, short: int, most: int, long: int) -> bytes:
    if count <= most:
        return bytes([short | count])
    return struct.pack(">BH", long, count) if count < 1 << 16 else struct.pack(">BI", long + 1, count)


def nested(arrays: Arrays) -> dict[str, Any]:
    """Names with dots as a tree."""
    tree: dict[str, Any] = {}
    for name, values in arrays.items():
        *path, leaf = name.split(".")
        branch = tree
        for key in path:
            branch = branch.setdefault(key, {})
        branch[leaf] = values
    return tree


# CTranslate2
TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "bfloat16": 5}


def text(value: str | bytes) -> bytes:
    """A string: its length with the final zero byte."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<H", len(raw) + 1) + raw + b"\0"


def variable(name: str, values: NDArray[Any], version: int = 6, **lies: Any) -> bytes:
    """One variable; ``shape``, ``kind`` and ``size`` may be replaced. bf16 is given as uint16."""
    kind = "bfloat16" if values.dtype == np.uint16 else values.dtype.name
    shape = lies.get("shape", values.shape)
    head = text(name) + struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    if version < 4:
        head += struct.pack("<BI", values.dtype.itemsize, lies.get("size", values.size))
    else:
        head += struct.pack("<BI", lies.get("kind", TYPES[kind]), lies.get("size", values.nbytes))
    return head + values.tobytes()


def ctranslate2(
    arrays: Arrays,
    aliases: Mapping[str, str] | None = None,
    *,
    version: int = 6,
    name: str = "TransformerSpec",
) -> bytes:
    """A ``model.bin``."""
    head = struct.pack("<I", version) + text(name) + struct.pack("<II", 3, len(arrays))
    body = b"".join(variable(key, values, version) for key, values in arrays.items())
    tail = [struct.pack("<I", len(aliases or {}))] if version >= 3 else []
    tail += [text(alias) + text(target) for alias, target in (aliases or {}).items()]
    return head + body + b"".join(tail)


# NumPy
def npy(values: NDArray[Any]) -> bytes:
    """What ``numpy.save`` writes."""
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=values.dtype.hasobject)
    return stream.getvalue()


def npy_of(header: str | bytes, data: bytes = b"", *, version: tuple[int, int] = (1, 0)) -> bytes:
    """An array file with any header."""
    raw = header.encode("latin-1") if isinstance(header, str) else header
    form = "<H" if version == (1, 0) else "<I"
    return b"\x93NUMPY" + bytes(version) + struct.pack(form, len(raw)) + raw + data


def archive(members: Mapping[str, bytes], *, compressed: bool = False) -> bytes:
    """A zip archive of any members."""
    stream = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", method) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return stream.getvalue()


def npz(arrays: Arrays, *, compressed: bool = False) -> bytes:
    """What ``numpy.savez`` or ``numpy.savez_compressed`` writes."""
    stream = io.BytesIO()
    if compressed:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # the stub wants allow_pickle apart
    else:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()
