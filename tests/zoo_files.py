"""Checkpoints in memory and on disk: numpy and the standard library only, so that tests trust no reader.

A checkpoint holds float32 values whatever its file's dtype (bf16 and fp16 widen without loss), and is rounded
once, when written. The safetensors layout is the published one: u64 header length, JSON header, raw data.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[np.float32]
Tensors = dict[str, Tensor]
MODELS = Path(__file__).parent / "models"
DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
SIZES = {"BF16": 2, "F16": 2, "F32": 4}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model folder's content; ``shards`` > 1 writes that many files and an index."""

    tensors: Tensors
    config: dict[str, Any]
    tokenizer: dict[str, Any] | None = None
    dtype: str = "bf16"
    shards: int = 1
    extras: dict[str, str] = field(default_factory=dict)  # further text files: name -> content

    def with_tensors(self, tensors: Tensors, **config: Any) -> Checkpoint:
        """The same model with other tensors and, where given, other config values."""
        return replace(self, tensors=tensors, config={**self.config, **config})


def to_bf16(values: Tensor) -> NDArray[np.uint16]:
    """The nearest bf16 bit patterns, ties to even; a NaN stays a NaN.

    >>> [hex(int(b)) for b in to_bf16(np.float32([1.0, 1.00390625, 1.01171875, np.nan]))]
    ['0x3f80', '0x3f80', '0x3f82', '0x7fc0']
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> Tensor:
    """The float32 values of bf16 bit patterns; exact.

    >>> from_bf16(np.uint16([0x3F80, 0xC000])).tolist()
    [1.0, -2.0]
    """
    return (bits.astype(np.uint32) << 16).view(np.float32)


def encode(values: Tensor, dtype: str) -> bytes:
    """Little-endian bytes of the values in ``bf16``, ``fp16`` or ``fp32``."""
    if dtype == "bf16":
        return to_bf16(values).astype("<u2").tobytes()
    with np.errstate(over="ignore"):  # fp16 ends at 65,504; beyond is Inf, as in every cast
        return values.astype({"fp16": "<f2", "fp32": "<f4"}[dtype]).tobytes()


def decode(data: bytes, dtype: str, shape: Iterable[int]) -> Tensor:
    """The inverse of ``encode``; ``dtype`` as safetensors spells it."""
    if dtype == "BF16":
        return from_bf16(np.frombuffer(data, "<u2")).reshape(tuple(shape))
    return np.frombuffer(data, {"F16": "<f2", "F32": "<f4"}[dtype]).astype(np.float32).reshape(tuple(shape))


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], dtype: str = "bf16") -> None:
    """Writes one file, the tensors in the mapping's order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, at = [], 0
    for name, values in tensors.items():
        blob = encode(values, dtype)
        offsets = [at, at + len(blob)]
        header[name] = {"dtype": DTYPES[dtype], "shape": list(values.shape), "data_offsets": offsets}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def read_safetensors(path: Path) -> tuple[Tensors, str]:
    """All tensors of a file in the order of their data, and their dtype (one for the whole file)."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"][0])
    tensors: Tensors = {}
    for name, entry in entries:
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = decode(data[begin:end], entry["dtype"], entry["shape"])
    (dtype,) = {entry["dtype"] for _, entry in entries}
    return tensors, {long: short for short, long in DTYPES.items()}[dtype]


def read_model(folder: Path | str) -> Checkpoint:
    """A single-file model folder; a bare name is one of ``tests/models``."""
    path = Path(folder) if isinstance(folder, Path) else MODELS / folder
    tensors, dtype = read_safetensors(path / "model.safetensors")
    config = json.loads((path / "config.json").read_text("utf-8"))
    tokenizer = path / "tokenizer.json"
    vocabulary = json.loads(tokenizer.read_text("utf-8")) if tokenizer.exists() else None
    return Checkpoint(tensors, config, vocabulary, dtype)


def _write_shards(folder: Path, tensors: Tensors, dtype: str, shards: int) -> None:
    names = list(tensors)
    weight_map: dict[str, str] = {}
    total = 0
    for number, part in enumerate(np.array_split(np.arange(len(names)), shards), 1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        members = {names[i]: tensors[names[i]] for i in part}
        write_safetensors(folder / file, members, dtype)
        weight_map |= dict.fromkeys(members, file)
        total += sum(values.size for values in members.values()) * SIZES[DTYPES[dtype]]
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), "utf-8")


def write_model(
    folder: Path,
    tensors: Tensors,
    config: Mapping[str, Any] | None = None,
    *,
    tokenizer: Mapping[str, Any] | None = None,
    dtype: str = "bf16",
    shards: int = 1,
) -> Path:
    """Writes a Hugging Face style folder, ``config`` and ``tokenizer`` optional; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards > 1:
        _write_shards(folder, tensors, dtype, shards)
    else:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
    if config is not None:
        spelled = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[dtype]
        text = json.dumps({**config, "dtype": spelled}, indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n", "utf-8")
    if tokenizer is not None:
        text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
        (folder / "tokenizer.json").write_text(text + "\n", "utf-8")
    return folder


def save(model: Checkpoint, folder: Path) -> Path:
    """Writes a checkpoint with its own dtype, shards and extra files. Returns the folder."""
    write_model(
        folder,
        model.tensors,
        model.config,
        tokenizer=model.tokenizer,
        dtype=model.dtype,
        shards=model.shards,
    )
    for name, content in model.extras.items():
        (folder / name).write_text(content, "utf-8")
    return folder


def clone(model: Checkpoint) -> Checkpoint:
    """A copy that shares no array and no dictionary."""
    return copy.deepcopy(model)
