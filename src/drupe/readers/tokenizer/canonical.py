"""From pieces as written to the bytes they stand for, so that formats and families become comparable.

Undone are the GPT-2 byte alphabet (https://github.com/openai/gpt-2, ``bytes_to_unicode``), SentencePiece's
U+2581 for a space, and WordPiece's ``##`` for "continues a word" (elsewhere a word starts: a space).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drupe.errors import FormatError, LimitError
from drupe.readers.tokenizer.interface import (
    MAX_ID,
    MAX_PIECE_BYTES,
    Kind,
    RawTable,
    Tokenizer,
    check_piece_count,
    is_word,
)
from drupe.readers.tokenizer.pieces import Pieces, order_by_id
from drupe.readers.tokenizer.strings import Strings

SPACE_MARK = "\u2581"
_CONTINUES = b"##"
_OPENERS = (b"[", b"<")
_PLACEHOLDER = re.compile(rb"[\[<]\|?(unused|reserved|extra_id|PAD)[_ a-z]*\d+\|?[\]>]")
_SPM_KINDS = (Kind.SENTENCEPIECE, Kind.UNIGRAM)
_MAX_DUPLICATE_SHARE = 0.1
_MEMORY_FREE_SIZE = 1 << 40


def _byte_alphabet() -> dict[int, int]:
    """Code point of the GPT-2 alphabet -> byte: printable Latin-1 stands for itself, the rest from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {256 + rank: byte for rank, byte in enumerate(hidden)}


_ALPHABET = _byte_alphabet()
_ALPHABET_CHARACTERS = frozenset(map(chr, _ALPHABET))
_OUTSIDE = 256
_BYTES = np.full(1 << 16, _OUTSIDE, np.uint16)
_BYTES[list(_ALPHABET)] = list(_ALPHABET.values())
_BYTE_FALLBACKS = frozenset(f"<0x{byte:02X}>".encode() for byte in range(256))


def encode(text: str) -> bytes:
    """UTF-8, also of the lone surrogates that JSON can write."""
    return text.encode("utf-8", "surrogatepass")


def undo_byte_alphabet(texts: Sequence[str]) -> Strings:
    """The bytes behind each piece of a byte-level vocabulary; text outside of the alphabet is UTF-8.

    >>> list(undo_byte_alphabet(["Ġthe", "Ċ", "你"]))
    [b' the', b'\\n', b'\\xe4\\xbd\\xa0']
    """
    codes = np.frombuffer("".join(texts).encode("utf-16-le", "surrogatepass"), "<u2")
    found = _BYTES[codes]
    if not (found == _OUTSIDE).any():
        lengths = np.fromiter(map(len, texts), np.uint32, len(texts))
        return Strings.packed(found.astype(np.uint8).tobytes(), lengths)
    return Strings.of(
        text.translate(_ALPHABET).encode("latin-1") if _ALPHABET_CHARACTERS.issuperset(text) else encode(text)
        for text in texts
    )


def _undo_space_mark(text: str) -> bytes:
    return encode(text.replace(SPACE_MARK, " "))


def _to_bytes(raw: RawTable) -> Strings:
    """The bytes each piece stands for; WordPiece keeps its marks here."""
    if isinstance(raw.texts, Strings):
        return raw.texts
    texts = raw.texts
    if isinstance(texts[0], bytes):
        return Strings.of(text for text in texts if isinstance(text, bytes))
    strings = [text for text in texts if isinstance(text, str)]
    if raw.kind is Kind.BYTE_BPE:
        return undo_byte_alphabet(strings)
    return Strings.of(map(_undo_space_mark if raw.kind in _SPM_KINDS else encode, strings))


def table_digest(table: Strings, ids: NDArray[np.uint32]) -> str:
    """sha256 over the pieces in the order of (id, piece): ids and lengths (uint32 LE), then the bytes."""
    order = order_by_id(table, ids)
    ordered = table.take(order)
    digest = hashlib.sha256(ids[order].astype("<u4").tobytes())
    digest.update(ordered.lengths.astype("<u4").tobytes())
    for chunk in ordered.chunks():
        digest.update(b"".join(chunk))
    return digest.hexdigest()


