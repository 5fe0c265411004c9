"""The matrices of a model: rows = output units, whatever is fused, interleaved, stacked or turned in the file.

A matrix is a set of equal runs of rows of a stored tensor, so that q of an interleaved (heads, 3, size) tensor is
one, and every other row of gpt-oss' gate and up. A stack of experts (experts, rows, columns) holds one per expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from drupe.fused import Part, split
from drupe.readers.interface import FloatArray, Layout, TensorInfo, Window
from drupe.roles import FFN_ROLES, Role, Roles, of_expert

MIN_ROWS, MIN_COLUMNS = 8, 32
"""Smaller tensors (and all vectors) carry too few values to be compared as matrices."""
MAX_EXPERTS = 1 << 17
"""In all stacks of a model; the largest published ones hold about 50,000. A file may claim more than it holds."""
WIDE = 4
"""Values read for one that is used, at most, to read a part of an expert in one piece."""
_INTEGERS = frozenset({"I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64", "BOOL"})
_NORMS = frozenset({"norm1", "norm2", "final_norm"})


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight matrix, rows = output units; a fused tensor gives several.

    ``row_start`` is the first of its rows within the tensor, counted in canonical orientation. With ``run``, its
    rows are runs of that many, ``stride`` rows apart; without, they lie together. ``expert``: place on the first
    axis of a stack of experts.
    """

    tensor: str
    rows: int
    columns: int
    row_start: int = 0
    transposed: bool = False
    role: str | None = None
    layer: int | None = None
    run: int = 0
    stride: int = 0
    expert: int | None = None

    @property
    def label(self) -> str:
        """``3.up`` when the role is known, else the tensor's name."""
        if self.role is None:
            return self.tensor
        return self.role if self.layer is None else f"{self.layer}.{self.role}"

    @property
    def size(self) -> int:
        """Number of values."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of a matrix, in canonical orientation; the stop is exclusive."""

    matrix: Matrix
    row_start: int
    row_stop: int
    column_start: int
    column_stop: int


def windows_of(block: Block, shape: Sequence[int]) -> list[Window]:
    """What is read of a tensor of that stored shape for a block; :func:`assemble` makes the block of it."""
    tensor, expert = block.matrix.tensor, block.matrix.expert
    found = []
    for piece in _pieces(block):
        rows, columns = _stored_sides(block, piece)
        if expert is None:
            found.append(Window(tensor, rows.start, rows.stop, columns.start, columns.stop))
            continue
        width = shape[-1]  # the matrix view of a stack has a row per expert
        if _is_wide(columns, width):
            found.append(Window(tensor, expert, expert + 1, rows.start * width, rows.stop * width))
        else:
            starts = (row * width + columns.start for row in rows)
            found += [Window(tensor, expert, expert + 1, start, start + len(columns)) for start in starts]
    return found


def assemble(block: Block, arrays: Sequence[FloatArray], shape: Sequence[int]) -> FloatArray:
    """The block in canonical orientation, from the values of its windows in order."""
    matrix = block.matrix
    step = matrix.stride if matrix.run == 1 else 1
    left = iter(arrays)
    found = []
    for piece in _pieces(block):
        values = next(left)
        if matrix.expert is not None:
            rows, columns = _stored_sides(block, piece)
            if _is_wide(columns, shape[-1]):
                values = values.reshape(len(rows), shape[-1])[:, columns.start : columns.stop]
            else:
                values = np.concatenate([values, *islice(left, len(rows) - 1)])
        values = values.T if matrix.transposed else values
        found.append(values[::step] if step > 1 else values)
    return found[0] if len(found) == 1 else np.concatenate(found)


def _stored_sides(block: Block, piece: tuple[int, int]) -> tuple[range, range]:
    """Rows and columns as they are stored."""
    sides = range(*piece), range(block.column_start, block.column_stop)
    return sides[::-1] if block.matrix.transposed else sides


def _is_wide(columns: range, width: int) -> bool:
    """Whether whole rows of an expert are read for some of their columns: one piece in place of many."""
    return WIDE * len(columns) >= width


