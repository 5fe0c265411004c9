"""Tensors that carry no lineage: constants, tables, fixed transforms, damage. Recognised, never dropped silently.

Rules and their measurements: docs/design/002-uninformative-tensors.md.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from drupe.readers.interface import FloatArray


class State(IntEnum):
    """Whether a matrix may speak for lineage; the numbers are part of the fingerprint format."""

    INFORMATIVE = 0
    TOO_SMALL = 1
    NOT_FINITE = 2
    ALL_ZERO = 3
    FEW_VALUES = 4
    SMOOTH = 5
    FIXED_TRANSFORM = 6


MAX_MAGNITUDE = 1e15
"""Larger values cannot be squared and summed in float32; no working model holds them."""
MIN_DISTINCT = 5
MAX_MODE_SHARE = 0.5
MAX_LAG1 = 0.5
SPECTRAL_LIMIT = 4.0
MAX_LINE_SHARE = 0.9
MIN_BITS = 64


def classify(sample: FloatArray, *, learned: bool) -> State:
    """The state of a matrix from its sampled rows.

    ``learned``: its role says that it was trained (q, up, embed ...); position tables, buffers and unknown
    tensors may be fixed tables, which are smooth along rows or from row to row.
    """
    if not (np.abs(sample) < MAX_MAGNITUDE).all():  # also false for NaN
        return State.NOT_FINITE
    if not sample.any():
        return State.ALL_ZERO
    if sample.size < MIN_BITS or sample.shape[0] < 2:
        return State.TOO_SMALL
    if _has_few_values(sample):
        return State.FEW_VALUES
    if not learned and max(lag1(sample), lag1(sample.T)) > MAX_LAG1:
        return State.SMOOTH
    return State.INFORMATIVE


def _has_few_values(sample: FloatArray) -> bool:
    """At most four values, or one non-zero value in most places, or hardly any but zero.

    Zeros alone do not count as a mode while a fifth of the values differs: pruning leaves lineage behind.
    """
    values, counts = np.unique(sample, return_counts=True)
    if values.size < MIN_DISTINCT:
        return True
    mode = int(np.argmax(counts))
    if values[mode] == 0.0:
        return bool(counts[mode] > 0.98 * sample.size)
    return bool(counts[mode] > MAX_MODE_SHARE * sample.size)


def lag1(sample: FloatArray) -> float:
    """Autocorrelation along rows at lag 1, each row centred: near 0 for weights, near 1 for tables."""
    centred = sample - sample.mean(axis=1, keepdims=True)
    power = float((centred * centred).sum())
    return float((centred[:, 1:] * centred[:, :-1]).sum()) / power if power > 0 else 0.0


def is_fixed_transform(matrix: FloatArray) -> bool:
    """Spectral lines along both axes: a Fourier, cosine or filter-bank basis, equal in unrelated models.

    Share of the three strongest of N frequencies; noise gives about 3 ln N / N. Four times that, at most 0.9, along
    both axes. Lies for learned position tables along one axis, hence both. Needs at least 32 rows and columns.
    """
    if min(matrix.shape) < 32 or not np.isfinite(matrix).all():
        return False
    return all(_has_lines(view) for view in (matrix, matrix.T))


def _has_lines(matrix: FloatArray) -> bool:
    centred = matrix - matrix.mean(axis=1, keepdims=True)
    power = np.abs(np.fft.rfft(centred, axis=1))[:, 1:] ** 2
    total = power.sum(axis=1)
    count = power.shape[1]
    alive = total > 1e-12 * float(total.max() or 1.0)  # a constant row has no spectrum
    if count < 8 or not alive.any():
        return False
    top = np.partition(power[alive], count - 3, axis=1)[:, -3:].sum(axis=1)
    limit = min(MAX_LINE_SHARE, SPECTRAL_LIMIT * 3.0 * float(np.log(count)) / count)
    return bool(np.median(top / total[alive]) > limit)
