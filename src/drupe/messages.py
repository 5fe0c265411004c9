"""User-facing sentences, by key, in English and Chinese.

A stage that must explain itself makes a :class:`Message` (key and parameters); the document keeps the
English text and a translation table, so that a saved report can be rendered in either language later.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
Parameter = str | int | float | bool | None


@cache
def catalogue(language: Language) -> Mapping[str, str]:
    """Key -> template of one language, from ``data/locales/*.LANG.toml`` (nested tables joined by dots)."""
    folder = resources.files("drupe") / "data" / "locales"
    entries: dict[str, str] = {}
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(f".{language}.toml"):
            _flatten(tomllib.loads(file.read_text(encoding="utf-8")), "", entries)
    return entries


def _flatten(table: Mapping[str, object], prefix: str, into: dict[str, str]) -> None:
    for key, value in table.items():
        if isinstance(value, Mapping):
            _flatten(value, f"{prefix}{key}.", into)
        else:
            into[prefix + key] = str(value)


@dataclass(frozen=True, slots=True)
class Message:
    """A sentence by ``key`` with named ``parameters``; nested messages are rendered in the same language.

    >>> Message("example.greeting", {"name": "Drupe"}).text("en")
    'This is Drupe.'
    """

    key: str
    parameters: Mapping[str, Parameter | Message] = field(default_factory=dict)

    def text(self, language: Language = "en") -> str:
        """The sentence in one language."""
        values = {
            name: value.text(language) if isinstance(value, Message) else value
            for name, value in self.parameters.items()
        }
        template = catalogue(language).get(self.key) or catalogue("en")[self.key]
        return template.format(**values)

    def __str__(self) -> str:
        return self.text("en")


def msg(key: str, **parameters: Parameter | Message) -> Message:
    """Shorthand for :class:`Message`."""
    return Message(key, parameters)
