"""Naming schemes: which patterns of tensor names mean which roles. Data: ``data/architectures/*.toml``.

All patterns of all schemes are one index, keyed by the name with every number replaced, so that a name is looked
up once however many schemes share it.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

MAX_DIGITS = 5
"""Of a number in a name."""
_KEYS = frozenset(
    {
        *("name", "title", "provenance", "extends", "model_types", "roles", "fused"),
        *("transposed", "transposed_experts", "norm_after", "norm_offset", "paired_rows"),
    }
)


@dataclass(frozen=True, slots=True)
class Scheme:
    """One naming scheme: pattern -> role, and how it stores its matrices."""

    name: str
    title: str
    roles: Mapping[str, str]
    transposed: frozenset[str]
    norm_after: bool
    """Norms follow the sublayers: no gain feeds a matrix."""
    is_variant: bool
    """Extends another scheme; chosen only when it explains more tensors than that one."""
    fused: Mapping[str, str]
    """Fused role -> layout of its parts (drupe.fused); ``stacked`` where nothing is said."""
    norm_offset: float
    """What is added to the stored gain of a norm (Gemma stores gain - 1)."""
    transposed_experts: bool
    """Stacks of experts are (experts, in, out)."""
    paired_rows: bool
    """Rows of q and k: the two of a rotary pair lie side by side (Meta), not half a head apart (transformers)."""
    model_types: frozenset[str]
    """Names alone do not tell it from another scheme: the configuration must say one of these."""


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """One pattern with one role. Places count components of the name from where the pattern begins."""

    role: str
    literals: tuple[tuple[int, str], ...]
    """Numbers that are part of the pattern (``layer.0`` of T5): place, text."""
    layer: int | None
    expert: int | None
    schemes: tuple[int, ...]
    """Numbers of the schemes that know the pattern by this role."""


@cache
def schemes() -> tuple[Scheme, ...]:
    """Every scheme in ``data/architectures``, ``extends`` resolved. Raises ValueError on bad data."""
    tables: dict[str, Mapping[str, object]] = {}
    for file in (resources.files("drupe") / "data" / "architectures").iterdir():
        text = file.read_text(encoding="utf-8") if file.name.endswith(".toml") else ""
        if "roles" not in text:
            continue
        table = tomllib.loads(text)
        for entry in table.get("scheme", [table]):
            if str(entry["name"]) in tables:
                raise ValueError(f"scheme {entry['name']}: named twice")
            tables[str(entry["name"])] = entry
    loaded: dict[str, Scheme] = {}
    return tuple(_resolve(name, tables, loaded) for name in sorted(tables))


def _resolve(name: str, tables: Mapping[str, Mapping[str, object]], loaded: dict[str, Scheme]) -> Scheme:
    """A scheme by name, after what it extends."""
    if name not in loaded:
        base = tables[name].get("extends")
        inherited = None if base is None else _resolve(str(base), tables, loaded)
        loaded[name] = load_scheme(tables[name], inherited)
    return loaded[name]


def load_scheme(table: Mapping[str, object], base: Scheme | None = None) -> Scheme:
    """One scheme from its parsed data and the one that it extends. Raises ValueError."""
    unknown = set(table) - _KEYS
    if unknown or "provenance" not in table:
        raise ValueError(f"scheme {table.get('name')}: unknown keys {unknown} or no provenance")
    roles = _roles(table.get("roles", {}))
    if base is not None:  # a role that the extension names anew replaces the inherited name
        named = set(roles.values())
        inherited = {pattern: role for pattern, role in base.roles.items() if role not in named}
        roles = {**inherited, **roles}
    transposed = _texts(table.get("transposed", sorted(base.transposed) if base else []))
    offset = table.get("norm_offset", base.norm_offset if base else 0.0)
    assert isinstance(offset, float)
    return Scheme(
        name=str(table["name"]),
        title=str(table["title"]),
        roles={pattern: role for pattern, role in roles.items() if role},
        transposed=frozenset(transposed),
        norm_after=bool(table.get("norm_after", base.norm_after if base else False)),
        is_variant=base is not None,
        fused={**(base.fused if base else {}), **_table(table.get("fused", {}))},
        norm_offset=offset,
        transposed_experts=bool(table.get("transposed_experts", base.transposed_experts if base else False)),
        paired_rows=bool(table.get("paired_rows", base.paired_rows if base else False)),
        model_types=frozenset(_texts(table.get("model_types", []))),
    )


def _roles(value: object) -> dict[str, str]:
    """Patterns and roles of a scheme: a table, or lines of ``pattern = role``; ``.*`` stands for weight and bias."""
    if isinstance(value, dict):
        return _table(value)
    found = {}
    for line in str(value).splitlines():
        if not line or line.startswith("#"):
            continue
        pattern, _, role = line.partition(" = ")
        if not role:
            raise ValueError(f"not a pattern and a role: {line!r}")
        if pattern.endswith(".*"):
            found[f"{pattern[:-1]}weight"] = role
            found[f"{pattern[:-1]}bias"] = bias_of(role)
        else:
            found[pattern] = role
    return found


def bias_of(role: str) -> str:
    """The role of the bias beside a matrix.

    >>> bias_of("up"), bias_of("q+k+v")
    ('up_bias', 'qkv_bias')
    """
    return "qkv_bias" if role == "q+k+v" else role.replace("+", "_") + "_bias"


def _table(value: object) -> dict[str, str]:
    assert isinstance(value, dict)
    return {str(key): str(item) for key, item in value.items()}


def _texts(value: object) -> list[str]:
    assert isinstance(value, list)
    return [str(item) for item in value]


def template(components: Sequence[str]) -> tuple[str, ...]:
    """The components of a name with what counts something replaced.

    >>> template(["h", "12", "conv1", "1234567"])
    ('h', '{}', 'conv1', '1234567')
    """
    digits = MAX_DIGITS
    return tuple(["{}" if part.isdecimal() and len(part) <= digits else part for part in components])


@cache
def index() -> Mapping[str, tuple[Pattern, ...]]:
    """Name with all numbers replaced -> its patterns, the ones with most numbers of their own first."""
    owners: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, scheme in enumerate(schemes()):
        for text, role in scheme.roles.items():
            owners[text, role].append(number)
    found: dict[str, list[Pattern]] = defaultdict(list)
    for (text, role), numbers in owners.items():
        parts = text.split(".")
        free = [place for place, part in enumerate(parts) if part == "{}"]
        literals = tuple((place, part) for place, part in enumerate(parts) if part.isdecimal())
        layer, expert = (*free, None, None)[:2]
        found[".".join(template(parts))].append(Pattern(role, literals, layer, expert, tuple(numbers)))
    return {key: tuple(sorted(each, key=lambda p: -len(p.literals))) for key, each in found.items()}


@cache
def first_components() -> frozenset[str]:
    """How the keys of the index begin."""
    return frozenset(key.partition(".")[0] for key in index())


@cache
def literal_places() -> Mapping[str, tuple[tuple[int, frozenset[str]], ...]]:
    """Key of the index -> places at which its patterns have numbers of their own, and these."""
    found: dict[str, dict[int, set[str]]] = {}
    for key, patterns in index().items():
        for place, text in (literal for pattern in patterns for literal in pattern.literals):
            found.setdefault(key, defaultdict(set))[place].add(text)
    return {
        key: tuple((place, frozenset(texts)) for place, texts in sorted(places.items()))
        for key, places in found.items()
    }
