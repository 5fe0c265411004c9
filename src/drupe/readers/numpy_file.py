"""NumPy arrays: ``.npy`` files and ``.npz`` archives of them (also those of MLX and JAX), read by ranges.

Format facts: numpy.org/doc/stable/reference/generated/numpy.lib.format.html. The header is a Python dictionary of
three known keys; it is matched, never evaluated. Pickled objects are refused. A type of two raw bytes is bf16:
so it is written by MLX and, through ml_dtypes, by JAX. A compressed member is decompressed whole to be read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drupe.errors import FormatError, LimitError, UnsupportedError
from drupe.readers.dense import DenseFile, Place, check_density
from drupe.readers.interface import MAX_NAME, TensorInfo, check_shape
from drupe.readers.zip_entries import ZipFile, open_zip
from drupe.sources.interface import Blob, Span

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000
"""Bytes of one array's header: NumPy's own limit."""
MAX_COMPRESSION = 20
"""Times the archive's size (and the floor) that its compressed members may hold; weights hardly compress."""
_SIZE_FLOOR = 256 << 20
_MEMORY_FLOOR = 80 << 20
"""A compressed array may take 4 x the archive's size and this, as bytes and as float32."""
_HEAD = 256
"""Read first of each array; most headers have 128 bytes."""
_DTYPES: Mapping[str, tuple[str, int]] = {
    "f8": ("F64", 8), "f4": ("F32", 4), "f2": ("F16", 2), "V2": ("BF16", 2),
    "i8": ("I64", 8), "i4": ("I32", 4), "i2": ("I16", 2), "i1": ("I8", 1),
    "u8": ("U64", 8), "u4": ("U32", 4), "u2": ("U16", 2), "u1": ("U8", 1), "b1": ("BOOL", 1),
}  # fmt: skip
"""NumPy's type without the byte order -> ours and bytes of a value."""
_ITEM = re.compile(
    r"""\s*(?P<quote>['"])(?P<key>descr|fortran_order|shape)(?P=quote)\s*:\s*"""
    r"""(?P<value>'[^'"\\]{0,40}'|"[^'"\\]{0,40}"|True|False|\([0-9L,\s]*\))\s*(?:,|(?=\}))"""
)
_RECORDS = re.compile(r"""['"]descr['"]\s*:\s*\[""")
_TYPE = re.compile(r"(?P<order>[<>|=]?)(?P<kind>[a-zA-Z])(?P<size>\d{1,9})")
_EXTENT = re.compile(r"\d{1,20}")


@dataclass(frozen=True, slots=True)
class Header:
    """What an array's header says. ``item`` is 0 for types that are listed and not read."""

    shape: tuple[int, ...]
    dtype: str
    item: int
    size: int
    """Bytes of the values."""
    is_fortran: bool
    length: int
    """Bytes before the values."""


@dataclass(frozen=True, slots=True)
class _Inflated:
    """The content of a compressed member, decompressed anew for each read: memory holds one at a time."""

    name: str
    archive: ZipFile
    member: str

    @property
    def size(self) -> int:
        return self.archive.entries[self.member].size

    def read(self, start: int, length: int) -> bytes:
        return self.read_many([(start, length)])[0]

    def read_many(self, spans: Sequence[Span]) -> list[bytes]:
        content = self.archive.read(self.member, self.size)
        return [content[start : start + length] for start, length in spans]


def open_numpy(blobs: Sequence[Blob]) -> DenseFile:
    """Open ``.npz`` archives (the shards of one model) or ``.npy`` files (an array each, called as its file).

    Raises FormatError or LimitError on any lie of a header, UnsupportedError on pickled objects.
    """
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, Place] = {}
    headers: dict[str, bytes] = {}
    for blob in blobs:
        archive = open_zip(blob) if blob.read(0, min(blob.size, 2)) == b"PK" else None
        found = _single(blob) if archive is None else _members(archive)
        headers[blob.name] = b"" if archive is None else archive.directory
        for name, (header, content, start) in found.items():
            if name in tensors:
                raise FormatError(f"array {name[:80]!r} is also in {tensors[name].file}", where=blob.name)
            tensors[name] = TensorInfo(name, header.shape, header.dtype, blob.name, stored_bits=_bits(header))
            places[name] = Place(content, start + header.length, header.item, _strides(header))
            if archive is None:
                headers[blob.name] = blob.read(0, header.length)
    check_density(len(tensors), sum(blob.size for blob in blobs), blobs[0].name)
    return DenseFile("numpy", tensors, {}, places, headers)


_Found = dict[str, tuple[Header, Blob, int]]
"""Name -> header, the file that holds the array, and where its header starts."""


def _single(blob: Blob) -> _Found:
    head = blob.read(0, min(blob.size, _HEAD))
    needed = header_length(head, blob.name)
    header = parse_header(head if needed <= len(head) else blob.read(0, min(blob.size, needed)), blob.name)
    _check_size(header, blob.size, blob.name)
    return {blob.name.rpartition("/")[2].removesuffix(".npy"): (header, blob, 0)}


