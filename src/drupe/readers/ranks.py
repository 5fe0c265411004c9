"""Checkpoints that were saved in tensor-parallel pieces: the ranks joined to the tensors of one model.

Meta writes ``consolidated.00.pth``, ``consolidated.01.pth``, ... (github.com/meta-llama/llama, ``generation.py``),
Megatron ``mp_rank_00/...``, ``mp_rank_01/...`` (Shoeybi et al. 2019, arXiv:1909.08053, section 3): every rank holds
every name; a matrix whose outputs are split is a stack of rows, one whose inputs are split a row of columns, and the
rest (norms, routers) is in every rank alike. Which it is, the shapes say: the hidden width is the extent that stays
whole. Where they cannot, the name does; what is alike in all ranks is told by its first values. A rank without the
others, and pipeline stages, are refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from drupe.errors import FormatError, UnsupportedError
from drupe.readers.interface import FloatArray, TensorInfo, WeightFile, Window, check_shape
from drupe.readers.wrapping import Wrapping

_RANK = re.compile(
    r"(?:.*/)?(?:consolidated\.(\d\d)\.(?:pth|safetensors)|mp_rank_(\d\d)/[^/]+\.(?:pt|pth|bin))"
)
_NUMBER = r"\d{2,3}(?:_(?:pp_rank_)?\d{3})?"
"""Of a rank, and of its pipeline stage."""
_ANY_RANK = re.compile(rf"(?:(?:^|[/_])(?:mp|tp)_rank_|(?:^|/)consolidated\.)({_NUMBER})(?=[/_.])")
"""Also of NeMo and DeepSpeed, which are not joined."""
_BESIDE = re.compile(r"(?:^|/)(?:optimizer|optim|distrib_optim|rng_state|scheduler)[^/]*$")
_INPUTS_SPLIT = re.compile(
    r"(^|[._])(wo|w2|o_proj|down_proj|dense_4h_to_h|linear_proj|linear_fc2|attention\.dense)\."
)
MAX_RANKS = 64
SAMPLE = 64
"""Values of a tensor that are compared between the ranks."""


class Axis(Enum):
    """How the pieces of a tensor are put together."""

    ROWS = "rows"
    COLUMNS = "columns"
    SAME = "same"


@dataclass(frozen=True, slots=True)
class RankedFile(Wrapping):
    """The ranks of one model as one file."""

    ranks: Sequence[WeightFile]
    tensors: Mapping[str, TensorInfo]
    axes: Mapping[str, Axis]

    @property
    def inside(self) -> Sequence[WeightFile]:
        """The pieces."""
        return self.ranks

    def read(self, windows: Sequence[Window]) -> list[FloatArray]:
        """Each rank is read once, for the parts of the windows that lie in it."""
        for window in windows:
            rows, columns = self.tensors[window.tensor].matrix_shape
            if not (0 <= window.row_start <= window.row_stop <= rows and window.column_stop <= columns):
                raise FormatError(f"{window} lies outside of {rows} x {columns}", where=window.tensor[:80])
        wanted = [list(self._pieces(window)) for window in windows]
        found: dict[tuple[int, int], FloatArray] = {}
        for rank, file in enumerate(self.ranks):
            asked = [
                (place, piece)
                for place, pieces in enumerate(wanted)
                for owner, piece in pieces
                if owner == rank
            ]
            values = file.read([piece for _, piece in asked]) if asked else []
            found.update({(k, rank): value for (k, _), value in zip(asked, values, strict=True)})
        return [
            _join([found[place, rank] for rank, _ in pieces], self.axes[windows[place].tensor])
            for place, pieces in enumerate(wanted)
        ]

    def _pieces(self, window: Window) -> Iterator[tuple[int, Window]]:
        """Rank and window in it, in the order in which they are put together; at least one, maybe empty."""
        axis = self.axes[window.tensor]
        if axis is Axis.SAME:
            yield 0, window
            return
        rows, columns = self.ranks[0].tensors[window.tensor].matrix_shape
        size = rows if axis is Axis.ROWS else columns
        start, stop = (
            (window.row_start, window.row_stop)
            if axis is Axis.ROWS
            else (window.column_start, window.column_stop)
        )
        first = min(start // size, len(self.ranks) - 1)
        for rank in range(first, max(-(-stop // size), first + 1)):
            low, high = max(start - rank * size, 0), min(stop - rank * size, size)
            if axis is Axis.ROWS:
                yield rank, replace(window, row_start=low, row_stop=high)
            else:
                yield rank, replace(window, column_start=low, column_stop=high)


def _join(values: Sequence[FloatArray], axis: Axis) -> FloatArray:
    return values[0] if len(values) == 1 else np.concatenate(values, axis=1 if axis is Axis.COLUMNS else 0)


def rank_files(names: Sequence[str]) -> list[str]:
    """The files of all ranks in order, when there are several; else none.

    >>> rank_files(["m/consolidated.01.pth", "m/consolidated.00.pth", "m/params.json"])
    ['m/consolidated.00.pth', 'm/consolidated.01.pth']
    """
    found = {}
    for name in names:
        match = _RANK.fullmatch(name)
        if match and not _BESIDE.search(name):
            found[name] = int(match[1] or match[2])
    ordered = sorted(found, key=lambda name: (found[name], name))
    if len(ordered) < 2:
        return []
    if [found[name] for name in ordered] != list(range(len(ordered))) or len(ordered) > MAX_RANKS:
        listed = ", ".join(ordered[:6])
        raise FormatError(f"the ranks are not numbered 0 to {len(ordered) - 1}: {listed}", where=ordered[0])
    return ordered


def join_ranks(ranks: Sequence[WeightFile]) -> RankedFile:
    """The tensors of one model. Raises FormatError when the ranks hold different names or shapes."""
    first = ranks[0].tensors
    for file in ranks[1:]:
        if file.tensors.keys() != first.keys():
            odd = sorted(file.tensors.keys() ^ first.keys())[0]
            raise FormatError(
                f"tensor {odd[:80]!r} is not in every rank", where=next(iter(first.values())).file
            )
        for name, info in file.tensors.items():
            if (info.shape, info.dtype) != (first[name].shape, first[name].dtype):
                raise FormatError(f"{name[:80]!r} has other shapes in other ranks", where=info.file)
    alike = _alike(ranks)
    width = _width(first.values())
    axes = {
        name: Axis.SAME if name in alike else _axis(info, width, len(ranks)) for name, info in first.items()
    }
    tensors = {name: _whole(info, axes[name], len(ranks)) for name, info in first.items()}
    return RankedFile(tuple(ranks), tensors, axes)


def _alike(ranks: Sequence[WeightFile]) -> frozenset[str]:
    """Tensors whose first values are the same in every rank."""
    windows = [
        Window(name, 0, min(1, info.matrix_shape[0]), 0, min(SAMPLE, info.matrix_shape[1]))
        for name, info in ranks[0].tensors.items()
    ]
    rows = [file.read(windows) for file in ranks]
    same = [
        all(np.array_equal(row[k], rows[0][k], equal_nan=True) for row in rows) for k in range(len(windows))
    ]
    return frozenset(window.tensor for window, equal in zip(windows, same, strict=True) if equal)


def _width(infos: Iterable[TensorInfo]) -> int:
    """The extent that most matrices share: the hidden width, which no rank splits in all of them."""
    votes = Counter(extent for info in infos if len(info.shape) == 2 for extent in set(info.shape))
    return max(votes, key=lambda extent: (votes[extent], extent)) if votes else 0


def _axis(info: TensorInfo, width: int, ranks: int) -> Axis:
    """Along which axis the pieces lie. Raises UnsupportedError when neither shapes nor the name tell."""
    if len(info.shape) < 2:
        return Axis.COLUMNS  # a bias of split outputs: one longer row
    rows, columns = info.matrix_shape
    if len(info.shape) > 2 or (rows == width and columns == width):
        return Axis.COLUMNS if _INPUTS_SPLIT.search(info.name) else Axis.ROWS
    if columns == width:
        return Axis.ROWS
    if rows == width or columns * ranks == width:
        return Axis.COLUMNS
    raise UnsupportedError(
        f"how the ranks split {info.name[:80]!r} {info.shape} (hidden width {width})",
        where=info.file,
        hint="join the ranks with the program that saved them",
    )


def _whole(info: TensorInfo, axis: Axis, ranks: int) -> TensorInfo:
    if axis is Axis.SAME:
        return info
    place = 0 if axis is Axis.ROWS or len(info.shape) < 2 else 1
    shape = tuple(extent * ranks if k == place else extent for k, extent in enumerate(info.shape))
    return replace(info, shape=check_shape(shape, info.file))


def refuse_slices(opened: Iterable[str], files: Collection[str]) -> None:
    """Raise UnsupportedError when an opened file is one rank of several that lie among ``files``."""
    for name in opened:
        rank = _ANY_RANK.search(name)
        if rank is None:
            continue
        shape = re.compile(re.escape(name[: rank.start(1)]) + _NUMBER + re.escape(name[rank.end(1) :]))
        ranks = sorted(other for other in files if shape.fullmatch(other))
        if len(ranks) > 1:
            raise UnsupportedError(
                f"each of {len(ranks)} files holds a slice of every tensor (tensor parallelism)",
                where=", ".join(ranks[:3]),
                hint="give the folder of all ranks, or join them with the program that wrote them",
            )
