"""Names of tensors: equal, equal in order, or equal after renaming few modules.

Names are chosen by people and by frameworks: two strangers who use one library share all of them, and one
line of code changes all of them. So this signal proves nothing about weights; it explains what a rename did.
Modules of one shape are paired by the substitutions that explain most, then by likeness and order of their
names; the values may correct such a pair later.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

from drupe.messages import msg
from drupe.name_groups import Indices, Named, NameGroup, expand, fill, group_names, template_of
from drupe.readers.interface import TensorInfo
from drupe.signals.interface import Component, Evidence, Finding, Measured, Skipped

__all__ = [
    "NameGroup",
    "Named",
    "NamesFacts",
    "NamesResult",
    "compare",
    "expand",
    "extract",
    "group_names",
    "translate",
]

MAX_GROUPS = 4096
"""Groups kept in the facts; published models have at most a few hundred patterns."""
MAX_PAIRS = 4000
"""Pairs of patterns of one shape that are compared letter by letter; beyond, names are called opaque."""
MAX_TEMPLATE = 160
"""Characters of a pattern that is compared letter by letter, which takes quadratic time."""
MIN_SUPPORT = 3
"""Patterns that must share a substitution before it counts where nothing else in the name stayed."""
_NO_ANCHOR = {"{}", "weight", "bias", "scale", "beta", "gamma", ""}

Rule = tuple[str, str]
"""A part of the source's names and what the suspect writes instead."""


@dataclass(frozen=True, slots=True)
class NamesFacts:
    """Portable: the groups in natural order, the number of tensors and a digest of the order in the file."""

    groups: tuple[NameGroup, ...]
    count: int
    order_digest: str
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class NamesResult:
    """How the suspect's names relate to the source's. ``renamed_modules``: source's name -> suspect's name.

    ``order_equal`` is None when the order of a file is not known (fingerprints keep a digest of it).
    """

    renamed_modules: Mapping[str, str]
    renamed_tensors: int
    same: int
    unexplained: int
    order_equal: bool | None
    findings: tuple[Finding, ...]


def extract(tensors: Iterable[TensorInfo | Named]) -> NamesFacts:
    """The facts of a model; ``tensors`` in file order."""
    listed = list(tensors)
    digest = hashlib.sha256(
        "\0".join(tensor.name for tensor in listed).encode("utf-8", "replace")
    ).hexdigest()
    groups = group_names(listed)
    return NamesFacts(groups[:MAX_GROUPS], len(listed), digest[:32], len(groups) > MAX_GROUPS)


@dataclass(frozen=True, slots=True)
class _Pattern:
    """Names of one template and shape. ``rank`` is the place of the first one among all patterns."""

    template: str
    parts: tuple[str, ...]
    key: tuple[tuple[int, ...], int]
    indices: frozenset[Indices]
    rank: int


@dataclass(frozen=True, slots=True)
class _Pair:
    """A pattern of the source that the suspect may spell by ``rules``."""

    source: _Pattern
    suspect: _Pattern
    rules: tuple[Rule, ...]
    anchored: bool


def compare(
    suspect: Sequence[Named | TensorInfo], source: Sequence[Named | TensorInfo], *, in_file_order: bool = True
) -> NamesResult:
    """The renames that lead from the source's names to the suspect's; both in file order if known."""
    theirs, ours = {(t.name, _key(t.shape)) for t in source}, {(t.name, _key(t.shape)) for t in suspect}
    same = len(theirs & ours)
    pairs = _assign(
        _patterns([t for t in source if (t.name, _key(t.shape)) not in ours]),
        _patterns([t for t in suspect if (t.name, _key(t.shape)) not in theirs]),
    )
    renamed = sum(len(pair.source.indices & pair.suspect.indices) for pair in pairs)
    order = _order_equal(suspect, source, pairs) if in_file_order else None
    modules = _modules(pairs)
    unexplained = len(ours) - same - renamed
    findings = _findings(pairs, same, renamed, (len(ours), len(theirs)), order)
    return NamesResult(modules, renamed, same, unexplained, order, findings)


