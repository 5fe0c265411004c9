"""Adapters as weight files: values of peft and diffusers themselves, windows, names, and lies."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from drupe.errors import DrupeError, FormatError, UnsupportedError, UsageError
from drupe.model import Model, open_model, with_adapter
from drupe.readers.adapters import AdapterFile, AppliedFile
from drupe.readers.adapters.fit import Outcome, fit
from drupe.readers.adapters.keys import parse
from drupe.readers.adapters.settings import Settings, from_config
from drupe.readers.interface import Absent, TensorInfo, WeightFile, Window
from drupe.sources.locator import open_tree

ADAPTERS = Path(__file__).parents[1] / "adapters"
MODELS = Path(__file__).parents[1] / "models"
STEP = 31
BASES = {
    "lora": "r0", "rslora_patterns": "r0", "dora": "r0", "ia3": "r0", "loha": "r0", "ia3_bias": "q0",
    "saved_modules": "q0", "embeddings": "w0", "embeddings_dora": "w0", "gpt2": "g0", "gpt2_dora": "g0",
    "gpt2_ia3": "g0", "conv": "base_conv", "conv_dora": "base_conv",
    "pipeline_diffusers": "pipeline", "pipeline_kohya": "pipeline",
}  # fmt: skip
Arrays = Mapping[str, np.ndarray]


def opened(path: Path) -> Model:
    return open_model(open_tree(str(path), offline=True))


def base_of(name: str) -> Path:
    base = BASES[name]
    return ADAPTERS / base if (ADAPTERS / base).is_dir() else MODELS / base


def whole(file: WeightFile, name: str) -> np.ndarray:
    rows, columns = file.tensors[name].matrix_shape
    return file.read([Window(name, 0, rows, 0, columns)])[0]


def adapter_of(path: Path) -> AdapterFile:
    weights = opened(path).weights
    assert isinstance(weights, AdapterFile)
    return weights


def written(folder: Path, tensors: Arrays, config: Mapping[str, object] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "adapter_model.safetensors")
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def lora(module: str = "up", rank: int = 2, rows: int = 8, columns: int = 12) -> dict[str, np.ndarray]:
    random = np.random.default_rng(len(module))
    start = f"base_model.model.{module}"
    return {
        f"{start}.lora_A.weight": random.standard_normal((rank, columns)).astype(np.float32),
        f"{start}.lora_B.weight": random.standard_normal((rows, rank)).astype(np.float32),
    }


@pytest.mark.parametrize("name", BASES)
def test_applied_values_are_those_of_the_library_that_merged(name: str) -> None:
    """Largest difference measured: 4.5e-8, in DoRA; LoRA of PEFT and IA3 are equal bit for bit."""
    pipeline = name.startswith("pipeline")
    expected = load_file(ADAPTERS / "pipeline/fused.rows" if pipeline else ADAPTERS / name / "merged.rows")
    base = opened(base_of(name))
    assert not isinstance(base.weights, Absent)
    applied = with_adapter(base, opened(ADAPTERS / name)).weights
    assert isinstance(applied, AppliedFile)
    assert set(applied.edits) >= set(expected)
    assert expected
    for tensor, rows in expected.items():
        before = whole(base.weights, tensor).reshape(base.weights.tensors[tensor].shape)[::STEP]
        after = whole(applied, tensor).reshape(applied.tensors[tensor].shape)[::STEP]
        assert not np.array_equal(before, rows)
        np.testing.assert_allclose(after, rows, rtol=0, atol=1e-7)
    for tensor in set(applied.tensors) - set(applied.edits):
        assert np.array_equal(whole(applied, tensor), whole(base.weights, tensor))


@pytest.mark.parametrize("name", BASES)
@settings(max_examples=15)
@given(data=st.data())
def test_windows_are_slices(name: str, data: st.DataObject) -> None:
    adapter = opened(ADAPTERS / name)
    applied = with_adapter(opened(base_of(name)), adapter).weights
    assert isinstance(adapter.weights, AdapterFile)
    assert isinstance(applied, AppliedFile)
    for file, names in ((adapter.weights, list(adapter.weights.tensors)), (applied, list(applied.edits))):
        tensor = data.draw(st.sampled_from(names))
        rows, columns = file.tensors[tensor].matrix_shape
        down = sorted(data.draw(st.tuples(st.integers(0, rows), st.integers(0, rows))))
        across = sorted(data.draw(st.tuples(st.integers(0, columns), st.integers(0, columns))))
        part = file.read([Window(tensor, *down, *across)])[0]
        np.testing.assert_allclose(
            part, whole(file, tensor)[down[0] : down[1], across[0] : across[1]], rtol=0, atol=3e-7
        )


def test_a_window_outside_of_its_tensor() -> None:
    for file in (
        adapter_of(ADAPTERS / "lora"),
        with_adapter(opened(MODELS / "r0"), opened(ADAPTERS / "dora")).weights,
    ):
        assert not isinstance(file, Absent)
        tensor = "model.layers.0.self_attn.q_proj.weight"
        with pytest.raises(FormatError, match="outside"):
            file.read([Window(tensor, 0, 65, 0, 64)])


def test_other_factors_of_one_difference_are_the_same_adapter() -> None:
    one, other = (adapter_of(ADAPTERS / name) for name in ("trained_a", "trained_gauge"))
    for tensor in one.tensors:
        np.testing.assert_allclose(whole(one, tensor), whole(other, tensor), atol=2e-6)
    factor = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert not np.allclose(whole(one.stored, factor), whole(other.stored, factor), atol=0.01)


def test_the_facts() -> None:
    facts = adapter_of(ADAPTERS / "rslora_patterns").facts
    assert (facts.layout, facts.methods, facts.ranks, facts.stated_rank) == ("peft", ("lora",), (2, 4, 8), 4)
    assert (facts.alpha, facts.changed, facts.base) == (8.0, 4, "r0")
    saved = adapter_of(ADAPTERS / "saved_modules").facts
    assert (saved.changed, saved.saved, saved.base) == (2, 16, "q0")
    kohya = adapter_of(ADAPTERS / "pipeline_kohya").facts
    assert (kohya.layout, kohya.alpha, kohya.base) == ("kohya", 1.0, "pipeline")
    assert adapter_of(ADAPTERS / "dora").facts.methods == ("dora",)
    assert adapter_of(ADAPTERS / "ia3").facts.rank == 0


def test_a_file_alone_finds_its_settings() -> None:
    file = adapter_of(ADAPTERS / "lora" / "adapter_model.safetensors")
    assert file.facts == adapter_of(ADAPTERS / "lora").facts


def test_a_difference_is_told_from_a_quantised_tensor() -> None:
    info = adapter_of(ADAPTERS / "lora").tensors["model.layers.0.self_attn.q_proj.weight"]
    assert (info.dtype, info.is_quantised, info.shape) == ("LORA4", False, (64, 64))
    assert info.stored_bits == 32 * 2 * 4 * 64 / (64 * 64)


def test_a_quantised_base(tmp_path: Path) -> None:
    """The base stays packed; what is read lies on no grid any more."""
    r0 = opened(MODELS / "r0").weights
    assert not isinstance(r0, Absent)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "test")
    packed = gguf.GGMLQuantizationType.Q8_0
    decoded = {}
    for name, info in r0.tensors.items():
        values = np.ascontiguousarray(whole(r0, name))
        if len(info.shape) == 2:
            blocks = gguf.quants.quantize(values, packed)
            decoded[name] = gguf.quants.dequantize(blocks, packed)
            writer.add_tensor(name, blocks, raw_dtype=packed)
        else:
            writer.add_tensor(name, values.ravel())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    adapter = opened(ADAPTERS / "lora")
    applied = with_adapter(opened(tmp_path), adapter).weights
    assert isinstance(applied, AppliedFile)
    assert isinstance(adapter.weights, AdapterFile)
    name = "model.layers.2.self_attn.v_proj.weight"
    np.testing.assert_allclose(
        whole(applied, name), decoded[name] + whole(adapter.weights, name), rtol=0, atol=1e-7
    )
    assert not applied.tensors[name].is_quantised
    assert applied.tensors["model.layers.1.self_attn.v_proj.weight"].is_quantised


@pytest.mark.parametrize(
    ("name", "module", "slot"),
    [
        ("base_model.model.lm_head.weight", "lm_head.weight", None),
        ("base_model.model.q.base_layer.bias", "q.bias", None),
        ("base_model.model.q.lora_A.default.weight", "q", "down"),
        ("base_model.model.q.lora_B.bias", "q", "unread"),
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "unet:mid_block_attentions_0_proj_in", "down"),
        ("lora_te_text_model_layers_3_mlp_fc1.alpha", "text_encoder:text_model_layers_3_mlp_fc1", "alpha"),
        ("lora_te2_x.lora_up.weight", "text_encoder_2:x", "up"),
        ("lora_unet_x.lora_mid.weight", "unet:x", "unread"),
        ("lora_unet_x.hada_w1_a", "unet:x", "hada_w1_a"),
        ("lora_unet_x.oft_blocks", "unet:x", "unread"),
        ("unet.up_blocks.1.to_k.lora_linear_layer.up.weight", "unet:up_blocks.1.to_k", "up"),
        ("mid_block.attn1.processor.to_out_lora.down.weight", "mid_block.attn1.to_out.0", "down"),
        ("model.layers.0.q_proj.lora_a", "model.layers.0.q_proj", "unread"),
        ("base_model.model.experts.base_layer.lora_A.weight", "experts.base_layer", "unread"),
        ("transformer.blocks.0.to_v.lora_A.weight", "transformer:blocks.0.to_v", "down"),
    ],
)  # fmt: skip
def test_names(name: str, module: str, slot: str | None) -> None:
    key = parse(name)
    assert (key.module, key.slot) == (module, slot)


def named(**shapes: tuple[int, ...]) -> list[TensorInfo]:
    return [TensorInfo(name.replace("__", "."), shape, "F32", "") for name, shape in shapes.items()]


def change(name: str, *shape: int, dtype: str = "LORA2") -> TensorInfo:
    return TensorInfo(name, shape, dtype, "")


def test_one_prefix_for_all_tensors() -> None:
    base = named(model__layers__0__q__weight=(8, 4), model__layers__1__q__weight=(8, 4))
    for start in ("layers", "model.layers", "base.model.layers"):
        found = fit([change(f"{start}.0.q.weight", 8, 4), change(f"{start}.1.q.weight", 8, 4)], base)
        assert found.outcome is Outcome.FITS
        assert set(found.places.values()) == {"model.layers.0.q.weight", "model.layers.1.q.weight"}


def test_two_towers_that_both_fit_are_no_fit() -> None:
    base = named(a__layers__0__q__weight=(8, 4), b__layers__0__q__weight=(8, 4))
    assert fit([change("layers.0.q.weight", 8, 4)], base).outcome is Outcome.OTHER_NAMES
    wider = named(a__layers__0__q__weight=(8, 4), b__layers__0__q__weight=(16, 4))
    found = fit([change("layers.0.q.weight", 8, 4)], wider)
    assert found.places == {"layers.0.q.weight": "a.layers.0.q.weight"}


def test_what_does_not_fit_is_named() -> None:
    base = named(q__weight=(8, 4), k__weight=(8, 4))
    other = fit([change("q.weight", 8, 4), change("v.weight", 8, 4)], base)
    assert (other.outcome, other.wrong) == (Outcome.OTHER_NAMES, ("v.weight",))
    shapes = fit([change("q.weight", 8, 5), change("k.weight", 8, 4)], base)
    assert (shapes.outcome, shapes.wrong) == (Outcome.OTHER_SHAPES, ("q.weight 8 x 5, q.weight 8 x 4",))


def test_a_table_saved_whole_may_have_grown() -> None:
    base = named(embed__weight=(8, 4))
    for shape, outcome in (
        ((10, 4), Outcome.FITS),
        ((6, 4), Outcome.OTHER_SHAPES),
        ((8, 5), Outcome.OTHER_SHAPES),
    ):
        assert fit([change("embed.weight", *shape, dtype="F32")], base).outcome is outcome


def test_a_shorter_name_is_another_module() -> None:
    assert fit([change("proj.weight", 8, 4)], named(q_proj__weight=(8, 4))).outcome is Outcome.OTHER_NAMES
    whole = [change(f"unet:mid_to_{part}.weight", 8, 4) for part in "qk"]
    for start in ("unet:mid.", "model.diffusion_model.mid."):
        base = [TensorInfo(f"{start}to_{part}.weight", (8, 4), "F32", "") for part in "qk"]
        assert fit(whole, base).outcome is Outcome.FITS


def test_a_new_head_is_added(tmp_path: Path) -> None:
    """A classifier on a language model: what it stores whole and the base lacks contradicts nothing."""
    (tmp_path / "base").mkdir()
    save_file({"up.weight": np.ones((8, 12), np.float32)}, tmp_path / "base" / "model.safetensors")
    head = np.arange(24, dtype=np.float32).reshape(2, 12)
    adapter = opened(written(tmp_path / "a", {**lora(), "base_model.model.score.weight": head}))
    applied = with_adapter(opened(tmp_path / "base"), adapter).weights
    assert isinstance(applied, AppliedFile)
    assert np.array_equal(whole(applied, "score.weight"), head)
    alone = opened(written(tmp_path / "b", {**lora("down"), "base_model.model.score.weight": head}))
    with pytest.raises(UsageError, match="has no"):
        with_adapter(opened(tmp_path / "base"), alone)


def test_underscores_of_sd_scripts_that_two_modules_share_are_no_fit() -> None:
    base = named(unet__a_b__c__weight=(8, 4), unet__a__b_c__weight=(8, 4))
    assert fit([change("unet:a_b_c.weight", 8, 4)], base).outcome is Outcome.OTHER_NAMES


def test_applying_what_does_not_fit_says_why() -> None:
    with pytest.raises(UsageError, match=r"other shapes: .* 64 x 128, .* 48 x 160") as error:
        with_adapter(opened(MODELS / "w0"), opened(ADAPTERS / "lora"))
    assert "'r0'" in error.value.hint
    with pytest.raises(UsageError, match=r"the base has no transformer\.h\.0"):
        with_adapter(opened(MODELS / "r0"), opened(ADAPTERS / "gpt2"))
    with pytest.raises(UsageError, match="no adapter"):
        with_adapter(opened(MODELS / "r0"), opened(MODELS / "r1"))
    with pytest.raises(UsageError, match="no weights"):
        with_adapter(opened(ADAPTERS / "lora"), opened(ADAPTERS / "lora"))


def test_a_kind_that_is_not_read(tmp_path: Path) -> None:
    weights = opened(ADAPTERS / "lokr").weights
    assert isinstance(weights, Absent)
    assert "not read" in str(weights.reason)
    extra = {"base_model.model.q.lora_E": np.ones((2, 1), np.float32)}
    mixed = opened(written(tmp_path, {**lora(), **extra}))
    assert isinstance(mixed.weights, AdapterFile)
    assert [flag.what for flag in mixed.weights.flags] == ["base_model.model.q.lora_E"]
    (tmp_path / "base").mkdir()
    save_file({"up.weight": np.ones((8, 12), np.float32)}, tmp_path / "base" / "model.safetensors")
    with pytest.raises(UsageError, match="not read"):
        with_adapter(opened(tmp_path / "base"), mixed)


def test_a_model_that_carries_its_adapters_is_a_model(tmp_path: Path) -> None:
    weights = {"model.q.base_layer.weight": np.ones((8, 12), np.float32)}
    save_file({**weights, **lora("model.q")}, tmp_path / "model.safetensors")
    assert opened(tmp_path).adapter is None


def test_the_tensors_win_over_the_settings(tmp_path: Path) -> None:
    tensors = lora(rank=4)
    folder = written(
        tmp_path, tensors, {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "base_model_name_or_path": "x"}
    )
    file = adapter_of(folder)
    assert (file.facts.rank, file.facts.stated_rank) == (4, 8)
    a, b = tensors.values()
    np.testing.assert_allclose(whole(file, "up.weight"), 2 * b @ a, rtol=1e-5)


def test_a_rank_above_the_sides_is_lawful(tmp_path: Path) -> None:
    tensors = lora(rank=40)
    a, b = tensors.values()
    np.testing.assert_allclose(
        whole(adapter_of(written(tmp_path, tensors)), "up.weight"), b @ a, rtol=1e-4, atol=1e-4
    )


ONE = np.ones((1, 1), np.float32)
LIES: dict[str, tuple[Arrays, dict[str, object]]] = {
    "rank 0": (lora(rank=0), {}),
    "no partner": ({k: v for k, v in lora().items() if "lora_A" in k}, {}),
    "factors do not multiply": ({**lora(), "base_model.model.up.lora_B.weight": np.ones((8, 3), np.float32)}, {}),
    "factors of one axis": ({k: v.ravel() for k, v in lora().items()}, {}),
    "alpha NaN": (lora(), {"lora_alpha": float("nan")}),
    "alpha text": (lora(), {"lora_alpha": "8"}),
    "alpha huge": (lora(), {"lora_alpha": 1e300}),
    "patterns no table": (lora(), {"alpha_pattern": [1]}),
    "two kinds for one tensor": ({**lora(), "base_model.model.up.ia3_l": np.ones((8, 1), np.float32)}, {}),
    "saved and changed": ({**lora(), "base_model.model.up.weight": np.ones((8, 12), np.float32)}, {}),
    "one factor twice": ({**lora(), "up.lora_A.other.weight": np.ones((2, 12), np.float32)}, {}),
    "norms of nothing": ({**lora(), "base_model.model.k.lora_magnitude_vector": np.ones(8, np.float32)}, {}),
    "half of a Hadamard product": ({"base_model.model.up.hada_w1_a": ONE, "base_model.model.up.hada_w1_b": ONE}, {}),
    "products of two shapes": (
        {f"base_model.model.up.hada_{k}": np.ones(s, np.float32) for k, s in
         (("w1_a", (8, 2)), ("w1_b", (2, 4)), ("w2_a", (8, 2)), ("w2_b", (2, 5)))}, {}),
    "alpha of many values": ({
        "lora_unet_x.lora_down.weight": np.ones((2, 4), np.float32),
        "lora_unet_x.lora_up.weight": np.ones((4, 2), np.float32),
        "lora_unet_x.alpha": np.ones(3, np.float32)}, {}),
    "alpha tensor NaN": ({
        "lora_unet_x.lora_down.weight": np.ones((2, 4), np.float32),
        "lora_unet_x.lora_up.weight": np.ones((4, 2), np.float32),
        "lora_unet_x.alpha": np.array(np.nan, np.float32)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_a_typed_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    tensors, config = LIES[name]
    written(tmp_path, tensors, {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **config} if config else None)
    with pytest.raises(FormatError, match=r"adapter_(model|config)\."):
        opened(tmp_path)


def test_a_pattern_of_a_stranger_is_not_run(tmp_path: Path) -> None:
    written(tmp_path, lora("a" * 64), {"peft_type": "LORA", "lora_alpha": 2, "alpha_pattern": {"(a+)+b": 1}})
    with pytest.raises(UnsupportedError, match="no plain name"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "module", "matches"),
    [
        ("v_proj", "model.layers.0.v_proj", True),
        ("v_proj", "model.layers.0.other_v_proj", False),
        (r"layers\.0\.self_attn.q_proj", "model.layers.0.self_attn.q_proj", True),
        ("^layers.0.q", "model.layers.0.q", False),
        ("^model.*q", "model.layers.0.q", True),
        ("^model.*q", "x.model.layers.0.q", False),
        ("layers.*q_proj$", "model.layers.11.q_proj", True),
        ("x.*q_proj", "model.layers.11.q_proj", False),
    ],
)
def test_patterns_end_a_name(pattern: str, module: str, matches: bool) -> None:
    assert (Settings(alpha=1.0, alphas={pattern: 2.0}).alpha_of(module) == 2.0) is matches


@pytest.mark.parametrize(
    ("stated", "base"),
    [
        ("Qwen/Qwen2-7B", "Qwen/Qwen2-7B"),
        ("/home/me/models/Qwen2-7B/", "Qwen2-7B"),
        ("C:\\models\\Qwen2-7B", "Qwen2-7B"),
        ("./out/checkpoint-10", "checkpoint-10"),
        ("/x/hub/models--Qwen--Qwen2-7B/snapshots/abc", "Qwen/Qwen2-7B"),
        ("", None),
        (7, None),
    ],
)
def test_the_declared_base_is_a_name(stated: str | int, base: str | None) -> None:
    assert from_config({"base_model_name_or_path": stated}, "x").base == base


def test_many_modules_cost_time_in_proportion(tmp_path: Path) -> None:
    """Four times the modules take no more than twice four times the time."""

    def cost(count: int) -> float:
        tensors = {}
        for number in range(count):
            tensors[f"base_model.model.layers.{number}.q.lora_A.weight"] = np.ones((1, 8), np.float32)
            tensors[f"base_model.model.layers.{number}.q.lora_B.weight"] = np.ones((8, 1), np.float32)
        folder = written(tmp_path / str(count), tensors)
        start = time.process_time()
        adapter_of(folder)
        return time.process_time() - start

    cost(100)
    small, large = cost(5_000), cost(20_000)
    assert large < 4 * 2 * small + 0.2


def test_a_small_file_of_a_huge_difference_is_not_made_whole(tmp_path: Path) -> None:
    """2 x 100,000 values stand for 10^10: a few rows are computed, never all."""
    written(tmp_path, lora(rank=1, rows=100_000, columns=100_000))
    tracemalloc.start()
    file = adapter_of(tmp_path)
    file.read([Window("up.weight", 0, 8, 0, 100_000)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 800_000 + (100 << 20)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_files_of_known_names_are_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    marks = (
        *("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "alpha", "ia3_l", "hada_w1_a", "bias"),
        *(
            "lora_embedding_A",
            "lora_embedding_B",
            "lora_mid.weight",
            "lora_down.weight",
            "lora_up.weight",
            "weight",
        ),
    )
    names = data.draw(
        st.lists(
            st.tuples(st.sampled_from(["q", "model.k", "lora_unet_x"]), st.sampled_from(marks)),
            unique=True,
            min_size=1,
        )
    )
    extents = st.lists(st.integers(0, 3), max_size=4)
    tensors = {f"{module}.{mark}": np.ones(data.draw(extents), np.float32) for module, mark in names}
    folder = written(tmp_path_factory.mktemp("fuzz"), tensors, {"peft_type": "LORA", "lora_alpha": 1})
    try:
        model = opened(folder)
        if not isinstance(model.weights, Absent):
            for tensor in model.weights.tensors:
                whole(model.weights, tensor)
    except DrupeError:
        pass
