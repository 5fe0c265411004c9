"""What every tokenizer file is read into: a canonical table of pieces, and the facts around it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from drupe.errors import FormatError, LimitError
from drupe.readers.tokenizer.pieces import Pieces
from drupe.readers.tokenizer.strings import Strings
from drupe.sources.interface import Blob

MAX_BYTES = 64 << 20
"""Of a tokenizer file that is not JSON; the largest known (Gemma 3, SentencePiece) has 4.7 MB."""
MAX_PIECES = 1 << 20
"""Pieces of one vocabulary; the largest known (XLM-V) has 901,629."""
MAX_PIECE_BYTES = 1 << 16
"""Of one piece; long runs of one character reach a few hundred."""
MAX_ID = (1 << 24) - 1
"""Ids are kept in three bytes by the fingerprint."""
_BYTES_PER_PIECE = 200
_MEMORY_FLOOR = 80 << 20


class Kind(StrEnum):
    """How text is split, as far as the file tells."""

    BYTE_BPE = "byte_bpe"
    SENTENCEPIECE = "sentencepiece"
    WORDPIECE = "wordpiece"
    UNIGRAM = "unigram"
    TIKTOKEN = "tiktoken"
    WORD_LEVEL = "word_level"


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """Digests (sha256, hexadecimal) and names beside the vocabulary; "" when the model has none.

    The chat template is never rendered, only hashed.
    """

    class_name: str = ""
    template_digest: str = ""
    pre_tokenizer_digest: str = ""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A vocabulary in canonical form, whatever file it came from.

    ``pieces`` maps the bytes a piece stands for to its id, without byte fallbacks, single bytes,
    placeholders and special tokens: these agree between strangers. ``added`` maps added and special tokens
    to their ids; those that are plain ``words`` (neither flagged special nor markup) are pieces too.
    ``lists_added`` is False for formats that cannot list them. ``digest`` covers every (text, id) of the
    file, hence it is the same for the same table in another format. ``duplicates`` counts pieces that lost
    their place to an equal one with a lower id.
    """

    format: str
    file: str
    kind: Kind
    pieces: Pieces
    added: Mapping[str, int]
    words: frozenset[str]
    raw_size: int
    digest: str
    lists_added: bool = True
    duplicates: int = 0
    facts: TokenizerFacts = field(default_factory=TokenizerFacts)


@dataclass(frozen=True, slots=True)
class AddedToken:
    """An added or special token as a file lists it."""

    text: str
    id: int
    is_special: bool


@dataclass(frozen=True, slots=True)
class RawTable:
    """Pieces as written in the file, parallel to their ids, before anything is undone.

    ``texts`` as bytes stand for themselves, apart from the marks of WordPiece.
    """

    format: str
    file: str
    kind: Kind
    texts: list[str] | list[bytes] | Strings
    ids: Sequence[int] | NDArray[np.uint32]
    added: tuple[AddedToken, ...] = ()
    lists_added: bool = True
    facts: TokenizerFacts = field(default_factory=TokenizerFacts)


_MARKUP = re.compile(r"[<\[{［【〈].*[>\]}］】〉]", re.DOTALL)


def is_word(token: AddedToken) -> bool:
    """Whether an added token extends the vocabulary with text, instead of steering the model.

    >>> is_word(AddedToken("naïve", 9, False)), is_word(AddedToken("<tool_call>", 9, False))
    (True, False)
    """
    return not (token.is_special or _MARKUP.fullmatch(token.text) or not token.text.strip())


def check_piece_count(count: int, file_size: int, where: str) -> None:
    """Raise LimitError before memory is spent on more pieces than a file of this size honestly holds."""
    limit = min(MAX_PIECES, (4 * file_size + _MEMORY_FLOOR) // _BYTES_PER_PIECE)
    if count > limit:
        raise LimitError("pieces of a vocabulary", limit=limit, actual=count, where=where)


def read_whole(blob: Blob) -> bytes:
    """All bytes of a tokenizer file that is not JSON; raises LimitError when it is too large."""
    if blob.size > MAX_BYTES:
        raise LimitError("tokenizer file size in bytes", limit=MAX_BYTES, actual=blob.size, where=blob.name)
    return blob.read(0, blob.size)


def as_id(value: object, what: str, where: str) -> int:
    """A token id from a file: a whole number from 0 to MAX_ID."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise FormatError(f"the id of {what[:60]!r} is {str(value)[:40]!r}, not a whole number", where=where)
    if not 0 <= value <= MAX_ID:
        shown = value if abs(value) < 1 << 64 else "a huge number"
        raise LimitError(f"id of {what[:60]!r}", limit=MAX_ID, actual=shown, where=where)
    return value
