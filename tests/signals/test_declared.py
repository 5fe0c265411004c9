from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drupe import facts
from drupe.errors import DrupeError, FormatError
from drupe.messages import LANGUAGES
from drupe.readers.card import Documents, read_documents
from drupe.readers.code import CodeFiles, read_code
from drupe.readers.config import Config, read_config
from drupe.readers.strict_json import Json
from drupe.signals.declared import (
    MAX_MENTION_CHARACTERS,
    MAX_MENTIONS,
    DeclaredFacts,
    DeclaredResult,
    SearchText,
    compare,
    extract,
    search_texts,
)
from drupe.signals.interface import Measured, Skipped
from drupe.sources.locator import open_tree

BUSY = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])  # shared cores
SOURCE = "hf:HuggingFaceTB/SmolLM2-135M"


def model(
    folder: Path, files: dict[str, str], locator: str = "", header: dict[str, str] | None = None
) -> tuple[DeclaredFacts, tuple[SearchText, ...]]:
    folder.mkdir(exist_ok=True)
    for name, content in {"weights.bin": "", **files}.items():
        (folder / name).write_text(content)
    tree = open_tree(str(folder), offline=True)
    documents, code, config = read_documents(tree), read_code(tree), read_config(tree)
    known = documents if isinstance(documents, Documents) else None
    source = code if isinstance(code, CodeFiles) else None
    described = config if isinstance(config, Config) else None
    return extract(locator or str(folder), known, source, described, header), search_texts(known, source)


def judge(
    tmp_path: Path,
    files: dict[str, str],
    source: str = SOURCE,
    header: dict[str, str] | None = None,
    own: str = "",
) -> DeclaredResult:
    suspect, texts = model(tmp_path / "mine", files, own, header)
    return compare(suspect, extract(source), texts)


def front(**fields: str) -> str:
    return "---\n" + "".join(f"{key}: {value}\n" for key, value in fields.items()) + "---\n# Mine\n"


@pytest.mark.parametrize(
    ("files", "where"),
    [
        ({"README.md": front(base_model="HuggingFaceTB/SmolLM2-135M")}, "README.md:2"),
        ({"README.md": front(base_model="[x/y, smollm2_135m]")}, "README.md:2"),
        ({"README.md": "# Mine\n\nWe start from SmolLM2 135M-Instruct."}, "README.md:3"),
        ({"README.md": "# Mine", "NOTICE": "This contains\nsmollm2-135m"}, "NOTICE:2"),
        ({"README.md": "# Mine", "paper.txt": "based on SmolLM2-135M"}, "paper.txt:1"),
        ({"README.md": "# Mine", "m.py": "# x\n# Adapted from SmolLM2-135M\n"}, "m.py:2"),
    ],
)
def test_disclosed(tmp_path: Path, files: dict[str, str], where: str) -> None:
    result = judge(tmp_path, files)
    assert result.disclosure == "disclosed"
    assert where in [evidence.where for evidence in result.where]


def test_disclosed_in_a_gguf_header(tmp_path: Path) -> None:
    header = {"general.base_model.0.repo_url": "https://hub.example/HuggingFaceTB/SmolLM2-135M"}
    result = judge(tmp_path, {}, header=header)
    assert result.disclosure == "disclosed"
    assert result.where[0].where == "GGUF header: general.base_model.0.repo_url"


@pytest.mark.parametrize(
    "files",
    [
        {"README.md": "# Mine\n\nTrained by us."},
        {"README.md": front(base_model="someone/else-7b")},
        {"README.md": "# Mine", "LICENSE": "Licence of SmolLM2-135M"},
        {"README.md": "# Mine", "m.py": "x = 'SmolLM2-135M'  # plain code\n"},
        {"README.md": "# Mine", "config.json": '{"_name_or_path": "HuggingFaceTB/SmolLM2-135M"}'},
        {"README.md": "We compare with SmolLM2-1350M and llamafile"},
    ],
)
def test_undisclosed(tmp_path: Path, files: dict[str, str]) -> None:
    result = judge(tmp_path, files)
    assert (result.disclosure, result.where) == ("undisclosed", ())


def test_left_over_metadata_is_a_lead(tmp_path: Path) -> None:
    files = {"README.md": "# Mine", "config.json": '{"_name_or_path": "HuggingFaceTB/SmolLM2-135M"}'}
    finding = judge(tmp_path, files).findings[0]
    assert isinstance(finding, Measured)
    assert [evidence.where for evidence in finding.evidence] == ["_name_or_path"]
    finding = judge(tmp_path, {"README.md": "# Mine"}, header={"general.name": "SmolLM2 135M"}).findings[0]
    assert isinstance(finding, Measured)
    assert [evidence.where for evidence in finding.evidence] == ["general.name"]


@pytest.mark.parametrize("files", [{}, {"LICENSE": "MIT"}, {"m.py": "x = 1"}, {"README.md": "\0" * 99}])
def test_unknown_without_documents(tmp_path: Path, files: dict[str, str]) -> None:
    result = judge(tmp_path, files)
    assert result.disclosure == "unknown"
    assert isinstance(result.findings[0], Skipped)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# SmolLM2-135M\nSmolLM2-135M is small.", "unknown"),
        ("# A model", "undisclosed"),
        ("# SmolLM2-135M\ncopied from HuggingFaceTB/SmolLM2-135M", "disclosed"),
        (front(base_model="HuggingFaceTB/SmolLM2-135M"), "disclosed"),
    ],
)
def test_a_model_that_bears_the_name_of_the_source(tmp_path: Path, text: str, expected: str) -> None:
    assert judge(tmp_path, {"README.md": text}, own="hf:me/SmolLM2-135M").disclosure == expected


