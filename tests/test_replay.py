"""Replayed quantisers: the rule is named under rounding, noise and training, and never where none was used."""

from __future__ import annotations

import numpy as np
import pytest

from drupe.replay import MIN_Z, RULES, replay
from drupe.residual import to_bfloat16
from zoo_files import Tensor, read_model


def weights(shape: tuple[int, int] = (96, 256), seed: int = 0) -> Tensor:
    return (0.02 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.bits}-{rule.scheme or rule.symmetric}")
@pytest.mark.parametrize("group", [0, 64])
def test_every_rule_is_found_again_after_rounding_to_16_bits(rule: object, group: int) -> None:
    a = weights()
    width = group or a.shape[1]
    b = to_bfloat16(rule.rounded(a.reshape(-1, width).astype(np.float64)).reshape(a.shape).astype(np.float32))  # type: ignore[attr-defined]
    found = replay(a, b)
    assert found is not None
    assert found.grid.bits == rule.bits  # type: ignore[attr-defined]
    assert found.grid.group == group
    assert np.abs(found.rounded - b).max() <= np.abs(b).max() / 128


@pytest.mark.parametrize("share", [1.0, 3.0])
def test_noise_beside_the_rounding_does_not_hide_it(share: float) -> None:
    a = weights()
    rounded = RULES[0].rounded(a.astype(np.float64)).astype(np.float32)
    error = float((rounded - a).std())
    noise = share * error * np.random.default_rng(1).standard_normal(a.shape).astype(np.float32)
    found = replay(a, rounded + noise)
    assert found is not None
    assert found.grid.bits == 8
    assert np.array_equal(found.rounded, rounded)


@pytest.mark.parametrize("child", ["r0_ft", "r0_cpt", "r0_cpt2"])
def test_no_rule_is_seen_in_training(child: str) -> None:
    source, suspect = read_model("r0"), read_model(child)
    for name, values in source.tensors.items():
        if values.ndim == 2:
            assert replay(values, suspect.tensors[name]) is None


@pytest.mark.parametrize("kind", ["noise", "scale", "prune", "half", "other", "equal", "nan", "zero"])
def test_no_rule_is_seen_in_other_changes(kind: str) -> None:
    a = weights()
    dice = np.random.default_rng(2)
    changed = {
        "noise": a * (1 + 0.05 * dice.standard_normal(a.shape)),
        "scale": 0.9 * a,
        "prune": np.where(np.abs(a) < np.median(np.abs(a)), 0.0, a),
        "half": a.astype(np.float16),
        "other": weights(seed=9),
        "equal": a,
        "nan": np.full_like(a, np.nan),
        "zero": np.zeros_like(a),
    }[kind].astype(np.float32)
    assert replay(a, changed) is None
    assert replay(np.zeros_like(a), changed) is None or kind == "nan"


def test_the_correlation_with_an_unrelated_change_is_as_good_as_normal() -> None:
    """Under the null r sqrt(n) of each rule is standard normal: what the threshold rests on."""
    scores = []
    for seed in range(60):
        a, d = weights((64, 64), seed), weights((64, 64), 1000 + seed)
        for rule in RULES[:6]:
            error = rule.rounded(a.astype(np.float64)) - a
            error -= a * float((error * a).sum() / (a**2).sum())
            scores.append(float((error * d).sum() / np.sqrt((error**2).sum() * (d**2).sum())) * 64.0)
    assert abs(float(np.std(scores)) - 1.0) < 0.15
    assert max(scores) < MIN_Z
