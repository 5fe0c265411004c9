"""What bytes mean: the contract of every weight reader.

A reader parses only headers when opened and delivers values on demand, as float32. It executes nothing,
trusts no length in the file, and raises only errors of :mod:`drupe.errors`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from drupe.errors import LimitError
from drupe.messages import Message

FloatArray = NDArray[np.float32]
StoredArray = NDArray[np.generic]
"""Whole numbers in their own dtype, everything else as float32."""

MAX_TENSORS = 1_000_000
"""Tensors of one model; the largest published mixtures of experts hold about 100,000."""
MAX_NAME = 4096
"""Bytes of a tensor name."""
MEAN_NAME = 256
"""Characters of a tensor name on average; published models stay below 120."""
MAX_RANK = 8
"""Dimensions of a tensor."""


@dataclass(frozen=True, slots=True)
class Absent:
    """A part that a model does not have (or that cannot be read), and why: a result, not an error."""

    reason: Message


class Layout(StrEnum):
    """How the rows of a stored matrix are to be read."""

    OUT_IN = "out_in"
    """Row = output unit (PyTorch Linear, GGUF after its own reversal)."""
    IN_OUT = "in_out"
    """Row = input unit (Conv1D, ONNX MatMul): transpose before comparing."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as stored. ``shape`` is row-major (outermost first); ``dtype`` is the storage type.

    ``dtype`` uses upper-case names: F64 F32 F16 BF16 F8_E4M3 F8_E5M2 I64 I32 I16 I8 U8 BOOL ... or a block
    type of GGUF such as Q4_1 or Q6_K. ``stored_bits`` is the mean number of bits per value in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str
    layout: Layout = Layout.UNKNOWN
    stored_bits: float = 32.0
    is_quantised: bool = False

    @property
    def size(self) -> int:
        """Number of values."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the two-dimensional view: first axis by all the others (1-D: one row)."""
        if len(self.shape) < 2:
            return 1, self.size
        rows = self.shape[0]
        return rows, (self.size // rows if rows else 0)


class FlagKind(StrEnum):
    """What a reader must say of a file besides its tensors."""

    DANGEROUS_CODE = "dangerous_code"
    """Loading the file with its own library can run commands, load code, or open files and connections."""
    UNKNOWN_CODE = "unknown_code"
    """Loading the file with its own library imports code that is on no list."""
    LOADER_CODE = "loader_code"
    """A code file that a loader runs when it is allowed to; that says neither good nor bad of it."""
    NOT_READ = "not_read"
    """A tensor that is listed nowhere, or a file beside the weights that could not be scanned, and why."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One remark on a file: the imported name or the tensor, and the byte of the file, where there is one.

    ``beside``: the file is none of the weights, but lies in the same folder or repository.
    """

    kind: FlagKind
    file: str
    what: str
    position: int | None = None
    reason: str = ""
    beside: bool = False


@dataclass(frozen=True, slots=True)
class Window:
    """Rows ``[row_start, row_stop)`` and columns ``[column_start, column_stop)`` of the matrix view."""

    tensor: str
    row_start: int
    row_stop: int
    column_start: int
    column_stop: int


class WeightFile(Protocol):
    """The opened weights of one or more files of one format."""

    @property
    def format(self) -> str:
        """Name of the format: safetensors, gguf, onnx."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Free text of the header (safetensors ``__metadata__``, GGUF ``general.*``, ONNX producer)."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name -> tensor, in file order."""

    def read(self, windows: Sequence[Window]) -> list[FloatArray]:
        """The values of each window, float32, shape (rows, columns), decoded; one pass over the file.

        Raises FormatError when a window lies outside its tensor or the bytes are missing.
        """


class StoredFile(WeightFile, Protocol):
    """A weight file whose tensors may be the packed parts of quantised ones."""

    def read_stored(self, windows: Sequence[Window]) -> list[StoredArray]:
        """As :meth:`read`, but whole numbers stay what they are: packed values, zero points, orders."""


def check_tensor_count(count: int, where: str) -> None:
    """Raise LimitError when a file claims more tensors than any real model has."""
    if count > MAX_TENSORS:
        raise LimitError("number of tensors", limit=MAX_TENSORS, actual=count, where=where)


def check_names(names: Collection[str], where: str) -> None:
    """Raise LimitError when the names of tensors are longer than those of any real model, on the whole.

    Every name is searched, grouped and compared: names cost more time than the bytes that they take in a file.
    """
    limit = MEAN_NAME * len(names) + MAX_NAME * 16
    total = sum(map(len, names))
    if total > limit:
        raise LimitError("characters in the names of all tensors", limit=limit, actual=total, where=where)


def check_shape(shape: Sequence[int], where: str) -> tuple[int, ...]:
    """The shape as a tuple; raises LimitError on too many axes, a negative extent or an overflow."""
    if len(shape) > MAX_RANK:
        raise LimitError("tensor rank", limit=MAX_RANK, actual=len(shape), where=where)
    total = 1
    for extent in shape:
        if extent < 0:
            raise LimitError("negative extent", limit=0, actual=extent, where=where)
        total *= max(extent, 1)
    if total > 1 << 48:
        raise LimitError("values of a tensor", limit=1 << 48, actual=total, where=where)
    return tuple(shape)
