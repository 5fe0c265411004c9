"""Every format against the library that owns it, one table whatever the format, and hostile files."""

from __future__ import annotations

import base64
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from drupe.errors import FormatError
from drupe.readers.interface import Absent
from drupe.readers.tokenizer import Kind, Tokenizer, from_gguf, read_tokenizer
from drupe.readers.tokenizer.canonical import encode, undo_byte_alphabet
from drupe.sources.local import LocalTree

SPECIAL = ["<s>", "</s>", "<unk>"]


def corpus(seed: int = 0, words: int = 3000) -> list[str]:
    """Sentences of invented words with a Zipf-like frequency, in Latin, Chinese and Greek letters."""
    source = random.Random(seed)
    alphabets = ("abcdefghijklmnoprstuvw", "的一是不了人我在有他这中大来上国", "αβγδεζηθικλμ")
    lexicon = ["".join(source.choices(alphabets[k % 3], k=source.randint(2, 7))) for k in range(words)]
    weights = [1 / (rank + 1) for rank in range(words)]
    return [" ".join(source.choices(lexicon, weights, k=20)) for _ in range(800)]


def read(folder: Path) -> Tokenizer:
    tokenizer = read_tokenizer(LocalTree(folder))
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


def byte_bpe(size: int = 1500, seed: int = 0) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(corpus(seed), trainer)
    return library


def wordpiece() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=1200, special_tokens=names, show_progress=False)
    library.train_from_iterator(corpus(), trainer)
    return library


def unigram() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=800, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator(corpus(), trainer)
    return library


def word_level() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.train_from_iterator(
        corpus(), trainers.WordLevelTrainer(vocab_size=900, special_tokens=SPECIAL, show_progress=False)
    )
    return library


@pytest.fixture(scope="session")
def sp_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two SentencePiece models, ``bpe.model`` and ``unigram.model``, with control and user symbols."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "corpus.txt").write_text("\n".join(corpus()), encoding="utf-8")
    for kind in ("bpe", "unigram"):
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "corpus.txt"),
            model_prefix=str(folder / kind),
            model_type=kind,
            vocab_size=900,
            byte_fallback=True,
            user_defined_symbols=["<tool>", "naïve"],
            control_symbols=["[INST]"],
            minloglevel=2,
        )
    return folder


def expected_pieces(vocabulary: dict[str, int], to_bytes: Callable[[str], bytes]) -> dict[bytes, int]:
    """The library's vocabulary by the canonical rules, written independently of the reader."""
    table = {to_bytes(text): id_ for text, id_ in vocabulary.items() if not text.startswith("<0x")}
    return {piece: id_ for piece, id_ in table.items() if len(piece) > 1}


def undo_bytes(text: str) -> bytes:
    alphabet = tokenizers.decoders.ByteLevel()
    decoded = alphabet.decode([text])
    return decoded.encode() if "\ufffd" not in decoded else undo_byte_alphabet([text])[0]


@pytest.mark.parametrize(
    ("make", "kind", "to_bytes"),
    [
        (byte_bpe, Kind.BYTE_BPE, undo_bytes),
        (wordpiece, Kind.WORDPIECE, lambda text: (text[2:] if text[:2] == "##" else " " + text).encode()),
        (unigram, Kind.UNIGRAM, lambda text: text.replace("▁", " ").encode()),
        (word_level, Kind.WORD_LEVEL, str.encode),
    ],
)
def test_tokenizer_json_agrees_with_the_library(
    tmp_path: Path, make: Callable[[], tokenizers.Tokenizer], kind: Kind, to_bytes: Callable[[str], bytes]
) -> None:
    library = make()
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = read(tmp_path)
    added = {token.content: id_ for id_, token in library.get_added_tokens_decoder().items()}
    vocabulary = {text: id_ for text, id_ in library.get_vocab().items() if text not in added}
    assert tokenizer.kind is kind
    assert tokenizer.added == added
    assert tokenizer.pieces == expected_pieces(vocabulary, to_bytes)
    assert tokenizer.raw_size == library.get_vocab_size()
    assert tokenizer.words == frozenset()


