from __future__ import annotations

import hashlib
import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drupe import facts
from drupe.errors import DrupeError, FormatError, LimitError
from drupe.messages import LANGUAGES
from drupe.name_groups import fill, template_of
from drupe.signals.interface import Measured, Skipped
from drupe.signals.names import Named, NameGroup, NamesFacts, compare, expand, extract, group_names

BUSY = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])  # shared cores
YI = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}
GGUF = {
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def llama(layers: int = 32, d: int = 64) -> list[Named]:
    shapes = {
        "input_layernorm": (d,),
        "mlp.down_proj": (d, 3 * d),
        "mlp.gate_proj": (3 * d, d),
        "mlp.up_proj": (3 * d, d),
        "post_attention_layernorm": (d,),
        "self_attn.k_proj": (d // 2, d),
        "self_attn.o_proj": (d, d),
        "self_attn.q_proj": (d, d),
        "self_attn.v_proj": (d // 2, d),
    }
    names = [
        ("lm_head.weight", (999, d)),
        ("model.embed_tokens.weight", (999, d)),
        ("model.norm.weight", (d,)),
    ]
    names += [
        (f"model.layers.{i}.{part}.weight", shape) for i in range(layers) for part, shape in shapes.items()
    ]
    return [Named(name, shape, "BF16") for name, shape in names]


def renamed(tensors: list[Named], table: dict[str, str]) -> list[Named]:
    def rename(name: str) -> str:
        for old, new in table.items():
            name = name.replace(old, new)
        return name

    return [tensor._replace(name=rename(tensor.name)) for tensor in tensors]


def test_equal_lists() -> None:
    result = compare(llama(), llama())
    assert (result.same, result.renamed_tensors, result.unexplained, result.order_equal) == (
        291 - 1 + 1,
        0,
        0,
        True,
    )


def test_order_matters_only_to_the_order() -> None:
    shuffled = llama()
    random.Random(1).shuffle(shuffled)
    result = compare(shuffled, llama())
    assert (result.same, result.order_equal) == (291, False)
    assert compare(shuffled, llama(), in_file_order=False).order_equal is None


def test_two_norms_renamed_as_in_case_1() -> None:
    result = compare(renamed(llama(), YI), llama())
    assert result.renamed_modules == YI
    assert (result.renamed_tensors, result.same, result.unexplained, result.order_equal) == (64, 227, 0, True)


def test_two_prefixes_as_in_case_2() -> None:
    source = [Named(f"vpm.encoder.{i}.w", (8, 8)) for i in range(9)] + [
        Named("resampler.query", (8, 9)),
        Named("llm.x", (7,)),
    ]
    source += [Named(f"resampler.attn.{part}.weight", (8, 8)) for part in "abc"]
    result = compare(renamed(source, {"vpm.": "vison.", "resampler.": "projection."}), source)
    assert result.renamed_modules == {"vpm": "vison", "resampler": "projection"}
    assert (result.renamed_tensors, result.same, result.order_equal) == (13, 1, True)


@pytest.mark.parametrize(
    "table",
    [GGUF, {"model.": "transformer."}, {"q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "o_proj": "wo"}],
    ids=["gguf", "prefix", "attention"],
)
def test_other_renames(table: dict[str, str]) -> None:
    result = compare(renamed(llama(), table), llama())
    assert result.unexplained == 0
    expected = {old.strip("."): new.strip(".") for old, new in table.items()}
    assert dict(result.renamed_modules) == expected


def test_prefix_added_and_removed() -> None:
    added = [tensor._replace(name=f"base_model.{tensor.name}") for tensor in llama()]
    assert compare(added, llama()).unexplained == 0
    assert compare(llama(), added).unexplained == 0


def test_transposed_matrices_keep_their_names() -> None:
    turned = [tensor._replace(shape=tensor.shape[::-1]) for tensor in llama()]
    assert compare(turned, llama()).same == 291


def test_other_depth() -> None:
    result = compare(renamed(llama(40), YI), llama(32))
    assert (result.renamed_tensors, result.same, result.unexplained, result.order_equal) == (
        64,
        227,
        72,
        False,
    )


@pytest.mark.parametrize("kind", ["numbered", "scattered", "hashed"])
def test_opaque_names_do_not_help(kind: str) -> None:
    def opaque(place: int, name: str) -> str:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return {"numbered": f"t{place}", "scattered": f"val_{7 * place}_q", "hashed": digest}[kind]

    suspect = [tensor._replace(name=opaque(i, tensor.name)) for i, tensor in enumerate(llama())]
    for result in (compare(suspect, llama()), compare(llama(), suspect)):
        assert (result.same, result.renamed_tensors, result.unexplained) == (0, 0, 291)
        assert isinstance(result.findings[0], Skipped)


def test_finding_says_that_names_prove_nothing() -> None:
    finding = compare(renamed(llama(), YI), llama()).findings[0]
    assert isinstance(finding, Measured)
    assert (finding.statistic, finding.log10_p) == (1.0, None)
    for language in LANGUAGES:
        assert finding.caveats[0].text(language)
        assert "ln1" in finding.evidence[0].what.text(language)


def test_a_llama_takes_less_than_3_kb() -> None:
    found = extract(llama())
    stored = json.dumps(facts.to_json(found), separators=(",", ":"))
    assert found.count == 291
    assert len(stored) < 3000
    assert facts.from_json(NamesFacts, json.loads(stored), "names") == found
    assert sorted(expand(found.groups)) == sorted(llama())


def test_expanded_names_count_naturally() -> None:
    names = [Named(f"h.{number}.w", (2,)) for number in range(12)]
    assert expand(group_names(reversed(names))) == names


def test_a_hundred_thousand_experts_stay_small() -> None:
    tensors = [
        Named(f"l.{i}.e.{j}.{w}", (4, 4), "F16")
        for i in range(60)
        for j in range(500)
        for w in ("a", "b", "c")
    ]
    found = extract(tensors)
    assert len(found.groups) == 3
    assert found.groups[0].runs == "0-59,0-499"


@pytest.mark.parametrize(
    ("runs", "error"),
    [
        ("0-999999999", LimitError),
        ("0-999,0-999,0-999", LimitError),
        ("x", FormatError),
        ("1,,2", FormatError),
        ("1" * 20, FormatError),
    ],
)
def test_exploding_runs_are_refused(runs: str, error: type[DrupeError]) -> None:
    with pytest.raises(error):
        expand([NameGroup("a.{}", runs, (1,), "F32")])


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(FormatError):
        expand([NameGroup("a.{}.{}", "0-3", (1,), "F32")])


def test_hostile_lists_are_called_opaque() -> None:
    def names(prefix: str) -> list[Named]:
        return [
            Named(f"{prefix}{'ab.' * (k % 40)}{hashlib.md5(b'%d' % k).hexdigest()}", (4, 4))
            for k in range(20_000)
        ]

    assert compare(names("x"), names("y")).unexplained == 20_000
    long = [[Named(f"{letter}." * 2000 + str(k), (1,)) for k in range(50)] for letter in "ab"]
    assert compare(*long).unexplained == 50


NAMES = st.text(alphabet="ab.1203{}\\_-/é٣", max_size=12)
SHAPES = st.lists(st.integers(0, 3), max_size=2).map(tuple)


@BUSY
@given(NAMES)
def test_templates_are_lossless(name: str) -> None:
    assert fill(*template_of(name)) == name


@BUSY
@given(st.lists(st.builds(Named, NAMES, SHAPES, st.just("F32")), max_size=12, unique_by=lambda t: t.name))
def test_groups_are_lossless(tensors: list[Named]) -> None:
    assert sorted(expand(group_names(tensors))) == sorted(tensors)
    found = extract(tensors)
    assert facts.from_json(NamesFacts, json.loads(json.dumps(facts.to_json(found))), "names") == found


@BUSY
@given(
    st.lists(st.builds(Named, NAMES, SHAPES), max_size=8, unique_by=lambda t: t.name),
    st.lists(st.builds(Named, NAMES, SHAPES), max_size=8, unique_by=lambda t: t.name),
)
def test_counts_add_up(suspect: list[Named], source: list[Named]) -> None:
    result = compare(suspect, source)
    assert min(result.same, result.renamed_tensors, result.unexplained) >= 0
    assert result.same + result.renamed_tensors + result.unexplained == len(suspect)
