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
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import islice

from drupe.readers.interface import Layout, TensorInfo

LAYER_ROLES = frozenset(
    {"q", "k", "v", "o", "gate", "up", "down", "cross_q", "cross_k", "cross_v", "cross_o"}
)
TABLE_ROLES = frozenset({"embed", "head"})
"""One row per token."""
_NUMBER = re.compile(r"(?<![A-Za-z0-9])\d+(?![A-Za-z0-9])")
MAX_COMPONENTS = 32
"""Of a name that a scheme may know; real names have at most about 12."""
MAX_NUMBERS = 16
"""Numbers of a name that count; real names have at most five. Further ones are text."""
MAX_HINTED = 160
"""Characters of a name in which words are looked for."""
MAX_TOWERS = 8
MIN_TOWER = 8
"""Tensors of a further tower that a scheme must explain."""
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
    """The roles of a model; unnamed tensors are absent."""

    by_tensor: Mapping[str, Role]
    stacks: Mapping[str, Scheme]
    """What comes before the dot of a role ("" = the main tower) -> the scheme that explains it."""

    @property
    def scheme(self) -> Scheme | None:
        """The scheme of the main tower; None when its roles were inferred."""
        return self.stacks.get("")

    def scheme_of(self, role: str) -> Scheme | None:
        """The scheme behind a role."""
        return self.stacks.get(role.partition(".")[0], self.scheme)


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
    numbers = islice(_NUMBER.finditer(name), MAX_NUMBERS)
    return _NUMBER.sub("{}", name, MAX_NUMBERS), tuple(int(number[0]) for number in numbers)


def assign_roles(tensors: Iterable[TensorInfo]) -> Roles:
    """The roles of all tensors that a scheme explains, else the inferred ones.

    The tower with the most layered tensors speaks for the model; the roles of further towers begin with
    ``tower2.``, ``tower3.``: the same names under another prefix are another part of the model.
    """
    infos = list(tensors)
    forms = {info.name: _forms(info.name) for info in infos}
    found: dict[str, Role] = {}
    stacks: dict[str, Scheme] = {}
    while forms and len(stacks) < MAX_TOWERS:
        matches = ((scheme, _match(scheme, forms)) for scheme in schemes())
        scheme, match = max(matches, key=lambda entry: (len(entry[1]), not entry[0].is_variant))
        if len(match) < (MIN_TOWER if stacks else max(1, MIN_COVERAGE * len(infos))):
            break
        stack = f"tower{len(stacks) + 1}" if stacks else ""
        stacks[stack] = scheme
        found.update({name: _in_stack(role, stack) for name, role in match.items()})
        forms = {name: variants for name, variants in forms.items() if name not in match}
    rest = [info for info in infos if info.name not in found]
    by_tensor = {**_infer(rest, {role.name for role in found.values()}, len(stacks)), **found}
    return Roles(by_tensor, stacks)


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
    """Names of one tower that the scheme explains, all below one common prefix (or a parent of it)."""
    found: dict[str, tuple[str, Role]] = {}
    for name, variants in forms.items():
        hit = _lookup(scheme, variants)
        if hit is not None:
            found[name] = hit
    layered = Counter(prefix for prefix, role in found.values() if role.layer is not None)
    if not layered:
        return {}
    tower = layered.most_common(1)[0][0]
    return {name: role for name, (prefix, role) in found.items() if _is_above(prefix, tower)}


def _is_above(prefix: str, tower: str) -> bool:
    return not prefix or tower == prefix or tower.startswith(prefix + ".")


def _in_stack(role: Role, stack: str) -> Role:
    return replace(role, name=f"{stack}.{role.name}") if stack else role


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


_Groups = Mapping[str, Sequence[tuple[tuple[int, ...], TensorInfo]]]
"""Pattern -> the numbers of each name, and the tensor."""


def _infer(infos: Sequence[TensorInfo], known: Iterable[str], towers: int) -> dict[str, Role]:
    """Roles of repeated names of one shape: layer from the number, role from words and shape.

    Names that differ before their first number are different towers, the largest first; ``towers`` are counted
    already and their roles ``known``. A role is given once: a further group keeps its pattern as its role.
    """
    groups: dict[str, list[tuple[tuple[int, ...], TensorInfo]]] = defaultdict(list)
    for info in infos:
        pattern, numbers = split_name(info.name)
        groups[pattern].append((numbers, info))
    roots: dict[str, dict[str, list[tuple[tuple[int, ...], TensorInfo]]]] = defaultdict(dict)
    for pattern, members in groups.items():
        if _varying(members) is not None and len({info.shape for _, info in members}) == 1:
            roots[pattern.partition("{}")[0]][pattern] = members
    taken = set(known)
    found = _infer_tables(groups, taken)
    by_size = sorted(roots.values(), key=lambda root: -sum(map(len, root.values())))
    for place, root in enumerate(by_size[:MAX_TOWERS], start=towers):
        found.update(_infer_layers(root, taken, f"tower{place + 1}." if place else ""))
    for root in by_size[MAX_TOWERS:]:
        found.update(_infer_layers(root, taken, ""))
    return found


def _infer_tables(groups: _Groups, taken: set[str]) -> dict[str, Role]:
    """Tables of tokens: each role once."""
    hidden = _hidden_size(groups)
    found = {}
    for pattern, members in groups.items():
        if len(members) == 1 and len(members[0][1].shape) == 2:
            table = _guess(pattern, members[0][1], hidden)
            if table in TABLE_ROLES - taken:
                taken.add(table)
                found[members[0][1].name] = Role(table)
    return found


def _infer_layers(groups: _Groups, taken: set[str], stack: str) -> dict[str, Role]:
    """The layers of one tower, whose roles begin with ``stack`` when another tower has them already."""
    hidden = _hidden_size(groups)
    found = {}
    for pattern, members in groups.items():
        guess = _guess(pattern, members[0][1], hidden)
        role = next(role for role in (guess, stack + guess, pattern) if role not in taken or role == pattern)
        taken.add(role)
        varying = _varying(members) or [0]
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


def _hidden_size(groups: _Groups) -> int:
    """The extent that most matrices share: the width of the residual stream."""
    extents: Counter[int] = Counter()
    for members in groups.values():
        for _, info in members:
            if len(info.shape) == 2:
                extents.update(set(info.shape))
    return extents.most_common(1)[0][0] if extents else 0


def _guess(pattern: str, info: TensorInfo, hidden: int) -> str:
    if len(info.shape) != 2 or len(pattern) > MAX_HINTED:
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
