"""Card, licences, notices and other documents of a model: plain text, bounded, never rendered.

Only the front-matter fields that Drupe needs are parsed: their top-level blocks are cut out first, because
benchmark tables in front matter reach hundreds of kilobytes. Aliases and anchors (YAML bombs) are refused,
and every scalar stays a string (``no`` is Norwegian, not False).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from drupe.errors import LimitError, UnsupportedError
from drupe.messages import Message, msg
from drupe.readers.config import text as clean_text
from drupe.readers.interface import Absent
from drupe.sources.interface import Tree

MAX_TEXT_BYTES = 1 << 20
"""Read of one document."""
MAX_TOTAL_BYTES = 16 << 20
"""Read of all documents of a model."""
MAX_DOCUMENTS = 512
MAX_FRONT_MATTER = 32 << 10
"""Of the needed front-matter fields; PyYAML takes about 10 us a byte."""
MAX_LIST = 64
"""Entries kept of a list in front matter."""
MAX_DEPTH = 16
_WANTED = (
    "license",
    "license_name",
    "license_link",
    "base_model",
    "datasets",
    "language",
    "name",
    "model_name",
)


class Kind(StrEnum):
    """What a document is for."""

    CARD = "card"
    LICENCE = "licence"
    NOTICE = "notice"
    POLICY = "policy"
    DOCUMENT = "document"
    MODELFILE = "modelfile"
    """Ollama's recipe and its parts (system prompt, template): may name a source, and owe it to nobody."""
    EXTRA = "extra"
    """Given on the command line with --document."""


_KINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (Kind.CARD, re.compile(r"^(readme|model[-_]?card)([-_. ].*)?$")),
    (Kind.NOTICE, re.compile(r"^(third[-_]?party[-_]?)?notices?([-_. ].*)?$")),
    (Kind.LICENCE, re.compile(r"^(.*[-_. ])?(licen[cs]es?|copying|copyright)([-_. ].*)?$")),
    (Kind.POLICY, re.compile(r"^(acceptable[-_]?)?use[-_]?policy([-_. ].*)?$")),
    (Kind.DOCUMENT, re.compile(r"^.*\.(md|markdown|txt|rst)$")),
    (Kind.MODELFILE, re.compile(r"^modelfile([-_.].*)?$")),
)
_NOT_DOCUMENTS = re.compile(
    r"^(vocab.*|merges.*|added_tokens|bpe.*|.*requirements.*|cmakelists|.*imatrix.*)\.txt$"
    r"|\.(py|json|toml|ya?ml|safetensors|bin|onnx|gguf|model|png|jpe?g|gif|svg|pdf|zip|gz)$"
)


@dataclass(frozen=True, slots=True)
class Text:
    """One document. ``sha256`` is of the bytes read: all of them unless ``truncated``."""

    file: str
    kind: Kind
    size: int
    sha256: str
    text: str
    truncated: bool = False
    binary: bool = False


@dataclass(frozen=True, slots=True)
class Card:
    """The fields of a card's front matter. Lists keep their order; unreadable front matter says why."""

    file: str
    licence: tuple[str, ...] = ()
    licence_name: str | None = None
    base_model: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    name: str | None = None
    lines: Mapping[str, int] | None = None
    """Front-matter key -> its line."""


@dataclass(frozen=True, slots=True)
class Documents:
    """All documents of a model, the card first. ``notes`` says what could not be read, and why."""

    card: Card | None
    texts: tuple[Text, ...]
    notes: tuple[Message, ...] = ()


def read_documents(tree: Tree, extra: Sequence[tuple[str, bytes]] = ()) -> Documents | Absent:
    """Card, licences, notices and other documents of a tree; ``extra`` are the files of --document.

    Raises UnsupportedError when an extra document is no text, LimitError when it is too large.
    """
    texts = [_extra(name, data) for name, data in extra]
    notes: list[Message] = []
    room = MAX_TOTAL_BYTES
    wanted = _wanted(tree.files())
    for place, (kind, file, size) in enumerate(wanted):
        if room <= 0 or place >= MAX_DOCUMENTS:
            notes.append(msg("parts.documents.omitted", count=len(wanted) - place))
            break
        length = min(size, MAX_TEXT_BYTES, room)
        room -= length
        entry = decode(file, kind, tree.open(file).read(0, length), size)
        notes += _problems(entry)
        texts.append(entry)
    if not texts:
        return Absent(msg("parts.documents.absent"))
    card, problems = _card([entry for entry in texts if entry.kind is Kind.CARD and not entry.binary])
    return Documents(card, tuple(texts), (*notes, *problems))


def _wanted(files: Mapping[str, int]) -> list[tuple[Kind, str, int]]:
    order = list(Kind)
    found = [(kind, file, size) for file, size in files.items() if (kind := kind_of(file)) is not None]
    return sorted(
        found, key=lambda entry: (order.index(entry[0]), entry[1].count("/"), len(entry[1]), entry[1])
    )


def kind_of(file: str) -> Kind | None:
    """What a file is by its name, or None when it is no document.

    >>> [kind_of(name) for name in ("README.md", "LICENSE-MIT", "NOTICE.txt", "vocab.txt")]
    [<Kind.CARD: 'card'>, <Kind.LICENCE: 'licence'>, <Kind.NOTICE: 'notice'>, None]
    """
    name = file.rsplit("/", 1)[-1].lower()
    if _NOT_DOCUMENTS.search(name):
        return None
    return next((kind for kind, pattern in _KINDS if pattern.match(name)), None)


