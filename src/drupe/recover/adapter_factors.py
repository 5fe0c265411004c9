"""The factors of two adapters, set against each other; what does not depend on the choice of factors. Judges nothing.

Null of the overlaps: the input factors A were drawn at random, so that each input direction of one has energy
Beta(r/2, (d - r)/2) in those of the other; by Chernoff's bound log p <= log r - d/2 KL(r/d || c^2) for rank r, d
inputs. It does not hold for IA3, which starts from ones, nor for factors that start from the base's own principal
parts (PiSSA, arxiv.org/abs/2404.02948): strangers then start alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.readers.adapters import AdapterFile
from drupe.readers.adapters.interface import Change, Hadamard, LowRank
from drupe.readers.interface import FloatArray, Window
from drupe.residual import cast_of, spectral_edge

MAX_BLOCK = 1 << 20
"""Values of one tensor that are compared."""
MIN_ROWS = 8
"""Rows of stacked residuals from which noise can be told from training."""
BALANCED = 0.1
"""Largest |log(|a_i| / |b_i|)| over the components, median of the modules: trained from a random A and B = 0 it is
0.5 and more (measured); training keeps A A' - B' B (exactly in gradient flow), which principal parts start at 0."""
CONTAINED = 0.999
"""Cosine of the worst principal angle; rounding of the factors to bfloat16 leaves 0.9999."""


@dataclass(frozen=True, slots=True)
class Factors:
    """One module of both: rows of ``a`` are input directions, rows of ``b`` output directions (B transposed)."""

    own_a: FloatArray
    own_b: FloatArray
    a: FloatArray
    b: FloatArray

    @property
    def same_rank(self) -> bool:
        """Whether they can be set against each other one by one."""
        return len(self.own_a) == len(self.a)


def factors_of(mine: AdapterFile, theirs: AdapterFile, suspect: str, source: str) -> Factors | None:
    """The factors of a pair of low rank, as stored, where the sizes are bearable."""
    found: list[FloatArray] = []
    for file, change in ((mine, mine.changes[suspect]), (theirs, theirs.changes[source])):
        if not isinstance(change, LowRank):
            return None
        stored = file.stored.tensors
        if stored[change.down].size + stored[change.up].size > MAX_BLOCK:
            return None
        a, b = _whole(file, (change.down, change.up))
        found += [a, b.T]
    return Factors(*found)


def _whole(file: AdapterFile, names: Sequence[str]) -> list[FloatArray]:
    stored = file.stored.tensors
    return file.stored.read(
        [Window(name, 0, rows, 0, cols) for name in names for rows, cols in (stored[name].matrix_shape,)]
    )


def _names(change: Change) -> tuple[str, ...]:
    match change:
        case LowRank():
            return (change.down, change.up)
        case Hadamard():
            return change.factors
        case _:
            return (change.name,)


def cast_between(mine: AdapterFile, theirs: AdapterFile, chosen: Sequence[tuple[str, str]]) -> str | None:
    """The type to which all stored values of one side were rounded from the other's; None when neither was."""
    casts: set[str | None] = set()
    for suspect, source in chosen:
        names = _names(mine.changes[suspect]), _names(theirs.changes[source])
        tables = mine.stored.tensors, theirs.stored.tensors
        shapes = [[table[name].shape for name in part] for table, part in zip(tables, names, strict=True)]
        if shapes[0] != shapes[1] or sum(tables[0][name].size for name in names[0]) > MAX_BLOCK:
            return None
        both = zip(_whole(mine, names[0]), _whole(theirs, names[1]), strict=True)
        casts |= {cast_of(other, own) for own, other in both if not np.array_equal(own, other)}
        if len(casts) > 1 or None in casts:
            return None
    return casts.pop() if casts else None


def log10_contained(f: Factors) -> float:
    """Bound of the chance that all directions of one lie among those of the other, inputs and outputs alike.

    That is so when one was mixed of the other and a third (factors concatenated), or cut from it. Outputs are
    learned: for them the bound only says that the containment is no matter of size. 0 when they are not among them.
    """
    found = [_overlap(f.own_a, f.a), _overlap(f.own_b, f.b)]
    return 0.0 if min(cosine for cosine, _ in found) < CONTAINED else max(log10_p for _, log10_p in found)


def _overlap(one: FloatArray, two: FloatArray) -> tuple[float, float]:
    """Cosine of the worst principal angle of the smaller row space in the larger one, and its bound."""
    bases = [_row_space(one), _row_space(two)]
    small, large = sorted(bases, key=lambda basis: basis.shape[1])
    if not small.shape[1]:
        return 0.0, 0.0
    cosine = float(np.linalg.svd(large.T @ small, compute_uv=False)[-1])
    return cosine, log10_overlap(cosine, large.shape[1], len(large))


def _row_space(rows: FloatArray) -> NDArray[np.float64]:
    """Orthonormal columns that span the rows."""
    values = rows.astype(np.float64)
    if not np.isfinite(values).all():
        return np.empty((values.shape[1], 0))
    _, sizes, right = np.linalg.svd(values, full_matrices=False)
    kept: NDArray[np.float64] = right[sizes > 1e-4 * (sizes[0] if sizes.size else 0.0)].T
    return kept


