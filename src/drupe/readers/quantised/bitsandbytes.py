"""bitsandbytes in 4 bits (NF4, FP4): bytes in the order of the values, a scale for each block of them.

Facts: Dettmers et al. 2023 (QLoRA), arXiv:2305.14314; huggingface.co/docs/bitsandbytes. ``weight`` holds two codes
per byte, high half first (uint8, or the same bytes as bf16 or fp32, ``bnb_4bit_quant_storage``; as fp16 they are
not decoded: a float32 does not keep all of its bit patterns);
``weight.quant_map`` the 16 values; ``weight.absmax`` the scales, or with double quantisation their codes in
``nested_quant_map``, to be multiplied by ``nested_absmax`` per block and shifted by ``nested_offset``;
``weight.quant_state.bitsandbytes__nf4`` a JSON text with shape and block sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drupe.errors import FormatError, LimitError
from drupe.messages import msg
from drupe.readers.interface import FloatArray, StoredArray, TensorInfo, Window, check_shape
from drupe.readers.quantised.flat import Flat
from drupe.readers.quantised.interface import Claim, Inventory, Settings, Unread, logical
from drupe.readers.strict_json import Json, as_object, parse_json

MAX_STATE = 1 << 16
"""Bytes of a quantisation state; about 200 in real files."""
_ENDINGS = ("bitsandbytes__nf4", "bitsandbytes__fp4")
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_ITEM_BYTES = {"U8": 1, "I8": 1, "BF16": 2, "F32": 4}
_VALUES_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class _Nested:
    """How the scales themselves are packed."""

    absmax: str
    quant_map: str
    block: int
    offset: float


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The values of one weight, in flat order."""

    weight: str
    item_bytes: int
    is_column: bool
    absmax: str
    quant_map: str
    block: int
    nested: _Nested | None

    def needs(self, run: range) -> list[Window]:
        """Bytes, scales and the table of values; with double quantisation the same of the scales."""
        items = range(run.start // 2 // self.item_bytes, (run.stop - 1) // 2 // self.item_bytes + 1)
        codes = (
            Window(self.weight, items.start, items.stop, 0, 1)
            if self.is_column
            else Window(self.weight, 0, 1, items.start, items.stop)
        )
        scales = self._scales(run)
        found = [
            codes,
            Window(self.absmax, 0, 1, scales.start, scales.stop),
            Window(self.quant_map, 0, 1, 0, 16),
        ]
        if self.nested:
            size = self.nested.block
            blocks = range(scales.start // size, (scales.stop - 1) // size + 1)
            found.append(Window(self.nested.absmax, 0, 1, blocks.start, blocks.stop))
            found.append(Window(self.nested.quant_map, 0, 1, 0, 256))
        return found

    def take(self, run: range, stored: Sequence[StoredArray]) -> FloatArray:
        """Table value times scale, a chunk at a time."""
        data = _bytes(stored[0], self.item_bytes)
        table = np.asarray(stored[2], np.float32).ravel()
        first = run.start // 2 // self.item_bytes * self.item_bytes * 2
        scales, first_scale = self._absmax(run, stored), self._scales(run).start
        values = np.empty(len(run), np.float32)
        with np.errstate(all="ignore"):
            for start in range(run.start, run.stop, _VALUES_AT_ONCE):
                places = np.arange(start, min(start + _VALUES_AT_ONCE, run.stop))
                pairs = data[(places - first) >> 1]
                codes = np.where(places & 1, pairs & 15, pairs >> 4)
                part = values[start - run.start : start - run.start + len(places)]
                np.multiply(table[codes], scales[places // self.block - first_scale], out=part)
        return values

    def _absmax(self, run: range, stored: Sequence[StoredArray]) -> FloatArray:
        if self.nested is None:
            return np.asarray(stored[1], np.float32).ravel()
        scales = self._scales(run)
        blocks = np.arange(scales.start, scales.stop) // self.nested.block - scales.start // self.nested.block
        table = np.asarray(stored[4], np.float32).ravel()
        with np.errstate(all="ignore"):
            values = table[stored[1].ravel()] * np.asarray(stored[3], np.float32).ravel()[blocks]
            return np.asarray(values + np.float32(self.nested.offset), np.float32)

    def _scales(self, run: range) -> range:
        return range(run.start // self.block, (run.stop - 1) // self.block + 1)


def _bytes(stored: StoredArray, item_bytes: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The bytes of codes that were stored as numbers of that size; bf16 is the upper half of a float32."""
    flat = np.ascontiguousarray(stored.ravel())
    if item_bytes == 2:
        flat = (flat.view(np.uint32) >> 16).astype("<u2")
    return flat.view(np.uint8)


def claims(inventory: Inventory, settings: Settings) -> Iterator[Claim]:
    """Every ``NAME`` with a ``NAME.quant_state.bitsandbytes__*``; the states are read, all at once."""
    found = [
        (stem.removesuffix(".quant_state"), f"{stem}.{ending}")
        for ending in _ENDINGS
        for stem in inventory.stems(ending)
        if stem.endswith(".quant_state") and stem.removesuffix(".quant_state") in inventory.tensors
    ]
    for _, state in found:
        info = inventory.tensors[state]
        if info.dtype != "U8" or info.size > MAX_STATE:
            raise LimitError(
                "bytes of a quantisation state", limit=MAX_STATE, actual=info.size, where=info.file
            )
    windows = [Window(state, 0, 1, 0, inventory.tensors[state].size) for _, state in found]
    for (name, state), text in zip(found, inventory.file.read_stored(windows), strict=True):
        info = inventory.tensors[state]
        where = f"{info.file}: {state[:80]}"
        table = as_object(parse_json(text.astype(np.uint8).tobytes(), where), where)
        yield _claim(inventory, name, state, table)


def _claim(inventory: Inventory, name: str, state: str, table: Mapping[str, Json]) -> Claim:
    weight = inventory.tensors[name]
    where = f"{weight.file}: {state[:80]}"
    shape = _shape(table, where)
    count, item = math.prod(shape), _ITEM_BYTES.get(weight.dtype)
    parts = (name, *inventory.present(name, _PARTS), state)
    if item is None:
        reason = msg("quantised.unread", scheme=f"bitsandbytes, stored as {weight.dtype}")
        return Unread(name, parts, reason)
    _check(weight, -(-count // 2 // item), where)
    block = _positive(table, "blocksize", where)
    scales, values = inventory.need(f"{name}.absmax", name), inventory.need(f"{name}.quant_map", name)
    _check(scales, -(-count // block), where)
    _check(values, 16, where)
    blocks = _Blocks(
        weight=name,
        item_bytes=item,
        is_column=weight.matrix_shape[1] == 1,
        absmax=scales.name,
        quant_map=values.name,
        block=block,
        nested=_nested(inventory, name, scales, table, where),
    )
    kind = "BNB_NF4" if state.endswith("nf4") else "BNB_FP4"
    return Flat(logical(name, shape, kind, inventory, parts), parts, blocks)


def _nested(
    inventory: Inventory, name: str, scales: TensorInfo, table: Mapping[str, Json], where: str
) -> _Nested | None:
    if f"{name}.nested_absmax" not in inventory.tensors and scales.dtype not in ("U8", "I8"):
        return None
    absmax = inventory.need(f"{name}.nested_absmax", name)
    values = inventory.need(f"{name}.nested_quant_map", name)
    block = _positive(table, "nested_blocksize", where)
    if scales.dtype != "U8":
        raise FormatError(f"{scales.name[:80]!r} is {scales.dtype}; packed scales are U8", where=where)
    _check(absmax, -(-scales.size // block), where)
    _check(values, 256, where)
    offset = table.get("nested_offset")
    if isinstance(offset, bool) or not isinstance(offset, int | float) or not abs(offset) < 1e30:
        raise FormatError(f"nested_offset is {str(offset)[:40]!r}, no number", where=where)
    return _Nested(absmax.name, values.name, block, float(offset))


def _shape(table: Mapping[str, Json], where: str) -> tuple[int, ...]:
    shape = table.get("shape")
    if not isinstance(shape, list) or not shape:
        raise FormatError("the quantisation state has no shape", where=where)
    extents = [extent for extent in shape if type(extent) is int]
    if len(extents) != len(shape):
        raise FormatError(f"the shape {str(shape)[:60]} is no list of whole numbers", where=where)
    return check_shape(extents, where)


def _positive(table: Mapping[str, Json], key: str, where: str) -> int:
    value = table.get(key)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise FormatError(f"{key} is {str(value)[:40]!r}, no positive whole number", where=where)
    return value


def _check(info: TensorInfo, size: int, where: str) -> None:
    """A vector (or one column) of so many numbers."""
    if info.size != size or 1 not in info.matrix_shape:
        raise FormatError(f"{info.name[:80]!r} {info.shape} should hold {size} numbers", where=where)