def _pieces(block: Block) -> list[tuple[int, int]]:
    """Rows of the tensor that hold the rows of the block: (first, one past last) of each run.

    Runs of single rows are read in one piece, the rows of others between them thrown away.
    """
    matrix, start, stop = block.matrix, block.row_start, block.row_stop
    if matrix.run < 1 or start >= stop:
        return [(matrix.row_start + start, matrix.row_start + stop)]
    if matrix.run == 1:
        return [(matrix.row_start + start * matrix.stride, matrix.row_start + (stop - 1) * matrix.stride + 1)]
    found = []
    for number in range(start // matrix.run, (stop - 1) // matrix.run + 1):
        first = matrix.row_start + number * matrix.stride
        inside = max(start - number * matrix.run, 0), min(stop - number * matrix.run, matrix.run)
        found.append((first + inside[0], first + inside[1]))
    return found


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that is a matrix, or a stack of them, in canonical orientation."""

    info: TensorInfo
    role: Role | None
    rows: int
    columns: int
    transposed: bool
    experts: int = 0

    @property
    def in_experts(self) -> bool:
        """Whether it belongs to one expert of several."""
        return self.experts > 0 or (self.role is not None and self.role.expert is not None)


def list_matrices(tensors: Sequence[TensorInfo], roles: Roles, heads: int | None = None) -> Iterator[Matrix]:
    """Every tensor that is large enough, fused ones split, in the order given. ``heads``: of the main tower."""
    stored = list(stored_matrices(tensors, roles))
    widths = widths_of(stored)
    for each in stored:
        if each.role is None:
            yield from _matrices(each, [Part(0, each.rows)])
            continue
        scheme, stack = roles.scheme_of(each.role.name), each.role.stack
        layout = scheme.fused.get("+".join(each.role.parts), "stacked") if scheme else "stacked"
        known = (widths.get((stack, False, "o")), widths.get((stack, each.in_experts, "down")))
        parts = split(each.role.parts, layout, (each.rows, each.columns), known, None if stack else heads)
        yield from _matrices(each, parts)


def _matrices(each: Stored, parts: Sequence[Part]) -> Iterator[Matrix]:
    role = each.role
    experts: Sequence[int | None] = range(each.experts) if each.experts else (None,)
    for expert in experts:
        for part in parts:
            if part.rows < MIN_ROWS or each.columns < MIN_COLUMNS:
                continue
            number = expert if role is None or role.expert is None else role.expert
            name = None if role is None else of_expert(role.stack, part.name, number)
            layer = role.layer if role else None
            shape = (part.rows, each.columns, part.start, each.transposed)
            yield Matrix(each.info.name, *shape, name, layer, part.run, part.stride, expert)


def stored_matrices(tensors: Sequence[TensorInfo], roles: Roles) -> Iterator[Stored]:
    """Every tensor of numbers as rows and columns."""
    turned = _turned(tensors, roles)
    hidden = _hidden(tensors, roles)
    room = MAX_EXPERTS
    for info in tensors:
        if info.dtype in _INTEGERS and not info.is_quantised:
            continue
        role = roles.by_tensor.get(info.name)
        transposed = role.transposed if role else False
        if role is not None and is_stack(info, role) and info.shape[0] <= room:
            room -= info.shape[0]
            scheme = roles.scheme_of(role.name)
            by_name = scheme is not None and scheme.transposed_experts
            yield _stack(info, role, hidden.get(role.stack, set()), by_name)
            continue
        transposed = _is_in_out(info, transposed)
        if role and (role.stack, role.layer is not None) in turned:
            transposed = not transposed
        rows, columns = info.matrix_shape
        if transposed:
            rows, columns = columns, rows
        yield Stored(info, role, rows, columns, transposed)


def _is_in_out(info: TensorInfo, by_name: bool) -> bool:
    """Whether rows are inputs: as the file says, else as the name does."""
    return by_name if info.layout is Layout.UNKNOWN else info.layout is Layout.IN_OUT


def is_stack(info: TensorInfo, role: Role) -> bool:
    """Whether the first axis of a tensor counts experts."""
    return len(info.shape) == 3 and FFN_ROLES.issuperset(role.parts)


def _stack(info: TensorInfo, role: Role, hidden: set[int], transposed: bool) -> Stored:
    """A stack of experts: which way round they stand is told by the hidden width, else by the scheme."""
    experts, rows, columns = info.shape
    inside = rows if "down" in role.parts else columns
    across = columns if "down" in role.parts else rows
    transposed = _is_in_out(info, transposed)
    if rows != columns and (hidden == {inside} or hidden == {across}):
        transposed = hidden == {across}
    if transposed:
        rows, columns = columns, rows
    return Stored(info, role, rows, columns, transposed, experts)


def widths_of(stored: Sequence[Stored]) -> Mapping[tuple[str, bool, str], int]:
    """Columns of the o and down matrices of each stack: the rows of q, and of up.

    Where a gate stands apart, up holds no other: nothing is said of it.
    """
    found: dict[tuple[str, bool, str], int] = {}
    gated = set()
    for each in stored:
        if each.role is not None and len(each.role.parts) == 1:
            key = (each.role.stack, each.in_experts)
            if each.role.parts[0] in ("o", "down"):
                found.setdefault((*key, each.role.parts[0]), each.columns)
            elif each.role.parts[0] == "gate":
                gated.add((*key, "down"))
    return {key: width for key, width in found.items() if key not in gated}


def _hidden(tensors: Sequence[TensorInfo], roles: Roles) -> Mapping[str, set[int]]:
    """Sizes of the norm gains of each stack: its hidden width."""
    found: dict[str, set[int]] = {}
    for info in tensors:
        role = roles.by_tensor.get(info.name)
        if role is not None and len(info.shape) == 1 and role.parts[-1] in _NORMS:
            found.setdefault(role.stack, set()).add(info.size)
    return found


def _turned(tensors: Sequence[TensorInfo], roles: Roles) -> frozenset[tuple[str, bool]]:
    """Which matrices stand the other way round than file and names say: (stack, in layers or outside).

    The norm gains tell the hidden width of a stack; rows of an FFN input matrix and of a token table have it.
    (Flax stores its kernels input by output, but those of GPT-2 the other way round.)
    """
    shapes: dict[tuple[str, str], tuple[int, int]] = {}
    for info in tensors:
        role = roles.by_tensor.get(info.name)
        if role is not None and len(info.shape) == 2:
            turned = _is_in_out(info, role.transposed)
            rows, columns = info.shape[::-1] if turned else info.shape
            shapes.setdefault((role.stack, "+".join(role.parts)), (rows, columns))
    found = set()
    for stack, sizes in _hidden(tensors, roles).items():
        for inside, last in ((True, "up"), (False, "embed")):
            rows, columns = shapes.get((stack, last), (0, 0))
            if sizes == {rows} and columns != rows:
                found.add((stack, inside))
    return frozenset(found)
