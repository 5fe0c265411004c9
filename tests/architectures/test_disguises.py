"""End to end: a model fused and stacked into another family's layout is still found, a stranger is not."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from architectures.disguises import FAMILIES, disguise
from drupe import fingerprint
from drupe.model import Block, open_model
from drupe.sources.local import LocalTree
from drupe.workflows import compare
from zoo import Edit, noise, rename_all
from zoo_exact import fold_gains, permute_units, rotate
from zoo_files import MODELS, Checkpoint, read_model, save

DENSE = ("phi3", "internlm2", "megatron", "chatglm", "qwen")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disguises")


@cache
def r0() -> Checkpoint:
    return read_model("r0")


def compared(suspect: Path, source: Path) -> tuple[str, dict[str, Any]]:
    report = dict(compare(str(suspect), str(source)))
    return report["verdict"]["label"], report["components"]["weights"]


def kinds(weights: dict[str, Any]) -> list[str]:
    return [change["kind"] for change in weights["transformations"]]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_disguise_has_the_scheme_and_the_values_of_its_family(family: str, folder: Path) -> None:
    model = open_model(LocalTree(save(disguise(r0(), family), folder / family)))
    assert model.roles.scheme is not None
    assert model.roles.scheme.name == family
    plain = open_model(LocalTree(MODELS / "r0"))
    mine = {(m.role or "").replace("experts.0.", ""): m for m in model.matrices if m.layer == 2}
    for matrix in plain.matrices:
        if matrix.layer == 2:
            assert np.array_equal(model.load(mine[str(matrix.role)]), plain.load(matrix))


@pytest.mark.parametrize("family", DENSE)
def test_a_fused_copy_is_a_copy(family: str, folder: Path) -> None:
    suspect = save(disguise(r0(), family), folder / family)
    for one, other in ((suspect, MODELS / "r0"), (MODELS / "r0", suspect)):
        label, weights = compared(one, other)
        assert (label, weights["relation"], kinds(weights)) == ("copy", "equivalent", ["renamed"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fused_stranger_is_not_related(family: str, folder: Path) -> None:
    label, weights = compared(save(disguise(r0(), family), folder / family), MODELS / "r1")
    assert label in ("same_design", "inconclusive")
    assert weights["relation"] in ("independent", "inconclusive")
    assert not weights["transformations"]


def test_a_fused_fine_tune_is_found_in_the_fused_source(folder: Path) -> None:
    tuned = disguise(read_model("r0_ft"), "internlm2")
    label, weights = compared(save(tuned, folder / "tuned"), save(disguise(r0(), "phi3"), folder / "phi3"))
    assert (label, weights["relation"]) == ("derivative", "derived")


def test_opaque_names_are_read_in_the_layout_of_the_source(folder: Path) -> None:
    source = save(disguise(r0(), "phi3"), folder / "phi3")
    label, weights = compared(save(rename_all(disguise(r0(), "phi3")), folder / "opaque"), source)
    assert (label, weights["relation"]) == ("copy", "equivalent")


def test_experts_are_compared_with_experts_however_they_are_stored(folder: Path) -> None:
    source = save(disguise(r0(), "mixtral"), folder / "mixtral")
    label, weights = compared(save(disguise(r0(), "gpt_oss"), folder / "gpt_oss"), source)
    assert (label, weights["relation"], kinds(weights)) == ("copy", "equivalent", ["renamed"])
    label, weights = compared(save(noise(disguise(r0(), "gpt_oss"), sigma=0.1), folder / "noisy"), source)
    assert "gaussian_noise" in kinds(weights)


def test_experts_in_another_order_are_the_same_experts(folder: Path) -> None:
    dice = np.random.default_rng(0)
    model = disguise(r0(), "mixtral")
    distinct = {
        name: dice.normal(0, 0.05, values.shape).astype(np.float32) if ".experts." in name else values
        for name, values in model.tensors.items()
    }
    moved = {
        re.sub(r"experts\.(\d)", lambda hit: f"experts.{(int(hit[1]) + 1) % 3}", name): values
        for name, values in distinct.items()
    }
    label, weights = compared(
        save(model.with_tensors(moved), folder / "moved"),
        save(model.with_tensors(distinct), folder / "in_order"),
    )
    assert (label, weights["relation"]) == ("copy", "equivalent")


@pytest.mark.parametrize(("edit", "kind"), [(rotate, "rotated"), (permute_units, "permuted")])
@pytest.mark.parametrize("family", ["internlm2", "mixtral"])
def test_what_hides_a_plain_copy_hides_no_fused_one(edit: Edit, kind: str, family: str, folder: Path) -> None:
    plain = fold_gains(r0())  # an expert must not depend on which layer's norm it stands behind
    source = save(disguise(plain, family), folder / f"{family}_plain")
    label, weights = compared(
        save(disguise(edit(plain, seed=3), family), folder / f"{family}_{kind}"), source
    )
    assert (label, weights["relation"]) == ("copy", "equivalent")
    assert kind in kinds(weights)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_a_dense_model_is_found_in_the_mixture_made_of_it(family: str, folder: Path) -> None:
    label, weights = compared(save(disguise(r0(), family), folder / family), MODELS / "r0")
    assert label == "derivative"
    assert weights["relation"] == "partial"


def test_without_the_number_of_heads_grouped_rows_stay_together(folder: Path) -> None:
    checkpoint = disguise(r0(), "internlm2")
    config = {key: value for key, value in checkpoint.config.items() if "heads" not in key}
    model = open_model(
        LocalTree(save(Checkpoint(checkpoint.tensors, config, checkpoint.tokenizer), folder / "bare"))
    )
    roles = {matrix.role for matrix in model.matrices if matrix.layer == 1}
    assert roles == {"q+k+v", "o", "gate", "up", "down"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fingerprint_keeps_which_rows_a_matrix_is(family: str, folder: Path) -> None:
    model = open_model(LocalTree(save(disguise(r0(), family), folder / family)))
    made = fingerprint.extract(model)
    read = fingerprint.from_bytes(fingerprint.to_bytes(made), family)
    assert set(read.weights.matrices) == set(made.weights.matrices) == set(model.matrices)


@pytest.mark.parametrize("dtype", [None, gguf.GGMLQuantizationType.Q8_0])
def test_stacked_experts_of_gguf_are_read_one_by_one(
    dtype: gguf.GGMLQuantizationType | None, tmp_path: Path
) -> None:
    dice = np.random.default_rng(0)
    shapes = {"ffn_gate_exps": (4, 96, 64), "ffn_up_exps": (4, 96, 64), "ffn_down_exps": (4, 64, 96)}
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "qwen3moe")
    stored = {}
    for name, shape in ((f"blk.{k}.{n}.weight", s) for k in range(2) for n, s in shapes.items()):
        values = dice.standard_normal(shape).astype(np.float32)
        raw = values if dtype is None else gguf.quants.quantize(values, dtype)
        stored[name] = values if dtype is None else gguf.quants.dequantize(raw, dtype)
        writer.add_tensor(name, raw, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = open_model(LocalTree(tmp_path))
    assert len(model.matrices) == 2 * 4 * 3
    for matrix in model.matrices:
        whole = stored[matrix.tensor][matrix.expert]
        block = Block(matrix, 3, 40, 5, 50)
        assert np.array_equal(model.load(matrix), whole)
        assert np.array_equal(model.read([block])[0], whole[3:40, 5:50])


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("suspect", ["r0", "r1"])
def test_fused_matrices_without_a_configuration_are_split_like_the_other_side(
    family: str, suspect: str, folder: Path
) -> None:
    """The number of heads is in the configuration only; without it an exact copy read `partial`."""
    bare = save(disguise(read_model(suspect), family), folder / f"bare-{family}-{suspect}")
    (bare / "config.json").unlink()
    source = save(disguise(r0(), family), folder / f"whole-{family}")
    for one, other in ((bare, source), (source, bare)):
        label, weights = compared(one, other)
        if suspect == "r0":
            assert (label, weights["relation"], weights["shared_fraction"]) == ("copy", "identical", 1.0)
        else:
            assert label not in ("copy", "derivative")
