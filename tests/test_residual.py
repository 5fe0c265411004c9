"""What is left after undoing: white noise stays white, training leaves the bulk, ratios are exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from drupe.diagnose.pool import EDGE_SD, TRAINED_EDGE, TRAINED_Z
from drupe.residual import (
    cast_of,
    excess_kurtosis,
    measure,
    residual_rank,
    rounding_floor,
    spectral_edge,
    squared_spectrum,
    to_bfloat16,
)
from zoo import quantise_groups
from zoo_files import Tensor, from_bf16, read_model, to_bf16

SHAPES = ((32, 64), (64, 64), (64, 128), (128, 64), (128, 128), (96, 192))


def white(shape: tuple[int, int], seed: int) -> Tensor:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


NULLS: dict[str, Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]] = {
    "gaussian": lambda dice, shape: dice.standard_normal(shape),
    "uniform": lambda dice, shape: dice.uniform(-1, 1, shape),
    "laplace": lambda dice, shape: dice.laplace(size=shape),
    "heavy tails": lambda dice, shape: dice.standard_t(3, shape),
    "a size per row": lambda dice, shape: (
        dice.standard_normal(shape) * np.exp(dice.standard_normal((shape[0], 1)))
    ),
    "multiplicative": lambda dice, shape: dice.standard_normal(shape) * dice.standard_normal(shape),
    "one in a hundred": lambda dice, shape: dice.standard_normal(shape) * (dice.random(shape) < 0.01),
    "int8 rows": lambda dice, shape: _rounding(
        dice.standard_normal(shape).astype(np.float32), bits=8, group=0
    ),
    "int4 groups": lambda dice, shape: _rounding(
        dice.standard_normal(shape).astype(np.float32), bits=4, group=32
    ),
    "stored as bf16": lambda dice, shape: _stored(dice.standard_normal((2, *shape)).astype(np.float32)),
}


def _rounding(source: Tensor, *, bits: int, group: int) -> NDArray[np.float64]:
    return (quantise_groups(source, bits=bits, group=group) - source).astype(np.float64)


def _stored(pair: Tensor) -> NDArray[np.float64]:
    return (to_bfloat16(pair[0] + np.float32(0.01) * pair[1]) - to_bfloat16(pair[0])).astype(np.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", NULLS)
def test_untrained_residuals_reach_the_edge_and_no_further(kind: str, shape: tuple[int, int]) -> None:
    """Log edge: mean 0, sd at most EDGE_SD (0.04 on the smallest shape); pooled over 16 matrices, z stays below 6."""
    edges = []
    for seed in range(40 if shape[0] < 96 else 16):
        d = NULLS[kind](np.random.default_rng([seed, *shape]), shape)
        edges.append(spectral_edge(d, squared_spectrum(d)))
    logs = np.log(edges)
    assert abs(logs.mean()) < 0.015
    assert logs.std() < 0.045
    assert logs.mean() / EDGE_SD * np.sqrt(16) < TRAINED_Z / 2
    assert np.median(edges) < TRAINED_EDGE


@pytest.mark.parametrize("rank", [1, 4])
def test_a_low_rank_part_leaves_the_bulk(rank: int) -> None:
    noise = white((128, 128), 0).astype(float)
    update = white((128, rank), 1).astype(float) @ white((rank, 128), 2).astype(float)
    assert spectral_edge(noise + update, squared_spectrum(noise + update)) > 1.3


def test_power_iteration_is_close_to_the_spectrum() -> None:
    d = white((96, 160), 3).astype(float)
    assert spectral_edge(d) == pytest.approx(spectral_edge(d, squared_spectrum(d)), rel=0.05)


def test_tiny_and_empty_residuals_have_no_edge() -> None:
    assert spectral_edge(np.zeros((16, 16))) == 0.0
    assert spectral_edge(np.ones((4, 100))) == 0.0


def test_spectrum_is_that_of_the_singular_values() -> None:
    for shape in ((20, 50), (50, 20)):
        d = white(shape, 4).astype(float)
        found = squared_spectrum(d)
        assert found is not None
        assert np.sqrt(found)[::-1] == pytest.approx(np.linalg.svd(d, compute_uv=False), rel=1e-6)
    assert squared_spectrum(np.zeros((1025, 1025))) is None


@pytest.mark.parametrize("rank", [1, 2, 8, 16])
def test_rank_of_a_merged_update_survives_rounding(rank: int) -> None:
    source = white((128, 128), 5)
    update = white((128, rank), 6) @ white((rank, 128), 7)
    tuned = to_bfloat16(source + np.float32(0.05 / np.sqrt(rank)) * update)
    spectrum = squared_spectrum((tuned - source).astype(float))
    assert spectrum is not None
    assert residual_rank(spectrum, tuned, "BF16") == rank


def test_training_leaves_the_bulk_and_noise_does_not() -> None:
    source, tuned = read_model("r0"), read_model("r0_ft")
    name = "model.layers.2.mlp.up_proj.weight"
    trained = measure(source.tensors[name], tuned.tensors[name], "BF16")
    noisy = source.tensors[name] + np.float32(0.02) * white(source.tensors[name].shape, 8)
    assert trained.edge > 1.3
    assert measure(source.tensors[name], noisy, "F32").edge < 1.1


@given(sigma=st.floats(0.01, 5.0), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_the_size_of_noise_is_recovered(sigma: float, seed: int) -> None:
    source = white((96, 96), seed)
    found = measure(source, source + np.float32(sigma) * white((96, 96), seed + 1000), "F32")
    assert found.sigma == pytest.approx(sigma, rel=0.05)
    assert found.rho == pytest.approx(sigma, rel=0.05)
    assert abs(found.kurtosis) < 0.3


@given(factor=st.floats(0.01, 100.0))
@settings(max_examples=20)
def test_a_factor_is_recovered_and_leaves_nothing(factor: float) -> None:
    source = white((64, 96), 1)
    found = measure(source, source * np.float32(factor), "F32")
    assert found.scale == pytest.approx(factor, rel=1e-5)
    assert found.after_scale < 1e-6
    rows = np.exp(white((64, 1), 2)).astype(np.float32)
    assert measure(source, source * rows, "F32").after_unit_scale < 1e-6
    assert measure(source, source * rows[:, 0][:, None], "F32").after_scale > 0.1


def test_equal_values_are_no_residual() -> None:
    found = measure(white((32, 32), 0), white((32, 32), 0), "F32")
    assert (found.equal, found.rho, found.edge) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_measured_as_damage(value: float) -> None:
    broken = white((32, 32), 0)
    broken[3, 3] = value
    for pair in ((broken, white((32, 32), 0)), (white((32, 32), 0), broken)):
        found = measure(*pair, "F32")
        assert np.isnan(found.rho)
        assert found.rank is None
        assert found.cast is None


def test_zero_sources_divide_by_nothing() -> None:
    found = measure(np.zeros((16, 32), np.float32), white((16, 32), 0), "F32")
    assert np.isfinite([found.rho, found.scale, found.sigma, found.edge]).all()
    silent = measure(white((16, 32), 0), np.zeros((16, 32), np.float32), "F32")
    assert silent.new_zeros == 1.0
    assert np.isfinite(silent.after_scale)


def test_pruned_values_are_counted() -> None:
    source = white((64, 64), 3)
    found = measure(source, np.where(np.abs(source) > 0.5, source, np.float32(0)), "F32")
    assert found.new_zeros == pytest.approx(float((np.abs(source) <= 0.5).mean()))
    assert found.kept_equal == 1.0


def test_casts_are_told_by_their_rounding() -> None:
    source = white((32, 64), 4)
    half = source.astype(np.float16).astype(np.float32)
    assert cast_of(source, to_bfloat16(source)) == "BF16"
    assert cast_of(source, half) == "F16"
    assert cast_of(to_bfloat16(source), source) == "F32"
    assert cast_of(source, source + np.float32(0.01)) is None


@given(st.integers(0, 2**16 - 1))
def test_rounding_to_bfloat16_is_that_of_the_reference(bits: int) -> None:
    value = from_bf16(np.array([bits], np.uint16))
    if np.isfinite(value).all():
        assert to_bfloat16(value) == value
        nudged = np.nextafter(value, np.float32(0))
        assert to_bfloat16(nudged) == from_bf16(to_bf16(nudged))


def test_the_rounding_floor_is_the_error_that_storage_makes() -> None:
    source = white((256, 256), 5)
    error = (to_bfloat16(source) - source).astype(float)
    assert rounding_floor(to_bfloat16(source), "BF16") == pytest.approx(np.sqrt((error**2).mean()), rel=0.1)
    assert rounding_floor(source, "F32") == 0.0
    assert rounding_floor(np.zeros((4, 4), np.float32), "BF16") == 0.0


@pytest.mark.parametrize(("name", "expected"), [("normal", 0.0), ("uniform", -1.2), ("laplace", 3.0)])
def test_kurtosis_of_known_distributions(name: str, expected: float) -> None:
    sample = getattr(np.random.default_rng(6), name)(size=(400, 400))
    assert excess_kurtosis(sample) == pytest.approx(expected, abs=0.15)
    assert excess_kurtosis(np.ones((4, 4))) == 0.0