@pytest.mark.parametrize(("model", "kind"), [("bpe", Kind.SENTENCEPIECE), ("unigram", Kind.UNIGRAM)])
def test_sentencepiece_agrees_with_the_library(
    sp_folder: Path, tmp_path: Path, model: str, kind: Kind
) -> None:
    (tmp_path / "tokenizer.model").write_bytes((sp_folder / f"{model}.model").read_bytes())
    tokenizer = read(tmp_path)
    library = sentencepiece.SentencePieceProcessor(model_file=str(sp_folder / f"{model}.model"))
    table = {library.id_to_piece(id_): id_ for id_ in range(library.get_piece_size())}
    assert tokenizer.kind is kind
    assert tokenizer.added == {
        text: table[text] for text in ("<unk>", "<s>", "</s>", "[INST]", "<tool>", "naïve")
    }
    assert tokenizer.words == {"naïve"}, "user-defined text is a piece, markup is not"
    ordinary = {text: id_ for text, id_ in table.items() if text not in tokenizer.added or text == "naïve"}
    assert tokenizer.pieces == expected_pieces(ordinary, lambda text: text.replace("▁", " ").encode())
    assert tokenizer.raw_size == len(table)


def test_one_table_has_one_digest_in_every_byte_level_format(tmp_path: Path) -> None:
    library = byte_bpe()
    folders = {name: tmp_path / name for name in ("json", "bare", "tiktoken", "tekken")}
    for folder in folders.values():
        folder.mkdir()
    library.save(str(folders["json"] / "tokenizer.json"))
    library.model.save(str(folders["bare"]))
    added = {str(id_): {"content": text, "special": True} for id_, text in enumerate(SPECIAL)}
    (folders["bare"] / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    by_id = sorted((id_, text) for text, id_ in library.get_vocab().items() if text not in SPECIAL)
    decoded = undo_byte_alphabet([text for _, text in by_id])
    lines = [base64.b64encode(piece) + b" %d\n" % id_ for (id_, _), piece in zip(by_id, decoded, strict=True)]
    (folders["tiktoken"] / "qwen.tiktoken").write_bytes(b"".join(lines))
    (folders["tiktoken"] / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    (folders["tekken"] / "tekken.json").write_text(tekken(decoded, SPECIAL))
    found = {name: read(folder) for name, folder in folders.items()}
    found["gguf"] = from_gguf(gguf_fields(library))
    assert {name: len(tokenizer.pieces) for name, tokenizer in found.items()} == dict.fromkeys(found, 1241)
    assert len({tokenizer.digest for tokenizer in found.values()}) == 1
    assert all(tokenizer.lists_added for tokenizer in found.values())


def tekken(pieces: list[bytes], specials: list[str], unused: int = 7) -> str:
    """A tekken file; ranks beyond the declared size are written and not used."""
    ranks = [*pieces, *(b"unused%d" % k for k in range(unused))]
    vocabulary = [
        {"rank": k, "token_bytes": base64.b64encode(piece).decode()} for k, piece in enumerate(ranks)
    ]
    config = {
        "pattern": ".",
        "default_vocab_size": len(pieces) + len(specials),
        "default_num_special_tokens": len(specials),
    }
    named = [{"rank": k, "token_str": text, "is_control": True} for k, text in enumerate(specials)]
    return json.dumps({"config": config, "vocab": vocabulary, "special_tokens": named})


def gguf_fields(library: tokenizers.Tokenizer, padding: int = 5) -> dict[str, object]:
    texts = [library.id_to_token(id_) or "" for id_ in range(library.get_vocab_size())]
    types = [3 if text in SPECIAL else 1 for text in texts]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": texts + [f"[PAD{k}]" for k in range(padding)],
        "tokenizer.ggml.token_type": np.array(types + [5] * padding, dtype=np.int32),
        "tokenizer.chat_template": "{{ messages }}",
    }


def test_a_sentencepiece_model_and_its_gguf_are_one_table(sp_folder: Path, tmp_path: Path) -> None:
    path = sp_folder / "bpe.model"
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    count = library.get_piece_size()
    control = {"<s>", "</s>", "[INST]"}
    types = [
        2
        if library.is_unknown(k)
        else 3
        if library.id_to_piece(k) in control
        else 6
        if library.is_byte(k)
        else 4
        if library.id_to_piece(k) in ("<tool>", "naïve")
        else 1
        for k in range(count)
    ]
    fields: dict[str, object] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [library.id_to_piece(k) for k in range(count)],
        "tokenizer.ggml.token_type": types,
    }
    (tmp_path / "spiece.model").write_bytes(path.read_bytes())
    embedded, whole = from_gguf(fields), read(tmp_path)
    assert embedded.digest == whole.digest
    assert embedded.pieces == whole.pieces
    assert embedded.words == whole.words


