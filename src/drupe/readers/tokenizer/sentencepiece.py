"""SentencePiece models (``tokenizer.model``, ``spiece.model``, ``*.spm``): a bounded parse of the protobuf.

Schema: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
ModelProto {1: repeated SentencePiece {1: piece, 2: score, 3: type}, 2: TrainerSpec {3: model_type}}.
"""

from __future__ import annotations

from enum import IntEnum

from drupe.errors import FormatError
from drupe.readers import protobuf
from drupe.readers.tokenizer.interface import (
    MAX_PIECE_BYTES,
    AddedToken,
    Kind,
    RawTable,
    check_piece_count,
    read_whole,
)
from drupe.sources.interface import Blob

_PIECE_TAG = 0x0A
_SCORE_TAG = 0x15
_TYPE_TAG = 0x18


class PieceType(IntEnum):
    """What a piece is for; the numbers are those of SentencePiece and of ``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_MODEL_KINDS = {1: Kind.UNIGRAM, 2: Kind.SENTENCEPIECE}
_ADDED = (PieceType.UNKNOWN, PieceType.CONTROL, PieceType.USER_DEFINED)


def is_sentencepiece(head: bytes) -> bool:
    """Whether a file starts like a SentencePiece model: field 1, length-delimited."""
    return head[:1] == bytes([_PIECE_TAG])


def read_sentencepiece(blob: Blob) -> RawTable:
    """The pieces of a SentencePiece model; an id is the position in the file."""
    data = read_whole(blob)
    entries, rest = _leading_pieces(data, blob.name)
    kind = Kind.UNIGRAM
    for field in protobuf.iter_fields(memoryview(data)[rest:], blob.name):
        if field.number == 1 and not isinstance(field.value, int):
            entries.append(_piece(field.value, blob.name))
            check_piece_count(len(entries), len(data), blob.name)
        elif field.number == 2 and not isinstance(field.value, int):
            kind = _model_kind(field.value, blob.name)
    return split_by_type("sentencepiece", blob.name, kind, *_columns(entries))


def split_by_type(
    format_name: str, file: str, kind: Kind, texts: list[str], types: list[int], *, control: bool = True
) -> RawTable:
    """A table whose ids are positions, with the control and user-defined pieces set apart."""
    added = tuple(
        AddedToken(text, id_, type_ != PieceType.USER_DEFINED)
        for id_, (text, type_) in enumerate(zip(texts, types, strict=True))
        if type_ in _ADDED
    )
    ordinary = [id_ for id_, type_ in enumerate(types) if type_ in (PieceType.NORMAL, PieceType.BYTE)]
    pieces = [texts[id_] for id_ in ordinary]
    return RawTable(format_name, file, kind, pieces, ordinary, added, lists_added=control)


def _columns(entries: list[tuple[str, int]]) -> tuple[list[str], list[int]]:
    return [text for text, _ in entries], [type_ for _, type_ in entries]


def _leading_pieces(data: bytes, where: str) -> tuple[list[tuple[str, int]], int]:
    """The run of plainly written pieces at the start, and where it ends: ten times faster than the walk.

    Plain means one-byte lengths and the field order of the official writer; anything else ends the run.
    """
    entries: list[tuple[str, int]] = []
    position, end = 0, len(data)
    while position + 4 < end and data[position] == _PIECE_TAG:
        length, width, tag = data[position + 1], data[position + 3], data[position + 2]
        begin = position + 4
        stop, next_ = begin + width, position + 2 + length
        if length > 127 or tag != _PIECE_TAG or width > 127 or next_ > end:
            break
        extra = next_ - stop
        if extra not in (5, 7) or data[stop] != _SCORE_TAG or (extra == 7 and data[stop + 5] != _TYPE_TAG):
            break
        type_ = data[stop + 6] if extra == 7 else PieceType.NORMAL
        if type_ > PieceType.BYTE:
            break
        try:
            entries.append((data[begin:stop].decode("utf-8"), type_))
        except UnicodeDecodeError:
            raise FormatError(f"piece {len(entries)} is not UTF-8", where=where) from None
        position = next_
        if not len(entries) % 65536:
            check_piece_count(len(entries), end, where)
    check_piece_count(len(entries), end, where)
    return entries, position


def _piece(message: memoryview, where: str) -> tuple[str, int]:
    text, type_ = "", int(PieceType.NORMAL)
    for field in protobuf.iter_fields(message, where):
        if field.number == 1 and not isinstance(field.value, int):
            text = protobuf.text(field.value, where, MAX_PIECE_BYTES)
        elif field.number == 3 and isinstance(field.value, int):
            type_ = field.value
    return text, type_


def _model_kind(message: memoryview, where: str) -> Kind:
    for field in protobuf.iter_fields(message, where):
        if field.number == 3 and isinstance(field.value, int):
            return _MODEL_KINDS.get(field.value, Kind.UNIGRAM)
    return Kind.UNIGRAM
