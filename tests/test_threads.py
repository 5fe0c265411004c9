"""Threads: one to begin with, more for large matrices, and the user's choice above both."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
from drupe import threads
threads.start_with_one()
import numpy as np
from threadpoolctl import threadpool_info
count = lambda: [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"][0]
seen = [count()]
for side in (64, 4096):
    with threads.for_side(side):
        seen.append(count())
seen.append(count())
print(seen)
"""


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"DRUPE_LARGE_THREADS": "2"}, [1, 1, 2, 1]),
        ({"OPENBLAS_NUM_THREADS": "1", "DRUPE_LARGE_THREADS": ""}, [1, 1, 1, 1]),
        ({"DRUPE_LARGE_THREADS": "many"}, [1, 1, 1, 1]),
    ],
)
def test_large_matrices_get_more_threads_unless_the_user_chose(
    chosen: dict[str, str], expected: list[int]
) -> None:
    kept = {name: value for name, value in os.environ.items() if "THREADS" not in name}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=kept | chosen, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(expected), done.stderr
