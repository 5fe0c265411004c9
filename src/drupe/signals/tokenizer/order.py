"""How far two numberings of the same pieces agree in order: the statistic that tells descent.

The longest increasing subsequence (LIS) of the ids of B, when the shared pieces are sorted by the ids of A,
as a share of them. Unlike equal ids it survives offsets, inserted blocks, trimming and extension; unlike
containment it is small for unrelated vocabularies. Of a random order its mean is 2/sqrt(n) (Logan & Shepp
1977; Vershik & Kerov 1977); training data in common raises it, which is why real independent pairs, and not
this formula, set the threshold.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_STEP = 8192
"""Ids that are Python numbers at one time."""


def increasing_length(values: Iterable[int]) -> int:
    """Length of the longest strictly increasing subsequence, in O(n log n) (Schensted 1961).

    >>> increasing_length([3, 1, 2, 5, 4, 6])
    4
    """
    tails: list[int] = []
    for value in values:
        if not tails or value > tails[-1]:
            tails.append(value)
        else:
            tails[bisect_left(tails, value)] = value
    return len(tails)


def increasing_share(values: Sequence[int]) -> float:
    """LIS as a share of all values; 0 for none."""
    return increasing_length(values) / len(values) if len(values) else 0.0


def random_order(count: int) -> float:
    """Expected LIS share of ``count`` values in random order, 2/sqrt(n), at most 1."""
    return min(1.0, 2.0 / count**0.5) if count else 1.0


@dataclass(frozen=True, slots=True)
class Order:
    """Agreement of two numberings of ``count`` shared pieces; shares are of these pieces.

    ``offset`` is the most frequent difference (id in A minus id in B), ``offset_mass`` how many have it.
    """

    count: int
    lis: float
    equal: float
    offset: int
    offset_mass: float


def compare_order(ids_a: NDArray[np.int64], ids_b: NDArray[np.int64]) -> Order:
    """The agreement of two numberings, parallel over the shared pieces."""
    count = len(ids_a)
    if not count:
        return Order(0, 0.0, 0.0, 0, 0.0)
    sequence = ids_b[np.lexsort((-ids_b, ids_a))]
    numbers = (
        number for start in range(0, count, _STEP) for number in sequence[start : start + _STEP].tolist()
    )
    offsets, frequencies = np.unique(ids_a - ids_b, return_counts=True)
    dominant = int(np.argmax(frequencies))
    return Order(
        count=count,
        lis=1.0 if (sequence[1:] > sequence[:-1]).all() else increasing_length(numbers) / count,
        equal=float(np.mean(ids_a == ids_b)),
        offset=int(offsets[dominant]),
        offset_mass=float(frequencies[dominant]) / count,
    )
