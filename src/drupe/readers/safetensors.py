"""safetensors: one file or shards. Format facts: github.com/huggingface/safetensors (README, "Format")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from drupe.errors import FormatError, LimitError
from drupe.readers.dense import DenseFile, Place, check_density
from drupe.readers.interface import (
    MAX_NAME,
    Layout,
    TensorInfo,
    check_shape,
    check_tensor_count,
)
from drupe.readers.shard_index import check_index, read_index
from drupe.readers.strict_json import Json, as_object, parse_json
from drupe.sources.interface import Blob, Tree

MAX_HEADER = 100 << 20
"""The limit of the reference implementation, in bytes."""
_BITS: Mapping[str, int] = {
    "F64": 64, "I64": 64, "U64": 64,
    "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64,
}  # fmt: skip


def open_safetensors(blobs: Sequence[Blob], index: Mapping[str, str] | None = None) -> DenseFile:
    """Open one file or the shards of one checkpoint.

    ``index`` (tensor -> file) is the weight map of an index file: every name must be where it says.
    Raises FormatError or LimitError on any lie of a header.
    """
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    places: dict[str, Place] = {}
    headers: dict[str, bytes] = {}
    for blob in blobs:
        headers[blob.name] = header = _read_header(blob)
        metadata.update(_add_tensors(blob, header, tensors, places))
        check_tensor_count(len(tensors), blob.name)
    check_density(len(tensors), sum(blob.size for blob in blobs), blobs[0].name)
    if index is not None:
        check_index(index, tensors)
    return DenseFile("safetensors", tensors, metadata, places, headers)


def open_index(tree: Tree, name: str) -> DenseFile:
    """Open the shards that an index file (``*.safetensors.index.json``) names."""
    shards = read_index(tree, name)
    return open_safetensors(shards.blobs, shards.index)


def _read_header(blob: Blob) -> bytes:
    if blob.size < 10:
        raise FormatError(f"{blob.size} bytes are too few for a safetensors header", where=blob.name)
    length = int.from_bytes(blob.read(0, 8), "little")
    if length > MAX_HEADER:
        raise LimitError("safetensors header length", limit=MAX_HEADER, actual=length, where=blob.name)
    if length > blob.size - 8:
        raise LimitError("safetensors header length", limit=blob.size - 8, actual=length, where=blob.name)
    header = blob.read(8, length)
    if header[:1] != b"{":
        raise FormatError("the header does not start with '{'", where=blob.name)
    return header


def _add_tensors(
    blob: Blob, header: bytes, tensors: dict[str, TensorInfo], places: dict[str, Place]
) -> dict[str, str]:
    """Add the tensors of one shard; returns its ``__metadata__`` texts."""
    entries = as_object(parse_json(header, blob.name), blob.name)
    base = 8 + len(header)
    room = blob.size - base
    extents: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        if name in tensors:
            raise FormatError(f"tensor {name[:80]!r} is also in {tensors[name].file}", where=blob.name)
        info, start, stop = _tensor(name, entry, blob.name)
        if stop > room:
            raise LimitError(f"end of tensor {name[:80]!r}", limit=room, actual=stop, where=blob.name)
        tensors[name] = info
        places[name] = Place(blob, base + start, _BITS[info.dtype] // 8 if _BITS[info.dtype] % 8 == 0 else 0)
        extents.append((start, stop, name))
    _check_overlaps(extents, blob.name)
    notes = entries.get("__metadata__")
    if notes is None:  # MLX writes null
        return {}
    return {k: v for k, v in as_object(notes, blob.name).items() if isinstance(v, str)}


def _tensor(name: str, entry: Json, where: str) -> tuple[TensorInfo, int, int]:
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME:
        raise LimitError("length of a tensor name", limit=MAX_NAME, actual=len(name), where=where)
    table = as_object(entry, f"{where}: tensor {name[:80]!r}")
    dtype, shape, offsets = table.get("dtype"), table.get("shape"), table.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise FormatError(f"tensor {name[:80]!r} has the unknown dtype {str(dtype)[:40]!r}", where=where)
    extents = check_shape(_integers(shape, name, where), f"{where}: {name[:80]}")
    pair = _integers(offsets, name, where)
    if len(pair) != 2 or not 0 <= pair[0] <= pair[1]:
        raise FormatError(f"data_offsets of {name[:80]!r} are no range: {str(pair)[:60]}", where=where)
    info = TensorInfo(name, extents, dtype, where, Layout.UNKNOWN, float(_BITS[dtype]))
    expected = (info.size * _BITS[dtype] + 7) // 8
    if pair[1] - pair[0] != expected:
        raise FormatError(
            f"tensor {name[:80]!r} claims {pair[1] - pair[0]} bytes; {dtype} {extents} needs {expected}",
            where=where,
        )
    return info, pair[0], pair[1]


def _integers(value: Json, name: str, where: str) -> list[int]:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise FormatError(f"tensor {name[:80]!r}: expected a list of integers", where=where)
    return value  # type: ignore[return-value]  # just checked


def _check_overlaps(extents: list[tuple[int, int, str]], where: str) -> None:
    if len(extents) < 2:
        return
    extents.sort()
    starts = np.array([start for start, _, _ in extents])
    stops = np.array([stop for _, stop, _ in extents])
    clash = np.flatnonzero(starts[1:] < np.maximum.accumulate(stops)[:-1])
    if clash.size:
        first, second = extents[int(clash[0])][2], extents[int(clash[0]) + 1][2]
        raise FormatError(f"tensors {first[:60]!r} and {second[:60]!r} overlap", where=where)
