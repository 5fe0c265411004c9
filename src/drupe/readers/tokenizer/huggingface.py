"""Hugging Face files: ``tokenizer.json``, ``vocab.json``, ``vocab.txt`` and ``tokenizer_config.json``.

Formats: https://huggingface.co/docs/tokenizers and the ``transformers`` tokenizer classes. Merge lists are
not read: exporters expand them differently, and ids carry the same order.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from drupe.errors import FormatError, LimitError, UnsupportedError
from drupe.readers.strict_json import Json, as_object, read_json_object
from drupe.readers.tokenizer.canonical import SPACE_MARK, encode
from drupe.readers.tokenizer.interface import (
    AddedToken,
    Kind,
    RawTable,
    TokenizerFacts,
    as_id,
    check_piece_count,
    read_whole,
)
from drupe.readers.tokenizer.strings import Strings
from drupe.sources.interface import Blob

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")
_BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_UTF8_STEP = 1 << 20
_MAX_NAMED = 1 << 16
_BYTE_MARK = "\u0120"
_MODEL_KINDS = {"WordPiece": Kind.WORDPIECE, "Unigram": Kind.UNIGRAM, "WordLevel": Kind.WORD_LEVEL}


@dataclass(frozen=True, slots=True)
class Settings:
    """What ``tokenizer_config.json`` adds to a vocabulary."""

    added: tuple[AddedToken, ...] = ()
    named: frozenset[str] = frozenset()
    facts: TokenizerFacts = field(default_factory=TokenizerFacts)


def read_tokenizer_json(blob: Blob) -> RawTable:
    """The model, added tokens and pre-tokenizer of a ``tokenizer.json``."""
    document = read_json_object(blob)
    model = as_object(document.get("model"), blob.name)
    type_ = _model_type(model, blob.name)
    texts, ids = _unigram(model, blob.name) if type_ == "Unigram" else _vocabulary(model.get("vocab"), blob)
    check_piece_count(len(texts), blob.size, blob.name)
    kind = _MODEL_KINDS.get(type_) or _bpe_kind(document, model, texts)
    facts = TokenizerFacts(pre_tokenizer_digest=_json_digest(document.get("pre_tokenizer")))
    added = tuple(_added_tokens(document.get("added_tokens"), blob.name))
    return RawTable("tokenizer.json", blob.name, kind, texts, ids, added, facts=facts)


def read_vocab_json(blob: Blob) -> RawTable:
    """A bare ``vocab.json``: piece -> id. What it lists as special is said elsewhere."""
    texts, ids = _vocabulary(dict(read_json_object(blob)), blob)
    check_piece_count(len(texts), blob.size, blob.name)
    kind = _bpe_kind({}, {}, texts)
    return RawTable("vocab.json", blob.name, kind, texts, ids, lists_added=False)


def read_vocab_txt(blob: Blob) -> RawTable:
    """A ``vocab.txt``: one piece per line, the id is the line number from 0."""
    data = read_whole(blob)
    check_piece_count(data.count(b"\n") + 1, len(data), blob.name)
    _check_utf8(data, blob.name)
    lines = data.replace(b"\r\n", b"\n").removesuffix(b"\n")
    breaks = np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n")).astype(np.uint32)
    starts, stops = np.append(np.uint32(0), breaks + np.uint32(1)), np.append(breaks, np.uint32(len(lines)))
    ids = np.flatnonzero(stops > starts).astype(np.uint32)
    if not len(ids):
        raise FormatError("the vocabulary has no pieces", where=blob.name)
    texts = Strings(lines, starts, stops - starts).take(ids)
    is_wordpiece = b"\n##" in lines or lines.startswith(b"##")
    kind = Kind.WORDPIECE if is_wordpiece else Kind.WORD_LEVEL
    table = RawTable("vocab.txt", blob.name, kind, texts, ids)
    return _with_named(table, frozenset(_BERT_TOKENS)) if is_wordpiece else replace(table, lists_added=False)


def _check_utf8(data: bytes, where: str) -> None:
    """Raise FormatError unless all is UTF-8; decoded at once it would take up to four times its size."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(data), _UTF8_STEP):
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(data[start : start + _UTF8_STEP], final=start + _UTF8_STEP >= len(data))
        except UnicodeDecodeError as error:
            raise FormatError(f"byte {start - pending + error.start} is not UTF-8", where=where) from None


def read_settings(config: Blob | None, added: Blob | None, template: Blob | None) -> Settings:
    """``tokenizer_config.json``, ``added_tokens.json`` and ``chat_template.jinja``, each if there is one."""
    document = read_json_object(config) if config else {}
    where = config.name if config else ""
    tokens = list(_decoder_tokens(document.get("added_tokens_decoder"), where))
    if added is not None:
        tokens += [
            AddedToken(text, as_id(id_, text, added.name), is_special=False)
            for text, id_ in read_json_object(added).items()
        ]
    text = encode_template(document.get("chat_template"))
    if template is not None:
        text = read_whole(template)
    class_name = document.get("tokenizer_class")
    facts = TokenizerFacts(
        class_name=class_name[:200] if isinstance(class_name, str) else "",
        template_digest=hashlib.sha256(text).hexdigest() if text else "",
    )
    return Settings(tuple(tokens), frozenset(_named_tokens(document)), facts)


def encode_template(value: Json) -> bytes:
    """The bytes of a chat template: text, or a list of named templates of which ``default`` counts."""
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        entries.sort(key=lambda entry: entry.get("name") != "default")
        value = entries[0].get("template") if entries else None
    return encode(value) if isinstance(value, str) else b""


