"""Which row of a fused weight is whose, asked of transformers' own forward code.

Row r of the weight answers r to the only input that is not zero, so what the attention (or the gate) is handed over
are row numbers. Needs torch and transformers; run by make.py.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

if find_spec("torch") is not None:  # the tests collect this file where it is not installed
    import torch
    from torch import nn

Rows = dict[str, list[int]]


def number_rows(linear: nn.Module) -> int:
    """Row r of a Linear (column r of a Conv1D) becomes r at input 0; returns the number of inputs."""
    with torch.no_grad():
        weight: Any = linear.weight
        turned = not isinstance(linear, nn.Linear)
        rows = weight.shape[1 if turned else 0]
        weight.zero_()
        (weight[0] if turned else weight[:, 0]).copy_(torch.arange(rows))
        if getattr(linear, "bias", None) is not None:
            linear.bias.zero_()  # type: ignore[union-attr, operator]
    return int(weight.shape[0 if turned else 1])


def one_input(width: int) -> torch.Tensor:
    """One token whose first channel is 1."""
    states = torch.zeros(1, 1, width)
    states[0, 0, 0] = 1.0
    return states


def listed(values: torch.Tensor) -> list[int]:
    """Row numbers of one token, heads in order."""
    return [int(value) for value in values.reshape(-1).tolist()]


def handed_over(attention: nn.Module, fused: nn.Module, **arguments: Any) -> Rows:
    """q, k, v as the attention function of transformers' interface gets them; positions turn nothing."""
    from transformers import AttentionInterface

    caught: Rows = {}

    def catch(module: nn.Module, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple[Any, None]:
        caught.update(q=listed(query[0]), k=listed(key[0]), v=listed(value[0]))
        return torch.zeros(1, 1, query.shape[1], query.shape[3]), None

    AttentionInterface.register("catch", catch)
    attention.config._attn_implementation = "catch"  # type: ignore[union-attr]
    width = number_rows(fused)
    attention(one_input(width), **arguments)
    return caught


def unturned(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of position 0."""
    return torch.ones(1, 1, size), torch.zeros(1, 1, size)


def by_method(method: Callable[[Any], Any], fused: nn.Module, heads_axis: int) -> Rows:
    """q, k, v as the module's own method splits them; heads are brought to the front."""
    width = number_rows(fused)
    parts = method(fused(one_input(width)))
    rows = [listed(part.movedim(heads_axis, 1)[0]) for part in parts]
    return dict(zip("qkv", rows, strict=True))


def gated(call: Callable[[], torch.Tensor], owner: Any, activation: str) -> Rows:
    """gate = what the activation gets; up = what is left when it answers 1."""
    caught: Rows = {}

    def catch(values: torch.Tensor) -> torch.Tensor:
        caught["gate"] = listed(values)
        return torch.ones_like(values)

    owner._modules.pop(activation, None)
    object.__setattr__(owner, activation, catch)
    caught["up"] = listed(call())
    return caught


def phi3(model: Any) -> dict[str, Rows]:
    layer = model.model.layers[1]
    rows = handed_over(
        layer.self_attn, layer.self_attn.qkv_proj, position_embeddings=unturned(16), attention_mask=None
    )
    return {"q+k+v": rows, "gate+up": mlp(layer.mlp, layer.mlp.gate_up_proj, "down_proj", "activation_fn")}


def glm(model: Any) -> dict[str, Rows]:
    layer = model.model.layers[1]
    return {"gate+up": mlp(layer.mlp, layer.mlp.gate_up_proj, "down_proj", "activation_fn")}


def mlp(module: Any, fused: nn.Module, down: str, activation: str) -> Rows:
    setattr(module, down, nn.Identity())
    width = number_rows(fused)
    return gated(lambda: module(one_input(width)), module, activation)


def gpt2(model: Any) -> dict[str, Rows]:
    attention = model.transformer.h[1].attn
    return {"q+k+v": handed_over(attention, attention.c_attn)}


def gpt_neox(model: Any) -> dict[str, Rows]:
    attention = model.gpt_neox.layers[1].attention
    arguments = {"position_embeddings": unturned(4), "attention_mask": None}
    return {"q+k+v": handed_over(attention, attention.query_key_value, **arguments)}


def bloom(model: Any) -> dict[str, Rows]:
    attention = model.transformer.h[1].self_attention
    return {"q+k+v": by_method(attention._reshape, attention.query_key_value, 1)}


def falcon(model: Any) -> dict[str, Rows]:
    """New decoders hand every head a copy of its group's k and v: each run is kept once."""
    attention = model.transformer.h[1].self_attention
    rows = by_method(attention._split_heads, attention.query_key_value, 2)
    return {"q+k+v": {name: list(dict.fromkeys(listed)) for name, listed in rows.items()}}


def persimmon(model: Any) -> dict[str, Rows]:
    attention = model.model.layers[1].self_attn
    return {"q+k+v": by_method(attention._split_heads, attention.query_key_value, 2)}


def mpt(model: Any) -> dict[str, Rows]:
    attention = model.transformer.blocks[1].attn
    width = number_rows(attention.Wqkv)
    original, calls = torch.matmul, []

    def catch(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        calls.append((left, right))
        return original(left, right)

    torch.matmul = catch
    try:
        attention(one_input(width), torch.zeros(4, 1, 1))
    finally:
        torch.matmul = original
    (query, key), (_, value) = calls
    rows = (query, key.transpose(-1, -2), value)
    return {"q+k+v": {name: listed(part[0]) for name, part in zip("qkv", rows, strict=True)}}


def codegen(model: Any) -> dict[str, Rows]:
    attention = model.transformer.h[1].attn
    caught: Rows = {}

    def catch(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple[Any, None]:
        caught.update(q=listed(query[0]), k=listed(key[0]), v=listed(value[0]))
        return torch.zeros_like(query), None

    object.__setattr__(attention, "_attn", catch)
    width = number_rows(attention.qkv_proj)
    attention(one_input(width), None, position_ids=torch.zeros(1, 1, dtype=torch.long))
    return {"q+v+k": caught}


def gpt_oss(model: Any) -> dict[str, Rows]:
    """Its activation clamps: a gate alone gives an output, an up value only changes that of a gate."""
    experts = model.model.layers[1].mlp.experts
    size = 2 * experts.intermediate_size
    alone = experts._apply_gate(torch.eye(size))
    gate = [int(alone[:, unit].nonzero().item()) for unit in range(size // 2)]
    open_gates = torch.zeros(size)
    open_gates[gate] = 1.0
    changed = experts._apply_gate(open_gates + torch.eye(size)) != experts._apply_gate(open_gates)
    changed[gate] = False
    return {
        "gate+up": {"gate": gate, "up": [int(changed[:, unit].nonzero().item()) for unit in range(size // 2)]}
    }


def llama4(model: Any) -> dict[str, Rows]:
    experts = model.model.layers[1].feed_forward.experts
    _, width, rows = experts.gate_up_proj.shape
    inner = rows // 2
    with torch.no_grad():
        experts.gate_up_proj.zero_()
        experts.gate_up_proj[:, 0] = torch.arange(rows, dtype=torch.float32)
        experts.down_proj = nn.Parameter(torch.eye(inner).expand(4, inner, inner).clone())
    rows_of = gated(lambda: experts(one_input(width)[0].repeat(4, 1)), experts, "act_fn")
    return {"gate+up": {name: listed[:inner] for name, listed in rows_of.items()}}


PROBES: dict[str, Callable[[Any], dict[str, Rows]]] = {
    "phi3": phi3,
    "glm": glm,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "gpt_bigcode": gpt2,
    "gpt_bigcode_heads": gpt2,
    "bloom": bloom,
    "falcon_7b": falcon,
    "falcon_40b": falcon,
    "falcon_rw": falcon,
    "persimmon": persimmon,
    "mpt": mpt,
    "codegen": codegen,
    "gpt_oss": gpt_oss,
    "llama4": llama4,
}
