"""What stderr shows while something is being done: a spinner or a bar on a terminal, else plain lines."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from drupe.messages import Language, Message

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.status import Status


class Progress:
    """Called with each step; ``amount`` moves the bar of the current one.

    ``plain``: without a terminal, steps become lines, and so does every quarter of an amount.
    """

    def __init__(self, language: Language, *, quiet: bool = False, plain: bool = False) -> None:
        watched = sys.stderr.isatty()
        self._language: Language = language
        self._lines = plain and not watched and not quiet
        self._console: Console | None = None
        self._status: Status | None = None
        self._bar: Bar | None = None
        self._text = ""
        self._quarter = 0
        if watched and not quiet:
            from rich.console import Console

            self._console = Console(stderr=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def __call__(self, message: Message) -> None:
        """A new step."""
        if not self._lines and self._console is None:
            return
        from drupe.report.layout import printable

        self._text, self._quarter = printable(message.text(self._language)), 0
        if self._lines:
            print(f"drupe: {self._text}", file=sys.stderr, flush=True)
        elif self._console is not None:
            self._spin(self._console)

    def amount(self, done: int, total: int) -> None:
        """How many bytes of how many the current step has behind it."""
        if self._lines and 4 * done // max(total, 1) > self._quarter:
            self._quarter = 4 * done // max(total, 1)
            print(f"drupe: {self._text}: {25 * self._quarter} %", file=sys.stderr, flush=True)
        elif self._console is not None:
            self._move(self._console, done, total)

    def _spin(self, console: Console) -> None:
        from rich.markup import escape

        if self._status is not None:
            self._status.update(escape(self._text))
            return
        self._stop()
        self._status = console.status(escape(self._text))
        self._status.start()

    def _move(self, console: Console, done: int, total: int) -> None:
        from rich.markup import escape
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

        if self._bar is None:
            self._stop()
            columns = ("{task.description}", BarColumn(None), DownloadColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.add_task(escape(self._text), total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def _stop(self) -> None:
        for shown in (self._status, self._bar):
            if shown is not None:
                shown.stop()
        self._status = self._bar = None
