"""The graph of a model, from tensors and from configurations alone, in words, and how usual it is."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drupe import fingerprint
from drupe.comparison import compare as compare_subjects
from drupe.configurations import table
from drupe.diagnose import diagnose
from drupe.graph import FIELDS, UNKNOWN, VISIBLE, Graph, agree, differences
from drupe.graph_config import Settings, graph_of_config
from drupe.graph_words import anchors, nearest, phrase
from drupe.messages import LANGUAGES
from drupe.model import open_model
from drupe.name_groups import Named, expand, group_names
from drupe.readers.config import Config, read_config
from drupe.readers.interface import TensorInfo
from drupe.signals import genome, names, structure
from drupe.signals.interface import Measured, Skipped
from drupe.sources.local import LocalTree
from drupe.stats import wilson
from drupe.subject import Subject
from drupe.verdict import Label, judge

FACTS = Path(__file__).parent / "architectures" / "families.json"
_RANGE = re.compile(r"\{(\d+)-(\d+)\}")
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "vocab_size": 160,
}
# Where the pico configuration in families.json turns a switch that the default of the class does not.
OTHER_SWITCHES = {
    "deberta": {"others"},
    "deberta_v2": {"others"},
    "deepseek_v2": {"experts"},
    "granitemoeshared": {"shared_experts"},
    "t5_gated": {"ffn"},
}
# No model of language, or a class whose default configuration cannot be built.
NOT_IN_THE_TABLE = {
    *("beit", "deit", "dinov2", "dinov3_vit", "esm", "hubert", "nemotron"),
    *("vit", "vit_mae", "wav2vec2", "wavlm"),
}


@cache
def families() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(FACTS.read_text(encoding="utf-8"))
    return found


def lines_of(family: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    lines = families()[family]["tensors"]
    for line in families()[lines]["tensors"] if isinstance(lines, str) else lines:
        pattern, _, size = line.partition(" ")
        spans = [range(int(low), int(high) + 1) for low, high in _RANGE.findall(pattern)]
        for numbers in itertools.product(*spans):
            filled = iter(numbers)
            name = _RANGE.sub(lambda _, left=filled: str(next(left)), pattern)  # type: ignore[misc]
            yield name, tuple(int(extent) for extent in size.split("x") if extent)


def tensors_of(family: str) -> list[TensorInfo]:
    return [TensorInfo(name, shape, "F32", "f") for name, shape in lines_of(family)]


def config_of(raw: Mapping[str, Any], folder: Path) -> Config:
    (folder / "config.json").write_text(json.dumps(raw))
    config = read_config(LocalTree(folder))
    assert isinstance(config, Config)
    return config


def renamed(tensors: list[TensorInfo], *rules: tuple[str, str]) -> list[TensorInfo]:
    found = tensors
    for old, new in rules:
        found = [replace(tensor, name=tensor.name.replace(old, new)) for tensor in found]
    return found


def read(raw: Mapping[str, Any] | None, tensors: list[TensorInfo], folder: Path) -> genome.GenomeFacts:
    config = None if raw is None else config_of(raw, folder)
    return genome.extract(structure.extract(config, tensors), tensors)


def design(facts: genome.GenomeFacts, rules: Mapping[str, str] = genome.NO_RENAMES) -> str:
    return genome.describe(facts, rules)[0].text()


@pytest.mark.parametrize("family", sorted(families()))
def test_pico_tensors_have_the_graph_that_the_real_class_builds(family: str) -> None:
    model_type = families()[family]["config"]["model_type"]
    known = table().by_type.get(model_type)
    seen = genome.extract(structure.extract(None, tensors_of(family)), tensors_of(family)).graph
    if known is None:
        assert family in NOT_IN_THE_TABLE
        return
    wrong = {name for name in differences(seen, known.graph) if name in VISIBLE}
    assert wrong == OTHER_SWITCHES.get(family, set()), {
        n: (getattr(seen, n), getattr(known.graph, n)) for n in wrong
    }


@pytest.mark.parametrize(
    "model_type", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gpt2", "mixtral", "bert"]
)
def test_a_configuration_alone_and_the_tensors_tell_one_graph(model_type: str, tmp_path: Path) -> None:
    raw = {**LLAMA, "model_type": model_type}
    by_tensors, by_config = read(raw, tensors_of(model_type), tmp_path), read(raw, [], tmp_path)
    assert by_tensors.basis == "tensors"
    assert by_config.basis == "config"
    assert not differences(by_tensors.graph, by_config.graph)


def test_llama_in_words(tmp_path: Path) -> None:
    facts = read(LLAMA, tensors_of("llama"), tmp_path)
    assert design(facts) == "Llama's graph"
    found = genome.rarity(facts)
    assert found is not None
    assert len(found.sharing) >= 30
    assert not found.sizes, "no published model has a width of 64"


@pytest.mark.parametrize(
    ("model_type", "more", "words"),
    [
        ("qwen2", {}, "Llama's graph, but: biases on q, k, v"),
        ("qwen3", {}, "Llama's graph, but: a norm on q and k of every head"),
        ("mistral", {"sliding_window": 16}, "Llama's graph, but: a sliding window"),
        ("mistral", {"sliding_window": None}, "Llama's graph"),
        ("olmo2", {}, "Llama's graph, but: a norm on q and k across the heads; norms after the sublayers"),
        ("granite", {}, "Llama's graph"),
        ("llama", {"tie_word_embeddings": True}, "Llama's graph, but: the head tied to the embedding"),
        ("llama", {"rope_scaling": {"rope_type": "yarn"}}, "Llama's graph, but: the yarn variant of RoPE"),
        ("llama", {"hidden_act": "relu"}, "Llama's graph, but: relu as activation"),
    ],
)
def test_what_differs_from_llama_is_said(
    model_type: str, more: Mapping[str, Any], words: str, tmp_path: Path
) -> None:
    raw = {**LLAMA, "model_type": model_type, **more}
    tensors = [
        tensor
        for tensor in tensors_of(model_type)
        if tensor.name != "lm_head.weight" or not raw["tie_word_embeddings"]
    ]
    assert design(read(raw, tensors, tmp_path)) == words


def test_a_head_that_is_not_there_is_not_claimed(tmp_path: Path) -> None:
    """Tied, or left out by an export: a configuration that says nothing does not settle it."""
    tensors = [tensor for tensor in tensors_of("llama") if tensor.name != "lm_head.weight"]
    silent = {key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"}
    assert read(silent, tensors, tmp_path).graph.head == UNKNOWN
    assert read({**silent, "tie_word_embeddings": True}, tensors, tmp_path).graph.head == "tied"
    assert read(silent, tensors_of("llama"), tmp_path).graph.head == "own"


def test_yi_is_llama_with_two_renamed_modules(tmp_path: Path) -> None:
    """The rename is the signal of names' to find; the graph is not moved by it."""
    source = tensors_of("llama")
    suspect = renamed(source, ("input_layernorm", "ln1"), ("post_attention_layernorm", "ln2"))
    rules = names.compare(suspect, source).renamed_modules
    facts = read({**LLAMA, "model_type": "Yi"}, suspect, tmp_path)
    assert design(facts, rules).startswith("Llama's graph, with 2 renamed modules (")
    assert "input_layernorm -> ln1" in design(facts, rules)
    assert agree(facts.graph, read(LLAMA, source, tmp_path).graph)


