"""A vocabulary that is a bare JSON list (``vocabulary.json`` of CTranslate2): a piece's id is its place.

Format fact: ``_save_vocabulary`` in python/ctranslate2/specs/model_spec.py of github.com/OpenNMT/CTranslate2.
"""

from __future__ import annotations

from drupe.errors import FormatError
from drupe.readers.strict_json import read_json
from drupe.readers.tokenizer.canonical import SPACE_MARK
from drupe.readers.tokenizer.huggingface import read_vocab_json
from drupe.readers.tokenizer.interface import Kind, RawTable, check_piece_count
from drupe.sources.interface import Blob

_BYTE_MARK = "\u0120"
"""A space in the alphabet of byte-level BPE."""


def read_vocabulary_list(blob: Blob) -> RawTable:
    """The pieces of a list. What is special is not said."""
    values = read_json(blob)
    if isinstance(values, dict):  # the name alone does not say
        return read_vocab_json(blob)
    if not isinstance(values, list) or not values:
        raise FormatError("the vocabulary is not a list of pieces", where=blob.name)
    check_piece_count(len(values), blob.size, blob.name)
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) != len(values):
        raise FormatError("a piece of the vocabulary is not a text", where=blob.name)
    spaces = sum(text.startswith(SPACE_MARK) for text in texts)
    is_byte_level = sum(text.startswith(_BYTE_MARK) for text in texts) >= spaces
    kind = Kind.BYTE_BPE if is_byte_level else Kind.SENTENCEPIECE
    return RawTable("vocabulary.json", blob.name, kind, texts, range(len(texts)), lists_added=False)
