from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drupe import facts
from drupe.messages import LANGUAGES
from drupe.readers.config import Config, read_config
from drupe.readers.interface import TensorInfo
from drupe.roles import assign_roles
from drupe.signals.interface import Measured, Skipped
from drupe.signals.structure import StructureFacts, compare, extract
from drupe.sources.locator import open_tree

BUSY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])  # shared cores
Tensors = list[TensorInfo]


def tensors(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    return [TensorInfo(name, shape, "F32", "model.safetensors") for name, shape in shapes.items()]


def llama(
    layers: int = 12, d: int = 64, kv: int = 32, f: int = 172, more: dict[str, tuple[int, ...]] | None = None
) -> Tensors:
    part = {
        "input_layernorm": (d,),
        "self_attn.q_proj": (d, d),
        "self_attn.k_proj": (kv, d),
        "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, d),
        "post_attention_layernorm": (d,),
        "mlp.gate_proj": (f, d),
        "mlp.up_proj": (f, d),
        "mlp.down_proj": (d, f),
    }
    names = {f"model.layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in part.items()}
    return tensors(
        {"model.embed_tokens.weight": (999, d), "model.norm.weight": (d,), **names, **(more or {})}
    )


def bert(layers: int = 6, d: int = 64, pooler: bool = True) -> Tensors:
    part = {f"attention.self.{name}": (d, d) for name in ("query", "key", "value")}
    part |= {"attention.output.dense": (d, d), "intermediate.dense": (4 * d, d), "output.dense": (d, 4 * d)}
    names: dict[str, tuple[int, ...]] = {
        f"encoder.layer.{i}.{name}.weight": shape for i in range(layers) for name, shape in part.items()
    }
    names |= {
        f"encoder.layer.{i}.{name}.bias": shape[:1] for i in range(layers) for name, shape in part.items()
    }
    outer = {"embeddings.word_embeddings.weight": (999, d), "embeddings.position_embeddings.weight": (512, d)}
    return tensors({**outer, **names, **({"pooler.dense.weight": (d, d)} if pooler else {})})


def gpt2(layers: int = 12, d: int = 64) -> Tensors:
    part = {
        "attn.c_attn": (d, 3 * d),
        "attn.c_proj": (d, d),
        "mlp.c_fc": (d, 4 * d),
        "mlp.c_proj": (4 * d, d),
    }
    names = {f"h.{i}.{name}.weight": shape for i in range(layers) for name, shape in part.items()}
    return tensors({"wte.weight": (999, d), "wpe.weight": (128, d), **names})


def opaque(infos: Tensors) -> Tensors:
    """As an exporter does: names destroyed, matrices transposed."""
    return [
        TensorInfo(f"val_{7 * i}", info.shape[::-1], info.dtype, info.file) for i, info in enumerate(infos)
    ]


def known(infos: Tensors, config: Config | None = None) -> StructureFacts:
    roles = {name: (role.name, role.layer) for name, role in assign_roles(infos).by_tensor.items()}
    return extract(config, infos, roles)


def config(folder: Path, **fields: object) -> Config:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    found = read_config(open_tree(str(folder), offline=True))
    assert isinstance(found, Config)
    return found


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "intermediate_size": 172,
    "vocab_size": 999,
}


@pytest.mark.parametrize(
    ("suspect", "source", "hint"),
    [
        (llama(), llama(), "identical"),
        (llama(), llama(8, 96, 96, 256), "equivalent"),
        (llama(), bert(), "independent"),
        (llama(), gpt2(), "independent"),
        (gpt2(6, 96), gpt2(), "equivalent"),
        (bert(pooler=False), bert(), "equivalent"),
        (llama(more={"lm_head.weight": (999, 64)}), llama(), "equivalent"),
    ],
)
def test_by_roles(suspect: Tensors, source: Tensors, hint: str) -> None:
    result = compare(known(suspect), known(source))
    assert result.relation_hint == hint
    finding = result.findings[0]
    assert isinstance(finding, Measured)
    assert finding.evidence[0].what.key == "structure.by_roles"


@pytest.mark.parametrize(
    ("suspect", "source", "hint"),
    [
        (llama(), llama(), "identical"),
        (llama(), llama(8, 96, 48, 256), "equivalent"),
        (llama(), bert(), "independent"),
        (bert(pooler=False), bert(), "equivalent"),
        (gpt2(6, 96), gpt2(), "equivalent"),
        (gpt2(), llama(), "independent"),
    ],
)
def test_by_shapes_when_names_are_opaque(suspect: Tensors, source: Tensors, hint: str) -> None:
    assert compare(known(opaque(suspect)), known(source)).relation_hint == hint
    assert compare(known(source), known(opaque(suspect))).relation_hint == hint


def test_fused_attention_is_the_same_graph() -> None:
    fused = [
        TensorInfo(
            info.name.replace("q_proj", "W_pack"),
            (192, 64) if "q_proj" in info.name else info.shape,
            "F32",
            "f",
        )
        for info in llama(kv=64)
        if "k_proj" not in info.name and "v_proj" not in info.name
    ]
    assert compare(extract(None, fused), extract(None, llama(kv=64))).relation_hint == "equivalent"


def test_fused_roles_are_their_parts() -> None:
    roles = {"h.0.a": ("q+k+v", 0), "h.0.b": ("o", 0)}
    parts = {"q": ("q", 0), "k": ("k", 0), "v": ("v", 0), "o": ("o", 0)}
    fused = extract(None, tensors({"h.0.a": (48, 16), "h.0.b": (16, 16)}), roles)
    apart = extract(None, tensors(dict.fromkeys(parts, (16, 16))), parts)
    assert set(fused.layer_kinds) == set(apart.layer_kinds) == {"k o q v"}


def test_added_biases_are_another_graph() -> None:
    biases: dict[str, tuple[int, ...]] = {f"model.layers.{i}.self_attn.q_proj.bias": (64,) for i in range(12)}
    result = compare(known(llama(more=biases)), known(llama()))
    assert result.relation_hint == "independent"
    assert isinstance(result.findings[0], Measured)
    assert "q_bias" in result.findings[0].evidence[1].what.text("en")


def test_model_type_is_not_believed(tmp_path: Path) -> None:
    lying = known(llama(), config(tmp_path / "a", **{**LLAMA, "model_type": "bert"}))
    assert compare(lying, known(llama(), config(tmp_path / "b", **LLAMA))).relation_hint == "identical"
    same_word = known(bert(), config(tmp_path / "c", **LLAMA))
    assert compare(same_word, known(llama(), config(tmp_path / "d", **LLAMA))).relation_hint == "independent"


def test_lying_depth_is_not_believed(tmp_path: Path) -> None:
    assert known(llama(), config(tmp_path / "a", **{**LLAMA, "num_hidden_layers": 60000})).depth == 12


def test_one_layer_or_nothing_cannot_be_judged() -> None:
    nothing = extract(None, [])
    assert compare(nothing, known(llama())).relation_hint == "inconclusive"
    vectors = extract(None, tensors({"a": (9,), "b": (2, 2)}))
    assert compare(vectors, vectors).relation_hint == "inconclusive"


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({}, "identical"),
        ({"hidden_size": 128}, "equivalent"),
        ({"model_type": "yi"}, "inconclusive"),
        ({"vocab_size": "x"}, "inconclusive"),
    ],
)
def test_configurations_alone(tmp_path: Path, change: dict[str, object], hint: str) -> None:
    suspect = extract(config(tmp_path / "a", **{**LLAMA, **change}), [])
    source = extract(config(tmp_path / "b", **LLAMA), [])
    if "vocab_size" in change:  # only four fields are left
        suspect = extract(config(tmp_path / "a", **{key: LLAMA[key] for key in list(LLAMA)[:5]}), [])
    assert compare(suspect, source).relation_hint == hint


