"""Checkpoints of PyTorch (``.bin``, ``.pt``, ``.pth``, ``.ckpt``), without PyTorch and without unpickling.

Three layouts (https://github.com/pytorch/pytorch, ``torch/serialization.py`` and ``caffe2/serialize``): a zip
archive (since 1.6; TorchScript likewise) with ``data.pkl`` and one stored entry per storage; the layout before it,
pickles in a row and then the storages; a tar archive (before 0.1.12), which is refused. All pickles of a file are
followed, whatever they are for: :class:`drupe.readers.interface.Flag` says what they would import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from drupe.errors import FormatError, LimitError, UnsupportedError
from drupe.readers.dense import DenseFile, Place, check_density
from drupe.readers.interface import MAX_TENSORS, Flag, FlagKind, Layout, TensorInfo, check_tensor_count
from drupe.readers.pickle_stream import LOAD_NOWHERE, MAX_PICKLE, Budget, read_stream, read_streams
from drupe.readers.pickle_values import Pairs, Persistent, Stream, Value
from drupe.readers.shard_index import check_index, read_index
from drupe.readers.torch_pickles import (
    HEAD,
    ZIP_HEAD,
    archive_root,
    flags_of_uses,
    follow,
    follow_others,
    is_pickle,
    is_tar,
    refuse_foreign,
)
from drupe.readers.torch_values import DTYPES, Storage, Tensors, View, find_tensors, storage_of
from drupe.readers.zip_entries import EntryBlob, ZipFile, open_zip
from drupe.sources.interface import Blob, Span, Tree

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


@dataclass(frozen=True, slots=True)
class _Part:
    """What one file contributes."""

    tensors: Tensors
    storages: Mapping[str, tuple[Blob, int]]
    """Storage -> where its first byte lies."""
    header: bytes
    flags: tuple[Flag, ...]


def open_torch(blobs: Sequence[Blob], index: Mapping[str, str] | None = None) -> DenseFile:
    """Open one checkpoint or its shards; reads pickles and directories only.

    ``index`` (tensor -> file): every name must be where it says. Raises FormatError on a file that lies,
    UnsupportedError on one that is well-formed and not read.
    """
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, Place] = {}
    headers: dict[str, bytes] = {}
    flags: list[Flag] = []
    size = sum(blob.size for blob in blobs)
    for blob in blobs:
        part = _open_part(blob)
        headers[blob.name] = part.header
        flags.extend(part.flags)
        for name, view in part.tensors.views.items():
            if name in tensors:
                raise FormatError(f"tensor {name[:80]!r} is also in {tensors[name].file}", where=blob.name)
            tensors[name] = TensorInfo(
                name, view.shape, view.dtype, blob.name, Layout.UNKNOWN, 8.0 * view.item
            )
            places[name] = _place(view, part)
        check_tensor_count(len(tensors), blob.name)
    check_density(len(tensors), size, blobs[0].name)
    if not tensors:
        raise UnsupportedError("no tensor in this file can be read" + _reasons(flags), where=blobs[0].name)
    check_index(index or {}, tensors)
    return DenseFile("torch", tensors, {}, places, headers, tuple(flags))


def open_index(tree: Tree, name: str) -> DenseFile:
    """Open the shards that an index file (``*.bin.index.json``) names."""
    shards = read_index(tree, name)
    return open_torch(shards.blobs, shards.index)


def is_torch(blob: Blob) -> bool:
    """Whether a file begins as a checkpoint of PyTorch does: a zip archive, a pickle or a tar archive."""
    head = blob.read(0, min(blob.size, HEAD))
    return head.startswith(ZIP_HEAD) or is_pickle(head) or is_tar(head)


def _reasons(flags: Sequence[Flag]) -> str:
    refused = [f"{flag.what[:80]!r}: {flag.reason}" for flag in flags if flag.kind is FlagKind.NOT_READ]
    return f" ({'; '.join(refused[:3])})" if refused else ""


def _place(view: View, part: _Part) -> Place:
    blob, start = part.storages[view.storage.key]
    return Place(blob, start + view.start, view.item, view.strides)


def _open_part(blob: Blob) -> _Part:
    """What one file contributes; an error also names what its pickles would call for."""
    found: list[Flag] = []
    try:
        return _open_layout(blob, found)
    except (FormatError, UnsupportedError) as error:
        dangerous = [repr(flag.what[:80]) for flag in found if flag.kind is FlagKind.DANGEROUS_CODE]
        if not dangerous or error.hint == LOAD_NOWHERE:
            raise
        what = f"{error.what}; it calls for {', '.join(dangerous[:3])}"
        raise FormatError(what, where=error.where, hint=LOAD_NOWHERE) from None


def _open_layout(blob: Blob, found: list[Flag]) -> _Part:
    head = blob.read(0, min(blob.size, HEAD))
    refuse_foreign(head, blob.name)
    if head.startswith(ZIP_HEAD):
        return _open_archive(blob, found)
    if is_tar(head):
        what = "the tar layout of PyTorch before 0.1.12"
        raise UnsupportedError(what, where=blob.name, hint="load and save it again with a newer PyTorch")
    return _open_legacy(blob, found)


def _refused(tensors: Tensors, where: str) -> list[Flag]:
    return [Flag(FlagKind.NOT_READ, where, name, reason=reason) for name, reason in tensors.refused.items()]


def _most(blob: Blob) -> int:
    """Tensors of a file of this size, at the most."""
    return min(MAX_TENSORS, 20_000 + blob.size // 64)


# the zip layout
def _open_archive(blob: Blob, found: list[Flag]) -> _Part:
    archive = open_zip(blob)
    root = archive_root(archive)
    budget = Budget.of_file(blob.size)
    if f"{root}data.pkl" not in archive.entries:
        raise UnsupportedError("a zip archive without data.pkl", where=blob.name)
    _check_byte_order(archive, root)
    data = archive.read(f"{root}data.pkl", MAX_PICKLE)
    streams = read_streams(data, f"{blob.name}: {root}data.pkl", budget)
    for stream in streams:
        found += flags_of_uses(stream.uses, f"{blob.name}: {root}data.pkl")
    follow_others(archive, root, budget, found)
    tensors = find_tensors(streams[0].value, blob.name, _most(blob))
    found += _refused(tensors, blob.name)
    return _Part(tensors, _stored(archive, root, tensors), data, tuple(found))


def _check_byte_order(archive: ZipFile, root: str) -> None:
    name = f"{root}byteorder"
    if name in archive.entries and archive.read(name, 64).strip() != b"little":
        raise UnsupportedError("numbers that are not little-endian", where=archive.blob.name)


def _stored(archive: ZipFile, root: str, tensors: Tensors) -> dict[str, tuple[Blob, int]]:
    """Where each storage lies; a compressed one is unpacked when it is read."""
    needed = {view.storage.key: view.storage.total for view in tensors.views.values()}
    names = [f"{root}data/{key}" for key in needed]
    found: dict[str, tuple[Blob, int]] = {}
    for (key, total), name, span in zip(needed.items(), names, archive.spans(names), strict=True):
        size = archive.entries[name].size
        if total > size:
            where = f"{archive.blob.name}: {name[:200]}"
            raise LimitError("bytes that a storage claims to hold", limit=size, actual=total, where=where)
        found[key] = (archive.blob, span[0]) if span else (EntryBlob(archive, name), 0)
    return found


# the layout before
def _open_legacy(blob: Blob, found: list[Flag]) -> _Part:
    budget = Budget.of_file(blob.size)
    streams: list[Stream] = []
    for _ in range(5):
        start = streams[-1].stop if streams else 0
        streams.append(read_stream(blob.read, blob.size, start, blob.name, budget))
        found += flags_of_uses(streams[-1].uses, blob.name)
        if streams[0].value != MAGIC:
            raise _not_a_checkpoint(blob, streams[0].stop, budget, found)
    _, protocol, system, root, keys = (stream.value for stream in streams)
    if protocol != PROTOCOL:
        raise UnsupportedError(f"protocol {str(protocol)[:40]} of PyTorch", where=blob.name)
    if isinstance(system, Pairs) and any(k == "little_endian" and v is False for k, v in system.pairs):
        raise UnsupportedError("numbers that are not little-endian", where=blob.name)
    tensors = find_tensors(root, blob.name, _most(blob))
    starts = legacy_storages(blob, streams[3].references, keys, streams[-1].stop)
    at = legacy_end(starts, streams[-1].stop)
    if at != blob.size:
        with suppress(FormatError):
            follow(blob.read, blob.size, blob.name, Budget.of_file(0), found, at)
        raise FormatError(f"{blob.size - at} bytes behind the last storage", where=blob.name)
    for key in {view.storage.key for view in tensors.views.values()} - set(starts):
        raise FormatError(f"the storage {key[:80]!r} is not in the file", where=blob.name)
    found += _refused(tensors, blob.name)
    places = {key: (file, start) for key, (file, start, _) in starts.items()}
    return _Part(tensors, places, blob.read(0, streams[-1].stop), tuple(found))


def legacy_end(starts: Mapping[str, tuple[Blob, int, int]], at: int) -> int:
    """The byte after the last storage; ``at`` when there is none."""
    return max((start + size for _, start, size in starts.values()), default=at)


def legacy_storages(
    blob: Blob, references: Sequence[Persistent], keys: Value, at: int
) -> dict[str, tuple[Blob, int, int]]:
    """Start and bytes of each storage: they follow in the order of ``keys``, each behind its number of values."""
    storages = _legacy_sizes(blob, references)
    starts: dict[str, tuple[Blob, int, int]] = {}
    counts: list[int] = []
    spans: list[Span] = []
    for key in keys if isinstance(keys, list) else ():
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or key in starts:
            raise FormatError(f"the storage {str(key)[:80]!r} is listed twice or never used", where=blob.name)
        starts[key] = (blob, at + 8, storage.total)
        spans.append((at, 8))
        counts.append(storage.total // DTYPES[storage.dtype][1])
        at += 8 + storage.total
        if at > blob.size:
            raise LimitError(f"end of the storage {key[:80]!r}", limit=blob.size, actual=at, where=blob.name)
    for raw, count in zip(blob.read_many(spans) if spans else [], counts, strict=True):
        if int.from_bytes(raw, "little") != count:
            raise FormatError(f"a storage of {count} values says it has another number", where=blob.name)
    return starts


def _legacy_sizes(blob: Blob, references: Sequence[Persistent]) -> dict[str, Storage]:
    """Key -> storage, of all that the pickle refers to; references to the source text of classes are left out."""
    found: dict[str, Storage] = {}
    for reference in references:
        if isinstance(reference.key, tuple) and reference.key[:1] == ("module",):
            continue
        storage = storage_of(reference, blob.name)
        other = found.setdefault(storage.key, storage)
        if (other.total, other.dtype) != (storage.total, storage.dtype):
            raise FormatError(f"the storage {storage.key[:80]!r} has two sizes", where=blob.name)
    return found


def _not_a_checkpoint(blob: Blob, at: int, budget: Budget, found: list[Flag]) -> FormatError:
    """The error for a pickle of something else."""
    with suppress(FormatError):
        follow(blob.read, blob.size, blob.name, budget, found, at)
    unknown = [repr(flag.what[:80]) for flag in found if flag.kind is FlagKind.UNKNOWN_CODE]
    what = f"a pickle that calls for {', '.join(unknown[:3])}" if unknown else "a pickle"
    return FormatError(f"{what}, not a checkpoint of PyTorch", where=blob.name)
