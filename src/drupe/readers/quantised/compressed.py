"""compressed-tensors "pack-quantized": ``weight_packed`` int32 along the inputs, codes stored plus 2^(bits-1).

Facts: github.com/vllm-project/compressed-tensors (README, "Compression formats"); ``weight_shape`` holds the
unpacked shape, ``weight_scale`` (out, groups), ``weight_zero_point`` is packed along the outputs like the weight
(older files: int8, unpacked and without the 2^(bits-1)), ``weight_g_idx`` the group of each input, -1 = none.
The number of bits is the one that makes the shapes agree; the configuration decides where two do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from drupe.errors import FormatError
from drupe.messages import msg
from drupe.readers.interface import TensorInfo, Window
from drupe.readers.quantised.affine import Affine, Spread, TableCodes, spread
from drupe.readers.quantised.interface import Claim, Inventory, Settings, Unread, contradiction, logical
from drupe.readers.quantised.settings import number, quantisation
from drupe.readers.quantised.table import Table
from drupe.readers.strict_json import Json

_PARTS = (
    "weight_scale",
    "weight_zero_point",
    "weight_g_idx",
    "weight_shape",
    "input_scale",
    "input_zero_point",
)
_BITS = (4, 8, 3, 2, 6, 5, 7, 1)


def claims(inventory: Inventory, settings: Settings) -> Iterator[Claim]:
    """Every ``NAME.weight_packed`` of int32."""
    stems = [
        stem
        for stem in inventory.stems("weight_packed")
        if inventory.tensors[f"{stem}.weight_packed"].dtype == "I32"
    ]
    shapes = _shapes(inventory, stems)
    config = _weights(quantisation(settings))
    for stem in stems:
        yield _claim(inventory, stem, shapes.get(stem), config)


def _shapes(inventory: Inventory, stems: list[str]) -> Mapping[str, tuple[int, ...]]:
    """The unpacked shapes: two numbers per weight, all read at once."""
    stored = [
        stem
        for stem in stems
        if (info := inventory.tensors.get(f"{stem}.weight_shape"))
        and info.dtype in ("I64", "I32")
        and info.size == 2
    ]
    values = inventory.file.read_stored([Window(f"{stem}.weight_shape", 0, 1, 0, 2) for stem in stored])
    return {stem: tuple(array.ravel().tolist()) for stem, array in zip(stored, values, strict=True)}


def _weights(table: Mapping[str, Json]) -> Mapping[str, Json]:
    """The settings of weights of the first group of layers."""
    groups = table.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            return weights
    return {}


def _claim(
    inventory: Inventory, stem: str, shape: tuple[int, ...] | None, config: Mapping[str, Json]
) -> Claim:
    tensors, weight = inventory.tensors, inventory.tensors[f"{stem}.weight_packed"]
    parts = (weight.name, *inventory.present(stem, _PARTS))
    scales = inventory.need(f"{stem}.weight_scale", weight.name)
    said = number(config, "num_bits")
    if shape is None and said in _BITS and len(weight.shape) == 2:
        shape = (weight.shape[0], weight.shape[1] * 32 // said)
    if shape is None:
        return Unread(f"{stem}.weight", parts, msg("quantised.shapeless", name=f"{stem}.weight"))
    out, columns = shape
    if said and 32 % said and weight.shape == (out, -(-columns // max(32 // said, 1))):
        reason = msg("quantised.unread", scheme=f"compressed-tensors, {said} bits that leave gaps")
        return Unread(f"{stem}.weight", parts, reason)
    bits = _bits(weight, out, columns, said)
    scale = spread(scales, out, columns, (None, number(config, "group_size")))
    order = tensors.get(f"{stem}.weight_g_idx")
    if order is not None and scale.table.columns > 1:
        if order.size != columns or order.dtype not in ("I32", "I64"):
            raise contradiction(weight, order)
        scale = Spread(scale.table, scale.row_step, scale.column_step, order)
    info = logical(f"{stem}.weight", shape, f"COMPRESSED_INT{bits}", inventory, parts)
    codes = Table(weight.name, out, columns, bits=bits).checked(tensors)
    zero = _zero(inventory, stem, scale, bits)
    return Affine(info, parts, TableCodes(codes), (("-", zero), ("*", scale)))


def _bits(weight: TensorInfo, out: int, columns: int, said: int | None) -> int:
    for bits in (said or 0, *_BITS):
        if bits in _BITS and weight.shape == (out, -(-columns * bits // 32)):
            return bits
    raise FormatError(
        f"{weight.name[:80]!r} {weight.shape} cannot hold {out} x {columns} packed numbers", where=weight.file
    )


def _zero(inventory: Inventory, stem: str, scale: Spread, bits: int) -> Spread | float:
    info = inventory.tensors.get(f"{stem}.weight_zero_point")
    if info is None:
        return float(1 << bits - 1)
    table = scale.table
    if info.dtype == "I32" and info.shape != inventory.tensors[table.tensor].shape:
        packed = Table(info.name, table.rows, table.columns, bits=bits, down=True).checked(inventory.tensors)
        return Spread(packed, scale.row_step, scale.column_step, scale.order)
    plain = Table(info.name, table.rows, table.columns, table.turned).checked(inventory.tensors)
    return Spread(plain, scale.row_step, scale.column_step, scale.order, plus=1 << bits - 1)
