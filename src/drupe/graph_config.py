"""A configuration alone -> the module graph: what its family's class builds, changed by the switches it sets.

A configuration does not say what its class hard-codes (the biases of Qwen 2), so the default of the class that
``model_type`` names is the start. Without a known family only the dialect speaks, and much is guessed; tensors, where
there are any, always win (drupe.signals.genome).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from drupe.graph import UNKNOWN, Graph, joined, with_words
from drupe.readers.config import Scalar

_KEPT = frozenset({"attention_bias", "qk_norm", "ffn_bias"})
"""A true switch keeps what the family says of these when it says that they are there."""
_NOTHING = frozenset({UNKNOWN, "none", "no"})
_SPARSE_STEPS = ("decoder_sparse_step", "moe_layer_freq", "interleave_moe_layer_step", "expert_layer_period")
_FRACTIONS = ("partial_rotary_factor", "rotary_pct", "rotary_percentage")
_TOWERS = {"vision_tower": "patches", "audio_tower": "samples"}
PRESENCE = ("sliding_window", "q_lora_rank")
"""Keys whose absence says something when the default of the class has them."""
_COUNTED = ("first_k_dense_replace", "shared_expert_intermediate_size", *_SPARSE_STEPS)
_COUNTED_FIELDS = ("num_experts", "num_shared_experts")
_TIED = "tie_word_embeddings"
"""Numbers that say more than a size when they are nought, or one."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a configuration says: canonical fields, how they are spelled, all plain entries of the language model."""

    canonical: Mapping[str, Scalar]
    spelled: Mapping[str, str]
    plain: Mapping[str, Scalar]
    model_type: str | None = None
    architectures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """The default of a class: its graph, the values of its switches, and what turning one was measured to do.

    ``effects``: switch -> answers, where they are others than the general rule says.
    """

    graph: Graph
    switches: Mapping[str, int] = field(default_factory=dict)
    effects: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@cache
def _switches() -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    text = (resources.files("drupe") / "data" / "graph_rules.toml").read_text(encoding="utf-8")
    table: Mapping[str, Mapping[str, Mapping[str, str]]] = tomllib.loads(text)["switch"]
    return table


def switches_of(settings: Settings) -> dict[str, int]:
    """The switches a configuration sets, as kept for the default of a class."""
    found = {
        key: int(bool(settings.plain[key]))
        for key in _switches()
        if isinstance(settings.plain.get(key), bool)
    }
    found.update({key: 1 for key in PRESENCE if key in settings.plain or key in settings.canonical})
    found.update({_TIED: int(tied)} if isinstance(tied := settings.canonical.get(_TIED), bool) else {})
    found.update({key: value for key in _COUNTED if isinstance(value := settings.plain.get(key), int)})
    found.update(
        {key: value for key in _COUNTED_FIELDS if isinstance(value := settings.canonical.get(key), int)}
    )
    return found


def graph_of_config(settings: Settings, family: Family | None) -> Graph:
    """The graph that a configuration describes; unknown everything when it states nothing."""
    if not settings.canonical and family is None:
        return Graph()
    graph = family.graph if family else _by_dialect(settings)
    defaults = family.switches if family else {}
    words = _function(settings)
    words.update(_switched(settings, graph, None if family is None else defaults))
    words.update(_mixture(settings, graph, defaults))
    words.update(_positions(settings, graph))
    words.update(_window(settings, graph, defaults))
    words.update(_surroundings(settings, graph, defaults, family is not None))
    words.update(_compression(settings, graph, defaults))
    for key, measured in (family.effects if family else {}).items():
        value = settings.plain.get(key)
        if isinstance(value, bool) and key in defaults and defaults[key] != int(value):
            words.update(measured)
    return with_words(graph, words)


def _switched(settings: Settings, graph: Graph, defaults: Mapping[str, int] | None) -> dict[str, str]:
    """A switch speaks where it differs from the default of the class; a class ignores the switches it lacks."""
    words: dict[str, str] = {}
    for key, effects in _switches().items():
        value = settings.plain.get(key)
        if not isinstance(value, bool) or (defaults is not None and defaults.get(key, value) == int(value)):
            continue
        for name, word in effects["on" if value else "off"].items():
            now = words.get(name, getattr(graph, name))
            if word[0] in "+-":
                words[name] = _letters(now, word)
            elif not (value and name in _KEPT and now not in _NOTHING):
                words[name] = (
                    word.replace("v", "") if "latent" in graph.mixer and name == "attention_bias" else word
                )
    return words


def _letters(now: str, change: str) -> str:
    """The letters of biases with one added or taken.

    >>> _letters("qkv", "+o"), _letters("qkvo", "-o"), _letters("none", "+o")
    ('qkvo', 'qkv', 'o')
    """
    had = set(now) if now not in _NOTHING else set()
    has = had | {change[1]} if change[0] == "+" else had - {change[1]}
    return "".join(letter for letter in "qkvo" if letter in has) or "none"