def test_configuration_keys_are_compared(tmp_path: Path) -> None:
    renamed = {key: value for key, value in LLAMA.items() if key != "hidden_size"} | {
        "n_embd": 64,
        "vocab_size": 1000,
    }
    suspect = known(llama(), config(tmp_path / "a", **renamed))
    finding = compare(suspect, known(llama(), config(tmp_path / "b", **LLAMA))).findings[1]
    assert isinstance(finding, Measured)
    assert (finding.statistic, finding.sample_size) == (4 / 7, 7)
    told = {evidence.where: evidence.what.key for evidence in finding.evidence}
    assert told["n_embd"] in ("structure.respelled", "structure.value")
    assert finding.evidence[0].what.text("en") == "was hidden_size in the source, with the same value 64"
    assert told["vocab_size"] == "structure.value"


def test_missing_configuration_is_skipped() -> None:
    assert isinstance(compare(known(llama()), known(llama())).findings[1], Skipped)


def test_every_sentence_exists_in_both_languages(tmp_path: Path) -> None:
    sides = [known(llama()), known(opaque(bert())), extract(None, []), extract(config(tmp_path, **LLAMA), [])]
    for a in sides:
        for b in sides:
            for finding in compare(a, b).findings:
                evidence = (
                    [e.what for e in finding.evidence] if isinstance(finding, Measured) else [finding.reason]
                )
                caveats = [finding.null, *finding.caveats] if isinstance(finding, Measured) else []
                assert all(m.text(language) for m in [*evidence, *caveats] for language in LANGUAGES)


def test_strange_settings_are_left_out(tmp_path: Path) -> None:
    raw = (
        '{"a": NaN, "b": 1e999, "c": "\\ud800", "d": "'
        + "x" * 99
        + '", "e": '
        + "9" * 99
        + ', "ok": 1, "\\u001b": 1}'
    )
    (tmp_path / "config.json").write_text(raw)
    found = read_config(open_tree(str(tmp_path), offline=True))
    assert isinstance(found, Config)
    assert extract(found, []).settings == {"ok": 1}


def test_facts_survive_json(tmp_path: Path) -> None:
    found = known(llama(), config(tmp_path, **LLAMA, rope_theta=10000.0, use_cache=True))
    stored = json.dumps(facts.to_json(found), separators=(",", ":"))
    assert facts.from_json(StructureFacts, json.loads(stored), "structure") == found
    assert len(stored) < 2500


SHAPES = st.lists(st.integers(0, 1 << 20), max_size=4).map(tuple)


@BUSY
@given(
    st.dictionaries(st.text(max_size=8), SHAPES, max_size=12),
    st.dictionaries(
        st.text(max_size=8),
        st.tuples(st.sampled_from(["q", "q+k", "", "a.{}", "head"]), st.none() | st.integers()),
        max_size=5,
    ),
)
def test_any_tensors(shapes: dict[str, tuple[int, ...]], roles: dict[str, tuple[str, int | None]]) -> None:
    found = extract(None, tensors(shapes), roles)
    assert compare(found, found).relation_hint in ("identical", "inconclusive")
    assert facts.from_json(StructureFacts, facts.to_json(found), "structure") == found
