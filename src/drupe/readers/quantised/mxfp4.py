"""MXFP4 experts (gpt-oss): ``NAME_blocks`` and ``NAME_scales`` of a tensor (experts, inputs, outputs).

Facts: OCP Microscaling Formats (MX) 1.0; huggingface.co/openai/gpt-oss-20b: blocks uint8 (experts, outputs, groups,
16), low half of a byte first, scales uint8 (experts, outputs, groups), value = E2M1 * 2^(scale - 127). The
unpacked parameter of transformers (and of bf16 copies) is the transpose, (experts, inputs, outputs).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from drupe.readers.interface import FloatArray, StoredArray, TensorInfo, Window
from drupe.readers.quantised.affine import E2M1, byte_values
from drupe.readers.quantised.interface import Inventory, Settings, contradiction, logical

GROUP, BLOCK_BYTES = 32, 16


@dataclass(frozen=True, slots=True)
class _Experts:
    """One tensor of experts; its matrix view has a row per expert and a column per (input, output)."""

    info: TensorInfo
    parts: tuple[str, ...]
    outputs: int
    groups: int

    def needs(self, window: Window) -> list[Window]:
        """Of each expert: the groups of each output in one piece, or all when every group is needed."""
        inputs, outputs = self._ranges(window)
        groups = _groups(inputs)
        blocks, scales = self.parts
        found = []
        for expert in range(window.row_start, window.row_stop):
            for start, stop in self._pieces(outputs, groups):
                found.append(Window(blocks, expert, expert + 1, start * BLOCK_BYTES, stop * BLOCK_BYTES))
                found.append(Window(scales, expert, expert + 1, start, stop))
        return found

    def decode(self, window: Window, stored: Sequence[StoredArray]) -> FloatArray:
        """The values of the window."""
        inputs, outputs = self._ranges(window)
        groups = _groups(inputs)
        each = 2 * len(self._pieces(outputs, groups))
        skipped = window.column_start - inputs.start * self.outputs - outputs.start
        values = np.empty(
            (window.row_stop - window.row_start, window.column_stop - window.column_start), np.float32
        )
        for row, target in enumerate(values):
            mine = stored[row * each : (row + 1) * each]
            codes = np.concatenate([block.ravel() for block in mine[::2]])
            scales = np.concatenate([scale.ravel() for scale in mine[1::2]])
            first = inputs.start - groups.start * GROUP
            table = _values(codes, scales, len(outputs))[:, first : first + len(inputs)]
            target[:] = table.T.reshape(-1)[skipped : skipped + len(target)]
        return values

    def _ranges(self, window: Window) -> tuple[range, range]:
        """Inputs and outputs that hold all columns of the window."""
        inputs = range(window.column_start // self.outputs, (window.column_stop - 1) // self.outputs + 1)
        if len(inputs) > 1:
            return inputs, range(self.outputs)
        start = inputs.start * self.outputs
        return inputs, range(window.column_start - start, window.column_stop - start)

    def _pieces(self, outputs: range, groups: range) -> list[tuple[int, int]]:
        """Runs of groups, counted over all outputs."""
        if len(groups) == self.groups:
            return [(outputs.start * self.groups, outputs.stop * self.groups)]
        return [(o * self.groups + groups.start, o * self.groups + groups.stop) for o in outputs]


def _groups(inputs: range) -> range:
    return range(inputs.start // GROUP, (inputs.stop - 1) // GROUP + 1)


def _values(codes: StoredArray, scales: StoredArray, outputs: int) -> FloatArray:
    """Outputs x inputs."""
    pairs = np.asarray(codes, np.uint8)
    halves = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(-1, GROUP)
    values = np.asarray(E2M1, np.float32)[halves]
    with np.errstate(all="ignore"):
        values *= byte_values("F8_E8M0")[np.asarray(scales, np.uint8)][:, None]
    return values.reshape(outputs, -1)


def claims(inventory: Inventory, settings: Settings) -> Iterator[_Experts]:
    """Every pair ``NAME_blocks``, ``NAME_scales`` of uint8 with four axes."""
    for info in inventory.tensors.values():
        if info.dtype != "U8" or not info.name.endswith("_blocks") or len(info.shape) != 4:
            continue
        name = info.name.removesuffix("_blocks")
        scales = inventory.need(f"{name}_scales", info.name)
        experts, outputs, groups, width = info.shape
        if width != BLOCK_BYTES or scales.shape != (experts, outputs, groups) or scales.dtype != "U8":
            raise contradiction(info, scales)
        parts = (info.name, scales.name)
        shape = (experts, groups * GROUP, outputs)
        yield _Experts(logical(name, shape, "MXFP4", inventory, parts), parts, outputs, groups)