def test_the_bert_vocabulary_of_llama_cpp_is_turned_back(tmp_path: Path) -> None:
    library = wordpiece()
    texts = [library.id_to_token(id_) or "" for id_ in range(library.get_vocab_size())]
    (tmp_path / "vocab.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    plain = read(tmp_path)
    turned = [
        text if k < 5 else text[2:] if text.startswith("##") else "▁" + text for k, text in enumerate(texts)
    ]
    types = [3 if k < 5 else 1 for k in range(len(texts))]
    fields = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": turned,
        "tokenizer.ggml.token_type": types,
    }
    assert from_gguf(fields).digest == plain.digest
    assert from_gguf(fields).pieces == plain.pieces
    assert set(plain.added) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}


def test_settings_add_tokens_template_and_class(tmp_path: Path) -> None:
    byte_bpe().save(str(tmp_path / "tokenizer.json"))
    bare = read(tmp_path)
    settings_ = {
        "tokenizer_class": "QwenTokenizer",
        "chat_template": [{"name": "tool", "template": "x"}, {"name": "default", "template": "{{ bos }}"}],
        "added_tokens_decoder": {"1500": {"content": "<img>", "special": True}, "0": {"content": "other"}},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings_))
    full = read(tmp_path)
    assert full.added == {**bare.added, "<img>": 1500}, "the vocabulary file wins where both name an id"
    assert full.facts.class_name == "QwenTokenizer"
    (tmp_path / "chat_template.jinja").write_text("{{ bos }}")
    assert read(tmp_path).facts.template_digest == full.facts.template_digest != ""
    assert bare.facts.template_digest == ""


def test_placeholders_are_no_pieces(tmp_path: Path) -> None:
    lines = ["[PAD]", "[unused1]", "[unused12]", "the", "##ing"]
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    assert read(tmp_path).pieces == {b" the": 3, b"ing": 4}


def test_the_file_is_chosen_by_order_then_by_the_only_folder(tmp_path: Path) -> None:
    assert isinstance(read_tokenizer(LocalTree(tmp_path)), Absent)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "vocab.txt").write_text("the\nof\n")
    assert read(tmp_path).file == "a/vocab.txt"
    (tmp_path / "b" / "vocab.txt").write_text("the\nof\n")
    several = read_tokenizer(LocalTree(tmp_path))
    assert isinstance(several, Absent)
    assert "2 folders" in several.reason.text()
    assert "2 个子目录" in several.reason.text("zh")
    (tmp_path / "vocab.txt").write_text("the\nof\n")
    assert read(tmp_path).format == "vocab.txt"
    byte_bpe(400).save(str(tmp_path / "tokenizer.json"))
    assert read(tmp_path).format == "tokenizer.json"


def test_lone_surrogates_are_text_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"\\ud800x": 0, "ab": 1}')
    assert read(tmp_path).pieces == {b"\xed\xa0\x80x": 0, b"ab": 1}
    assert encode("\ud800") == b"\xed\xa0\x80"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=40, unique=True))
def test_any_bytes_survive_the_byte_alphabet(pieces: list[bytes]) -> None:
    table = {
        byte: text for text in pre_tokenizers.ByteLevel.alphabet() for byte in undo_byte_alphabet([text])
    }
    assert len(table) == 256
    written = ["".join(table[bytes([byte])] for byte in piece) for piece in pieces]
    assert list(undo_byte_alphabet(written)) == pieces


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_general_and_fast_protobuf_walks_agree(data: st.DataObject) -> None:
    """Fields in another order take the general walk; the table must be the same."""
    texts = data.draw(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=12))
    types = data.draw(st.lists(st.integers(1, 6), min_size=len(texts), max_size=len(texts)))
    rows = [
        (bytes([0x0A, len(text)]) + text, b"\x15\0\0\0\0", bytes([0x18, type_]))
        for text, type_ in zip((t.encode("utf-8", "replace") for t in texts), types, strict=True)
    ]
    found = []
    for order in ((0, 1, 2), (2, 0, 1)):
        messages = [b"".join(row[k] for k in order) for row in rows]
        content = b"".join(bytes([0x0A, len(message)]) + message for message in messages)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "tokenizer.model").write_bytes(content)
            try:
                tokenizer = read(Path(folder))
                found.append((tokenizer.digest, tokenizer.pieces, tokenizer.added))
            except FormatError as error:
                found.append((str(error), {}, {}))
    assert found[0] == found[1]