def translate(suspect: Sequence[Named | TensorInfo], source: Sequence[Named | TensorInfo]) -> dict[str, str]:
    """Suspect's name -> source's name, for tensors of one name or of patterns that a rename explains."""
    theirs = {(t.name, _key(t.shape)) for t in source}
    found = {t.name: t.name for t in suspect if (t.name, _key(t.shape)) in theirs}
    pairs = _assign(
        _patterns([t for t in source if t.name not in found]),
        _patterns([t for t in suspect if t.name not in found]),
    )
    for pair in pairs:
        for indices in pair.source.indices & pair.suspect.indices:
            found[fill(pair.suspect.template, indices)] = fill(pair.source.template, indices)
    return found


def modules_of(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The fewest substitutions that lead from the first names to the second, pair by pair known."""
    templates = dict.fromkeys((template_of(old)[0], template_of(new)[0]) for old, new in pairs)
    told = [(old, new) for old, new in templates if max(len(old), len(new)) <= MAX_TEMPLATE]
    return _modules([_pair(*(_pattern(text) for text in both)) for both in told])


def _pattern(template: str) -> _Pattern:
    return _Pattern(template, tuple(re.split(r"[./]", template)), ((), 0), frozenset(), 0)


def _key(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape regardless of orientation: Conv1D and Linear store the same matrix either way."""
    return tuple(sorted(shape))


def _patterns(names: Iterable[Named | TensorInfo]) -> list[_Pattern]:
    groups: dict[tuple[str, tuple[int, ...]], set[Indices]] = defaultdict(set)
    for tensor in names:
        template, indices = template_of(tensor.name)
        if len(template) <= MAX_TEMPLATE:
            groups[template, _key(tensor.shape)].add(indices)
    return [
        _Pattern(
            template,
            tuple(re.split(r"[./]", template)),
            (shape, template.count("{}")),
            frozenset(found),
            rank,
        )
        for rank, ((template, shape), found) in enumerate(groups.items())
    ]


def _assign(source: Sequence[_Pattern], suspect: Sequence[_Pattern]) -> list[_Pair]:
    """The cheapest pairs within each class of equal shape; twice, so that popular substitutions win."""
    classes = _classes(source, suspect)
    support = Counter({rule: 1.0 for grid in classes for row in grid for pair in row for rule in pair.rules})
    for grid in classes:
        for row in grid:  # a substitution counts once per pattern of the source that could use it
            for rule in {rule for pair in row for rule in pair.rules}:
                support[rule] += 1
    chosen: list[_Pair] = []
    for _ in range(2):
        chosen = [pair for grid in classes for pair in _cheapest(grid, support)]
        used = Counter(rule for pair in chosen for rule in pair.rules)
        support = Counter({rule: 1.0 + 10 * used[rule] for rule in support})
    return [
        pair
        for pair in chosen
        if pair.source.indices & pair.suspect.indices
        and (pair.anchored or max((used[rule] for rule in pair.rules), default=0) >= MIN_SUPPORT)
    ]


def _classes(source: Sequence[_Pattern], suspect: Sequence[_Pattern]) -> list[list[list[_Pair]]]:
    by_key: dict[object, tuple[list[_Pattern], list[_Pattern]]] = defaultdict(lambda: ([], []))
    for side, patterns in enumerate((source, suspect)):
        for pattern in patterns:
            by_key[pattern.key][side].append(pattern)
    room = MAX_PAIRS
    classes = []
    for a, b in sorted(by_key.values(), key=lambda sides: len(sides[0]) * len(sides[1])):
        room -= len(a) * len(b)
        if room < 0:
            break
        if a and b:
            classes.append([[_pair(one, other) for other in b] for one in a])
    return classes


def _pair(source: _Pattern, suspect: _Pattern) -> _Pair:
    a, b = source.parts, suspect.parts
    rules: list[Rule] = []
    anchored = False
    for kind, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            anchored |= any(part not in _NO_ANCHOR for part in a[i:j])
            continue
        if i == j or k == m:  # an inserted or removed part is told by its neighbour
            before = j == len(a)
            i, k = (i - before, k - before) if min(i, k) > 0 or not before else (i, k)
            j, m = (j, m) if before else (j + 1, m + 1)
        rules.append((".".join(a[i:j]), ".".join(b[k:m])))
    return _Pair(source, suspect, tuple(rules), anchored)


def _cheapest(grid: list[list[_Pair]], support: Mapping[Rule, float]) -> list[_Pair]:
    """The cheapest pair, then the cheapest of what is left; scipy's assignment costs 0.3 s to import."""
    size = max(len(grid), len(grid[0]))
    ranked = sorted(
        (_cost(pair, support, i - j, size), i, j) for i, row in enumerate(grid) for j, pair in enumerate(row)
    )
    rows: set[int] = set()
    columns: set[int] = set()
    chosen = []
    for _, i, j in ranked:
        if i not in rows and j not in columns:
            rows.add(i)
            columns.add(j)
            chosen.append(grid[i][j])
    return chosen


def _cost(pair: _Pair, support: Mapping[Rule, float], shift: int, size: int) -> float:
    unlike = sum(1 - _likeness(rule) for rule in pair.rules)
    rare = sum(1 / support[rule] for rule in pair.rules)
    indices = len(pair.source.indices ^ pair.suspect.indices) / len(
        pair.source.indices | pair.suspect.indices
    )
    return rare + 0.5 * unlike + 0.2 * abs(shift) / size + 2 * indices + (not pair.anchored)


@lru_cache(8192)
def _likeness(rule: Rule) -> float:
    return SequenceMatcher(None, *rule, autojunk=False).ratio()


def _modules(pairs: Sequence[_Pair]) -> dict[str, str]:
    """Substitutions, most used first; a part that is spelled in two ways is told with its whole pattern."""
    votes = Counter(rule for pair in pairs for rule in pair.rules)
    modules: dict[str, str] = {}
    for old, new in sorted(votes, key=lambda rule: (-votes[rule], rule)):
        if modules.setdefault(old, new) != new:
            modules.update({p.source.template: p.suspect.template for p in pairs if (old, new) in p.rules})
    return modules


def _order_equal(
    suspect: Sequence[Named | TensorInfo], source: Sequence[Named | TensorInfo], pairs: Sequence[_Pair]
) -> bool:
    renamed = {(pair.source.template, pair.source.key[0]): pair.suspect.template for pair in pairs}
    if len(suspect) != len(source):
        return False
    for ours, theirs in zip(suspect, source, strict=True):
        template, indices = template_of(theirs.name)
        if ours.name != fill(renamed.get((template, _key(theirs.shape)), template), indices):
            return False
    return True


def _findings(
    pairs: Sequence[_Pair], same: int, renamed: int, counts: tuple[int, int], order: bool | None
) -> tuple[Finding, ...]:
    if not same + renamed:
        return (Skipped("names", Component.ARCHITECTURE, msg("names.opaque")),)
    evidence = [
        Evidence(
            pair.source.template,
            msg("names.renamed", new=pair.suspect.template, count=len(pair.source.indices)),
        )
        for pair in pairs[:64]
    ]
    if order:
        evidence.append(Evidence("*", msg("names.order", count=counts[0])))
    caveats = [msg("names.caveat")]
    if same + renamed < counts[0]:
        caveats.append(msg("names.unexplained", count=counts[0] - same - renamed))
    return (
        Measured(
            signal="names",
            component=Component.ARCHITECTURE,
            statistic=(same + renamed) / max(counts),
            null=msg("names.null"),
            sample_size=max(counts),
            evidence=tuple(evidence),
            caveats=tuple(caveats),
        ),
    )
