"""Pairs of checkpoints judged in one call, and models that were never trained: helpers of the statistics tests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np

from drupe.comparison import AUTO, Budget, Comparison, compare
from drupe.diagnose import Diagnosis, diagnose
from drupe.fingerprint import extract
from drupe.model import open_model
from drupe.recover.parts import Parts, parts_of
from drupe.signals.interface import Component
from drupe.sources.locator import open_tree
from drupe.subject import Subject
from drupe.verdict import Verdict, judge
from zoo_files import Checkpoint, Tensor, read_model, save

KINDS = (
    "gaussian",
    "layer_scales",
    "heavy_tails",
    "outlier_columns",
    "column_means",
    "one_direction",
    "sparse",
)
_NUMBERS = count()


@dataclass(frozen=True, slots=True)
class Judged:
    """A pair from the files to the verdict."""

    comparison: Comparison
    diagnosis: Diagnosis
    verdict: Verdict

    @property
    def label(self) -> str:
        return self.verdict.label.value

    @property
    def relation(self) -> str:
        return self.verdict.components[Component.WEIGHTS].relation.value

    @property
    def kinds(self) -> set[str]:
        return {kind.value for kind in self.diagnosis.kinds}


def subject(model: Checkpoint | str, folder: Path) -> Subject:
    """A checkpoint written below ``folder`` (or a model of tests/models) and opened."""
    loaded = read_model(model) if isinstance(model, str) else model
    opened = open_model(open_tree(str(save(loaded, folder / f"m{next(_NUMBERS)}")), offline=True))
    return Subject(extract(opened), opened)


def parts(model: Checkpoint | str, folder: Path) -> Parts:
    """A checkpoint's matrices by place."""
    opened = subject(model, folder).model
    assert opened is not None
    return parts_of(opened)


def judged(
    suspect: Checkpoint | str, source: Checkpoint | str, folder: Path, budget: Budget = AUTO
) -> Judged:
    """What Drupe says of a pair."""
    comparison = compare(subject(suspect, folder), subject(source, folder), budget)
    diagnosis = diagnose(comparison)
    return Judged(comparison, diagnosis, judge(diagnosis))


@cache
def untrained(kind: str, seed: int, like: str = "r0") -> Checkpoint:
    """Random weights with the shapes and the tokenizer of a committed model."""
    dice = np.random.default_rng([KINDS.index(kind), seed])
    model = read_model(like)
    direction: dict[int, Tensor] = {}
    tensors = {}
    for name, values in model.tensors.items():
        if values.ndim < 2:
            tensors[name] = (1 + 0.1 * dice.standard_normal(values.shape)).astype(np.float32)
            continue
        shared = direction.setdefault(values.shape[1], dice.standard_normal(values.shape[1], np.float32))
        tensors[name] = (0.02 * _matrix(kind, values.shape, dice, shared)).astype(np.float32)
    return replace(model.with_tensors(tensors), dtype="fp32")


def with_tokens_of(model: Checkpoint, trained: str) -> Checkpoint:
    """The model with a trained model's token table: untrained tables cannot be paired token by token."""
    name = "model.embed_tokens.weight"
    return model.with_tensors({**model.tensors, name: read_model(trained).tensors[name]})


def _matrix(kind: str, shape: tuple[int, ...], dice: np.random.Generator, shared: Tensor) -> Tensor:
    white = dice.standard_normal(shape)
    if kind == "layer_scales":
        white = white * np.exp(dice.standard_normal())
    elif kind == "heavy_tails":
        white = dice.standard_t(3, shape)
    elif kind == "outlier_columns":
        white[:, dice.choice(shape[1], 3, replace=False)] *= 20
    elif kind == "column_means":
        white = white + 3 * dice.standard_normal(shape[1])
    elif (
        kind == "one_direction"
    ):  # massive activations: every row leans on one direction of the residual stream
        white = white + dice.standard_normal((shape[0], 1)) * shared
    elif kind == "sparse":
        white = white * (dice.random(shape) < 0.05)
    return np.asarray(white, np.float32)