def with_settings(table: RawTable, settings: Settings) -> RawTable:
    """The table completed by its settings; what the vocabulary file itself says wins."""
    known_ids = {token.id for token in table.added}
    known_texts = {token.text for token in table.added}
    extra: dict[str, AddedToken] = {}
    for token in settings.added:
        if token.id not in known_ids and token.text not in known_texts:
            known_ids.add(token.id)
            extra[token.text] = token
    completed = replace(
        table,
        added=(*table.added, *extra.values()),
        lists_added=table.lists_added or bool(settings.added or settings.named),
        facts=replace(settings.facts, pre_tokenizer_digest=table.facts.pre_tokenizer_digest),
    )
    return completed if table.lists_added else _with_named(completed, settings.named)


def _with_named(table: RawTable, names: frozenset[str]) -> RawTable:
    """The table with those pieces declared special that ``names`` names."""
    names -= {token.text for token in table.added}
    return replace(table, added=(*table.added, *_rows_named(table, names)))


def _rows_named(table: RawTable, names: frozenset[str]) -> Iterator[AddedToken]:
    if isinstance(table.texts, Strings):
        places = {name: table.texts.find(encode(name)) for name in names}
        if (count := sum(map(len, places.values()))) > _MAX_NAMED:
            raise LimitError("lines with a special token", limit=_MAX_NAMED, actual=count, where=table.file)
        rows = sorted((int(row), name) for name, found in places.items() for row in found)
    else:
        rows = [(k, text) for k, text in enumerate(table.texts) if isinstance(text, str) and text in names]
    for row, text in rows:
        yield AddedToken(text, int(table.ids[row]), is_special=True)


def _model_type(model: Mapping[str, Json], where: str) -> str:
    type_ = model.get("type")
    if type_ is None:  # files before tokenizers 0.10 do not say
        if isinstance(model.get("vocab"), list):
            return "Unigram"
        return "WordPiece" if "continuing_subword_prefix" in model and "merges" not in model else "BPE"
    if type_ not in ("BPE", *_MODEL_KINDS):
        raise UnsupportedError(
            f"tokenizer model type {str(type_)[:40]!r} is not one of BPE, WordPiece, Unigram, WordLevel",
            where=where,
            hint="the tokenizer is left out; the rest of the model can be compared",
        )
    return str(type_)


def _vocabulary(value: Json, blob: Blob) -> tuple[list[str], list[int]]:
    table = as_object(value, blob.name)
    ids = list(table.values())
    if set(map(type, ids)) <= {int} and (not ids or (min(ids) >= 0 and max(ids) < 1 << 24)):  # type: ignore[type-var, operator]
        return list(table), ids  # type: ignore[return-value]
    return list(table), [as_id(id_, text, blob.name) for text, id_ in table.items()]


def _unigram(model: Mapping[str, Json], where: str) -> tuple[list[str], list[int]]:
    entries = model.get("vocab")
    if not isinstance(entries, list):
        raise FormatError("a Unigram vocabulary must be a list of [piece, score]", where=where)
    texts = [entry[0] for entry in entries if isinstance(entry, list) and entry and isinstance(entry[0], str)]
    if len(texts) != len(entries):
        raise FormatError("a Unigram entry is not [piece, score]", where=where)
    return texts, list(range(len(texts)))


def _bpe_kind(document: Mapping[str, Json], model: Mapping[str, Json], texts: list[str]) -> Kind:
    """Byte-level or SentencePiece style: what is declared, else which space mark is the more frequent."""
    if _declares_byte_level(document.get("pre_tokenizer")) or _declares_byte_level(document.get("decoder")):
        return Kind.BYTE_BPE
    byte_marks = sum(text.startswith(_BYTE_MARK) for text in texts)
    space_marks = sum(text.startswith(SPACE_MARK) for text in texts)
    if space_marks > byte_marks or (model.get("byte_fallback") is True and not byte_marks):
        return Kind.SENTENCEPIECE
    return Kind.BYTE_BPE


def _declares_byte_level(node: Json) -> bool:
    """Whether a pre-tokenizer or decoder, or a direct part of a sequence of them, is ByteLevel."""
    if not isinstance(node, dict):
        return False
    parts = [node]
    for key in ("pretokenizers", "decoders"):
        value = node.get(key)
        parts += [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []
    return any(part.get("type") == "ByteLevel" for part in parts)


def _added_tokens(entries: Json, where: str) -> Iterator[AddedToken]:
    if entries is None:
        return
    if not isinstance(entries, list):
        raise FormatError("'added_tokens' is not a list", where=where)
    check_piece_count(len(entries), 1 << 40, where)
    for entry in entries:
        yield _added_token(entry, entry.get("id") if isinstance(entry, dict) else None, where)


def _decoder_tokens(entries: Json, where: str) -> Iterator[AddedToken]:
    for key, entry in as_object(entries, where).items() if entries is not None else ():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise FormatError(f"added_tokens_decoder: {key[:40]!r} is not an id", where=where)
        yield _added_token(entry, int(key), where)


def _added_token(entry: Json, id_: Json, where: str) -> AddedToken:
    if not isinstance(entry, dict) or not isinstance(text := entry.get("content"), str):
        raise FormatError("an added token has no 'content'", where=where)
    return AddedToken(text, as_id(id_, text, where), entry.get("special") is True)


def _named_tokens(document: Mapping[str, Json]) -> Iterator[str]:
    values = [document.get(key) for key in _NAMED_TOKENS]
    more = document.get("additional_special_tokens")
    values += more if isinstance(more, list) else []
    for value in values:
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            yield text


def _json_digest(value: Json) -> str:
    """sha256 of a JSON value in one canonical spelling; "" for null."""
    if value is None:
        return ""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
