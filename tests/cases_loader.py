"""The truth tables ``tests/cases/*.toml``: loaded, validated, and written to disk as pairs of model folders.

A pair is ``name``, ``suspect`` and ``source`` (a ``model`` of tests/models and ``edits`` of the zoo), and
what Drupe must say: ``label``, ``weights`` (that component's relation), ``transformations`` (the set of
kinds) and ``exit``. Where more than one answer is right, ``label_accept`` and ``weights_accept`` list the
others, and ``optional`` the kinds that may be reported besides.

>>> case = next(case for case in load_cases() if case.name == "noise-0.1")
>>> case.label, case.weights, sorted(case.transformations), case.exit
('copy', 'equivalent', ['gaussian_noise'], 1)
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zoo
from zoo_files import MODELS

CASES = Path(__file__).parent / "cases"
EXIT_OF_LABEL = {"copy": 1, "derivative": 1, "same_design": 0, "unrelated": 0, "inconclusive": 3}
# Weights relation -> the labels that the verdict table gives it.
LABELS_OF_RELATION = {
    "identical": {"copy"},
    "equivalent": {"copy"},
    "derived": {"derivative"},
    "partial": {"derivative"},
    "common_source": {"derivative"},
    "shared_initialisation": {"same_design", "unrelated"},
    "independent": {"same_design", "unrelated"},
    "inconclusive": {"inconclusive"},
}
KINDS = frozenset(
    {
        "renamed",
        "resharded",
        "cast",
        "quantised",
        "gaussian_noise",
        "rescaled",
        "permuted",
        "rotated",
        "fine_tuned",
        "low_rank_update",
        "continued_pretraining",
        "merged",
        "pruned",
        "width_pruned",
        "layers_dropped",
        "layers_reordered",
        "depth_upscaled",
        "moe_upcycled",
        "vocabulary_changed",
        "unknown_change",
    }
)
# Thresholds are chosen on pairs of these models alone; every other pair is held out (tests/models/README.md).
DEV_MODELS = frozenset({"r0", "r1", "r3", "r0_ft", "r0_cpt"})
REQUIRED = frozenset({"name", "suspect", "source", "label", "weights", "transformations", "exit"})
FURTHER = frozenset({"label_accept", "weights_accept", "optional"})


class CaseError(ValueError):
    """A truth table says something that does not exist or contradicts itself."""


@dataclass(frozen=True, slots=True)
class Side:
    """A committed model and what is done to it, in order."""

    model: str
    edits: tuple[tuple[str, dict[str, Any]], ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """One pair and what Drupe must say about it."""

    name: str
    suspect: Side
    source: Side
    label: str
    weights: str
    transformations: frozenset[str]
    exit: int
    labels: frozenset[str]  # label and what is accepted besides
    relations: frozenset[str]
    optional: frozenset[str]

    @property
    def exits(self) -> frozenset[int]:
        """The exit codes of every accepted label."""
        return frozenset(EXIT_OF_LABEL[label] for label in self.labels)

    @property
    def split(self) -> str:
        """``dev`` where every model that is read is a dev model, else ``held``."""
        return "dev" if models_used([self]) <= DEV_MODELS else "held"

    def kinds_match(self, found: Iterable[str]) -> bool:
        """Whether the reported kinds are those expected, give or take the optional ones."""
        return self.transformations <= set(found) <= self.transformations | self.optional


def _side(entry: Mapping[str, Any], where: str) -> Side:
    if unknown := set(entry) - {"model", "edits"}:
        raise CaseError(f"{where}: unknown key {sorted(unknown)}")
    model = entry.get("model", "")
    if not (MODELS / model / "model.safetensors").is_file():
        raise CaseError(f"{where}: no model {model!r} in tests/models")
    edits = []
    for edit in entry.get("edits", []):
        kind, parameters = edit.get("kind"), {k: v for k, v in edit.items() if k != "kind"}
        if kind not in zoo.EDITS:
            raise CaseError(f"{where}: unknown edit {kind!r}")
        known = set(inspect.signature(zoo.EDITS[kind]).parameters) - {"model"}
        if unknown := set(parameters) - known:
            raise CaseError(
                f"{where}: edit {kind!r} has no parameter {sorted(unknown)}; it has {sorted(known)}"
            )
        edits.append((kind, parameters))
    return Side(model, tuple(edits))


def parse_case(entry: Mapping[str, Any], file: str = "") -> Case:
    """One ``[[pair]]`` table, validated; raises CaseError."""
    where = f"{file}:{entry.get('name', '?')}"
    if wrong := (REQUIRED - set(entry)) | (set(entry) - REQUIRED - FURTHER):
        raise CaseError(f"{where}: missing or unknown keys {sorted(wrong)}")
    labels = frozenset([entry["label"], *entry.get("label_accept", [])])
    relations = frozenset([entry["weights"], *entry.get("weights_accept", [])])
    kinds = frozenset(entry["transformations"])
    optional = frozenset(entry.get("optional", []))
    if unknown := (labels - set(EXIT_OF_LABEL)) | (relations - set(LABELS_OF_RELATION)):
        raise CaseError(f"{where}: unknown label or relation {sorted(unknown)}")
    if unknown := (kinds | optional) - KINDS:
        raise CaseError(f"{where}: unknown transformation {sorted(unknown)}")
    if entry["label"] not in LABELS_OF_RELATION[entry["weights"]]:
        raise CaseError(f"{where}: weights {entry['weights']!r} cannot give label {entry['label']!r}")
    if entry["exit"] != EXIT_OF_LABEL[entry["label"]]:
        raise CaseError(f"{where}: label {entry['label']!r} exits with {EXIT_OF_LABEL[entry['label']]}")
    return Case(
        name=entry["name"],
        suspect=_side(entry["suspect"], where),
        source=_side(entry["source"], where),
        label=entry["label"],
        weights=entry["weights"],
        transformations=kinds,
        exit=entry["exit"],
        labels=labels,
        relations=relations,
        optional=optional,
    )


def load_cases(folder: Path = CASES) -> list[Case]:
    """Every pair of every table, by file and place; names are unique over all files."""
    cases: dict[str, Case] = {}
    for path in sorted(folder.glob("*.toml")):
        table = tomllib.loads(path.read_text("utf-8"))
        if set(table) != {"pair"}:
            raise CaseError(f"{path.name}: expected [[pair]] only, found {sorted(table)}")
        for entry in table["pair"]:
            case = parse_case(entry, path.name)
            if case.name in cases:
                raise CaseError(f"{path.name}: the name {case.name!r} occurs twice")
            cases[case.name] = case
    return list(cases.values())


def models_used(cases: Iterable[Case]) -> set[str]:
    """The committed models that some pair reads, as a side or inside an edit."""
    sides = [side for case in cases for side in (case.suspect, case.source)]
    inner = {p["other"] for side in sides for _, p in side.edits if "other" in p}
    return {side.model for side in sides} | inner


def build(side: Side) -> zoo.Checkpoint:
    """The side's checkpoint with its edits applied."""
    model = zoo.read_model(side.model)
    for kind, parameters in side.edits:
        model = zoo.apply(model, kind, **parameters)
    return model


def materialise(case: Case, folder: Path) -> tuple[Path, Path]:
    """Writes ``folder/suspect`` and ``folder/source``; returns both."""
    suspect = zoo.save(build(case.suspect), folder / "suspect")
    source = zoo.save(build(case.source), folder / "source")
    return suspect, source
