"""A module tree -> names and shapes, as ``state_dict()`` would list them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drupe.errors import LimitError
from drupe.implied.limits import MAX_PARAMETERS, MAX_UNKNOWN, Budget
from drupe.implied.patterns import matches
from drupe.implied.results import Entry, Gap, Implied
from drupe.implied.values import (
    Buffer,
    ClassValue,
    Dims,
    Either,
    Function,
    Instance,
    Parameter,
    Place,
    Unknown,
    truth,
)

MAX_DEPTH = 40
"""Modules within modules."""
_OWN_NAMES = (
    "__new__",
    "__setattr__",
    "state_dict",
    "_save_to_state_dict",
    "load_state_dict",
    "_load_from_state_dict",
)
"""Methods that change under which names tensors are kept, or what an object is."""
MAX_PATTERNS = 32
"""Patterns of names that a model's classes declare."""
MAX_NAME = 1024
"""Characters of a name."""


@dataclass(slots=True)
class Found:
    """One tensor under a name."""

    shape: Dims | None
    place: Place
    buffer: bool
    transient: bool
    optional: bool
    tensor: int


class Collector:
    """Walks the tree once per name."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.above: set[int] = set()
        self.gaps: list[Gap] = []
        self.tied: list[tuple[str, object, bool | None]] = []
        self.replaced: list[tuple[str, str]] = []
        self.may_lack: list[str] = []
        self.may_have: list[str] = []

    def walk(self, instance: Instance, prefix: str = "", depth: int = 0) -> dict[str, Found]:
        """The tensors below a module, by name."""
        found: dict[str, Found] = {}
        if depth > MAX_DEPTH or len(prefix) > MAX_NAME or id(instance) in self.above:
            self.gap(instance.place, "modules within modules without end", prefix)
            return found
        self.above.add(id(instance))
        self._declared(instance, prefix)
        for unknown in instance.open:
            place = unknown.place if unknown.place.file else instance.place
            self.gap(place, unknown.reason, prefix)
        self.budget.charge(1 + len(instance.attrs) // 4)
        for key, value in instance.attrs.items():
            found.update(self._slot(value, f"{prefix}{key}", depth, instance.place))
            if len(found) > MAX_PARAMETERS:
                raise LimitError("parameters of the code", limit=MAX_PARAMETERS, actual=len(found))
        self.above.discard(id(instance))
        return found

    def _slot(self, value: object, name: str, depth: int, near: Place) -> dict[str, Found]:
        if isinstance(value, Buffer):
            return {name: Found(value.shape, value.place, True, not value.persistent, False, id(value))}
        if isinstance(value, Parameter):
            return {name: Found(value.shape, value.place, False, False, False, id(value))}
        if isinstance(value, Instance) and value.is_module:
            return self.walk(value, f"{name}.", depth + 1)
        if isinstance(value, Unknown) and value.may_be_module:
            self.gap(value.place if value.place.file else near, value.reason, name)
        if isinstance(value, Either):
            return self._joined(value, name, depth, near)
        return {}

    def _joined(self, value: Either, name: str, depth: int, near: Place) -> dict[str, Found]:
        """Names that every option has are certain; the others are optional."""
        options = [self._slot(one, name, depth, near) for one in value.options]
        unknown = any(isinstance(one, Unknown) for one in value.options)
        result: dict[str, Found] = {}
        for each in options:
            for key, one in each.items():
                if key not in result:
                    certain = not unknown and all(key in other for other in options)
                    one.optional = one.optional or not certain
                    result[key] = one
                elif result[key].shape != one.shape:
                    result[key].shape = _common(result[key].shape, one.shape)
        return result

    def gap(self, place: Place, why: str, prefix: str | None, doubt: str = "") -> None:
        """Remember a place that could not be worked out."""
        if len(self.gaps) < MAX_UNKNOWN:
            self.gaps.append(Gap(place, why, prefix, doubt))
        elif len(self.gaps) == MAX_UNKNOWN:
            self.gaps.append(Gap(place, "further places are not listed", "", "all"))

    def _declared(self, instance: Instance, prefix: str) -> None:
        """Names that the class itself calls tied, or allows to be missing or left over."""
        cls = instance.cls
        if not isinstance(cls, ClassValue):
            return
        pair = cls.find("_tied_weights_keys")
        if pair is not None and isinstance(pair[0], list | dict):
            ties = _ties(instance)
            self.tied.append((prefix, pair[0], ties))
            if ties and isinstance(pair[0], dict):  # tying puts the other's tensor in the place of its own
                self.replaced += [(f"{prefix}{a}", f"{prefix}{b}") for a, b in pair[0].items()]
        for name in _OWN_NAMES:
            pair = cls.find(name)
            if pair is not None and isinstance(pair[0], Function):
                place = Place(pair[0].frame.scope.file, getattr(pair[0].node, "lineno", 0))
                self.gap(place, f"{cls.name} has a {name} of its own", prefix, "all")
        for name, into in (
            ("_keys_to_ignore_on_load_missing", self.may_lack),
            ("_keys_to_ignore_on_load_unexpected", self.may_have),
        ):
            pair = cls.find(name)
            if pair is not None and isinstance(pair[0], list | tuple | set):
                into.extend(one for one in list(pair[0])[:64] if isinstance(one, str) and one not in into)


def _ties(instance: Instance) -> bool | None:
    config = instance.attrs.get("config")
    if isinstance(config, Instance):
        return truth(config.attrs.get("tie_word_embeddings", True))
    return None


def _common(a: Dims | None, b: Dims | None) -> Dims | None:
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(x if x == y else None for x, y in zip(a, b, strict=True))


def implied_by(instance: Instance, entry: Entry, gaps: list[Gap], budget: Budget) -> Implied:
    """The result of following ``entry``: the tree's names with what the code says of them."""
    collector = Collector(budget)
    found = collector.walk(instance)
    saved = {name: one for name, one in found.items() if not one.transient}
    tied = _tied(saved, collector.tied, budget)
    for name, partner in collector.replaced:
        if name in saved and partner in saved:
            saved[name].shape = saved[partner].shape
    prefix = instance.cls.find("base_model_prefix") if isinstance(instance.cls, ClassValue) else None
    base = prefix[0] if prefix is not None and isinstance(prefix[0], str) else ""
    return Implied(
        entry=entry,
        parameters={name: one.shape for name, one in saved.items()},
        places={name: one.place for name, one in saved.items()},
        buffers=frozenset(name for name, one in saved.items() if one.buffer),
        transient=frozenset(name for name, one in found.items() if one.transient),
        optional=frozenset(name for name, one in saved.items() if one.optional),
        tied=tied,
        may_lack=tuple(collector.may_lack[:MAX_PATTERNS]),
        may_have=tuple(collector.may_have[:MAX_PATTERNS]),
        base_prefix=base if base and f"{base}." in {f"{name.split('.')[0]}." for name in saved} else "",
        unknown=_unique([*collector.gaps, *gaps]),
    )