def log10_same_signs(factors: Sequence[Factors]) -> float:
    """Bound of the chance that so many input directions of both, taken in order, point the same way.

    Null, exact whatever the training: a random A is as likely with any of its rows reversed, B starts at 0, and
    training then reverses both (a_i, b_i); so each of the n signs is a fair coin, p <= exp(-n KL(k/n || 1/2)).
    Rejected by one random start, and by a mixture of factors. No power after a change of basis.

    >>> x = np.eye(8, dtype=np.float32)
    >>> round(log10_same_signs([Factors(x, x, x, x)] * 4), 2), log10_same_signs([Factors(-x, x, x, x)])
    (-9.63, 0.0)
    """
    products = [np.einsum("rd,rd->r", f.own_a, f.a, dtype=np.float64) for f in factors if f.same_rank]
    signs = np.sign(np.concatenate(products)) if products else np.empty(0)
    signs = signs[np.isfinite(signs) & (signs != 0)]
    share = float((signs > 0).mean()) if signs.size else 0.0
    if share <= 0.5:
        return 0.0
    entropy = sum(-x * np.log(x) for x in (share, 1.0 - share) if x > 0.0)
    return -float(signs.size * (np.log(2.0) - entropy) / np.log(10.0))


def balance(factors: Sequence[Factors]) -> float:
    """The larger imbalance of both sides: max |log(|a_i| / |b_i|)| over components, median over modules; inf without.

    0 for factors that start as the square roots of principal parts, on which strangers agree.
    """
    sides = [[(f.own_a, f.own_b) for f in factors], [(f.a, f.b) for f in factors]]
    return max(float(np.median([_imbalance(a, b) for a, b in side])) if side else np.inf for side in sides)


def _imbalance(a: FloatArray, b: FloatArray) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.linalg.norm(a, axis=1)) - np.log(np.linalg.norm(b, axis=1))
    return float(np.abs(logs).max()) if np.isfinite(logs).all() else np.inf


def log10_overlap(cosine: float, rank: int, inputs: int) -> float:
    """Bound of the probability that differences of that rank with random input factors have this cosine.

    >>> round(log10_overlap(0.9, 4, 64), 1), log10_overlap(0.1, 4, 64), log10_overlap(0.9, 64, 64)
    (-18.0, 0.0, 0.0)
    """
    if rank >= inputs:
        return 0.0
    mean, seen = rank / inputs, min(cosine * cosine, 1.0 - 1e-9)
    if seen <= mean:
        return 0.0
    divergence = mean * np.log(mean / seen) + (1 - mean) * np.log((1 - mean) / (1 - seen))
    return float(min(0.0, np.log10(rank) - inputs / 2 * divergence / np.log(10.0)))


@dataclass(frozen=True, slots=True)
class Rest:
    """What is left of the suspect's factors after the best change of basis, of all modules.

    ``edge``: of the stacked rests of one width (drupe.residual.spectral_edge), the largest; None when not testable.
    ``sigma``: their spread relative to that of the source's factors, median; ``values``: how many.
    ``kurtosis_z``, ``levels_z``: standardised distance from Gaussian noise of one relative size, see :func:`rest_of`.
    """

    edge: float | None = None
    sigma: float = 0.0
    values: int = 0
    kurtosis_z: float = 0.0
    levels_z: float = 0.0


def rest_of(factors: Sequence[Factors]) -> Rest:
    """Measure it. Null of Gaussian noise with sd sigma |F_i| on each of k factors F_i of n_i values:

    excess kurtosis of all standardised rests / sqrt(24 / n) ~ N(0, 1); logs of the relative spreads have variance
    1 / 2 n_i, so that X = sum 2 n_i (log s_i - mean)^2 ~ chi^2 with d = k - 1 degrees, levels_z = (X - d) / sqrt(2d).
    Training moves each value by about the same steps, whatever the factor's size: both are far beyond (benchmarks).
    """
    stacks: dict[int, list[NDArray[np.float64]]] = defaultdict(list)
    logs, sizes, standard = [], [], []
    for f in factors:
        for left, right in _undone(f.own_a, f.own_b, f.a, f.b) if f.same_rank else ():
            rest = (left - right).astype(np.float64)
            stacks[rest.shape[1]].append(rest)
            spread, whole = float(rest.std()), float(right.std())
            if 0.0 < spread < np.inf and 0.0 < whole < np.inf:
                logs.append(np.log(spread / whole))
                sizes.append(rest.size)
                standard.append((rest - rest.mean()).ravel() / spread)
    if not logs:
        return Rest()
    edges = [
        spectral_edge(stack)
        for parts in stacks.values()
        if len(stack := np.concatenate(parts)) >= MIN_ROWS and np.isfinite(stack).all()
    ]
    flat, n = np.concatenate(standard), np.array(sizes, np.float64)
    deviance = float((2.0 * n * (np.array(logs) - np.average(logs, weights=n)) ** 2).sum())
    degrees = max(len(logs) - 1, 1)
    return Rest(
        max(edges) if edges else None,
        float(np.exp(np.median(logs))),
        flat.size,
        float((flat**4).mean() - 3.0) / float(np.sqrt(24.0 / flat.size)),
        (deviance - degrees) / float(np.sqrt(2.0 * degrees)),
    )


def _undone(
    own_a: FloatArray, own_b: FloatArray, a: FloatArray, b: FloatArray
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Suspect's factors and the source's in the suspect's basis: own A = G A by least squares, own B' = G^-T B'.

    The same basis is tried first: then nothing is fitted. Scales are those of the stored factors.
    """
    if np.linalg.norm(own_a - a) > 0.5 * np.linalg.norm(a):
        g = np.linalg.lstsq(a.T.astype(np.float64), own_a.T.astype(np.float64), rcond=None)[0].T
        a = (g @ a).astype(np.float32)
        b = (np.linalg.pinv(g).T @ b).astype(np.float32)
    yield own_a, a
    yield own_b, b
