"""Tensor name -> role and layer, from ``data/architectures`` and, for unknown names, inferred.

A known scheme is data (drupe.schemes). Unknown names are grouped by their pattern (numbers replaced): a pattern
that repeats with one shape over at least two numbers is a layer. What stays opaque is compared by shape and content.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import resources
from typing import NamedTuple

from drupe.name_groups import MAX_NUMBERS
from drupe.readers.interface import Layout, TensorInfo
from drupe.schemes import Pattern, Scheme, first_components, index, literal_places, schemes, template

FFN_ROLES = frozenset({"gate", "up", "down"})
LAYER_ROLES = FFN_ROLES | {
    *("q", "k", "v", "o", "cross_q", "cross_k", "cross_v", "cross_o"),
    *("q_a", "q_b", "kv_a", "kv_b", "router"),
}
TABLE_ROLES = frozenset({"embed", "head"})
"""One row per token."""
_NUMBER = re.compile(r"(?<![A-Za-z0-9])(\d+)(?![A-Za-z0-9])")
_FLAX_LEAVES = frozenset({"kernel", "embedding"})
_NORM = re.compile(r"(?:norm|\bln(?:_\w+)?)\.scale", re.IGNORECASE)
"""Flax calls ``weight`` by what it does; a scale elsewhere may be a quantiser's."""
MAX_COMPONENTS = 32
"""Of a name that a scheme may know; real names have at most about 12."""
MAX_PREFIX = 5
"""Components in front of what a scheme knows."""
MAX_PREFIXES = 16
"""Prefixes with layers, the most frequent first, that may be towers."""
MAX_HINTED = 160
"""Characters of a name in which words are looked for."""
MAX_TOWERS = 8
MIN_TOWER = 8
"""Tensors of a tower that a scheme must explain, unless they are most of the model."""
MIN_COVERAGE = 0.5
"""Share of a model's tensors that schemes must explain before their roles are used."""


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

    @property
    def stack(self) -> str:
        """What comes before the last dot: the tower or its encoder; "" = the main one, or an unknown pattern."""
        return "" if "{" in self.name else self.name.rpartition(".")[0]

    @property
    def parts(self) -> tuple[str, ...]:
        """What is fused into the tensor, without the stack: ``q``, ``k``, ``v``; an unknown pattern is one part."""
        return (self.name,) if "{" in self.name else tuple(self.name.rpartition(".")[2].split("+"))


def of_expert(stack: str, role: str, expert: int | None) -> str:
    """The role of one matrix of a stack.

    >>> of_expert("", "up", None), of_expert("", "up", 3), of_expert("encoder", "up", 0)
    ('up', 'experts.3.up', 'encoder.experts.0.up')
    """
    places = (stack, "" if expert is None else f"experts.{expert}", role)
    return ".".join(filter(None, places))


def is_layer_role(role: str | None) -> bool:
    """Whether a role is a learned matrix of a layer: no position table, buffer or unknown pattern."""
    return role is not None and LAYER_ROLES.issuperset(role.rpartition(".")[2].split("+"))


def is_table_role(role: str | None) -> bool:
    """Whether a role is a table of tokens."""
    return role is not None and role.rpartition(".")[2] in TABLE_ROLES


@dataclass(frozen=True)
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

    @cached_property
    def tensors(self) -> Mapping[tuple[str, int | None], str]:
        """Role and layer -> tensor; of several, the first."""
        found: dict[tuple[str, int | None], str] = {}
        for tensor, role in self.by_tensor.items():
            found.setdefault((role.name, role.layer), tensor)
        return found


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
    pieces = _NUMBER.split(name, MAX_NUMBERS)
    return "{}".join(pieces[::2]), tuple(map(int, pieces[1::2]))


