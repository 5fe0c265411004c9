"""What a fingerprint keeps of the weights: the sketch, value digest and scale of every matrix."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.model import Block, Matrix, Model
from drupe.readers.interface import FloatArray
from drupe.roles import is_layer_role, is_table_role
from drupe.signals.sketch.bits import DIGEST_BYTES, WORDS, rows, sketch_bits, span, value_digest
from drupe.signals.sketch.spread import sample_experts
from drupe.uninformative import State, classify, is_fixed_transform

MAX_TRANSFORM = 1 << 20
"""Values of a matrix of unknown role that is read whole to see whether it is a fixed transform."""


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """What a fingerprint keeps of the weights; row i of every array belongs to ``matrices[i]``.

    ``words`` (n, 8) uint64, ``counts`` bits used, ``digests`` (n, 8) bytes of the sampled values,
    ``rms`` of the sampled values, ``states`` of drupe.uninformative.State.
    """

    matrices: tuple[Matrix, ...]
    words: NDArray[np.uint64]
    counts: NDArray[np.uint16]
    digests: NDArray[np.uint8]
    rms: NDArray[np.float32]
    states: NDArray[np.uint8]

    @property
    def informative(self) -> NDArray[np.bool_]:
        """Which matrices may speak for lineage."""
        return np.equal(self.states, np.uint8(State.INFORMATIVE))


def sample_block(matrix: Matrix) -> Block:
    """The first rows of a matrix in the span of its width."""
    start, stop = span(matrix.columns)
    return Block(matrix, 0, min(rows(matrix.columns), matrix.rows), start, stop)


def extract(model: Model, matrices: Sequence[Matrix] | None = None) -> WeightFacts:
    """Sketch every matrix (or the given ones) of a model in one pass: a few rows of one span each.

    Of a mixture, the matrices of a few experts of each layer.
    """
    chosen = sample_experts(model.matrices) if matrices is None else tuple(matrices)
    blocks = model.read([sample_block(matrix) for matrix in chosen]) if chosen else []
    facts = facts_from_blocks(chosen, blocks)
    for place, matrix in enumerate(chosen):
        unsure = facts.states[place] == State.INFORMATIVE and not _is_learned(matrix)
        if unsure and matrix.size <= MAX_TRANSFORM and is_fixed_transform(model.load(matrix)):
            facts.states[place] = State.FIXED_TRANSFORM
    return facts


def _is_learned(matrix: Matrix) -> bool:
    return is_layer_role(matrix.role) or is_table_role(matrix.role)


def speaking(a: WeightFacts, b: WeightFacts) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which matrices of each side may prove a relation.

    Where both sides have layers with known roles, only those and the token tables: position tables, caches and
    random features are shared by unrelated models. So may layers of unknown names where the other side has only
    learned matrices of that shape: they were renamed. Elsewhere every informative matrix.
    """
    masks = [side.informative for side in (a, b)]
    if all(any(is_layer_role(matrix.role) for matrix in side.matrices) for side in (a, b)):
        for mask, side, other in ((masks[0], a, b), (masks[1], b, a)):
            unclear = {(m.rows, m.columns) for m in other.matrices if not _is_learned(m)}
            mask &= np.array([_is_learned(m) or _is_renamed(m, unclear) for m in side.matrices])
    return masks[0], masks[1]


def _is_renamed(matrix: Matrix, unclear: Collection[tuple[int, int]]) -> bool:
    """Whether a matrix repeats over layers under a name that no scheme knows, unlike anything unclear over there."""
    unknown = matrix.role is not None and "{" in matrix.role
    return unknown and matrix.layer is not None and (matrix.rows, matrix.columns) not in unclear


def facts_from_blocks(matrices: Sequence[Matrix], blocks: Sequence[FloatArray]) -> WeightFacts:
    """The facts of matrices whose sampled rows were read."""
    count = len(matrices)
    words = np.zeros((count, WORDS), np.uint64)
    counts = np.zeros(count, np.uint16)
    digests = np.zeros((count, DIGEST_BYTES), np.uint8)
    rms = np.zeros(count, np.float32)
    states = np.zeros(count, np.uint8)
    for place, (matrix, block) in enumerate(zip(matrices, blocks, strict=True)):
        states[place] = classify(block, learned=_is_learned(matrix))
        bits = sketch_bits(block, matrix.columns)
        words[place], counts[place] = bits.words, bits.count
        digests[place] = np.frombuffer(value_digest(block), np.uint8)
        with np.errstate(over="ignore", invalid="ignore"):
            rms[place] = np.sqrt(np.mean(np.square(block, dtype=np.float64)))
    return WeightFacts(tuple(matrices), words, counts, digests, rms, states)
