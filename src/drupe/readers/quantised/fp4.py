"""4-bit floats (E2M1), two in a byte, low half first, with an 8-bit scale for each group of a row.

| who | codes | scale of a group | and |
|---|---|---|---|
| compressed-tensors nvfp4 | ``weight_packed`` | ``weight_scale`` fp8, 16 values | / ``weight_global_scale`` |
| ModelOpt nvfp4 | ``weight`` uint8 | ``weight_scale`` fp8, 16 values | * ``weight_scale_2`` |
| compressed-tensors mxfp4 | ``weight_packed`` | ``weight_scale`` uint8: 2^(byte - 127), 32 values | |

Facts: OCP Microscaling Formats (MX) 1.0; github.com/vllm-project/compressed-tensors; "Introducing NVFP4",
developer.nvidia.com/blog. The group size comes from the shapes.
"""

from __future__ import annotations

from collections.abc import Iterator

from drupe.messages import msg
from drupe.readers.interface import TensorInfo
from drupe.readers.quantised.affine import E2M1, Affine, Operand, Spread, TableCodes, spread
from drupe.readers.quantised.interface import Claim, Inventory, Settings, Unread, contradiction, logical
from drupe.readers.quantised.table import Table

_PARTS = (
    *("weight_scale", "weight_global_scale", "weight_scale_2", "weight_shape"),
    *("input_scale", "input_global_scale", "pre_quant_scale"),
)
_SIZES = (16, 32)


def claims(inventory: Inventory, settings: Settings) -> Iterator[Claim]:
    """Every matrix of bytes with an 8-bit scale for each 16 or 32 of its halves."""
    for ending in ("weight_packed", "weight"):
        for stem in inventory.stems(ending):
            weight = inventory.tensors[f"{stem}.{ending}"]
            scale = inventory.tensors.get(f"{stem}.weight_scale")
            if weight.dtype != "U8" or len(weight.shape) != 2 or scale is None:
                continue
            if scale.dtype in ("F8_E4M3", "U8", "F8_E8M0"):
                yield _claim(inventory, stem, weight, scale)


def _claim(inventory: Inventory, stem: str, weight: TensorInfo, scale: TensorInfo) -> Claim:
    rows, columns = weight.shape[0], weight.shape[1] * 2
    groups = scale.shape[1] if len(scale.shape) == 2 else 0
    size = columns // groups if groups else 0
    if size == 48 and scale.shape == (rows, groups):
        parts = (weight.name, *inventory.present(stem, _PARTS))
        return Unread(f"{stem}.weight", parts, msg("quantised.unread", scheme="MXFP6"))
    if scale.shape != (rows, groups) or size not in _SIZES or groups * size != columns:
        raise contradiction(weight, scale)
    parts = (weight.name, *inventory.present(stem, _PARTS))
    is_power = scale.dtype != "F8_E4M3"
    code = "F8_E8M0" if scale.dtype == "U8" else ""
    steps: list[tuple[str, Operand | float]] = [
        ("*", Spread(Table(scale.name, rows, groups), 1, size, code=code))
    ]
    for ending, sign in (("weight_global_scale", "/"), ("weight_scale_2", "*")):
        whole = inventory.tensors.get(f"{stem}.{ending}")
        if whole is not None:
            steps.append((sign, spread(whole, rows, columns, (None, None))))
    info = logical(f"{stem}.weight", (rows, columns), "MXFP4" if is_power else "NVFP4", inventory, parts)
    codes = Table(weight.name, rows, columns, bits=4, word=8)
    return Affine(info, parts, TableCodes(codes, E2M1), tuple(steps))
