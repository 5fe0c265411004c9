"""The rotation between two tables: the polar factor, and what noise in the tables leaves of error in it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from drupe.recover.rotation import Rotation, excess_of, polar


def orthogonal(width: int, seed: int) -> NDArray[np.float64]:
    """A random one."""
    result: NDArray[np.float64] = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0]
    return result


@pytest.mark.parametrize("decades", [0.0, 2.0, 4.0])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_polar_factor_is_that_of_the_singular_vectors(decades: float, kind: type[np.floating]) -> None:
    left, right = orthogonal(96, 1), orthogonal(96, 2)
    cross = (left * np.logspace(0.0, -decades, 96)) @ right
    found, singular = polar(cross.astype(kind))
    tolerance = 1e-5 if kind is np.float64 else 3e-7 * 10**decades
    assert np.abs(found - left @ right).max() < max(tolerance, 1e-6)
    assert np.abs(found.T @ found - np.eye(96)).max() < 1e-5
    assert np.allclose(np.sort(singular)[::-1], np.logspace(0.0, -decades, 96), rtol=1e-2)


def test_a_table_of_low_rank_still_gives_an_orthogonal_matrix() -> None:
    dice = np.random.default_rng(0)
    cross = dice.standard_normal((48, 10)) @ dice.standard_normal((10, 48))
    found, _ = polar(cross)
    assert np.allclose(found.T @ found, np.eye(48), atol=1e-5)
    assert np.allclose(polar(np.zeros((8, 8)))[0].T @ polar(np.zeros((8, 8)))[0], np.eye(8), atol=1e-5)


@pytest.mark.parametrize("decades", [0.0, 0.5, 1.0])
def test_the_error_of_the_rotation_is_what_the_formula_says(decades: float) -> None:
    width, tokens, noise = 128, 1024, 0.01
    measured, predicted = [], []
    for seed in range(6):
        dice = np.random.default_rng(seed)
        table = (
            dice.standard_normal((tokens, width))
            * np.logspace(0.0, -decades, width)
            @ orthogonal(width, seed)
        )
        turn = orthogonal(width, 100 + seed)
        noisy = table @ turn + noise * table.std() * dice.standard_normal(table.shape)
        found, singular = polar(table.T @ noisy)
        matrix = dice.standard_normal((2048, width))
        error = matrix @ turn @ found.T - matrix
        measured.append(float(error.var()) / noise**2)
        predicted.append(excess_of(singular, tokens))
    assert float(np.mean(measured)) == pytest.approx(float(np.mean(predicted)), rel=0.1)
    if decades == 0.0:
        assert predicted[0] == pytest.approx((width - 1) / (2 * tokens), rel=0.1)


def test_small_turns_are_no_rotation() -> None:
    assert Rotation(np.eye(8, dtype=np.float32), 0.0).is_near_identity
    assert not Rotation(np.eye(8, dtype=np.float32)[::-1], 0.0).is_near_identity
