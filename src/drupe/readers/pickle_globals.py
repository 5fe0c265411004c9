"""What is known of a name that a pickle imports: harmless, dangerous, or neither. Nothing is imported.

The names are data (``data/pickle_globals.toml``, with their provenance). The path is judged in whole, since
unpickling follows dots: ``torch.serialization`` + ``os.system`` is a path to ``os``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources


class Danger(StrEnum):
    """What unpickling would do with a name."""

    HARMLESS = "harmless"
    """Builds a plain value."""
    UNKNOWN = "unknown"
    """Imports code that is not on any list."""
    DANGEROUS = "dangerous"
    """Can run commands, load code, or open files and connections."""


@dataclass(frozen=True, slots=True)
class _Lists:
    modules: frozenset[str]
    names: frozenset[str]
    parts: frozenset[str]
    builtins: frozenset[str]
    harmless: frozenset[str]
    harmless_builtins: frozenset[str]
    harmless_modules: frozenset[str]


@cache
def _lists() -> _Lists:
    file = resources.files("drupe") / "data" / "pickle_globals.toml"
    table: Mapping[str, Mapping[str, list[str]]] = tomllib.loads(file.read_text(encoding="utf-8"))
    bad, good = table["dangerous"], table["harmless"]
    torch = {f"torch.{name}" for name in (*good["storages"], *good["dtypes"])}
    cuda = {f"torch.cuda.{name}" for name in good["storages"]}
    return _Lists(
        modules=frozenset(bad["modules"]),
        names=frozenset(bad["names"]),
        parts=frozenset(bad["parts"]),
        builtins=frozenset(bad["builtins_modules"]),
        harmless=frozenset({*good["names"], *torch, *cuda}),
        harmless_builtins=frozenset(good["builtins"]),
        harmless_modules=frozenset(good["modules"]),
    )


def danger_of(module: str, name: str) -> Danger:
    """The danger of ``module`` + ``name`` as a pickle names them (``name`` may be a dotted path).

    >>> [danger_of(*pair).value for pair in (("collections", "OrderedDict"), ("posix", "system"), ("my", "Net"))]
    ['harmless', 'dangerous', 'unknown']
    """
    lists = _lists()
    path = f"{module}.{name}"
    if path in lists.harmless:
        return Danger.HARMLESS
    if module in lists.builtins:
        return Danger.HARMLESS if name in lists.harmless_builtins else Danger.DANGEROUS
    parts = path.split(".")
    bare = {part.lstrip("_") for part in parts}  # modules import others under names such as _os
    if len(parts) > _MAX_PARTS or not lists.parts.isdisjoint(bare.union(parts)):
        return Danger.DANGEROUS
    steps = name.split(".")
    if any(step.startswith("__") and step.endswith("__") for step in steps):
        return Danger.DANGEROUS
    if (
        len(steps) > 1 and not steps[0][:1].isupper()
    ):  # through what a module has imported, not a class in a class
        return Danger.DANGEROUS
    heads = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    if any(head in lists.modules or head in lists.names for head in heads):
        return Danger.HARMLESS if _is_known_layer(module, name, lists) else Danger.DANGEROUS
    return Danger.HARMLESS if _is_known_layer(module, name, lists) else Danger.UNKNOWN


_MAX_PARTS = 64


def _is_known_layer(module: str, name: str, lists: _Lists) -> bool:
    """A class (not a path through one) of a package whose classes are plain layers."""
    inside = any(module == known or module.startswith(f"{known}.") for known in lists.harmless_modules)
    return inside and "." not in name and name[:1].isupper()
