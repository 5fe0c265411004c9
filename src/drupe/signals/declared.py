"""What a model says about its origin: declared base models, mentions of the source, copyright holders.

Disclosure of a source by a suspect:

- ``disclosed``: ``base_model`` (card or GGUF header) or a text (card, NOTICE, document, header of code) names
  it as :mod:`drupe.model_names` defines. Licence texts are no such place: their names belong to the licence.
- ``unknown``: no card or document at all; or both models go by **the same name** and only that name is
  mentioned (a model naming itself says nothing about an origin, and nothing against it); or the source has no
  distinctive name while the card declares some base model; or only a truncated list of mentions is known.
- ``undisclosed``: a card or document that names no source.

The suspect's own ``_name_or_path`` or ``general.name`` (left over by tools) is a lead, never a disclosure. A
longer own name that contains the source's ("SmolLM2-135M-chat") names it, where a document says that name.
When it lies: a comparison table or a denial names the source too; the evidence quotes the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from drupe.messages import Message, msg
from drupe.model_names import (
    candidates,
    expand,
    is_hub_id,
    mentions,
    names_in_locator,
    normalise,
    prepare,
    strip_suffixes,
)
from drupe.readers.card import Documents, Kind
from drupe.readers.code import CodeFiles, copyright_holder
from drupe.readers.config import Config
from drupe.readers.config import text as clean_text
from drupe.signals.interface import Component, Evidence, Finding, Measured, Skipped

Disclosure = Literal["disclosed", "undisclosed", "unknown"]

MAX_MENTIONS, MAX_MENTION_CHARACTERS = 512, 8192
MAX_SEARCHED = 2 << 20
"""Characters of all texts that are searched for candidate names."""
MAX_PLACES = 64
"""Entries of every other list of facts, and pieces of evidence of one comparison."""
_NAMING = (Kind.CARD, Kind.NOTICE, Kind.DOCUMENT, Kind.EXTRA)
_SEARCHED = (*_NAMING, Kind.MODELFILE)
"""A recipe that names the source discloses it; one that does not has withheld nothing."""
_BASE_MODEL = re.compile(r"^general\.base_model\.\d+\.(name|repo_url|organization)$")


@dataclass(frozen=True, slots=True)
class Place:
    """A text and where it stands; line 0 when the file has no lines."""

    text: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Digest:
    """SHA-256 of one document."""

    file: str
    kind: str
    sha256: str


@dataclass(frozen=True, slots=True)
class DeclaredFacts:
    """Portable: the names a model goes by, what it declares, and candidate names of models in its texts."""

    names: tuple[str, ...]
    config_name: str | None
    gguf_name: str | None
    has_documents: bool
    base_models: tuple[Place, ...]
    licences: tuple[str, ...]
    holders: tuple[Place, ...]
    digests: tuple[Digest, ...]
    mentions: tuple[Place, ...]
    mentions_complete: bool


@dataclass(frozen=True, slots=True)
class SearchText:
    """A text in which a source may be named; not portable."""

    file: str
    text: str
    first_line: int = 1


@dataclass(frozen=True, slots=True)
class DeclaredResult:
    """Whether the suspect names the source, where, and the findings that explain it."""

    disclosure: Disclosure
    where: tuple[Evidence, ...]
    findings: tuple[Finding, ...]


def search_texts(documents: Documents | None, code: CodeFiles | None) -> tuple[SearchText, ...]:
    """The texts that count as places of disclosure: card, notices, documents, headers of code."""
    texts = documents.texts if documents else ()
    found = [
        SearchText(entry.file, entry.text) for entry in texts if entry.kind in _SEARCHED and not entry.binary
    ]
    files = code.files if code else ()
    return (*found, *(SearchText(file.file, head.text, head.line) for file in files for head in file.headers))


def extract(
    locator: str,
    documents: Documents | None = None,
    code: CodeFiles | None = None,
    config: Config | None = None,
    metadata: Mapping[str, str] | None = None,
    adapter_base: Place | None = None,
) -> DeclaredFacts:
    """The facts of one model. ``metadata`` is the header of its weight file (``general.*`` of GGUF).

    ``adapter_base``: the model that the settings of an adapter name as its base, and where.
    """
    header = metadata or {}
    texts = documents.texts if documents else ()
    candidates, complete = _candidates(search_texts(documents, code))
    return DeclaredFacts(
        names=names_in_locator(locator) or _raw_name(locator),
        config_name=config.name_or_path if config and not header.get("general.name") else None,
        gguf_name=clean_text(header.get("general.name")),
        has_documents=any(entry.kind in _NAMING and not entry.binary for entry in texts),
        base_models=(
            *((adapter_base,) if adapter_base else ()),
            *_card_bases(documents),
            *_gguf_bases(header),
        )[:MAX_PLACES],
        licences=documents.card.licence if documents and documents.card else (),
        holders=tuple(_holders(documents, code))[:MAX_PLACES],
        digests=tuple(Digest(entry.file, entry.kind, entry.sha256) for entry in texts[:MAX_PLACES]),
        mentions=candidates,
        mentions_complete=complete,
    )


def _raw_name(locator: str) -> tuple[str, ...]:
    """A generic folder name; only an explicit ``base_model`` can refer to it."""
    name = strip_suffixes(locator.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1])
    return (name[:96],) if normalise(name) else ()


def _card_bases(documents: Documents | None) -> list[Place]:
    card = documents.card if documents else None
    line = (card.lines or {}).get("base_model", 0) if card else 0
    return [Place(name, card.file, line) for name in card.base_model] if card else []


def _gguf_bases(header: Mapping[str, str]) -> list[Place]:
    found = []
    for key in sorted(key for key in header if _BASE_MODEL.match(key)):
        value = "/".join(header[key].rstrip("/").split("/")[-2:]) if key.endswith("repo_url") else header[key]
        if not key.endswith("organization"):
            found.append(Place(clean_text(value) or "", f"GGUF header: {key}", 0))
    return found


def _holders(documents: Documents | None, code: CodeFiles | None) -> Iterator[Place]:
    """Copyright holders, each once, at their first place."""
    texts = [SearchText(entry.file, entry.text) for entry in (documents.texts if documents else ())]
    seen = set()
    for text in (*texts, *search_texts(None, code)):
        for number, line in enumerate(text.text.split("\n"), start=text.first_line):
            holder = normalise(copyright_holder(line))
            if holder and holder not in seen:
                seen.add(holder)
                yield Place(copyright_holder(line), text.file, number)


def _candidates(texts: Iterable[SearchText]) -> tuple[tuple[Place, ...], bool]:
    """Words that may be names of models: hub ids, and runs of words that hold digits."""
    found: dict[str, Place] = {}
    room, searched = MAX_MENTION_CHARACTERS, 0
    for text in texts:
        searched += len(text.text)
        if searched > MAX_SEARCHED:
            return tuple(found.values()), False
        for number, line in enumerate(prepare(text.text).split("\n"), start=text.first_line):
            for token in candidates(line):
                if token in found:
                    continue
                room -= len(token)
                if room < 0 or len(found) >= MAX_MENTIONS:
                    return tuple(found.values()), False
                found[token] = Place(token, text.file, number)
    return tuple(found.values()), True


def compare(
    suspect: DeclaredFacts, source: DeclaredFacts, texts: Sequence[SearchText] | None = None
) -> DeclaredResult:
    """Whether the suspect names the source. ``texts``: the suspect's, unless it is a fingerprint."""
    names = source_names(source)
    shared = {normalise(name) for name in expand(suspect.names)} & {normalise(name) for name in names}
    own = [place for place in suspect.base_models if _declares(place, source)]
    stated = [_evidence(place, "declared.base_model") for place in own]
    searched = texts if texts is not None else [SearchText(m.file, m.text, m.line) for m in suspect.mentions]
    named, itself = _search(searched, names, shared)
    where = (*stated, *(evidence for evidence, _ in named))[:MAX_PLACES]
    caveats = [msg("declared.metadata_only")]
    if where and not stated and all(in_table for _, in_table in named):
        caveats.append(msg("declared.only_tables"))
    reason = None if where else _why_unknown(suspect, names, itself, texts is None)
    if reason is not None:
        skipped = Skipped("declared.source", Component.WEIGHTS, reason)
        return DeclaredResult("unknown", (), (skipped, *_copyright(suspect, source)))
    finding = Measured(
        signal="declared.source",
        component=Component.WEIGHTS,
        statistic=float(len(where)),
        null=msg("declared.null"),
        sample_size=len({text.file for text in searched}),
        evidence=(*where, *_leads(suspect, names)),
        caveats=tuple(caveats),
    )
    said: Disclosure = "disclosed" if where else "undisclosed"
    return DeclaredResult(said, where, (finding, *_copyright(suspect, source)))


