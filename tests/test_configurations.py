"""The table of known configurations: every row says where it is from, and it is read only when asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from importlib import resources

import pytest

from drupe.configurations import (
    SHAPING,
    SIZES,
    Configuration,
    Package,
    Table,
    lines_of,
    parse,
    same_sizes,
    table,
)
from drupe.graph import FIELDS, UNKNOWN, Graph, agree, differences, overlaid

TEXT = (resources.files("drupe") / "data" / "configurations.tsv").read_text(encoding="utf-8")
ALWAYS_ANSWERED = (
    "form",
    "mixer",
    "attention_bias",
    "qk_norm",
    "ffn",
    "ffn_bias",
    "experts",
    "shared_experts",
)
PACKAGE = Package("made", "1", "made-1.whl", "0" * 64, "MIT")


def row(**changes: object) -> Configuration:
    whole = Configuration(
        "a/b", "llama", PACKAGE, "file.py:3", {"hidden": 8.0, "layers": 2.0}, Graph(), {}, 0
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_there_are_enough_rows_of_many_graphs_and_they_stay_small() -> None:
    rows = table().rows
    assert len(rows) >= 250
    assert len({row.graph for row in rows}) >= 100
    assert len(TEXT.encode()) < 150_000


def test_every_row_says_where_its_facts_stand() -> None:
    for entry in table().rows:
        assert re.fullmatch(r"[0-9a-f]{64}", entry.package.sha256)
        assert entry.package.file.startswith(f"{entry.package.name}-{entry.package.version}-")
        assert entry.package.licence == "Apache-2.0"
        assert re.match(rf"{entry.package.name}/[\w/]+\.py(:\d+)? \S", entry.place), entry.place
        assert entry.provenance.startswith(f"{entry.package.name}=={entry.package.version}: ")


def test_every_row_has_sizes_and_a_graph_that_was_read() -> None:
    for entry in table().rows:
        assert {"hidden", "layers"} <= entry.sizes.keys() <= set(SIZES)
        assert all(value > 0 for value in entry.sizes.values())
        assert not [name for name in ALWAYS_ANSWERED if getattr(entry.graph, name) == UNKNOWN], entry.name


def test_a_published_model_stands_once() -> None:
    keys = [
        (entry.name, entry.place.partition(" ")[0], entry.graph, tuple(entry.sizes.items()))
        for entry in table().rows
    ]
    assert len(set(keys)) == len(keys)
    makers = [
        (entry.name.partition("/")[0], entry.graph, tuple(sorted(entry.sizes.items())))
        for entry in table().rows
        if "/" in entry.name
    ]
    assert len(set(makers)) == len(makers)


def test_the_file_is_canonical() -> None:
    header = [line[2:] for line in TEXT.splitlines() if line.startswith("# ")]
    assert "\n".join(lines_of(table(), header)) + "\n" == TEXT


def test_the_table_is_read_when_somebody_asks_and_not_before() -> None:
    code = (
        "import drupe.signals.genome, drupe.comparison, drupe.configurations as c\n"
        "before = c.table.cache_info().currsize\n"
        "c.table()\n"
        "print(before, c.table.cache_info().currsize)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]


@pytest.mark.parametrize(
    "line",
    [
        "row\tonly\tthree\tcells",
        "stranger\tx",
        "graph\tg0\ttoo few words",
        "row\ta\tllama\tnowhere\tfile.py\t0=1\tg9\t\t0",
        "effect\tllama\tattention_bias\tno_such_question=yes",
    ],
)
def test_a_bad_line_is_named(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse(["# header", line])


def test_what_is_written_is_read_again() -> None:
    graph = Graph(ffn="gated", head="own")
    whole = Table(
        (
            row(
                graph=graph,
                sizes={"hidden": 1e6, "layers": 3.0, "theta": 1e12},
                switches={"mlp_bias": 1},
                also=2,
            ),
        ),
        {"llama": {"mlp_bias": {"ffn_bias": "yes"}}},
    )
    assert parse(lines_of(whole, ["made"])) == whole


def test_sizes_are_compared_where_both_state_them() -> None:
    sizes = dict.fromkeys(SHAPING, 4.0)
    assert same_sizes(sizes, {**sizes, "vocab": 9.0})
    assert same_sizes(sizes, {"hidden": 4.0, "layers": 4.0})
    assert not same_sizes(sizes, {**sizes, "layers": 5.0})
    assert not same_sizes({"hidden": 4.0}, {"hidden": 4.0}), "depth and width are the least"


def test_unknown_answers_contradict_nothing() -> None:
    graph = Graph(**dict.fromkeys(FIELDS, "x"))
    assert agree(graph, Graph())
    assert differences(graph, Graph(ffn="y", head=UNKNOWN)) == ("ffn",)
    assert overlaid(graph, Graph(ffn="y")).ffn == "y"
    assert overlaid(Graph(), graph) == graph


def test_llama_and_its_published_models_share_a_graph() -> None:
    sharing = {entry.name for entry in table().sharing(table().by_type["llama"].graph)}
    assert {"Llama", "meta-llama/Llama-2-70b-hf", "codellama/CodeLlama-34b-hf"} <= sharing
    assert not sharing & {"Qwen2", "Mistral", "GPT2", "Bert"}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        (
            "meta-llama/Llama-2-70b-hf",
            {"hidden": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "ffn": 28672},
        ),
        ("Qwen/Qwen2.5-72B", {"hidden": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "ffn": 29568}),
        ("EleutherAI/pythia-12b", {"hidden": 5120, "layers": 36, "heads": 40}),
        ("Bert", {"hidden": 768, "layers": 12, "heads": 12, "ffn": 3072, "vocab": 30522}),
        ("GPT2", {"hidden": 768, "layers": 12, "heads": 12, "ffn": 3072, "vocab": 50257}),
        ("Mixtral", {"experts": 8, "experts_per_token": 2, "ffn": 14336}),
    ],
)
def test_sizes_are_those_that_were_published(name: str, sizes: dict[str, float]) -> None:
    (entry,) = [entry for entry in table().rows if entry.name == name]
    assert sizes.items() <= dict(entry.sizes).items()
