"""Disguises of a Llama checkpoint: the same weights under the names and in the layouts of other families.

The layouts are those that probe.py read out of transformers' code, or that the scheme's provenance names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from zoo_files import Checkpoint, Tensor, Tensors

Layer = Mapping[str, Tensor]
"""The tensors of one layer by their short names: q, k, v, o, gate, up, down, norm1, norm2."""
SHORT = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
}
HEADS = 4


def grouped(layer: Layer) -> Tensor:
    """(groups, heads of q per group + 2, size): InternLM 2, Falcon, Megatron."""
    size = len(layer["q"]) // HEADS
    groups = len(layer["k"]) // size
    parts = [layer[name].reshape(groups, -1, size, layer["q"].shape[1]) for name in "qkv"]
    return np.concatenate(parts, axis=1).reshape(-1, layer["q"].shape[1])


def stacked(layer: Layer, *names: str) -> Tensor:
    """One below the other."""
    return np.concatenate([layer[name] for name in names])


def alternating(layer: Layer) -> Tensor:
    """gate, up, gate, up ..."""
    return np.stack([layer["gate"], layer["up"]], axis=1).reshape(-1, layer["up"].shape[1])


def llama(layer: Layer, *names: str) -> Tensors:
    """These tensors under Llama's names."""
    long = {short: name for name, short in SHORT.items()}
    return {f"model.layers.{{}}.{long[name]}.weight": layer[name] for name in names}


def phi3(layer: Layer) -> Tensors:
    """Stacked q, k, v and gate, up."""
    return {
        "model.layers.{}.self_attn.qkv_proj.weight": stacked(layer, "q", "k", "v"),
        "model.layers.{}.mlp.gate_up_proj.weight": stacked(layer, "gate", "up"),
        **llama(layer, "o", "down", "norm1", "norm2"),
    }


def internlm2(layer: Layer) -> Tensors:
    """Grouped wqkv."""
    names = {
        "o": "attention.wo",
        "gate": "feed_forward.w1",
        "up": "feed_forward.w3",
        "down": "feed_forward.w2",
    }
    names |= {"norm1": "attention_norm", "norm2": "ffn_norm"}
    return {
        "model.layers.{}.attention.wqkv.weight": grouped(layer),
        **{f"model.layers.{{}}.{name}.weight": layer[short] for short, name in names.items()},
    }


def megatron(layer: Layer) -> Tensors:
    """Grouped query_key_value; SwiGLU under the name of a plain FFN."""
    names = {"o": "self_attention.dense", "down": "mlp.dense_4h_to_h"}
    names |= {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
    prefix = "language_model.encoder.layers.{}."
    return {
        prefix + "self_attention.query_key_value.weight": grouped(layer),
        prefix + "mlp.dense_h_to_4h.weight": stacked(layer, "gate", "up"),
        **{f"{prefix}{name}.weight": layer[short] for short, name in names.items()},
    }


def chatglm(layer: Layer) -> Tensors:
    """Stacked, under nearly Megatron's names."""
    return {
        name.replace("language_model", "transformer"): values
        for name, values in (
            megatron(layer)
            | {
                "language_model.encoder.layers.{}.self_attention.query_key_value.weight": stacked(
                    layer, *"qkv"
                )
            }
        ).items()
    }


def qwen(layer: Layer) -> Tensors:
    """Qwen 1: w2 is the gate."""
    names = {"o": "attn.c_proj", "up": "mlp.w1", "gate": "mlp.w2", "down": "mlp.c_proj"}
    names |= {"norm1": "ln_1", "norm2": "ln_2"}
    return {
        "transformer.h.{}.attn.c_attn.weight": stacked(layer, "q", "k", "v"),
        **{f"transformer.h.{{}}.{name}.weight": layer[short] for short, name in names.items()},
    }


EXPERTS = 3


def expert_of(layer: Layer, number: int) -> Layer:
    """Expert 0 is the FFN of the layer, the others those of the next layers."""
    return {name: layer[f"{name}{number}" if number else name] for name in ("gate", "up", "down")}


def router(layer: Layer) -> Tensor:
    """One row per expert."""
    return np.ones((EXPERTS, layer["q"].shape[1]), np.float32)


def gpt_oss(layer: Layer) -> Tensors:
    """Stacks of experts (experts, in, out), gate and up alternating."""
    experts = [expert_of(layer, number) for number in range(EXPERTS)]
    return {
        **llama(layer, "q", "k", "v", "o", "norm1", "norm2"),
        "model.layers.{}.mlp.router.weight": router(layer),
        "model.layers.{}.mlp.experts.gate_up_proj": np.stack([alternating(each).T for each in experts]),
        "model.layers.{}.mlp.experts.down_proj": np.stack([each["down"].T for each in experts]),
    }


def mixtral(layer: Layer) -> Tensors:
    """A tensor per expert."""
    moe = "model.layers.{}.block_sparse_moe."
    found = {
        **llama(layer, "q", "k", "v", "o", "norm1", "norm2"),
        moe + "gate.weight": router(layer),
    }
    for number in range(EXPERTS):
        for short, name in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            found[f"{moe}experts.{number}.{name}.weight"] = expert_of(layer, number)[short]
    return found


OUTSIDE = {"model.embed_tokens.weight": "embed", "model.norm.weight": "norm"}
LLAMA = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight"}
FAMILIES: Mapping[str, tuple[Callable[[Layer], Tensors], Mapping[str, str]]] = {
    "phi3": (phi3, LLAMA),
    "internlm2": (internlm2, {"embed": "model.tok_embeddings.weight", "norm": "model.norm.weight"}),
    "megatron": (
        megatron,
        {
            "embed": "language_model.embedding.word_embeddings.weight",
            "norm": "language_model.encoder.final_layernorm.weight",
        },
    ),
    "chatglm": (
        chatglm,
        {
            "embed": "transformer.embedding.word_embeddings.weight",
            "norm": "transformer.encoder.final_layernorm.weight",
        },
    ),
    "qwen": (qwen, {"embed": "transformer.wte.weight", "norm": "transformer.ln_f.weight"}),
    "gpt_oss": (gpt_oss, LLAMA),
    "mixtral": (mixtral, LLAMA),
}


def disguise(model: Checkpoint, family: str) -> Checkpoint:
    """The checkpoint under the names and in the layout of a family."""
    convert, outside = FAMILIES[family]
    found = {outside[OUTSIDE[name]]: model.tensors[name] for name in OUTSIDE}
    layers = [
        {short: model.tensors[f"model.layers.{number}.{name}.weight"] for name, short in SHORT.items()}
        for number in range(int(model.config["num_hidden_layers"]))
    ]
    for number, layer in enumerate(layers):
        others = {
            f"{name}{expert}": layers[(number + expert) % len(layers)][name]
            for expert in range(1, EXPERTS)
            for name in ("gate", "up", "down")
        }
        for name, values in convert({**layer, **others}).items():
            found[name.replace("{}", str(number), 1)] = np.ascontiguousarray(values)
    return model.with_tensors(found, model_type=family)
