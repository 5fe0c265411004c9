"""A subject divided into the parts that people assemble models from: towers, projector, encoder, decoder, ...

The names of the tensors divide it, so a fingerprint is divided like the model it was made of. Known words are data
(``data/parts.toml``); a further tower under an unknown prefix is a part of its own, whatever it is called.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from math import prod

from drupe.fingerprint import Fingerprint
from drupe.messages import msg
from drupe.model import Matrix, Model
from drupe.name_groups import Named, expand
from drupe.readers.interface import Absent, TensorInfo
from drupe.readers.subset import subset
from drupe.roles import Role, Roles
from drupe.signals import names, structure
from drupe.signals.sketch.facts import WeightFacts
from drupe.subject import Subject

FOLDER = ":"
"""Ends the name of the folder in the tensor names of a model that was assembled from several folders."""
REST = "language_model"
"""What is left of a model beside its towers for images and sounds."""
_BESIDE_LANGUAGE = frozenset({"vision_tower", "audio_tower", "projector"})
_CODERS = frozenset({"encoder", "decoder"})


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a subject as a subject of its own. ``parameters``: values of its own tensors; ``common``: of those
    that it shares with the other parts and that can speak for lineage.
    """

    name: str
    subject: Subject
    parameters: int
    common: int = 0


@dataclass(frozen=True, slots=True)
class _Rules:
    starts: Mapping[str, str]
    words: Mapping[str, str]


@cache
def _rules() -> _Rules:
    file = resources.files("drupe") / "data" / "parts.toml"
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    words = {word: part for part, listed in table["words"].items() for word in listed}
    return _Rules(table["starts"], words)


def divide(subject: Subject) -> tuple[Part, ...]:
    """The parts, the largest first; a model that is one whole is one part named ``model``."""
    tensors = _tensors(subject)
    sizes = {tensor.name: prod(tensor.shape) for tensor in tensors}
    division = part_names(list(sizes), _stacks(subject))
    parts = sorted(set(division.values()) - {None}, key=str)
    if len(parts) < 2:
        return (Part("model", subject, sum(sizes.values())),)
    common = {name for name, part in division.items() if part is None}
    facts = subject.fingerprint.weights
    shared = sum(
        matrix.size
        for matrix, speaks in zip(facts.matrices, facts.informative, strict=True)
        if speaks and matrix.tensor in common
    )
    found = []
    for part in parts:
        own = {name for name, place in division.items() if place == part}
        total = sum(sizes[name] for name in own)
        found.append(Part(str(part), _restrict(subject, own | common, tensors), total, shared))
    return tuple(sorted(found, key=lambda part: (-part.parameters, part.name)))


def part_names(tensors: Sequence[str], stacks: Mapping[str, str]) -> dict[str, str | None]:
    """Tensor -> part; None = shared by all of them. ``stacks``: tensor -> the tower its role speaks of."""
    known = {name: _by_name(name) for name in tensors}
    towers = _towers(known, stacks)
    division = {name: part or _by_prefix(name, towers) for name, part in known.items()}
    present = set(division.values())
    if present & _BESIDE_LANGUAGE:
        return {name: REST if part is None or part in _CODERS else part for name, part in division.items()}
    if present >= _CODERS:
        return division  # what stands outside of both belongs to both
    return {name: "model" if part is None or part in _CODERS else part for name, part in division.items()}


def _by_name(name: str) -> str | None:
    folder, colon, _ = name.partition(FOLDER)
    if colon and "." not in folder:
        return folder
    for start, part in _rules().starts.items():
        if name.startswith(start):
            return part
    for component in name.split(".")[:-1]:
        if component.isdecimal():
            return None
        if (word := component.lower()) in _rules().words:
            return _rules().words[word]
    return None


def _towers(known: Mapping[str, str | None], stacks: Mapping[str, str]) -> dict[str, str]:
    """Prefix -> name of the towers that no word names: as short as keeps them apart from all other names."""
    groups: dict[str, list[str]] = {}
    others: list[str] = []
    for name, part in known.items():
        tower = stacks.get(name, "")
        if part is None and tower.startswith("tower"):
            groups.setdefault(tower, []).append(name)
        elif part is None and name in stacks:
            others.append(name)
    return {
        prefix: tower
        for tower, members in groups.items()
        if (prefix := _prefix_apart(members, others)) is not None
    }


