"""Lines of a fixed width from text of strangers: harmless characters, East-Asian width, Chinese breaks."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

MAX_TEXT = 2000
"""Characters of one string that are shown."""
MAX_LINES = 20_000
"""Lines of one page; a report that fills more was made to."""
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# No line starts with a closer and none ends with an opener (GB/T 15834).
_CLOSERS = frozenset("，。、；：！？）】》〉」』”’…％·,.;:!?)]}%")
_OPENERS = frozenset("（【《〈「『“‘([{")


def printable(text: str, limit: int = MAX_TEXT) -> str:
    r"""The text with everything that could steer a terminal made visible: controls, escapes, bidi overrides.

    >>> printable("a\x1b[31mb\u202ec")
    'a\\x1b[31mb\\u202ec'
    """
    shown = "".join(_visible(char) for char in text[:limit])
    return shown if len(text) <= limit else f"{shown}... (+{len(text) - limit:,})"


def _visible(char: str) -> str:
    if " " <= char <= "~":
        return char
    # Variation selectors change the width of what stands before them.
    if unicodedata.category(char) not in _HIDDEN and not unicodedata.name(char, "").startswith(
        "VARIATION SEL"
    ):
        return char
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` cells: breaks at spaces and between Chinese characters, folds the rest.

    >>> wrap("核果有壳有核。See the kernel", 12)
    ['核果有壳有', '核。See the', 'kernel']
    """
    lines: list[str] = []
    line = ""
    for spaced, unit in _units(text):
        joined = f"{line} {unit}" if spaced and line else line + unit
        if cell_len(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        *full, line = _fold(unit, width)
        lines += full
    return [*lines, line] if line or not lines else lines


def _units(text: str) -> Iterator[tuple[bool, str]]:
    """Pieces that stay together, each with whether a space stood before it."""
    unit, spaced = "", False
    for char in text:
        if char == " ":
            if unit:
                yield spaced, unit
            unit, spaced = "", True
        elif unit and _may_break(unit[-1], char):
            yield spaced, unit
            unit, spaced = char, False
        else:
            unit += char
    if unit:
        yield spaced, unit


def _may_break(before: str, after: str) -> bool:
    """Between two characters without a space: only beside a wide one, and not before a closer."""
    if after in _CLOSERS or before in _OPENERS:
        return False
    return cell_len(before) == 2 or cell_len(after) == 2


def _fold(unit: str, width: int) -> list[str]:
    """A piece that may be longer than a line, cut by cells."""
    pieces, piece = [], ""
    for char in unit:
        if cell_len(piece + char) > width:
            pieces.append(piece)
            piece = ""
        piece += char
    return [*pieces, piece]


def pad(text: str, width: int) -> str:
    """The text filled with spaces to ``width`` cells."""
    return text + " " * max(0, width - cell_len(text))


@dataclass(slots=True)
class Page:
    """Collects lines of at most ``width`` cells; every string that enters is made printable.

    ``ending`` stands below a page that was cut at MAX_LINES.
    """

    width: int
    ending: str = "..."
    lines: list[Text] = field(default_factory=list)

    def blank(self) -> None:
        """An empty line."""
        self.lines.append(Text())

    def heading(self, title: str) -> None:
        """A section title after an empty line."""
        self.blank()
        self.paragraph(title, style="bold")

    def paragraph(self, text: str, *, style: str = "", indent: int = 0) -> None:
        """Wrapped text."""
        if len(self.lines) > MAX_LINES:
            return
        for line in wrap(printable(text), self.width - indent):
            self.lines.append(Text(" " * indent).append(line, style))

    def field(self, label: str, text: str, *, column: int, indent: int = 0, style: str = "") -> None:
        """A dim label and its wrapped text, which begins ``column`` cells after the indent."""
        self.row([label, text], [column], indent=indent, styles=["dim", style])

    def item(self, text: str, *, indent: int = 0, style: str = "") -> None:
        """A wrapped list item."""
        self.row(["-", text], [2], indent=indent, styles=["dim", style])

    def row(
        self, cells: list[str], widths: list[int], *, indent: int = 0, styles: list[str] | None = None
    ) -> None:
        """A row of wrapped cells; the last one takes what the ``widths`` of the others leave.

        A column is separated from the next by the last of its own cells; a cell that is too wide wraps.
        """
        if len(self.lines) > MAX_LINES:
            return
        rest = self.width - indent - sum(widths)
        inner = [*(max(1, width - 1) for width in widths), rest]
        columns = [wrap(printable(cell), size) for cell, size in zip(cells, inner, strict=True)]
        for index in range(max(len(column) for column in columns)):
            line = Text(" " * indent)
            for place, column in enumerate(columns):
                text = column[index] if index < len(column) else ""
                last = place == len(widths)
                line.append(text if last else pad(text, widths[place]), styles[place] if styles else "")
            line.rstrip()
            self.lines.append(line)

    def text(self, *, color: bool) -> str:
        """The whole page; with ``color`` as ANSI sequences."""
        stream = io.StringIO()
        console = Console(
            file=stream,
            width=self.width,
            force_terminal=color,
            color_system="standard" if color else None,
            no_color=not color,
            legacy_windows=False,
            highlight=False,
        )
        cut = [Text(self.ending)] if len(self.lines) > MAX_LINES else []
        for line in [*self.lines[:MAX_LINES], *cut]:
            console.print(line, soft_wrap=True, markup=False, emoji=False)
        return stream.getvalue()