def source_names(source: DeclaredFacts) -> tuple[str, ...]:
    """The distinctive names by which a source can be named; its parent's name is not one of them."""
    parents = {normalise(place.text.rsplit("/", 1)[-1]) for place in source.base_models}
    stored = [name for name in (source.config_name, source.gguf_name) if name]
    own = [name for name in stored if normalise(strip_suffixes(name).rsplit("/", 1)[-1]) not in parents]
    return expand([*source.names, *(strip_suffixes(name) for name in own)])


def declared_base(adapter: DeclaredFacts, base: DeclaredFacts) -> Place | None:
    """Where an adapter names this very model as its base: the whole name, not one that contains it.

    Stricter than disclosure: this name carries a verdict. Only the names by which the model was found count, not
    those that tools left in its files; two hub ids must agree in their organisation.
    """
    theirs = {normalise(name) for name in base.names}
    has_hub_id = any(is_hub_id(name) for name in base.names)
    for place in adapter.base_models:
        last = strip_suffixes(place.text.rsplit("/", 1)[-1])
        whole = is_hub_id(place.text) and has_hub_id
        if normalise(place.text if whole else last) in theirs:
            return place
    return None


def _declares(place: Place, source: DeclaredFacts) -> bool:
    """An explicit declaration may also use a name that is too generic to be searched in prose."""
    if normalise(place.text) in {normalise(name) for name in source.names}:
        return True
    return any(True for name in source_names(source) for _ in mentions(prepare(place.text), name))


