"""Names -> roles: each published scheme, foreign prefixes, inference for unknown names, and hostile names."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

import zoo
from drupe import roles as module
from drupe.readers.interface import TensorInfo
from drupe.roles import Role, Roles, assign_roles, split_name
from drupe.schemes import schemes


def infos(names: Iterable[str], shape: tuple[int, ...] = (64, 64)) -> list[TensorInfo]:
    return [TensorInfo(name, shape, "F32", "f") for name in names]


def layers(*patterns: str, count: int = 2, first: int = 0) -> list[str]:
    return [pattern.replace("#", str(layer)) for layer in range(first, first + count) for pattern in patterns]


def depth(roles: Roles) -> int:
    return len({role.layer for role in roles.by_tensor.values()} - {None})


LLAMA = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
FAMILIES: dict[str, tuple[list[str], str, str]] = {
    "llama": (
        layers(*(f"model.layers.#.{n}.weight" for n in LLAMA + MLP)),
        "model.layers.1.mlp.up_proj.weight",
        "1.up",
    ),
    "yi_v0": (
        layers(*(f"model.layers.#.{n}.weight" for n in (*LLAMA, *MLP, "ln1", "ln2"))),
        "model.layers.0.ln1.weight",
        "0.norm1",
    ),
    "qwen2": (
        layers(
            *(f"model.layers.#.{n}.weight" for n in LLAMA + MLP),
            *(f"model.layers.#.{n}.bias" for n in LLAMA[:3]),
        ),
        "model.layers.1.self_attn.q_proj.bias",
        "1.q_bias",
    ),
    "qwen3": (
        layers(*(f"model.layers.#.{n}.weight" for n in (*LLAMA, "self_attn.q_norm", "self_attn.k_norm"))),
        "model.layers.1.self_attn.k_proj.weight",
        "1.k",
    ),
    "gpt2": (
        layers(
            "h.#.attn.c_attn.weight", "h.#.attn.c_proj.weight", "h.#.mlp.c_fc.weight", "h.#.mlp.c_proj.weight"
        ),
        "h.1.attn.c_attn.weight",
        "1.q+k+v",
    ),
    "bert": (
        layers(
            "bert.encoder.layer.#.attention.self.query.weight",
            "bert.encoder.layer.#.attention.self.key.weight",
            "bert.encoder.layer.#.intermediate.dense.weight",
            "bert.encoder.layer.#.output.dense.weight",
        ),
        "bert.encoder.layer.1.intermediate.dense.weight",
        "1.up",
    ),
    "gguf": (
        layers("blk.#.attn_q.weight", "blk.#.attn_k.weight", "blk.#.ffn_up.weight", "blk.#.ffn_down.weight"),
        "blk.1.ffn_down.weight",
        "1.down",
    ),
    "t5": (
        layers(
            "encoder.block.#.layer.0.SelfAttention.q.weight",
            "encoder.block.#.layer.0.SelfAttention.k.weight",
            "encoder.block.#.layer.1.DenseReluDense.wo.weight",
        ),
        "encoder.block.1.layer.1.DenseReluDense.wo.weight",
        "1.encoder.down",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_scheme_is_recognised(family: str) -> None:
    names, example, label = FAMILIES[family]
    roles = assign_roles(infos(names))
    assert roles.scheme is not None
    assert roles.scheme.name == family
    assert roles.by_tensor[example].label == label
    assert depth(roles) == 2


@pytest.mark.parametrize("prefix", ["", "language_model.", "base_model.model.", "a.b.c."])
def test_a_foreign_prefix_does_not_hide_the_scheme(prefix: str) -> None:
    roles = assign_roles(infos(prefix + name for name in FAMILIES["llama"][0]))
    assert roles.scheme is not None
    assert roles.by_tensor[f"{prefix}model.layers.0.mlp.gate_proj.weight"] == Role("gate", 0)


def test_a_second_tower_of_the_same_names_leaves_the_first_alone() -> None:
    text = [f"text.{name}" for name in layers(*(f"layers.#.{n}.weight" for n in LLAMA + MLP), count=4)]
    vision = [f"vision.{name}" for name in layers("layers.#.self_attn.q_proj.weight", count=2)]
    roles = assign_roles(infos(text + vision))
    assert roles.by_tensor["text.layers.3.self_attn.q_proj.weight"] == Role("q", 3)
    assert depth(roles) == 4


@pytest.mark.parametrize(
    ("name", "family"), [("r0", "llama"), ("q0", "qwen2"), ("g0", "gpt2"), ("b0", "bert")]
)
def test_trained_models(name: str, family: str) -> None:
    model = zoo.read_model(name)
    roles = assign_roles(TensorInfo(n, v.shape, "BF16", "f") for n, v in model.tensors.items())
    assert roles.scheme is not None
    assert roles.scheme.name == family
    assert len(roles.by_tensor) >= 0.9 * len(model.tensors)


def test_unknown_names_are_grouped_by_repetition_and_shape() -> None:
    shapes = {"trunk.#.ffn_in.w": (256, 64), "trunk.#.ffn_out.w": (64, 256), "trunk.#.mix.w": (64, 64)}
    tensors = [TensorInfo(p.replace("#", str(i)), s, "F32", "f") for p, s in shapes.items() for i in range(3)]
    roles = assign_roles([*tensors, *infos(["head.w", "t_9f3a", "odd.7.w"])])
    assert roles.scheme is None
    assert depth(roles) == 3
    assert {role.layer for name, role in roles.by_tensor.items() if name.startswith("trunk")} == {0, 1, 2}
    assert not {"head.w", "t_9f3a", "odd.7.w"} & roles.by_tensor.keys()


def test_repetition_with_changing_shapes_or_gaps_is_no_layer() -> None:
    growing = [TensorInfo(f"conv.{i}.w", (8 << i, 8), "F32", "f") for i in range(3)]
    gaps = infos(["x.0.w", "x.5.w", "x.9.w"])
    assert not assign_roles([*growing, *gaps]).by_tensor


@pytest.mark.parametrize("digit", ["²", "①", "٣", "1" * 4000, "-1", "1e5", "00000000001"])
def test_odd_numbers_in_names_are_no_crash(digit: str) -> None:
    names = [f"model.layers.{digit}.self_attn.q_proj.weight", *FAMILIES["llama"][0]]
    roles = assign_roles(infos(names))
    assert roles.scheme is not None
    assert roles.by_tensor["model.layers.0.mlp.up_proj.weight"] == Role("up", 0)


@given(st.lists(st.text(st.sampled_from("ab.0129_²{}\\/é"), max_size=30), max_size=12, unique=True))
def test_any_names_are_assigned_or_left_out(names: list[str]) -> None:
    roles = assign_roles(infos(names))
    assert roles.by_tensor.keys() <= set(names)


def test_no_tensor_at_all() -> None:
    roles = assign_roles([])
    assert (roles.scheme, dict(roles.by_tensor)) == (None, {})


def test_names_and_labels() -> None:
    assert split_name("blk.7.ffn_up_exps.12.w") == ("blk.{}.ffn_up_exps.{}.w", (7, 12))
    assert split_name("conv1d.w2") == ("conv1d.w2", ())
    assert Role("up", 3, 5).label == "3.up.5"
    assert Role("embed").label == "embed"


def test_the_scheme_files_are_complete() -> None:
    found = {scheme.name: scheme for scheme in schemes()}
    assert set(FAMILIES) <= found.keys()
    assert found["gpt2"].transposed
    assert all(scheme.title and scheme.roles for scheme in found.values())


def tower(prefix: str, count: int, width: int = 64) -> list[TensorInfo]:
    names = layers(*(f"{prefix}layers.#.{n}.weight" for n in LLAMA + MLP), count=count)
    return infos([*names, f"{prefix}norm.weight"], (width, width))


def test_a_second_tower_of_the_same_names_has_roles_of_its_own() -> None:
    roles = assign_roles([*tower("vision.model.", 3, 32), *tower("model.", 4)])
    assert roles.by_tensor["model.layers.2.mlp.up_proj.weight"].label == "2.up"
    assert roles.by_tensor["vision.model.layers.2.mlp.up_proj.weight"].label == "2.tower2.up"
    assert roles.by_tensor["vision.model.norm.weight"].label == "tower2.final_norm"
    labels = [role.label for role in roles.by_tensor.values()]
    assert len(labels) == len(set(labels))


def test_the_largest_tower_speaks_for_the_model_whatever_its_prefix_is_called() -> None:
    one = assign_roles([*tower("a.model.", 2), *tower("z.model.", 5)]).by_tensor
    other = assign_roles([*tower("z.model.", 2), *tower("a.model.", 5)]).by_tensor
    assert one["z.model.layers.4.mlp.up_proj.weight"] == other["a.model.layers.4.mlp.up_proj.weight"]
    assert one["a.model.layers.1.mlp.up_proj.weight"] == other["z.model.layers.1.mlp.up_proj.weight"]


def test_a_prefix_is_a_parent_by_whole_components_only() -> None:
    names = [*tower("model.", 4), *infos(["model2.norm.weight", "mod.norm.weight"])]
    roles = assign_roles([TensorInfo("x." + i.name, i.shape, i.dtype, "f") for i in names]).by_tensor
    assert roles["x.model.norm.weight"].name == "final_norm"
    assert [r.name for r in roles.values()].count("final_norm") == 1


def test_inference_does_not_give_the_roles_of_the_known_tower_again() -> None:
    odd = layers("vision.blocks.#.mlp.up_proj.weight", "vision.blocks.#.attn.q_proj.weight", count=3)
    roles = assign_roles([*tower("model.", 4), *infos(odd)]).by_tensor
    labels = [role.label for role in roles.values()]
    assert len(labels) == len(set(labels))


@pytest.mark.parametrize(
    "pattern", ["p#.layers.0.self_attn.q_proj.weight", "p#.encoder.block.0.layer.0.SelfAttention.q.weight"]
)
def test_a_prefix_per_tensor_is_looked_up_once_for_all(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of a stranger's prefixes is that of their characters: what follows them is understood once."""
    served = module._served
    calls: list[object] = []

    def counted(*arguments: object) -> object:
        calls.append(arguments)
        return served(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_served", counted)
    roles = assign_roles(infos(pattern.replace("#", str(number)) for number in range(3000)))
    assert 1 <= len(calls) <= 2
    assert set(roles.stacks) <= {""}
