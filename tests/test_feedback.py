"""Rounding with error feedback (GPTQ) is rounding, and a change before it is seen (recover/feedback.py)."""

from __future__ import annotations

from math import erf, sqrt
from pathlib import Path

import numpy as np
import pytest

import zoo
from drupe.comparison import AUTO, Budget
from drupe.diagnose.quantised import FEEDBACK_EXCESS
from drupe.recover.feedback import excess
from gptq import gptq, round_with_feedback
from pairs import judged
from zoo_files import Checkpoint, read_model

DRAWS = 120


def _draw(seed: int, rows: int, columns: int, change: float = 0.0, bits: int = 6) -> tuple[float, float]:
    """Excess and standard deviation of one random matrix, changed by a share of its rounding error and rounded."""
    dice = np.random.default_rng(seed)
    weight = dice.standard_normal((rows, columns)).astype(np.float32)
    mixing = dice.standard_normal((columns // 4, columns))
    inputs = 2 * dice.standard_normal((256, columns // 4)) @ mixing + dice.standard_normal((256, columns))
    step = np.ptp(weight, axis=1).mean() / (2**bits - 1)
    changed = weight + np.float32(change * step / np.sqrt(12)) * dice.standard_normal(weight.shape)
    rounded = round_with_feedback(changed, inputs.T @ inputs, bits=bits, group=0, act_order=bool(seed % 2))
    found = excess(weight, rounded)
    assert found is not None
    return found.value, found.sd


@pytest.mark.parametrize(("rows", "columns"), [(48, 48), (96, 64), (192, 64)])
def test_without_a_change_the_excess_is_standard_normal(rows: int, columns: int) -> None:
    draws = np.array([_draw(seed, rows, columns) for seed in range(DRAWS)])
    bias = draws[:, 0].mean()
    assert abs(bias) < 0.03  # the values at the ends of the grid are clipped a little
    z = np.sort((draws[:, 0] - bias) / draws[:, 1])
    normal = np.array([0.5 * (1 + erf(value / sqrt(2))) for value in z])
    assert np.abs(normal - (np.arange(DRAWS) + 0.5) / DRAWS).max() < 1.63 / np.sqrt(
        DRAWS
    )  # Kolmogorov, p = 0.01


def test_few_bits_clip_more_and_stay_below_the_bound() -> None:
    assert 0.0 < np.mean([_draw(seed, 96, 64, bits=3)[0] for seed in range(40)]) < FEEDBACK_EXCESS[1]


def test_a_change_as_large_as_the_rounding_is_seen() -> None:
    draws = np.array([_draw(seed, 96, 64, change=1.0) for seed in range(20)])
    assert (draws[:, 0] / draws[:, 1]).min() > 10.0


def test_too_few_rows_or_no_grid_say_nothing() -> None:
    dice = np.random.default_rng(0)
    wide = np.round(dice.standard_normal((32, 64)) * 4).astype(np.float32)
    assert excess(wide + np.float32(0.1), wide) is None
    free = dice.standard_normal((64, 64)).astype(np.float32)
    assert excess(free * np.float32(1.01), free) is None


@pytest.mark.parametrize(("name", "bits", "group"), [("r0", 4, 32), ("r2", 3, 0), ("q0", 4, 0), ("w0", 3, 0)])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_is_a_copy(name: str, bits: int, group: int, act_order: bool, tmp_path: Path) -> None:
    result = judged(gptq(read_model(name), bits=bits, group=group, act_order=act_order), name, tmp_path)
    assert result.label == "copy"
    assert result.kinds == {"quantised"}


@pytest.mark.parametrize("name", ["r0_ft", "r0_cpt"])
@pytest.mark.parametrize("bits", [4, 3])
def test_training_before_gptq_is_seen(name: str, bits: int, tmp_path: Path) -> None:
    result = judged(gptq(read_model(name), bits=bits, group=0), "r0", tmp_path)
    assert result.label == "derivative"
    assert "quantised" in result.kinds


def _only_down(model: Checkpoint, other: Checkpoint) -> Checkpoint:
    """The down projections of the other model: wide matrices, whose determinant is not known."""
    return model.with_tensors(
        {name: other.tensors[name] if "down" in name else values for name, values in model.tensors.items()}
    )


def test_a_large_change_of_wide_matrices_does_not_hide_behind_the_tall_ones(tmp_path: Path) -> None:
    mixed = _only_down(read_model("r0"), read_model("r0_cpt"))
    assert judged(gptq(mixed, group=0), "r0", tmp_path).label == "derivative"


@pytest.mark.parametrize("budget", [AUTO, Budget(0, escalate=True)], ids=["whole", "sample"])
def test_a_low_rank_update_before_gptq_is_seen(budget: Budget, tmp_path: Path) -> None:
    changed = zoo.apply(read_model("r1"), "lora", rank=4, size=0.1, modules="q_proj|up_proj|gate_proj")
    assert judged(gptq(changed), "r1", tmp_path, budget=budget).label == "derivative"


@pytest.mark.parametrize("name", ["r0_ft", "g0_ft"])
def test_training_before_rounding_to_the_nearest_is_no_feedback(name: str, tmp_path: Path) -> None:
    rounded = zoo.apply(read_model(name), "quantise", symmetric=False)
    assert judged(rounded, name[:2], tmp_path).label == "derivative"


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_an_update_before_rounding_to_the_nearest_is_no_feedback(rank: int, tmp_path: Path) -> None:
    changed = zoo.apply(read_model("w0"), "lora", rank=rank, size=0.05, modules="[a-z]+_proj")
    assert judged(zoo.apply(changed, "quantise", symmetric=False), "w0", tmp_path).label == "derivative"


def test_a_sample_reads_a_few_matrices_whole_to_know(tmp_path: Path) -> None:
    result = judged(gptq(read_model("r1")), "r1", tmp_path, budget=Budget(0, escalate=True))
    assert result.comparison.lineage is not None
    assert result.comparison.lineage.feedback is not None
    assert result.label == "copy"
