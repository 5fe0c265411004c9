"""Whole tensors of 8-bit numbers with a scale for all, for each row, or for each block.

| who | weight | scale | value |
|---|---|---|---|
| DeepSeek, transformers "fp8" | fp8 | ``weight_scale_inv`` per 128 x 128 | weight * scale, despite the name |
| FBGEMM, compressed-tensors, ModelOpt | fp8, int8 | ``weight_scale`` | (weight - ``weight_zero_point``) * scale |
| Mistral; ComfyUI | fp8 | ``qscale_weight``; ``scale_weight`` | weight * scale |
| bitsandbytes LLM.int8 | int8 | ``SCB`` per row | weight * SCB / 127 |
| optimum-quanto | ``weight._data`` | ``weight._scale`` | weight * scale |
| torchao | ``_weight_qdata`` | ``_weight_scale`` | (weight - ``_weight_zero_point``) * scale |

Facts: github.com/deepseek-ai/DeepSeek-V3 (README_WEIGHTS.md); huggingface.co/docs/transformers (fbgemm_fp8,
finegrained_fp8, quanto, torchao); github.com/vllm-project/compressed-tensors; Dettmers et al. 2022, arXiv:2208.07339.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drupe.readers.interface import StoredArray, TensorInfo, Window
from drupe.readers.quantised.affine import Affine, Applied, Operand, TableCodes, spread
from drupe.readers.quantised.interface import Inventory, Settings, contradiction, logical
from drupe.readers.quantised.settings import quantisation
from drupe.readers.quantised.table import Table, step

_FLOATS = ("F8_E4M3", "F8_E5M2")
_SCALES = ("weight_scale_inv", "weight_scale", "qscale_weight", "scale_weight", "SCB", "scale")
_ACTIVATIONS = (
    *("input_scale", "input_zero_point", "input_scale_ub", "activation_scale", "qscale_act", "scale_input"),
    *("output_scale", "output_zero_point", "weight_format"),
)


@dataclass(frozen=True, slots=True)
class _Names:
    """The tensors of one weight."""

    name: str
    weight: TensorInfo
    scale: TensorInfo
    zero: TensorInfo | None
    others: Sequence[str]

    @property
    def parts(self) -> tuple[str, ...]:
        """All of them, the packed numbers first."""
        zero = (self.zero.name,) if self.zero else ()
        return (self.weight.name, self.scale.name, *zero, *self.others)


def claims(inventory: Inventory, settings: Settings) -> Iterator[Affine]:
    """Every tensor of 8-bit numbers that has a scale."""
    hints = _block(quantisation(settings))
    for info in inventory.tensors.values():
        if info.dtype in (*_FLOATS, "I8") and len(info.shape) > 1:
            names = _names(inventory, info)
            if names is not None:
                yield _claim(inventory, names, hints)


def _block(table: Mapping[str, object]) -> tuple[int | None, int | None]:
    sizes = table.get("weight_block_size")
    if isinstance(sizes, list) and len(sizes) == 2 and all(type(size) is int for size in sizes):
        return sizes[0], sizes[1]
    return None, None


def _names(inventory: Inventory, info: TensorInfo) -> _Names | None:
    stem, _, last = info.name.rpartition(".")
    zero = f"{info.name}_zero_point"
    endings: tuple[str, ...]
    if last == "_data":
        name, endings = stem, ("_scale",)
    elif last.startswith("_") and last.endswith("_qdata"):
        prefix = last.removesuffix("_qdata")
        name, zero, endings = f"{stem}.{prefix[1:]}", f"{stem}.{prefix}_zero_point", (f"{prefix}_scale",)
    else:
        name, endings = info.name, (f"{last}_scale_inv", f"{last}_scale")
        endings = (*_SCALES, *endings) if last == "weight" else endings
    found = inventory.present(stem, endings)
    if not found or inventory.tensors[found[0]].dtype in ("I8", "I32", "I64"):
        return None
    others = inventory.present(name.rpartition(".")[0], _ACTIVATIONS)
    return _Names(name, info, inventory.tensors[found[0]], inventory.tensors.get(zero), others)


def _claim(inventory: Inventory, names: _Names, hints: tuple[int | None, int | None]) -> Affine:
    weight, is_rowwise = names.weight, names.scale.name.endswith(".SCB")
    kind = "INT8" if weight.dtype == "I8" else weight.dtype
    info = logical(
        names.name, weight.shape, f"{'BNB' if is_rowwise else 'SCALED'}_{kind}", inventory, names.parts
    )
    scale: list[tuple[str, Operand | float]] = [("*", _operand(weight, names.scale, hints))]
    if is_rowwise:
        scale.append(("/", 127.0))
    if names.zero is not None:
        scale.insert(0, ("-", _operand(weight, names.zero, hints)))
    return Affine(info, names.parts, TableCodes(Table(weight.name, *weight.matrix_shape)), tuple(scale))


def _operand(weight: TensorInfo, scale: TensorInfo, hints: tuple[int | None, int | None]) -> Operand:
    if len(weight.shape) == 2 and len(scale.shape) <= 2:
        is_power = scale.dtype == "U8" and scale.name.endswith("scale")  # compressed-tensors mxfp8
        return spread(scale, *weight.shape, hints, "F8_E8M0" if is_power else "")
    if len(scale.shape) != len(weight.shape) and scale.size > 1:
        raise contradiction(weight, scale)
    shape = scale.shape if scale.size > 1 else (1,) * len(weight.shape)
    sizes = (*[None] * (len(shape) - 2), *hints)
    steps = tuple(step(e, n, h, scale) for e, n, h in zip(weight.shape, shape, sizes, strict=True))
    return _Grid(scale.name, shape, weight.shape, steps)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Scales of a tensor of more than two axes (experts), aligned with its axes."""

    tensor: str
    shape: tuple[int, ...]
    extents: tuple[int, ...]
    steps: tuple[int, ...]

    def needs(self, window: Window) -> list[Window]:
        rows = self._rows(window)
        return [Window(self.tensor, rows.start, rows.stop, 0, math.prod(self.shape[1:]))]

    def applied(self, window: Window, stored: Sequence[StoredArray]) -> Applied:
        across = np.arange(window.column_start, window.column_stop)
        columns = np.zeros(len(across), np.intp)
        places = np.unravel_index(across, self.extents[1:])
        for place, size, count in zip(places, self.steps[1:], self.shape[1:], strict=True):
            columns = columns * count + place // size
        down = np.arange(window.row_start, window.row_stop) // self.steps[0] - self._rows(window).start
        return Applied(np.asarray(stored[0], np.float32), down, columns)

    def _rows(self, window: Window) -> range:
        return range(window.row_start // self.steps[0], (window.row_stop - 1) // self.steps[0] + 1)