def _prefix_apart(members: Sequence[str], others: Iterable[str]) -> str | None:
    components = members[0].split(".")
    strangers = list(others)
    for length in range(1, len(components)):
        prefix = ".".join(components[:length]) + "."
        if not all(name.startswith(prefix) for name in members):
            return None
        if not any(name.startswith(prefix) for name in strangers):
            return prefix
    return None


def _by_prefix(name: str, towers: Mapping[str, str]) -> str | None:
    return next((tower for prefix, tower in towers.items() if name.startswith(prefix)), None)


def _tensors(subject: Subject) -> list[Named | TensorInfo]:
    if subject.model is not None and not isinstance(subject.model.weights, Absent):
        return list(subject.model.weights.tensors.values())
    return list(expand(subject.fingerprint.names.groups))


def _stacks(subject: Subject) -> dict[str, str]:
    """Tensor -> what stands before the dot of its role; tensors without a role are left out."""
    if subject.model is not None:
        return {name: role.name.rpartition(".")[0] for name, role in subject.model.roles.by_tensor.items()}
    matrices = subject.fingerprint.weights.matrices
    return {matrix.tensor: matrix.role.rpartition(".")[0] for matrix in matrices if matrix.role is not None}


def _restrict(subject: Subject, kept: set[str], tensors: Sequence[Named | TensorInfo]) -> Subject:
    """The subject with those tensors only; its texts, vocabulary and code stay what they are."""
    facts = _restrict_facts(subject.fingerprint.weights, kept)
    inside = [tensor for tensor in tensors if tensor.name in kept]
    infos = [t if isinstance(t, TensorInfo) else TensorInfo(t.name, t.shape, t.dtype, "") for t in inside]
    fingerprint: Fingerprint = replace(
        subject.fingerprint,
        weights=facts,
        names=names.extract(infos),
        structure=structure.extract(None, infos),
        absent={part: why for part, why in subject.fingerprint.absent.items() if part != "weights"},
    )
    if not inside:
        fingerprint = replace(
            fingerprint, absent={**fingerprint.absent, "weights": msg("part.weights_missing")}
        )
    model = None if subject.model is None else _restrict_model(subject.model, kept)
    return replace(subject, fingerprint=fingerprint, model=model)


def _restrict_facts(facts: WeightFacts, kept: set[str]) -> WeightFacts:
    chosen = [place for place, matrix in enumerate(facts.matrices) if matrix.tensor in kept]
    tower = _tower([facts.matrices[place].role for place in chosen])
    return WeightFacts(
        tuple(_without(facts.matrices[place], tower) for place in chosen),
        facts.words[chosen],
        facts.counts[chosen],
        facts.digests[chosen],
        facts.rms[chosen],
        facts.states[chosen],
    )


def _restrict_model(model: Model, kept: set[str]) -> Model:
    roles = {name: role for name, role in model.roles.by_tensor.items() if name in kept}
    tower = _tower([role.name for role in roles.values()])
    scheme = model.roles.stacks.get(tower)
    weights = model.weights if isinstance(model.weights, Absent) else subset(model.weights, kept)
    own = {name: replace(role, name=_strip(role, tower)) for name, role in roles.items()}
    return replace(
        model,
        weights=weights,
        roles=Roles(own, {"": scheme} if scheme else {}),
        matrices=tuple(_without(matrix, tower) for matrix in model.matrices if matrix.tensor in kept),
    )


def _tower(roles: Sequence[str | None]) -> str:
    """The tower that most roles of a part speak of; "" = the main one."""
    stacks = Counter(role.partition(".")[0] if role.startswith("tower") else "" for role in roles if role)
    return stacks.most_common(1)[0][0] if stacks else ""


def _strip(role: Role, tower: str) -> str:
    return role.name.removeprefix(f"{tower}.") if tower else role.name


def _without(matrix: Matrix, tower: str) -> Matrix:
    if not tower or matrix.role is None:
        return matrix
    return replace(matrix, role=matrix.role.removeprefix(f"{tower}."))
