"""The words of a report in one language: its sentences, the names of its closed lists, and its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from drupe.errors import FormatError
from drupe.messages import Language, Message, Parameter, catalogue
from drupe.readers.strict_json import Json, as_object

Table = Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Words:
    """Translates for one report; a sentence without a translation stays English."""

    language: Language
    translations: Mapping[str, Json]

    def __call__(self, key: str, /, **parameters: Parameter) -> str:
        """A sentence of the catalogue."""
        return Message(key, parameters).text(self.language)

    def sentence(self, text: str) -> str:
        """A sentence of the document."""
        found = self.translations.get(text) if self.language == "zh" else None
        return found if isinstance(found, str) else text

    def name(self, prefix: str, value: str) -> str:
        """The name of a value of a list; of an open list, the value itself when it has no name."""
        return catalogue(self.language).get(f"{prefix}.{value}", value)

    def sentences(self, values: Json) -> list[str]:
        """Several sentences of the document."""
        return [self.sentence(value) for value in rows(values) if isinstance(value, str)]


def words_of(report: Table, language: Language) -> Words:
    """The words for one report."""
    return Words(language, table(table(report.get("translations", {})).get("zh", {})))


def table(value: Json) -> Table:
    """The value as an object; raises FormatError otherwise."""
    return as_object(value, "report")


def rows(value: Json) -> list[Json]:
    """The value as a list; raises FormatError otherwise."""
    if not isinstance(value, list):
        raise FormatError(f"expected an array, found {type(value).__name__}", where="report")
    return value


def tables(value: Json) -> Iterator[Table]:
    """The objects of a list."""
    return (table(item) for item in rows(value))


def number(value: Json) -> str:
    """Four significant digits; whole numbers in full, with separators.

    >>> number(0.0312345), number(57344), number(1.00003), number(0.99996), number(None)
    ('0.03123', '57,344', '1', '0.99996', '?')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "?" if value is None else str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, int):
        return f"{value:,}"
    # 1 must mean 1: a share just below it keeps the digits that tell them apart.
    return f"{value:.6g}" if 0.9995 < value < 1 else f"{value:.4g}"


def log10_p(value: Json) -> str:
    """A logarithm of a p-value, to one decimal.

    >>> log10_p(-1423.47), log10_p(-0.0), log10_p(None)
    ('-1423.5', '0.0', '?')
    """
    return f"{float(value) + 0.0:.1f}" if isinstance(value, int | float) else "?"


def percent(value: Json) -> str:
    """A share: three significant digits, and 100% only when it is everything.

    >>> percent(1.0), percent(0.9999), percent(0.25), percent(0.000312), percent(0)
    ('100%', '>99.9%', '25%', '0.0312%', '0%')
    """
    share = float(value) if isinstance(value, int | float) else 0.0
    return ">99.9%" if 0.999 < share < 1.0 else f"{100 * share:.3g}%"


def size(value: Json) -> str:
    """Bytes in decimal units.

    >>> size(512), size(4512345), size(14 * 10**9)
    ('512 B', '4.5 MB', '14.0 GB')
    """
    count = float(value) if isinstance(value, int | float) else 0.0
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
