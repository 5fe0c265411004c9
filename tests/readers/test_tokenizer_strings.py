"""Strings in one buffer and the table over them, against plain Python; and what a large vocabulary costs."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from drupe.errors import FormatError
from drupe.readers.tokenizer import Pieces, Strings, Tokenizer, read_tokenizer
from drupe.signals.tokenizer import compare, extract
from drupe.sources.local import LocalTree

# Words of eight bytes are sorted at a time: lengths around 8, 16 and 24, zero bytes at the end.
TEXT = st.builds(
    lambda stem, tail: stem + tail,
    st.sampled_from([b"", b"a" * 7, b"a" * 8, b"ab" * 8, b"\0" * 8, b"a" * 16 + b"\0" * 7, b"##"]),
    st.lists(st.sampled_from(b"\0a#\xff"), max_size=10).map(bytes),
)
TEXTS = st.lists(TEXT, max_size=30)


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXT)
def test_strings_do_what_lists_do(texts: list[bytes], wanted: bytes) -> None:
    strings = Strings.of(texts)
    assert list(strings) == texts
    assert [strings[k] for k in range(len(texts))] == texts
    assert strings.order().tolist() == sorted(range(len(texts)), key=lambda k: texts[k])
    assert strings.starts_with(wanted).tolist() == [text.startswith(wanted) for text in texts]
    assert strings.find(wanted).tolist() == [k for k, text in enumerate(texts) if text == wanted]
    assert list(strings.spaced()) == [b" " + text for text in texts]
    assert list(strings + strings[:3]) == texts + texts[:3]
    assert strings.equal(strings.take(strings.order())).tolist() == [
        one == other for one, other in zip(texts, sorted(texts), strict=True)
    ]


def few_hashes(strings: Strings) -> NDArray[np.uint64]:
    return strings.lengths.astype(np.uint64) % np.uint64(3)


@pytest.mark.parametrize("is_colliding", [False, True])
def test_pieces_are_a_dict_whatever_their_hashes(monkeypatch: pytest.MonkeyPatch, is_colliding: bool) -> None:
    if is_colliding:
        monkeypatch.setattr(Strings, "hashes", few_hashes)

    @settings(max_examples=200, deadline=None)
    @given(TEXTS, TEXTS, st.randoms(use_true_random=False))
    def check(texts: list[bytes], others: list[bytes], source: random.Random) -> None:
        ids = [source.randrange(40) for _ in texts]
        pieces, duplicates = Pieces.of(Strings.of(texts), np.array(ids, np.uint32))
        expected: dict[bytes, int] = {}
        for id_, text in sorted(zip(ids, texts, strict=True)):
            expected.setdefault(text, id_)
        assert list(pieces.items()) == list(expected.items())
        assert [pieces[text] for text in expected] == list(expected.values())
        assert duplicates == len(texts) - len(expected)
        rows = list(expected)
        found = pieces.find(Strings.of(others)).tolist()
        assert found == [rows.index(text) if text in expected else -1 for text in others]
        assert [text in pieces for text in others] == [text in expected for text in others]
        table, _ = Pieces.of(Strings.of(others), np.arange(len(others), dtype=np.uint32))
        assert pieces.find_all(table).tolist() == pieces.find(table.strings).tolist()

    check()


def vocabulary(folder: Path, lines: int, seed: int) -> Path:
    """A ``vocab.txt`` of WordPiece pieces, as long as published multilingual ones have them."""
    source = random.Random(seed)
    words = {f"{source.choice(('', '##'))}{source.randrange(1 << 36):x}"[:8]: None for _ in range(lines)}
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", *words]), encoding="utf-8")
    return folder


def read(folder: Path) -> Tokenizer:
    tokenizer = read_tokenizer(LocalTree(folder))
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


def test_a_large_vocabulary_costs_little_more_than_its_text(tmp_path: Path) -> None:
    """Reading, sketching and comparing: at most 160 bytes a line, and 40 for the second (as objects: 480 and 120)."""
    lines = 60_000
    folders = [vocabulary(tmp_path / name, lines, seed) for seed, name in enumerate("ab")]
    read(vocabulary(tmp_path / "warm", 100, 3))
    tracemalloc.start()
    try:
        a = read(folders[0])
        sketch = extract(a)
        one = tracemalloc.get_traced_memory()[1]
        b = read(folders[1])
        assert compare(sketch, extract(b), a, b).n_shared < lines
        both = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert one <= 160 * lines
    assert both <= 200 * lines


def test_a_broken_character_is_named_by_its_place_wherever_the_file_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drupe.readers.tokenizer.huggingface._UTF8_STEP", 5)
    (tmp_path / "vocab.txt").write_bytes("核果核果\nab\n".encode())
    assert read(tmp_path).raw_size == 2
    for place in (0, 4, 5, 9, 12, 15):
        data = bytearray("核果核果\nabcdef\n".encode())
        data[place] = 0xFF
        (tmp_path / "vocab.txt").write_bytes(data)
        with pytest.raises(UnicodeDecodeError) as whole:
            bytes(data).decode()
        with pytest.raises(FormatError, match=f"byte {whole.value.start} is not UTF-8"):
            read(tmp_path)
