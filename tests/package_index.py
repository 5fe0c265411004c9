"""A package index of wheels made on the fly: a folder that the real pip reads, without any network."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path

import pytest

from drupe.packages import Member, Package

WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Index:
    """A folder of wheels, which pip is told to use in place of an index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def add(self, name: str, files: dict[str, bytes], version: str = "1.0") -> Package:
        """Write a wheel; returns the package with every file but the metadata as a member."""
        stem = f"{name.replace('-', '_')}-{version}"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
        inside = {f"{name}/{file}": data for file, data in files.items()}
        described = {f"{stem}.dist-info/METADATA": metadata, f"{stem}.dist-info/WHEEL": WHEEL.encode()}
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, data in {**inside, **described, f"{stem}.dist-info/RECORD": b""}.items():
                archive.writestr(path, data)
        wheel = packed.getvalue()
        (self.folder / f"{stem}-py3-none-any.whl").write_bytes(wheel)
        members = tuple(
            Member(path, path.rpartition("/")[2], len(data), sha256(data)) for path, data in inside.items()
        )
        return Package(name, version, len(wheel), sha256(wheel), members)


def local_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """An empty index; pip knows no other, and the cache lies beside it."""
    made = Index(folder / "index")
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.folder))
    monkeypatch.setenv("DRUPE_CACHE", str(folder / "cache"))
    return made
