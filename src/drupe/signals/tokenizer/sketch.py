"""What a fingerprint keeps of a tokenizer: digests, special tokens and a bottom-k sample of the pieces.

The sample holds the ``SAMPLE_SIZE`` canonical pieces with the smallest hash (48 leading bits of an 8-byte
blake2b): the same pieces are chosen in every vocabulary, so two samples can be compared below the smaller of
their largest hashes. Bottom-k sketches: Broder, "On the resemblance and containment of documents" (1997).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drupe.errors import FormatError, LimitError
from drupe.readers.tokenizer import AddedToken, Pieces, Tokenizer, encode
from drupe.signals.tokenizer.order import increasing_share

SAMPLE_SIZE = 4096
"""Pieces kept; nine bytes each, 36,864 in all."""
MAX_NAMES = 64
"""Special tokens kept by name; more are covered by their count and digest."""
_MAX_NAME = 80
_HASH_BYTES = 6
_ID_BYTES = 3
_ROW_BYTES = _HASH_BYTES + _ID_BYTES
_POWERS_OF_TEN = 10 ** np.arange(1, 10)
_WHERE = "tokenizer sketch"


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Hashes (uint64, strictly increasing, below 2**48) and the ids (uint32) of the sampled pieces."""

    hashes: NDArray[np.uint64]
    ids: NDArray[np.uint32]

    def to_bytes(self) -> bytes:
        """All hashes (6 bytes each, little-endian), then all ids (3 bytes each)."""
        hashes = self.hashes.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :_HASH_BYTES]
        ids = self.ids.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :_ID_BYTES]
        return hashes.tobytes() + ids.tobytes()

    @staticmethod
    def from_bytes(data: bytes, where: str = "tokenizer sample") -> Sample:
        """The sample written by :meth:`to_bytes`; raises when it is not canonical."""
        count, rest = divmod(len(data), _ROW_BYTES)
        if rest:
            raise FormatError(
                f"{len(data)} bytes are not a whole number of rows of {_ROW_BYTES}", where=where
            )
        if count > SAMPLE_SIZE:
            raise LimitError("pieces of a sample", limit=SAMPLE_SIZE, actual=count, where=where)
        hashes = _widen(data[: count * _HASH_BYTES], _HASH_BYTES, 8).view("<u8").ravel().astype(np.uint64)
        ids = _widen(data[count * _HASH_BYTES :], _ID_BYTES, 4).view("<u4").ravel().astype(np.uint32)
        if bool((hashes[1:] <= hashes[:-1]).any()):
            raise FormatError("the hashes are not in increasing order", where=where)
        return Sample(hashes, ids)


