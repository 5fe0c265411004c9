"""Can a file of tensors be loaded into what a model's code implies, and after which renames?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from drupe.implied.patterns import matches
from drupe.implied.results import Implied, Place
from drupe.implied.values import Dims
from drupe.name_groups import Named, fill, template_of
from drupe.signals.names import compare

Shapes = Mapping[str, tuple[int, ...]]
MAX_RENAMES = 24
"""Renames that are tried; a file that needs more is of another design."""
MAX_TRIED = 5000
"""Names for which the smallest set of renames is searched one by one."""

MAX_MATCHED = 1_000_000
"""Names times patterns that are matched."""


class Outcome(StrEnum):
    """Whether the tensors can be loaded."""

    FITS = "fits"
    FITS_AFTER_RENAMES = "fits_after_renames"
    DOES_NOT_FIT = "does_not_fit"
    UNKNOWN = "unknown"
    """The code could not be followed where it matters."""


@dataclass(frozen=True, slots=True)
class Rename:
    """A part of the code's names and what the file writes instead; ``count`` tensors need it."""

    code: str
    file: str
    count: int


@dataclass(frozen=True, slots=True)
class Lack:
    """A tensor that the code wants and the file lacks."""

    name: str
    shape: Dims | None
    place: Place


@dataclass(frozen=True, slots=True)
class Wrong:
    """A tensor of another shape than the code makes it."""

    name: str
    wanted: Dims
    found: tuple[int, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Fit:
    """The tensors of a file against a model's code.

    ``missing``, ``unexpected`` and ``wrong`` are before any rename, with the code's own base prefix added or
    stripped as loaders do (``prefix``); ``left`` counts what is still wrong after ``renames``.
    """

    outcome: Outcome
    matched: int = 0
    missing: tuple[Lack, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong: tuple[Wrong, ...] = ()
    renames: tuple[Rename, ...] = ()
    left: int = 0
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class _Difference:
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong: tuple[str, ...]
    matched: int
    open: int

    @property
    def size(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.wrong)


def fits(implied: Implied, tensors: Shapes) -> Fit:
    """Whether ``tensors`` (name -> shape) can be loaded into the code, as they are or after few renames."""
    if implied.entry is None or not implied.parameters:
        return Fit(Outcome.UNKNOWN, unexpected=tuple(tensors))
    prefix, names = _with_base_prefix(implied, tensors)
    found = _difference(implied, names, tensors)
    renames: tuple[Rename, ...] = ()
    after = found
    if found.size:
        renames, after = _renamed(implied, names, tensors, found)
    outcome = Outcome.FITS if not found.size else Outcome.FITS_AFTER_RENAMES
    if after.size:
        outcome = Outcome.DOES_NOT_FIT
    if found.open and outcome is not Outcome.DOES_NOT_FIT:
        outcome = Outcome.UNKNOWN
    doubtful = implied.doubts("all") or (after.size and implied.doubts("misfit"))
    if doubtful or (after.size and not _is_sure(implied, found)):
        outcome = Outcome.UNKNOWN
    return Fit(
        outcome,
        found.matched,
        tuple(Lack(name, implied.parameters[name], implied.places[name]) for name in found.missing),
        found.unexpected,
        tuple(_wrong(implied, name, tensors[names[name]]) for name in found.wrong),
        renames if not after.size or after.size < found.size else (),
        after.size,
        prefix,
    )


def _is_sure(implied: Implied, found: _Difference) -> bool:
    """What does not fit lies where the code was understood."""
    return bool(found.missing or found.wrong) or not any(gap.prefix is not None for gap in implied.unknown)


def _wrong(implied: Implied, name: str, shape: tuple[int, ...]) -> Wrong:
    return Wrong(name, implied.parameters[name] or (), shape, implied.places[name])


def _with_base_prefix(implied: Implied, tensors: Shapes) -> tuple[str, dict[str, str]]:
    """How loaders read the names: as they are, or with the base prefix stripped; code's name -> file's name."""
    plain = {name: name for name in implied.parameters}
    base = f"{implied.base_prefix}."
    if base == "." or any(name in tensors for name in plain if name.startswith(base)):
        return "", plain
    stripped = {name: name.removeprefix(base) for name in plain}
    if sum(name in tensors for name in stripped.values()) > sum(name in tensors for name in plain):
        return base, stripped
    return "", plain


def _difference(implied: Implied, names: Mapping[str, str], tensors: Shapes) -> _Difference:
    """``names``: the code's name -> the name under which the file may hold it."""
    missing = [
        name for name in names if names[name] not in tensors and _is_required(implied, name, names, tensors)
    ]
    wanted = set(names.values())
    left = [name for name in tensors if name not in wanted]
    left = [name for name in left if not _may_be_left(implied, name, len(left))]
    prefixes = implied.open_prefixes
    open_names = [name for name in left if name.startswith(prefixes)]
    present = [name for name in names if names[name] in tensors]
    wrong = [name for name in present if not _is_shape(implied.parameters[name], tensors[names[name]])]
    unexpected = tuple(name for name in left if not name.startswith(prefixes))
    return _Difference(tuple(missing), unexpected, tuple(wrong), len(present) - len(wrong), len(open_names))


def _is_required(implied: Implied, name: str, names: Mapping[str, str], tensors: Shapes) -> bool:
    if name in implied.optional or _is_declared(implied.may_lack, name, len(names)):
        return False
    if name not in implied.tied:
        return True
    partner = implied.tied[name]
    return bool(partner) and names.get(partner, partner) not in tensors


def _may_be_left(implied: Implied, name: str, count: int) -> bool:
    return name in implied.transient or _is_declared(implied.may_have, name, count)


def _is_declared(patterns: tuple[str, ...], name: str, count: int) -> bool:
    """One of the code's own patterns names it; very many patterns on very many names are not tried."""
    return len(patterns) * count <= MAX_MATCHED and any(matches(pattern, name) for pattern in patterns)


def _is_shape(wanted: Dims | None, found: Sequence[int]) -> bool:
    if wanted is None:
        return True
    return len(wanted) == len(found) and all(a is None or a == b for a, b in zip(wanted, found, strict=True))


def _renamed(
    implied: Implied, names: Mapping[str, str], tensors: Shapes, found: _Difference
) -> tuple[tuple[Rename, ...], _Difference]:
    """The renames that the names themselves suggest, fewest first, and what is wrong after them."""
    code = [
        Named(names[name], tuple(-1 if one is None else one for one in shape or ()), "")
        for name, shape in implied.parameters.items()
    ]
    file = [Named(name, shape, "") for name, shape in tensors.items()]
    suggested = compare(file, code, in_file_order=False).renamed_modules
    rules = [_Rule(old, new) for old, new in suggested.items()][:MAX_RENAMES]
    if not rules:
        return (), found
    split = [_Split(name, shown, *template_of(shown)) for name, shown in names.items()]
    best = _difference(implied, _apply(split, rules)[0], tensors)
    for rule in reversed(rules) if len(names) <= MAX_TRIED else ():
        fewer = [one for one in rules if one is not rule]
        difference = _difference(implied, _apply(split, fewer)[0], tensors)
        if difference.size <= best.size:
            rules, best = fewer, difference
    used = _apply(split, rules)[1]
    renames = tuple(Rename(one.old, one.new, used[one]) for one in rules)
    return tuple(sorted(renames, key=lambda one: -one.count)), best


@dataclass(frozen=True, slots=True)
class _Rule:
    """Parts of names that are written otherwise, or a whole pattern with numbers left open."""

    old: str
    new: str

    @property
    def is_pattern(self) -> bool:
        return "{}" in self.old and "." in self.old


@dataclass(frozen=True, slots=True)
class _Split:
    """A name of the code, the name under which it is looked for, and that one's pattern and numbers."""

    name: str
    shown: str
    template: str
    indices: tuple[int, ...]


def _apply(split: Sequence[_Split], rules: Sequence[_Rule]) -> tuple[dict[str, str], Counter[_Rule]]:
    """The file's name for each of the code's names, and how many names each rule rewrites."""
    patterns = {rule.old: rule for rule in rules if rule.is_pattern}
    parts = [(f".{rule.old}.", rule) for rule in rules if not rule.is_pattern and rule.old]
    used: Counter[_Rule] = Counter()
    found = {}
    for one in split:
        rule = patterns.get(one.template)
        if rule is not None and rule.new.count("{}") == len(one.indices):
            used[rule] += 1
            found[one.name] = fill(rule.new, one.indices)
            continue
        text = f".{one.shown}."
        for old, part in parts:
            if old in text:
                used[part] += 1
                text = text.replace(old, f".{part.new}." if part.new else ".", 1)
        found[one.name] = text[1:-1]
    return found, used
