"""Three models in one basis: does one of them lie between the two others, or is their meeting point a model unseen?

A training leaves a model in a direction of its own, so the ways from the three models to the point M where they meet
are at right angles, and their lengths follow from inner products: |A - M|^2 = <B - A, C - A>, for B and C likewise.
A model whose way is short beside the two others is the one between them (or near to it), whichever of the three came
first; where all three ways are long, they meet in a model that is none of them. Unrelated models look like that too,
so the three must be of one lineage. Fine-tunes on one task share a direction, which makes their parent's way look
longer (0.6 to 0.7 of theirs in the zoo): then nothing is said.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.messages import Message, msg
from drupe.model import Model
from drupe.recover.merge import common_matrices
from drupe.recover.parts import parts_of
from drupe.signals.interface import Baseline, Component, Evidence, Measured

SIGNAL = "weights.placing"
NEAR, FAR = 0.45, 0.75
"""Length of a model's way over the shorter of the two others up to which it lies between them; shortest over longest
from which none does."""
MIN_COSINE = -0.3
"""A training that partly undoes the one before turns back by so much: -0.19 measured."""
MAX_DISTANCE = 1.25
"""Relative distance up to which two models may be of one lineage; 1.41 between unrelated ones of equal norm."""
UNRELATED = (0.48, 0.50)
"""Smallest cosine of three independent models, median and 99 % quantile."""
MIN_MATRICES = 8
SUSPECT = -1
"""Number of the suspect, where the sources have 0, 1, ..."""


@dataclass(frozen=True, slots=True)
class Placing:
    """The suspect and two sources. ``between``: number of the one that lies between the others, None: no one does.

    ``ways``: from the suspect and from the two sources to where the three meet, relative to the norm of the weights;
    ``cosine``: at the model between, else the smallest; ``elsewhere``: they meet in a model that is none of them.
    """

    sources: tuple[int, int]
    between: int | None
    elsewhere: bool
    ways: tuple[float, float, float]
    cosine: float
    matrices: int


def place(suspect: Model, sources: Sequence[Model]) -> tuple[Placing, ...]:
    """Every two of the sources with the suspect, where all three are of one lineage and in one basis."""
    stacks = common_matrices([parts_of(model) for model in (suspect, *sources)])
    if len(stacks) < MIN_MATRICES or len(sources) < 2:
        return ()
    gram = np.mean([_gram(np.vstack([mine[None], theirs])) for mine, theirs in stacks], axis=0)
    found = []
    for i, j in itertools.combinations(range(1, len(sources) + 1), 2):
        placing = _placing(gram[np.ix_((0, i, j), (0, i, j))], (i - 1, j - 1), len(stacks))
        if placing is not None:
            found.append(placing)
    return tuple(found)


def _gram(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Inner products of all models, over the mean energy: every matrix weighs alike."""
    wide = values.astype(np.float64)
    products: NDArray[np.float64] = wide @ wide.T
    scale = float(np.trace(products)) / len(values)
    return products / scale if scale else products


def _placing(gram: NDArray[np.float64], sources: tuple[int, int], matrices: int) -> Placing | None:
    norms = np.diag(gram)
    squared = norms[:, None] + norms[None, :] - 2.0 * gram
    relative = np.sqrt(np.maximum(squared, 0.0) / np.maximum(np.sqrt(np.outer(norms, norms)), 1e-30))
    edges = relative[np.triu_indices(3, 1)]
    if edges.min() <= 1e-6 or edges.max() > MAX_DISTANCE:
        return None
    products, cosines = [], []
    for here in range(3):
        one, other = (k for k in range(3) if k != here)
        product = float(squared[here, one] + squared[here, other] - squared[one, other]) / 2.0
        products.append(product)
        cosines.append(product / float(np.sqrt(squared[here, one] * squared[here, other])))
    ways = [float(np.sqrt(max(product, 0.0) / norms.mean())) for product in products]
    order = sorted(range(3), key=lambda k: products[k])
    middle, next_shortest = order[0], ways[order[1]]
    is_between = ways[middle] <= NEAR * next_shortest and cosines[middle] >= MIN_COSINE
    is_between &= next_shortest >= NEAR * ways[order[2]]
    return Placing(
        sources,
        (SUSPECT, *sources)[middle] if is_between else None,
        ways[middle] >= FAR * ways[order[2]],
        (ways[0], ways[1], ways[2]),
        cosines[middle],
        matrices,
    )


def finding_of(placing: Placing, names: Sequence[Message]) -> Measured:
    """What was found of three models; ``names``: of the suspect and the two sources."""
    evidence = tuple(
        Evidence("", msg("placing.way", name=name, way=f"{way:.3g}"))
        for name, way in zip(names, placing.ways, strict=True)
    )
    return Measured(
        SIGNAL,
        Component.WEIGHTS,
        placing.cosine,
        msg("placing.null"),
        placing.matrices,
        baseline=Baseline(msg("placing.baseline"), *UNRELATED),
        evidence=evidence,
        caveats=(msg("placing.caveat"),),
    )


def reason_of(placing: Placing, names: Sequence[Message]) -> Message | None:
    """The sentence, when something can be said."""
    if placing.between is not None:
        middle = (SUSPECT, *placing.sources).index(placing.between)
        one, other = (name for k, name in enumerate(names) if k != middle)
        return msg("placing.between", middle=names[middle], one=one, other=other)
    if placing.elsewhere:
        return msg("placing.elsewhere", suspect=names[0], one=names[1], other=names[2])
    return None
