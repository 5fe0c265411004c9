"""Statistics under the null: p-values of independent pairs are uniform or conservative, and nobody is accused.

Seeds are fixed. Trained models: pairs of tests/models whose random starts differ; untrained ones: pairs.KINDS.
benchmarks/calibration.py prints the same numbers over larger samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

import zoo
from drupe.model import Model
from drupe.recover import profile
from drupe.recover.parts import parts_of
from drupe.recover.units import held_out_z, recover_rows, row_permutation_z
from drupe.signals.interface import Measured
from drupe.signals.sketch import compare as sketch
from drupe.signals.sketch.bits import agreement_z
from drupe.signals.sketch.facts import WeightFacts
from drupe.subject import Subject
from pairs import KINDS, judged, subject, untrained, with_tokens_of
from zoo_files import Checkpoint, Tensor, read_model

INDEPENDENT = (
    *(("r1", "r0"), ("r2", "r0"), ("r2", "r1"), ("r3", "r1"), ("r2", "r3"), ("r1", "r5"), ("r2", "r5")),
    *(("r1", "r0_ft"), ("r1", "r0_cpt"), ("r2", "r0_cpt2"), ("g1", "g0"), ("g1", "g0_ft"), ("b1", "b0")),
    *(("w0", "q0"), ("q0", "r0")),
)
ALPHA = 0.01
Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    """The committed models, opened once."""
    folder = tmp_path_factory.mktemp("trained")
    names = sorted({name for pair in INDEPENDENT for name in pair})
    subjects = {name: subject(name, folder) for name in names}
    return subjects.__getitem__


@pytest.fixture(scope="module")
def random_facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[WeightFacts]]:
    """Sketches of ten untrained models of each kind."""
    folder = tmp_path_factory.mktemp("untrained")
    return {
        kind: [subject(untrained(kind, seed), folder).fingerprint.weights for seed in range(10)]
        for kind in KINDS
    }


def model_of(side: Subject) -> Model:
    assert side.model is not None
    return side.model


def sketch_z(a: WeightFacts, b: WeightFacts) -> Floats:
    """z of every two matrices that may be compared, smoothed over the steps of a count of bits."""
    tables = []
    for key, (left, right) in sketch._groups(a, b).items():
        z = agreement_z(a.words[left], b.words[right], key[2]).ravel()
        dice = np.random.default_rng(z.size)
        tables.append(z + dice.uniform(-1, 1, z.size) / np.sqrt(key[2]))
    return np.concatenate(tables)


def assert_standard_normal(z: Floats, *, least: int) -> None:
    assert z.size >= least
    assert stats.kstest(z, "norm").pvalue > ALPHA
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert 0.9 < z.std() < 1.1


def assert_conservative(log10_p: Sequence[float]) -> None:
    """No level is passed more often than it says (three standard errors of grace)."""
    p = 10.0 ** np.minimum(np.array(log10_p), 0.0)
    for level in (0.2, 0.05, 0.01):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / p.size) + 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_sketch_z_of_untrained_models_is_standard_normal(
    kind: str, random_facts: dict[str, list[WeightFacts]]
) -> None:
    models = random_facts[kind]
    disjoint = zip(models[::2], models[1::2], strict=True)
    assert_standard_normal(np.concatenate([sketch_z(a, b) for a, b in disjoint]), least=1000)


def test_sketch_z_of_trained_models_is_standard_normal(opened: Callable[[str], Subject]) -> None:
    pairs = [(opened(a).fingerprint.weights, opened(b).fingerprint.weights) for a, b in INDEPENDENT]
    z = np.concatenate([sketch_z(a, b) for a, b in pairs if sketch._groups(a, b)])
    assert_standard_normal(z, least=2000)
    assert np.abs(z).max() < 5.0


def test_sketch_tests_are_conservative(random_facts: dict[str, list[WeightFacts]]) -> None:
    results = [sketch.compare(a, b) for models in random_facts.values() for a, b in combinations(models, 2)]
    assert len(results) >= 300
    assert_conservative([result.role_log10_p for result in results])
    assert_conservative([result.log10_p for result in results])
    assert_conservative([match.log10_p for result in results for match in result.matches])
    assert max(result.scale for result in results) < 1.6
    assert not any(result.matched for result in results)


def test_sketch_of_trained_models_stays_at_null(opened: Callable[[str], Subject]) -> None:
    for a, b in INDEPENDENT:
        result = sketch.compare(opened(a).fingerprint.weights, opened(b).fingerprint.weights)
        assert result.log10_p > -3.0
        assert result.matched == ()


def hidden_matrices(side: Subject) -> Iterator[Tensor]:
    """The matrices inside layers."""
    model = model_of(side)
    return (model.load(matrix) for matrix in model.matrices if matrix.layer is not None)


def test_row_permutation_z_of_trained_models_is_standard_normal(opened: Callable[[str], Subject]) -> None:
    """Matched and mismatched layers alike. Token tables are not exchangeable and are left out."""
    z = [
        row_permutation_z(left, right)
        for a, b in INDEPENDENT[:7]
        for left, right in product(hidden_matrices(opened(a)), hidden_matrices(opened(b)))
        if left.shape == right.shape
    ]
    assert_standard_normal(np.array(z), least=1000)


@pytest.mark.parametrize("shape", [(16, 64), (64, 64), (300, 40), (1024, 96)])
def test_row_permutation_z_of_white_matrices_is_standard_normal(shape: tuple[int, int]) -> None:
    dice = np.random.default_rng(shape)
    z = [row_permutation_z(*dice.standard_normal((2, *shape)).astype(np.float32)) for _ in range(200)]
    assert_standard_normal(np.array(z), least=200)


def test_a_row_map_is_judged_on_values_that_did_not_choose_it(opened: Callable[[str], Subject]) -> None:
    """The map always comes out; on other columns it explains nothing."""
    scores, maps = [], 0
    for a, b in INDEPENDENT[:4]:
        for left, right in zip(hidden_matrices(opened(a)), hidden_matrices(opened(b)), strict=True):
            if left.shape == right.shape:
                scores.append(held_out_z(left, right))
                maps += recover_rows(left, right).rows is not None
    z = np.array(scores)
    assert z.size > 100
    assert abs(z.mean()) < 0.35
    assert z.std() < 1.2
    assert maps == 0


def test_profile_hits_of_trained_models_stay_below_the_stated_mean(opened: Callable[[str], Subject]) -> None:
    per_layer = []
    for a, b in INDEPENDENT:
        result = profile.compare(parts_of(model_of(opened(a))), parts_of(model_of(opened(b))), None)
        if result.tested:
            assert result.log10_p > -2.0, (a, b)
            (finding,) = result.findings
            assert isinstance(finding, Measured)
            per_layer.append(result.hits / len(finding.evidence))
    assert len(per_layer) >= 12
    assert np.mean(per_layer) <= profile.NULL_HITS


@pytest.mark.parametrize("kind", KINDS)
def test_profile_hits_of_untrained_layers_stay_at_null(kind: str, tmp_path: Path) -> None:
    """Random layers behind trained tables of other starts: tokens can be paired, units have nothing in common."""
    sides = {
        name: [
            parts_of(model_of(subject(with_tokens_of(untrained(kind, 40 + 3 * n + k), name), tmp_path)))
            for k in range(3)
        ]
        for n, name in enumerate(("r0", "r1"))
    }
    results = [profile.compare(a, b, None) for a, b in product(sides["r1"], sides["r0"])]
    assert all(result.tested for result in results)
    assert all(result.log10_p > -2.0 for result in results)


@pytest.mark.parametrize(("suspect", "source"), [("r1", "r0"), ("r2", "r0_cpt"), ("g1", "g0"), ("b1", "b0")])
@pytest.mark.parametrize("side", ["suspect", "source"])
def test_a_search_over_nameless_matrices_pays_for_its_tries(
    suspect: str, source: str, side: str, tmp_path: Path
) -> None:
    models = {"suspect": read_model(suspect), "source": read_model(source)}
    models[side] = zoo.apply(models[side], "rename_all", seed=11)
    result = judged(models["suspect"], models["source"], tmp_path)
    assert result.label in {"same_design", "unrelated"}
    assert result.comparison.lineage is not None
    assert result.comparison.lineage.profile.log10_p > -2.0


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_models_are_never_called_related(kind: str, tmp_path: Path) -> None:
    for seed in range(8):
        result = judged(untrained(kind, 100 + seed), untrained(kind, 200 + seed), tmp_path)
        assert result.relation in {"independent", "inconclusive"}


# What unrelated models share without being related: each of these was once called a derivative.
def with_tensors(model: Checkpoint, **tensors: Any) -> Checkpoint:
    added = {name.replace("__", "."): np.asarray(values, np.float32) for name, values in tensors.items()}
    return model.with_tensors({**model.tensors, **added})


def sinusoids(rows: int, columns: int, *, interleaved: bool) -> Floats:
    """The position table of Vaswani et al. (2017), in both layouts that are in use."""
    angles = np.arange(rows)[:, None] / 10000 ** (np.arange(columns // 2) / (columns // 2))
    waves = np.stack([np.sin(angles), np.cos(angles)], -1)
    return waves.reshape(rows, columns) if interleaved else np.concatenate([waves[..., 0], waves[..., 1]], 1)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("suspect", "source"), [("g1", "g0"), ("b1", "b0")])
def test_a_shared_position_table_is_no_evidence(
    suspect: str, source: str, interleaved: bool, tmp_path: Path
) -> None:
    sides = []
    for name in (suspect, source):
        model = read_model(name)
        tensors = {
            tensor: sinusoids(*values.shape, interleaved=interleaved).astype(np.float32)
            if "wpe" in tensor or "position_embeddings" in tensor
            else values
            for tensor, values in model.tensors.items()
        }
        sides.append(model.with_tensors(tensors))
    assert judged(*sides, tmp_path).relation == "independent"


def fourier(size: int) -> dict[str, Floats]:
    angles = 2 * np.pi * np.outer(np.arange(size // 2 + 1), np.arange(size)) / size
    window = np.hanning(size)
    return {"stft__real": np.cos(angles) * window, "stft__imag": -np.sin(angles) * window}


BUFFERS: dict[str, dict[str, Floats]] = {
    "positions in every layer": {
        f"model__layers__{layer}__pe": sinusoids(64, 64, interleaved=True) for layer in range(4)
    },
    "rotary caches": {
        f"model__layers__{layer}__rotary__{name}": wave(
            np.outer(np.arange(256), np.tile(10000.0 ** -(np.arange(16) / 16), 2))
        )
        for layer in range(4)
        for name, wave in (("cos_cached", np.cos), ("sin_cached", np.sin))
    },
    "a Fourier basis": fourier(128),
    "cosine transforms": {
        f"l{i}__dct": np.cos(np.pi * np.outer(np.arange(64), np.arange(64) + 0.5) / 64) for i in range(4)
    },
    "random features of one seed": {
        f"l{i}__features": np.random.default_rng(i).standard_normal((64, 64)) for i in range(4)
    },
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_shared_buffers_are_no_evidence(kind: str, tmp_path: Path) -> None:
    mine, theirs = (with_tensors(read_model(name), **BUFFERS[kind]) for name in ("r1", "r0"))
    assert judged(mine, theirs, tmp_path).relation == "independent"


@pytest.mark.parametrize("rho", [0.5, 0.7, 0.9, 1.0])
def test_votes_that_depend_on_each_other_are_no_evidence(rho: float, tmp_path: Path) -> None:
    """Gate and up alike inside each model: their votes then agree between unrelated models as well."""

    def tied(name: str) -> Checkpoint:
        tensors = dict(read_model(name).tensors)
        for up in [tensor for tensor in tensors if "up_proj" in tensor]:
            gate = tensors[up.replace("up_proj", "gate_proj")]
            tensors[up] = (rho * gate + np.sqrt(1 - rho**2) * tensors[up]).astype(np.float32)
        return read_model(name).with_tensors(tensors)

    assert judged(tied("r1"), tied("r0"), tmp_path).label in {"same_design", "inconclusive"}


def test_shared_norm_gains_are_no_evidence(tmp_path: Path) -> None:
    mine, theirs = read_model("r1"), read_model("r0")
    gains = {name: theirs.tensors[name] for name, values in mine.tensors.items() if values.ndim == 1}
    assert judged(mine.with_tensors({**mine.tensors, **gains}), theirs, tmp_path).relation == "independent"


@pytest.mark.parametrize("layer", [0, 1])
def test_models_of_one_layer_are_not_accused(layer: int, tmp_path: Path) -> None:
    for a, b in (("r1", "r0"), ("r2", "r0"), ("g1", "g0"), ("b1", "b0")):
        sides = [zoo.apply(read_model(name), "map_layers", order=[layer]) for name in (a, b)]
        assert judged(*sides, tmp_path).label in {"same_design", "inconclusive"}


def test_a_start_with_structure_is_no_evidence(tmp_path: Path) -> None:
    """Identity plus noise: every matrix of one model resembles every matrix of the other."""

    def identity(seed: int) -> Checkpoint:
        model = untrained("gaussian", seed)
        tensors = {
            name: (0.1 * values + 0.05 * np.eye(*values.shape)).astype(np.float32)
            if values.ndim == 2
            else values
            for name, values in model.tensors.items()
        }
        return model.with_tensors(tensors)

    for seed in range(4):
        result = judged(identity(300 + seed), identity(400 + seed), tmp_path)
        assert result.label in {"same_design", "inconclusive"}
