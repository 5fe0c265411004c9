from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from drupe.report.layout import MAX_LINES, MAX_TEXT, Page, printable, wrap

BUSY = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])  # shared cores


@BUSY
@given(st.text())
def test_what_is_printable_is_harmless(text: str) -> None:
    shown = printable(text)
    assert all(char.isprintable() or char.isspace() for char in shown)
    assert not set(shown) & set("\x1b\x07\x9b\r\n\t\x7f\u202a\u202e\u2066\u2069\u200b\u2028\ufeff")
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("char", "shown"),
    [
        *(
            ("\x1b", r"\x1b"),
            ("\x9b", r"\x9b"),
            ("\n", r"\x0a"),
            ("\u202e", r"\u202e"),
            ("\ud800", r"\ud800"),
        ),
        *(("\U000e0041", r"\U000e0041"), ("\u200d", r"\u200d"), ("核", "核"), ("é", "é"), ("[", "[")),
    ],
)
def test_hidden_characters_are_shown_by_their_code(char: str, shown: str) -> None:
    assert printable(f"a{char}b") == f"a{shown}b"


def test_an_endless_text_is_cut_and_says_so() -> None:
    assert printable("x" * (MAX_TEXT + 1234)) == "x" * MAX_TEXT + "... (+1,234)"


@BUSY
@given(st.text().map(printable), st.integers(2, 90))
def test_no_line_is_too_wide_and_nothing_is_lost(text: str, width: int) -> None:
    lines = wrap(text, width)
    assert max(map(cell_len, lines)) <= width
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@BUSY
@given(
    st.lists(st.tuples(st.integers(1, 30), st.sampled_from("，。；：、）”」")), max_size=20),
    st.integers(20, 80),
)
def test_chinese_lines_do_not_begin_with_a_closing_mark(clauses: list[tuple[int, str]], width: int) -> None:
    lines = wrap("".join("核" * count + mark for count, mark in clauses), width)
    assert not [line for line in lines if line and line[0] != "核"]


def test_a_chinese_sentence_breaks_anywhere_but_before_a_mark() -> None:
    assert wrap("核果有壳有核，壳不是核。", 12) == ["核果有壳有", "核，壳不是", "核。"]
    assert wrap("见（甲）乙", 6) == ["见", "（甲）", "乙"]


def test_english_breaks_at_spaces_and_folds_what_is_longer() -> None:
    assert wrap("see model.layers.0 here", 8) == ["see", "model.la", "yers.0", "here"]


def test_a_row_keeps_its_columns_apart() -> None:
    page = Page(30)
    page.row(["architecture", "相同", "a reason that must wrap somewhere"], [8, 6], indent=2)
    lines = page.text(color=False).splitlines()
    assert lines == [
        "  archite 相同  a reason that",
        "  cture         must wrap",
        "                somewhere",
    ]


def test_markup_and_emoji_codes_are_plain_text() -> None:
    page = Page(80)
    page.paragraph("[red]x[/red] :smile: [link=file:///etc/passwd]y[/link]", style="bold")
    assert page.text(color=False) == "[red]x[/red] :smile: [link=file:///etc/passwd]y[/link]\n"


def test_color_is_ansi_and_plain_is_plain() -> None:
    page = Page(80)
    page.paragraph("x", style="bold yellow")
    assert page.text(color=True) == "\x1b[1;33mx\x1b[0m\n"
    assert page.text(color=False) == "x\n"


def test_a_page_that_is_too_long_is_cut_and_says_so() -> None:
    page = Page(80, "cut here")
    for _ in range(MAX_LINES + 500):
        page.item("x")
    lines = page.text(color=False).splitlines()
    assert len(lines) == MAX_LINES + 1
    assert lines[-1] == "cut here"