def _extra(name: str, data: bytes) -> Text:
    if len(data) > MAX_TEXT_BYTES:
        raise LimitError("size of a document in bytes", limit=MAX_TEXT_BYTES, actual=len(data), where=name)
    entry = decode(name, Kind.EXTRA, data, len(data))
    if entry.binary:
        hint = "save it as plain text or Markdown and name that file"
        raise UnsupportedError("the document is not a text", where=name, hint=hint)
    return entry


def decode(file: str, kind: Kind, data: bytes, size: int) -> Text:
    """Bytes of a document as text: UTF-8 or UTF-16 by its mark, wrong bytes replaced, line ends LF."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    plain = data.decode(encoding, errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    strange = sum(map(plain.count, ("\0", "\ufffd")))
    return Text(
        file=file,
        kind=kind,
        size=size,
        sha256=hashlib.sha256(data).hexdigest(),
        text="" if strange > 0.1 * len(plain) else plain,
        truncated=len(data) < size,
        binary=strange > 0.1 * len(plain),
    )


def _problems(entry: Text) -> list[Message]:
    if entry.binary:
        return [msg("parts.documents.binary", file=entry.file)]
    if entry.truncated:
        limit = MAX_TEXT_BYTES
        return [msg("parts.documents.truncated", file=entry.file, limit=limit, size=entry.size)]
    return []


def _card(cards: Sequence[Text]) -> tuple[Card | None, list[Message]]:
    """The first card with front matter that can be read, else the first card."""
    problems: list[Message] = []
    for entry in cards:
        fields = front_matter(entry)
        if isinstance(fields, Message):
            problems.append(fields)
        elif fields is not None:
            return fields, problems
    return (Card(cards[0].file) if cards else None), problems


def front_matter(entry: Text) -> Card | Message | None:
    """The needed fields; a Message when the front matter cannot be read, None when there is none."""
    lines = entry.text.split("\n")
    if lines[0].rstrip() != "---":
        return None
    end = next(
        (number for number, line in enumerate(lines) if number and line.rstrip() in ("---", "...")), None
    )
    if end is None:
        return msg("parts.card.front_matter_open", file=entry.file)
    blocks, starts = _blocks(lines[1:end])
    if len(blocks) > MAX_FRONT_MATTER:
        limit = MAX_FRONT_MATTER
        return msg("parts.card.front_matter_size", file=entry.file, size=len(blocks), limit=limit)
    from yaml import YAMLError  # 20 ms, for models that have a card

    try:
        fields = plain_yaml(blocks)
    except (YAMLError, ValueError) as error:
        problem = clean_text(getattr(error, "problem", None) or str(error)) or type(error).__name__
        return msg("parts.card.front_matter_yaml", file=entry.file, problem=problem)
    return _fields(entry.file, fields if isinstance(fields, dict) else {}, starts)


def _blocks(lines: Sequence[str]) -> tuple[str, dict[str, int]]:
    """The top-level blocks of the wanted keys, and the line (from 1) where each begins."""
    kept: list[str] = []
    starts: dict[str, int] = {}
    keep = False
    for number, line in enumerate(lines, start=2):
        if line and line[0] not in " \t-#":
            key = line.split(":", 1)[0].strip().strip("\"'")
            keep = key in _WANTED and key not in starts  # a second block of one key cannot replace the first
            if keep:
                starts[key] = number
        if keep:
            kept.append(line)
    return "\n".join(kept), starts


def plain_yaml(document: str) -> object:
    """YAML as nested dicts, lists and strings, without recursion; raises ValueError on aliases and depth.

    >>> plain_yaml("language: [no, en]\\nlicense: mit")
    {'language': ['no', 'en'], 'license': 'mit'}
    """
    import yaml

    stack: list[list[object]] = [[]]
    for event in yaml.parse(document, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("it uses anchors and aliases")
        if isinstance(event, yaml.ScalarEvent):
            stack[-1].append(event.value)
        elif isinstance(event, yaml.CollectionStartEvent):
            stack.append([])
            if len(stack) > MAX_DEPTH:
                raise ValueError(f"it nests deeper than {MAX_DEPTH}")
        elif isinstance(event, yaml.SequenceEndEvent):
            stack[-2].append(stack.pop())
        elif isinstance(event, yaml.MappingEndEvent):
            items = stack.pop()
            pairs = zip(items[::2], items[1::2], strict=True)
            stack[-1].append({key: value for key, value in pairs if isinstance(key, str)})
    return stack[0][0] if stack[0] else None


def _fields(file: str, fields: Mapping[str, object], lines: Mapping[str, int]) -> Card:
    return Card(
        file=file,
        licence=_names(fields.get("license")),
        licence_name=clean_text(fields.get("license_name")),
        base_model=_names(fields.get("base_model")),
        datasets=_names(fields.get("datasets")),
        language=_names(fields.get("language")),
        name=clean_text(fields.get("model_name")) or clean_text(fields.get("name")),
        lines=dict(lines),
    )


def _names(value: object) -> tuple[str, ...]:
    entries = value if isinstance(value, list) else [value]
    return tuple(name for entry in entries[:MAX_LIST] if (name := clean_text(entry)) is not None)
