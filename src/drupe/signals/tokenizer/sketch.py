"""What a fingerprint keeps of a tokenizer: digests, special tokens and a bottom-k sample of the pieces.

The sample holds the ``SAMPLE_SIZE`` canonical pieces with the smallest hash (48 leading bits of an 8-byte
blake2b): the same pieces are chosen in every vocabulary, so two samples can be compared below the smaller of
their largest hashes. Bottom-k sketches: Broder, "On the resemblance and containment of documents" (1997).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from drupe.errors import FormatError, LimitError
from drupe.readers.tokenizer import AddedToken, Tokenizer, encode
from drupe.signals.tokenizer.order import increasing_share

SAMPLE_SIZE = 4096
"""Pieces kept; nine bytes each, 36,864 in all."""
MAX_NAMES = 64
"""Special tokens kept by name; more are covered by their count and digest."""
_MAX_NAME = 80
_HASH_BYTES = 6
_ID_BYTES = 3
_ROW_BYTES = _HASH_BYTES + _ID_BYTES
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
        pieces_digest=_digest(sorted(tokenizer.pieces)),
        map_digest=_digest(_rows(tokenizer.pieces.items())),
        added=len(special),
        added_digest=_digest(_rows((encode(text), id_) for text, id_ in special)),
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


def _sample(pieces: Mapping[bytes, int]) -> tuple[Sample, list[tuple[bytes, int]]]:
    """The bottom-k sample and the pieces behind it; of two pieces with one hash the first in order stays."""
    blake2b = hashlib.blake2b
    digests = b"".join(blake2b(piece, digest_size=8).digest() for piece in pieces)
    hashes = np.frombuffer(digests, dtype=">u8").astype(np.uint64) >> np.uint64(64 - 8 * _HASH_BYTES)
    values, first = np.unique(hashes, return_index=True)
    order = first[:SAMPLE_SIZE]
    rows = list(pieces.items())
    chosen = [rows[int(index)] for index in order]
    ids = np.array([id_ for _, id_ in chosen], dtype=np.uint32)
    return Sample(values[:SAMPLE_SIZE], ids), chosen


def _length_first(row: tuple[bytes, int]) -> tuple[int, bytes]:
    return len(row[0]), row[0]


def _rows(items: Iterable[tuple[bytes, int]]) -> list[bytes]:
    return [b"%d:%b" % (id_, piece) for piece, id_ in sorted(items, key=itemgetter(1, 0))]


def _digest(rows: list[bytes]) -> str:
    """sha256 over the lengths (uint32, little-endian) and then the rows; "" of none."""
    if not rows:
        return ""
    digest = hashlib.sha256(np.fromiter(map(len, rows), dtype="<u4", count=len(rows)).tobytes())
    digest.update(b"".join(rows))
    return digest.hexdigest()