def test_a_longer_name_that_contains_the_source_names_it(tmp_path: Path) -> None:
    files = {"README.md": "# SmolLM2-135M-chat"}
    assert judge(tmp_path, files, own="hf:me/SmolLM2-135M-chat").disclosure == "disclosed"


@pytest.mark.parametrize("name", ["source", "model", "checkpoint-100", "final", "3f2a9c1d0e", "v2"])
def test_generic_names_of_the_source_are_not_found(tmp_path: Path, name: str) -> None:
    text = f"# Mine\nThe {name} of this model is the final source, v2."
    assert judge(tmp_path, {"README.md": text}, source=f"/x/{name}").disclosure == "undisclosed"


def test_a_generic_name_counts_only_when_declared(tmp_path: Path) -> None:
    assert judge(tmp_path, {"README.md": front(base_model="r0")}, source="/x/r0").disclosure == "disclosed"
    assert judge(tmp_path, {"README.md": front(base_model="org/r1")}, source="/x/r0").disclosure == "unknown"


def test_other_names_of_the_source(tmp_path: Path) -> None:
    suspect, texts = model(tmp_path / "mine", {"README.md": "Made from Name-7b"})
    by_config, _ = model(tmp_path / "r0", {"config.json": '{"_name_or_path": "org/Name-7b"}'})
    by_header, _ = model(tmp_path / "r1", {}, header={"general.name": "Name 7B"})
    assert compare(suspect, by_config, texts).disclosure == "disclosed"
    assert compare(suspect, by_header, texts).disclosure == "disclosed"


def test_the_name_of_the_sources_parent_is_not_the_source(tmp_path: Path) -> None:
    suspect, texts = model(tmp_path / "mine", {"README.md": "Made from Parent-7b"})
    files = {
        "README.md": front(base_model="org/Parent-7b"),
        "config.json": '{"_name_or_path": "org/Parent-7b"}',
    }
    source, _ = model(tmp_path / "Child-7b", files)
    assert compare(suspect, source, texts).disclosure == "undisclosed"


def test_tables_only_is_a_caveat(tmp_path: Path) -> None:
    result = judge(tmp_path, {"README.md": "# Mine\n| SmolLM2-135M | 42 |"})
    finding = result.findings[0]
    assert isinstance(finding, Measured)
    assert "declared.only_tables" in [caveat.key for caveat in finding.caveats]


def test_from_fingerprints(tmp_path: Path) -> None:
    named, _ = model(tmp_path / "a", {"README.md": "We start from SmolLM2 135M-Instruct."})
    silent, _ = model(tmp_path / "b", {"README.md": "Ours."})
    assert compare(named, extract(SOURCE)).disclosure == "disclosed"
    assert compare(silent, extract(SOURCE)).disclosure == "undisclosed"
    assert compare(silent, extract("/x/llama")).disclosure == "unknown"


def test_copyright_holders(tmp_path: Path) -> None:
    suspect, texts = model(
        tmp_path / "a", {"m.py": "# Copyright 2024 Own Lab\n# Copyright (c) 2023 Qwen Team.\n"}
    )
    source, _ = model(tmp_path / "b", {"q.py": "# Copyright 2023, Qwen Team. All rights reserved.\n"})
    finding = compare(suspect, source, texts).findings[-1]
    assert isinstance(finding, Measured)
    assert (finding.statistic, finding.sample_size) == (1.0, 2)
    assert finding.evidence[0].where == "m.py:2"


def test_facts_are_bounded_and_survive_json(tmp_path: Path) -> None:
    text = "\n".join(f"model-{number}b org{number}/name-{number}" for number in range(5000))
    found, _ = model(tmp_path / "a", {"README.md": text, "m.py": "# Copyright 2020 X Lab\n"})
    assert len(found.mentions) <= MAX_MENTIONS
    assert sum(len(place.text) for place in found.mentions) <= MAX_MENTION_CHARACTERS
    assert not found.mentions_complete
    assert compare(found, extract(SOURCE)).disclosure == "unknown"
    stored = json.loads(json.dumps(facts.to_json(found)))
    assert facts.from_json(DeclaredFacts, stored, "declared") == found


def test_every_sentence_exists_in_both_languages(tmp_path: Path) -> None:
    for files in ({}, {"README.md": "| SmolLM2-135M |"}, {"README.md": "x", "m.py": "# Copyright 2020 X"}):
        result = judge(tmp_path, files)
        for finding in result.findings:
            messages = (
                [finding.reason] if not isinstance(finding, Measured) else [finding.null, *finding.caveats]
            )
            messages += [e.what for e in result.where] if isinstance(finding, Measured) else []
            assert all(message.text(language) for message in messages for language in LANGUAGES)


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@BUSY
@given(st.sampled_from(sorted(DeclaredFacts.__slots__)), JSONS)
def test_lying_facts_are_refused(name: str, value: Json) -> None:
    stored = {**facts.to_json(extract(SOURCE)), name: value}
    try:
        read = facts.from_json(DeclaredFacts, stored, "declared")
    except DrupeError:
        return
    assert facts.to_json(read)[name] == value


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(FormatError, match="surprise"):
        facts.from_json(DeclaredFacts, {**facts.to_json(extract(SOURCE)), "surprise": 1}, "declared")
