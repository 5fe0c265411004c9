"""Which pieces two vocabularies share, from whole vocabularies or estimated from their samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.readers.tokenizer import Pieces, Strings, Tokenizer, encode
from drupe.signals.interface import Effect
from drupe.signals.tokenizer.order import Order, compare_order
from drupe.signals.tokenizer.sketch import TokenizerSketch, printable
from drupe.stats import wilson

_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Overlap:
    """Shared pieces of A and B.

    ``size_a``, ``size_b`` and ``order.count`` are counts within the scope: the whole vocabularies, or the
    hashes below the smaller bound of the two samples. ``total_a``, ``total_b`` are the whole sizes.
    ``only_a`` and ``only_b`` show a few pieces of one side (whole vocabularies only).
    """

    total_a: int
    total_b: int
    size_a: int
    size_b: int
    order: Order
    same_pieces: bool
    is_sample: bool
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()

    @property
    def in_a(self) -> float:
        """Share of A's pieces that B has, |A and B| / |A|."""
        return self._share(self.size_a)

    @property
    def in_b(self) -> float:
        """Share of B's pieces that A has, |A and B| / |B|."""
        return self._share(self.size_b)

    @property
    def containment(self) -> float:
        """The larger of the two shares."""
        return max(self.in_a, self.in_b)

    @property
    def jaccard(self) -> float:
        """|A and B| / |A or B|."""
        return 1.0 if self.same_pieces else self._share(self._union)

    @property
    def shared(self) -> int:
        """Shared pieces of the whole vocabularies; from samples the estimate J / (1 + J) (|A| + |B|)."""
        if self.same_pieces or not self.is_sample:
            return self.total_a if self.same_pieces else self.order.count
        return round(self.jaccard / (1 + self.jaccard) * (self.total_a + self.total_b))

    @property
    def size_ratio(self) -> float:
        """Smaller vocabulary over larger, 0 to 1."""
        return min(self.total_a, self.total_b) / max(self.total_a, self.total_b, 1)

    def jaccard_effect(self) -> Effect:
        """The Jaccard index; of samples with the 95 % Wilson interval, of whole vocabularies exact."""
        return self._effect(self.jaccard, self._union)

    def containment_effect(self) -> Effect:
        """The larger containment, with its interval as for the Jaccard index."""
        return self._effect(self.containment, min(self.size_a, self.size_b))

    @property
    def _union(self) -> int:
        return self.size_a + self.size_b - self.order.count

    def _share(self, size: int) -> float:
        return 1.0 if self.same_pieces else self.order.count / size if size else 0.0

    def _effect(self, estimate: float, trials: int) -> Effect:
        if not self.is_sample or self.same_pieces or not trials:
            return Effect(estimate, estimate, estimate)
        low, high = wilson(estimate * trials, trials)
        return Effect(estimate, low, high)


def whole_overlap(a: Tokenizer, b: Tokenizer) -> Overlap:
    """Exact overlap of two vocabularies. A piece that the other side lists as special is no difference."""
    places = b.pieces.find_all(a.pieces)
    in_both = places >= 0
    count = int(np.count_nonzero(in_both))
    ids_a, ids_b = a.pieces.ids[in_both].astype(np.int64), b.pieces.ids[places[in_both]].astype(np.int64)
    only_b = np.ones(len(b.pieces), np.bool_)
    only_b[places[in_both]] = False
    size_a, size_b = len(a.pieces) - _specials(a, b), len(b.pieces) - _specials(b, a)
    return Overlap(
        total_a=size_a,
        total_b=size_b,
        size_a=size_a,
        size_b=size_b,
        order=compare_order(ids_a, ids_b),
        same_pieces=count == size_a == size_b and count > 0,
        is_sample=False,
        only_a=_examples(a.pieces, ~in_both),
        only_b=_examples(b.pieces, only_b),
    )


def _specials(holder: Tokenizer, lister: Tokenizer) -> int:
    """How many pieces of one side the other lists as added and does not hold as a piece."""
    texts = Strings.of(map(encode, lister.added))
    return int(np.count_nonzero((holder.pieces.find(texts) >= 0) & (lister.pieces.find(texts) < 0)))


def _examples(pieces: Pieces, chosen: NDArray[np.bool_]) -> tuple[str, ...]:
    rows = np.flatnonzero(chosen)[:_EXAMPLES]
    return tuple(printable(piece, 24) for piece in pieces.strings.take(rows))


def sample_overlap(a: TokenizerSketch, b: TokenizerSketch) -> Overlap:
    """Overlap below the smaller hash bound, where both samples are complete."""
    bounds = [int(side.sample.hashes[-1]) for side in (a, b) if not side.is_complete]
    bound = np.uint64(min(bounds, default=(1 << 64) - 1))
    kept_a, kept_b = a.sample.hashes <= bound, b.sample.hashes <= bound
    _, rows_a, rows_b = np.intersect1d(
        a.sample.hashes[kept_a], b.sample.hashes[kept_b], assume_unique=True, return_indices=True
    )
    ids_a = a.sample.ids[kept_a][rows_a].astype(np.int64)
    ids_b = b.sample.ids[kept_b][rows_b].astype(np.int64)
    return Overlap(
        total_a=a.facts.pieces,
        total_b=b.facts.pieces,
        size_a=int(kept_a.sum()),
        size_b=int(kept_b.sum()),
        order=compare_order(ids_a, ids_b),
        same_pieces=bool(a.facts.pieces_digest) and a.facts.pieces_digest == b.facts.pieces_digest,
        is_sample=bool(bounds),
    )
