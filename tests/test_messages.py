"""Every sentence exists in both languages with the same parameters, is used, and gets what it names."""

from __future__ import annotations

import ast
import re
import string
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import drupe
from drupe.messages import LANGUAGES, Message, catalogue, msg

PACKAGE = Path(drupe.__file__).parent
LOCALES = PACKAGE / "data" / "locales"
OF_TESTS = frozenset({"example.greeting"})  # the doctest of messages.py
FILES = sorted(path.name.removesuffix(".en.toml") for path in LOCALES.glob("*.en.toml"))
# What a report must never say; "套壳" appears only where the user's question is quoted.
ACCUSING = re.compile(
    r"\b(theft|thief|steal|stole|stolen|fraud|plagiar\w*|cheat\w*|pirat\w*|guilty|liar)\b|[盗窃骗]|抄袭|剽|欺诈|造假|作假",
    re.I,
)


def flat(path: Path) -> dict[str, str]:
    def walk(table: Mapping[str, object], prefix: str) -> Iterator[tuple[str, str]]:
        for key, value in table.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}{key}.")
            else:
                assert isinstance(value, str), f"{path.name}: {prefix}{key} is no text"
                yield prefix + key, value

    return dict(walk(tomllib.loads(path.read_text("utf-8")), ""))


def placeholders(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


@cache
def calls() -> tuple[tuple[str, ast.Call], ...]:
    """Every call in the package, with the place where it stands."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                found.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", node))
    return tuple(found)


def sayings() -> Iterator[tuple[str, ast.Call]]:
    """Calls of msg(...) and of a renderer's words(...)."""
    for where, call in calls():
        if isinstance(call.func, ast.Name) and call.func.id in ("msg", "words", "Message") and call.args:
            yield where, call


def pattern_of(node: ast.JoinedStr) -> str | None:
    """A regular expression of the keys that an f-string can make, when it begins with a section's name."""
    parts = [
        re.escape(part.value) if isinstance(part, ast.Constant) else r"[a-z0-9_]+" for part in node.values
    ]
    first = node.values[0] if node.values else None
    return "".join(parts) if isinstance(first, ast.Constant) and "." in str(first.value) else None


@cache
def strings() -> tuple[frozenset[str], frozenset[str]]:
    """All literal strings of the package, and the patterns of its dynamic keys."""
    literal, patterns = set(), set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                literal.add(node.value)
            elif isinstance(node, ast.JoinedStr) and (pattern := pattern_of(node)):
                patterns.add(pattern)
    for _, call in calls():
        # words.name("report.label", value): the names of a list
        if isinstance(call.func, ast.Attribute) and call.func.attr == "name" and len(call.args) == 2:
            prefix = call.args[0]
            if isinstance(prefix, ast.Constant):
                patterns.add(re.escape(str(prefix.value)) + r"\.[a-z0-9_.]+")
    return frozenset(literal), frozenset(patterns)


@pytest.mark.parametrize("name", FILES)
def test_both_languages_have_the_same_keys_with_the_same_parameters(name: str) -> None:
    english, chinese = (flat(LOCALES / f"{name}.{language}.toml") for language in LANGUAGES)
    assert english.keys() == chinese.keys()
    wrong = [key for key in english if placeholders(english[key]) != placeholders(chinese[key])]
    assert not wrong


def test_no_locale_file_stands_alone() -> None:
    names = Counter(path.name.rsplit(".", 2)[0] for path in LOCALES.iterdir())
    assert not [name for name, count in names.items() if count != len(LANGUAGES)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_key_is_defined_twice(language: str) -> None:
    seen = Counter(key for name in FILES for key in flat(LOCALES / f"{name}.{language}.toml"))
    assert not [key for key, count in seen.items() if count > 1]


def test_no_sentence_is_empty() -> None:
    assert not [key for language in LANGUAGES for key, text in catalogue(language).items() if not text]


def test_every_key_is_used() -> None:
    literal, patterns = strings()
    dynamic = re.compile("|".join(f"(?:{pattern})" for pattern in sorted(patterns)))
    unused = [
        key for key in catalogue("en").keys() - OF_TESTS if key not in literal and not dynamic.fullmatch(key)
    ]
    assert not sorted(unused)


def test_every_key_that_is_said_exists() -> None:
    missing = []
    for where, call in sayings():
        key = call.args[0]
        if isinstance(key, ast.Constant) and key.value not in catalogue("en"):
            missing.append(f"{where}: {key.value}")
        pattern = pattern_of(key) if isinstance(key, ast.JoinedStr) else None
        if pattern and not any(re.fullmatch(pattern, known) for known in catalogue("en")):
            missing.append(f"{where}: {pattern}")
    assert not missing


def test_every_sentence_gets_the_parameters_that_it_names() -> None:
    wrong = []
    for where, call in sayings():
        key = call.args[0]
        given = {keyword.arg for keyword in call.keywords}
        is_plain = isinstance(call.func, ast.Name) and call.func.id != "Message"
        if (
            not is_plain
            or not isinstance(key, ast.Constant)
            or None in given
            or key.value not in catalogue("en")
        ):
            continue
        if given != placeholders(catalogue("en")[key.value]):
            wrong.append(f"{where}: {key.value} gets {sorted(map(str, given))}")
    assert not wrong


def test_wording_never_accuses() -> None:
    accusing = [
        f"{language}: {key}: {text}"
        for language in LANGUAGES
        for key, text in catalogue(language).items()
        if ACCUSING.search(text)
    ]
    assert not accusing


def test_the_search_for_accusing_words_finds_them() -> None:
    assert all(ACCUSING.search(text) for text in ("a stolen model", "Plagiarism", "盗用权重", "涉嫌抄袭"))


def test_chinese_sentences_are_chinese() -> None:
    """A sentence of several English words was translated."""
    english = [
        key
        for key, text in catalogue("zh").items()
        if not re.search(r"[一-鿿]", text)
        and len(re.findall(r"[A-Za-z]{3,}", re.sub(r"\{.*?\}", "", text))) > 1
    ]
    assert not english


def test_nested_messages_follow_the_language() -> None:
    message = msg("verdict.absent_on", side=msg("diagnosis.suspect"), why=msg("parts.code.absent"))
    assert message.text("en") == "the suspect: no .py file"
    assert message.text("zh") == "待查模型：没有 .py 文件"


def test_values_are_never_taken_for_templates() -> None:
    assert Message("example.greeting", {"name": "{0} {name}"}).text("en") == "This is {0} {name}."
