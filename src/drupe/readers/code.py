"""Python files of a model: listed, hashed, their header lines found. Never imported, never run."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from drupe.messages import Message, msg
from drupe.readers.config import text as clean_text
from drupe.readers.interface import Absent
from drupe.sources.interface import Tree

MAX_FILES = 2000
MAX_FILE_BYTES = 4 << 20
"""Of one source file; the largest modelling file of transformers 5.23.0 has 0.3 MB."""
MAX_TOTAL_BYTES = 32 << 20
MAX_HEADERS = 20
"""Header lines kept of one file."""
_SCANNED_LINES = 5000
_HEADER = re.compile(
    r"copyright|\(c\)\s*\d{4}|©|licen[cs]ed?\b|spdx-|copied\s+from|adapted\s+from|modified\s+from|based\s+on"
    r"|derived\s+from|port(ed)?\s+of|版权|许可|基于|改编自|修改自|移植自",
    re.IGNORECASE,
)
_HOLDER = re.compile(
    r"copyright\s*(?:\(c\)|©)?\s*(?:\d{4}[\s,–-]*)+(?:present\b)?\s*(?:by\s+)?(.{2,80})", re.IGNORECASE
)
_AFTER_HOLDER = re.compile(r"[,.;]?\s*all rights reserved|\s*<|\*/", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HeaderLine:
    """A comment or docstring line about origin: copyright, licence, "copied from"."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class CodeFile:
    """One source file. ``sha256`` is of the bytes, ``text_sha256`` of the text with LF line ends."""

    file: str
    size: int
    sha256: str
    text_sha256: str
    headers: tuple[HeaderLine, ...]
    text: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class CodeFiles:
    """All source files of a model, sorted by path; ``omitted`` were beyond the limits and not read."""

    files: tuple[CodeFile, ...]
    omitted: tuple[str, ...] = ()


def read_code(tree: Tree) -> CodeFiles | Absent:
    """The Python files of a tree, hashed."""
    files = [(file, size) for file, size in tree.files().items() if file.lower().endswith(".py")]
    if not files:
        return Absent(absent_reason())
    read: list[CodeFile] = []
    omitted: list[str] = []
    room = MAX_TOTAL_BYTES
    for file, size in files:
        if size > min(MAX_FILE_BYTES, room) or len(read) >= MAX_FILES:
            omitted.append(file)
            continue
        room -= size
        read.append(parse(file, tree.open(file).read(0, size)))
    return CodeFiles(tuple(read), tuple(omitted))


def absent_reason() -> Message:
    """Why the code of a model without Python files is absent."""
    return msg("parts.code.absent")


def parse(file: str, data: bytes) -> CodeFile:
    """Digests and header lines of one file."""
    text = data.decode("utf-8-sig", errors="replace")
    lines = text.splitlines()
    normalised = "\n".join(line.rstrip() for line in lines).rstrip("\n") + "\n"
    return CodeFile(
        file=file,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        text_sha256=hashlib.sha256(normalised.encode()).hexdigest(),
        headers=_headers(lines),
        text=text,
    )


def _headers(lines: list[str]) -> tuple[HeaderLine, ...]:
    found: list[HeaderLine] = []
    quote = ""
    for number, line in enumerate(lines[:_SCANNED_LINES], start=1):
        prose, quote = _prose(line[:1000], quote)
        kept = clean_text(prose.strip()) if _HEADER.search(prose) else None
        if kept is not None:
            found.append(HeaderLine(number, kept))
            if len(found) == MAX_HEADERS:
                break
    return tuple(found)


def _prose(line: str, quote: str) -> tuple[str, str]:
    """The comment or docstring text of a line, and the triple quote still open after it.

    A tokenizer would be exact, and would raise on broken files; headers need no more than this.
    """
    if quote:
        before, found, _ = line.partition(quote)
        return before, "" if found else quote
    stripped = line.lstrip()
    for mark in ('"""', "'''"):
        if stripped.lstrip("rRbBuU").startswith(mark):
            before, found, _ = stripped.partition(mark)[2].partition(mark)
            return before, "" if found else mark
    return stripped.partition("#")[2] if stripped.startswith("#") else "", ""


def copyright_holder(line: str) -> str:
    """Who holds the copyright by this line, or "".

    >>> copyright_holder("# Copyright (c) 2023-2024, Example AI Team. All rights reserved.")
    'Example AI Team'
    """
    match = _HOLDER.search(line[:300])
    return _AFTER_HOLDER.split(match[1])[0].strip(" .,*#") if match else ""
