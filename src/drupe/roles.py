"""Tensor name -> role and layer, from ``data/architectures`` and, for unknown names, inferred.

A known scheme is data. Unknown names are grouped by their pattern (numbers replaced): a pattern that repeats
with one shape over at least two numbers is a layer. What stays opaque is compared by shape and content.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from drupe.readers.interface import Layout, TensorInfo

LAYER_ROLES = frozenset(
    {"q", "k", "v", "o", "gate", "up", "down", "cross_q", "cross_k", "cross_v", "cross_o"}
)
TABLE_ROLES = frozenset({"embed", "head"})
"""One row per token."""
_NUMBER = re.compile(r"(?<![A-Za-z0-9])\d+(?![A-Za-z0-9])")
MAX_COMPONENTS = 64
"""Of a name that a scheme may know; real names have at most about 12."""
MIN_COVERAGE = 0.5
"""Share of a model's tensors that a scheme must explain before its roles are used."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """One naming scheme: pattern -> role, and how it stores its matrices."""

    name: str
    title: str
    roles: Mapping[str, str]
    transposed: frozenset[str]
    norm_after: bool
    is_variant: bool
    """Extends another scheme; chosen only when it explains more tensors than that one."""


@dataclass(frozen=True, slots=True)
class Role:
    """What a tensor is. ``layer`` is None outside the repeated blocks; ``expert`` in mixtures only."""

    name: str
    layer: int | None = None
    expert: int | None = None
    transposed: bool = False

    @property
    def label(self) -> str:
        """Readable identity, such as ``3.up`` or ``embed``."""
        place = "" if self.layer is None else f"{self.layer}."
        return f"{place}{self.name}" + ("" if self.expert is None else f".{self.expert}")


def is_layer_role(role: str | None) -> bool:
    """Whether a role is a learned matrix of a layer: no position table, buffer or unknown pattern."""
    return role is not None and role.rpartition(".")[2] in LAYER_ROLES