def assign_roles(tensors: Iterable[TensorInfo], model_types: Container[str] = ()) -> Roles:
    """The roles of all tensors that a scheme explains, else the inferred ones.

    ``model_types``: what the configuration calls the model; decides only between schemes of the same names.

    The tower that reads tokens speaks for the model, else the one with the most values; the roles of further towers
    begin with ``tower2.``, ``tower3.``: the same names under another prefix are another part of the model.
    """
    infos = list(tensors)
    towers = _towers(infos, model_types)
    if sum(len(match) for _, match in towers) < MIN_COVERAGE * len(infos):
        towers = []
    if len(towers) > 1:
        sizes = {info.name: info.size for info in infos}
        towers.sort(key=lambda tower: _weight(tower[1], sizes), reverse=True)
    found: dict[str, Role] = {}
    stacks: dict[str, Scheme] = {}
    for place, (scheme, match) in enumerate(towers, start=1):
        stack = f"tower{place}" if place > 1 else ""
        stacks[stack] = scheme
        found.update({name: _in_stack(role, stack) for name, role in match.items()})
    rest = [info for info in infos if info.name not in found]
    by_tensor = {
        **_infer(rest, {role.name for role in found.values()}, len(stacks), _extents(infos)),
        **found,
    }
    return Roles(by_tensor, stacks)


def _weight(match: Mapping[str, Role], sizes: Mapping[str, int]) -> tuple[bool, int]:
    return any(role.name == "embed" for role in match.values()), sum(sizes[name] for name in match)


def _in_stack(role: Role, stack: str) -> Role:
    return replace(role, name=f"{stack}.{role.name}") if stack else role


class _Hit(NamedTuple):
    """A pattern that explains a name, for those of its schemes that no better pattern serves."""

    prefix: str
    cut: int
    pattern: Pattern
    schemes: tuple[int, ...]


_Names = list[tuple[str, tuple[str, ...]]]
"""Names that the same patterns explain below the same prefixes, and their components."""


def _towers(infos: Sequence[TensorInfo], model_types: Container[str]) -> list[tuple[Scheme, dict[str, Role]]]:
    """Which scheme explains which tensors, one tower at a time, the one of most tensors first."""
    groups = _groups(info.name for info in infos)
    found: list[tuple[Scheme, dict[str, Role]]] = []
    allowed = {
        number
        for number, scheme in enumerate(schemes())
        if not scheme.model_types or any(name in model_types for name in scheme.model_types)
    }
    while groups and len(found) < MAX_TOWERS:
        number, tower = _best_tower(groups, allowed)
        match: dict[str, Role] = {}
        kept = {}
        for hits, names in groups.items():
            hit = next((hit for hit in hits if number in hit.schemes), None)
            if hit is None or not _is_above(hit.prefix, tower):
                kept[hits] = names
                continue
            for name, parts in names:
                match[name] = _role(hit, parts, schemes()[number])
        if len(match) < min(MIN_TOWER, max(1, MIN_COVERAGE * len(infos))):
            break
        found.append((schemes()[number], match))
        groups = kept
    return found


def _groups(names: Iterable[str]) -> dict[tuple[_Hit, ...], _Names]:
    """Names by what explains them; names that nothing explains are left out.

    A stranger's file may hold a prefix per tensor, so that every name is a group of its own: what is looked up is
    kept by what comes behind the prefixes, and hits are made of the groups that are left.
    """
    numbers: dict[tuple[_Served, ...], int] = {}
    known: dict[tuple[object, ...], int] = {}
    groups: dict[_Key, list[str]] = defaultdict(list)
    longest = [0]
    for name in names:
        parts = _components(name)
        fits = _fitting(template(parts)) if len(parts) <= MAX_COMPONENTS else ()
        if not fits:
            continue
        key = (*fits, *_literals(fits, parts))
        number = known.get(key)
        if number is None:
            served = _served(fits, parts)
            number = known[key] = numbers.setdefault(served, len(numbers) + 1) if served else 0
            longest += [max(cut for cut, *_ in served)] if number == len(longest) else []
        if number:
            groups[number, ".".join(parts[: longest[number]])].append(name)
    return {
        tuple(_Hit(_begin(prefix, each[0]), *each) for each in served): [
            (name, _components(name)) for name in members
        ]
        for prefix, served, members in _frequent(groups, list(numbers))
    }


def _components(name: str) -> tuple[str, ...]:
    """The parts between the dots, the last as PyTorch calls it."""
    parts = name.split(".")
    if parts[-1] in _FLAX_LEAVES or (parts[-1] == "scale" and _NORM.search(".".join(parts[-2:]))):
        parts[-1] = "weight"
    return tuple(parts)