def _members(archive: ZipFile) -> _Found:
    """The arrays of an archive; other files in it are left alone."""
    blob = archive.blob
    names = [name for name in archive.entries if name.endswith(".npy")]
    check_density(len(names), blob.size, blob.name)
    _check_inflation(archive)
    spans = archive.spans(names)
    heads = archive.heads(names, _HEAD)
    found: _Found = {}
    for name, span, head in zip(names, spans, heads, strict=True):
        where = f"{blob.name}: {name[:200]}"
        size = archive.entries[name].size
        if len(name) > MAX_NAME:
            raise LimitError("length of a tensor name", limit=MAX_NAME, actual=len(name), where=blob.name)
        needed = header_length(head, where)
        raw = head if needed <= len(head) else archive.heads([name], needed)[0]
        header = parse_header(raw, where)
        _check_size(header, size, where)
        if span is None:
            _check_memory(header, blob.size, where)
        content = blob if span else _Inflated(where, archive, name)
        found[name.removesuffix(".npy")] = header, content, span[0] if span else 0
    return found


def _check_inflation(archive: ZipFile) -> None:
    """Decompressing takes time."""
    limit = MAX_COMPRESSION * archive.blob.size + _SIZE_FLOOR
    total = sum(entry.size for entry in archive.entries.values() if not entry.is_stored)
    if total > limit:
        raise LimitError("bytes of all compressed arrays", limit=limit, actual=total, where=archive.blob.name)


def _check_memory(header: Header, stored: int, where: str) -> None:
    limit = 4 * stored + _MEMORY_FLOOR
    cost = header.size + 4 * (header.size // max(header.item, 1))
    if cost > limit:
        raise LimitError("bytes that a compressed array takes", limit=limit, actual=cost, where=where)


def _check_size(header: Header, size: int, where: str) -> None:
    if header.length + header.size != size:
        what = f"{size - header.length} bytes of values; {header.dtype} {header.shape} needs {header.size}"
        raise FormatError(what, where=where)


def header_length(head: bytes, where: str) -> int:
    """Bytes before the values, from the first of a file. Raises FormatError when it is no array."""
    if head[:6] != MAGIC or len(head) < 12:
        raise FormatError("does not start as a NumPy array", where=where)
    version = (head[6], head[7])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise UnsupportedError(f"version {version[0]}.{version[1]} of a NumPy array", where=where)
    start, form = (10, "<H") if version == (1, 0) else (12, "<I")
    length: int = struct.unpack_from(form, head, 8)[0]
    if length > MAX_HEADER:
        raise LimitError("bytes of a NumPy header", limit=MAX_HEADER, actual=length, where=where)
    return start + length


def parse_header(raw: bytes, where: str) -> Header:
    """The header at the start of an array.

    >>> text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\\n"
    >>> header = parse_header(MAGIC + bytes([1, 0, len(text), 0]) + text, "example")
    >>> header.shape, header.dtype, header.size
    ((2, 3), 'F32', 24)
    """
    length = header_length(raw, where)
    if length > len(raw):
        raise FormatError("the header of a NumPy array is cut off", where=where)
    text = raw[10 if raw[6] == 1 else 12 : length].decode("latin-1").strip()
    if _RECORDS.search(text):
        raise UnsupportedError("a NumPy array of records", where=where)
    values = _items(text, where)
    if (
        values["descr"][:1] not in "'\""
        or values["shape"][:1] != "("
        or values["fortran_order"][0] not in "TF"
    ):
        raise FormatError(f"no header of a NumPy array: {text[:80]!r}", where=where)
    dtype, item, width = _dtype(values["descr"][1:-1], where)
    shape = check_shape([int(extent) for extent in _EXTENT.findall(values["shape"])], where)
    size = TensorInfo("", shape, dtype, where).size * width
    return Header(shape, dtype, item, size, values["fortran_order"] == "True", length)


def _items(text: str, where: str) -> dict[str, str]:
    """The three items of the dictionary, as text."""
    values: dict[str, str] = {}
    position = 1
    while text[:1] == "{" and (match := _ITEM.match(text, position)):
        if match["key"] in values:
            break
        values[match["key"]] = match["value"]
        position = match.end()
    if len(values) != 3 or text[position:].strip() != "}":
        raise FormatError(f"no header of a NumPy array: {text[:80]!r}", where=where)
    return values


def _dtype(descr: str, where: str) -> tuple[str, int, int]:
    """Our name, bytes of a value as read (0 = not read) and as stored."""
    match = _TYPE.fullmatch(descr)
    if descr.lstrip("<>|=") in ("O", "O8", "O4"):
        raise UnsupportedError("pickled Python objects, which are never loaded", where=where)
    if match is None:
        raise FormatError(f"unknown NumPy type {descr!r}", where=where)
    kind, width = match["kind"], int(match["size"])
    dtype, item = _DTYPES.get(kind + str(width), ("", 0))
    if dtype and (match["order"] != ">" or item == 1):
        return dtype, item, item
    return descr, 0, 4 * width if kind == "U" else 8 if kind in "mM" else width


def _bits(header: Header) -> float:
    count = TensorInfo("", header.shape, header.dtype, "").size
    return 8.0 * header.size / count if count else 8.0 * header.item


def _strides(header: Header) -> tuple[int, ...] | None:
    """Of an array in Fortran's order: the first axis is the densest."""
    if not header.is_fortran or len(header.shape) < 2:
        return None
    strides, step = [], 1
    for extent in header.shape:
        strides.append(step)
        step *= extent
    return tuple(strides)