def is_table_role(role: str | None) -> bool:
    """Whether a role is a table of tokens."""
    return role is not None and role.rpartition(".")[2] in TABLE_ROLES


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles of a model. ``scheme`` is None when they were inferred; unnamed tensors are absent."""

    scheme: Scheme | None
    by_tensor: Mapping[str, Role]
    layers: int


@cache
def schemes() -> tuple[Scheme, ...]:
    """Every scheme in ``data/architectures``, ``extends`` resolved. Raises ValueError on bad data."""
    tables = {}
    for file in (resources.files("drupe") / "data" / "architectures").iterdir():
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        if "roles" in table:
            tables[str(table["name"])] = table
    return tuple(_scheme(table, tables) for _, table in sorted(tables.items()))


def _scheme(table: Mapping[str, object], tables: Mapping[str, Mapping[str, object]]) -> Scheme:
    unknown = set(table) - {"name", "title", "provenance", "extends", "transposed", "norm_after", "roles"}
    if unknown or "provenance" not in table:
        raise ValueError(f"scheme {table.get('name')}: unknown keys {unknown} or no provenance")
    base = tables[str(table["extends"])] if "extends" in table else {}
    roles = {**_table(base.get("roles", {})), **_table(table["roles"])}
    if "extends" in table:  # a role that the extension names anew replaces the inherited name
        own = _table(table["roles"])
        roles = {
            pattern: role for pattern, role in roles.items() if pattern in own or role not in own.values()
        }
    transposed = table.get("transposed", base.get("transposed", []))
    assert isinstance(transposed, list)
    return Scheme(
        name=str(table["name"]),
        title=str(table["title"]),
        roles=roles,
        transposed=frozenset(str(role) for role in transposed),
        norm_after=bool(table.get("norm_after", base.get("norm_after", False))),
        is_variant="extends" in table,
    )


def _table(value: object) -> dict[str, str]:
    assert isinstance(value, dict)
    return {str(key): str(item) for key, item in value.items()}


@cache
def _hints() -> tuple[tuple[re.Pattern[str], str], ...]:
    file = resources.files("drupe") / "data" / "architectures" / "hints.toml"
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    return tuple((re.compile(pattern), role) for pattern, role in table["hints"])


def split_name(name: str) -> tuple[str, tuple[int, ...]]:
    """A name as pattern and numbers.

    >>> split_name("model.layers.3.mlp.up_proj.weight")
    ('model.layers.{}.mlp.up_proj.weight', (3,))
    """
    numbers = tuple(int(number) for number in _NUMBER.findall(name))
    return _NUMBER.sub("{}", name), numbers


def assign_roles(tensors: Iterable[TensorInfo]) -> Roles:
    """The roles of all tensors that a scheme explains, else the inferred ones."""
    infos = list(tensors)
    forms = {info.name: _forms(info.name) for info in infos}
    matches = [(scheme, _match(scheme, forms)) for scheme in schemes()]
    scheme, found = max(matches, key=lambda match: (len(match[1]), not match[0].is_variant))
    if not found or len(found) < MIN_COVERAGE * len(infos):
        return _roles(None, _infer(infos))
    rest = [info for info in infos if info.name not in found]
    return _roles(scheme, {**_infer(rest), **found})


def _roles(scheme: Scheme | None, by_tensor: dict[str, Role]) -> Roles:
    layers = {role.layer for role in by_tensor.values() if role.layer is not None}
    return Roles(scheme, by_tensor, len(layers))


@dataclass(frozen=True, slots=True)
class _Form:
    """A name without its first components; ``pattern`` has its first number replaced, which is the layer."""

    prefix: str
    rest: str
    pattern: str | None
    layer: int | None


def _forms(name: str) -> list[_Form]:
    """The name with 0, 1, 2 ... leading components removed. None of a name longer than any real one."""
    parts = name.split(".")
    if len(parts) > MAX_COMPONENTS:
        return []
    found = []
    for cut in range(min(len(parts), 6)):
        rest = parts[cut:]
        prefix = ".".join(parts[:cut])
        place = next((k for k, part in enumerate(rest) if part.isdecimal()), None)
        if place is None or len(rest[place]) > 5:
            found.append(_Form(prefix, ".".join(rest), None, None))
            continue
        pattern = ".".join([*rest[:place], "{}", *rest[place + 1 :]])
        found.append(_Form(prefix, ".".join(rest), pattern, int(rest[place])))
    return found


def _match(scheme: Scheme, forms: Mapping[str, Sequence[_Form]]) -> dict[str, Role]:
    """Names that the scheme explains, all below one common prefix (or a parent of it)."""
    found: dict[str, tuple[str, Role]] = {}
    for name, variants in forms.items():
        hit = _lookup(scheme, variants)
        if hit is not None:
            found[name] = hit
    layered = Counter(prefix for prefix, role in found.values() if role.layer is not None)
    if not layered:
        return {}
    main = layered.most_common(1)[0][0]
    return {name: role for name, (prefix, role) in found.items() if main.startswith(prefix)}


def _lookup(scheme: Scheme, forms: Sequence[_Form]) -> tuple[str, Role] | None:
    """Prefix and role by the first form that the scheme knows."""
    for form in forms:
        role = scheme.roles.get(form.rest)  # patterns whose numbers are part of the name (layer.0 of T5)
        if role is not None:
            return form.prefix, Role(role, transposed=role in scheme.transposed)
        role = None if form.pattern is None else scheme.roles.get(form.pattern)
        if role:
            return form.prefix, Role(role, form.layer, transposed=role in scheme.transposed)
    return None


def _infer(infos: Sequence[TensorInfo]) -> dict[str, Role]:
    """Roles of repeated names of one shape: layer from the number, role from words and shape."""
    groups: dict[str, list[tuple[tuple[int, ...], TensorInfo]]] = defaultdict(list)
    for info in infos:
        pattern, numbers = split_name(info.name)
        groups[pattern].append((numbers, info))
    hidden = _hidden_size(groups)
    found: dict[str, Role] = {}
    taken: set[str] = set()
    for pattern, members in groups.items():
        varying = _varying(members)
        if len(members) == 1 and len(members[0][1].shape) == 2:
            table = _guess(pattern, members[0][1], hidden)
            if table in TABLE_ROLES - taken:
                taken.add(table)
                found[members[0][1].name] = Role(table)
        if varying is None or len({info.shape for _, info in members}) != 1:
            continue
        guess = _guess(pattern, members[0][1], hidden)
        role = pattern if guess in taken else guess
        taken.add(role)
        for numbers, info in members:
            rest = [str(numbers[place]) for place in varying[1:]]  # experts of a layer
            found[info.name] = Role(".".join([role, *rest]) if rest else role, numbers[varying[0]])
    return found


def _varying(members: Sequence[tuple[tuple[int, ...], TensorInfo]]) -> list[int] | None:
    """Positions of the one or two numbers that count the members of a pattern (layers, experts), or None.

    Each counts from 0 or 1 upward without a gap, and every combination occurs once.
    """
    if len(members) < 2:
        return None
    if len({len(numbers) for numbers, _ in members}) != 1:
        return None  # a name that holds braces of its own looks like a pattern
    columns = list(zip(*(numbers for numbers, _ in members), strict=True))
    varying = [place for place, values in enumerate(columns) if len(set(values)) > 1]
    counts = [sorted(set(columns[place])) for place in varying]
    if not 1 <= len(varying) <= 2 or math.prod(len(values) for values in counts) != len(members):
        return None
    without_gap = all(values[0] <= 1 and values[-1] - values[0] == len(values) - 1 for values in counts)
    return varying if without_gap and len({numbers for numbers, _ in members}) == len(members) else None


def _hidden_size(groups: Mapping[str, Sequence[tuple[tuple[int, ...], TensorInfo]]]) -> int:
    """The extent that most matrices share: the width of the residual stream."""
    extents: Counter[int] = Counter()
    for members in groups.values():
        for _, info in members:
            if len(info.shape) == 2:
                extents.update(set(info.shape))
    return extents.most_common(1)[0][0] if extents else 0


def _guess(pattern: str, info: TensorInfo, hidden: int) -> str:
    if len(info.shape) != 2:
        return pattern
    rows, columns = info.shape if info.layout is not Layout.IN_OUT else info.shape[::-1]
    for regex, role in _hints():
        if regex.search(pattern) and _fits(role, rows, columns, hidden):
            return role
    return pattern


def _fits(role: str, rows: int, columns: int, hidden: int) -> bool:
    if role in ("gate", "up"):
        return columns == hidden and rows > hidden
    if role == "down":
        return rows == hidden and columns > hidden
    if role == "o":
        return rows == hidden
    return columns == hidden
