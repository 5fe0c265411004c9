"""Names of files inside a model: which are safe, which belong to a selected weight file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from drupe.errors import LimitError, UnsafePathError

MAX_FILES = 100_000
"""Files of one model; the largest published repositories hold a few thousand."""
MAX_DEPTH = 16
"""Folders below the root."""
MAX_LENGTH = 4096
"""Characters of a relative path (PATH_MAX of Linux)."""

INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
"""Of the files that name the shards of a checkpoint."""

SIBLINGS = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "vocabulary.json",
    "vocabulary.txt",
    "shared_vocabulary.json",
    "shared_vocabulary.txt",
    "README.md",
    "LICENSE",
    "NOTICE",
)
"""Files beside a selected weight file that describe the same model."""

_RANK = re.compile(r"consolidated\.\d\d\.(pth|safetensors)")
"""Tensor-parallel pieces of Meta and Mistral."""
_SPLIT_GGUF = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def is_safe(name: str) -> bool:
    """Whether a relative path with forward slashes stays inside its root on every system.

    >>> [is_safe(name) for name in ("a/b.json", "../a", "/etc/passwd", "C:\\\\x", "a//b", "")]
    [True, False, False, False, False, False]
    """
    if not name or len(name) > MAX_LENGTH or "\\" in name or not name.isprintable():
        return False
    if re.match(r"[A-Za-z]:", name):
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


def check_name(name: str, where: str) -> None:
    """Raise UnsafePathError unless :func:`is_safe`."""
    if not is_safe(name):
        raise UnsafePathError(
            f"the path {name[:200]!r} is absolute, leaves its folder or is malformed", where=where
        )


def is_hidden(name: str) -> bool:
    """Whether the file or any of its folders begins with a dot.

    >>> is_hidden("a/.cache/b"), is_hidden("a.b/c")
    (True, False)
    """
    return name.startswith(".") or "/." in name


def check_count(count: int, where: str) -> None:
    """Raise LimitError when a model has more files than any real one."""
    if count > MAX_FILES:
        raise LimitError("number of files", limit=MAX_FILES, actual=f"more than {MAX_FILES}", where=where)


def check_depth(name: str, where: str) -> None:
    """Raise LimitError when a file lies in more folders than any real one."""
    depth = name.count("/")
    if depth > MAX_DEPTH:
        raise LimitError("depth of folders", limit=MAX_DEPTH, actual=depth, where=where)


def belonging(names: Iterable[str], selected: str) -> list[str]:
    """Of one folder's file names, those that make up the model of the ``selected`` weight file.

    The file itself, the known siblings, and what else holds its weights: the shards of an index, the other
    parts of a split GGUF or ranks, the external data of an ONNX file.

    >>> belonging(["a.gguf", "b.gguf", "config.json", "notes.txt"], "a.gguf")
    ['a.gguf', 'config.json']
    """
    return [name for name in names if name == selected or name in SIBLINGS or _is_part(name, selected)]


def _is_part(name: str, selected: str) -> bool:
    if selected.endswith(INDEX_SUFFIXES):
        return name.endswith("." + selected.removesuffix(".index.json").rpartition(".")[2])
    if selected.endswith(".onnx"):
        return name.startswith(
            (selected + "_data", selected + ".data", PurePosixPath(selected).stem + ".data")
        )
    if rank := _RANK.fullmatch(selected):
        return bool((other := _RANK.fullmatch(name)) and other[1] == rank[1])
    parts = _SPLIT_GGUF.split(selected)
    return len(parts) == 2 and _SPLIT_GGUF.split(name)[0] == parts[0] and name.endswith(".gguf")
