"""Residual rotation: the orthogonal map between two embedding tables of the same tokens.

The suspect's table is E_s = E_o Q. Orthogonal Procrustes (Schoenemann, Psychometrika 1966): with
E_o' E_s = U S V', Q = U V'. A map always comes out, also of unrelated models; it is used only after the
token-response profile, which no rotation touches, was significant, and it never yields a p-value itself.
"""

from __future__ import annotations

import numpy as np

from drupe.readers.interface import FloatArray
from drupe.recover.parts import TOKEN_ROLES, Parts
from drupe.recover.tokens import shared_tokens

MAX_TOKENS = 8192
EXACT_WIDTH = 2048
"""Width up to which the map is computed in float64; beyond, float32 halves the time and costs 1e-5 of the values."""


def find_rotation(a: Parts, b: Parts) -> FloatArray | None:
    """Q (hidden, hidden) with suspect rows = source rows @ Q; None when the widths or tokens do not allow it."""
    tokens = shared_tokens(a, b, limit=MAX_TOKENS)
    mine, theirs = a.load("embed"), b.load("embed")
    if tokens is None or mine is None or theirs is None or mine.shape[1] != theirs.shape[1]:
        return None
    kind = np.float64 if mine.shape[1] <= EXACT_WIDTH else np.float32
    cross = theirs[tokens.source].T.astype(kind) @ mine[tokens.suspect].astype(kind)
    if not np.isfinite(cross).all():
        return None
    u, _, vt = np.linalg.svd(cross)
    result: FloatArray = (u @ vt).astype(np.float32)
    return result


def undo_rotation(role: str, suspect: FloatArray, q: FloatArray) -> FloatArray:
    """The suspect's matrix in the source's basis: columns back for inputs and tables, rows back for outputs."""
    last = role.rpartition(".")[2]
    if last in ("o", "down"):
        return q @ suspect
    if last in TOKEN_ROLES or suspect.shape[1] == q.shape[0]:
        return suspect @ q.T
    return suspect
