from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drupe.errors import LimitError, UnsupportedError
from drupe.messages import Message
from drupe.readers.card import (
    MAX_TEXT_BYTES,
    Card,
    Documents,
    Kind,
    decode,
    front_matter,
    kind_of,
    plain_yaml,
    read_documents,
)
from drupe.readers.interface import Absent
from drupe.sources.locator import open_tree

BUSY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])  # shared cores

CARD = """---
license: apache-2.0
base_model:
- org/Base-7b
- other/Base
datasets: [a, b]
language: no
model-index:
- name: ignored
  results: *nowhere
name: My model
---
# My model

Text.
"""


def read(folder: Path, *extra: tuple[str, bytes]) -> Documents:
    found = read_documents(open_tree(str(folder), offline=True), extra)
    assert isinstance(found, Documents)
    return found


def front(text: str) -> Card | Message | None:
    return front_matter(decode("README.md", Kind.CARD, text.encode(), len(text)))


def test_front_matter() -> None:
    card = front(CARD)
    assert isinstance(card, Card)
    assert card.licence == ("apache-2.0",)
    assert card.base_model == ("org/Base-7b", "other/Base")
    assert card.datasets == ("a", "b")
    assert card.language == ("no",)
    assert card.name == "My model"
    assert card.lines is not None
    assert CARD.split("\n")[card.lines["base_model"] - 1] == "base_model:"


def test_base_model_may_be_one_name() -> None:
    card = front("---\r\nbase_model: 'org/Base' # parent\r\n---\r\nx")
    assert isinstance(card, Card)
    assert card.base_model == ("org/Base",)


def test_no_front_matter() -> None:
    assert front("# Title\n---\nx: 1\n---\n") is None


@pytest.mark.parametrize(
    "block",
    [
        "license: &a [*a]",
        "base_model: &x mit\nlicense: *x",
        "license: " + "[" * 5000,
        "license: " + "{a: " * 5000,
        "license: [",
        "license: mit: x",
        "license: \x01",
        "license:\n" + "- " * 5000,
        "license: " + "x" * 40_000,
    ],
    ids=["cycle", "alias", "depth", "maps", "open", "colon", "control", "dashes", "size"],
)
def test_bad_front_matter_is_told(block: str) -> None:
    assert isinstance(front(f"---\n{block}\n---\n"), Message)


def test_unclosed_front_matter_is_told() -> None:
    assert isinstance(front("---\nlicense: mit\n# Title"), Message)


def test_a_billion_laughs_is_refused() -> None:
    lines = ["a: &a0 [lol]"] + [f"b{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 30)]
    with pytest.raises(ValueError, match="alias"):
        plain_yaml("\n".join(lines))


def test_many_keys_are_skipped_over() -> None:
    card = front("---\n" + "".join(f"k{i}: 1\n" for i in range(100_000)) + "license: mit\n---\n")
    assert isinstance(card, Card)
    assert card.licence == ("mit",)


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in (
        "LICENSE",
        "NOTICE",
        "USE_POLICY.md",
        "docs/guide.md",
        "vocab.txt",
        "model.py",
        "requirements.txt",
    ):
        (tmp_path / name).write_text(name)
    (tmp_path / "README.md").write_text(CARD)
    found = read(tmp_path, ("claims.txt", b"made by us"))
    assert [(text.file, text.kind.value) for text in found.texts] == [
        ("claims.txt", "extra"),
        ("README.md", "card"),
        ("LICENSE", "licence"),
        ("NOTICE", "notice"),
        ("USE_POLICY.md", "policy"),
        ("docs/guide.md", "document"),
    ]
    assert found.card is not None
    assert found.card.licence == ("apache-2.0",)
    assert found.notes == ()


def test_front_matter_of_the_second_readme(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# x")
    (tmp_path / "README_zh.md").write_text(CARD)
    card = read(tmp_path).card
    assert card is not None
    assert card.file == "README_zh.md"


def test_nothing_is_absent(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert isinstance(read_documents(open_tree(str(tmp_path), offline=True)), Absent)


def test_binary_readme_is_told(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(bytes(range(256)) * 40)
    found = read(tmp_path)
    assert found.texts[0].binary
    assert found.texts[0].text == ""
    assert found.card is None
    assert "README.md" in str(found.notes[0])


def test_long_document_is_cut_and_told(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"a" * (MAX_TEXT_BYTES + 7))
    found = read(tmp_path)
    assert (len(found.texts[0].text), found.texts[0].truncated) == (MAX_TEXT_BYTES, True)
    assert str(MAX_TEXT_BYTES + 7) in str(found.notes[0])


def test_total_is_bounded(tmp_path: Path) -> None:
    for number in range(600):
        (tmp_path / f"{number}.md").write_text("x")
    found = read(tmp_path)
    assert len(found.texts) == 512
    assert "88" in str(found.notes[-1])


def test_extra_documents_must_be_texts(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"paper\.pdf"):
        read(tmp_path, ("paper.pdf", b"%PDF\0" + bytes(200)))
    with pytest.raises(LimitError):
        read(tmp_path, ("long.txt", b"a" * (MAX_TEXT_BYTES + 1)))


def test_utf16_is_read() -> None:
    text = decode("a.txt", Kind.DOCUMENT, "基于 Llama".encode("utf-16"), 16)
    assert text.text == "基于 Llama"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("README_CN.md", Kind.CARD),
        ("MODEL_CARD.md", Kind.CARD),
        ("LICENSE.txt", Kind.LICENCE),
        ("Llama-LICENSE", Kind.LICENCE),
        ("COPYING", Kind.LICENCE),
        ("THIRD_PARTY_NOTICES.md", Kind.NOTICE),
        ("use-policy.md", Kind.POLICY),
        ("notes.txt", Kind.DOCUMENT),
        ("merges.txt", None),
        ("license.py", None),
    ],
)
def test_kinds(name: str, kind: Kind | None) -> None:
    assert kind_of(name) is kind


@BUSY
@given(st.text(alphabet="-[]{}&*!#:?,'\"|> \nabc\tlicense%@`", max_size=80))
def test_any_front_matter(text: str) -> None:
    front(f"---\nlicense: {text}\n---\nx")


@BUSY
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    front_matter(decode("README.md", Kind.CARD, b"---\nbase_model: " + data + b"\n---", 9))
