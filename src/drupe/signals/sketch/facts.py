"""What a fingerprint keeps of the weights: the sketch, value digest and scale of every matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.model import Block, Matrix, Model
from drupe.readers.interface import FloatArray
from drupe.signals.sketch.bits import DIGEST_BYTES, ROWS, WORDS, sketch_bits, value_digest, window
from drupe.uninformative import State, classify


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


def sample_block(matrix: Matrix, rows: int = ROWS) -> Block:
    """The first rows of a matrix in the window of its width."""
    start, stop = window(matrix.columns)
    return Block(matrix, 0, min(rows, matrix.rows), start, stop)


def extract(model: Model, matrices: Sequence[Matrix] | None = None) -> WeightFacts:
    """Sketch every matrix (or the given ones) of a model in one pass: eight rows of one window each."""
    chosen = model.matrices if matrices is None else tuple(matrices)
    blocks = model.read([sample_block(matrix) for matrix in chosen]) if chosen else []
    return facts_from_blocks(chosen, blocks)


def facts_from_blocks(matrices: Sequence[Matrix], blocks: Sequence[FloatArray]) -> WeightFacts:
    """The facts of matrices whose sampled rows were read."""
    count = len(matrices)
    words = np.zeros((count, WORDS), np.uint64)
    counts = np.zeros(count, np.uint16)
    digests = np.zeros((count, DIGEST_BYTES), np.uint8)
    rms = np.zeros(count, np.float32)
    states = np.zeros(count, np.uint8)
    for place, (matrix, block) in enumerate(zip(matrices, blocks, strict=True)):
        states[place] = classify(block, role_known=matrix.role is not None)
        bits = sketch_bits(block, matrix.columns)
        words[place], counts[place] = bits.words, bits.count
        digests[place] = np.frombuffer(value_digest(block), np.uint8)
        with np.errstate(over="ignore", invalid="ignore"):
            rms[place] = np.sqrt(np.mean(np.square(block, dtype=np.float64)))
    return WeightFacts(tuple(matrices), words, counts, digests, rms, states)
