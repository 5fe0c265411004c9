"""Blocks of packed numbers: the type and the steps that several block formats share (see readers.packed)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.readers.interface import FloatArray

ByteArray = NDArray[np.uint8]
BlockDecoder = Callable[[ByteArray, FloatArray], None]
"""Blocks (n, bytes per block) -> filled in: values (n, values per block)."""


@dataclass(frozen=True, slots=True)
class BlockType:
    """``values`` numbers are stored together in ``bytes`` bytes; a raw number is a block of one."""

    values: int
    bytes: int
    decoder: BlockDecoder

    @property
    def bits(self) -> float:
        """Stored bits per value."""
        return 8.0 * self.bytes / self.values


def half(data: ByteArray, start: int) -> FloatArray:
    """The fp16 at a byte of each block, shape (n, 1)."""
    return np.ascontiguousarray(data[:, start : start + 2]).view("<f2").astype(np.float32)


def fields(data: ByteArray, bits: int, *, run: int) -> ByteArray:
    """Split bytes into fields of ``bits``, lowest first: per run of bytes, all first fields, all second...

    (n, k) -> (n, k / run, 8 / bits, run).
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (data.reshape(len(data), -1, 1, run) >> shifts) & np.uint8((1 << bits) - 1)


def scaled(q: NDArray[np.generic], scale: FloatArray, out: FloatArray) -> FloatArray:
    """``q`` times the scale of its group, written to ``out``; returns ``out`` by group."""
    groups = out.reshape(*scale.shape, -1)
    np.multiply(q.reshape(groups.shape), scale[:, :, None], out=groups)
    return groups
