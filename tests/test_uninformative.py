"""What carries no lineage is recognised; what a model learned is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drupe.readers.interface import FloatArray
from drupe.uninformative import State, classify, is_fixed_transform, lag1

DICE = np.random.default_rng(4)
NOISE = DICE.standard_normal((8, 128), dtype=np.float32)


def with_value(value: float) -> FloatArray:
    sample = NOISE.copy()
    sample[3, 7] = value
    return sample


def zeros_but(share: float) -> FloatArray:
    return np.where(DICE.random(NOISE.shape) < share, NOISE, np.float32(0))


SINE = np.sin(np.arange(8)[:, None] / 3 + np.arange(128)[None] / 9).astype(np.float32)


@pytest.mark.parametrize(
    ("sample", "state"),
    [
        (NOISE, State.INFORMATIVE),
        (with_value(np.nan), State.NOT_FINITE),
        (with_value(np.inf), State.NOT_FINITE),
        (with_value(-np.inf), State.NOT_FINITE),
        (with_value(3.3e38), State.NOT_FINITE),  # no working model holds it, and its square overflows
        (np.zeros_like(NOISE), State.ALL_ZERO),
        (-np.zeros_like(NOISE), State.ALL_ZERO),
        (np.ones_like(NOISE), State.FEW_VALUES),
        (np.sign(NOISE), State.FEW_VALUES),
        (np.round(NOISE.clip(-1.4, 1.4)), State.FEW_VALUES),
        (np.where(NOISE > 0.2, np.float32(1), NOISE), State.INFORMATIVE),
        (np.where(NOISE > -0.3, np.float32(1), NOISE), State.FEW_VALUES),
        (zeros_but(0.005), State.FEW_VALUES),
        (zeros_but(0.25), State.INFORMATIVE),
        (NOISE[:1], State.TOO_SMALL),
        (NOISE[:2, :31], State.TOO_SMALL),
        (NOISE[:2, :32], State.INFORMATIVE),
        (NOISE[:0], State.ALL_ZERO),
        (np.round(NOISE * 8) / 8, State.INFORMATIVE),
    ],
)
def test_states(sample: FloatArray, state: State) -> None:
    with np.errstate(over="ignore", invalid="ignore"):  # as the stages do: a huge value is no warning
        for learned in (True, False):
            assert classify(sample, learned=learned) is state


def test_a_smooth_table_is_one_unless_its_role_says_that_it_was_learned() -> None:
    assert classify(SINE, learned=False) is State.SMOOTH
    assert classify(SINE, learned=True) is State.INFORMATIVE
    assert classify(np.ascontiguousarray(SINE.T), learned=False) is State.SMOOTH


@given(st.floats(0.01, 1e6), st.integers(0, 2**32 - 1))
def test_neither_scale_nor_seed_matters(scale: float, seed: int) -> None:
    sample = np.float32(scale) * np.random.default_rng(seed).standard_normal((8, 64), dtype=np.float32)
    assert classify(sample, learned=False) is State.INFORMATIVE
    assert abs(lag1(sample)) < 0.4


def test_lag1_of_constants_and_ramps() -> None:
    assert lag1(np.ones((4, 32), np.float32)) == 0.0
    assert lag1(np.tile(np.arange(64, dtype=np.float32), (4, 1))) > 0.9


def dct(size: int) -> FloatArray:
    k, n = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    return np.cos(np.pi * (n + 0.5) * k / size).astype(np.float32)


def test_a_cosine_basis_is_a_fixed_transform_and_noise_is_not() -> None:
    assert is_fixed_transform(dct(256))
    assert is_fixed_transform(np.concatenate([dct(256), -dct(256)]))
    assert not is_fixed_transform(DICE.standard_normal((256, 256), dtype=np.float32))
    assert not is_fixed_transform(dct(31))
    assert not is_fixed_transform(np.full((64, 64), np.nan, np.float32))
    assert not is_fixed_transform(np.zeros((64, 64), np.float32))


def test_the_numbers_of_the_states_are_part_of_the_format() -> None:
    assert [(state.name, int(state)) for state in State] == [
        ("INFORMATIVE", 0),
        ("TOO_SMALL", 1),
        ("NOT_FINITE", 2),
        ("ALL_ZERO", 3),
        ("FEW_VALUES", 4),
        ("SMOOTH", 5),
        ("FIXED_TRANSFORM", 6),
    ]
