"""A file of packed parts seen as the weights that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from drupe.errors import FormatError
from drupe.messages import Message, msg
from drupe.readers.interface import (
    Absent,
    Flag,
    FlagKind,
    FloatArray,
    StoredFile,
    TensorInfo,
    WeightFile,
    Window,
)
from drupe.readers.quantised import (
    awq,
    bitsandbytes,
    compressed,
    fp4,
    gptq,
    hqq,
    mlx,
    mxfp4,
    scaled,
    unread,
)
from drupe.readers.quantised.interface import Claim, Packed, Packing, Settings, Unread, take_stock
from drupe.readers.wrapping import Wrapping, flags_of

PACKINGS: tuple[Packing, ...] = (
    unread.claims, gptq.claims, awq.claims, bitsandbytes.claims, compressed.claims, fp4.claims, mlx.claims,
    mxfp4.claims, hqq.claims, scaled.claims,
)  # fmt: skip
"""The first to claim a tensor has it."""


@dataclass(frozen=True, slots=True)
class QuantisedFile(Wrapping):
    """The weights of a file; packed ones are decoded when read, their parts are not listed."""

    stored: StoredFile
    tensors: Mapping[str, TensorInfo]
    packed: Mapping[str, Packed]
    skipped: Mapping[str, Message]
    """Weights that are recognised and not decoded, and why."""

    @property
    def inside(self) -> Sequence[WeightFile]:
        """The container."""
        return (self.stored,)

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Of the container, and one for each weight that is not decoded."""
        where = next(iter(self.stored.tensors.values())).file
        unread = (Flag(FlagKind.NOT_READ, where, name, reason=str(why)) for name, why in self.skipped.items())
        return (*flags_of(self.stored), *unread)

    def read(self, windows: Sequence[Window]) -> list[FloatArray]:
        """The values of each window; the parts that all windows need are read in one pass."""
        needs: list[Window] = []
        slices = []
        for window in windows:
            first = len(needs)
            needs.extend(self._needs(window))
            slices.append(slice(first, len(needs)))
        stored = self.stored.read_stored(needs)
        found = []
        for window, part in zip(windows, slices, strict=True):
            packed = self.packed.get(window.tensor)
            if packed is not None and part.start < part.stop:
                found.append(packed.decode(window, stored[part]))
            elif packed is not None:
                shape = (window.row_stop - window.row_start, window.column_stop - window.column_start)
                found.append(np.empty(shape, np.float32))
            else:
                found.append(stored[part.start].astype(np.float32, copy=False))
        return found

    def _needs(self, window: Window) -> list[Window]:
        packed = self.packed.get(window.tensor)
        if packed is None:
            return [window]
        info = packed.info
        rows, columns = info.matrix_shape
        inside = 0 <= window.row_start <= window.row_stop <= rows
        if not (inside and 0 <= window.column_start <= window.column_stop <= columns):
            raise FormatError(f"{window} lies outside of {rows} x {columns}", where=info.file)
        if window.row_start == window.row_stop or window.column_start == window.column_stop:
            return []
        return packed.needs(window)


def unpack(file: WeightFile, settings: Settings) -> WeightFile | Absent:
    """The file itself, or its weights when parts of it are packed; Absent when none of those can be decoded.

    ``settings`` is the raw configuration (see :func:`settings_of`). Raises FormatError when parts contradict each
    other: the file is damaged.
    """
    if not hasattr(file, "read_stored"):
        return file
    stored = cast(StoredFile, file)
    inventory = take_stock(stored)
    claimed: dict[str, Claim] = {}
    for packing in PACKINGS:
        before = len(claimed)
        for claim in packing(inventory, settings):
            if not any(part in claimed for part in claim.parts):
                claimed.update(dict.fromkeys(claim.parts, claim))
        if len(claimed) > before:
            inventory = take_stock(stored, without=claimed)
    return _seen(stored, claimed) if claimed else file


def _seen(stored: StoredFile, claimed: Mapping[str, Claim]) -> QuantisedFile | Absent:
    tensors: dict[str, TensorInfo] = {}
    packed: dict[str, Packed] = {}
    skipped: dict[str, Message] = {}
    for name, info in stored.tensors.items():
        claim = claimed.get(name)
        if isinstance(claim, Unread):
            skipped[claim.name] = claim.reason
            continue
        seen = info if claim is None else claim.info
        if seen.name in tensors and packed.get(seen.name) is not claim:
            raise FormatError(f"tensor {seen.name[:80]!r} is there twice, once packed", where=info.file)
        tensors[seen.name] = seen
        if claim is not None:
            packed[seen.name] = claim
    if skipped and not packed:
        name, reason = next(iter(skipped.items()))
        return Absent(msg("quantised.none", name=name, count=len(skipped), reason=reason))
    return QuantisedFile(stored, tensors, packed, skipped)
