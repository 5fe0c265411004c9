"""Is the suspect a mixture of several given models? Coefficients by least squares, and what they leave unexplained.

Linear: B = sum c_k P_k with one c for all matrices. Spherical (two parents): with theta the angle between them,
B = sin(t theta) / sin theta P_1 + sin((1 - t) theta) / sin theta P_2, one t for all (Shoemake, SIGGRAPH 1985).
Sparse, around a base O with d_k = P_k - O: every entry of B - O is 0, d_1, d_2, their sum or mean (TIES: Yadav et
al., NeurIPS 2023; DARE: Yu et al., ICML 2024). A share means something only where the rest is what rounding leaves:
with an unknown further parent least squares give nonsense without saying so.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.model import Model
from drupe.readers.interface import Absent, FloatArray
from drupe.recover.parts import Parts, parts_of
from drupe.residual import rounding_floor

MAX_MATRICES = 48
MAX_VALUES = 1 << 22
EXPLAINED = 1.5
"""Unexplained change over the rounding error up to which a mixture explains the suspect; linear merges 0.6 to 1.3."""
FLOAT_FLOOR = 3e-7
"""Relative rounding of float32 sums."""
CLEAR_ULPS = 4.0
"""Size of a change, in rounding steps, from which it is told whether it was taken over."""
MIN_CLEAR = 256
SPARSE_SHARE = 0.95
"""Share of the clear entries that a sparse rule must explain; a linear merge leaves 0.93 unexplained."""
MIN_MASKED = 0.02
"""Share of the entries that a sparse rule must have left out."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture that explains the suspect. ``shares`` by number of the source; None where a rule has none."""

    method: str
    shares: tuple[tuple[int, float | None], ...]
    unexplained: float
    """Rest over the rounding error; for sparse rules the share of entries that are not explained."""
    matrices: int


def find_mixture(suspect: Model, sources: Sequence[Model]) -> Mixture | None:
    """The mixture of at least two of the sources that explains the suspect, or None."""
    sides = [parts_of(model) for model in (suspect, *sources)]
    stacks = common_matrices(sides)
    if not stacks:
        return None
    dtype = _dtype(suspect)
    for rule in (_linear, _spherical, _sparse):
        found = rule(stacks, dtype)
        if found is not None:
            return found
    return None


Stack = tuple[FloatArray, NDArray[np.float32]]
"""One matrix of the suspect, flat, and of the sources (sources, entries)."""


def common_matrices(sides: Sequence[Parts]) -> list[Stack]:
    """Matrices that all sides have at one place and in one size, spread over the model."""
    places = sorted(set.intersection(*(set(side.places) for side in sides)), key=str)
    places = [p for p in places if len({(s.places[p].rows, s.places[p].columns) for s in sides}) == 1]
    step = max(1, len(places) // MAX_MATRICES)
    found = []
    for place in places[::step][:MAX_MATRICES]:
        if sides[0].places[place].size > MAX_VALUES:
            continue
        arrays = [side.model.load(side.places[place]).ravel() for side in sides]
        if all(np.isfinite(array).all() for array in arrays):
            found.append((arrays[0], np.stack(arrays[1:])))
    return found


def _dtype(model: Model) -> str:
    assert not isinstance(model.weights, Absent)
    kinds = [info.dtype for info in model.weights.tensors.values() if len(info.shape) > 1]
    return max(set(kinds), key=kinds.count) if kinds else "F32"


def _floor(values: FloatArray, dtype: str) -> float:
    return max(rounding_floor(values, dtype), FLOAT_FLOOR * float(np.sqrt(np.mean(np.square(values)))))


def _linear(stacks: Sequence[Stack], dtype: str) -> Mixture | None:
    """One set of coefficients; every matrix weighs by its own rounding error."""
    count = len(stacks[0][1])
    gram, right = np.zeros((count, count)), np.zeros(count)
    for mine, theirs in stacks:
        weight = 1.0 / _floor(mine, dtype) ** 2
        wide = theirs.astype(np.float64)
        gram += weight * wide @ wide.T
        right += weight * wide @ mine
    shares = np.linalg.lstsq(gram, right, rcond=None)[0]
    rest = np.median([_rest(mine - shares @ theirs, mine, dtype) for mine, theirs in stacks])
    used = [(k, float(share)) for k, share in enumerate(shares) if abs(share) >= 0.03]
    if rest > EXPLAINED or len(used) < 2:
        return None
    outside = any(share < 0 or share > 1 for _, share in used)
    if outside and len(used) < 3:
        return None  # a parent is its child less the other parent, too
    return Mixture("task_arithmetic" if outside else "linear", tuple(used), float(rest), len(stacks))


def _rest(difference: NDArray[np.float64] | FloatArray, mine: FloatArray, dtype: str) -> float:
    return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64)))) / _floor(mine, dtype)