def test_baichuan_is_llama_with_fused_projections(tmp_path: Path) -> None:
    tensors = [tensor for tensor in tensors_of("llama") if not re.search("[qkv]_proj", tensor.name)]
    tensors += [
        TensorInfo(f"model.layers.{layer}.self_attn.W_pack.weight", (192, 64), "F32", "f")
        for layer in range(3)
    ]
    facts = read({**LLAMA, "model_type": "baichuan"}, tensors, tmp_path)
    assert facts.fused == {"W_pack": "q+k+v"}
    assert design(facts) == "Llama's graph, with q+k+v in one matrix (W_pack)"
    assert "W_pack" in genome.describe(facts)[0].text("zh")


def test_other_names_of_every_module_do_not_move_the_graph(tmp_path: Path) -> None:
    source = tensors_of("llama")
    rules = (
        ("self_attn", "mixer"),
        ("mlp", "ffn"),
        ("layers", "h"),
        ("model.", "net."),
        ("_layernorm", "_ln"),
    )
    suspect = renamed(source, *rules)
    mine, theirs = read(LLAMA, suspect, tmp_path), read(LLAMA, source, tmp_path)
    assert mine.graph == theirs.graph


def test_key_value_heads_are_a_size_and_no_graph(tmp_path: Path) -> None:
    wide = [
        replace(tensor, shape=(64, 64)) if re.search("[kv]_proj", tensor.name) else tensor
        for tensor in tensors_of("llama")
    ]
    mine = read({**LLAMA, "num_key_value_heads": 4}, wide, tmp_path)
    theirs = read(LLAMA, tensors_of("llama"), tmp_path)
    assert mine.graph == theirs.graph
    assert mine.sizes != theirs.sizes


