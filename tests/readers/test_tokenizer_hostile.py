"""Hostile tokenizer files: only typed errors, whatever was done to the bytes."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from drupe.errors import DrupeError, FormatError, LimitError, UnsupportedError
from drupe.readers.tokenizer import Tokenizer, from_gguf, read_tokenizer
from drupe.sources.local import LocalTree

SOURCE = random.Random(0)
TEXT = [" ".join("".join(SOURCE.choices("abcdefgh", k=4)) for _ in range(20)) for _ in range(300)]
TEKKEN = json.dumps(
    {
        "config": {"default_vocab_size": 9, "default_num_special_tokens": 1, "pattern": "."},
        "vocab": [{"rank": 0, "token_bytes": "YWI="}, {"rank": 1, "token_bytes": "Y2Q="}],
        "special_tokens": [{"rank": 0, "token_str": "<s>"}],
    }
)


def read(folder: Path) -> Tokenizer:
    tokenizer = read_tokenizer(LocalTree(folder))
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


def bpe_json(**changes: Any) -> str:
    document: dict[str, Any] = {"model": {"type": "BPE", "vocab": {"ab": 0, "cd": 1}, "merges": []}}
    return json.dumps(document | changes)


HOSTILE: dict[str, tuple[str, bytes | str, type[DrupeError]]] = {
    "duplicate piece": ("tokenizer.json", '{"model":{"type":"BPE","vocab":{"a":1,"a":2}}}', FormatError),
    "no model": ("tokenizer.json", "{}", FormatError),
    "no vocabulary": ("tokenizer.json", '{"model":{"type":"BPE"}}', FormatError),
    "empty vocabulary": ("tokenizer.json", '{"model":{"type":"BPE","vocab":{}}}', FormatError),
    "unknown model": ("tokenizer.json", '{"model":{"type":"Quantum","vocab":{}}}', UnsupportedError),
    "model type is a list": ("tokenizer.json", '{"model":{"type":[],"vocab":{}}}', UnsupportedError),
    "id is text": ("tokenizer.json", '{"model":{"type":"BPE","vocab":{"a":"1"}}}', FormatError),
    "id is true": ("tokenizer.json", '{"model":{"type":"BPE","vocab":{"a":true}}}', FormatError),
    "id is huge": ("tokenizer.json", '{"model":{"type":"BPE","vocab":{"a":1e300}}}', FormatError),
    "id is negative": ("tokenizer.json", '{"model":{"type":"BPE","vocab":{"a":-1}}}', LimitError),
    "id of thousands of digits": (
        "tokenizer.json",
        '{"model":{"type":"BPE","vocab":{"a":%s}}}' % ("9" * 4000),
        LimitError,
    ),
    "shared ids": ("vocab.json", json.dumps({f"x{k}": 7 for k in range(100)}), FormatError),
    "long piece": ("vocab.json", json.dumps({"x" * 70_000: 0}), LimitError),
    "deep nesting": ("tokenizer.json", '{"model":' + "[" * 100_000 + "]" * 100_000 + "}", FormatError),
    "too many values": ("tokenizer.json", "[" + "0," * 3_000_000 + "0]", LimitError),
    "added is a number": ("tokenizer.json", bpe_json(added_tokens=3), FormatError),
    "added without text": ("tokenizer.json", bpe_json(added_tokens=[{"id": 3}]), FormatError),
    "added without id": ("tokenizer.json", bpe_json(added_tokens=[{"content": "x"}]), FormatError),
    "unigram without list": ("tokenizer.json", '{"model":{"type":"Unigram","vocab":{"a":1}}}', FormatError),
    "unigram of numbers": ("tokenizer.json", '{"model":{"type":"Unigram","vocab":[[1,2]]}}', FormatError),
    "not UTF-8": ("vocab.txt", b"\xff\xfe\x00", FormatError),
    "empty text": ("vocab.txt", b"", FormatError),
    "a million lines": ("vocab.txt", b"a\n" * 1_100_000, LimitError),
    "a special token on many lines": ("vocab.txt", b"##a\n" + b"[PAD]\n" * 70_000, LimitError),
    "not UTF-8 far inside": ("vocab.txt", b"ab\n" * 400_000 + b"\xe6\xa0", FormatError),
    "bad base64": ("x.tiktoken", b"!!!! 1\n", FormatError),
    "odd fields": ("x.tiktoken", b"YQ== 1\nYg==\n", FormatError),
    "rank is text": ("x.tiktoken", b"YQ== one\n", FormatError),
    "rank is huge": ("x.tiktoken", b"YWI= 99999999\n", LimitError),
    "rank of many digits": ("x.tiktoken", b"YWI= " + b"9" * 5000 + b"\n", FormatError),
    "tekken without config": ("tekken.json", '{"vocab":[]}', FormatError),
    "tekken without bytes": (
        "tekken.json",
        '{"config":{"default_vocab_size":9,"default_num_special_tokens":1},"vocab":[{"rank":0}]}',
        FormatError,
    ),
    "neither model": ("tokenizer.model", b"\x89PNG", UnsupportedError),
    "truncated protobuf": ("tokenizer.model", b"\x0a\x10\x0a\x05he", FormatError),
    "protobuf length lies": ("tokenizer.model", b"\x0a\xff\xff\xff\xff\x0f", FormatError),
    "protobuf piece not UTF-8": ("tokenizer.model", b"\x0a\x09\x0a\x02\xff\xfe\x15\0\0\0\0", FormatError),
    "a million pieces": ("tokenizer.model", b"\x0a\x08\x0a\x01a\x15\0\0\0\0" * 1_060_000, LimitError),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_a_typed_error(tmp_path: Path, name: str) -> None:
    file, content, error = HOSTILE[name]
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error) as raised:
        read_tokenizer(LocalTree(tmp_path))
    assert raised.value.where == file


@pytest.mark.parametrize(
    "config",
    ['{"added_tokens_decoder":{"x":{"content":"a"}}}', '{"added_tokens_decoder":[]}', "[]", '{"a":1,"a":1}'],
)
def test_hostile_settings_are_a_typed_error(tmp_path: Path, config: str) -> None:
    (tmp_path / "vocab.txt").write_text("the\nof\n")
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(FormatError):
        read_tokenizer(LocalTree(tmp_path))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tokenizer.ggml.tokens": "text"},
        {"tokenizer.ggml.tokens": [1, 2]},
        {"tokenizer.ggml.tokens": []},
        {"tokenizer.ggml.tokens": ["ab"], "tokenizer.ggml.token_type": [1, 1]},
        {"tokenizer.ggml.tokens": ["ab"], "tokenizer.ggml.token_type": ["x"]},
        {"tokenizer.ggml.tokens": ["ab"], "tokenizer.ggml.token_type": [1 << 70]},
        {"tokenizer.ggml.tokens": ["ab"], "tokenizer.ggml.token_type": 5},
    ],
)
def test_a_hostile_header_is_a_typed_error(fields: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        from_gguf(fields)


@pytest.fixture(scope="session")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("small")
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel()
    library.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    library.save(str(folder / "tokenizer.json"))
    (folder / "corpus.txt").write_text("\n".join(TEXT), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "bpe"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        minloglevel=2,
    )
    ranks = b"".join(base64.b64encode(b"p%d" % k) + b" %d\n" % k for k in range(200))
    return {
        "tokenizer.json": (folder / "tokenizer.json").read_bytes(),
        "tokenizer.model": (folder / "bpe.model").read_bytes(),
        "x.tiktoken": ranks,
        "tekken.json": TEKKEN.encode(),
    }


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer.model", "x.tiktoken", "tekken.json"])
def test_flipped_and_missing_bytes_give_a_tokenizer_or_a_typed_error(
    tmp_path: Path, small_files: dict[str, bytes], file: str
) -> None:
    source, whole = random.Random(file), small_files[file]
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(source.randint(1, 3)):
            data[source.randrange(len(data))] = source.randrange(256)
        cut = len(data) if source.random() < 0.7 else source.randrange(len(data))
        (tmp_path / file).write_bytes(data[:cut])
        try:
            assert read(tmp_path).raw_size > 0
        except DrupeError:
            refused += 1
    assert refused > 10
