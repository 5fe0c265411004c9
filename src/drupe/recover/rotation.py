"""Residual rotation: the orthogonal map between two embedding tables of the same tokens.

The suspect's table is E_s = E_o Q. Orthogonal Procrustes (Schoenemann, Psychometrika 1966): with
C = E_o' E_s = U S V', Q = U V', the polar factor of C. A map always comes out, also of unrelated models; it is used
only after the token-response profile, which no rotation touches, was significant, and it never yields a p-value
itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.readers.interface import FloatArray
from drupe.recover.parts import OUTPUT_ROLES, TOKEN_ROLES, Parts
from drupe.recover.tokens import shared_tokens, token_table

MIN_TOKENS, MAX_TOKENS = 8192, 32768
TOKENS_PER_WIDTH = 8
"""Tokens per dimension: noise of sd s in the tables adds s sqrt(width / (2 tokens)) to all that is undone."""
EXACT_WIDTH = 2048
"""Width up to which C is computed in float64; beyond, float32 halves the time and costs 1e-5 of the values."""
NEAR_IDENTITY = 0.2
"""Root mean square distance of a rotation from the identity below which it is none."""
RIDGE = 1e-6
"""Of the mean variance of the table, added to that of every direction."""
MIN_EIGENVALUE = 1e-10
"""Ratio of the smallest to the largest eigenvalue of C'C from which they give the polar factor to 1e-6."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """Q (hidden, hidden) with suspect rows = source rows @ Q, and what its error costs.

    ``excess``: white noise of variance v in every matrix leaves v (1 + excess) in those that Q turns back and that
    did not choose it.
    """

    matrix: FloatArray
    excess: float

    @property
    def is_narrow(self) -> bool:
        """Whether the suspect has fewer dimensions: Q (source's, suspect's) has orthonormal columns."""
        return bool(self.matrix.shape[0] > self.matrix.shape[1])

    @property
    def is_near_identity(self) -> bool:
        """Whether the basis is the source's own."""
        width = len(self.matrix)
        if self.is_narrow:
            return False
        return float(np.linalg.norm(self.matrix - np.eye(width))) < NEAR_IDENTITY * float(np.sqrt(width))


def find_rotation(a: Parts, b: Parts) -> Rotation | None:
    """The rotation between the token tables; None when the widths or tokens do not allow it."""
    table = a.places.get(("embed", None))
    most = 0 if table is None else min(max(MIN_TOKENS, TOKENS_PER_WIDTH * table.columns), MAX_TOKENS)
    tokens = shared_tokens(a, b, limit=most)
    if tokens is None:
        return None
    mine, theirs = token_table(a, tokens.suspect), token_table(b, tokens.source)
    if mine.shape[1] > theirs.shape[1]:
        return None
    kind = np.float64 if mine.shape[1] <= EXACT_WIDTH else np.float32
    cross = theirs.T.astype(kind, copy=False) @ mine.astype(kind, copy=False)
    if not np.isfinite(cross).all():
        return None
    if (
        mine.shape[1] < theirs.shape[1]
    ):  # C = G Q with G = E_o' E_o: its polar factor is Q when Q is square only
        wide = theirs.astype(np.float64)
        gram = wide.T @ wide
        cross = np.linalg.solve(gram + RIDGE * float(np.trace(gram)) / len(gram) * np.eye(len(gram)), cross)
    matrix, singular = polar(cross)
    return Rotation(matrix, excess_of(singular, len(mine)))


def excess_of(singular: NDArray[np.float64], tokens: int) -> float:
    """What noise in the tables leaves in Q, as a share of the same relative noise in a matrix without direction.

    With table variances s_i^2 (singular values of C over T tokens) and noise v mean(s^2), the angle between the
    directions i and j has the variance v mean(s^2) / (T (s_i^2 + s_j^2)); summed over the pairs: v (n - 1) / (2 T)
    for equal s, more otherwise. See docs/design/011-weights.md.
    """
    energies = np.maximum(singular, 1e-12 * float(singular.max(initial=0.0)))
    if not energies.any():
        return 0.0
    step = -(-len(energies) // 512)  # the double sum over evenly spread ones
    some = energies[::step]
    mean = float(np.mean(1.0 / (some[:, None] + some[None, :])))
    return float(energies.mean()) * mean * (len(energies) - 1) / tokens


def polar(cross: NDArray[np.floating]) -> tuple[FloatArray, NDArray[np.float64]]:
    """The matrix with orthonormal columns nearest to C, (m, n) with m >= n, and C's singular values, in no order.

    C (C'C)^(-1/2), where that is well conditioned; else U V'.

    The eigenvalues of C'C take a third of the time of the singular values of C; one step of Newton and Schulz,
    X (3 - X'X) / 2, makes the result orthogonal again. The last steps keep the type of C.
    """
    c = cross.astype(np.float64, copy=False)
    values, vectors = np.linalg.eigh(c.T @ c)
    if values[0] <= MIN_EIGENVALUE * values[-1]:
        u, singular, vt = np.linalg.svd(c, full_matrices=False)
        nearest: NDArray[np.floating] = u @ vt
    else:
        singular = np.sqrt(values)
        turned = ((c @ vectors) / singular).astype(cross.dtype)
        nearest = turned @ vectors.T.astype(cross.dtype)
        nearest = 1.5 * nearest - 0.5 * (nearest @ (nearest.T @ nearest))
    result: FloatArray = nearest.astype(np.float32)
    return result, singular


@dataclass(frozen=True, slots=True)
class NarrowTurn:
    """Q (source's width, suspect's), orthonormal columns: brings the source into the suspect's dimensions."""

    matrix: FloatArray

    def apply(self, role: str, source: FloatArray) -> FloatArray | None:
        """None when the matrix does not live in the residual stream."""
        width = len(self.matrix)
        if role.rpartition(".")[2] in OUTPUT_ROLES:
            return self.matrix.T @ source if source.shape[0] == width else None
        return source @ self.matrix if source.shape[1] == width else None


def undo_rotation(role: str, suspect: FloatArray, q: FloatArray) -> FloatArray:
    """The suspect's matrix in the source's basis: columns back for inputs and tables, rows back for outputs."""
    last = role.rpartition(".")[2]
    if last in ("o", "down"):
        return q @ suspect
    if last in TOKEN_ROLES or suspect.shape[1] == q.shape[0]:
        return suspect @ q.T
    return suspect
