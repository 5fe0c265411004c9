"""From findings to conclusions: what each step may claim, and where the power ends it must say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from drupe.comparison import SAMPLE
from drupe.diagnose import Kind, Origin, diagnose
from drupe.recover.spectrum import Start
from pairs import Judged, judged
from zoo_files import Checkpoint, read_model

RELATED = {"copy", "derivative"}
DOUBT = {"inconclusive"}


def edited(model: str | Checkpoint, *edits: tuple[str, dict[str, Any]]) -> Checkpoint:
    result = read_model(model) if isinstance(model, str) else model
    for kind, parameters in edits:
        result = zoo.apply(result, kind, **parameters)
    return result


@pytest.fixture(scope="module")
def independent(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    return judged("r1", "r0", tmp_path_factory.mktemp("independent"))


@pytest.fixture(scope="module")
def shared_start(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    return judged("r3", "r0", tmp_path_factory.mktemp("shared"))


def test_a_null_counts_only_when_nothing_is_suggestive(independent: Judged) -> None:
    c = independent.comparison
    assert diagnose(c).origin is Origin.NONE
    hint = replace(c, sketch=replace(c.sketch, log10_p=-5.0))
    assert diagnose(hint).origin is Origin.UNDETERMINED
    assert c.lineage is not None
    profile = replace(c.lineage.profile, log10_p=-4.0)
    hint = replace(c, lineage=replace(c.lineage, profile=profile))
    assert diagnose(hint).origin is Origin.UNDETERMINED


def test_a_map_that_was_possible_but_not_tested_is_no_independence(independent: Judged) -> None:
    c = independent.comparison
    assert c.lineage is not None
    untested = replace(c.lineage, profile=replace(c.lineage.profile, tested=False))
    assert diagnose(replace(c, lineage=untested)).origin is Origin.UNTESTED
    assert diagnose(replace(c, lineage=None)).origin is Origin.UNTESTED


def test_an_excluded_map_is_independence_and_says_why(tmp_path: Path) -> None:
    result = judged("w0", "r0", tmp_path)
    assert result.diagnosis.origin is Origin.EXCLUDED
    assert result.diagnosis.reasons


def test_a_shared_start_needs_the_spectrum_to_say_so(shared_start: Judged) -> None:
    c = shared_start.comparison
    assert diagnose(c).origin is Origin.SHARED_START
    assert c.lineage is not None
    assert c.lineage.spectrum is not None
    for start in (Start.UNDETERMINED, None):
        spectrum = replace(c.lineage.spectrum, start=start) if start else None
        doubtful = replace(c, lineage=replace(c.lineage, spectrum=spectrum))
        assert diagnose(doubtful).origin is Origin.UNDETERMINED


def test_an_untrained_source_proves_no_descent_by_its_spectrum(shared_start: Judged) -> None:
    c = shared_start.comparison
    assert c.lineage is not None
    assert c.lineage.spectrum is not None
    spectrum = replace(c.lineage.spectrum, start=Start.LINEAGE, trained=False)
    assert diagnose(replace(c, lineage=replace(c.lineage, spectrum=spectrum))).origin is not Origin.DESCENT


def test_one_matched_matrix_is_no_descent(tmp_path: Path) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    mine, theirs = read_model("r1"), read_model("r0")
    one = mine.with_tensors({**mine.tensors, name: theirs.tensors[name]})
    assert judged(one, theirs, tmp_path).label not in RELATED


# How far each change may go before the relation is lost, on the smallest models (d 64); larger ones bear more.
FLOORS: tuple[tuple[str, str, tuple[tuple[str, dict[str, Any]], ...]], ...] = (
    ("noise 5", "r0", (("noise", {"sigma": 5.0}),)),
    ("noise 5, renamed", "r0", (("noise", {"sigma": 5.0}), ("rename_all", {}))),
    ("pruned to 3 %", "r0", (("prune", {"sparsity": 0.97}),)),
    ("pruned to 10 %, renamed", "r0", (("prune", {"sparsity": 0.9}), ("rename_all", {}))),
    ("two bits, renamed", "r0", (("quantise", {"bits": 2}), ("rename_all", {}))),
    ("two fifths of a merge", "r0", (("merge", {"other": "r1", "share": 0.4}),)),
    ("half of a merge, renamed", "r0", (("merge", {"other": "r1", "share": 0.5}), ("rename_all", {}))),
    ("layers dropped, noise 3", "r0", (("map_layers", {"order": [1, 2, 3]}), ("noise", {"sigma": 3.0}))),
    (
        "units and heads, noise 1",
        "r0",
        (("permute_units", {}), ("permute_heads", {}), ("noise", {"sigma": 1.0})),
    ),
    ("rotated, noise 1.5", "r0", (("rotate", {}), ("noise", {"sigma": 1.5}))),
    ("rotated, renamed, noise 1", "r0", (("rotate", {}), ("noise", {"sigma": 1.0}), ("rename_all", {}))),
    ("continued, units, renamed", "r0_cpt", (("permute_units", {}), ("rename_all", {}))),
    ("continued twice, heads, units", "r0_cpt2", (("permute_units", {}), ("permute_heads", {}))),
    ("continued twice, rotated, renamed", "r0_cpt2", (("rotate", {}), ("rename_all", {}))),
    ("continued twice, noise 3", "r0_cpt2", (("noise", {"sigma": 3.0}),)),
)


@pytest.mark.parametrize(("model", "edits"), [row[1:] for row in FLOORS], ids=[row[0] for row in FLOORS])
def test_power_floor(model: str, edits: tuple[tuple[str, dict[str, Any]], ...], tmp_path: Path) -> None:
    assert judged(edited(model, *edits), "r0", tmp_path).label in RELATED


def shuffled_rows(model: Checkpoint) -> Checkpoint:
    order = np.random.default_rng(0).permutation(1024)
    return model.with_tensors({n: v[order] if v.shape[0] == 1024 else v for n, v in model.tensors.items()})


def transposed(model: Checkpoint) -> Checkpoint:
    return model.with_tensors(
        {n: np.ascontiguousarray(v.T) if v.ndim == 2 else v for n, v in model.tensors.items()}
    )


BEYOND: dict[str, Checkpoint] = {
    "noise of ten deviations": edited("r0", ("noise", {"sigma": 10.0})),
    "noise of twenty": edited("r0", ("noise", {"sigma": 20.0})),
    "a fifth of a merge": edited("r0", ("merge", {"other": "r1", "share": 0.2})),
    "a third of a merge with a sibling": edited("r0", ("merge", {"other": "r3", "share": 0.3})),
    "rotated, tokens shuffled": shuffled_rows(edited("r0", ("rotate", {}))),
    "rotated, tokens shuffled, no tokenizer": shuffled_rows(
        edited("r0", ("rotate", {}), ("drop_tokenizer", {}))
    ),
    "rotated, few tokens left": edited("r0", ("trim_vocabulary", {"keep": 150}), ("rotate", {})),
    "turned and renamed": edited(transposed(read_model("r0")), ("rename_all", {})),
}


@pytest.mark.parametrize("case", BEYOND)
def test_beyond_its_power_a_relation_is_doubt_and_never_independence(case: str, tmp_path: Path) -> None:
    assert judged(BEYOND[case], "r0", tmp_path).label in RELATED | DOUBT


def test_opaque_names_on_both_sides_leave_a_rotation_untested(tmp_path: Path) -> None:
    suspect = edited("r0", ("rotate", {}), ("rename_all", {"seed": 1}))
    assert judged(suspect, edited("r0", ("rename_all", {"seed": 2})), tmp_path).label in DOUBT


def grown(model: Checkpoint, units: int = 32) -> Checkpoint:
    """Further units that write nothing: another width, the same function."""
    dice, tensors = np.random.default_rng(3), dict(model.tensors)
    for name, values in model.tensors.items():
        if "gate_proj" in name or "up_proj" in name:
            new = values.std() * dice.standard_normal((units, values.shape[1]))
            tensors[name] = np.concatenate([values, new.astype(np.float32)])
        elif "down_proj" in name:
            tensors[name] = np.concatenate([values, np.zeros((values.shape[0], units), np.float32)], axis=1)
    return model.with_tensors(tensors, intermediate_size=128 + units)


@pytest.mark.parametrize("values", [{}, {"num_attention_heads": 2, "num_key_value_heads": 1}])
def test_a_configuration_cannot_exclude_a_map(values: dict[str, Any], tmp_path: Path) -> None:
    model = edited(grown(edited("r0", ("rotate", {}))), ("set_config", {"values": values}))
    assert judged(model, "r0", tmp_path).label in RELATED
    assert judged(replace(model, config={}), "r0", tmp_path).label in RELATED


def test_a_sample_never_claims_what_it_did_not_read(tmp_path: Path) -> None:
    rotated = judged(edited("r0", ("rotate", {})), "r0", tmp_path, SAMPLE)
    assert rotated.label in DOUBT
    fine_tuned = judged("r0_ft", "r0", tmp_path, SAMPLE)
    assert fine_tuned.label in RELATED
    assert fine_tuned.diagnosis.caveats
    assert judged("r3", "r0", tmp_path, SAMPLE).label in DOUBT
    assert judged("r1", "r0", tmp_path, SAMPLE).label not in RELATED


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0, 3.0])
def test_noise_is_named_with_its_size(sigma: float, tmp_path: Path) -> None:
    result = judged(edited("r0", ("noise", {"sigma": sigma})), "r0", tmp_path)
    (noise,) = [item for item in result.diagnosis.transformations if item.kind is Kind.GAUSSIAN_NOISE]
    assert result.relation == "equivalent"
    estimate = noise.parameters["relative_sigma"]
    assert estimate == pytest.approx(sigma, rel=0.02)
    low, high = noise.parameters["low"], noise.parameters["high"]
    assert isinstance(low, float)
    assert isinstance(high, float)
    assert low < estimate < high


def changed(model: Checkpoint, kind: str) -> Checkpoint:
    dice = np.random.default_rng(4)

    def noisy(values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        if values.ndim < 2:
            return values
        white = {
            "laplace": lambda: 0.1 * values.std() * dice.laplace(size=values.shape),
            "multiplicative": lambda: 0.05 * values * dice.standard_normal(values.shape),
            "per row": lambda: 0.1 * values.std(1, keepdims=True) * dice.standard_normal(values.shape),
            "sparse": lambda: (
                values.std() * dice.standard_normal(values.shape) * (dice.random(values.shape) < 0.01)
            ),
        }[kind]()
        return (values + white).astype(np.float32)

    return model.with_tensors({name: noisy(values) for name, values in model.tensors.items()})


@pytest.mark.parametrize("kind", ["laplace", "multiplicative", "per row", "sparse"])
def test_noise_of_any_shape_is_not_called_training(kind: str, tmp_path: Path) -> None:
    result = judged(changed(read_model("r0"), kind), "r0", tmp_path)
    # Few values changed far have no direction, and training does that too (a published speech net: kurtosis 60).
    assert result.relation == ("derived" if kind == "sparse" else "equivalent")
    assert not result.kinds & {"fine_tuned", "continued_pretraining", "low_rank_update"}


@pytest.mark.parametrize(("bits", "group"), [(8, 32), (8, 0), (6, 32), (5, 32), (4, 32), (3, 32), (2, 32)])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_rounding_to_any_grid_is_not_called_training(
    bits: int, group: int, dtype: str, tmp_path: Path
) -> None:
    model = edited("r0", ("quantise", {"bits": bits, "group": group}), ("cast", {"to": dtype}))
    result = judged(model, "r0", tmp_path)
    assert result.relation == "equivalent"


def test_training_under_noise_is_seen_while_it_is_larger(tmp_path: Path) -> None:
    result = judged(edited("r0_ft", ("noise", {"sigma": 0.02})), "r0", tmp_path)
    assert result.relation == "derived"
    hidden = judged(edited("r0_ft", ("noise", {"sigma": 0.5})), "r0", tmp_path)
    assert hidden.relation == "equivalent"  # true of what can be seen; the report says how much noise hides


@pytest.mark.parametrize(
    ("base", "edits", "kinds"),
    [
        (
            "r0",
            (("prune", {"sparsity": 0.3}), ("quantise", {"bits": 4, "group": 32})),
            {"pruned", "quantised"},
        ),
        ("r0_ft", (("prune", {"sparsity": 0.3}),), {"pruned", "fine_tuned"}),
        ("r0_ft", (("rescale_units", {}),), {"fine_tuned", "rescaled"}),
        (
            "r0",
            (("noise", {"sigma": 0.1}), ("quantise", {"bits": 4, "group": 32})),
            {"gaussian_noise", "quantised"},
        ),
        ("r0", (("quantise", {"bits": 8}), ("noise", {"sigma": 0.02})), {"gaussian_noise", "quantised"}),
        (
            "r0",
            (("quantise", {"bits": 4}), ("permute_units", {}), ("rotate", {})),
            {"quantised", "rotated", "permuted"},
        ),
        (
            "r0",
            (("rotate", {}), ("permute_heads", {}), ("quantise", {"bits": 4})),
            {"quantised", "rotated", "permuted"},
        ),
        ("r0", (("rotate", {}), ("map_layers", {"order": [0, 2, 3]})), {"rotated", "layers_dropped"}),
        (
            "r0",
            (("map_layers", {"order": [0, 1, 2, 1, 2, 3]}), ("prune_hidden", {"keep": 0.75})),
            {"depth_upscaled", "width_pruned"},
        ),
        (
            "r0",
            (("quantise", {"bits": 8, "group": 0}), ("prune_hidden", {"keep": 0.75})),
            {"quantised", "width_pruned"},
        ),
        (
            "r0",
            (("permute_vocabulary", {}), ("extend_vocabulary", {"count": 32})),
            {"permuted", "vocabulary_changed"},
        ),
    ],
)
def test_several_changes_are_all_named(
    base: str, edits: tuple[tuple[str, dict[str, object]], ...], kinds: set[str], tmp_path: Path
) -> None:
    assert judged(edited(base, *edits), "r0", tmp_path).kinds - {"continued_pretraining"} == kinds


@pytest.mark.parametrize("strangers", [("r1", "r0"), ("r2", "r0")])
def test_no_composition_makes_strangers_related(strangers: tuple[str, str], tmp_path: Path) -> None:
    for number, edits in enumerate(
        (
            (("rotate", {}), ("prune_hidden", {"keep": 0.75})),
            (("quantise", {"bits": 4}), ("permute_hidden", {"flip": True})),
            (("rotate", {}), ("map_layers", {"order": [1, 0, 3]}), ("quantise", {"bits": 8})),
            (("prune", {"sparsity": 0.5}), ("permute_units", {}), ("noise", {"sigma": 0.5})),
        )
    ):
        found = judged(edited(strangers[0], *edits), strangers[1], tmp_path / str(number))
        assert found.label not in RELATED


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("keep", [None, 0.75])
def test_what_a_rotation_leaves_is_judged_by_the_type_that_stores_it(
    dtype: str, keep: float | None, tmp_path: Path
) -> None:
    """Half a percent of noise is rounding in bf16 only; a rotation alone leaves nothing in any type."""
    exact = edited("r0", ("rotate", {}), *([("prune_hidden", {"keep": keep})] if keep else []))
    kinds = {"rotated", "width_pruned"} if keep else {"rotated"}
    plain = judged(edited(exact, ("cast", {"to": dtype})), "r0", tmp_path / "plain")
    assert plain.kinds == kinds
    if keep is not None:
        return  # noise over fewer dimensions may read as training too: docs/limitations.md
    noisy = edited(edited(exact, ("noise", {"sigma": 0.005})), ("cast", {"to": dtype}))
    found = judged(noisy, "r0", tmp_path / "noisy").kinds
    assert found == (kinds if dtype == "bf16" else kinds | {"gaussian_noise"})


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_little_training_after_rounding_is_no_copy(share: float, tmp_path: Path) -> None:
    """The rounding is replayed, so that what was learned after it is seen, however small beside its errors."""
    source, tuned = read_model("r0"), read_model("r0_ft")
    rounded = edited("r0", ("quantise", {"bits": 4, "group": 32}))
    learned = {name: share * (tuned.tensors[name] - source.tensors[name]) for name in source.tensors}
    suspect = rounded.with_tensors({name: values + learned[name] for name, values in rounded.tensors.items()})
    found = judged(edited(suspect, ("cast", {"to": "fp32"})), "r0", tmp_path)
    assert found.label == "derivative"
    assert found.kinds >= {"quantised", "fine_tuned"}
    alone = judged(edited(rounded, ("cast", {"to": "fp32"})), "r0", tmp_path / "alone")
    assert (alone.label, "fine_tuned" in alone.kinds) == ("copy", False)