def _mixture(settings: Settings, graph: Graph, defaults: Mapping[str, int]) -> dict[str, str]:
    """Experts, where their numbers differ from the default of the class."""
    now = {**settings.plain, **settings.canonical}
    changed = {
        key: value
        for key in (*_COUNTED, *_COUNTED_FIELDS)
        if isinstance(value := now.get(key), int) and value != defaults.get(key)
    }
    words: dict[str, str] = {}
    if "num_experts" in changed:
        sparse = graph.experts if graph.experts in ("some", "all") else "all"
        words["experts"] = sparse if changed["num_experts"] else "none"
    if words.get("experts", graph.experts) not in ("some", "all"):
        return words
    if "first_k_dense_replace" in changed:
        words["experts"] = "some" if changed["first_k_dense_replace"] else "all"
    if any(changed.get(key, 0) > 1 for key in _SPARSE_STEPS):
        words["experts"] = "some"
    for key in ("num_shared_experts", "shared_expert_intermediate_size"):
        if key in changed:
            words["shared_experts"] = "yes" if changed[key] else "no"
    return words


def _positions(settings: Settings, graph: Graph) -> dict[str, str]:
    if graph.positions not in ("rope", UNKNOWN):
        return {}
    fractions = [settings.plain.get(key) for key in _FRACTIONS] + [settings.canonical.get("rotary_fraction")]
    stated = [value for value in fractions if isinstance(value, int | float)]
    kind = settings.canonical.get("rope_type")
    found = set(graph.rope.split("+")) - {UNKNOWN, "default", "none"}
    if stated:
        found = (found - {"partial"}) | ({"partial"} if min(stated) < 1 else set())
    if isinstance(kind, str):
        kept = found & {"partial", "mrope"}
        found = kept | ({kind} if kind != "default" else set())
    return {"rope": joined(found, "default")} if graph.positions == "rope" else {}


def _window(settings: Settings, graph: Graph, defaults: Mapping[str, int]) -> dict[str, str]:
    width = settings.canonical.get("sliding_window")
    if isinstance(width, int) and width > 0:
        if settings.plain.get("use_sliding_window") is False:
            return {"window": "none"}
        return {"window": graph.window if graph.window in ("some", "all") else "all"}
    return {"window": "none"} if "sliding_window" in defaults or graph.window == UNKNOWN else {}


def _function(settings: Settings) -> dict[str, str]:
    """Activation, gate, caps of the logits."""
    words: dict[str, str] = {}
    activation = settings.canonical.get("activation")
    if isinstance(activation, str):
        words["activation"] = activation
    projection = settings.plain.get("feed_forward_proj")
    if isinstance(projection, str):
        words["ffn"] = "gated" if projection.startswith("gated") else "plain"
    caps = {
        word
        for key, word in (("attn_logit_softcapping", "attention"), ("final_logit_softcapping", "final"))
        if isinstance(settings.plain.get(key), int | float)
    }
    if caps:
        words["softcap"] = joined(caps)
    return words


def _surroundings(
    settings: Settings, graph: Graph, defaults: Mapping[str, int], is_known: bool
) -> dict[str, str]:
    words: dict[str, str] = {}
    tied = settings.canonical.get(_TIED)
    if isinstance(tied, bool) and graph.head != "none" and defaults.get(_TIED) != int(tied):
        words["head"] = "tied" if tied else "own"
    towers = {word for key, word in _TOWERS.items() if key in settings.canonical}
    if towers and not is_known:
        words["inputs"] = joined({"tokens"} | towers)
    return words


def _compression(settings: Settings, graph: Graph, defaults: Mapping[str, int]) -> dict[str, str]:
    """Latent attention may compress its queries too, or not."""
    if graph.mixer.find("latent") < 0:
        return {}
    there = isinstance(settings.plain.get("q_lora_rank"), int)
    if not there and "q_lora_rank" not in defaults:
        return {}
    others = set(graph.others.split("+")) - {"none", UNKNOWN, "query_compression"}
    return {"others": joined(others | ({"query_compression"} if there else set()))}


def _by_dialect(settings: Settings) -> Graph:
    """What most models of a dialect hold: RMS norms come with Llama's layer, LayerNorms with GPT's or BERT's."""
    plain = Graph(
        inputs="tokens",
        mixer="latent" if "kv_lora_rank" in settings.plain else "attention",
        attention_bias="none",
        qk_norm="none",
        placement="pre",
        residual="sequential",
        experts="none",
        shared_experts="no",
        window="none",
        softcap="none",
        others="none",
        form=_form(settings),
    )
    if "rms" in settings.spelled.get("norm_epsilon", ""):
        return with_words(
            plain, {"norm": "rms", "ffn": "gated", "ffn_bias": "no", "positions": "rope", "rope": "default"}
        )
    rope = "rope_theta" in settings.canonical or any(key in settings.plain for key in _FRACTIONS)
    words = {"norm": "layer", "ffn": "plain", "ffn_bias": "yes", "attention_bias": "qkvo"}
    words.update(
        {"positions": "rope", "rope": "default"} if rope else {"positions": "learned", "rope": "none"}
    )
    if settings.canonical.get("type_vocab_size"):
        words.update(placement="post", others="embed_norm+token_type", form="encoder")
    return with_words(plain, words)


def _form(settings: Settings) -> str:
    if settings.plain.get("is_encoder_decoder") is True:
        return "encoder_decoder"
    return (
        "decoder"
        if any("CausalLM" in name or "LMHead" in name for name in settings.architectures)
        else UNKNOWN
    )
