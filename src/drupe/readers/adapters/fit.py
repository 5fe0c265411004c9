"""Whether an adapter fits a base: every tensor that it changes exists there with the right shape.

Names may differ by one prefix for all tensors of a part (``model.``, ``language_model.``, the folder of a pipeline),
and sd-scripts writes underscores for dots; a prefix counts only when no other gives as many of the names.
Fused or renamed modules of the base are no fit and no contradiction: nothing can be said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Protocol

from drupe.readers.adapters.interface import MAGNITUDE, Method, method_of

MAX_PREFIXES = 16
MAX_CUT = 4
"""Components in front of an adapter's names that the base may lack."""
MAX_NAMED = 3
"""Tensors that a misfit names."""


class Named(Protocol):
    """A tensor as a fingerprint knows it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> str:
        """Its storage type."""


class Outcome(StrEnum):
    """What is known of an adapter and a base."""

    FITS = "fits"
    OTHER_NAMES = "other_names"
    """The base has no such modules, or several sets of them: renamed, fused, or another model."""
    OTHER_SHAPES = "other_shapes"


@dataclass(frozen=True, slots=True)
class Fit:
    """``places``: tensor of the adapter -> tensor of the base; ``wrong``: what does not exist, or the two shapes."""

    outcome: Outcome
    places: Mapping[str, str]
    wrong: tuple[str, ...] = ()
    count: int = 0
    """How many tensors are wrong."""
    added: tuple[str, ...] = ()
    """Tensors that are stored whole and that the base does not have: a new head."""


def fit(adapter: Iterable[Named], base: Iterable[Named]) -> Fit:
    """Find the tensors of the base that an adapter changes."""
    listed = list(adapter)
    theirs = {tensor.name: tensor for tensor in base}
    places: dict[str, str] = {}
    missing: list[Named] = []
    for part, members in _parts(listed).items():
        found = _resolve(part, members, theirs)
        places.update(found)
        missing += [tensor for tensor in members if tensor.name not in found]
    added = tuple(tensor.name for tensor in missing if _is_whole(tensor)) if places else ()
    missing = [tensor for tensor in missing if not (places and _is_whole(tensor))]
    if missing:
        return Fit(
            Outcome.OTHER_NAMES, places, tuple(tensor.name for tensor in missing[:MAX_NAMED]), len(missing)
        )
    wrong = [
        f"{tensor.name} {_shown(tensor)}, {places[tensor.name]} {_shown(theirs[places[tensor.name]])}"
        for tensor in listed
        if tensor.name in places and not fits(tensor, theirs[places[tensor.name]])
    ]
    if wrong:
        return Fit(Outcome.OTHER_SHAPES, places, tuple(wrong[:MAX_NAMED]), len(wrong))
    return Fit(Outcome.FITS, places, added=added)


def _is_whole(tensor: Named) -> bool:
    return method_of(tensor.dtype) is Method.WHOLE and not tensor.name.endswith(MAGNITUDE)


def _shown(tensor: Named) -> str:
    return " x ".join(map(str, tensor.shape))


def fits(change: Named, tensor: Named) -> bool:
    """Whether a change can be made to a tensor of that shape, stored either way round."""
    mine, theirs = _sides(change.shape), _sides(tensor.shape)
    if change.name.endswith(MAGNITUDE):
        return prod(change.shape) in theirs
    match method_of(change.dtype):
        case Method.LORA | Method.LOHA:
            return mine == theirs or (len(tensor.shape) == 2 and mine == theirs[::-1])
        case Method.IA3:
            return prod(change.shape) in (tensor.shape[:2] if len(tensor.shape) > 1 else tensor.shape)
        case Method.WHOLE:
            grown = len(tensor.shape) == 2 and mine[1] == theirs[1] and mine[0] > theirs[0]
            return change.shape == tensor.shape or grown


def _sides(shape: Sequence[int]) -> tuple[int, int]:
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))


def _parts(listed: Sequence[Named]) -> dict[str, list[Named]]:
    """Tensors by the part of a pipeline that their name begins with."""
    parts: dict[str, list[Named]] = defaultdict(list)
    for tensor in listed:
        part, colon, _ = tensor.name.partition(":")
        parts[part if colon and "." not in part else ""].append(tensor)
    return parts


def _resolve(part: str, members: Sequence[Named], base: Mapping[str, Named]) -> dict[str, str]:
    """The base's name of each tensor under the one prefix that gives all of them; else as many as any gives."""
    names = {tensor.name: _target(tensor.name.removeprefix(f"{part}:")) for tensor in members}
    underscored = bool(part) and all("." not in name.removesuffix(".weight") for name in names.values())
    known = _index(base, underscored)
    candidates = []
    telling = [names[tensor.name] for tensor in members if not _is_whole(tensor)] or list(names.values())
    for cut, prefix in _prefixes(telling, known, underscored):
        found = {
            name: known[wanted]
            for name, own in names.items()
            if (wanted := prefix + own.removeprefix(cut)) in known
        }
        shapes = sum(fits(tensor, base[found[tensor.name]]) for tensor in members if tensor.name in found)
        usual = prefix in ("", f"{part}:")
        candidates.append(((len(found), shapes, not cut, usual), found))
    if not candidates:
        return {}
    best = max(score for score, _ in candidates)
    winners = [found for score, found in candidates if score == best]
    return winners[0] if len(winners) == 1 else {}


def _target(name: str) -> str:
    """The tensor whose existence and shape decide about a change."""
    return name.removesuffix(MAGNITUDE) + ".weight" if name.endswith(MAGNITUDE) else name


def _index(base: Mapping[str, Named], underscored: bool) -> dict[str, str]:
    """Name as the adapter would write it -> name; names that become alike are left out."""
    if not underscored:
        return {name: name for name in base}
    index: dict[str, str] = {}
    twice = set()
    for name in base:
        module, _, leaf = name.rpartition(".")
        key = f"{module.replace('.', '_')}.{leaf}"
        if key in index:
            twice.add(key)
        index[key] = name
    return {key: name for key, name in index.items() if key not in twice}


def _prefixes(names: Sequence[str], known: Mapping[str, str], underscored: bool) -> Iterator[tuple[str, str]]:
    """What is cut off all names, and what is put in front instead."""
    first = names[0]
    components = first.split(".")
    border = ("_", ":", ".") if underscored else (":", ".")
    starts = [
        "".join(f"{component}." for component in components[:cut])
        for cut in range(min(MAX_CUT, len(components) - 1))
    ]
    for start in ["", "text_model_"] if underscored else starts:  # transformers 5 leaves that module out
        if not all(name.startswith(start) for name in names):
            return
        rest = first.removeprefix(start)
        found = 0
        for name in known:
            prefix = name.removesuffix(rest)
            if name.endswith(rest) and (not prefix or prefix.endswith(border)):
                found += 1
                if found > MAX_PREFIXES:
                    return
                yield start, prefix
