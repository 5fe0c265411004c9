"""MLX: ``weight`` uint32 packed along the inputs, ``scales`` and ``biases`` per group of a row.

Facts: ml-explore.github.io/mlx, "mlx.core.quantize": value = code * scale + bias; codes are a little-endian
stream of bits; the modes mxfp4 and nvfp4 have uint8 scales and no biases. The shapes give bits * group
size; the configuration (``quantization``, with exceptions per layer) says which, if it fits. Without it, the
pair is chosen whose width is a width of other tensors of the model, most usual pair first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from drupe.readers.interface import TensorInfo
from drupe.readers.quantised.affine import E2M1, Affine, Spread, TableCodes
from drupe.readers.quantised.interface import Inventory, Settings, contradiction, logical
from drupe.readers.quantised.settings import number, quantisation
from drupe.readers.quantised.table import Table
from drupe.readers.strict_json import Json

_USUAL = (
    *((4, 64), (8, 64), (4, 32), (6, 64), (3, 64), (5, 64), (8, 32), (2, 32)),
    *((bits, size) for size in (32, 128, 64) for bits in (4, 6, 3, 2, 8, 5)),
)
"""Bits and group size."""


def claims(inventory: Inventory, settings: Settings) -> Iterator[Affine]:
    """Every ``NAME.weight`` of uint32 with scales."""
    widths: frozenset[int] | None = None
    for stem in inventory.stems("scales"):
        weight, scales = inventory.tensors.get(f"{stem}.weight"), inventory.tensors[f"{stem}.scales"]
        if weight is None or weight.dtype != "U32":
            continue
        aligned = weight.shape[:-1] == scales.shape[:-1] and len(weight.shape) == len(scales.shape) > 0
        if not aligned or not scales.size or not weight.size:
            raise contradiction(weight, scales)
        if scales.dtype == "U8":
            yield _float4(inventory, stem, weight, scales)
            continue
        widths = widths or _widths(inventory)
        yield _affine(inventory, stem, _pair(weight, scales, stem, settings, widths))


def _widths(inventory: Inventory) -> frozenset[int]:
    """Sizes of vectors and heights of matrices: the widths of the model's streams."""
    return frozenset(
        info.shape[-1 if len(info.shape) == 1 else -2] for info in inventory.tensors.values() if info.shape
    )


def _pair(
    weight: TensorInfo, scales: TensorInfo, stem: str, settings: Settings, widths: frozenset[int]
) -> tuple[int, int]:
    """Bits and group size."""
    product, rest = divmod(weight.shape[-1] * 32, scales.shape[-1])
    fitting = [pair for pair in _USUAL if pair[0] * pair[1] == product]
    if rest or not fitting:
        raise contradiction(weight, scales)
    table = quantisation(settings)
    own = table.get(stem)
    for hint in (own if isinstance(own, dict) else {}, table):
        said = _said(hint)
        if said in fitting:
            return said
    return next((pair for pair in fitting if scales.shape[-1] * pair[1] in widths), fitting[0])


def _said(table: Mapping[str, Json]) -> tuple[int, int]:
    return number(table, "bits") or 0, number(table, "group_size") or 0


def _affine(inventory: Inventory, stem: str, pair: tuple[int, int]) -> Affine:
    tensors, (bits, size) = inventory.tensors, pair
    weight, scales = tensors[f"{stem}.weight"], tensors[f"{stem}.scales"]
    biases = inventory.need(f"{stem}.biases", weight.name)
    if biases.shape != scales.shape:
        raise contradiction(scales, biases)
    rows, groups = scales.matrix_shape
    parts = (weight.name, scales.name, biases.name)
    info = logical(weight.name, (*scales.shape[:-1], scales.shape[-1] * size), f"MLX{bits}", inventory, parts)
    codes = Table(weight.name, rows, groups * size, bits=bits).checked(tensors)
    scale, bias = (Spread(Table(name, rows, groups), 1, size) for name in parts[1:])
    return Affine(info, parts, TableCodes(codes), (("*", scale), ("+", bias)))


def _float4(inventory: Inventory, stem: str, weight: TensorInfo, scales: TensorInfo) -> Affine:
    """MXFP4 (groups of 32, powers of two) and NVFP4 (groups of 16, fp8 scales)."""
    size, rest = divmod(weight.shape[-1] * 8, scales.shape[-1])
    if rest or size not in (16, 32):
        raise contradiction(weight, scales)
    rows, groups = scales.matrix_shape
    parts = (weight.name, scales.name)
    shape = (*weight.shape[:-1], weight.shape[-1] * 8)
    name, code = ("MLX_NVFP4", "F8_E4M3") if size == 16 else ("MLX_MXFP4", "F8_E8M0")
    info = logical(weight.name, shape, name, inventory, parts)
    codes = Table(weight.name, rows, groups * size, bits=4).checked(inventory.tensors)
    scale = Spread(Table(scales.name, rows, groups), 1, size, code=code)
    return Affine(info, parts, TableCodes(codes, E2M1), (("*", scale),))
