"""Grids are found where they are, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from drupe.lattice import delta_grid, explains, find_lattice
from drupe.residual import to_bfloat16
from zoo import quantise_groups
from zoo_files import Tensor

SHAPES = ((128, 256), (64, 96), (64, 64))


def white(shape: tuple[int, int], seed: int = 0) -> Tensor:
    return np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(0.02)


def half(values: Tensor) -> Tensor:
    return values.astype(np.float16).astype(np.float32)


CASTS = {"fp32": lambda values: values, "bf16": to_bfloat16, "fp16": half}


def pruned(values: Tensor, sparsity: float) -> Tensor:
    return np.where(np.abs(values) > np.quantile(np.abs(values), sparsity), values, np.float32(0))


NEVER_QUANTISED = {
    "white": lambda v: v,
    "heavy tails": lambda v: (v * np.abs(v) * 100).astype(np.float32),
    "outlier columns": lambda v: v * np.where(np.arange(v.shape[1]) % 30 == 0, 25, 1).astype(np.float32),
    "half pruned": lambda v: pruned(v, 0.5),
    "pruned to a tenth": lambda v: pruned(v, 0.9),
    "two of four": lambda v: np.where(np.arange(v.shape[1]) % 4 < 2, v, np.float32(0)),
    "repeated columns": lambda v: np.repeat(v[:, ::8], 8, axis=1),
    "rectified": lambda v: np.maximum(v, 0),
}


@pytest.mark.parametrize("dtype", CASTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", NEVER_QUANTISED)
def test_no_grid_in_values_that_were_never_quantised(kind: str, shape: tuple[int, int], dtype: str) -> None:
    assert find_lattice(CASTS[dtype](NEVER_QUANTISED[kind](white(shape)))) is None


@pytest.mark.parametrize("dtype", CASTS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [0, 32, 64, 128])
@pytest.mark.parametrize("bits", [3, 4])
def test_a_grid_is_read_off_the_stored_values(bits: int, group: int, symmetric: bool, dtype: str) -> None:
    source = white((128, 256))
    stored = CASTS[dtype](quantise_groups(source, bits=bits, group=group, symmetric=symmetric))
    found = find_lattice(stored, source)
    assert found is not None
    assert (found.bits, found.group) == (bits, group)
    assert found.beyond_half_step < 0.02


@pytest.mark.parametrize("columns", [64, 256])
def test_two_bits_are_not_taken_for_a_fine_grid_of_the_whole_row(columns: int) -> None:
    source = white((64, columns))
    found = find_lattice(to_bfloat16(quantise_groups(source, bits=2, group=32)), source)
    assert found is not None
    assert found.bits == 2
    assert found.beyond_half_step < 0.02


def test_a_grid_over_a_trained_source_lies_beyond_half_a_step() -> None:
    source = white((128, 256))
    trained = source + np.float32(0.008) * np.random.default_rng(1).standard_normal(source.shape, np.float32)
    found = find_lattice(quantise_groups(trained, bits=4, group=32), source)
    assert found is not None
    assert found.beyond_half_step > 0.1


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_eight_bits_a_row_are_seen_in_the_difference(dtype: str) -> None:
    source = white((64, 128)) * np.exp(np.random.default_rng(2).standard_normal((64, 1))).astype(np.float32)
    found = delta_grid(source, CASTS[dtype](quantise_groups(source, bits=8, group=0)))
    assert found is not None
    assert found.bits == 8


@pytest.mark.parametrize("seed", range(10))
def test_noise_of_one_size_and_training_are_no_hidden_grid(seed: int) -> None:
    dice = np.random.default_rng(seed)
    source = white((64, 128), seed) * np.exp(0.5 * dice.standard_normal((64, 1))).astype(np.float32)
    noise = dice.standard_normal(source.shape, np.float32)
    update = dice.standard_normal((64, 4)) @ dice.standard_normal((4, 128))
    assert delta_grid(source, source + np.float32(0.1 * source.std()) * noise) is None
    assert delta_grid(source, (source + 0.1 * source.std() * update).astype(np.float32)) is None
    assert delta_grid(source, to_bfloat16(source)) is None


def test_too_few_rows_or_no_change_give_no_answer() -> None:
    source = white((8, 128))
    assert delta_grid(source, source * np.float32(1.01)) is None
    assert delta_grid(white((64, 64)), white((64, 64))) is None


E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def small_floats(values: np.ndarray, *, powers: bool) -> np.ndarray:
    """Groups of 32 on the eight magnitudes of E2M1; scales of any size or powers of two (MXFP4)."""
    groups = values.reshape(-1, 32).astype(np.float64)
    scale = np.abs(groups).max(axis=1, keepdims=True) / 6.0
    scale = 2.0 ** np.ceil(np.log2(scale)) if powers else scale
    levels = np.concatenate([-E2M1[:0:-1], E2M1])
    nearest = levels[np.abs((groups / scale)[..., None] - levels).argmin(axis=-1)]
    return (nearest * scale).reshape(values.shape).astype(np.float32)


@pytest.mark.parametrize("powers", [True, False])
@pytest.mark.parametrize("shape", [(64, 64), (256, 128)])
def test_a_code_of_small_floats_is_a_grid_with_gaps(powers: bool, shape: tuple[int, int]) -> None:
    dice = np.random.default_rng(4)
    source = (0.02 * dice.standard_normal(shape)).astype(np.float32)
    found = find_lattice(small_floats(source, powers=powers), source)
    assert found is not None
    assert (found.bits, found.group) == (4, 32)
    assert explains(found)
    trained = source + 0.3 * source.std() * dice.standard_normal(shape).astype(np.float32)
    other = find_lattice(small_floats(trained, powers=powers), source)
    assert other is not None
    assert not explains(other)
