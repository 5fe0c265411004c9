from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drupe.model_names import (
    candidates,
    expand,
    is_distinctive,
    mentions,
    names_in_locator,
    normalise,
    prepare,
)

BUSY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])  # shared cores


def found(text: str, name: str) -> list[int]:
    return list(mentions(prepare(text), name))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("we start from SmolLM2 135M-Instruct", "SmolLM2-135M"),
        ("https://hub/HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("基于SmolLM2-135M微调", "SmolLM2-135M"),
        ("smollm2_135m.", "SmolLM2-135M"),
        ("SmolLM2\u2011135M", "SmolLM2-135M"),
        ("ＳｍｏｌＬＭ２-135M", "SmolLM2-135M"),
        ("Smol\u200bLM2-135M", "SmolLM2-135M"),
        ("the Llama architecture", "llama"),
        ("Qwen 2.5 7B", "Qwen2.5-7B"),
        ("悟道 2.0", "悟道2.0"),
    ],
)
def test_mentioned(text: str, name: str) -> None:
    assert found(f"first\n{text}\nlast", name) == [2]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a llamafile", "llama"),
        ("openllama", "llama"),
        ("Llama-2-70b", "Llama-2-7b"),
        ("Qwen2.5", "Qwen2"),
        ("other/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("SmolLM2-1350M", "SmolLM2-135M"),
    ],
)
def test_not_mentioned(text: str, name: str) -> None:
    assert found(text, name) == []


@pytest.mark.parametrize(
    "name",
    [
        "model",
        "source",
        "checkpoint-100",
        "final",
        "abc",
        "12345",
        "v1.2",
        "3f2a9c1d0e",
        "my model v2",
        "r0",
        "",
        "—",
        "model.onnx",
    ],
)
def test_generic_names(name: str) -> None:
    assert not is_distinctive(name.removesuffix(".onnx"))
    assert names_in_locator(f"/tmp/{name}") == ()


@pytest.mark.parametrize(
    ("locator", "names"),
    [
        ("hf:org/Name-7b@abc", ("org/Name-7b", "Name-7b")),
        ("hf:org/model", ("org/model",)),
        ("/cache/models--org--Name-7b/snapshots/0123456789abcdef", ("org/Name-7b", "Name-7b")),
        ("https://hub.example/org/Name-7b/resolve/main/model.safetensors", ("org/Name-7b", "Name-7b")),
        ("/x/Name-7b/model-00001-of-00002.safetensors", ("Name-7b",)),
        ("Name-7b.Q4_K_M.gguf", ("Name-7b",)),
        ("C:\\models\\Name-7b\\", ("Name-7b",)),
    ],
)
def test_locators(locator: str, names: tuple[str, ...]) -> None:
    assert names_in_locator(locator) == names


def test_a_long_line_of_separators_is_fast() -> None:
    assert found("s" + "-" * 100_000 + "m" + " ." * 100_000, "SmolLM2-135M") == []
    assert len(list(candidates("a1-" * 50_000))) <= 1
    assert len(list(candidates("a" * 200_000 + "1" * 10))) <= 1
    assert len(list(candidates("a/" * 100_000))) <= 100_000


@BUSY
@given(st.text(max_size=60), st.text(max_size=30))
def test_any_text(text: str, name: str) -> None:
    for distinct in expand([name]):
        lines = found(text, distinct)
        assert lines == sorted(set(lines))
    list(candidates(prepare(text)))


@BUSY
@given(
    st.text(max_size=60), st.lists(st.from_regex(r"[A-Za-z0-9]{1,6}", fullmatch=True), min_size=1, max_size=5)
)
def test_a_name_is_found_in_itself(text: str, words: list[str]) -> None:
    for name in expand(["-".join(words)]):
        assert found(f"{text}\n{' '.join(words).upper()}\n", name)


@BUSY
@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing(name: str) -> None:
    assert normalise(normalise(name)) == normalise(name)