def _begin(prefix: str, count: int) -> str:
    """The first components of a prefix of no more than :data:`MAX_PREFIX`."""
    return prefix if prefix.count(".") < count else ".".join(prefix.split(".")[:count])


_Fit = tuple[int, str]
"""How many components come before what the index knows, and its key there."""
_Served = tuple[int, Pattern, tuple[int, ...]]
"""How many components come before a pattern, the pattern, and the schemes that no better pattern serves."""


_Key = tuple[int, str]
"""Which patterns explain a name (counted from 1), and the longest prefix before one of them."""


def _fitting(shape: tuple[str, ...]) -> tuple[_Fit, ...]:
    """What the index knows of a template, those with fewest components before them first."""
    entries, first = index(), first_components()
    return tuple(
        [
            (cut, key)
            for cut in range(min(len(shape), MAX_PREFIX + 1))
            if shape[cut] in first and (key := ".".join(shape[cut:])) in entries
        ]
    )


def _literals(fits: Iterable[_Fit], parts: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The numbers of a name that decide between patterns; those that no pattern has are alike."""
    return tuple(
        [
            tuple([parts[cut + place] if parts[cut + place] in texts else "" for place, texts in places])
            for cut, key in fits
            if (places := literal_places().get(key))
        ]
    )


def _served(fits: Iterable[_Fit], parts: tuple[str, ...]) -> tuple[_Served, ...]:
    served: set[int] = set()
    found = []
    for cut, pattern in ((cut, pattern) for cut, key in fits for pattern in index()[key]):
        if all(parts[cut + place] == text for place, text in pattern.literals):
            free = tuple(number for number in pattern.schemes if number not in served)
            served.update(free)
            if free:
                found.append((cut, pattern, free))
    return tuple(found)


def _frequent(
    groups: Mapping[_Key, list[str]], servings: Sequence[tuple[_Served, ...]]
) -> Iterator[tuple[str, tuple[_Served, ...], list[str]]]:
    """The groups below prefixes that may be towers."""
    cuts: list[Counter[int]] = [Counter()]
    """How many components come before -> the patterns there that count layers."""
    for served in servings:
        cuts.append(Counter())
        for cut, pattern, _ in served:
            cuts[-1][cut] += pattern.layer is not None
    layered: Counter[str] = Counter()
    for (number, prefix), names in groups.items():
        for cut, patterns in cuts[number].items():
            layered[_begin(prefix, cut)] += patterns * len(names)
    above = {""}
    for prefix, _ in layered.most_common(MAX_PREFIXES):
        parts = prefix.split(".")
        above.update(".".join(parts[: count + 1]) for count in range(len(parts)))
    for (number, prefix), names in groups.items():
        if len(layered) <= MAX_PREFIXES or any(_begin(prefix, cut) in above for cut in cuts[number]):
            yield prefix, servings[number - 1], names


def _best_tower(groups: Mapping[tuple[_Hit, ...], _Names], allowed: Container[int]) -> tuple[int, str]:
    """Scheme and prefix of the tower that explains most names; among equals the plainest scheme."""
    layered: dict[int, Counter[str]] = defaultdict(Counter)
    whole: dict[int, Counter[str]] = defaultdict(Counter)
    for hits, names in groups.items():
        for hit in hits:
            for number in hit.schemes:
                whole[number][hit.prefix] += len(names)
                if hit.pattern.layer is not None:
                    layered[number][hit.prefix] += len(names)
    best, choice = (0, False, False, 0, False), (0, "")
    for number in sorted(layered):
        if number not in allowed:
            continue
        tower = layered[number].most_common(1)[0][0]
        count = sum(size for prefix, size in whole[number].items() if _is_above(prefix, tower))
        scheme = schemes()[number]
        plain = (not scheme.is_variant, -len(scheme.roles), not scheme.norm_after)
        score = (count, bool(scheme.model_types), *plain)
        if score > best:
            best, choice = score, (number, tower)
    return choice


def _role(hit: _Hit, parts: tuple[str, ...], scheme: Scheme) -> Role:
    role = hit.pattern.role
    layer, expert = (
        None if place is None else int(parts[hit.cut + place])
        for place in (hit.pattern.layer, hit.pattern.expert)
    )
    return Role(role, layer, expert, role in scheme.transposed)


def _is_above(prefix: str, tower: str) -> bool:
    return not prefix or tower == prefix or tower.startswith(prefix + ".")


_Groups = Mapping[str, Sequence[tuple[tuple[int, ...], TensorInfo]]]
"""Pattern -> the numbers of each name, and the tensor."""


def _infer(
    infos: Sequence[TensorInfo], known: Iterable[str], towers: int, everywhere: Mapping[int, int]
) -> dict[str, Role]:
    """Roles of repeated names of one shape: layer from the number, role from words and shape.

    Names that differ before their first number are different towers, the largest first; ``towers`` are counted
    already and their roles ``known``. ``everywhere``: how often each extent occurs in the whole model. A role is
    given once: a further group keeps its pattern as its role.
    """
    groups: dict[str, list[tuple[tuple[int, ...], TensorInfo]]] = defaultdict(list)
    for info in infos:
        pattern, numbers = split_name(info.name)
        groups[pattern].append((numbers, info))
    roots: dict[str, dict[str, list[tuple[tuple[int, ...], TensorInfo]]]] = defaultdict(dict)
    counting: dict[str, list[int]] = {}
    for pattern, members in groups.items():
        places = _varying(members) if len(members) > 1 else None
        if places is not None and len({info.shape for _, info in members}) == 1:
            counting[pattern] = places
            roots[pattern.partition("{}")[0]][pattern] = members
    taken = set(known)
    found = _infer_tables(groups, taken, everywhere)
    by_size = sorted(roots.values(), key=lambda root: -sum(map(len, root.values())))
    for place, root in enumerate(by_size[:MAX_TOWERS], start=towers):
        found.update(_infer_layers(root, counting, taken, f"tower{place + 1}." if place else "", everywhere))
    for root in by_size[MAX_TOWERS:]:
        found.update(_infer_layers(root, counting, taken, "", everywhere))
    return found


def _infer_tables(groups: _Groups, taken: set[str], everywhere: Mapping[int, int]) -> dict[str, Role]:
    """Tables of tokens: each role once."""
    hidden = _hidden_size(groups, everywhere)
    found = {}
    words = _words_for(TABLE_ROLES - taken)
    for pattern, members in groups.items():
        if len(members) == 1 and len(members[0][1].shape) == 2 and any(w.search(pattern) for w in words):
            table = _guess(pattern, members[0][1], hidden)
            if table in TABLE_ROLES - taken:
                taken.add(table)
                words = _words_for(TABLE_ROLES - taken)
                found[members[0][1].name] = Role(table)
    return found


def _infer_layers(
    groups: _Groups,
    counting: Mapping[str, list[int]],
    taken: set[str],
    stack: str,
    everywhere: Mapping[int, int],
) -> dict[str, Role]:
    """The layers of one tower, whose roles begin with ``stack`` when another tower has them already.

    ``counting``: pattern -> the numbers that count its members.
    """
    hidden = _hidden_size(groups, everywhere)
    found = {}
    for pattern, members in groups.items():
        guess = _guess(pattern, members[0][1], hidden)
        role = next(role for role in (guess, stack + guess, pattern) if role not in taken or role == pattern)
        taken.add(role)
        varying = counting[pattern]
        for numbers, info in members:
            expert = numbers[varying[1]] if len(varying) > 1 else None
            found[info.name] = Role(role, numbers[varying[0]], expert)
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


def _hidden_size(groups: _Groups, everywhere: Mapping[int, int]) -> int:
    """The extent that most matrices share, the width of the residual stream; of equals, that of the whole model."""
    extents = _extents(info for members in groups.values() for _, info in members)
    return max(extents, key=lambda extent: (extents[extent], everywhere.get(extent, 0)), default=0)


def _extents(infos: Iterable[TensorInfo]) -> Counter[int]:
    """How many matrices have a side of each length."""
    shapes = Counter(info.shape for info in infos if len(info.shape) == 2)
    extents: Counter[int] = Counter()
    for shape, count in shapes.items():
        extents.update(dict.fromkeys(shape, count))
    return extents


def _words_for(roles: Container[str]) -> list[re.Pattern[str]]:
    """The words that speak for one of the roles."""
    return [regex for regex, role in _hints() if role in roles]


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
