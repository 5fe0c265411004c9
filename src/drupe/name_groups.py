"""Lists of tensors, compactly and portably: names that differ in numbers only are one group.

291 tensors of a Llama take about 1.5 KB. Expanding is bounded: the text may come from a stranger.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from math import prod
from typing import NamedTuple

from drupe.errors import FormatError, LimitError
from drupe.readers.interface import MAX_TENSORS, TensorInfo

_NUMBER = re.compile(r"(?<![A-Za-z0-9])(?:0|[1-9][0-9]{0,8})(?![A-Za-z0-9])")
_RUNS = re.compile(r"[0-9]{1,9}(-[0-9]{1,9})?([+,;][0-9]{1,9}(-[0-9]{1,9})?)*")

MAX_NUMBERS = 16
"""Numbers of a name that count; real names have at most five. Further ones are text."""

Indices = tuple[int, ...]


class Named(NamedTuple):
    """A tensor as this signal sees it."""

    name: str
    shape: tuple[int, ...]
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class NameGroup:
    """Names that differ in numbers only. ``runs``: "0-31", by position "0-31,0-7", several "0-3+8-9;..."."""

    template: str
    runs: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def count(self) -> int:
        """How many names, without building one. Raises FormatError on runs from a stranger."""
        return sum(size for _, size in _terms(self.runs)) if self.runs else 1

    @property
    def indices(self) -> tuple[Indices, ...]:
        """The numbers of each name, sorted. Raises FormatError or LimitError on runs from a stranger."""
        return tuple(sorted(_read_runs(self.runs)))


def template_of(name: str) -> tuple[str, Indices]:
    """The name with its free-standing numbers replaced by ``{}``, and the numbers.

    >>> template_of("model.layers.12.mlp.fc1.weight")
    ('model.layers.{}.mlp.fc1.weight', (12,))
    """
    escaped = name.replace("\\", "\\\\").replace("{", "\\{")
    numbers = islice(_NUMBER.finditer(escaped), MAX_NUMBERS)
    return _NUMBER.sub("{}", escaped, MAX_NUMBERS), tuple(int(number[0]) for number in numbers)


def fill(template: str, indices: Indices) -> str:
    """The name that :func:`template_of` took apart. Raises FormatError when the numbers do not fit."""
    parts = re.split(r"(?<!\\)((?:\\\\)*)\{\}", template)
    if len(parts) != 2 * len(indices) + 1:
        raise FormatError("numbers do not fit the name", where=template[:100])
    filled = parts[0]
    for number, slashes, rest in zip(indices, parts[1::2], parts[2::2], strict=True):
        filled += f"{slashes}{number}{rest}"
    return re.sub(r"\\(.)", r"\1", filled, flags=re.DOTALL)


def group_names(tensors: Iterable[TensorInfo | Named]) -> tuple[NameGroup, ...]:
    """The tensors by pattern, shape and dtype, in natural order of their first names."""
    groups: dict[tuple[str, tuple[int, ...], str], list[Indices]] = defaultdict(list)
    for tensor in tensors:
        template, indices = template_of(tensor.name)
        groups[template, tensor.shape, tensor.dtype].append(indices)
    return tuple(
        NameGroup(template, _write_runs(sorted(set(indices))), shape, dtype)
        for (template, shape, dtype), indices in sorted(groups.items())
    )


def expand(groups: Iterable[NameGroup]) -> list[Named]:
    """The tensors of the groups, in natural order (numbers by value). Raises LimitError when too many."""
    found: list[tuple[str, Indices, Named]] = []
    for group in groups:
        for indices in group.indices:
            found.append(
                (group.template, indices, Named(fill(group.template, indices), group.shape, group.dtype))
            )
        if len(found) > MAX_TENSORS:
            raise LimitError("tensors in the groups of names", limit=MAX_TENSORS, actual=len(found))
    return [
        named for *_, named in sorted(found, key=lambda entry: (_natural(entry[0], entry[1]), entry[2].shape))
    ]


def _natural(template: str, indices: Indices) -> tuple[tuple[str, int], ...]:
    return tuple(zip(template.split("{}"), (*indices, -1), strict=False))


def _write_runs(indices: Sequence[Indices]) -> str:
    if not indices[0]:
        return ""
    columns = [sorted(set(column)) for column in zip(*indices, strict=True)]
    if prod(len(column) for column in columns) == len(indices):
        return ",".join(map(_ranges, columns))
    last: dict[Indices, list[int]] = defaultdict(list)
    for entry in indices:
        last[entry[:-1]].append(entry[-1])
    return ";".join(",".join([*map(str, head), _ranges(tail)]) for head, tail in last.items())


def _ranges(values: Sequence[int]) -> str:
    """Sorted numbers as ranges.

    >>> _ranges([0, 1, 2, 5])
    '0-2+5'
    """
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return "+".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _read_runs(runs: str) -> Iterator[Indices]:
    if not runs:
        yield ()
        return
    room = MAX_TENSORS
    for columns, size in _terms(runs):
        room -= size
        if room < 0:
            raise LimitError("tensors in a group of names", limit=MAX_TENSORS, actual=MAX_TENSORS - room)
        yield from product(*([value for part in column for value in part] for column in columns))


def _terms(runs: str) -> Iterator[tuple[list[list[range]], int]]:
    """The columns of each term, and how many combinations they have."""
    if len(runs) > 1 << 20 or not _RUNS.fullmatch(runs):
        raise FormatError(f"not a list of numbers: {runs[:60]!r}", where="name group")
    for term in runs.split(";"):
        columns = [[_range(part) for part in column.split("+")] for column in term.split(",")]
        yield columns, prod(sum(len(part) for part in column) for column in columns)


def _range(text: str) -> range:
    low, _, high = text.partition("-")
    if int(high or low) < int(low):
        raise FormatError(f"the range {text} is empty", where="name group")
    return range(int(low), int(high or low) + 1)
