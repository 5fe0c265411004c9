"""GGUF models in several files (``tools/gguf-split`` of github.com/ggml-org/llama.cpp).

Facts: the names end in ``-00001-of-00003.gguf``; every part says ``split.no`` (from 0), ``split.count`` and
``split.tensors.count`` (of all parts together); the metadata stand in the first part, which may have no tensor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

from drupe.errors import FormatError, LimitError, LocatorError
from drupe.readers.gguf import GgufFile, open_gguf
from drupe.readers.interface import TensorInfo
from drupe.sources.interface import Tree

MAX_PARTS = 512
"""Files of one model; the largest known are split into about 30."""
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def first_parts(names: Sequence[str]) -> list[str]:
    """One file name of each model: a split model's part with the lowest number, any other file itself.

    >>> first_parts(["a-00002-of-00002.gguf", "a-00001-of-00002.gguf", "b.gguf"])
    ['a-00001-of-00002.gguf', 'b.gguf']
    """
    found: dict[tuple[str, str], str] = {}
    for name in sorted(names):
        match = _PART.fullmatch(name)
        found.setdefault((match["stem"], match["count"]) if match else (name, ""), name)
    return list(found.values())


def open_gguf_model(tree: Tree, name: str) -> GgufFile:
    """Open a GGUF file and, when it is one part of a split model, the other parts beside it.

    Raises FormatError when a part is missing, is not the part that its name says, or repeats another's tensor.
    """
    named = open_gguf(tree.open(name))
    count = _field(named, "split.count", 1)
    if count <= 1:
        return named
    parts = [named if file == name else _open_part(tree, file, name) for file in _names(name, count)]
    for number, part in enumerate(parts):
        place = _field(part, "split.no", -1), _field(part, "split.count", 1)
        if place != (number, count):
            what = f"split.no and split.count are {place}, its name says {(number, count)}"
            raise FormatError(what, where=part.blob.name)
    return _joined(parts)


def _field(file: GgufFile, key: str, default: int) -> int:
    value = file.fields.get(key, default)
    if type(value) is not int:
        raise FormatError(f"{key} is not a whole number", where=file.blob.name)
    return value


def _names(name: str, count: int) -> list[str]:
    """The names of all parts, in order."""
    if count > MAX_PARTS:
        raise LimitError("parts of a split model", limit=MAX_PARTS, actual=count, where=name)
    match = _PART.fullmatch(name)
    if match is None:
        raise FormatError(
            f"it is one of {count} parts, and its name does not end in -00001-of-{count:05d}.gguf",
            where=name,
            hint="give the parts the names they were published with",
        )
    if int(match["count"]) != count:
        raise FormatError(f"split.count is {count}, its name says {int(match['count'])}", where=name)
    return [f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def _open_part(tree: Tree, file: str, named: str) -> GgufFile:
    try:
        return open_gguf(tree.open(file))
    except LocatorError:
        what = f"part {file.rpartition('/')[2]!r} is missing"
        raise FormatError(what, where=named, hint="download the missing part") from None


def _joined(parts: Sequence[GgufFile]) -> GgufFile:
    """The first part, with the tensors of all."""
    tensors: dict[str, TensorInfo] = {}
    starts: dict[str, int] = {}
    for part in parts:
        for name, info in part.tensors.items():
            if name in tensors:
                what = f"tensor {name[:80]!r} is also in {tensors[name].file}"
                raise FormatError(what, where=part.blob.name)
            tensors[name] = info
        starts.update(part.starts)
    first, *others = parts
    expected = _field(first, "split.tensors.count", len(tensors))
    if expected != len(tensors):
        what = f"split.tensors.count is {expected}, the parts hold {len(tensors)} tensors"
        raise FormatError(what, where=first.blob.name)
    further = MappingProxyType({part.blob.name: part for part in others})
    return replace(first, tensors=MappingProxyType(tensors), starts=MappingProxyType(starts), further=further)
