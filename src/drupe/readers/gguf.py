"""GGUF weights: the values of windows, read from the blocks that cover them.

**Row order of q and k.** llama.cpp rotates neighbouring rows of a head (RoPE), the Hugging Face models row j
with row j + d/2. For architectures of the first kind its converter therefore stores, per head of d rows,
``w.reshape(heads, 2, d / 2, ...).swapaxes(1, 2)``: row j < d/2 lies at 2 j, row j + d/2 at 2 j + 1. This
reader undoes that by row arithmetic: names, shapes and windows speak of the published order.

**NVFP4** keeps a further factor beside ``NAME.weight``, in ``NAME.scale``: one number, or one per expert.

A split model is the file of its first part with the others in ``further`` (see ``gguf_split``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from drupe.errors import FormatError, UnsupportedError
from drupe.readers.gguf_header import FieldValue, GgufArray, decode_array, read_header
from drupe.readers.interface import FloatArray, TensorInfo, Window
from drupe.readers.packed import block_type, decode
from drupe.readers.packed_blocks import ByteArray
from drupe.sources.interface import Blob, Span

INTERLEAVED_QK = frozenset({
    "arcee", "baichuan", "deci", "granite", "granitehybrid", "granitemoe", "internlm2", "llama",
    "llama-embed", "minicpm", "mistral3", "olmo", "smollm3", "xverse",
})  # fmt: skip
"""Values of ``general.architecture`` whose q and k rows are stored interleaved: the classes under
``conversion/`` of github.com/ggml-org/llama.cpp that call ``permute``. Not llama4, apertus, qwen*, gemma*."""

_MERGED_GAP = 4096
"""Unwanted bytes between two pieces that are read along: one page, which the system reads anyway."""
_QK_NAME = re.compile(r"blk\.(\d{1,6})\.attn_([qk])\.(?:weight|bias)")

IndexArray = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows of a window that one span delivers, and their places in it (in row strides from its start)."""

    rows: IndexArray
    slots: IndexArray


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to read for one window, and how to put it together."""

    spans: list[Span]
    groups: list[_Group]
    """One per span; none when the single span is what is wanted."""
    row_bytes: int
    piece: int
    """Bytes wanted of each row."""
    columns: slice | IndexArray
    """Columns of the window within the decoded blocks."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The tensors and the metadata of one GGUF file; values and arrays are decoded on demand."""

    blob: Blob
    fields: Mapping[str, FieldValue]
    """Typed metadata, in file order; of a split model, that of its first part."""
    tensors: Mapping[str, TensorInfo]
    starts: Mapping[str, int]
    """Name -> first byte in the file."""
    header: bytes
    """Everything before the tensor data."""
    further: Mapping[str, GgufFile] = field(default_factory=dict)
    """The other parts of a split model by file name."""
    format: str = field(default="gguf", init=False)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The scalar values of the metadata as text."""
        return {key: str(value) for key, value in self.fields.items() if not isinstance(value, GgufArray)}

    @property
    def headers(self) -> Mapping[str, bytes]:
        """File name -> raw header, which the evidence folder and the digest keep."""
        return {self.blob.name: self.header} | {name: part.header for name, part in self.further.items()}

    def array(self, key: str) -> list[str] | NDArray[np.generic]:
        """The array of that key: texts as a list (bytes that are no UTF-8 as Latin-1), numbers as numpy.

        Raises FormatError when the key is absent or no array, UnsupportedError on arrays of arrays.
        """
        entry = self.fields.get(key)
        if not isinstance(entry, GgufArray):
            raise FormatError(f"the metadata has no array {key[:80]!r}", where=self.blob.name)
        return decode_array(self.header, entry)

    def read(self, windows: Sequence[Window]) -> list[FloatArray]:
        """The values of each window as float32, q and k in the published row order; one read per file."""
        factors = [self._factor(window) for window in windows]
        values = self._read([*windows, *(factor for factor in factors if factor)])
        further = iter(values[len(windows) :])
        for array, factor in zip(values, factors, strict=False):
            if factor:
                np.multiply(array, next(further).reshape(-1, 1), out=array)
        return values[: len(windows)]

    def _factor(self, window: Window) -> Window | None:
        """The factor of an NVFP4 tensor (or of each expert), which is a tensor of its own."""
        info = self.tensors.get(window.tensor)
        factor = self.tensors.get(f"{window.tensor.removesuffix('.weight')}.scale")
        if info is None or factor is None or info.dtype != "NVFP4" or factor.dtype != "F32":
            return None
        if factor.size == 1:
            return Window(factor.name, 0, 1, 0, 1)
        if factor.shape != info.shape[:1]:
            what = f"{factor.size} factors do not fit {info.name[:80]!r} of shape {info.shape}"
            raise FormatError(what, where=info.file)
        return Window(factor.name, 0, 1, window.row_start, window.row_stop)

    def _read(self, windows: Sequence[Window]) -> list[FloatArray]:
        plans = [self._plan(window) for window in windows]
        files = [self.tensors[window.tensor].file for window in windows]
        wanted: dict[str, list[Span]] = {name: [] for name in files}
        for file, plan in zip(files, plans, strict=True):
            wanted[file].extend(plan.spans)
        parts = {name: iter(self._blob(name).read_many(spans)) for name, spans in wanted.items()}
        return [
            self._assemble(window, plan, [next(parts[file]) for _ in plan.spans])
            for window, plan, file in zip(windows, plans, files, strict=True)
        ]

    def _blob(self, file: str) -> Blob:
        return self.further[file].blob if file in self.further else self.blob

    def _plan(self, window: Window) -> _Plan:
        info, width = self._check(window)
        block = block_type(info.dtype)
        if block is None:
            raise UnsupportedError(f"tensor {info.name[:80]!r} is stored as {info.dtype}", where=info.file)
        first, last = window.column_start, window.column_stop
        if window.row_start == window.row_stop or first == last:
            return _Plan([], [], 0, 0, slice(0, 0))
        head = self._head_rows(info)
        columns: slice | IndexArray = slice(first, last)
        if head and len(info.shape) == 1:  # a bias is one row: its values are reordered instead
            columns = _stored_index(np.arange(first, last), head)
            first, last = int(columns.min()), int(columns.max()) + 1
        first_block, last_block = first // block.values, -(-last // block.values)
        skipped = first_block * block.values
        inner = slice(first - skipped, last - skipped) if isinstance(columns, slice) else columns - skipped
        row_bytes, piece = width // block.values * block.bytes, (last_block - first_block) * block.bytes
        start = self.starts[info.name] + first_block * block.bytes
        if piece == row_bytes and (not head or len(info.shape) == 1):
            span = start + window.row_start * row_bytes, (window.row_stop - window.row_start) * row_bytes
            return _Plan([span], [], row_bytes, piece, inner)
        rows = np.arange(window.row_start, window.row_stop)
        stored = _stored_index(rows, head) if head and len(info.shape) > 1 else rows
        return _Plan(*_spans(stored, start, row_bytes, piece), row_bytes, piece, inner)

    def _check(self, window: Window) -> tuple[TensorInfo, int]:
        """The tensor and its number of columns; raises FormatError when the window lies outside."""
        info = self.tensors.get(window.tensor)
        if info is None:
            raise FormatError(f"there is no tensor {window.tensor[:80]!r}", where=self.blob.name)
        rows, columns = info.matrix_shape
        inside = 0 <= window.row_start <= window.row_stop <= rows
        if not (inside and 0 <= window.column_start <= window.column_stop <= columns):
            raise FormatError(f"{window} lies outside of {rows} x {columns}", where=self.blob.name)
        return info, columns

    def _head_rows(self, info: TensorInfo) -> int:
        """Rows of one attention head when the tensor is stored interleaved, else 0."""
        architecture = self.fields.get("general.architecture")
        match = _QK_NAME.fullmatch(info.name)
        if match is None or architecture not in INTERLEAVED_QK or not info.shape:
            return 0
        key = f"{architecture}.attention.head_count"
        if match[2] == "k" and f"{key}_kv" in self.fields:
            key += "_kv"
        heads = self._per_layer(key, int(match[1]))
        if heads < 1 or info.shape[0] % (2 * heads):
            what = f"{key} = {heads} does not fit the {info.shape[0]} rows of {info.name!r}"
            raise FormatError(what, where=self.blob.name)
        return info.shape[0] // heads

    def _per_layer(self, key: str, layer: int) -> int:
        """A whole number of the metadata, given once or per layer; 0 when it is not there."""
        value = self.fields.get(key)
        if isinstance(value, GgufArray) and value.is_numeric and layer < value.count:
            value = np.asarray(decode_array(self.header, value))[layer].item()
        return value if isinstance(value, int) else 0

    def _assemble(self, window: Window, plan: _Plan, parts: list[bytes]) -> FloatArray:
        rows, width = window.row_stop - window.row_start, window.column_stop - window.column_start
        if not parts:
            return np.empty((rows, width), np.float32)
        info = self.tensors[window.tensor]
        block = block_type(info.dtype)
        assert block is not None  # the plan would have failed
        decoded = plan.piece // block.bytes * block.values
        values = decode(_gather(plan, parts, rows), info.dtype, rows * decoded).reshape(rows, decoded)
        return np.ascontiguousarray(values[:, plan.columns])


def open_gguf(blob: Blob) -> GgufFile:
    """Open a GGUF file: its header is read, its values are not.

    Raises FormatError or LimitError on any lie of the header, UnsupportedError on version 1 and big-endian.
    """
    header = read_header(blob)
    fields, tensors = MappingProxyType(header.fields), MappingProxyType(header.tensors)
    return GgufFile(blob, fields, tensors, MappingProxyType(header.starts), header.raw)


def _stored_index(index: IndexArray, head: int) -> IndexArray:
    """Where llama.cpp stores a published row: j -> 2 j in the first half of a head, then 2 (j - d/2) + 1.

    >>> _stored_index(np.arange(8), 8).tolist()
    [0, 2, 4, 6, 1, 3, 5, 7]
    """
    row = index % head
    return index - row + 2 * (row % (head // 2)) + row // (head // 2)


def _spans(stored: IndexArray, start: int, row_bytes: int, piece: int) -> tuple[list[Span], list[_Group]]:
    """Byte spans that cover a piece of each stored row; near pieces share one."""
    order = np.argsort(stored, kind="stable")
    rows = stored[order]
    gaps = np.diff(rows) * row_bytes - piece
    cuts = np.flatnonzero(gaps > max(piece, _MERGED_GAP)) + 1
    spans: list[Span] = []
    groups: list[_Group] = []
    for wanted, group in zip(np.split(order, cuts), np.split(rows, cuts), strict=True):
        slots = group - group[0]
        spans.append((start + int(group[0]) * row_bytes, int(slots[-1]) * row_bytes + piece))
        groups.append(_Group(wanted, slots))
    return spans, groups


def _gather(plan: _Plan, parts: list[bytes], rows: int) -> bytes | memoryview:
    """The wanted pieces of all rows, in the order of the window."""
    if not plan.groups:
        return parts[0]
    packed = np.empty((rows, plan.piece), np.uint8)
    for part, group in zip(parts, plan.groups, strict=True):
        shape = (int(group.slots[-1]) + 1, plan.piece)
        table: ByteArray = np.ndarray(shape, np.uint8, part, strides=(plan.row_bytes, 1))
        packed[group.rows] = table[group.slots]
    return packed.reshape(-1).data
