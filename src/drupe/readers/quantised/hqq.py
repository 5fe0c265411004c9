"""HQQ: ``W_q`` holds the groups of a weight, packed along its first axis, chunk beside chunk.

Facts: github.com/mobiusml/hqq (README; packings 8bit_u8 4bit_u8 3bit_32 2bit_u8 1bit_u8). The weight is
reshaped to (groups, group size) for axis 1, or (group size, groups) for axis 0, and cut along the first axis into
as many chunks as numbers fit a word; the first chunk has the highest bits (3 bits: ten in an int32, the last
chunk padded). Value = (code - ``zero``) * ``scale``. Bits, axis and group size come from the shapes; only ``shape``
is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from drupe.messages import msg
from drupe.readers.interface import FloatArray, StoredArray, TensorInfo, Window
from drupe.readers.quantised.flat import Flat
from drupe.readers.quantised.interface import Claim, Inventory, Settings, Unread, contradiction, logical

_PARTS = (
    *(
        "scale",
        "zero",
        "shape",
        "nbits",
        "group_size",
        "axis",
        "packing",
        "unpack_view_dtype",
        "view_as_float",
    ),
    *(
        "quant_scale",
        "quant_zero",
        "compute_dtype",
        "offload_meta",
        "encoded_state_dict",
        "stores_quant_config",
    ),
    *("channel_wise", "optimize", "round_zero", "scale_q", "zero_q", "meta_scale", "meta_zero"),
)
_PER_WORD = {"U8": (1, 2, 4, 8), "I32": (10,)}


@dataclass(frozen=True, slots=True)
class _Groups:
    """The values of one weight, in flat order: a matrix of ``rows`` x ``columns`` codes, scaled along an axis."""

    codes: str
    scale: str
    zero: str
    columns: int
    height: int
    """Rows of the stored matrix; row j lies in chunk j // height."""
    bits: int
    by_row: bool
    """A scale for each row (axis 1), else for each column."""

    def needs(self, run: range) -> list[Window]:
        """The rows of each chunk, then scales and zeros."""
        rows, across = self._rectangle(run)
        codes = [
            Window(self.codes, part.start % self.height, part.start % self.height + len(part), *_ends(across))
            for part in self._chunks(rows)
        ]
        if self.by_row:
            return [*codes, *(Window(name, *_ends(rows), 0, 1) for name in (self.scale, self.zero))]
        return [*codes, *(Window(name, 0, 1, *_ends(across)) for name in (self.scale, self.zero))]

    def take(self, run: range, stored: Sequence[StoredArray]) -> FloatArray:
        """(code - zero) * scale."""
        rows, across = self._rectangle(run)
        values = np.empty((len(rows), len(across)), np.float32)
        per_word = (30 if self.bits == 3 else 8) // self.bits
        for part, packed in zip(self._chunks(rows), stored, strict=False):
            shift = (per_word - 1 - part.start // self.height) * self.bits
            target = values[part.start - rows.start : part.stop - rows.start]
            target[:] = np.asarray(packed, np.int32) >> np.int32(shift) & np.int32((1 << self.bits) - 1)
        scale, zero = (np.asarray(each, np.float32) for each in stored[-2:])
        with np.errstate(all="ignore"):
            values -= zero
            values *= scale
        skipped = run.start - rows.start * self.columns - across.start
        return values.ravel()[skipped : skipped + len(run)]

    def _rectangle(self, run: range) -> tuple[range, range]:
        rows = range(run.start // self.columns, (run.stop - 1) // self.columns + 1)
        if len(rows) > 1:
            return rows, range(self.columns)
        start = run.start - rows.start * self.columns
        return rows, range(start, start + len(run))

    def _chunks(self, rows: range) -> list[range]:
        first, last = rows.start // self.height, (rows.stop - 1) // self.height
        return [
            range(max(rows.start, chunk * self.height), min(rows.stop, (chunk + 1) * self.height))
            for chunk in range(first, last + 1)
        ]


def _ends(numbers: range) -> tuple[int, int]:
    return numbers.start, numbers.stop


def claims(inventory: Inventory, settings: Settings) -> Iterator[Claim]:
    """Every ``NAME.W_q``; the shapes are read, all at once."""
    stems = list(inventory.stems("W_q"))
    with_shape = [
        stem
        for stem in stems
        if (info := inventory.tensors.get(f"{stem}.shape"))
        and info.dtype in ("I64", "I32")
        and 0 < info.size <= 8
    ]
    windows = [Window(f"{s}.shape", 0, 1, 0, inventory.tensors[f"{s}.shape"].size) for s in with_shape]
    arrays = inventory.file.read_stored(windows)
    shapes = {stem: tuple(array.ravel().tolist()) for stem, array in zip(with_shape, arrays, strict=True)}
    for stem in stems:
        yield _claim(inventory, stem, shapes.get(stem))


def _claim(inventory: Inventory, stem: str, shape: tuple[int, ...] | None) -> Claim:
    tensors, weight = inventory.tensors, inventory.tensors[f"{stem}.W_q"]
    parts = (weight.name, *inventory.present(stem, _PARTS))
    name = f"{stem}.weight"
    scale, zero = tensors.get(f"{stem}.scale"), tensors.get(f"{stem}.zero")
    if weight.dtype not in _PER_WORD or scale is None or zero is None:
        return Unread(name, parts, msg("quantised.unread", scheme="HQQ with packed scales or float views"))
    if shape is None:
        return Unread(name, parts, msg("quantised.shapeless", name=name))
    info = logical(name, shape, "HQQ", inventory, parts)
    groups = _groups(weight, scale, zero, info)
    info = logical(name, shape, f"HQQ{groups.bits}", inventory, parts)
    return Flat(info, parts, groups)


def _groups(weight: TensorInfo, scale: TensorInfo, zero: TensorInfo, info: TensorInfo) -> _Groups:
    if len(scale.shape) != 2 or 1 not in scale.shape or scale.shape != zero.shape or len(weight.shape) != 2:
        raise contradiction(scale, zero)
    count, by_row = math.prod(scale.shape), scale.shape[1] == 1
    height, columns = weight.shape
    rows, rest = divmod(info.size, max(columns, 1))
    for per_word in _PER_WORD[weight.dtype]:
        padded = -(-rows // per_word) == height if per_word == 10 else rows == height * per_word
        if not rest and padded and count == (rows if by_row else columns):
            bits = 3 if per_word == 10 else 8 // per_word
            return _Groups(weight.name, scale.name, zero.name, columns, max(height, 1), bits, by_row)
    raise contradiction(weight, scale)
