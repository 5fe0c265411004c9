"""What the pickles of a file would import, whatever they are for: flags, also of pickles that break off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from drupe.errors import FormatError, UnsupportedError
from drupe.readers.interface import Flag, FlagKind
from drupe.readers.pickle_globals import Danger
from drupe.readers.pickle_stream import MAX_PICKLE, Budget, Read, read_stream
from drupe.readers.pickle_values import Use
from drupe.readers.zip_entries import ZipFile

HEAD = 512
"""Bytes at the beginning of a file that say what it is."""
ZIP_HEAD = b"PK\x03\x04"
PICKLES = (".pkl", ".pickle", ".pk", ".p", ".joblib", ".dill")
"""How the names of files end that are pickles."""
_SNIFFED, _SNIFF_LIMIT = 64, 1 << 20
"""Further entries of an archive that are looked at, because they may be pickles: how many, and of what size."""
_FOREIGN = {b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive", b"\x1f\x8b": "a gzip stream", b"BZh": "a bzip2 stream",
            b"\xfd7zXZ\x00": "an xz stream", b"\x28\xb5\x2f\xfd": "a zstd stream", b"Rar!": "a RAR archive",
            b"\x93NUMPY": "a NumPy array", b"\x89HDF": "an HDF5 file", b"GGUF": "a GGUF file"}  # fmt: skip
_DANGER: Mapping[Danger, FlagKind] = {
    Danger.DANGEROUS: FlagKind.DANGEROUS_CODE,
    Danger.UNKNOWN: FlagKind.UNKNOWN_CODE,
}


def is_tar(head: bytes) -> bool:
    """Whether a file begins as a tar archive does."""
    return head[257:262] == b"ustar"


def is_pickle(head: bytes) -> bool:
    """Whether a file begins as a pickle of protocol 2 or later does."""
    return head[:1] == b"\x80" and head[1:2] <= b"\x05"


def refuse_foreign(head: bytes, where: str) -> None:
    """Raise UnsupportedError when a file begins as one of another kind."""
    for mark, what in _FOREIGN.items():
        if head.startswith(mark):
            raise UnsupportedError(f"{what}, not a checkpoint of PyTorch", where=where)


def flags_of_uses(uses: Iterable[Use], where: str) -> list[Flag]:
    """What must be said of imported names; harmless ones are left out."""
    return [Flag(_DANGER[use.danger], where, use.path, use.position) for use in uses if use.danger in _DANGER]


def follow(read: Read, size: int, where: str, budget: Budget, found: list[Flag], at: int = 0) -> None:
    """Add what the pickles from byte ``at`` up to the last one would import.

    Raises FormatError where they are no pickles; what was named until there is added.
    """
    while at < size:
        uses: dict[str, Use] = {}
        try:
            at = read_stream(read, size, at, where, budget, uses=uses).stop
        finally:
            found += flags_of_uses(uses.values(), where)


def archive_root(archive: ZipFile) -> str:
    """The folder of the archive: that of its first entry, as PyTorch has it.

    Names are refused that differ in case only: PyTorch does not tell them apart.
    """
    seen: dict[str, str] = {}
    for name in archive.entries:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise FormatError(
                f"the entries {other[:80]!r} and {name[:80]!r} differ in case only", where=archive.blob.name
            )
    first = next(iter(archive.entries), "")
    folder, slash, _ = first.partition("/")
    return folder + slash if slash else ""


def follow_entry(archive: ZipFile, name: str, budget: Budget, found: list[Flag]) -> None:
    """Add what the pickles in one entry of an archive would import."""
    _follow_data(archive.read(name, MAX_PICKLE), f"{archive.blob.name}: {name[:200]}", budget, found)


def _follow_data(data: bytes, where: str, budget: Budget, found: list[Flag]) -> None:
    follow(lambda start, length: data[start : start + length], len(data), where, budget, found)


def follow_others(archive: ZipFile, root: str, budget: Budget, found: list[Flag]) -> None:
    """Add what the pickles beside ``data.pkl`` would import: constants of TorchScript, or stowaways."""
    small = 0
    for name, entry in archive.entries.items():
        if name == f"{root}data.pkl" or _is_known(name, root):
            continue
        if name.lower().endswith(PICKLES):
            follow_entry(archive, name, budget, found)
        elif 4 <= entry.size <= _SNIFF_LIMIT and small < _SNIFFED:
            small += 1
            data = archive.read(name, _SNIFF_LIMIT)
            if is_pickle(data[:2]):
                _follow_data(data, f"{archive.blob.name}: {name[:200]}", budget, found)


def _is_known(name: str, root: str) -> bool:
    """Entries that hold numbers, source text, or a version."""
    folder, _, rest = name[len(root) :].partition("/")
    if rest:
        return folder in ("data", "constants", ".data", "code") and not name.lower().endswith(PICKLES)
    return folder in ("version", "byteorder", ".format_version", ".storage_alignment")
