"""Statistics that the public quotes: their nulls are right, and a withdrawn accusation stays withdrawn."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from drupe.opening import open_subject
from drupe.recover.quoted import expected_cosine, gain_test, quoted, shared_axes, shift_test
from drupe.signals.interface import Measured
from zoo_files import MODELS

PUBLISHED = Path(__file__).parents[1] / "refdata" / "solar_glm_norms.json"
HIDDEN = 4096
"""Of both models of the accusation."""


def published() -> list[dict[str, float]]:
    table = json.loads(PUBLISHED.read_text("utf-8"))
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def test_the_cosines_of_the_accusation_are_what_any_two_models_show() -> None:
    """Solar-Open-100B and GLM-4.5-Air, January 2026: 0.95 and 0.99 were called proof."""
    rows = published()
    assert len(rows) == 92
    late = [row for row in rows if row["layer"] >= 10]
    assert np.median([row["cosine"] for row in late]) > 0.94
    for row in rows:
        expected = expected_cosine(row["mean_a"], row["std_a"], row["mean_b"], row["std_b"])
        assert expected == pytest.approx(row["cosine_shuffled"], abs=0.012)
        assert row["cosine"] == pytest.approx(expected, abs=0.02)


def test_what_could_speak_says_nothing() -> None:
    """No centred correlation of any layer is beyond chance when all 92 are counted."""
    z = np.array([row["cosine_centred"] for row in published()]) * np.sqrt(HIDDEN - 1)
    assert 2 * stats.norm.sf(np.abs(z).max()) * len(z) > 0.01


def test_gains_of_independent_models_are_uniform_although_layers_depend_on_each_other() -> None:
    dice = np.random.default_rng(0)
    p = []
    for _ in range(400):
        shared = dice.standard_normal((2, 200))  # what all layers of one side have in common
        a, b = (1 + 0.1 * (side + 0.5 * dice.standard_normal((8, 200))) for side in shared)
        p.append(2 * stats.norm.sf(abs(gain_test(a, b)[1])))
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert min(p) > 1e-5


def test_related_gains_are_seen() -> None:
    dice = np.random.default_rng(1)
    a = 1 + 0.1 * dice.standard_normal((6, 64))
    r, z = gain_test(a, a + 0.05 * dice.standard_normal(a.shape))
    assert r > 0.8
    assert z > 6


def test_two_smooth_curves_correlate_and_prove_nothing() -> None:
    depth = np.linspace(0, 1, 32)
    a, b = 1 + depth + 0.1 * np.sin(9 * depth), 2 + 0.5 * depth**2
    r, p = shift_test(a, b)
    assert r > 0.9
    assert p >= 1 / 32


def test_axes_of_one_table_are_its_own() -> None:
    table = np.random.default_rng(2).standard_normal((300, 40)).astype(np.float32)
    turned = table @ np.linalg.qr(np.random.default_rng(3).standard_normal((40, 40)))[0].astype(np.float32)
    other = np.random.default_rng(4).standard_normal((300, 40)).astype(np.float32)
    assert shared_axes(table, turned) == pytest.approx(1.0, abs=1e-3)
    assert shared_axes(table, other) < 0.15


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(("r0", "r1", "r2"), 2)))
def test_independent_models_are_said_to_be_not_significant(first: str, second: str) -> None:
    sides = [open_subject(str(MODELS / name), offline=True) for name in (first, second)]
    models = [side.model for side in sides if side.model is not None]
    facts = sides[0].fingerprint.weights, sides[1].fingerprint.weights
    found = {finding.signal: finding for finding in quoted(models[0], models[1], facts)}
    gains = found["weights.gains"]
    assert isinstance(gains, Measured)
    assert gains.statistic > 0.98
    assert gains.log10_p is not None
    assert gains.log10_p > -3
    for finding in found.values():
        assert isinstance(finding, Measured)
        assert "not significant by itself" in finding.caveats[0].text("en")
