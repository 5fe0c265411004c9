"""The documentation cannot rot: examples run, generated pages are current, names and links hold."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from drupe import cli, document, errors, workflows
from drupe.diagnose import Kind
from drupe.signals.interface import Component
from drupe.verdict import Disclosure, Label, Relation

ROOT = Path(__file__).parents[1]
ENGLISH = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
CHINESE = ("README.zh.md", *sorted(f"docs/zh/{path.name}" for path in (ROOT / "docs/zh").glob("*.md")))
OTHERS = (
    *("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "tests/models/README.md"),
    *(
        str(path.relative_to(ROOT))
        for folder in ("docs/design", "benchmarks")
        for path in sorted((ROOT / folder).glob("*.md"))
    ),
)
EVERYWHERE = (*ENGLISH, *CHINESE, *OTHERS)
PAIRS = (
    ("README.md", "README.zh.md"),
    *(
        (f"docs/{name}", f"docs/zh/{name}")
        for name in ("README.md", "tutorial.md", "how-to.md", "command-line.md")
    ),
    *((f"docs/{name}", f"docs/zh/{name}") for name in ("limitations.md", "glossary.md")),
)
MODELS = ROOT / "tests" / "models"


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def current_pages() -> Mapping[str, str]:
    """Every page as docs/generate.py would write it now; runs all examples."""
    made: Mapping[str, str] = generator().pages()
    return made


@pytest.mark.parametrize("name", [*ENGLISH, *CHINESE])
def test_generated_parts_and_shown_outputs_are_current(name: str) -> None:
    assert current_pages()[name] == text_of(name), "run: .venv/bin/python docs/generate.py"


def blocks() -> Iterator[tuple[str, str, str]]:
    """(page, comment before the block, body) of every console block."""
    for name in EVERYWHERE:
        for match in generator().BLOCK.finditer(text_of(name)):
            yield name, match["mark"].strip(), match["body"]


def test_every_example_with_drupe_runs_or_says_why_not() -> None:
    silent = [
        f"{name}: {body.splitlines()[0]}"
        for name, mark, body in blocks()
        if "drupe " in "\n".join(generator().commands(body))
        and not generator().OUTPUT.fullmatch(mark + "\n")
        and not re.fullmatch(r"<!-- not run: .{8,} -->", mark)
    ]
    assert not silent


def test_no_shown_output_is_a_failure() -> None:
    """A traceback or a missing program in an example is an error of the example."""
    bad = ("Traceback", "command not found", "No such file", "usage: drupe")
    wrong = [
        name
        for name, mark, body in blocks()
        if mark.startswith("<!-- output") and any(b in body for b in bad)
    ]
    assert not wrong


def test_the_readme_begins_with_exactly_two_commands_to_set_up() -> None:
    for name in ("README.md", "README.zh.md"):
        first = next(body for page, _, body in blocks() if page == name)
        assert first == "make demo\nmake test\n"
        assert len(text_of(name).splitlines()) <= 150


def test_every_make_target_in_the_documentation_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.M))
    used = {
        target
        for name in EVERYWHERE
        for target in re.findall(r"\bmake ([a-z-]+)\b(?=[`\s#;]|$)", _code(name))
    }
    assert used
    assert used <= targets


def _code(name: str) -> str:
    """Inline code and console blocks of a page."""
    text = text_of(name)
    return (
        "\n".join([*re.findall(r"`([^`\n]+)`", text), *(body for page, _, body in blocks() if page == name)])
        + "\n"
    )


def test_every_verb_and_option_is_documented_in_both_languages() -> None:
    for pages in (ENGLISH, CHINESE):
        everything = "\n".join(map(text_of, pages))
        for verb, parser in generator().verbs():
            assert f"drupe {verb}" in everything
            for action in parser._actions:
                for option in action.option_strings:
                    assert option == "-h" or option in everything, f"{verb} {option}"


def test_no_option_is_documented_that_does_not_exist() -> None:
    known = {"--version", "--help", "--check", "--strict"}
    for _, parser in generator().verbs():
        known |= {option for action in parser._actions for option in action.option_strings}
    for name in (*ENGLISH, *CHINESE):
        lines = [line for line in _code(name).splitlines() if "drupe" in line or line.startswith("--")]
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines))) <= known, name


def test_exit_codes_are_documented_as_they_are() -> None:
    codes = {
        "copy": cli.RELATED,
        "derivative": cli.RELATED,
        "same_design": cli.OK,
        "unrelated": cli.OK,
        "inconclusive": cli.UNDECIDED,
    }
    for name in ("README.md", "README.zh.md"):
        rows = re.findall(r"^\| `(\w+)` \|.*\| (\d) \|$", text_of(name), re.M)
        assert {label: int(code) for label, code in rows} == codes
        assert re.search(rf"(Exit code|退出码) {cli.FAILED} ", text_of(name))


@pytest.mark.parametrize("pages", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_every_error_is_documented(pages: tuple[str, ...]) -> None:
    everything = "\n".join(map(text_of, pages))
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.DrupeError):
            assert f"`{name}`" in everything


def signal_names() -> set[str]:
    """Every name that the code gives to a finding: the first argument, ``signal=``, or a constant SIGNAL."""
    names = set()
    for path in (ROOT / "src" / "drupe").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            values: list[ast.expr] = []
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "Measured",
                "Skipped",
                "Failed",
            ):
                values = [*node.args[:1], *(word.value for word in node.keywords if word.arg == "signal")]
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "SIGNAL":
                values = [node.value]
            names |= {str(value.value) for value in values if isinstance(value, ast.Constant)}
    return names


def test_every_signal_has_a_section() -> None:
    documented = {signal.name for signal in generator().SIGNALS}
    assert signal_names() >= {"weights.sketch", "weights.profile", "tokenizer.order"}
    assert signal_names() <= documented
    for pair in (("r0_ft", "r0"), ("g0", "b0")):
        report: Any = workflows.compare(*(str(MODELS / name) for name in pair))
        assert {finding["signal"] for finding in report["findings"]} <= documented


def test_every_key_of_the_json_is_documented(tmp_path: Path) -> None:
    page = text_of("docs/report-format.md")
    properties = set()
    for kind in document.KINDS:
        schema: Any = document.json_schema(kind)
        for part in (schema, *schema["$defs"].values()):
            properties |= set(part.get("properties", {}))
    workflows.sketch([str(MODELS / "r0")], tmp_path / "r0.drupe", keep_evidence=tmp_path / "kept")
    manifest: Any = json.loads((tmp_path / "kept" / "manifest.json").read_text(encoding="utf-8"))
    file_keys = set(next(iter(manifest["files"].values())))
    for key in properties | set(manifest) | file_keys:
        assert re.search(rf"[`.\]]{re.escape(key)}[`.\[]", page), key


@pytest.mark.parametrize("words", [Label, Relation, Disclosure, Component, Kind])
def test_every_word_of_the_closed_lists_is_documented(words: type[Label]) -> None:
    everything = "\n".join(map(text_of, ENGLISH))
    assert not [word.value for word in words if not re.search(rf"\b{word.value}\b", everything)]


def headings(name: str) -> list[str]:
    """Heading lines outside of code blocks."""
    prose = re.sub(r"^```.*?^```", "", text_of(name), flags=re.M | re.S)
    return re.findall(r"^#{1,6} .+$", prose, re.M)


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_have_the_same_headings_tables_and_examples(english: str, chinese: str) -> None:
    levels = [[heading.split(" ")[0] for heading in headings(name)] for name in (english, chinese)]
    assert levels[0] == levels[1]
    assert [text_of(name).count("\n|") for name in (english, chinese)] == [text_of(english).count("\n|")] * 2
    runs = [
        [generator().commands(body) for page, _, body in blocks() if page == name]
        for name in (english, chinese)
    ]
    assert [len(block) for block in runs[0]] == [len(block) for block in runs[1]]


def test_every_chinese_page_has_an_english_one() -> None:
    assert {name.replace("docs/zh/", "docs/").replace(".zh.", ".") for name in CHINESE} <= set(ENGLISH)


def links(name: str) -> Iterator[str]:
    prose = re.sub(r"^```.*?^```", "", text_of(name), flags=re.M | re.S)
    yield from re.findall(r"\]\(([^)\s]+)\)", prose)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_links_resolve(name: str) -> None:
    for link in links(name):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if fragment:
            page = str(target.resolve().relative_to(ROOT))
            anchors = {generator().anchor(heading.lstrip("# ")) for heading in headings(page)}
            assert fragment in anchors, link


FORBIDDEN = re.compile(r"/work\b|/root\b|/home/|/opt/|/tmp/|/Users/|\bshared/[A-Z]|[A-Z]:\\\\")


@pytest.mark.parametrize("name", EVERYWHERE)
def test_no_page_mentions_a_path_of_a_machine(name: str) -> None:
    assert not FORBIDDEN.findall(text_of(name))


@pytest.mark.parametrize("name", CHINESE)
def test_chinese_pages_are_written_with_chinese_punctuation(name: str) -> None:
    prose = re.sub(r"^```.*?^```|`[^`]*`|\([^)]*\)|<!--.*?-->", "", text_of(name), flags=re.M | re.S)
    assert not re.findall(r"[\u4e00-\u9fff][,;:?!](?=\s|$|[\u4e00-\u9fff])", prose)
