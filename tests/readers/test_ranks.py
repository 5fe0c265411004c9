"""Tensor-parallel pieces: joined to the values of the whole, and refused when they do not belong together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drupe import workflows
from drupe.errors import FormatError, UnsupportedError
from drupe.readers.interface import Absent, WeightFile, Window
from drupe.readers.ranks import rank_files
from drupe.readers.weights import open_weights
from drupe.sources.local import LocalTree
from torch_writer import write_torch
from zoo_files import Checkpoint, Tensors, read_model, save, write_safetensors

META = {
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def meta_name(name: str) -> str:
    for theirs, ours in META.items():
        name = name.replace(theirs, ours)
    return name.removeprefix("model.").replace("embed_tokens", "tok_embeddings")


def split(model: Checkpoint, ranks: int, *, by_rows: bool) -> list[Tensors]:
    """As Meta saves: outputs by rows, inputs of wo and w2 by columns, embeddings either way, norms in every rank."""
    pieces: list[Tensors] = [{} for _ in range(ranks)]
    for name, values in model.tensors.items():
        name = meta_name(name)
        columns = any(part in name for part in ("wo", "w2")) or ("tok_embeddings" in name and not by_rows)
        parts = [values] * ranks if values.ndim == 1 else np.split(values, ranks, axis=1 if columns else 0)
        for piece, part in zip(pieces, parts, strict=True):
            piece[name] = np.ascontiguousarray(part)
    return pieces


def write(folder: Path, model: Checkpoint, ranks: int, kind: str, *, by_rows: bool = False) -> Path:
    folder.mkdir(parents=True)
    for rank, tensors in enumerate(split(model, ranks, by_rows=by_rows)):
        if kind == "safetensors":
            write_safetensors(folder / f"consolidated.{rank:02d}.safetensors", tensors, "fp32")
        else:
            write_torch(model.with_tensors(tensors), folder, f"consolidated.{rank:02d}.pth")
    return folder


def opened(folder: Path) -> WeightFile:
    file = open_weights(LocalTree(folder))
    assert not isinstance(file, Absent)
    return file


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> WeightFile:
    return opened(write(tmp_path_factory.mktemp("ranks") / "m", read_model("r0"), 4, "safetensors"))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_window_is_that_of_the_whole(four: WeightFile, data: st.DataObject) -> None:
    model = read_model("r0")
    original = data.draw(st.sampled_from(sorted(model.tensors)))
    values = np.atleast_2d(model.tensors[original])
    name = meta_name(original)
    assert four.tensors[name].matrix_shape == values.shape
    top, left = data.draw(st.integers(0, values.shape[0])), data.draw(st.integers(0, values.shape[1]))
    stop = data.draw(st.integers(top, values.shape[0])), data.draw(st.integers(left, values.shape[1]))
    found = four.read([Window(name, top, stop[0], left, stop[1])])[0]
    assert np.array_equal(found, values[top : stop[0], left : stop[1]])


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
@pytest.mark.parametrize("by_rows", [True, False])
def test_joined_ranks_are_the_same_model(kind: str, by_rows: bool, tmp_path: Path) -> None:
    whole = save(replace(read_model("r0"), dtype="fp32"), tmp_path / "whole")
    report = workflows.compare(
        str(write(tmp_path / "ranks", read_model("r0"), 2, kind, by_rows=by_rows)), str(whole)
    )
    assert report["verdict"]["label"] == "copy"  # type: ignore[index,call-overload]
    other = write(tmp_path / "other", read_model("r1"), 2, kind, by_rows=by_rows)
    assert workflows.compare(str(other), str(whole))["verdict"]["label"] == "same_design"  # type: ignore[index,call-overload]


def test_megatron_folders_are_ranks() -> None:
    names = [
        f"iter_1/mp_rank_{rank:02d}/{file}.pt" for rank in (1, 0) for file in ("model_optim_rng", "rng_state")
    ]
    assert rank_files(names) == [f"iter_1/mp_rank_0{rank}/model_optim_rng.pt" for rank in (0, 1)]
    assert rank_files(["consolidated.00.pth", "params.json"]) == []


def test_ranks_that_do_not_belong_together(tmp_path: Path) -> None:
    pieces = split(read_model("r0"), 2, by_rows=True)
    with pytest.raises(FormatError, match="numbered"):
        rank_files(["consolidated.00.pth", "consolidated.02.pth"])
    missing = {name: values for name, values in pieces[1].items() if "w2" not in name}
    smaller = {name: values[:-1] if "w1" in name else values for name, values in pieces[1].items()}
    odd = [{**piece, "x.weight": np.full((7, 5), rank, np.float32)} for rank, piece in enumerate(pieces)]
    for case, error, says in (
        ([pieces[0], missing], FormatError, "not in every rank"),
        ([pieces[0], smaller], FormatError, "other shapes"),
        (odd, UnsupportedError, "hidden width"),
    ):
        for rank, tensors in enumerate(case):
            write_safetensors(tmp_path / f"consolidated.{rank:02d}.safetensors", tensors, "fp32")
        with pytest.raises(error, match=says):
            open_weights(LocalTree(tmp_path))


def test_a_rank_that_was_named_brings_the_others(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", read_model("r0"), 2, "torch")
    assert opened(folder / "consolidated.01.pth").tensors == opened(folder).tensors


@pytest.mark.parametrize(
    "names", [("mp_rank_00_000/m.pt", "mp_rank_00_001/m.pt"), ("tp_rank_00/m.pt", "tp_rank_01/m.pt")]
)
def test_pieces_that_are_not_joined_are_refused(names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir()
        write_torch(read_model("g0"), (tmp_path / name).parent, "m.pt")
    with pytest.raises(UnsupportedError, match="slice of every tensor"):
        open_weights(LocalTree(tmp_path))
