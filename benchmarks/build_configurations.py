"""Stage 2 of the table of configurations: facts -> ``src/drupe/data/configurations.tsv``, and its checks.

    python benchmarks/configuration_facts.py FACTS                          # stage 1, needs torch
    pip download --no-deps -d WHEELS transformers==5.23.0 litgpt==0.5.13
    python benchmarks/build_configurations.py write FACTS WHEELS            # writes the table
    python benchmarks/build_configurations.py check FACTS                   # prints the tables of design note 009
    python benchmarks/build_configurations.py agree WHEELS                  # litgpt's word against transformers'
    python benchmarks/build_configurations.py families                      # how many rows share a graph

Sizes and switches are facts; nothing else is taken. Every row says where its facts stand. Rows are left out when the
roles of their tensors do not cover 90 % of the values or when no FFN is found: their graph would be a guess.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
import tomllib
import types
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from drupe.configurations import SIZES, Configuration, Package, Table, lines_of, parse, table
from drupe.graph import FIELDS, UNKNOWN, VISIBLE, Graph, agree, differences, with_words
from drupe.graph_config import Family, Settings, graph_of_config, switches_of
from drupe.graph_tensors import graph_of_tensors, shown_sizes
from drupe.readers.config import Config, read_config
from drupe.readers.interface import TensorInfo
from drupe.roles import assign_roles
from drupe.signals import structure
from drupe.sources.local import LocalTree

TABLE = Path(__file__).parents[1] / "src/drupe/data/configurations.tsv"
RULES = TABLE.with_name("graph_rules.toml")
PINNED = {
    "litgpt-0.5.13-py3-none-any.whl": "da044b76c52cd44fc0564f6177ed6cf186dde24f711ce8e71e1fd9e9da5f02b2",
    "transformers-5.23.0-py3-none-any.whl": "018e82fd07490ad5bb58414f65e31576033dc7f36bed10c574843f69b90991bf",
}
MIN_EXPLAINED = 0.9
MAX_BYTES = 150_000
HEADER = (
    "Known real configurations. Written by benchmarks/build_configurations.py; do not edit.",
    "Facts only (sizes, switches, which modules a class builds on the meta device), no code; the packages are",
    "Apache-2.0. Rows of transformers are defaults of classes (like: the model that its documentation names), those",
    "of litgpt are published models. A convenience sample: what these packages ship, not a census of models.",
    f"Graph: {' '.join(FIELDS)}",
    f"Sizes: {' '.join(f'{place}={name}' for place, name in enumerate(SIZES))}",
    "Row: name, model type, package, place, sizes, graph, switches in the default of its class, rows merged.",
)
ALIBI = {"bloom": "modeling_bloom.py, build_alibi_tensor", "mpt": "modeling_mpt.py, build_mpt_alibi_tensor"}
"""Positions without a parameter and without a switch of the language model: where it is written."""
_CANONICAL_SIZES = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "decoder_layers": "num_decoder_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn": "intermediate_size",
    "experts": "num_experts",
    "experts_per_token": "num_experts_per_token",
    "expert_ffn": "moe_intermediate_size",
    "shared_experts": "num_shared_experts",
    "vocab": "vocab_size",
    "window": "sliding_window",
    "theta": "rope_theta",
}


@dataclass(frozen=True)
class Built:
    """One class on the meta device: its configuration and what its tensors show."""

    raw: Mapping[str, Any]
    settings: Settings
    seen: Graph
    shown: Mapping[str, float]
    explained: float


def config_of(raw: Mapping[str, Any]) -> Config:
    """As the reader sees it in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(raw))
        config = read_config(LocalTree(Path(folder)))
    assert isinstance(config, Config)
    return config


def settings_of(raw: Mapping[str, Any]) -> Settings:
    facts = structure.extract(config_of(raw), [])
    return Settings(facts.canonical, facts.spelled, facts.settings, facts.model_type, facts.architectures)


def built(raw: Mapping[str, Any], tensors: Mapping[str, list[int]]) -> Built:
    infos = [TensorInfo(name, tuple(shape), "F32", "meta") for name, shape in tensors.items()]
    roles = assign_roles(infos, {str(raw.get("model_type"))})
    known = {name for name, role in roles.by_tensor.items() if "{" not in role.name}
    share = sum(info.size for info in infos if info.name in known) / max(sum(info.size for info in infos), 1)
    return Built(raw, settings_of(raw), graph_of_tensors(infos, roles), shown_sizes(infos, roles), share)


