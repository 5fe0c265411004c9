"""Two sets of sketches: what matches, what does not, and what may not be believed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import zoo
from drupe.signals.interface import Measured, Skipped
from drupe.signals.sketch import compare as sketch
from drupe.signals.sketch.facts import WeightFacts
from pairs import subject, untrained
from zoo_files import Checkpoint, read_model


@pytest.fixture
def facts(tmp_path: Path) -> Callable[[Checkpoint | str], WeightFacts]:
    return lambda model: subject(model, tmp_path).fingerprint.weights


Facts = Callable[[Checkpoint | str], WeightFacts]


def test_every_matrix_of_a_copy_finds_itself(facts: Facts) -> None:
    mine = facts("r0")
    result = sketch.compare(mine, facts("r0"))
    assert len(result.matched) == result.comparable == len(mine.matrices)
    assert all(match.suspect == match.source for match in result.matches)
    assert result.agreement == 1.0
    assert result.significant


def test_names_and_order_do_not_matter_to_the_content_test(facts: Facts) -> None:
    source = facts("r0")
    renamed = facts(zoo.apply(read_model("r0"), "rename_all", seed=5))
    result = sketch.compare(renamed, source)
    assert len(result.matched) >= len(source.matrices) - 1
    for match in result.matched:
        left, right = renamed.digests[match.suspect], source.digests[match.source]
        assert (left == right).all()


def test_a_finding_carries_null_control_and_effect(facts: Facts) -> None:
    (finding,) = sketch.compare(facts("r0_ft"), facts("r0")).findings
    assert isinstance(finding, Measured)
    assert finding.log10_p is not None
    assert finding.log10_p < -100
    assert finding.effect is not None
    assert finding.effect.low <= finding.effect.estimate <= finding.effect.high
    assert finding.baseline is not None
    assert finding.baseline.q99 < 6.0
    assert finding.evidence
    assert finding.caveats


@pytest.mark.parametrize("depth", ["one", "repeated"])
def test_the_sum_over_roles_sees_noise_that_hides_every_single_matrix(facts: Facts, depth: str) -> None:
    order = [0, 1, 2, 3] if depth == "one" else [0, 1, 2, 3, 0, 1, 2, 3]
    source = zoo.apply(read_model("r0"), "map_layers", order=order)
    result = sketch.compare(facts(zoo.apply(source, "noise", sigma=5.0)), facts(source))
    assert len(result.matched) <= 2
    assert result.role_log10_p < sketch.SIGNIFICANT
    assert result.significant


def test_renumbered_layers_are_found_by_the_shift(facts: Facts) -> None:
    source = read_model("r0")
    shifted = zoo.apply(zoo.apply(source, "map_layers", order=[1, 2, 3, 0]), "noise", sigma=3.0)
    assert sketch.compare(facts(shifted), facts(source)).role_log10_p < sketch.SIGNIFICANT


def test_one_shared_matrix_proves_nothing(facts: Facts) -> None:
    mine, theirs = untrained("gaussian", 70), untrained("gaussian", 71)
    name = "model.layers.2.mlp.up_proj.weight"
    result = sketch.compare(
        facts(mine.with_tensors({**mine.tensors, name: theirs.tensors[name]})), facts(theirs)
    )
    assert len(result.matched) == 1
    assert result.content_log10_p == 0.0
    assert not result.significant


def test_overdispersed_models_are_judged_by_their_own_control(facts: Facts) -> None:
    """Smooth rows make neighbouring bits dependent; the mismatched matrices of the pair show how much."""

    def smooth(seed: int) -> Checkpoint:
        model = untrained("gaussian", seed)
        tensors = {n: np.cumsum(v, axis=1) if v.ndim == 2 else v for n, v in model.tensors.items()}
        return model.with_tensors(tensors)

    for seed in range(80, 86):
        result = sketch.compare(facts(smooth(seed)), facts(smooth(seed + 50)))
        assert result.scale > 2.0
        assert not result.significant


def test_models_without_a_common_width_are_skipped(facts: Facts) -> None:
    model = untrained("gaussian", 3)
    narrow = model.with_tensors(
        {n: v[:, :40] if v.ndim == 2 else v for n, v in model.tensors.items()}, hidden_size=40
    )
    result = sketch.compare(facts(narrow), facts("w0"))
    (finding,) = result.findings
    assert isinstance(finding, Skipped)
    assert result.log10_p == 0.0


def test_constant_and_damaged_matrices_never_match(facts: Facts) -> None:
    for value in (0.0, 0.5, float("nan"), float("inf")):
        poisoned = facts(zoo.apply(read_model("r0"), "poison", value=value))
        result = sketch.compare(poisoned, poisoned)
        assert result.matches == ()
        assert not result.significant