def seal(raw: RawTable) -> Tokenizer:
    """The canonical tokenizer of a raw table; raises when the table contradicts itself."""
    _check(raw)
    ids = np.asarray(raw.ids, dtype=np.uint32)
    taken = np.array([token.id for token in raw.added], dtype=np.uint32)
    kept = ~np.isin(ids, taken)
    to_bytes = _undo_space_mark if raw.kind in _SPM_KINDS else encode
    table = _to_bytes(raw).take(kept) + Strings.of(to_bytes(token.text) for token in raw.added)
    ids = np.concatenate([ids[kept], taken])
    in_map = np.ones(len(ids), np.bool_)
    in_map[len(ids) - len(taken) :] = [is_word(token) for token in raw.added]
    pieces, duplicates = _canonical_map(table.take(in_map), ids[in_map], raw.kind)
    return Tokenizer(
        format=raw.format,
        file=raw.file,
        kind=raw.kind,
        pieces=pieces,
        added={token.text: token.id for token in raw.added},
        words=frozenset(token.text for token in raw.added if is_word(token)),
        raw_size=len(table),
        digest=table_digest(table, ids),
        lists_added=raw.lists_added,
        duplicates=duplicates,
        facts=raw.facts,
    )


def _check(raw: RawTable) -> None:
    check_piece_count(len(raw.texts) + len(raw.added), _MEMORY_FREE_SIZE, raw.file)
    if not raw.texts:
        raise FormatError("the vocabulary has no pieces", where=raw.file)
    longest = int(raw.texts.lengths.max()) if isinstance(raw.texts, Strings) else max(map(len, raw.texts))
    if longest > MAX_PIECE_BYTES:
        raise LimitError("length of a piece", limit=MAX_PIECE_BYTES, actual=longest, where=raw.file)
    highest = int(raw.ids.max()) if isinstance(raw.ids, np.ndarray) else max(raw.ids)
    if highest > MAX_ID:
        raise LimitError("token id", limit=MAX_ID, actual=highest, where=raw.file)
    ids = np.sort(np.asarray(raw.ids, np.uint32), kind="stable")  # quick where they stand in order already
    repeated = int(np.count_nonzero(ids[1:] == ids[:-1]))
    if repeated > _MAX_DUPLICATE_SHARE * len(raw.ids):
        raise FormatError(f"{repeated} of {len(raw.ids)} pieces share an id with another", where=raw.file)


def _canonical_map(table: Strings, ids: NDArray[np.uint32], kind: Kind) -> tuple[Pieces, int]:
    """Canonical piece -> lowest id, in the order of ids, and how many pieces had a namesake."""
    kept = ~_placeholders(table, kind)
    table, ids = table.take(kept), ids[kept]
    if kind is Kind.WORDPIECE:
        table = _undo_wordpiece(table)
    kept = table.lengths > 1
    return Pieces.of(table.take(kept), ids[kept])


def _undo_wordpiece(table: Strings) -> Strings:
    """Pieces that continue a word without their mark, the others with a space in front."""
    surplus = table.starts_with(_CONTINUES) * np.uint32(1 + len(_CONTINUES))
    spaced = table.spaced()
    return Strings(spaced.buffer, spaced.starts + surplus, spaced.lengths - surplus)


def _placeholders(table: Strings, kind: Kind) -> NDArray[np.bool_]:
    """Which pieces are byte fallbacks or reserved places."""
    fallbacks = _BYTE_FALLBACKS if kind in _SPM_KINDS else frozenset[bytes]()
    found = table.starts_with(_OPENERS[0]) | table.starts_with(_OPENERS[1])
    rows = np.flatnonzero(found)
    found[rows] = [
        piece in fallbacks or _PLACEHOLDER.fullmatch(piece) is not None for piece in table.take(rows)
    ]
    return found
