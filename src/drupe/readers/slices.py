"""Tensor-parallel checkpoints: every rank's file holds a slice of every tensor, under the same names.

Megatron-LM writes ``mp_rank_RR/`` or ``mp_rank_RR_PPP/``, NeMo ``tp_rank_RR``, DeepSpeed ``mp_rank_RR_...``, Meta
``consolidated.RR.pth``. What ``ranks.py`` does not join (one rank by itself, pipeline stages) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from drupe.errors import UnsupportedError

_RANK = re.compile(r"(?:(?:^|[/_])(?:mp|tp)_rank_|(?:^|/)consolidated\.)(\d{2,3})(?=[/_.])")


def refuse_slices(opened: Iterable[str], files: Collection[str]) -> None:
    """Raise UnsupportedError when an opened file is one rank of several that lie among ``files``."""
    for name in opened:
        rank = _RANK.search(name)
        if rank is None:
            continue
        shape = re.compile(f"{re.escape(name[: rank.start(1)])}\\d{{2,3}}{re.escape(name[rank.end(1) :])}")
        ranks = sorted(other for other in files if shape.fullmatch(other))
        if len(ranks) > 1:
            raise UnsupportedError(
                f"each of {len(ranks)} files holds a slice of every tensor (tensor parallelism)",
                where=", ".join(ranks[:3]),
                hint="join the ranks with the program that wrote them, and compare the result",
            )
