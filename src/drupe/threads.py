"""How many threads linear algebra takes: one on small matrices, all processors on large ones.

On matrices below some thousand rows threads cost more than they bring, in start-up most of all, so the command starts
with one. The user's own OPENBLAS_NUM_THREADS wins; then nothing is changed here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_START, _LARGE = "OPENBLAS_NUM_THREADS", "DRUPE_LARGE_THREADS"
LARGE = 2048
"""Smaller side of a matrix from which two threads are nearly twice as fast."""


def start_with_one() -> None:
    """Before numpy is imported: one thread, unless the user chose."""
    if _START not in os.environ:
        os.environ[_START] = "1"
        os.environ.setdefault(_LARGE, str(_processors()))


@contextmanager
def for_side(side: int) -> Iterator[None]:
    """All processors while matrices with ``side`` rows and columns are worked on, if that is large."""
    threads = os.environ.get(_LARGE, "")
    if side < LARGE or not threads.isdecimal() or int(threads) < 2:
        yield
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(int(threads), user_api="blas"):
        yield


def _processors() -> int:
    """Those that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
