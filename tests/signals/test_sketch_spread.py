from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from drupe.model import Matrix
from drupe.opening import is_stored, open_subject
from drupe.signals.sketch.spread import spread_matrices
from drupe.workflows import compare, sketch
from range_server import RangeServer, Repository

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
MODELS = Path(__file__).parents[1] / "models"


def llama(layers: int) -> list[Matrix]:
    inside = [Matrix(f"{k}.{role}", 512, 512, role=role, layer=k) for k in range(layers) for role in ROLES]
    embed, head = (Matrix(name, 1000, 512, role=name) for name in ("embed", "head"))
    return [embed, *inside, head]


@pytest.mark.parametrize("layers", [8, 9, 32, 80, 126])
def test_a_deep_model_costs_as_many_matrices_as_a_shallow_one(layers: int) -> None:
    chosen = spread_matrices(llama(layers))
    assert len(chosen) == 48 + 2
    numbers = {matrix.layer for matrix in chosen} - {None}
    assert len(numbers) == 8
    assert {0, layers - 1} <= numbers
    assert {m.role for m in chosen if m.layer is None} == {"embed", "head"}


def test_every_role_is_seen_in_most_layers() -> None:
    seen = Counter(matrix.role for matrix in spread_matrices(llama(32)) if matrix.layer is not None)
    assert set(seen) == set(ROLES)
    assert min(seen.values()) >= 6


def test_a_shallow_model_is_sketched_whole_and_in_order() -> None:
    matrices = llama(6)
    assert spread_matrices(matrices) == tuple(matrices)


def test_experts_do_not_multiply_the_cost() -> None:
    matrices = [
        Matrix(f"{layer}.{expert}.up", 512, 512, role="up", layer=layer)
        for layer in range(32)
        for expert in range(64)
    ]
    assert len(spread_matrices(matrices)) == 48


def test_names_that_say_nothing_are_thinned_evenly() -> None:
    matrices = [replace(matrix, role=None, layer=None) for matrix in llama(32)]
    chosen = spread_matrices(matrices)
    assert len(chosen) == 48
    assert chosen[0] == matrices[0]
    assert chosen[-1] == matrices[-1]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RangeServer]:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with RangeServer() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        files = {path.name: path.read_bytes() for path in sorted((MODELS / "r0_ft").iterdir())}
        running.repositories["org/tuned"] = Repository(files, "c" * 40)
        yield running


def test_a_remote_suspect_against_a_stored_fingerprint_keeps_its_relation(
    server: RangeServer, tmp_path: Path
) -> None:
    stored = tmp_path / "r0.drupe"
    sketch([str(MODELS / "r0")], stored)
    assert is_stored(str(stored))
    report = compare("hf:org/tuned", str(stored))
    assert report["verdict"]["label"] == "derivative"  # type: ignore[index, call-overload]
    assert report["components"]["weights"]["shared_fraction"] == 1.0  # type: ignore[index, call-overload]


def test_only_large_remote_weights_are_spread(server: RangeServer) -> None:
    whole = open_subject("hf:org/tuned", offline=False)
    above = open_subject("hf:org/tuned", offline=False, spread_above=1 << 30)
    local = open_subject(str(MODELS / "r0_ft"), offline=False, spread_above=0)
    spread = open_subject("hf:org/tuned", offline=False, spread_above=0)
    count = len(whole.fingerprint.weights.matrices)
    assert len(above.fingerprint.weights.matrices) == len(local.fingerprint.weights.matrices) == count
    assert spread.model is not None
    assert spread.fingerprint.weights.matrices == spread_matrices(spread.model.matrices)
