"""Stores and archives through fsspec: its own file systems, really used."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from drupe.errors import (
    DrupeError,
    FormatError,
    LimitError,
    LocatorError,
    OfflineError,
    SourceError,
    UnsupportedError,
)
from drupe.sources import fs
from drupe.sources.fs import FsTree
from drupe.sources.locator import open_tree

WEIGHTS = random.Random(4).randbytes(2 << 20)
FILES = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    ".hidden": b"x",
    "sub/other.safetensors": WEIGHTS[:1000],
}


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    system = fsspec.filesystem("memory")
    for name, data in FILES.items():
        system.pipe_file(f"/bucket/{name}", data)
    yield system
    system.rm("/bucket", recursive=True)


def _archive(path: Path, kind: int = zipfile.ZIP_STORED, names: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", kind) as writer:
        for name, data in (names or FILES).items():
            writer.writestr(name, data)
    return path


def _read_member(locator: str) -> bytes:
    return FsTree(locator).open("model.safetensors").read(1_000_000, 10)


def test_a_prefix_is_listed_and_read_by_ranges(memory: MemoryFileSystem) -> None:
    tree = open_tree("memory://bucket", offline=False)
    assert isinstance(tree, FsTree)
    assert tree.files() == {name: len(data) for name, data in FILES.items() if name != ".hidden"}
    blob = tree.open("model.safetensors")
    assert blob.read_many([(1_000_000, 9), (0, 4)]) == [WEIGHTS[1_000_000:1_000_009], WEIGHTS[:4]]
    assert tree.meter.bytes_read == 13


def test_an_object_is_selected_with_what_describes_it(memory: MemoryFileSystem) -> None:
    tree = FsTree("memory://bucket/model.safetensors")
    assert (tree.selected, list(tree.files())) == ("model.safetensors", ["config.json", "model.safetensors"])
    assert tree.open("config.json").read(0, 2) == b"{}"


@pytest.mark.parametrize("data", [WEIGHTS[::-1], WEIGHTS[:-1]])
def test_an_object_that_changes_is_a_source_error(memory: MemoryFileSystem, data: bytes) -> None:
    blob = FsTree("memory://bucket").open("model.safetensors")
    assert blob.read(1_000_000, 1) == WEIGHTS[1_000_000:1_000_001]
    memory.pipe_file("/bucket/model.safetensors", data)
    with pytest.raises(SourceError, match=r"changed while it was read"):
        blob.read(1_500_000, 1)


def test_an_object_that_vanishes_is_a_locator_error(memory: MemoryFileSystem) -> None:
    blob = FsTree("memory://bucket").open("model.safetensors")
    memory.rm_file("/bucket/model.safetensors")
    with pytest.raises(LocatorError, match=r"model.safetensors: no such file"):
        blob.read(1_000_000, 1)
    memory.pipe_file("/bucket/model.safetensors", WEIGHTS)


def test_an_archive_is_read_in_place(tmp_path: Path) -> None:
    archive = _archive(tmp_path / "m.zip")
    for locator in (f"zip://::file://{archive}", f"zip://::{archive}"):
        tree = open_tree(locator, offline=True)
        assert list(tree.files()) == ["config.json", "model.safetensors", "sub/other.safetensors"]
        assert tree.open("model.safetensors").read(1_999_000, 50) == WEIGHTS[1_999_000:1_999_050]
    inner = open_tree(f"zip://sub/other.safetensors::file://{archive}", offline=True)
    assert list(inner.files()) == ["other.safetensors"]


def test_names_that_leave_the_archive_are_no_files_of_it(tmp_path: Path) -> None:
    names = {"../escape.json": b"x", "/etc/passwd": b"x", "a\\b": b"x", "C:/x": b"x", "config.json": b"{}"}
    archive = _archive(tmp_path / "m.zip", names=names)
    assert list(FsTree(f"zip://::{archive}").files()) == ["config.json"]


def test_a_compressed_member_is_unpacked_once(tmp_path: Path) -> None:
    tree = FsTree(f"zip://::{_archive(tmp_path / 'm.zip', zipfile.ZIP_DEFLATED)}")
    blob = tree.open("model.safetensors")
    for start in range(0, 2_000_000, 100_000):
        assert blob.read(start, 10) == WEIGHTS[start : start + 10]
    assert tree.meter.bytes_read == len(WEIGHTS)


def test_large_compressed_members_are_not_unpacked(tmp_path: Path) -> None:
    bomb = _archive(tmp_path / "bomb.zip", zipfile.ZIP_DEFLATED, {"model.safetensors": bytes(65 << 20)})
    tree = FsTree(f"zip://::{bomb}")
    with pytest.raises(UnsupportedError, match=r"68157440 bytes, compressed inside the zip file \(unpack it"):
        tree.open("model.safetensors")


def test_an_archive_that_lies_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none.zip").write_bytes(b"not a zip")
    with pytest.raises(FormatError, match=r"not a zip file: it has no end record"):
        FsTree(f"zip://::{tmp_path / 'none.zip'}")
    whole = _archive(tmp_path / "m.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[5000:])
    (tmp_path / "flipped.zip").write_bytes(whole.replace(b"PK\1\2", b"PK\1\3"))
    for name in ("cut", "flipped"):
        with pytest.raises(DrupeError):
            _read_member(f"zip://::{tmp_path / name}.zip")
    monkeypatch.setattr(fs, "MAX_DIRECTORY", 100)
    with pytest.raises(LimitError, match=r"directory of the zip file in bytes: \d+ exceeds the limit of 100"):
        FsTree(f"zip://::{tmp_path / 'm.zip'}")


def test_the_directory_of_a_large_archive_is_bounded_too() -> None:
    large = b"PK\6\6" + bytes(36) + (1 << 40).to_bytes(8, "little") + bytes(8)
    locator = b"PK\6\7" + bytes(16)
    end = b"PK\5\6" + bytes(8) + b"\xff" * 8 + bytes(2)
    assert fs.directory_length(large + locator + end, "x") == 1 << 40


def test_a_pipe_or_folder_is_no_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LocatorError, match=r"neither a regular file nor a folder"):
        FsTree(f"zip://::{tmp_path / 'pipe'}")
    with pytest.raises(LocatorError, match=r"a folder, not a zip file"):
        FsTree(f"zip://::{tmp_path}")


@pytest.mark.parametrize(
    ("locator", "message"),
    [
        ("memory://nothing/here", r"no such file or folder"),
        ("zip://x::simplecache::s3://bucket/a.zip", r"simplecache:// is not read|no such file"),
        ("zip://x::reference://a", r"reference:// is not read \(accepted: s3://"),
        ("zip://x::github://a:b@c/d", r"github:// is not read"),
        ("zip://x::/nowhere/a.zip", r"no such file"),
    ],
)
def test_what_cannot_be_opened_is_said(locator: str, message: str) -> None:
    with pytest.raises(LocatorError, match=message):
        open_tree(locator, offline=False)


def test_offline_a_remote_store_is_an_offline_error() -> None:
    for locator in ("s3://user:secret@bucket/key", "zip://x::gs://user:secret@bucket/a.zip"):
        with pytest.raises(OfflineError, match=r"needs a connection.*without --offline") as caught:
            open_tree(locator, offline=True)
        assert "secret" not in str(caught.value)


class _Store(MemoryFileSystem):
    """The memory file system under the name of a remote one, with entity tags: what s3fs answers."""

    protocol = "s3"
    calls: list[str] = []  # noqa: RUF012 - shared on purpose, as the files are

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("s3://", "memory://"))

    def info(self, path: str, **options: object) -> dict[str, object]:
        found: dict[str, object] = super().info(path, **options)
        return {**found, "ETag": f'"{hash(self.cat_file(path))}"'} if found["type"] == "file" else found

    def ls(self, path: str, detail: bool = True, **options: object) -> list[dict[str, object]]:
        return [self.info(each["name"]) for each in super().ls(path, detail=True, **options)]

    def cat_ranges(self, paths: list[str], *rest: object, **options: object) -> list[bytes]:
        self.calls.extend(paths)
        found: list[bytes] = super().cat_ranges(paths, *rest, **options)
        return found


def test_what_was_read_of_a_remote_store_is_kept_by_its_entity_tag(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DRUPE_CACHE", str(tmp_path))
    monkeypatch.delenv("DRUPE_CACHE_LIMIT")
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "s3", _Store)
    spans, expected = [(1_000_000, 9), (0, 4)], [WEIGHTS[1_000_000:1_000_009], WEIGHTS[:4]]
    assert open_tree("s3://bucket", offline=False).open("model.safetensors").read_many(spans) == expected
    _Store.calls.clear()
    for offline in (False, True):
        tree = open_tree("s3://bucket", offline=offline)
        assert tree.open("model.safetensors").read_many(spans) == expected
    assert _Store.calls == []
    with pytest.raises(OfflineError, match=r"not in the cache"):
        tree.open("model.safetensors").read(1_500_000, 1)
    memory.pipe_file("/bucket/model.safetensors", WEIGHTS[::-1])
    fresh = open_tree("s3://bucket", offline=False).open("model.safetensors")
    assert fresh.read_many(spans) == [WEIGHTS[::-1][start : start + length] for start, length in spans]


WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from drupe.errors import UsageError
from drupe.sources.locator import open_tree
try:
    open_tree("s3://bucket/key", offline=False)
except UsageError as error:
    print(error)
"""


@pytest.mark.parametrize("missing", ["fsspec", "s3fs"])
def test_a_missing_package_is_a_usage_error_with_the_command(missing: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, missing], capture_output=True, text=True, check=True
    )
    assert f"needs {missing}" in done.stdout or f"nstall {missing}" in done.stdout
    assert "run: pip install 'drupe[cloud]'" in done.stdout