def is_told(graph: Graph) -> bool:
    """Whether the layers were understood: something mixes tokens, and attention comes with an FFN."""
    mixes = graph.mixer not in (UNKNOWN, "none")
    return mixes and (graph.ffn != "none" or graph.mixer in ("state_space", "rwkv"))


@cache
def facts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "transformers.jsonl").read_text().splitlines()]


def inner(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((raw[key] for key in ("text_config", "llm_config") if isinstance(raw.get(key), dict)), raw)


def invisible(row: Mapping[str, Any], made: Built) -> dict[str, str]:
    """What the tensors of a class cannot show: read off its modules and its configuration."""
    raw, modules = inner(row["config"]), " ".join(row["modules"])
    words: dict[str, str] = {}
    if made.seen.form == UNKNOWN:
        words["form"] = (
            "encoder" if row["head"] in ("MASKED_LM", "ZERO_SHOT_IMAGE_CLASSIFICATION") else "decoder"
        )
    if made.seen.norm == UNKNOWN:
        words["norm"] = (
            "rms" if re.search(r"RMSNorm|T5LayerNorm", modules) else "layer" if "Norm" in modules else UNKNOWN
        )
    if made.seen.residual == UNKNOWN:
        keys = ("use_parallel_residual", "parallel_attn", "parallel_residual")
        words["residual"] = "parallel" if any(raw.get(key) for key in keys) else "sequential"
    words["activation"] = str(made.settings.canonical.get("activation", UNKNOWN))
    words.update(_positions(row, raw, modules, made.seen.positions))
    kinds = set(raw.get("layer_types") or [])
    local = {kind for kind in kinds if "sliding" in kind or "chunked" in kind or "local" in kind}
    stated = raw.get("sliding_window") and raw.get("use_sliding_window", True)
    words["window"] = (
        ("all" if kinds == local else "some") if local else "all" if stated and not kinds else "none"
    )
    caps = {"attention": "attn_logit_softcapping", "final": "final_logit_softcapping"}
    words["softcap"] = "+".join(sorted(word for word, key in caps.items() if raw.get(key))) or "none"
    if made.seen.head == UNKNOWN:
        words["head"] = "tied" if made.settings.canonical.get("tie_word_embeddings") else "none"
    return words


def _positions(row: Mapping[str, Any], raw: Mapping[str, Any], modules: str, seen: str) -> dict[str, str]:
    rope = "Rotary" in modules or raw.get("rotary_dim")
    kind = seen if seen in ("learned", "relative") else "rope" if rope else UNKNOWN
    if kind == UNKNOWN:
        kind = (
            "alibi"
            if row["type"] in ALIBI or raw.get("alibi")
            else "sinusoidal"
            if "Sinusoidal" in modules
            else "none"
        )
    if kind != "rope":
        return {"positions": kind, "rope": "none"}
    stated = raw.get("rope_parameters") or {}
    each = [value for value in stated.values() if isinstance(value, dict)] or [stated]
    found = {str(entry["rope_type"]) for entry in each if entry.get("rope_type", "default") != "default"}
    fractions = [entry.get("partial_rotary_factor", 1) for entry in each] + [raw.get("rotary_pct", 1)]
    if raw.get("rotary_dim") or any(value < 1 for value in fractions if isinstance(value, int | float)):
        found.add("partial")
    found |= {"mrope"} if any("mrope_section" in entry for entry in each) else set()
    return {"positions": kind, "rope": "+".join(sorted(found)) or "default"}


def sizes_of(settings: Settings) -> dict[str, float]:
    found = {}
    for name, key in _CANONICAL_SIZES.items():
        value = settings.canonical.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and value:
            found[name] = float(value)
    return found


def from_transformers(folder: Path, package: Package) -> Iterator[Configuration]:
    for row in facts(folder):
        if "turned" in row or "tensors" not in row or row["config"].get("model_type") != row["type"]:
            continue  # a few types are other names of a class (gpt-sw3)
        made = built(row["config"], row["tensors"])
        if made.explained < MIN_EXPLAINED or not is_told(made.seen):
            continue
        sizes = sizes_of(made.settings)
        if "ffn" not in sizes and "ffn" in made.shown:
            sizes["ffn"] = made.shown["ffn"]
        if inner(row["config"]).get("multi_query") and not inner(row["config"]).get(
            "new_decoder_architecture"
        ):
            sizes["kv_heads"] = 1.0
        if not {"hidden", "layers"} <= sizes.keys():
            continue
        title = row["config_class"].removesuffix("Config")
        like = f", like {row['like']}" if row["like"] else ""
        yield Configuration(
            name=title,
            model_type=row["type"],
            package=package,
            place=f"{row['file']}:{row['line']} {row['config_class']}{like}",
            sizes=sizes,
            graph=with_words(made.seen, invisible(row, made)),
            switches=switches_of(made.settings),
            also=0,
        )


def litgpt_configs(wheel: Path) -> list[dict[str, Any]]:
    """The named configurations: the module builds them in loops, so it is run, alone and without its package."""
    source = zipfile.ZipFile(wheel).read("litgpt/config.py").decode()
    module = types.ModuleType("litgpt_config")
    sys.modules[module.__name__] = module
    exec(compile(source, "litgpt/config.py", "exec"), module.__dict__)
    return [vars(module.Config(**entry)) for entry in module.configs]


def graph_of_litgpt(c: Mapping[str, Any]) -> Graph:
    """What the switches of litgpt's one class mean (litgpt/model.py)."""
    kinds = c["sliding_window_indices"]
    window = c["sliding_window_size"] and ("some" if kinds and 0 in kinds[: c["n_layer"]] else "all")
    rope = {"partial"} if c["rotary_percentage"] < 1 else set()
    if c["rope_adjustments"]:
        rope.add("llama3" if "low_freq_factor" in c["rope_adjustments"] else "linear")
    rope |= {"linear"} if c["rope_condense_ratio"] > 1 else set()
    caps = {"attention": "attention_logit_softcapping", "final": "final_logit_softcapping"}
    experts = bool(c["n_expert"])
    gated = c["mlp_class_name"] != "GptNeoxMLP"
    gelu = "gelu_new" if c["gelu_approximate"] == "tanh" else "gelu"
    return Graph(
        inputs="tokens",
        form="decoder",
        mixer="latent" if c["latent_attention"] else "attention",
        attention_bias="qkvo" if c["bias"] else "qkv" if c["attn_bias"] else "none",
        qk_norm=("full" if c["norm_qk_type"] == "olmo2" else "head") if c["norm_qk"] else "none",
        norm="rms" if c["norm_class_name"] == "RMSNorm" else "layer",
        placement=_litgpt_placement(c),
        residual="parallel" if c["parallel_residual"] else "sequential",
        ffn="gated" if gated else "plain",
        ffn_bias="yes" if c["bias"] else "no",
        activation="silu" if c["mlp_class_name"] in ("LLaMAMLP", "LLaMAMoE") else gelu,
        experts="none" if not experts else "some" if c["first_k_dense_replace"] else "all",
        shared_experts="yes" if c["n_shared_expert"] else "no",
        positions="rope" if c["rotary_percentage"] > 0 else "none",
        rope="+".join(sorted(rope)) or "default",
        window=window or "none",
        softcap="+".join(sorted(word for word, key in caps.items() if c[key])) or "none",
        others="query_compression" if (c["latent_attention"] or {}).get("q_lora_rank") else "none",
    )


def _litgpt_placement(c: Mapping[str, Any]) -> str:
    after = c["post_attention_norm"] and c["post_mlp_norm"]
    return ("sandwich" if c["norm_1"] else "post") if after else "pre"


def from_litgpt(wheel: Path, package: Package) -> Iterator[Configuration]:
    for c in litgpt_configs(wheel):
        if c["norm_class_name"] == "LayerNorm" and not c["bias"] and c["name"].startswith("OLMo-"):
            continue  # OLMo 1 has norms without parameters, which litgpt keeps as ones
        hub = c["hf_config"] or {}
        sizes = {
            "hidden": c["n_embd"],
            "layers": c["n_layer"],
            "heads": c["n_head"],
            "kv_heads": c["n_query_groups"],
            "head_dim": c["head_size"],
            "ffn": c["intermediate_size"],
            "experts": c["n_expert"],
            "experts_per_token": c["n_expert_per_token"],
            "expert_ffn": c["moe_intermediate_size"],
            "shared_experts": c["n_shared_expert"],
            "vocab": c["vocab_size"],
            "window": c["sliding_window_size"],
            "theta": c["rope_base"],
        }
        yield Configuration(
            name=f"{hub.get('org', '')}/{hub.get('name', c['name'])}".strip("/"),
            model_type="",
            package=package,
            place=f"litgpt/config.py {c['name']}",
            sizes={name: float(value) for name, value in sizes.items() if value},
            graph=graph_of_litgpt(c),
            switches={},
            also=0,
        )


def merged(rows: Iterable[Configuration]) -> list[Configuration]:
    """One row per graph and sizes of a maker; the same model from two packages counts once."""
    kept: list[Configuration] = []
    for row in rows:
        twin = next((place for place, other in enumerate(kept) if _is_twin(row, other)), None)
        if twin is None:
            kept.append(row)
        else:
            kept[twin] = replace(kept[twin], also=kept[twin].also + 1)
    return kept


def _is_twin(row: Configuration, other: Configuration) -> bool:
    if row.package != other.package:
        shared = row.sizes.keys() & other.sizes.keys() - {"window"}
        return (
            {"hidden", "layers", "ffn", "vocab"} <= shared
            and agree(row.graph, other.graph)
            and all(row.sizes[name] == other.sizes[name] for name in shared)
        )
    if row.package.name == "transformers":
        return False
    maker = row.name.partition("/")[0]
    return row.graph == other.graph and row.sizes == other.sizes and other.name.partition("/")[0] == maker


def package_of(wheels: Path, name: str, licence: str) -> tuple[Package, Path]:
    (wheel,) = wheels.glob(f"{name}-*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != PINNED[wheel.name]:
        raise SystemExit(f"{wheel.name}: sha256 {digest} is not the pinned one")
    return Package(name, wheel.name.split("-")[1], wheel.name, digest, licence), wheel


def write(folder: Path, wheels: Path) -> None:
    transformers, _ = package_of(wheels, "transformers", "Apache-2.0")
    litgpt, wheel = package_of(wheels, "litgpt", "Apache-2.0")
    rows = merged([*from_transformers(folder, transformers), *from_litgpt(wheel, litgpt)])
    bare = Table(tuple(rows), {})
    lines = lines_of(Table(bare.rows, measured_effects(folder, bare)), HEADER)
    text = "\n".join(lines) + "\n"
    parse(lines)
    if len(text) > MAX_BYTES:
        raise SystemExit(f"{len(text)} bytes are more than {MAX_BYTES}")
    TABLE.write_text(text, encoding="utf-8")
    print(f"{len(rows)} rows, {len({row.graph for row in rows})} graphs, {len(text)} bytes")


def is_development(model_type: str) -> bool:
    """Half of the families: handling of dialects was chosen on these alone."""
    return hashlib.sha256(model_type.encode()).digest()[0] % 2 == 0


def compared(seen: Graph, told: Graph) -> tuple[str, ...]:
    """Where a configuration tells something else than the tensors show, what neither tells left out."""
    return tuple(
        name for name in differences(told, seen) if name in VISIBLE or getattr(seen, name) != UNKNOWN
    )


def measured_effects(folder: Path, bare: Table) -> dict[str, dict[str, dict[str, str]]]:
    """Model type -> switch -> what turning it does to the tensors, where the general rule says something else."""
    found: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for row in facts(folder):
        default = bare.by_type.get(row["type"])
        if (
            "turned" not in row
            or "tensors" not in row
            or default is None
            or row["turned"] not in default.switches
        ):
            continue
        made = built(row["config"], row["tensors"])
        told = graph_of_config(made.settings, Family(default.graph, default.switches))
        wrong = {name: getattr(made.seen, name) for name in compared(made.seen, told)}
        own = {name: word for name, word in wrong.items() if name in touched(row["turned"])}
        if own and is_told(made.seen) and inner(row["config"]) is row["config"]:
            found[row["type"]][row["turned"]] = own
    return found


def touched(switch: str) -> set[str]:
    """The questions that a switch is about."""
    rules = tomllib.loads(RULES.read_text(encoding="utf-8"))["switch"].get(switch, {})
    return {name for effects in rules.values() for name in effects}


def check(folder: Path, verbose: str = "") -> None:
    """Configuration alone against the parameters of the real class; without the measured effects of switches."""
    known = {row.model_type: Family(row.graph, row.switches) for row in table().by_type.values()}
    counts: dict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
    names: dict[str, frozenset[str]] = {}
    for row in facts(folder):
        if "tensors" not in row or row["type"] not in known:
            continue
        made = built(row["config"], row["tensors"])
        if not is_told(made.seen) or made.explained < MIN_EXPLAINED:
            continue
        development = is_development(row["type"])
        without = frozenset(re.sub(r"\d+", "#", name) for name in row["tensors"])
        kind = "variant, other names" if without != names.get(row["type"], without) else "variant, same names"
        if "turned" not in row:
            names[row["type"]], kind = without, "default"
        tests: dict[str, Callable[[], Graph]] = {
            f"{kind}; family known": lambda made=made, row=row: graph_of_config(
                made.settings, known[row["type"]]
            ),
            f"{kind}; family unknown": lambda made=made: graph_of_config(made.settings, None),
        }
        for name, tell in tests.items():
            wrong = compared(made.seen, tell())
            counts[name, development]["all"] += 1
            counts[name, development]["right"] += not wrong
            answered = set(made.seen.known()) & set(tell().known())
            counts[name, development]["answers"] += len(answered)
            counts[name, development]["right answers"] += len(answered) - len(wrong)
            if verbose and wrong and development and ("unknown" in name) == (verbose == "unknown"):
                told = tell()
                print(
                    row["type"],
                    row.get("turned", ""),
                    [(w, getattr(told, w), getattr(made.seen, w)) for w in wrong],
                )
    print("| configuration | half | all answers equal | answers equal |")
    for (name, development), count in sorted(counts.items()):
        half = "development" if development else "held out"
        share, answers = count["right"] / count["all"], count["right answers"] / count["answers"]
        print(f"| {name} | {half} | {count['right']} of {count['all']} ({share:.1%}) | {answers:.1%} |")


FAMILY_OF = {
    **dict.fromkeys(
        ("Llama-2", "CodeLlama", "Llama-3", "SmolLM2", "salamandra", "open_llama", "Falcon3"), "llama"
    ),
    **dict.fromkeys(("Qwen2.5", "QwQ"), "qwen2"),
    **dict.fromkeys(("Qwen3-30B", "Qwen3-235B"), "qwen3_moe"),
    **dict.fromkeys(("Phi-3", "Phi-4", "phi-4"), "phi3"),
    **{
        "pythia": "gpt_neox",
        "Qwen3": "qwen3",
        "gemma-2-": "gemma2",
        "gemma-3": "gemma3_text",
        "gemma-": "gemma",
    },
    **{"phi-": "phi", "falcon-": "falcon", "Mixtral": "mixtral", "Mistral": "mistral", "OLMo-2": "olmo2"},
    "stablelm-3b": "stablelm",
}
"""How names of published models begin -> the class that transformers has for them; the first that fits."""


def two_packages(wheels: Path) -> None:
    """litgpt describes a model by switches, transformers by a class: do they tell one graph?

    Left out: window and RoPE variant, which differ between the models of a class, and the head, which litgpt does
    not tell.
    """
    _, wheel = package_of(wheels, "litgpt", "Apache-2.0")
    told: Counter[bool] = Counter()
    for c in litgpt_configs(wheel):
        name = (c["hf_config"] or {}).get("name", c["name"])
        family = next((family for start, family in FAMILY_OF.items() if name.startswith(start)), None)
        if family is not None:
            wrong = set(differences(graph_of_litgpt(c), table().by_type[family].graph)) - {
                "window",
                "rope",
                "head",
            }
            told[not wrong] += 1
            print(*([f"{name}: {sorted(wrong)}"] if wrong else []), end="\n" if wrong else "")
    print(
        f"{told[True]} of {told.total()} configurations of litgpt have the graph of their class in transformers"
    )


def families() -> None:
    """How many rows share the graph of a class, and how many stand alone."""
    rows = table().rows
    seen: set[Graph] = set()
    classes = [row for row in rows if row.model_type]
    for row in sorted(classes, key=lambda row: (-len(table().sharing(row.graph)), row.name)):
        if row.graph not in seen and len(seen) < 14:
            sharing = table().sharing(row.graph)
            open_head = sum(other.graph.head == UNKNOWN for other in sharing)
            names = ", ".join(other.name for other in sharing if other.model_type)
            print(f"| {row.name} | {len(sharing)} of {len(rows)} | {open_head} | {names} |")
        seen.add(row.graph)
    alone = sum(len(table().sharing(row.graph)) == 1 for row in rows)
    print(f"{alone} of {len(rows)} rows share their graph with no other row")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", folder, wheels]:
            write(Path(folder), Path(wheels))
        case ["check", folder, *rest]:
            check(Path(folder), *rest)
        case ["agree", wheels]:
            two_packages(Path(wheels))
        case ["families"]:
            families()
        case _:
            raise SystemExit(__doc__)
