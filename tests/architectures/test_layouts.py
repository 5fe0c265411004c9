"""Which rows are whose, which way round experts stand, and names that transformers does not write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drupe.errors import UnsupportedError
from drupe.fused import split
from drupe.matrices import Block, Matrix, assemble, list_matrices, windows_of
from drupe.model import open_model
from drupe.readers.interface import Layout, TensorInfo
from drupe.roles import Roles, assign_roles
from drupe.schemes import load_scheme, schemes
from drupe.signals.sketch.spread import sample_experts
from drupe.sources.local import LocalTree
from zoo_files import write_model

Q, K, V = "qkv"


def infos(
    *shapes: tuple[str, tuple[int, ...]], layers: int = 2, layout: Layout = Layout.UNKNOWN
) -> list[TensorInfo]:
    return [
        TensorInfo(
            name.replace("#", str(layer)), shape, "F32", "f", layout if len(shape) > 1 else Layout.UNKNOWN
        )
        for layer in range(layers)
        for name, shape in shapes
    ]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6))
def test_parts_of_grouped_rows_are_a_partition_in_order_of_heads(groups: int, each: int, size: int) -> None:
    heads, rows = groups * each, groups * (each + 2) * size
    parts = split([Q, K, V], "grouped", (rows, 7), (heads * size, None), heads)
    found: dict[str, list[int]] = {}
    for part in parts:
        matrix = Matrix("t", part.rows, 7, part.start, run=part.run, stride=part.stride)
        block = Block(matrix, 0, part.rows, 0, 7)
        stored = np.repeat(np.arange(rows, dtype=np.float32)[:, None], 7, axis=1)
        read = [stored[window.row_start : window.row_stop] for window in windows_of(block, (rows, 7))]
        found[part.name] = assemble(block, read, (rows, 7))[:, 0].astype(int).tolist()
    table = np.arange(rows).reshape(groups, each + 2, size)
    assert found == {
        "q": table[:, :each].ravel().tolist(),
        "k": table[:, each].ravel().tolist(),
        "v": table[:, each + 1].ravel().tolist(),
    }


@given(st.data())
def test_any_block_of_any_layout_is_that_of_the_whole(data: st.DataObject) -> None:
    run, count = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    stride, start = run + data.draw(st.integers(0, 3)), data.draw(st.integers(0, 2))
    columns, turned = data.draw(st.integers(1, 9)), data.draw(st.booleans())
    expert = data.draw(st.sampled_from([None, 0, 2]))
    rows = start + stride * count
    canonical = np.arange(3 * rows * columns, dtype=np.float32).reshape(3, rows, columns)
    stored = np.ascontiguousarray(canonical.swapaxes(1, 2)) if turned else canonical
    matrix = Matrix("t", run * count, columns, start, turned, run=run, stride=stride, expert=expert)
    top = data.draw(st.integers(0, matrix.rows - 1))
    left = data.draw(st.integers(0, columns - 1))
    block = Block(
        matrix,
        top,
        data.draw(st.integers(top + 1, matrix.rows)),
        left,
        data.draw(st.integers(left + 1, columns)),
    )
    tensor = stored[0] if expert is None else stored
    view = tensor.reshape(len(tensor), -1)
    read = [
        view[w.row_start : w.row_stop, w.column_start : w.column_stop]
        for w in windows_of(block, tensor.shape)
    ]
    whole = canonical[expert or 0][[start + k * stride + j for k in range(count) for j in range(run)]]
    expected = whole[block.row_start : block.row_stop, block.column_start : block.column_stop]
    assert np.array_equal(assemble(block, read, tensor.shape), expected)


@pytest.mark.parametrize(
    ("layout", "shape", "heads"),
    [
        ("grouped", (192, 64), None),
        ("grouped", (192, 64), 5),
        ("blocks:5", (192, 64), 4),
        ("stacked", (2, 64), 4),
    ],
)
def test_what_does_not_fit_its_layout_stays_whole(
    layout: str, shape: tuple[int, int], heads: int | None
) -> None:
    (part,) = split([Q, K, V], layout, shape, (64, None), heads)
    assert (part.start, part.rows, part.run, part.name) == (0, shape[0], 0, "q+k+v")


def test_stacked_rows_of_q_are_the_columns_of_o() -> None:
    parts = split([Q, K, V], "stacked", (48 + 2 * 16, 64), (48, None), None)
    assert [(part.name, part.start, part.rows) for part in parts] == [
        ("q", 0, 48),
        ("k", 48, 16),
        ("v", 64, 16),
    ]


def test_up_of_twice_the_width_of_down_is_gate_and_up() -> None:
    assert [part.name for part in split(["up"], "stacked", (192, 64), (None, 96), None)] == ["gate", "up"]
    assert [part.name for part in split(["up"], "stacked", (96, 64), (None, 96), None)] == ["up"]


MIXTURE = (
    ("model.layers.#.input_layernorm.weight", (64,)),
    ("model.layers.#.self_attn.o_proj.weight", (64, 64)),
    ("model.layers.#.mlp.gate.weight", (8, 64)),
)


@pytest.mark.parametrize("turned", [False, True])
def test_the_hidden_width_tells_which_way_round_stacked_experts_stand(turned: bool) -> None:
    shapes = ((4, 64, 96), (4, 48, 64)) if turned else ((4, 96, 64), (4, 64, 48))
    names = ("model.layers.#.mlp.experts.gate_up_proj", "model.layers.#.mlp.experts.down_proj")
    tensors = infos(*MIXTURE, *zip(names, shapes, strict=True))
    found = {m.label: m for m in list_matrices(tensors, assign_roles(tensors), 4)}
    for label, shape in (("1.experts.3.gate", (48, 64)), ("1.experts.3.down", (64, 48))):
        matrix = found[label]
        assert (matrix.rows, matrix.columns, matrix.transposed, matrix.expert) == (*shape, turned, 3)


def test_experts_beyond_the_first_few_are_no_part_of_a_sample() -> None:
    names = [
        f"model.layers.#.mlp.experts.{k}.{p}_proj.weight" for k in range(8) for p in ("gate", "up", "down")
    ]
    tensors = infos(*MIXTURE, *((name, (64, 64)) for name in names))
    matrices = list(list_matrices(tensors, assign_roles(tensors), 4))
    assert {m.role for m in sample_experts(matrices)} == {
        *("o", "router"),
        *(f"experts.{k}.{p}" for k in range(4) for p in ("gate", "up", "down")),
    }


def test_a_stack_that_claims_more_experts_than_any_model_is_one_matrix() -> None:
    up = ("model.layers.#.block_sparse_moe.input_linear.weight", (1 << 17, 192, 64))
    tensors = infos(*MIXTURE, up)
    matrices = [m for m in list_matrices(tensors, assign_roles(tensors), 4) if "input_linear" in m.tensor]
    assert len(matrices) < 3 * (1 << 17)
    assert [m.expert for m in matrices if m.layer == 1] == [None, None]


def test_experts_of_unknown_names_are_experts() -> None:
    names = [f"net.blocks.#.moe.{k}.up_proj.w" for k in range(3)]
    tensors = infos(*((name, (96, 64)) for name in names), ("net.blocks.#.mix.3.w", (64, 64)))
    roles = assign_roles(tensors)
    assert roles.scheme is None
    assert {f"experts.{k}.up" for k in range(3)} < {m.role for m in list_matrices(tensors, roles)}


def test_kernels_of_flax_are_turned_by_what_they_are() -> None:
    norm = ("transformer.h.#.ln_1.scale", (64,))
    for name, shape in (
        (
            "transformer.h.#.mlp.c_fc.kernel",
            (96, 64),
        ),  # FlaxConv1D: output by input, unlike all other kernels
        ("model.layers.#.mlp.up_proj.kernel", (64, 96)),
    ):
        tensors = infos(norm, (name, shape), layout=Layout.IN_OUT)
        tensors += infos(("model.layers.#.input_layernorm.weight", (64,)))
        (up, _) = [m for m in list_matrices(tensors, assign_roles(tensors)) if m.role == "up"]
        assert (up.rows, up.columns) == (96, 64)


NAMES = {
    "mistral": "layers.#.attention.wq.weight layers.#.attention.wo.weight layers.#.feed_forward.w2.weight",
    "mistral_moe": "layers.#.attention.wq.weight layers.#.feed_forward.experts.0.w1.weight"
    " layers.#.feed_forward.experts.1.w1.weight layers.#.feed_forward.gate.weight",
    "internlm": "model.layers.#.self_attn.q_proj.bias model.layers.#.self_attn.o_proj.bias",
    "megatron_first": "language_model.transformer.layers.#.attention.query_key_value.weight"
    " language_model.embedding.word_embeddings.weight",
    "megatron_core": "decoder.layers.#.self_attention.linear_qkv.weight decoder.layers.#.mlp.linear_fc1.weight",
    "phi_mixformer": "transformer.h.#.mixer.Wqkv.weight transformer.h.#.mlp.fc1.weight",
    "olmo_original": "model.transformer.blocks.#.att_proj.weight model.transformer.blocks.#.ff_proj.weight",
    "openclip": "visual.transformer.resblocks.#.attn.in_proj_weight visual.transformer.resblocks.#.mlp.c_fc.weight",
    "timm_vit": "vpm.blocks.#.attn.qkv.weight vpm.blocks.#.mlp.fc1.weight",
    "internvit": "vision_model.encoder.layers.#.attn.qkv.weight vision_model.encoder.layers.#.mlp.fc1.weight",
    "baichuan": "model.layers.#.self_attn.W_pack.weight model.layers.#.mlp.up_proj.weight",
    "gguf": "blk.#.attn_q_a.weight blk.#.ffn_up_exps.weight blk.#.ffn_gate_inp.weight blk.#.ffn_up.3.weight",
}


@pytest.mark.parametrize("scheme", NAMES)
def test_names_that_no_installed_library_writes_are_known(scheme: str) -> None:
    tensors = infos(*((name, (64, 64)) for name in NAMES[scheme].split()))
    roles = assign_roles(tensors)
    assert roles.scheme is not None
    assert roles.scheme.name == scheme
    assert roles.by_tensor.keys() == {info.name for info in tensors}
    assert {role.layer for role in roles.by_tensor.values()} - {None} == {0, 1}


def test_the_configuration_decides_between_schemes_of_the_same_names_only() -> None:
    names = [f"model.layers.#.mlp.{p}_proj.weight" for p in ("gate", "up", "down")]
    tensors = infos(*((name, (64, 64)) for name in names))

    def scheme(*types: str) -> str:
        found: Roles = assign_roles(tensors, types)
        assert found.scheme is not None
        return found.scheme.name

    assert (scheme(), scheme("gemma"), scheme("gpt_bigcode")) == ("llama", "gemma", "llama")


@pytest.mark.parametrize(
    "table",
    [
        {"name": "x", "title": "x", "roles": {}},
        {"name": "x", "title": "x", "provenance": "y", "roles": {}, "colour": "red"},
        {"name": "x", "title": "x", "provenance": "y", "roles": "a.weight: up"},
    ],
)
def test_a_malformed_scheme_is_refused(table: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"x|not a pattern"):
        load_scheme(table)


def test_the_shipped_schemes_say_what_they_rest_on_and_fuse_what_they_have() -> None:
    for scheme in schemes():
        assert scheme.title
        assert set(scheme.fused) <= set(scheme.roles.values()) | {"q+k+v"}, scheme.name


def test_one_slice_of_a_tensor_parallel_model_is_refused_with_its_reason(tmp_path: Path) -> None:
    for rank in ("00", "01"):
        write_model(tmp_path / f"mp_rank_{rank}", {"w": np.ones((8, 32), np.float32)})
    with pytest.raises(UnsupportedError, match="each of 2 files holds a slice"):
        open_model(LocalTree(tmp_path))
    (tmp_path / "mp_rank_01" / "model.safetensors").unlink()
    assert open_model(LocalTree(tmp_path)).matrices
