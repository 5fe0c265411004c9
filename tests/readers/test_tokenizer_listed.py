"""CTranslate2's vocabularies: a list of pieces is the same table as the tokenizer it was made from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drupe.errors import DrupeError, FormatError
from drupe.readers.tokenizer import Kind, Tokenizer, read_tokenizer
from drupe.sources.local import LocalTree

PIECES = ["<unk>", "<s>", "ab", "\u0120cd", "ef", "\u0120核", "x" * 40]


def read(folder: Path, name: str, content: str) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content, "utf-8")
    tokenizer = read_tokenizer(LocalTree(folder))
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


@pytest.mark.parametrize("name", ["vocabulary.json", "shared_vocabulary.json"])
def test_a_list_is_the_table_of_its_places(name: str, tmp_path: Path) -> None:
    """As ``vocab.json`` with the same ids."""
    listed = read(tmp_path / "a", name, json.dumps(PIECES, indent=2))
    mapped = read(tmp_path / "b", "vocab.json", json.dumps({piece: k for k, piece in enumerate(PIECES)}))
    assert (listed.digest, listed.kind, listed.raw_size) == (mapped.digest, Kind.BYTE_BPE, len(PIECES))
    assert listed.pieces == mapped.pieces


def test_an_object_under_that_name_is_read_as_one(tmp_path: Path) -> None:
    mapped = read(tmp_path, "vocabulary.json", json.dumps({piece: k for k, piece in enumerate(PIECES)}))
    assert mapped.raw_size == len(PIECES)


def test_a_list_of_sentencepiece_is_told_by_its_spaces(tmp_path: Path) -> None:
    pieces = ["<unk>", *(f"▁w{number}" for number in range(20)), "ab"]
    assert read(tmp_path, "vocabulary.json", json.dumps(pieces)).kind is Kind.SENTENCEPIECE


@pytest.mark.parametrize("name", ["vocabulary.txt", "shared_vocabulary.txt"])
def test_older_versions_wrote_lines(name: str, tmp_path: Path) -> None:
    assert read(tmp_path, name, "\n".join(PIECES) + "\n").raw_size == len(PIECES)


@pytest.mark.parametrize(
    "content", ["[]", "7", '"text"', '["a", 7]', '["a", null]', "[", "[" * 100_000, "{}"]
)
def test_anything_else_is_a_typed_error(content: str, tmp_path: Path) -> None:
    with pytest.raises(DrupeError) as caught:
        read(tmp_path, "vocabulary.json", content)
    assert isinstance(caught.value, FormatError)
    assert "vocabulary.json" in caught.value.where


def test_many_pieces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="exceeds the limit"):
        read(tmp_path, "vocabulary.json", "[" + '"",' * 1_100_000 + '""]')
