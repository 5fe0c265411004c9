"""The bits of one matrix: fixed by the width alone, fair under independence, steady under what keeps the basis."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drupe.signals.sketch import bits
from zoo import quantise_groups
from zoo_files import Tensor


def block(width: int, seed: int = 0) -> Tensor:
    start, stop = bits.span(width)
    shape = (bits.rows(width), stop - start)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def z_of(left: Tensor, right: Tensor, width: int) -> float:
    a, b = bits.sketch_bits(left, width), bits.sketch_bits(right, width)
    assert a.count == b.count
    return float(bits.agreement_z(a.words[None], b.words[None], a.count)[0, 0])


@given(st.integers(32, 200_000))
@settings(max_examples=60)
def test_places_lie_inside_the_row_and_cost_few_pages(width: int) -> None:
    start, stop = bits.span(width)
    chosen = bits.columns(width)
    assert 0 <= start < stop <= width
    assert stop - start <= bits.SPAN
    assert bits.window(width)[0] <= start
    assert stop <= bits.window(width)[1]
    assert bits.rows(width) <= 8
    assert chosen.shape[0] == bits.rows(width) // 2
    assert chosen.min() >= 0
    assert chosen.max() < stop - start
    assert (np.diff(chosen, axis=1) > 0).all()
    assert chosen.size <= bits.BITS


def test_places_are_the_same_on_every_machine() -> None:
    drawn = b"".join(bits.columns(width).astype("<i8").tobytes() for width in (32, 64, 576, 4096, 14336))
    spans = [bits.span(width) for width in (32, 64, 576, 4096, 14336)]
    assert hashlib.sha256(drawn).hexdigest()[:16] == "81784272abe92db2"
    assert spans == [(0, 32), (0, 64), (0, 256), (3072, 3328), (1280, 1536)]


@pytest.mark.parametrize("width", [32, 64, 576, 4096])
def test_a_matrix_agrees_with_itself_and_disagrees_with_its_negative(width: int) -> None:
    values = block(width)
    count = bits.sketch_bits(values, width).count
    assert z_of(values, values, width) == pytest.approx(np.sqrt(count))
    assert z_of(values, -values, width) == pytest.approx(-np.sqrt(count))


@pytest.mark.parametrize("width", [64, 576, 4096])
@given(exponent=st.integers(-60, 60), seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_scale_and_column_means_do_not_move_a_bit(width: int, exponent: int, seed: int) -> None:
    dice = np.random.default_rng(seed)
    shape = block(width).shape
    values = dice.permutation(shape[0] * shape[1]).reshape(shape).astype(np.float32)  # no ties, sums exact
    expected = bits.sketch_bits(values, width).words
    means = dice.integers(-(2**16), 2**16, shape[1]).astype(np.float32)
    assert (bits.sketch_bits(values * np.float32(2.0**exponent), width).words == expected).all()
    assert (bits.sketch_bits(values + means, width).words == expected).all()


@pytest.mark.parametrize(
    ("rho", "floor"), [(0.99, 18.0), (0.7, 9.0), (0.45, 4.0)], ids=["fine-tune", "noise 1", "noise 2"]
)
def test_agreement_follows_the_correlation(rho: float, floor: float) -> None:
    """z of one matrix is about 22.6 x 2 asin(rho) / pi (METHODS: 14.4 rho for small rho)."""
    scores = []
    for seed in range(20):
        values, other = block(576, seed), block(576, seed + 100)
        mixed = np.float32(rho) * values + np.float32(np.sqrt(1 - rho**2)) * other
        scores.append(z_of(values, mixed, 576))
    assert np.mean(scores) == pytest.approx(np.sqrt(512) * 2 * np.arcsin(rho) / np.pi, abs=0.8)
    assert min(scores) > floor


@pytest.mark.parametrize("bit_count", [2, 3, 4, 8])
def test_quantised_values_are_still_recognised(bit_count: int) -> None:
    values = block(576)
    assert z_of(values, quantise_groups(values, bits=bit_count, group=32), 576) > 6.0


def test_ties_of_unrelated_tables_agree_like_coins() -> None:
    """Pruned models are full of equal zeros; the coin that decides them is tossed by the sampled values."""
    scores = []
    for seed in range(300):
        left, right = (block(576, 2 * seed + side) for side in (0, 1))
        left[np.abs(left) < 1.9], right[np.abs(right) < 1.9] = 0.0, 0.0
        scores.append(z_of(left, right, 576))
    assert abs(np.mean(scores)) < 0.2
    assert 0.85 < np.std(scores) < 1.15


def test_values_that_are_no_numbers_decide_nothing() -> None:
    values = block(64)
    values[:, :10] = np.nan
    assert bits.value_digest(values) == bits.value_digest(values.copy())
    assert bits.sketch_bits(values, 64).count == bits.sketch_bits(block(64), 64).count
    signed = np.zeros((8, 64), np.float32)
    assert bits.value_digest(signed) == bits.value_digest(-signed)