def _unique(gaps: list[Gap]) -> tuple[Gap, ...]:
    """Each place once: with its prefixes if it has any."""
    known = {(gap.place, gap.why) for gap in gaps if gap.prefix is not None}
    kept = [gap for gap in gaps if gap.prefix is not None or gap.doubt or (gap.place, gap.why) not in known]
    return tuple(dict.fromkeys(kept))[: MAX_UNKNOWN + 1]


def _tied(
    saved: Mapping[str, Found], declared: list[tuple[str, object, bool | None]], budget: Budget
) -> dict[str, str]:
    """Name -> the name whose values it shares: one object under two names, or declared so by the class."""
    tied: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, one in saved.items():
        other = first.setdefault(one.tensor, name)
        if other != name:
            tied[name] = other
            tied.setdefault(other, name)
    for prefix, keys, ties in declared[:64]:
        pairs = list(keys.items()) if isinstance(keys, dict) else [(key, "") for key in _listed(keys)]
        for key, target in pairs[:64]:
            if ties is False and (isinstance(keys, dict) or not str(key).endswith("embed_tokens.weight")):
                continue
            budget.charge(1 + len(saved) // 4)
            for name in saved:
                below = name.startswith(prefix) and isinstance(key, str)
                if below and (name == f"{prefix}{key}" or matches(str(key), name[len(prefix) :])):
                    partner = f"{prefix}{target}" if isinstance(target, str) else ""
                    tied.setdefault(name, partner if partner in saved else "")
    return tied


def _listed(keys: object) -> list[object]:
    return list(keys) if isinstance(keys, list | tuple | set) else []
