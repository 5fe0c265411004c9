from __future__ import annotations

import json
import tomllib
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drupe.errors import DrupeError, FormatError, LimitError
from drupe.readers.config import MAX_BYTES, Config, dialects, flatten, from_gguf, load_dialects, read_config
from drupe.readers.interface import Absent
from drupe.sources.locator import open_tree

BUSY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])  # shared cores

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "_name_or_path": "org/Name-7b",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
}
GGUF = {
    "general.architecture": "llama",
    "general.name": "Name 7b",
    "llama.block_count": 32,
    "llama.embedding_length": 4096,
    "llama.feed_forward_length": 11008,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.tokens": ["x"] * 32000,
}


def read(folder: Path, value: object, name: str = "config.json") -> Config:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    config = read_config(open_tree(str(folder), offline=True))
    assert isinstance(config, Config)
    return config


def test_llama(tmp_path: Path) -> None:
    config = read(tmp_path, LLAMA)
    assert (config.model_type, config.architectures) == ("llama", ("LlamaForCausalLM",))
    assert config.name_or_path == "org/Name-7b"
    assert config.canonical["hidden_size"] == 4096
    assert config.canonical["norm_epsilon"] == 1e-5
    assert config.canonical["tie_word_embeddings"] is False
    assert config.ignored == ()


def test_gguf_gives_the_same_fields(tmp_path: Path) -> None:
    config, header = read(tmp_path, LLAMA), from_gguf(GGUF)
    assert isinstance(header, Config)
    shared = set(header.canonical) & set(config.canonical)
    assert len(shared) == 8
    assert {key: header.canonical[key] for key in shared} == {key: config.canonical[key] for key in shared}
    assert header.name_or_path == "Name 7b"


def test_gguf_without_architecture_is_absent() -> None:
    assert isinstance(from_gguf({"llama.block_count": 3}), Absent)


def test_gpt2_dialect(tmp_path: Path) -> None:
    config = read(tmp_path, GPT2)
    assert config.canonical == {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "activation": "gelu_new",
    }
    assert config.spelled["hidden_size"] == "n_embd"


def test_t5_dialect(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        {
            "d_model": 512,
            "d_kv": 64,
            "d_ff": 1024,
            "num_layers": 8,
            "num_heads": 6,
            "feed_forward_proj": "gated-gelu",
        },
    )
    assert config.canonical["head_dim"] == 64
    assert config.canonical["intermediate_size"] == 1024
    assert config.canonical["activation"] == "gelu_new"


def test_params_json_of_meta(tmp_path: Path) -> None:
    config = read(tmp_path, {"dim": 4096, "n_layers": 32, "n_heads": 32, "norm_eps": 1e-6}, "params.json")
    assert config.canonical["num_hidden_layers"] == 32


def test_nested_language_model_wins(tmp_path: Path) -> None:
    raw = {
        "model_type": "llava",
        "hidden_size": 5,
        "text_config": {"hidden_size": 4096, "model_type": "llama"},
    }
    config = read(tmp_path, raw)
    assert config.canonical["hidden_size"] == 4096
    assert config.spelled["hidden_size"] == "text_config.hidden_size"
    assert config.model_type == "llava"
    assert flatten(config.raw) == {"model_type": "llava", "hidden_size": 4096}


def test_nearest_to_the_root_wins(tmp_path: Path) -> None:
    read(tmp_path, {"hidden_size": 1}, "a/b/config.json")
    assert read(tmp_path, {"hidden_size": 2}, "z/config.json").canonical["hidden_size"] == 2


def test_no_config_is_absent(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x")
    assert isinstance(read_config(open_tree(str(tmp_path), offline=True)), Absent)


@pytest.mark.parametrize("value", ["x", -1, 0, 1.5, True, [1], {"a": 1}, 10**30, 1e300])
def test_a_lie_is_dropped_and_named(tmp_path: Path, value: object) -> None:
    config = read(tmp_path, {**LLAMA, "hidden_size": value})
    assert "hidden_size" not in config.canonical
    assert config.ignored == ("hidden_size",)
    assert config.canonical["vocab_size"] == 32000


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_floats_that_are_no_numbers(tmp_path: Path, value: str) -> None:
    assert read(tmp_path, f'{{"rms_norm_eps": {value}}}').ignored == ("rms_norm_eps",)


@pytest.mark.parametrize(
    "content", ["[]", "1", "null", "", "{", '{"a":1,"a":2}', "[" * 100_000, '{"a":' * 100_000, "1" * 5000]
)
def test_no_object_is_an_error(tmp_path: Path, content: str) -> None:
    with pytest.raises(FormatError, match=r"config\.json"):
        read(tmp_path, content)


def test_size_is_limited(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(LimitError, match=str(MAX_BYTES)):
        read_config(open_tree(str(tmp_path), offline=True))


def test_names_are_printable_and_short(tmp_path: Path) -> None:
    config = read(
        tmp_path, '{"model_type": "a\\u001b[31m\\ud800b", "architectures": [1, "' + "x" * 999 + '"]}'
    )
    assert config.model_type == "a [31m b"
    assert len(config.architectures[0]) == 200
    json.dumps(config.model_type).encode()


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [key.split(".")[0] for field in dialects().fields for key in field.keys] + list(dialects().nested)
)


@BUSY
@given(st.dictionaries(KEYS, JSONS | st.dictionaries(KEYS, JSONS, max_size=4), max_size=8))
def test_any_object_gives_checked_fields(
    tmp_path_factory: pytest.TempPathFactory, raw: dict[str, object]
) -> None:
    config = read(tmp_path_factory.mktemp("c"), raw)
    for field in dialects().fields:
        value = config.canonical.get(field.name)
        if field.kind in ("int", "count") and value is not None:
            assert isinstance(value, int)
            assert field.low <= value <= field.high


@BUSY
@given(st.dictionaries(st.sampled_from(sorted(GGUF)), JSONS))
def test_any_gguf_header(fields: dict[str, object]) -> None:
    from_gguf(fields)


@BUSY
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("c")
    (folder / "config.json").write_bytes(data)
    with suppress(DrupeError):
        read_config(open_tree(str(folder), offline=True))


def table() -> dict[str, Any]:
    file = resources.files("drupe") / "data" / "architectures" / "config_dialects.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


def test_dialects_with_a_key_claimed_twice_are_refused() -> None:
    broken = table()
    broken["field"]["head_dim"]["keys"].append("hidden_size")
    with pytest.raises(ValueError, match="hidden_size"):
        load_dialects(broken)


@pytest.mark.parametrize(("key", "value"), [("kind", "colour"), ("low", "x"), ("surprise", 1)])
def test_malformed_dialects_are_refused(key: str, value: object) -> None:
    broken = table()
    broken["field"]["head_dim"][key] = value
    with pytest.raises(ValueError, match="head_dim"):
        load_dialects(broken)
