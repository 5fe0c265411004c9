"""Index files of sharded checkpoints (``*.safetensors.index.json``, ``*.bin.index.json``): tensor -> file.

Format: huggingface.co/docs/transformers/big_models ("weight_map").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drupe.errors import FormatError
from drupe.readers.interface import TensorInfo, check_tensor_count
from drupe.readers.strict_json import as_object, read_json_object
from drupe.sources.interface import Blob, Tree


@dataclass(frozen=True, slots=True)
class Shards:
    """The files of a checkpoint and which tensor is where."""

    blobs: tuple[Blob, ...]
    index: Mapping[str, str]
    """Tensor -> path of its file."""


def read_index(tree: Tree, name: str) -> Shards:
    """The shards that an index file names. Raises FormatError when one is missing."""
    mapping = as_object(read_json_object(tree.open(name)).get("weight_map"), f"{name}: weight_map")
    index: dict[str, str] = {}
    for tensor, file in mapping.items():
        if not isinstance(file, str):
            raise FormatError(f"weight_map of {tensor!r} is not a file name", where=name)
        index[tensor] = file
    if not index:
        raise FormatError("the index names no tensor", where=name)
    check_tensor_count(len(index), name)
    folder = name.rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    blobs = []
    for file in sorted(set(index.values())):
        if prefix + file not in tree.files():
            raise FormatError(f"shard {file!r} is missing", where=name, hint="download the missing shard")
        blobs.append(tree.open(prefix + file))
    return Shards(tuple(blobs), {tensor: prefix + file for tensor, file in index.items()})


def check_index(index: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> None:
    """Raise FormatError unless every tensor is in the file that the index names."""
    for name, file in index.items():
        if name not in tensors:
            raise FormatError(f"the index names tensor {name[:80]!r}, which no shard holds", where=file)
        if tensors[name].file != file:
            raise FormatError(f"tensor {name[:80]!r} is in {tensors[name].file}, not here", where=file)
