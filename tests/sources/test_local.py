"""Links, special files, changing files, and the pages that reading costs."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from pathlib import Path

import pytest

from drupe.errors import LimitError, LocatorError, SourceError, UnsafePathError
from drupe.sources import paths
from drupe.sources.local import LocalTree


def _make(folder: Path, *names: str) -> Path:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return folder


def test_hidden_folders_are_not_listed(tmp_path: Path) -> None:
    _make(tmp_path, "a.txt", "sub/b.txt", ".git/config", ".cache/x", "sub/.hidden/y", ".gitattributes")
    assert list(LocalTree(tmp_path).files()) == ["a.txt", "sub/b.txt"]


def test_a_weight_file_brings_only_what_describes_it(tmp_path: Path) -> None:
    names = ("a.gguf", "b.gguf", "config.json", "README.md", "train.py", "sub/tokenizer.json")
    tree = LocalTree(_make(tmp_path, *names) / "a.gguf")
    assert tree.selected == "a.gguf"
    assert list(tree.files()) == ["README.md", "a.gguf", "config.json"]


@pytest.mark.parametrize(
    ("selected", "parts"),
    [
        ("m.safetensors.index.json", ["s1.safetensors", "s2.safetensors"]),
        ("x-00001-of-00002.gguf", ["x-00002-of-00002.gguf"]),
        ("m.onnx", ["m.onnx_data"]),
    ],
)
def test_a_weight_file_brings_its_other_parts(tmp_path: Path, selected: str, parts: list[str]) -> None:
    everything = [
        *("m.safetensors.index.json", "s1.safetensors", "s2.safetensors", "m.onnx", "m.onnx_data"),
        *("x-00001-of-00002.gguf", "x-00002-of-00002.gguf", "y-00002-of-00002.gguf"),
    ]
    tree = LocalTree(_make(tmp_path, *everything) / selected)
    assert list(tree.files()) == sorted([selected, *parts])


def test_a_link_inside_is_followed_and_a_link_out_is_not(tmp_path: Path) -> None:
    root = _make(tmp_path / "model", "a.txt", "sub/b.txt")
    _make(tmp_path, "secret.txt")
    (root / "in.txt").symlink_to("sub/b.txt")
    (root / "out.txt").symlink_to(tmp_path / "secret.txt")
    (root / "dangling").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    (root / "up").symlink_to("..")
    tree = LocalTree(root)
    assert list(tree.files()) == ["a.txt", "in.txt", "sub/b.txt"]
    assert tree.open("in.txt").read(0, 9) == b"sub/b.txt"
    for name in ("out.txt", "up/secret.txt"):
        with pytest.raises(UnsafePathError, match=r"leads out of the model's folder"):
            tree.open(name)


def test_a_neighbour_with_the_same_prefix_is_outside(tmp_path: Path) -> None:
    root = _make(tmp_path / "model", "a.txt")
    _make(tmp_path / "model-private", "key")
    (root / "key").symlink_to("../model-private/key")
    with pytest.raises(UnsafePathError):
        LocalTree(root).open("key")


def test_a_cache_snapshot_may_link_to_its_own_blobs_only(tmp_path: Path) -> None:
    mine, other = tmp_path / "models--o--mine", tmp_path / "models--o--other"
    _make(mine, "blobs/1")
    _make(other, "blobs/2")
    snapshot = mine / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "other.json").symlink_to("../../../models--o--other/blobs/2")
    assert list(LocalTree(snapshot).files()) == ["config.json"]
    assert list(LocalTree(snapshot / "config.json").files()) == ["config.json"]
    with pytest.raises(UnsafePathError):
        LocalTree(snapshot).open("other.json")


def test_the_file_that_the_user_names_may_be_any_link(tmp_path: Path) -> None:
    _make(tmp_path, "store/real.bin")
    folder = _make(tmp_path / "here", "config.json")
    (folder / "m.gguf").symlink_to(tmp_path / "store" / "real.bin")
    tree = LocalTree(folder / "m.gguf")
    assert tree.open("m.gguf").read(0, 5) == b"store"
    assert LocalTree(folder).files().keys() == {"config.json"}


def test_special_files_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/zero")
    tree = LocalTree(tmp_path)
    assert list(tree.files()) == []
    for name in ("pipe", "null"):
        with pytest.raises(UnsafePathError):
            tree.open(name)
    with pytest.raises(LocatorError, match=r"neither a regular file nor a folder"):
        LocalTree(tmp_path / "pipe")


def test_the_walk_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make(tmp_path, "/".join("d" * 17) + "/f")
    with pytest.raises(LimitError, match=r"depth of folders: 17 exceeds the limit of 16"):
        LocalTree(tmp_path).files()
    monkeypatch.setattr(paths, "MAX_FILES", 3)
    with pytest.raises(LimitError, match=r"number of files: more than 3 exceeds the limit of 3"):
        LocalTree(_make(tmp_path / "many", "a", "b", "c", "d")).files()


@pytest.mark.parametrize("size", [3, 300])
def test_a_file_that_changes_is_a_source_error(tmp_path: Path, size: int) -> None:
    file = tmp_path / "m.bin"
    file.write_bytes(bytes(100))
    blob = LocalTree(tmp_path).open("m.bin")
    os.truncate(file, size)
    for span in ((0, 2), (50, 50)):
        with pytest.raises(SourceError, match=r"changed while it was read"):
            blob.read(*span)


def test_a_deleted_file_stays_readable_and_a_closed_one_does_not(tmp_path: Path) -> None:
    blob = LocalTree(_make(tmp_path, "abc")).open("abc")
    blob.close()
    with pytest.raises(SourceError, match=r"closed"):
        blob.read(0, 1)


def test_collected_blobs_give_their_descriptors_back(tmp_path: Path) -> None:
    tree = LocalTree(_make(tmp_path, "abc"))
    kept = [tree.open("abc") for _ in range(20)]

    def count() -> int:
        return sum(link.resolve() == tmp_path / "abc" for link in Path("/proc/self/fd").iterdir())

    assert count() == len(kept)
    kept.clear()
    gc.collect()
    assert count() == 0


def test_only_touching_spans_are_joined(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(bytes(range(256)))
    tree = LocalTree(tmp_path)
    spans = [(20, 10), (0, 10), (10, 5), (12, 2), (16, 1)]
    assert tree.open("m").read_many(spans) == [bytes(range(s, s + n)) for s, n in spans]
    assert (tree.meter.requests, tree.meter.bytes_read) == (3, 15 + 1 + 10)


def _resident_pages(file: Path) -> int:
    """Pages of the file in the kernel's cache, by mincore(2); looking does not load any."""
    size = file.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    with file.open("r+b") as handle, mmap.mmap(handle.fileno(), size) as mapped:
        address = ctypes.c_char.from_buffer(mapped)
        flags = (ctypes.c_ubyte * pages)()
        libc = ctypes.CDLL(None, use_errno=True)
        start = ctypes.c_void_p(ctypes.addressof(address))
        assert libc.mincore(start, ctypes.c_size_t(size), flags) == 0
        del address
        return sum(flag & 1 for flag in flags)


def test_reading_a_header_and_rows_costs_only_their_own_pages(tmp_path: Path) -> None:
    file = tmp_path / "m.bin"
    file.write_bytes(os.urandom(8 << 20))
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if _resident_pages(file):
        pytest.skip("this file system keeps everything in memory")
    rows = [(64 * 4096 + row * 28672, 4096) for row in range(8)]
    blob = LocalTree(tmp_path).open("m.bin")
    blob.read(0, 8)
    blob.read_many(rows)
    assert _resident_pages(file) == 1 + 8