@pytest.mark.parametrize("lie", ["qwen2", "gpt2", "deepseek_v3", "bert"])
def test_tensors_win_over_a_model_type_that_lies(lie: str, tmp_path: Path) -> None:
    facts = read({**LLAMA, "model_type": lie}, tensors_of("llama"), tmp_path)
    truth = read(LLAMA, tensors_of("llama"), tmp_path)
    assert facts.contradicted
    assert agree(facts.graph, truth.graph)
    said = " ".join(sentence.text() for sentence in genome.describe(facts))
    assert f"model type {lie} stands for" in said
    assert design(facts) == "Llama's graph"


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2", "opt", "gemma2", "olmo2", "stablelm"])
def test_opaque_shuffled_names_leave_what_shapes_tell(family: str, tmp_path: Path) -> None:
    tensors = tensors_of(family)
    random.Random(7).shuffle(tensors)
    opaque = [replace(tensor, name=f"t{place:04}x") for place, tensor in enumerate(tensors)]
    facts = read({"num_hidden_layers": 3, "hidden_size": 64}, opaque, tmp_path)
    truth = read({"model_type": families()[family]["config"]["model_type"]}, tensors_of(family), tmp_path)
    assert facts.basis == "shapes"
    assert not [name for name in differences(facts.graph, truth.graph) if name in VISIBLE]
    assert {"mixer", "ffn", "ffn_bias", "experts"} <= facts.graph.known().keys()


def test_a_fingerprint_is_enough(tmp_path: Path) -> None:
    tensors = tensors_of("mixtral")
    facts = structure.extract(config_of({**LLAMA, "model_type": "mixtral"}, tmp_path), tensors)
    kept = expand(group_names([Named(tensor.name, tensor.shape, tensor.dtype) for tensor in tensors]))
    assert genome.extract(facts, kept) == genome.extract(facts, tensors)


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_tensors_does_not_matter(shuffler: random.Random) -> None:
    tensors = tensors_of("qwen2_moe")
    before = genome.extract(structure.extract(None, tensors), tensors)
    shuffler.shuffle(tensors)
    assert genome.extract(structure.extract(None, tensors), tensors).graph == before.graph


def test_the_count_has_its_interval(tmp_path: Path) -> None:
    found = genome.rarity(read(LLAMA, tensors_of("llama"), tmp_path))
    assert found is not None
    assert found.total == len(table().rows)
    assert (found.interval.low, found.interval.high) == wilson(len(found.sharing), found.total)
    assert found.interval.low < found.interval.estimate < found.interval.high


