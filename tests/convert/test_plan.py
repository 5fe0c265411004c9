"""Which tensor becomes which: pure, on the names and shapes of shipped schemes and of small models."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from drupe.convert import blueprint
from drupe.convert.blueprint import Blueprint
from drupe.convert.pieces import Inventory, inventory
from drupe.convert.plan import Plan, check_dtypes, plan
from drupe.errors import UnsupportedError, UsageError
from drupe.readers.interface import TensorInfo
from drupe.roles import assign_roles

HEADS = 4


def taken_apart(target: Blueprint) -> tuple[Inventory, int | None]:
    """A scheme as if it were a model."""
    heads = target.config.canonical.get("num_attention_heads") if target.config else None
    count = heads if isinstance(heads, int) else None
    return inventory(list(target.tensors.values()), target.roles, count), count


def converted(first: str, second: str) -> Plan:
    parts, heads = taken_apart(blueprint.of_scheme(first))
    return plan(parts, blueprint.of_scheme(second), heads)


def from_names(names: Sequence[tuple[str, tuple[int, ...]]]) -> Inventory:
    infos = [TensorInfo(name, shape, "F32", "f") for name, shape in names]
    return inventory(infos, assign_roles(infos), HEADS)


@pytest.mark.parametrize("name", blueprint.names())
def test_a_scheme_onto_itself_copies_every_tensor_under_its_own_name(name: str) -> None:
    made = converted(name, name)
    assert all(output.is_copy and output.tensors == (output.name,) for output in made.outputs)
    known = {output.name for output in made.outputs} | set(made.dropped)
    assert known == set(blueprint.of_scheme(name).tensors)


@pytest.mark.parametrize(
    ("first", "second"), [("llama", "phi3"), ("codegen", "gptj"), ("mixtral", "granitemoe")]
)
def test_fused_and_split_are_each_others_inverse(first: str, second: str) -> None:
    there, back = converted(first, second), converted(second, first)
    wanted = {name: info.shape for name, info in blueprint.of_scheme(second).tensors.items()}
    assert {output.name: output.shape for output in there.outputs} == wanted
    assert {output.name for output in back.outputs} == set(blueprint.of_scheme(first).tensors)
    assert not all(output.is_copy for output in there.outputs)


def test_what_has_no_place_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"have no place in gpt2: .*gate_proj"):
        converted("llama", "gpt2")
    with pytest.raises(UnsupportedError, match=r"asked for by qwen2: .*bias, which the model does not have"):
        converted("llama", "qwen2")


def test_an_unknown_scheme_says_which_there_are() -> None:
    with pytest.raises(UsageError, match="no scheme is called 'llamma'") as caught:
        blueprint.of_scheme("llamma")
    assert "llama" in caught.value.hint


def test_layers_that_count_from_one_are_counted_as_the_target_does() -> None:
    names = [(info.name, info.shape) for info in blueprint.of_scheme("llama").tensors.values()]
    shifted = [
        (".".join(str(int(part) + 1) if part.isdecimal() else part for part in name.split(".")), shape)
        for name, shape in names
    ]
    made = plan(from_names(shifted), blueprint.of_scheme("llama"), HEADS)
    assert {output.name for output in made.outputs} == {name for name, _ in names}
    first = next(output for output in made.outputs if output.name == "model.layers.0.mlp.up_proj.weight")
    assert first.tensors == ("model.layers.1.mlp.up_proj.weight",)


def test_another_depth_and_width_than_the_target_has() -> None:
    names = [(f"model.layers.{k}.{rest}", shape) for k in range(7) for rest, shape in _llama_layer(96, 256)]
    tables = [
        ("model.embed_tokens.weight", (500, 96)),
        ("model.norm.weight", (96,)),
        ("lm_head.weight", (500, 96)),
    ]
    made = plan(from_names([*tables, *names]), blueprint.of_scheme("phi3"), HEADS)
    shapes = {output.name: output.shape for output in made.outputs}
    assert shapes["model.layers.6.self_attn.qkv_proj.weight"] == (96 + 2 * 48, 96)
    assert shapes["model.layers.6.mlp.gate_up_proj.weight"] == (512, 96)


def _llama_layer(hidden: int, inner: int) -> list[tuple[str, tuple[int, ...]]]:
    attention = [("q", hidden), ("k", hidden // 2), ("v", hidden // 2), ("o", hidden)]
    return [
        *((f"self_attn.{part}_proj.weight", (rows, hidden)) for part, rows in attention),
        *((f"mlp.{part}_proj.weight", (inner, hidden)) for part in ("gate", "up")),
        ("mlp.down_proj.weight", (hidden, inner)),
        ("input_layernorm.weight", (hidden,)),
        ("post_attention_layernorm.weight", (hidden,)),
    ]


def test_buffers_are_left_out_where_the_target_has_none() -> None:
    names = [(info.name, info.shape) for info in blueprint.of_scheme("llama").tensors.values()]
    buffers = [(f"model.layers.{k}.self_attn.rotary_emb.inv_freq", (8,)) for k in range(3)]
    made = plan(from_names([*names, *buffers]), blueprint.of_scheme("llama"), HEADS)
    assert set(made.dropped) == {name for name, _ in buffers}


def test_one_tensor_cannot_hold_two_types() -> None:
    made = converted("llama", "phi3")
    tensors = dict(blueprint.of_scheme("llama").tensors)
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name] = TensorInfo(name, tensors[name].shape, "BF16", "f")
    with pytest.raises(UnsupportedError, match=r"qkv_proj.weight would hold BF16 and F32"):
        check_dtypes(made, tensors)


def test_a_guessed_role_moves_nothing() -> None:
    names = [(f"net.{k}.attn.w{part}.kernel_x", (64, 64)) for k in range(4) for part in "abcd"]
    parts = from_names(names)
    assert not parts.pieces
    assert len(parts.unnamed) == 16
