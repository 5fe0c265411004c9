"""Shards, written one after another beside the target and moved to it when all are there and verified.

A run that breaks leaves the target alone: what is finished stays in a hidden folder beside it, where the next run of
the same conversion goes on. A shard counts when its record lies beside it, which is written last.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from drupe.convert.plan import Output
from drupe.convert.values import Values
from drupe.convert.verify import ReadBack, check_header
from drupe.errors import LimitError, LocatorError, SourceError
from drupe.files import write_atomically
from drupe.readers.strict_json import Json

Done = Callable[[int, int], None]
"""Bytes of the work done, and in all."""
INDEX = "model.safetensors.index.json"
_LOCK = "lock"
_FLUSHED = 256 << 20
"""Bytes after which what was written is sent to the disk."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the result. ``header`` is written as it is."""

    file: str
    outputs: tuple[Output, ...]
    header: bytes
    size: int


def shards_of(outputs: Sequence[Output], values: Values, limit: int) -> tuple[Shard, ...]:
    """Outputs in their order, as many to a shard as fit; a tensor is never divided."""
    groups: list[list[Output]] = [[]]
    room = limit
    for output in outputs:
        size = values.size(output)
        if groups[-1] and size > room:
            groups.append([])
            room = limit
        groups[-1].append(output)
        room -= size
    count = len(groups)
    names = [f"model-{k + 1:05}-of-{count:05}.safetensors" for k in range(count)]
    return tuple(
        _shard(name if count > 1 else "model.safetensors", group, values)
        for name, group in zip(names, groups, strict=True)
    )


def _shard(file: str, outputs: Sequence[Output], values: Values) -> Shard:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for output in outputs:
        end = offset + values.size(output)
        entries[output.name] = {
            "dtype": values.dtype(output.tensors[0]),
            "shape": list(output.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return Shard(file, tuple(outputs), len(text).to_bytes(8, "little") + text, 8 + len(text) + offset)


@contextmanager
def workplace(target: Path, needed: int) -> Iterator[Path]:
    """The hidden folder in which a conversion works; becomes the target when the block ends well.

    Raises LocatorError when the target exists or another run works on it, LimitError when the disk is too small.
    """
    refuse_existing(target)
    folder = target.with_name(f".{target.name}.drupe-convert")
    ours = any((folder / name).is_file() for name in (_LOCK, "rename.json"))
    if folder.is_symlink() or (folder.is_dir() and any(folder.iterdir()) and not ours):
        raise LocatorError("is in the way and was not made by a conversion", where=str(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        lock = os.open(folder / _LOCK, flags, 0o600)
    except OSError as error:
        raise SourceError(error.strerror or "cannot be written", where=str(folder)) from None
    try:
        if not _locked(lock):
            raise LocatorError("another conversion is writing there", where=str(folder))
        present = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        free = shutil.disk_usage(folder).free
        if needed > free + present:
            hint = "free some space; what is finished stays, and the same command goes on"
            raise LimitError(
                "bytes to be written", limit=free + present, actual=needed, where=str(folder), hint=hint
            )
        yield folder
        _finish(folder, target)
    finally:
        os.close(lock)


def _locked(descriptor: int) -> bool:
    """Whether this run alone works there; the lock ends with the process. Windows has no such lock."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def refuse_existing(target: Path) -> None:
    """Raise LocatorError when there is something at the target already, or its name is none."""
    if "\0" in str(target) or not target.name:
        raise LocatorError("is no name of a folder", where=str(target).replace("\0", "\\0"))
    if os.path.lexists(target):
        raise LocatorError(
            "exists already; nothing is overwritten", where=str(target), hint="choose another folder"
        )


def _finish(folder: Path, target: Path) -> None:
    for path in [*folder.glob("*.record.json"), *folder.glob(".drupe-*"), folder / _LOCK]:
        path.unlink(missing_ok=True)
    _sync(folder)
    refuse_existing(target)
    folder.rename(target)
    _sync(target.parent)


def _sync(folder: Path) -> None:
    """The names in a folder, to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_shards(
    folder: Path, shards: Sequence[Shard], values: Values, identity: str, done: Done, *, digests: bool
) -> dict[str, str]:
    """Write and verify what is not there yet; returns tensor -> SHA-256 of its bytes when ``digests`` are wanted.

    ``identity`` says what is converted to what: records of another conversion do not count.
    """
    total, before = sum(shard.size for shard in shards), 0
    found: dict[str, str] = {}
    clean(folder, {*(shard.file for shard in shards), *(_record(shard) for shard in shards)})
    for shard in shards:
        known = _recorded(folder, shard, identity)
        if known is None:
            _remove(folder / _record(shard))
            known = _write(folder, shard, values, partial(_further, done, before, total), digests=digests)
            record = json.dumps({"identity": identity, "sha256": known}).encode()
            write_atomically(folder / _record(shard), record)
        found.update(known)
        before += shard.size
        done(before, total)
    if len(shards) > 1:
        write_atomically(folder / INDEX, _index(shards))
    return found


def _further(done: Done, before: int, total: int, size: int) -> None:
    done(before + size, total)


def _record(shard: Shard) -> str:
    return f"{shard.file}.record.json"


def clean(folder: Path, kept: Container[str] = ()) -> None:
    """Remove what broken runs and other conversions left in the workplace."""
    for path in folder.iterdir():
        if path.name != _LOCK and path.name not in kept:
            _remove(path)


def _remove(path: Path) -> None:
    """What a broken run, or the run of another conversion, left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _recorded(folder: Path, shard: Shard, identity: str) -> dict[str, str] | None:
    """The digests of a shard that an earlier run finished and verified."""
    try:
        record = json.loads((folder / _record(shard)).read_bytes())
        fits = record["identity"] == identity and (folder / shard.file).stat().st_size == shard.size
        found: dict[str, str] = record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if fits else None


def _write(
    folder: Path, shard: Shard, values: Values, done: Callable[[int], None], *, digests: bool
) -> dict[str, str]:
    """The whole file under a name that does not count; verified and on the disk, it gets its own. Returns digests."""
    draft = folder / f".drupe-{shard.file}"
    try:
        with (
            draft.open("wb") as file,
            ReadBack(draft, values, wanted=digests) as read_back,
            ThreadPoolExecutor(1) as disk,
        ):
            file.write(shard.header)
            behind, starts = 0, {}
            for output in shard.outputs:
                file.flush()
                starts[output.name] = start = os.lseek(file.fileno(), 0, os.SEEK_CUR)
                read_back.add(output, start, values.write(output, file))
                end = os.lseek(file.fileno(), 0, os.SEEK_CUR)
                done(end)
                if end - behind >= _FLUSHED:  # the disk works while the rest is written and read
                    disk.submit(os.fsync, file.fileno())
                    behind = end
            disk.submit(os.fsync, file.fileno()).result()
        if draft.stat().st_size != shard.size:
            raise SourceError("a tensor has not as many bytes as its shape says", where=shard.file)
        check_header(draft, starts)
        draft.replace(folder / shard.file)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space; what is finished stays, and the same command goes on" if full else ""
        raise SourceError(error.strerror or "cannot be written", where=str(draft), hint=hint) from None
    return read_back.digests if digests else {}


def _index(shards: Sequence[Shard]) -> bytes:
    weight_map = {output.name: shard.file for shard in shards for output in shard.outputs}
    total = sum(shard.size - len(shard.header) for shard in shards)
    table: Mapping[str, Json] = {
        "metadata": {"total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
