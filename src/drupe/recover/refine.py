"""A better rotation: the one that all proven matrices agree on, not the embeddings alone.

Noise on the embeddings leaves an error in Q that looks like a trained component of every residual. With X_o, X_s the
rows of all pairs in the residual stream (source, suspect undone by the first Q), the orthogonal R that minimises
|X_s - X_o R| is that of X_o' X_s = U S V', R = U V'; then Q <- R Q.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from drupe.readers.interface import FloatArray
from drupe.recover.align import AlignedPair
from drupe.recover.rotation import polar


def refine_rotation(pairs: Iterable[AlignedPair], q: FloatArray) -> FloatArray:
    """Q after one step over every proven pair; each pair weighs by its own scale."""
    cross: NDArray[np.float64] = np.zeros(q.shape)
    for pair in pairs:
        if not pair.proven:
            continue
        source, suspect = pair.source_values, pair.suspect_values
        if pair.place[0].rpartition(".")[2] in ("o", "down"):  # rows live in the residual stream
            source, suspect = source.T, suspect.T
        if source.shape[1] == q.shape[0]:
            weight = float((source.astype(np.float64) ** 2).mean()) or 1.0
            cross += source.T.astype(np.float64) @ suspect.astype(np.float64) / weight
    if not cross.any() or not np.isfinite(cross).all():
        return q
    return polar(cross)[0] @ q
