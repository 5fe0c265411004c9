"""From pieces as written to the bytes they stand for, so that formats and families become comparable.

Undone are the GPT-2 byte alphabet (https://github.com/openai/gpt-2, ``bytes_to_unicode``), SentencePiece's
U+2581 for a space, and WordPiece's ``##`` for "continues a word" (elsewhere a word starts: a space).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from operator import itemgetter

import numpy as np

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

SPACE_MARK = "\u2581"
_CONTINUES = b"##"
_OPENERS = (b"[", b"<")
_PLACEHOLDER = re.compile(rb"[\[<]\|?(unused|reserved|extra_id|PAD)[_ a-z]*\d+\|?[\]>]")
_SEPARATOR = "\ue000"
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
_BYTE_FALLBACKS = frozenset(f"<0x{byte:02X}>".encode() for byte in range(256))


def encode(text: str) -> bytes:
    """UTF-8, also of the lone surrogates that JSON can write."""
    return text.encode("utf-8", "surrogatepass")


def undo_byte_alphabet(texts: Sequence[str]) -> list[bytes]:
    """The bytes behind each piece of a byte-level vocabulary; text outside of the alphabet is UTF-8.

    >>> undo_byte_alphabet(["Ġthe", "Ċ", "你"])
    [b' the', b'\\n', b'\\xe4\\xbd\\xa0']
    """
    joined = _SEPARATOR.join(texts)
    if set(joined) <= _ALPHABET_CHARACTERS | {_SEPARATOR} and joined.count(_SEPARATOR) == len(texts) - 1:
        return [text.encode("latin-1") for text in joined.translate(_ALPHABET).split(_SEPARATOR)]
    return [
        text.translate(_ALPHABET).encode("latin-1") if _ALPHABET_CHARACTERS.issuperset(text) else encode(text)
        for text in texts
    ]


def _undo_space_mark(text: str) -> bytes:
    return encode(text.replace(SPACE_MARK, " "))


def _to_bytes(raw: RawTable) -> list[bytes]:
    """The bytes each piece stands for; WordPiece keeps its marks here."""
    texts = raw.texts
    if not texts or isinstance(texts[0], bytes):
        return [text for text in texts if isinstance(text, bytes)]
    strings = [text for text in texts if isinstance(text, str)]
    if raw.kind is Kind.BYTE_BPE:
        return undo_byte_alphabet(strings)
    if raw.kind in _SPM_KINDS:
        return [_undo_space_mark(text) for text in strings]
    return [encode(text) for text in strings]


def table_digest(pieces: Sequence[bytes], ids: Sequence[int]) -> str:
    """sha256 over the pieces in the order of (id, piece): ids and lengths (uint32 LE), then the bytes."""
    rows = sorted(zip(ids, pieces, strict=True))
    digest = hashlib.sha256(np.fromiter((id_ for id_, _ in rows), dtype="<u4", count=len(rows)).tobytes())
    ordered = [piece for _, piece in rows]
    digest.update(np.fromiter(map(len, ordered), dtype="<u4", count=len(ordered)).tobytes())
    digest.update(b"".join(ordered))
    return digest.hexdigest()


def seal(raw: RawTable) -> Tokenizer:
    """The canonical tokenizer of a raw table; raises when the table contradicts itself."""
    _check(raw)
    taken = frozenset(token.id for token in raw.added)
    written = _to_bytes(raw)
    kept = [(piece, id_) for piece, id_ in zip(written, raw.ids, strict=True) if id_ not in taken]
    mark_spaces = raw.kind in _SPM_KINDS
    added = [(_undo_space_mark(row.text) if mark_spaces else encode(row.text), row.id) for row in raw.added]
    words = [row for row, token in zip(added, raw.added, strict=True) if is_word(token)]
    table = kept + added
    pieces, duplicates = _canonical_map(kept + words, raw.kind)
    return Tokenizer(
        format=raw.format,
        file=raw.file,
        kind=raw.kind,
        pieces=pieces,
        added={token.text: token.id for token in raw.added},
        words=frozenset(token.text for token in raw.added if is_word(token)),
        raw_size=len(table),
        digest=table_digest([piece for piece, _ in table], [id_ for _, id_ in table]),
        lists_added=raw.lists_added,
        duplicates=duplicates,
        facts=raw.facts,
    )


def _check(raw: RawTable) -> None:
    check_piece_count(len(raw.texts) + len(raw.added), _MEMORY_FREE_SIZE, raw.file)
    if not raw.texts:
        raise FormatError("the vocabulary has no pieces", where=raw.file)
    if (longest := max(map(len, raw.texts))) > MAX_PIECE_BYTES:
        raise LimitError("length of a piece", limit=MAX_PIECE_BYTES, actual=longest, where=raw.file)
    if (highest := max(raw.ids)) > MAX_ID:
        raise LimitError("token id", limit=MAX_ID, actual=highest, where=raw.file)
    repeated = len(raw.ids) - len(set(raw.ids))
    if repeated > _MAX_DUPLICATE_SHARE * len(raw.ids):
        raise FormatError(f"{repeated} of {len(raw.ids)} pieces share an id with another", where=raw.file)


def _canonical_map(table: Iterable[tuple[bytes, int]], kind: Kind) -> tuple[dict[bytes, int], int]:
    """Canonical piece -> lowest id, in the order of ids, and how many pieces had a namesake."""
    drop = _BYTE_FALLBACKS if kind in _SPM_KINDS else frozenset[bytes]()
    rows = [
        row
        for row in table
        if not (row[0][:1] in _OPENERS and (row[0] in drop or _PLACEHOLDER.fullmatch(row[0])))
    ]
    if kind is Kind.WORDPIECE:
        rows = [(piece[2:] if piece[:2] == _CONTINUES else b" " + piece, id_) for piece, id_ in rows]
    rows = [row for row in rows if len(row[0]) > 1]
    rows.sort(key=itemgetter(1, 0))
    pieces = dict(rows)
    if len(pieces) < len(rows):
        pieces = {}
        for piece, id_ in rows:
            pieces.setdefault(piece, id_)
    return pieces, len(rows) - len(pieces)