def _spherical(stacks: Sequence[Stack], dtype: str) -> Mixture | None:
    """Two of the sources, whichever they are."""
    for pair in itertools.combinations(range(len(stacks[0][1])), 2):
        shares, rests = [], []
        for mine, theirs in stacks:
            first, second = (theirs[k].astype(np.float64) for k in pair)
            angle = _angle(first, second)
            if angle < 1e-4:
                continue
            wide = np.stack([first, second])
            c = np.linalg.lstsq(wide @ wide.T, wide @ mine, rcond=None)[0]
            shares.append(np.arctan2(c[0] * np.sin(angle), c[1] + c[0] * np.cos(angle)) / angle)
        if not shares:
            continue
        share = float(np.median(shares))
        for mine, theirs in stacks:
            first, second = (theirs[k].astype(np.float64) for k in pair)
            rests.append(_rest(mine - _slerp(first, second, share), mine, dtype))
        if np.median(rests) <= EXPLAINED and 0.03 <= share <= 0.97:
            named = ((pair[0], share), (pair[1], 1.0 - share))
            return Mixture("slerp", named, float(np.median(rests)), len(stacks))
    return None


def _angle(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.arccos(np.clip(float(first @ second) / norms, -1.0, 1.0))) if norms else 0.0


def _slerp(first: NDArray[np.float64], second: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    angle = _angle(first, second)
    if angle < 1e-4:
        return share * first + (1.0 - share) * second
    mixed: NDArray[np.float64] = (
        np.sin(share * angle) * first + np.sin((1.0 - share) * angle) * second
    ) / np.sin(angle)
    return mixed


def _sparse(stacks: Sequence[Stack], dtype: str) -> Mixture | None:
    """Any of the sources may be the base; the rule that explains most entries."""
    best: Mixture | None = None
    count = len(stacks[0][1])
    for base in range(count):
        parents = [k for k in range(count) if k != base]
        for chosen in [[k] for k in parents] + [list(two) for two in itertools.combinations(parents, 2)]:
            found = _sparse_around(stacks, dtype, base, chosen)
            if found is not None and (best is None or found.unexplained < best.unexplained):
                best = found
    return best


def _sparse_around(stacks: Sequence[Stack], dtype: str, base: int, parents: Sequence[int]) -> Mixture | None:
    """``dare``: any of the changes, scaled, may be there; ``ties``: one of them, or their mean."""
    changes, deltas, steps = [], [], []
    for mine, theirs in stacks:
        change = mine - theirs[base]
        delta = theirs[list(parents)] - theirs[base]
        step = np.maximum(_floor(mine, dtype) * np.sqrt(12.0), _ulp(mine, dtype))
        clear = (np.abs(delta) > CLEAR_ULPS * step).all(axis=0)
        changes.append(change[clear])
        deltas.append(delta[:, clear])
        steps.append(step[clear])
    change, delta, step = np.concatenate(changes), np.concatenate(deltas, axis=1), np.concatenate(steps)
    if change.size < MIN_CLEAR:
        return None
    masked = float((np.abs(change) <= step).mean())
    scales = [_scale(change, one, step) for one in delta]
    sets = {"dare": _any_of(delta, scales)}
    if len(parents) == 2:
        sets["ties"] = np.stack([np.zeros_like(change), *delta, delta.mean(axis=0)])
    told = {}
    for method, values in sets.items():
        tolerance = step * max(1.0, *scales) if method == "dare" else step
        told[method] = float((np.abs(change - values).min(axis=0) > tolerance).mean())
    method = min(told, key=lambda name: told[name])
    if told[method] > 1.0 - SPARSE_SHARE or masked < MIN_MASKED:
        return None
    return Mixture(method, tuple((k, None) for k in parents), told[method], len(stacks))


def _ulp(values: FloatArray, dtype: str) -> FloatArray:
    bits = {"BF16": 7, "F16": 10}.get(dtype, 20)
    _, exponents = np.frexp(values)
    result: FloatArray = np.ldexp(np.float32(1.0), exponents - 1 - bits).astype(np.float32)
    return result


def _scale(change: FloatArray, delta: FloatArray, step: FloatArray) -> float:
    """The factor with which a kept change stands: the most frequent ratio, 1 when there is none."""
    ratio = (change / delta)[(np.abs(change) > step) & (change * delta > 0)]
    if ratio.size < MIN_CLEAR:
        return 1.0
    counts, edges = np.histogram(np.log(ratio), bins=400, range=(np.log(0.02), np.log(50.0)))
    place = int(counts.argmax())
    inside = ratio[(np.log(ratio) >= edges[place]) & (np.log(ratio) <= edges[place + 1])]
    return float(np.median(inside))


def _any_of(delta: FloatArray, scales: Sequence[float]) -> FloatArray:
    """Every sum of some of the scaled changes."""
    scaled = [scale * one for scale, one in zip(scales, delta, strict=True)]
    masks = itertools.product((0.0, 1.0), repeat=len(scaled))
    result: FloatArray = np.stack(
        [sum(m * one for m, one in zip(mask, scaled, strict=True)) for mask in masks]
    )
    return result