def _widen(data: bytes, stored: int, width: int) -> NDArray[np.uint8]:
    rows = np.zeros((len(data) // stored, width), dtype=np.uint8)
    rows[:, :stored] = np.frombuffer(data, dtype=np.uint8).reshape(-1, stored)
    return rows


@dataclass(frozen=True, slots=True)
class VocabularyFacts:
    """Portable facts of one tokenizer beside the sample; digests are sha256 in hexadecimal, "" of nothing.

    ``digest`` covers every (text, id), ``pieces_digest`` the set of canonical pieces without their ids,
    ``map_digest`` the same with ids, ``added_digest`` the special tokens with ids, of which ``names`` shows
    the first. ``alphabetical`` and ``by_length`` say how far ids follow the byte order, or length then bytes,
    of the sampled pieces (longest increasing share): an order that follows from a rule proves no descent.
    """

    kind: str
    format: str
    pieces: int
    raw_size: int
    digest: str
    pieces_digest: str
    map_digest: str
    added: int
    added_digest: str
    names: tuple[AddedToken, ...]
    lists_added: bool
    template_digest: str
    pre_tokenizer_digest: str
    class_name: str
    alphabetical: float
    by_length: float


@dataclass(frozen=True, slots=True, eq=False)
class TokenizerSketch:
    """The facts and the sample; raises FormatError when they contradict each other."""

    facts: VocabularyFacts
    sample: Sample

    def __post_init__(self) -> None:
        facts, size = self.facts, len(self.sample.ids)
        # Two of a million pieces may share a hash, so a complete sample can be a little short.
        expected = min(facts.pieces, SAMPLE_SIZE)
        if not max(0, expected - 2) <= size <= expected or len(self.sample.hashes) != size:
            raise FormatError(f"a sample of {size} does not fit {facts.pieces} pieces", where=_WHERE)
        if min(facts.pieces, facts.added) < 0 or len(facts.names) > MAX_NAMES:
            raise FormatError("counts are negative, or too many names", where=_WHERE)
        if not (0 <= facts.alphabetical <= 1 and 0 <= facts.by_length <= 1):
            raise FormatError("a share lies outside of 0 to 1", where=_WHERE)

    @property
    def is_complete(self) -> bool:
        """Whether the sample holds the whole vocabulary."""
        return self.facts.pieces <= SAMPLE_SIZE


def extract(tokenizer: Tokenizer) -> TokenizerSketch:
    """The portable facts of a tokenizer. Pure: the same tokenizer gives the same bytes anywhere."""
    special = [(text, id_) for text, id_ in tokenizer.added.items() if text not in tokenizer.words]
    special.sort(key=lambda row: (row[1], row[0]))
    sample, chosen = _sample(tokenizer.pieces)
    facts = VocabularyFacts(
        kind=str(tokenizer.kind),
        format=tokenizer.format,
        pieces=len(tokenizer.pieces),
        raw_size=tokenizer.raw_size,
        digest=tokenizer.digest,
        pieces_digest=_pieces_digest(tokenizer.pieces),
        map_digest=_map_digest(tokenizer.pieces),
        added=len(special),
        added_digest=_added_digest([(id_, encode(text)) for text, id_ in special]),
        names=tuple(AddedToken(printable(text), id_, True) for text, id_ in special[:MAX_NAMES]),
        lists_added=tokenizer.lists_added,
        template_digest=tokenizer.facts.template_digest,
        pre_tokenizer_digest=tokenizer.facts.pre_tokenizer_digest,
        class_name=printable(tokenizer.facts.class_name),
        alphabetical=round(increasing_share([id_ for _, id_ in sorted(chosen)]), 4),
        by_length=round(increasing_share([id_ for _, id_ in sorted(chosen, key=_length_first)]), 4),
    )
    return TokenizerSketch(facts, sample)


def printable(text: str | bytes, limit: int = _MAX_NAME) -> str:
    """A piece or name as it may be shown anywhere: control characters escaped, bounded length.

    >>> printable("a\\x1b[31m"), printable(b"\\xff the")
    ('a\\\\x1b[31m', '\\\\xff the')
    """
    text = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text[: limit + 1]
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _sample(pieces: Pieces) -> tuple[Sample, list[tuple[bytes, int]]]:
    """The bottom-k sample and the pieces behind it; of two pieces with one hash the first in order stays."""
    hashes = pieces.hashes[pieces.by_hash] >> np.uint64(64 - 8 * _HASH_BYTES)
    places = np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]))  # of the first with each hash
    rows = np.minimum.reduceat(pieces.by_hash, places)[:SAMPLE_SIZE] if len(places) else places
    ids = pieces.ids[rows]
    chosen = list(zip(pieces.strings.take(rows), ids.tolist(), strict=True))
    return Sample(hashes[places[:SAMPLE_SIZE]], ids), chosen


def _length_first(row: tuple[bytes, int]) -> tuple[int, bytes]:
    return len(row[0]), row[0]


def _pieces_digest(pieces: Pieces) -> str:
    """Of the pieces alone, in the order of their bytes."""
    ordered = pieces.strings.take(pieces.strings.order())
    return _digest(ordered.lengths, map(b"".join, ordered.chunks()))


def _map_digest(pieces: Pieces) -> str:
    """Of ``id:piece`` in the order of (id, piece)."""
    digits = 1 + np.searchsorted(_POWERS_OF_TEN, pieces.ids, side="right")
    rows = (b"".join(map(b"%d:%b".__mod__, zip(*chunk, strict=True))) for chunk in pieces.chunks())
    return _digest(pieces.strings.lengths + digits.astype(np.uint32) + 1, rows)


def _added_digest(special: list[tuple[int, bytes]]) -> str:
    """Of ``id:text`` of the special tokens in the order of (id, text)."""
    rows = [b"%d:%b" % row for row in sorted(special)]
    return _digest(np.array([len(row) for row in rows]), rows)


def _digest(lengths: NDArray[np.integer], parts: Iterable[bytes]) -> str:
    """sha256 over the lengths (uint32, little-endian) and then all bytes; "" of no length."""
    if not len(lengths):
        return ""
    digest = hashlib.sha256(lengths.astype("<u4").tobytes())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