def _search(
    texts: Iterable[SearchText], names: Sequence[str], shared: set[str]
) -> tuple[list[tuple[Evidence, bool]], bool]:
    """Mentions of the source (and whether inside a table); whether a name that both bear is mentioned."""
    named: dict[tuple[str, int], tuple[Evidence, bool]] = {}
    itself = False
    for text in texts:
        prepared, lines = prepare(text.text), text.text.split("\n")
        for name in names:
            for line in islice(mentions(prepared, name), MAX_PLACES):
                quote = lines[min(line, len(lines)) - 1].strip()[:200]
                place = Place(quote, text.file, line + text.first_line - 1)
                if normalise(name) in shared:
                    itself = True
                elif len(named) < MAX_PLACES:
                    found = _evidence(place, "declared.mention", name)
                    named.setdefault((place.file, place.line), (found, quote.startswith("|")))
    return list(named.values()), itself


def _evidence(place: Place, key: str, name: str = "") -> Evidence:
    where = f"{place.file}:{place.line}" if place.line else place.file
    return Evidence(where, msg(key, quote=place.text, name=name))


def _why_unknown(
    suspect: DeclaredFacts, names: Sequence[str], itself: bool, portable: bool
) -> Message | None:
    if not suspect.has_documents:
        return msg("declared.no_documents")
    if itself:
        return msg("declared.same_name")
    if not names and suspect.base_models:
        declared = ", ".join(place.text for place in suspect.base_models[:3])
        return msg("declared.nameless_source", declared=declared)
    listed = any(any(char.isdigit() for char in name) or is_hub_id(name) for name in names)
    if portable and names and not (suspect.mentions_complete and listed):
        return msg("declared.texts_missing")
    return None


def _leads(suspect: DeclaredFacts, names: Sequence[str]) -> Iterator[Evidence]:
    """What tools left behind in the suspect's metadata: worth reading, no disclosure and no proof."""
    for key, value in (("_name_or_path", suspect.config_name), ("general.name", suspect.gguf_name)):
        if value and any(True for name in names for _ in mentions(prepare(value), name)):
            yield Evidence(key, msg("declared.lead", quote=value))


def _copyright(suspect: DeclaredFacts, source: DeclaredFacts) -> Iterator[Measured]:
    """The suspect's copyright lines, those that name a holder of the source first."""
    theirs = {normalise(place.text) for place in source.holders}
    lines = sorted(suspect.holders, key=lambda place: normalise(place.text) not in theirs)
    if lines:
        yield Measured(
            signal="declared.copyright",
            component=Component.CODE,
            statistic=float(sum(normalise(place.text) in theirs for place in lines)),
            null=msg("declared.copyright_null"),
            sample_size=len(lines),
            evidence=tuple(_evidence(place, "declared.copyright_line") for place in lines),
            caveats=(msg("declared.copyright_caveat"),),
        )
