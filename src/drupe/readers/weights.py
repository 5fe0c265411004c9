"""Which files of a tree are its weights, and which reader opens them.

The shallowest file of the best known format wins: formats earlier in the table say more about a model (an
index names every tensor; a pickle is the last resort).
"""

from __future__ import annotations

from collections.abc import Sequence

from drupe.errors import UsageError
from drupe.messages import msg
from drupe.readers.interface import Absent, WeightFile, check_names
from drupe.sources.interface import Tree


def open_weights(tree: Tree) -> WeightFile | Absent:
    """The weights of a tree, by the file name; the shallowest file of the best known format."""
    names = _candidates(tree)
    for suffix, opener in _OPENERS:
        fitting = [name for name in names if name.lower().endswith(suffix)]
        if fitting:
            file = opener(tree, _shallowest(fitting))
            check_names(file.tensors, fitting[0])
            return file
    unread = [name for name in names if name.lower().endswith(_UNREAD)]
    if unread:
        return Absent(msg("part.weights_unread", file=unread[0]))
    return Absent(msg("part.weights_missing"))


def _candidates(tree: Tree) -> list[str]:
    selected: str | None = getattr(tree, "selected", None)
    return [selected] if selected else list(tree.files())


def _shallowest(names: Sequence[str]) -> list[str]:
    """The files of the folder nearest to the root; when several folders are equally near, the first."""
    depth = min(name.count("/") for name in names)
    near = [name for name in names if name.count("/") == depth]
    folder = near[0].rpartition("/")[0]
    return [name for name in near if name.rpartition("/")[0] == folder]


def _open_index(tree: Tree, names: Sequence[str]) -> WeightFile:
    from drupe.readers.safetensors import open_index

    return open_index(tree, _only(names, "model.safetensors.index.json"))


def _open_safetensors(tree: Tree, names: Sequence[str]) -> WeightFile:
    from drupe.readers.safetensors import open_safetensors

    plain = [name for name in names if name.rpartition("/")[2] == "model.safetensors"]
    return open_safetensors([tree.open(name) for name in plain or names])


def _open_gguf(tree: Tree, names: Sequence[str]) -> WeightFile:
    from drupe.readers.gguf import open_gguf

    return open_gguf(tree.open(_only(names, "model.gguf")))


def _open_onnx(tree: Tree, names: Sequence[str]) -> WeightFile:
    from drupe.readers.onnx import open_onnx

    return open_onnx(tree.open(_only(names, "model.onnx")), tree)


def _only(names: Sequence[str], usual: str) -> str:
    """The one file, or the one with the usual name; raises UsageError when the choice is the user's."""
    if len(names) == 1:
        return names[0]
    for name in names:
        if name.rpartition("/")[2] == usual:
            return name
    raise UsageError(
        f"several models in one folder: {', '.join(names[:5])}", hint="give the path of one file"
    )


_OPENERS = (
    (".safetensors.index.json", _open_index),
    (".safetensors", _open_safetensors),
    (".gguf", _open_gguf),
    (".onnx", _open_onnx),
)
_UNREAD = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".npz", ".tflite")
