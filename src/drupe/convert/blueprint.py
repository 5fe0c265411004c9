"""What the result of a conversion is to look like: names and layout of another model, or of a shipped scheme.

Both are the same thing: a list of tensors with roles, and a configuration. A shipped scheme is a tiny model of its
family as ``transformers`` saves it (``data/blueprints.json``: names, shapes, configuration; no values).
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from drupe.convert.pieces import Inventory, Piece, inventory
from drupe.errors import UsageError
from drupe.model import Model
from drupe.name_groups import fill, template_of
from drupe.readers.config import Config, config_of
from drupe.readers.interface import Absent, Layout, TensorInfo
from drupe.readers.strict_json import Json
from drupe.roles import Roles, assign_roles

_RANGE = re.compile(r"\{(\d+)-(\d+)\}")


@dataclass(frozen=True, slots=True)
class Slot:
    """One kind of tensor of the target: its names, and which roles lie in it how.

    ``layer`` and ``expert``: which number of the template counts them. ``keys``: the roles of layer 0, in order.
    """

    template: str
    indices: tuple[int, ...]
    layer: int | None
    expert: int | None
    roles: tuple[str, ...]
    layout: str
    transposed: bool
    experts: bool
    rank: int
    everywhere: bool
    """Every layer of its tower has it."""

    def name(self, layer: int | None, expert: int | None) -> str:
        """The tensor of that layer and expert."""
        numbers = list(self.indices)
        if self.layer is not None and layer is not None:
            numbers[self.layer] = layer
        if self.expert is not None and expert is not None:
            numbers[self.expert] = expert
        return fill(self.template, tuple(numbers))


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A target. ``title``: what the user called it; ``first``: number of its first layer in each tower."""

    title: str
    slots: tuple[Slot, ...]
    first: Mapping[str, int]
    config: Config | None
    roles: Roles
    tensors: Mapping[str, TensorInfo]
    parts: Inventory


def of_model(model: Model, title: str) -> Blueprint:
    """The names and layout of a model that is at hand."""
    assert not isinstance(model.weights, Absent)
    config = None if isinstance(model.config, Absent) else model.config
    return _blueprint(title, list(model.weights.tensors.values()), model.roles, config)


def of_scheme(name: str) -> Blueprint:
    """A shipped scheme. Raises UsageError when there is none of that name."""
    table = _shipped()
    entry = table.get(name)
    if entry is None:
        raise UsageError(f"no scheme is called {name[:60]!r}", hint=f"there are {', '.join(sorted(table))}")
    raw = entry["config"]
    assert isinstance(raw, dict)
    config = config_of(f"scheme {name}", raw)
    lines = entry["tensors"]
    lines = table[lines]["tensors"] if isinstance(lines, str) else lines
    assert isinstance(lines, list)
    tensors = [info for line in lines for info in _expand(str(line))]
    return _blueprint(name, tensors, assign_roles(tensors, _kinds(config)), config)


def names() -> tuple[str, ...]:
    """The shipped schemes."""
    return tuple(sorted(_shipped()))


@cache
def _shipped() -> Mapping[str, Mapping[str, Json]]:
    file = resources.files("drupe") / "data" / "blueprints.json"
    found: Mapping[str, Mapping[str, Json]] = json.loads(file.read_text(encoding="utf-8"))["blueprints"]
    return found


def _kinds(config: Config) -> tuple[str, ...]:
    return (config.model_type,) if config.model_type else ()


def _expand(line: str) -> Iterator[TensorInfo]:
    """The tensors of ``h.{0-2}.mlp.weight 96x64``."""
    pattern, _, size = line.partition(" ")
    shape = tuple(int(extent) for extent in size.split("x") if extent)
    spans = [range(int(low), int(high) + 1) for low, high in _RANGE.findall(pattern)]
    for numbers in itertools.product(*spans):
        filled = iter(numbers)
        name = _RANGE.sub(lambda _, left=filled: str(next(left)), pattern)  # type: ignore[misc]
        yield TensorInfo(name, shape, "F32", "", Layout.UNKNOWN)


def _blueprint(title: str, tensors: Sequence[TensorInfo], roles: Roles, config: Config | None) -> Blueprint:
    heads = config.canonical.get("num_attention_heads") if config else None
    parts = inventory(tensors, roles, heads if isinstance(heads, int) else None)
    held: dict[str, list[Piece]] = defaultdict(list)
    for piece in parts.pieces.values():
        held[piece.tensor].append(piece)
    kinds: dict[tuple[str, tuple[str, ...], bool], list[str]] = defaultdict(list)
    for tensor, pieces in held.items():
        role = roles.by_tensor[tensor]
        plain = tuple(_plain(piece, role.expert) for piece in pieces if piece.expert in (None, 0))
        kinds[template_of(tensor)[0], plain, pieces[0].transposed].append(tensor)
    layers = layers_of(parts)
    slots = [_slot(tensors, held, roles, parts, layers) for tensors in kinds.values()]
    first = {tower: min(numbers) for tower, numbers in layers.items()}
    return Blueprint(title, tuple(slots), first, config, roles, {info.name: info for info in tensors}, parts)


def layers_of(parts: Inventory) -> Mapping[str, set[int]]:
    """The layers of each tower."""
    found: dict[str, set[int]] = defaultdict(set)
    for role, layer in parts.pieces:
        if layer is not None:
            found[tower_of(role)].add(layer)
    return found


def tower_of(role: str) -> str:
    """What stands before the role itself; experts are no tower.

    >>> tower_of("encoder.experts.3.up"), tower_of("shared.up"), tower_of("q")
    ('encoder', 'shared', '')
    """
    return role.rpartition(".")[0].partition("experts.")[0].rstrip(".")


def _plain(piece: Piece, expert: int | None) -> str:
    """The role without the number of its expert."""
    number = piece.expert if expert is None else expert
    return piece.key[0] if number is None else piece.key[0].replace(f"experts.{number}.", "experts.*.")


def _slot(
    tensors: Sequence[str],
    held: Mapping[str, list[Piece]],
    roles: Roles,
    parts: Inventory,
    layers: Mapping[str, set[int]],
) -> Slot:
    """The common pattern of tensors of one template; their numbers say which of them counts what."""
    found = [(template_of(tensor)[1], roles.by_tensor[tensor]) for tensor in tensors]
    places = range(len(found[0][0]))
    layer = next((k for k in places if all(n[k] == r.layer for n, r in found)), None)
    expert = next((k for k in places if k != layer and all(n[k] == r.expert for n, r in found)), None)
    pieces = [piece for piece in held[tensors[0]] if piece.expert in (None, 0)]
    role = roles.by_tensor[tensors[0]]
    scheme = roles.scheme_of(role.name)
    parts_held = [piece.key[0].rpartition(".")[2].removesuffix("_bias") for piece in pieces]
    return Slot(
        template=template_of(tensors[0])[0],
        indices=found[0][0],
        layer=layer,
        expert=expert,
        roles=tuple(_plain(piece, role.expert) for piece in pieces),
        layout=scheme.fused.get("+".join(parts_held), "stacked") if scheme else "stacked",
        transposed=pieces[0].transposed,
        experts=pieces[0].expert is not None,
        rank=len(parts.shapes[tensors[0]]),
        everywhere={r.layer for _, r in found} == layers.get(tower_of(pieces[0].key[0]), set()),
    )
