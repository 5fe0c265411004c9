"""Which files of a tree are its weights, and which reader opens them.

The shallowest file of the best known format wins: formats earlier in the table say more about a model (an
index names every tensor; a pickle is the last resort).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from drupe.errors import UsageError
from drupe.messages import msg
from drupe.readers.folders import part_folders, without_variants
from drupe.readers.interface import Absent, WeightFile, check_names
from drupe.readers.ranks import join_ranks, rank_files, refuse_slices
from drupe.readers.subset import unite
from drupe.sources.interface import Tree

Opener = Callable[[Tree, Sequence[str]], WeightFile | None]


def open_weights(tree: Tree) -> WeightFile | Absent:
    """The weights: of all ranks, of the folders of the parts, else the shallowest file of the best format."""
    ranks = rank_files(list(tree.files()))
    if ranks:
        pieces = [_open_best(tree, [name]) for name in ranks]
        return join_ranks([piece for piece in pieces if not isinstance(piece, Absent)])
    file = _open_whole(tree)
    if not isinstance(file, Absent):
        refuse_slices({info.file for info in file.tensors.values()}, tree.files())
    return file


def _open_whole(tree: Tree) -> WeightFile | Absent:
    selected = tree.selected
    if selected is not None:
        opener = None if selected.lower().endswith(_KNOWN) else _opener_by_content(tree, selected)
        file = None if opener is None else opener(tree, [selected])
        return _open_best(tree, [selected]) if file is None else _checked(file, selected)
    parts = {folder: _open_best(tree, _directly_in(tree, folder)) for folder in part_folders(tree)}
    found = {
        f"{folder}:" if folder else "": file for folder, file in parts.items() if not isinstance(file, Absent)
    }
    return unite(found) if len(found) > 1 else _open_best(tree, list(tree.files()))


def _directly_in(tree: Tree, folder: str) -> list[str]:
    return [name for name in tree.files() if name.rpartition("/")[0] == folder]


def _open_best(tree: Tree, files: Sequence[str]) -> WeightFile | Absent:
    for suffix, opener in _OPENERS:
        fitting = [name for name in files if name.lower().endswith(suffix)]
        file = opener(tree, without_variants(_shallowest(fitting))) if fitting else None
        if file is not None:
            return _checked(file, fitting[0])
    unread = [name for name in files if name.lower().endswith(_UNREAD)]
    if unread:
        return Absent(msg("part.weights_unread", file=unread[0]))
    return Absent(msg("part.weights_missing"))


def _checked(file: WeightFile, name: str) -> WeightFile:
    check_names(file.tensors, name)
    return file


def _opener_by_content(tree: Tree, name: str) -> Opener | None:
    """For a file that the user named and whose name says nothing (``.jit``, ``.model``, a blob): its first bytes."""
    blob = tree.open(name)
    head = blob.read(0, min(blob.size, 16))
    if head.startswith(b"GGUF"):
        return _open_gguf
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return _open_torch
    if head.startswith(b"\x93NUMPY"):
        return _open_numpy
    return _open_safetensors if head[8:9] == b"{" else None


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
    from drupe.readers.gguf_split import first_parts, open_gguf_model

    return open_gguf_model(tree, _only(first_parts(names), "model.gguf"))


def _open_onnx(tree: Tree, names: Sequence[str]) -> WeightFile:
    from drupe.readers.onnx import open_onnx

    return open_onnx(tree.open(_only(names, "model.onnx")), tree)


def _open_msgpack(tree: Tree, names: Sequence[str]) -> WeightFile:
    from drupe.readers.msgpack_file import open_msgpack

    return open_msgpack([tree.open(name) for name in names])


def _open_numpy(tree: Tree, names: Sequence[str]) -> WeightFile:
    from drupe.readers.numpy_file import open_numpy

    plain = [name for name in names if name.rpartition("/")[2] in ("weights.npz", "model.npz")]
    return open_numpy([tree.open(name) for name in plain or names])


def _open_ctranslate2(tree: Tree, names: Sequence[str]) -> WeightFile | None:
    """PyTorch files have the same name: None unless it begins as one of CTranslate2."""
    from drupe.readers.ctranslate2 import is_ctranslate2, open_ctranslate2

    blob = tree.open(names[0])
    return open_ctranslate2(blob) if is_ctranslate2(blob) else None


def _open_torch_index(tree: Tree, names: Sequence[str]) -> WeightFile:
    from drupe.readers.torch_file import open_index

    return open_index(tree, _only(names, "pytorch_model.bin.index.json"))


def _open_torch(tree: Tree, names: Sequence[str]) -> WeightFile | None:
    """None when no file is one of weights: many other programs call theirs ``.bin``."""
    from drupe.readers.torch_file import is_torch, open_torch
    from drupe.readers.torch_names import is_torch_name, weight_files

    chosen = names if tree.selected is not None else weight_files(names)
    blobs = [tree.open(name) for name in chosen]
    known = [blob for blob in blobs if is_torch_name(blob.name) or is_torch(blob)]
    return open_torch(known) if known else None


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
    ("model.bin", _open_ctranslate2),
    (".bin.index.json", _open_torch_index),
    ((".bin", ".pt", ".pth", ".ckpt", ".jit"), _open_torch),
    (".msgpack", _open_msgpack),
    (".npz", _open_numpy),
    (".npy", _open_numpy),
)
_UNREAD = (".bin", ".h5", ".keras", ".mlmodel", ".tflite")
_KNOWN = (
    *(
        ".safetensors",
        ".gguf",
        ".onnx",
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".jit",
        ".msgpack",
        ".npz",
        ".npy",
        ".json",
    ),
    *_UNREAD,
)
