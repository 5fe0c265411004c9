"""Which tensor of the target is made of what. Pure: names, shapes and roles in, a plan or the reasons out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from drupe.convert.blueprint import Blueprint, Slot, layers_of, tower_of
from drupe.convert.pieces import BUFFERS, Inventory, Key, Piece
from drupe.errors import UnsupportedError
from drupe.fused import Part, split
from drupe.readers.interface import TensorInfo

SHOWN = 8
"""Tensors that an error names."""
OPTIONAL = frozenset({"head", "pooler", "pooler_bias"})
"""Roles of a target that a model may lack: tied, or not trained."""


@dataclass(frozen=True, slots=True)
class Source:
    """A piece and the rows of the output that it becomes."""

    piece: Piece
    rows: Part
    expert: int | None = None
    """Its place on the first axis of a stack of experts."""


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of the result: ``shape`` as stored. A copy is one whole tensor, byte for byte."""

    name: str
    shape: tuple[int, ...]
    transposed: bool
    sources: tuple[Source, ...]
    is_copy: bool

    @property
    def tensors(self) -> tuple[str, ...]:
        """The stored tensors that it is made of."""
        return tuple(dict.fromkeys(source.piece.tensor for source in self.sources))


@dataclass(frozen=True, slots=True)
class Plan:
    """All outputs in the order of the model's tensors. ``dropped``: buffers that a model computes by itself."""

    outputs: tuple[Output, ...]
    dropped: tuple[str, ...]


def plan(
    model: Inventory,
    target: Blueprint,
    heads: int | None,
    named: Mapping[str, str] | None = None,
) -> Plan:
    """Put every piece into its slot. ``named``: tensors without a role -> their names in the target.

    Raises UnsupportedError when a piece has no place or a slot of the target stays empty.
    """
    named = named or {}
    outputs: list[Output] = [_renamed(name, named[name], model) for name in model.unnamed if name in named]
    unplaced = [name for name in model.unnamed if name not in named]
    left = dict(model.pieces)
    layers = layers_of(model)
    shift = {tower: target.first.get(tower, min(k)) - min(k) for tower, k in layers.items()}
    stock = _Stock(_shelf(model), layers, shift, heads)
    empty: list[str] = []
    taken = set(named.values())
    for slot in target.slots:
        made, lacking = _fill(slot, left, model, stock)
        lacking = [name for name in lacking if name not in taken]
        outputs += made
        empty += lacking
    dropped = [piece.tensor for key, piece in left.items() if _is_buffer(key)]
    unplaced += [piece.tensor for key, piece in left.items() if not _is_buffer(key)]
    _complain(list(dict.fromkeys(unplaced)), empty, target)
    order = {name: place for place, name in enumerate(model.shapes)}
    outputs.sort(key=lambda output: order[output.tensors[0]])
    return Plan(tuple(outputs), tuple(dict.fromkeys(dropped)))


def _complain(unplaced: list[str], empty: list[str], target: Blueprint) -> None:
    for tensors, what in (
        (unplaced, "have no place in"),
        (sorted(set(empty)), "are asked for by"),
    ):
        if tensors:
            shown = ", ".join(tensor[:80] for tensor in tensors[:SHOWN])
            more = f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else ""
            problem = f"{len(tensors)} tensors {what} {target.title}: {shown}{more}"
            missing = "" if tensors is unplaced else ", which the model does not have"
            raise UnsupportedError(problem + missing, hint="choose a source or scheme with the same modules")


def _is_buffer(key: Key) -> bool:
    return key[0].rpartition(".")[2] in BUFFERS


def _renamed(name: str, new: str, model: Inventory) -> Output:
    shape = model.shapes[name]
    piece = Piece((name, None), name, Part(0, shape[0] if shape else 1, name=name), 0, False)
    return Output(new, shape, False, (Source(piece, piece.part),), True)


Place = tuple[int | None, int | None]
"""Layer and expert."""
_Shelf = Mapping[str, Mapping[int | None, Mapping[int | None, Piece]]]
"""Role without its expert -> layer -> expert -> piece."""


@dataclass(frozen=True, slots=True)
class _Stock:
    """What the model has. ``shift``: added to a layer's number, by tower, since some count from 1."""

    shelf: _Shelf
    layers: Mapping[str, set[int]]
    shift: Mapping[str, int]
    heads: int | None


def _shelf(model: Inventory) -> _Shelf:
    found: dict[str, dict[int | None, dict[int | None, Piece]]] = defaultdict(lambda: defaultdict(dict))
    for (role, layer), piece in model.pieces.items():
        plain, expert = _without_expert(role)
        found[plain][layer][expert] = piece
    return found