def test_the_sizes_of_a_published_model_are_found(tmp_path: Path) -> None:
    raw = {**LLAMA, "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "head_dim": 128}
    raw |= {"num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 32000}
    found = genome.rarity(read(raw, [], tmp_path))
    assert found is not None
    assert "meta-llama/Llama-2-70b-hf" in {row.name for row in found.sizes}


def test_a_pair_of_a_common_graph_proves_nothing(tmp_path: Path) -> None:
    mine, theirs = (read(LLAMA, tensors_of("llama"), tmp_path) for _ in range(2))
    result = genome.compare(mine, theirs)
    (finding,) = result.findings
    assert isinstance(finding, Measured)
    assert result.same_graph
    assert finding.log10_p is None
    assert "normal practice" in finding.evidence[0].what.text()
    assert any("convenience sample" in caveat.text() for caveat in finding.caveats)


def test_a_pair_of_a_rare_graph_is_a_lead_and_no_proof(tmp_path: Path) -> None:
    facts = read(LLAMA, tensors_of("llama"), tmp_path)
    odd = replace(facts, graph=replace(facts.graph, qk_norm="full", head="tied", activation="relu2"))
    result = genome.compare(odd, odd)
    (finding,) = result.findings
    assert isinstance(finding, Measured)
    assert finding.statistic == 0
    assert "no proof" in finding.evidence[0].what.text()
    said = [sentence.text() for sentence in genome.describe(odd)]
    assert any(sentence.startswith("none of ") for sentence in said)
    assert any(re.match("closest to [A-Z].*, but: .", sentence) for sentence in said)


def test_different_graphs_are_told_apart(tmp_path: Path) -> None:
    mine = read({**LLAMA, "model_type": "gpt2"}, tensors_of("gpt2"), tmp_path)
    result = genome.compare(mine, read(LLAMA, tensors_of("llama"), tmp_path))
    (finding,) = result.findings
    assert isinstance(finding, Measured)
    assert result.same_graph is False
    assert "an FFN without a gate" in finding.evidence[0].what.text()


def test_what_cannot_be_read_is_skipped() -> None:
    nothing = genome.extract(structure.extract(None, []))
    assert nothing.basis == "nothing"
    assert genome.rarity(nothing) is None
    result = genome.compare(nothing, nothing)
    assert result.same_graph is None
    assert isinstance(result.findings[0], Skipped)
    assert "could not be read" in genome.describe(nothing)[0].text()


def test_an_unknown_class_is_told_by_its_dialect_and_says_so(tmp_path: Path) -> None:
    facts = read({**LLAMA, "model_type": "nobody-knows"}, [], tmp_path)
    assert facts.basis == "dialect"
    assert any("guessed" in sentence.text() for sentence in genome.describe(facts))


@pytest.mark.parametrize(
    ("model_type", "changes", "answers"),
    [
        ("llama", {"attention_bias": True}, {"attention_bias": "qkvo"}),
        ("llama", {"mlp_bias": True}, {"ffn_bias": "yes"}),
        ("glm4_moe", {"attention_bias": True}, {"attention_bias": "qkv"}),
        ("deepseek_v3", {"attention_bias": True}, {"attention_bias": "qko"}),
        ("deepseek_v3", {"first_k_dense_replace": 0}, {"experts": "all"}),
        ("qwen3_moe", {"decoder_sparse_step": 2}, {"experts": "some"}),
        ("gpt_neox", {"use_parallel_residual": False}, {"residual": "sequential"}),
        ("t5", {"feed_forward_proj": "gated-gelu"}, {"ffn": "gated"}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4096}, {"window": "all"}),
    ],
)
def test_switches_of_a_configuration_change_the_graph_of_its_class(
    model_type: str, changes: Mapping[str, Any], answers: Mapping[str, str], tmp_path: Path
) -> None:
    before = read({"model_type": model_type}, [], tmp_path).graph
    after = read({"model_type": model_type, **changes}, [], tmp_path).graph
    assert answers.items() <= after.known().items()
    assert not answers.items() <= before.known().items()


def test_a_configuration_that_says_nothing_tells_nothing() -> None:
    assert graph_of_config(Settings({}, {}, {}), None) == Graph()


def test_every_answer_can_be_said_in_both_languages() -> None:
    for graph in {row.graph for row in table().rows}:
        for name in FIELDS:
            value = getattr(graph, name)
            if value != UNKNOWN:
                words = [value] if name != "others" else []
                for language in LANGUAGES:
                    assert all(phrase(name, word).text(language) for word in words)
        said = nearest(graph)
        assert said.title in {title for title, *_ in anchors()}


def test_an_anchor_is_nearest_to_itself() -> None:
    seen: set[Graph] = set()
    for title, graph, _ in anchors():
        if graph not in seen:
            assert nearest(graph).title == title
            assert not nearest(graph).differences
        seen.add(graph)


def test_a_stranger_s_words_are_quoted_and_break_nothing(tmp_path: Path) -> None:
    raw = {
        **LLAMA,
        "hidden_act": "{x}+\x1b[31m",
        "rope_scaling": {"rope_type": "+?none"},
        "sliding_window": 1e300,
    }
    facts = read(raw, tensors_of("llama"), tmp_path)
    for language in LANGUAGES:
        said = " ".join(sentence.text(language) for sentence in genome.describe(facts))
        assert "\x1b" not in said


def subject(folder: Path, raw: Mapping[str, Any]) -> Subject:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    model = open_model(LocalTree(folder))
    return Subject(fingerprint.extract(model), model)


def test_the_genome_alone_moves_no_verdict(tmp_path: Path) -> None:
    """The same rare graph and the same sizes, no weights: never more than the same design."""
    raw = {**LLAMA, "hidden_act": "relu2", "sliding_window": 16, "tie_word_embeddings": True}
    found = compare_subjects(subject(tmp_path / "a", raw), subject(tmp_path / "b", raw))
    assert found.genome is not None
    assert found.genome.same_graph
    with_genome = judge(diagnose(found))
    assert with_genome.label in (Label.SAME_DESIGN, Label.INCONCLUSIVE)
    without = judge(diagnose(replace(found, genome=None)))
    assert with_genome.label == without.label
    assert with_genome.components == without.components
