"""Rank files: tiktoken's ``base64 rank`` lines and Mistral's ``tekken.json``.

Formats: https://github.com/openai/tiktoken (``load_tiktoken_bpe``), and ``mistral_common``'s tekken files,
where the id of a piece is its rank plus the number of special tokens and ranks beyond the declared size are
not used.
"""

from __future__ import annotations

import binascii
import hashlib
import re

from drupe.errors import FormatError
from drupe.readers.strict_json import Json, as_object, read_json_object
from drupe.readers.tokenizer.canonical import encode
from drupe.readers.tokenizer.interface import (
    MAX_ID,
    AddedToken,
    Kind,
    RawTable,
    TokenizerFacts,
    as_id,
    check_piece_count,
    read_whole,
)
from drupe.sources.interface import Blob

_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2}[ \t]+\d{1,9}\r?(\n|$)")
_LONGEST_RANK = 9


def is_tiktoken(head: bytes) -> bool:
    """Whether a file starts with a ``base64 rank`` line."""
    return _LINE.match(head) is not None


def read_tiktoken(blob: Blob) -> RawTable:
    """The pieces of a tiktoken file; special tokens live in code elsewhere, so none are listed."""
    data = read_whole(blob)
    check_piece_count(data.count(b"\n"), len(data), blob.name)
    fields = data.split()
    if len(fields) % 2:
        raise FormatError("a line is not 'base64 rank'", where=blob.name)
    ranks = fields[1::2]
    if fields and not (b"".join(ranks).isdigit() and max(map(len, ranks)) <= _LONGEST_RANK):
        raise FormatError("a rank is not a whole number", where=blob.name)
    ids = [int(rank) for rank in ranks]
    if ids and max(ids) > MAX_ID:
        as_id(max(ids), "a piece", blob.name)
    pieces = [_decode(token, blob.name) for token in fields[0::2]]
    return RawTable("tiktoken", blob.name, Kind.TIKTOKEN, pieces, ids, lists_added=False)


def read_tekken(blob: Blob) -> RawTable:
    """The pieces and special tokens of a ``tekken.json``."""
    document = read_json_object(blob)
    config = as_object(document.get("config"), blob.name)
    vocabulary = document.get("vocab")
    if not isinstance(vocabulary, list):
        raise FormatError("tekken: 'vocab' is not a list", where=blob.name)
    specials = as_id(config.get("default_num_special_tokens"), "default_num_special_tokens", blob.name)
    size = as_id(config.get("default_vocab_size"), "default_vocab_size", blob.name)
    check_piece_count(len(vocabulary), blob.size, blob.name)
    pieces: list[bytes] = []
    ids: list[int] = []
    for entry in vocabulary:
        piece, rank = _tekken_entry(entry, blob.name)
        if rank < size - specials:
            pieces.append(piece)
            ids.append(rank + specials)
    pattern = config.get("pattern")
    digest = hashlib.sha256(encode(pattern)).hexdigest() if isinstance(pattern, str) else ""
    added = _tekken_specials(document.get("special_tokens"), blob.name)
    facts = TokenizerFacts(pre_tokenizer_digest=digest)
    return RawTable("tekken", blob.name, Kind.TIKTOKEN, pieces, ids, added, bool(added), facts)


def _tekken_entry(entry: Json, where: str) -> tuple[bytes, int]:
    if not isinstance(entry, dict) or not isinstance(text := entry.get("token_bytes"), str):
        raise FormatError("tekken: a piece has no 'token_bytes'", where=where)
    return _decode(encode(text), where), as_id(entry.get("rank"), text, where)


def _tekken_specials(entries: Json, where: str) -> tuple[AddedToken, ...]:
    """The named specials; files of version 1 do not list them."""
    if entries is None:
        return ()
    if not isinstance(entries, list):
        raise FormatError("tekken: 'special_tokens' is not a list", where=where)
    found = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(text := entry.get("token_str"), str):
            raise FormatError("tekken: a special token has no 'token_str'", where=where)
        found.append(AddedToken(text, as_id(entry.get("rank"), text, where), is_special=True))
    return tuple(found)


def _decode(token: bytes, where: str) -> bytes:
    try:
        return binascii.a2b_base64(token, strict_mode=True)
    except binascii.Error as error:
        raise FormatError(f"{token[:40]!r} is not base64: {error}", where=where) from None
