"""Rows of two matrices: are they paired, and can the pairing be found again?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drupe.recover import units
from zoo_files import Tensor


def white(shape: tuple[int, int], seed: int) -> Tensor:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_closed_form_moments_are_those_of_random_pairings() -> None:
    """The z of every permutation of the rows has mean 0 and sd 1, whatever the values are."""
    left, right = white((24, 40), 0), white((24, 40), 1) + white((24, 40), 0) * np.float32(0.7)
    left[:, 3] *= 30
    dice = np.random.default_rng(2)
    z = [units.row_permutation_z(left, right[dice.permutation(24)]) for _ in range(4000)]
    assert np.mean(z) == pytest.approx(0.0, abs=0.06)
    assert np.std(z) == pytest.approx(1.0, abs=0.04)


@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 50))
@settings(max_examples=25)
def test_z_ignores_scales_and_a_permutation_of_both(scale: float, seed: int) -> None:
    left, right = white((32, 48), seed), white((32, 48), seed + 100) + white((32, 48), seed)
    rows = np.random.default_rng(seed).permutation(32)
    z = units.row_permutation_z(left, right)
    assert units.row_permutation_z(left * np.float32(scale), right) == pytest.approx(z, rel=1e-3, abs=1e-3)
    assert units.row_permutation_z(left[rows], right[rows]) == pytest.approx(z, rel=1e-3, abs=1e-3)
    assert units.row_permutation_z(right, left) == pytest.approx(z, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(("sigma", "floor"), [(0.0, 60), (1.0, 40), (3.0, 15), (10.0, 5)])
def test_z_finds_related_rows_under_noise(sigma: float, floor: float) -> None:
    source = white((128, 96), 3)
    assert units.row_permutation_z(source + np.float32(sigma) * white((128, 96), 4), source) > floor


def test_z_of_nothing_is_zero() -> None:
    zero = np.zeros((16, 32), np.float32)
    assert units.row_permutation_z(zero, white((16, 32), 0)) == 0.0
    assert units.row_permutation_z(zero, zero) == 0.0
    broken = white((16, 32), 0)
    broken[0] = np.nan
    broken[1] = np.inf
    assert np.isfinite(units.row_permutation_z(broken, white((16, 32), 1)))


@given(seed=st.integers(0, 1000), sigma=st.floats(0, 0.5))
@settings(max_examples=20)
def test_a_permutation_with_signs_is_found_again(seed: int, sigma: float) -> None:
    dice = np.random.default_rng(seed)
    source = white((48, 64), seed)
    rows, signs = dice.permutation(48), dice.choice([-1.0, 1.0], (48, 1)).astype(np.float32)
    suspect = signs * source[rows] + np.float32(sigma) * white((48, 64), seed + 1)
    found = units.match_rows(suspect, source)
    assert (found.source_rows == rows).all()
    assert found.share == 1.0


def test_recovery_moves_rows_only_when_they_moved() -> None:
    source = white((64, 80), 5)
    noisy = source + np.float32(0.5) * white((64, 80), 6)
    assert units.recover_rows(noisy, source).rows is None
    assert units.recover_rows(noisy, source).z > 20
    rows = np.random.default_rng(7).permutation(64)
    recovery = units.recover_rows(noisy[rows], source)
    assert recovery.rows is not None
    assert (recovery.rows.source_rows == rows).all()
    assert recovery.z > units.SIGNIFICANT_Z


def test_independent_rows_are_never_mapped() -> None:
    for seed in range(30):
        recovery = units.recover_rows(white((64, 64), seed), white((64, 64), seed + 500))
        assert recovery.rows is None
        assert abs(recovery.z) < units.SIGNIFICANT_Z


def test_two_votes_agree_by_chance_on_few_rows() -> None:
    first = units.match_rows(white((128, 64), 0), white((128, 64), 1))
    second = units.match_rows(white((128, 64), 2), white((128, 64), 3))
    assert 0.2 < first.share < 0.8  # some partner always comes out
    agree = (first.source_rows == second.source_rows) & (first.source_rows >= 0)
    assert agree.mean() < 0.05


def test_mutual_nearest_is_a_matching() -> None:
    found = units.mutual_nearest(white((40, 60), 8))
    named = found[found >= 0]
    assert len(set(named.tolist())) == named.size


def test_a_map_of_few_rows_carries_no_z() -> None:
    rows = np.full(20, -1)
    rows[:7] = np.arange(7)
    assert units.mapped_z(white((20, 64), 0), white((20, 64), 0), units.RowMap(rows, 0.35, 0.0)) == 0.0
