"""Estimators and tests against exact values, simulation and their own edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats as reference

from drupe.stats import (
    correlation_from_agreement,
    log10_at_least,
    log10_bonferroni,
    log10_normal_sf,
    log10_poisson_sf,
    robust_scale,
    wilson,
)


@given(st.floats(-8, 37))
def test_normal_tail_is_that_of_scipy(z: float) -> None:
    assert log10_normal_sf(z) == pytest.approx(reference.norm.logsf(z) / math.log(10), rel=2e-3, abs=1e-9)


def test_normal_tail_at_its_edges() -> None:
    assert log10_normal_sf(math.nan) == 0.0
    assert log10_normal_sf(-50.0) == pytest.approx(0.0)
    assert log10_normal_sf(1e6) == pytest.approx(-1e12 / 2 / math.log(10), rel=1e-3)


@given(st.floats(0, 60), st.floats(0.001, 5))
def test_normal_tail_falls_with_z_also_where_the_formula_changes(z: float, step: float) -> None:
    assert log10_normal_sf(z + step) < log10_normal_sf(z)


@given(st.floats(-400, 0), st.integers(0, 10**9))
def test_a_corrected_p_is_never_smaller_and_never_above_one(log10_p: float, candidates: int) -> None:
    corrected = log10_bonferroni(log10_p, candidates)
    assert log10_p - 1e-9 <= corrected <= 0.0


@given(st.integers(1, 60), st.integers(0, 60), st.floats(-8, -0.3))
def test_at_least_bounds_the_binomial_tail_from_above(trials: int, hits: int, log10_alpha: float) -> None:
    hits = min(hits, trials)
    exact = reference.binom.logsf(hits - 1, trials, 10**log10_alpha) / math.log(10)
    assume(exact > -300)  # the reference sums plain floats: below 1e-308 it has lost its digits
    assert log10_at_least(hits, trials, log10_alpha) >= exact - 1e-6


@given(st.integers(0, 400), st.floats(0.05, 50))
def test_poisson_bound_is_conservative(hits: int, mean: float) -> None:
    exact = reference.poisson.logsf(hits - 1, mean) / math.log(10)
    assert log10_poisson_sf(hits, mean) >= exact - 1e-6


def test_poisson_bound_at_its_edges() -> None:
    assert log10_poisson_sf(3, 3.0) == 0.0
    assert log10_poisson_sf(0, 0.0) == 0.0
    assert log10_poisson_sf(1, 0.0) == -math.inf


def test_robust_scale_measures_spread_and_ignores_outliers() -> None:
    sample = np.random.default_rng(0).standard_normal(4000) * 1.7
    sample[:300] = 80.0  # repeated layers inside the control
    assert robust_scale(sample)[1] == pytest.approx(1.85, abs=0.15)


def test_robust_scale_never_makes_a_result_stronger() -> None:
    assert robust_scale(np.zeros(50)) == (0.0, 1.0)
    assert robust_scale(np.zeros(0)) == (0.0, 1.0)
    assert robust_scale(np.full(50, 0.1), floor=2.0)[1] == 2.0


@given(st.floats(-0.999, 0.999))
def test_correlation_inverts_the_agreement_of_gaussian_signs(rho: float) -> None:
    assert correlation_from_agreement(0.5 + math.asin(rho) / math.pi) == pytest.approx(rho, abs=1e-9)


def test_correlation_from_simulated_signs() -> None:
    dice = np.random.default_rng(1)
    x = dice.standard_normal(200_000)
    y = 0.3 * x + math.sqrt(1 - 0.09) * dice.standard_normal(200_000)
    assert correlation_from_agreement(float(((x > 0) == (y > 0)).mean())) == pytest.approx(0.3, abs=0.01)


@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_holds_the_estimate_and_stays_a_proportion(trials: int, share: float) -> None:
    low, high = wilson(share * trials, trials)
    assert 0.0 <= low <= share + 1e-9
    assert share - 1e-9 <= high <= 1.0


def test_wilson_covers_at_its_level() -> None:
    dice = np.random.default_rng(2)
    hits = dice.binomial(80, 0.1, 4000)
    inside = [low <= 0.1 <= high for low, high in (wilson(int(k), 80) for k in hits)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)
    assert wilson(0, 0) == (0.0, 1.0)