def _fill(
    slot: Slot, left: dict[Key, Piece], model: Inventory, stock: _Stock
) -> tuple[list[Output], list[str]]:
    """The tensors of one slot; takes their pieces out of ``left``. Second: names that cannot be filled."""
    outputs: list[Output] = []
    lacking: list[str] = []
    for (layer, expert), pieces in _wanted(slot, stock):
        number = None if layer is None else layer + stock.shift.get(tower_of(slot.roles[0]), 0)
        name = slot.name(number, expert)
        found = [piece for piece in pieces if piece is not None]
        if len(found) < len(pieces):
            lacking.append(name)
        elif all(piece.key in left for piece in found):  # else the target keeps it twice
            outputs.append(_output(slot, name, found, model, stock.heads))
            for piece in found:
                del left[piece.key]
    needed = not OPTIONAL.issuperset(slot.roles) and not BUFFERS.issuperset(slot.roles)
    return outputs, lacking if outputs or needed else []


def _wanted(slot: Slot, stock: _Stock) -> Iterator[tuple[Place, list[Piece | None]]]:
    """For every layer and expert of the model: the pieces that the slot wants."""
    shelves = [stock.shelf.get(role, {}) for role in slot.roles]
    seen = {layer for shelf in shelves for layer in shelf}
    if not seen:
        yield (None, None), [None for _ in slot.roles]
    needed = stock.layers.get(tower_of(slot.roles[0]), set()) if seen and slot.everywhere else set()
    for layer in _in_order(seen | needed):
        experts = _in_order({expert for shelf in shelves for expert in shelf.get(layer, {})} or {None})
        table = [[shelf.get(layer, {}).get(expert) for shelf in shelves] for expert in experts]
        if slot.experts:
            yield (layer, None), [piece for row in table for piece in row]
        else:
            yield from (((layer, expert), row) for expert, row in zip(experts, table, strict=True))


def _in_order(numbers: Iterable[int | None]) -> list[int | None]:
    return sorted(numbers, key=lambda number: -1 if number is None else number)


def _without_expert(role: str) -> tuple[str, int | None]:
    """``experts.3.up`` -> ``experts.*.up`` and 3."""
    before, mark, rest = role.partition("experts.")
    number, dot, last = rest.partition(".")
    return (f"{before}experts.*.{last}", int(number)) if mark and dot and number.isdecimal() else (role, None)


def _output(slot: Slot, name: str, pieces: list[Piece], model: Inventory, heads: int | None) -> Output:
    """One tensor: the rows of each piece in it, by the target's layout."""
    group = pieces[: len(slot.roles)]
    stored = model.shapes[pieces[0].tensor]
    if len(pieces) == 1 and pieces[0].whole and not slot.experts:
        piece = pieces[0]
        same = piece.transposed == slot.transposed or len(stored) != 2
        source = Source(piece, Part(0, piece.part.rows, name=piece.part.name))
        return Output(name, stored if same else stored[::-1], slot.transposed, (source,), same)
    parts = _rows(slot, name, group, heads)
    rows = sum(piece.part.rows for piece in group)
    columns = {piece.columns for piece in pieces}
    if len(columns) > 1:
        raise UnsupportedError(f"{name}: its parts have {sorted(columns)} columns", where=group[0].tensor)
    turned = slot.transposed and slot.rank > 1
    width = columns.pop()
    shape: tuple[int, ...] = (width, rows) if turned else (rows, width) if slot.rank > 1 else (rows,)
    sources = [
        Source(piece, parts[place % len(group)], place // len(group) if slot.experts else None)
        for place, piece in enumerate(pieces)
    ]
    if slot.experts:
        shape = (len(pieces) // len(group), *shape)
    return Output(name, shape, turned, tuple(sources), _is_copy(sources, shape, turned, stored))


def _is_copy(sources: list[Source], shape: tuple[int, ...], turned: bool, stored: tuple[int, ...]) -> bool:
    """Whether every part lies in one stored tensor just as it will lie in the new one."""
    return shape == stored and all(
        source.piece.tensor == sources[0].piece.tensor
        and source.piece.transposed == turned
        and replace(source.piece.part, name="") == replace(source.rows, name="")
        and source.piece.expert == source.expert
        for source in sources
    )


def _rows(slot: Slot, name: str, group: list[Piece], heads: int | None) -> list[Part]:
    """The rows of each piece of one fused tensor."""
    names = [_part(role) for role in slot.roles]
    rows = sum(piece.part.rows for piece in group)
    parts = split(names, slot.layout, (rows, group[0].columns), (group[0].part.rows, None), heads)
    if [part.rows for part in parts] != [piece.part.rows for piece in group]:
        heights = ", ".join(f"{piece.key[0]} {piece.part.rows}" for piece in group)
        raise UnsupportedError(
            f"{name} cannot hold {heights} in the layout {slot.layout!r}", where=group[0].tensor
        )
    return parts


def _part(role: str) -> str:
    return role.rpartition(".")[2].removesuffix("_bias")


def check_dtypes(made: Plan, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise UnsupportedError when one tensor would hold two types."""
    for output in made.outputs:
        found = {tensors[tensor].dtype for tensor in output.tensors}
        if len(found) > 1:
            raise UnsupportedError(
                f"{output.name} would hold {' and '.join(sorted(found))}", where=output.tensors[0]
            )
