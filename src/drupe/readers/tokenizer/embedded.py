"""The tokenizer inside a GGUF header (``tokenizer.ggml.*``).

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Token types are those of SentencePiece.
llama.cpp writes BERT vocabularies the other way round (U+2581 starts a word, nothing continues it) and fills
up to the width of the embedding with unused ``[PADn]``; both are undone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from drupe.errors import FormatError
from drupe.readers.tokenizer.canonical import SPACE_MARK, encode, seal
from drupe.readers.tokenizer.interface import (
    Kind,
    Tokenizer,
    TokenizerFacts,
    check_piece_count,
)
from drupe.readers.tokenizer.sentencepiece import PieceType, split_by_type

_PREFIX = "tokenizer.ggml."
_KINDS = {
    "gpt2": Kind.BYTE_BPE,
    "llama": Kind.SENTENCEPIECE,
    "t5": Kind.UNIGRAM,
    "bert": Kind.WORDPIECE,
    "rwkv": Kind.WORD_LEVEL,
}


def from_gguf(fields: Mapping[str, object], file: str = "gguf") -> Tokenizer:
    """The tokenizer of a GGUF header; ``file`` is shown in errors. Values are lists or numpy arrays."""
    tokens = fields.get(f"{_PREFIX}tokens")
    if tokens is None:
        raise FormatError(f"the header has no {_PREFIX}tokens", where=file)
    texts = _texts(tokens, file)
    check_piece_count(len(texts), 1 << 40, file)
    types = _types(fields.get(f"{_PREFIX}token_type"), len(texts), file)
    kind = _kind(fields.get(f"{_PREFIX}model"), texts)
    if kind is Kind.WORDPIECE:
        texts = _wordpiece_marks(texts, types)
    table = split_by_type("gguf", file, kind, texts, types)
    return seal(replace(table, facts=_facts(fields), lists_added=bool(table.added)))


def _texts(value: object, file: str) -> list[str]:
    if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, (str, bytes)):
        raise FormatError(f"{_PREFIX}tokens is not a list", where=file)
    texts = [token.decode("utf-8", "replace") if isinstance(token, bytes) else token for token in value]
    if not all(isinstance(token, str) for token in texts):
        raise FormatError(f"{_PREFIX}tokens holds something that is not text", where=file)
    return [str(token) for token in texts]


def _types(value: object, count: int, file: str) -> list[int]:
    if value is None:
        return [int(PieceType.NORMAL)] * count
    try:
        types = np.asarray(value, dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        raise FormatError(f"{_PREFIX}token_type is not a list of numbers", where=file) from None
    if types.shape != (count,):
        what = f"{_PREFIX}token_type has shape {types.shape}, there are {count} tokens"
        raise FormatError(what, where=file)
    return [int(type_) for type_ in types.tolist()]


def _kind(model: object, texts: Sequence[str]) -> Kind:
    known = _KINDS.get(model) if isinstance(model, str) else None
    if known is not None:
        return known
    marks = sum(text.startswith(SPACE_MARK) for text in texts)
    return Kind.SENTENCEPIECE if marks > len(texts) // 20 else Kind.BYTE_BPE


def _wordpiece_marks(texts: list[str], types: list[int]) -> list[str]:
    """``▁word`` and ``piece`` of llama.cpp as ``word`` and ``##piece``, unless they are so already."""
    if any(text.startswith("##") for text in texts):
        return texts
    return [
        text[1:] if text.startswith(SPACE_MARK) else "##" + text if type_ == PieceType.NORMAL else text
        for text, type_ in zip(texts, types, strict=True)
    ]


def _facts(fields: Mapping[str, object]) -> TokenizerFacts:
    template = fields.get("tokenizer.chat_template")
    digest = hashlib.sha256(encode(template)).hexdigest() if isinstance(template, str) and template else ""
    return TokenizerFacts(template_digest=digest)
