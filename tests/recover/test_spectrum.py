"""What was learned against what was there at the start."""

from __future__ import annotations

import numpy as np
import pytest

from drupe.recover import spectrum
from drupe.recover.spectrum import Start, kept_directions
from zoo_files import Tensor, read_model


def white(seed: int, shape: tuple[int, int] = (96, 96)) -> Tensor:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def learned(seed: int) -> Tensor:
    """Eight strong directions, as training makes."""
    return 3 * (white(seed, (96, 8)) @ white(seed + 1, (8, 96))) / np.float32(np.sqrt(8))


def hidden(name: str) -> list[Tensor]:
    return [v for n, v in read_model(name).tensors.items() if ".layers." in n and v.ndim == 2]


def test_equal_matrices_keep_everything() -> None:
    kept = kept_directions(white(0), white(0))
    assert (kept.top, kept.bulk) == pytest.approx((1.0, 1.0), abs=1e-4)
    assert kept.outlier == pytest.approx(1.0, abs=0.1)


def test_independent_matrices_keep_nothing() -> None:
    kept = [kept_directions(white(seed), white(seed + 100)) for seed in range(20)]
    assert abs(np.mean([k.top for k in kept])) < 0.03
    assert abs(np.mean([k.bulk for k in kept])) < 0.05


def test_a_shared_start_trained_apart_keeps_the_bulk_and_loses_the_top() -> None:
    start = [white(seed) for seed in range(8)]
    pairs = [(w + learned(900 + 2 * i), w + learned(100 + 2 * i)) for i, w in enumerate(start)]
    result = spectrum.compare(pairs)
    assert result is not None
    assert result.start is Start.SHARED
    assert result.trained


def test_descent_keeps_both() -> None:
    sources = [white(seed) + learned(100 + 2 * seed) for seed in range(8)]
    pairs = [(s + np.float32(0.5) * white(300 + i), s) for i, s in enumerate(sources)]
    result = spectrum.compare(pairs)
    assert result is not None
    assert result.start is Start.LINEAGE


@pytest.mark.parametrize("share", [0.2, 0.3])
def test_a_small_share_of_a_merge_is_no_shared_start(share: float) -> None:
    """What a merge keeps of one parent is little, but of the top as much as of the bulk."""
    mine, theirs = hidden("r0"), hidden("r1")
    pairs = [(share * a + (1 - share) * b, a) for a, b in zip(mine, theirs, strict=True)]
    result = spectrum.compare([(s.astype(np.float32), o) for s, o in pairs])
    assert result is not None
    assert result.start is not Start.SHARED


@pytest.mark.parametrize(
    ("suspect", "expected"),
    [("r3", Start.SHARED), ("r5", Start.SHARED), ("r0_cpt", Start.LINEAGE), ("r0_cpt2", Start.LINEAGE)],
)
def test_trained_models_are_told_apart(suspect: str, expected: Start) -> None:
    result = spectrum.compare(list(zip(hidden(suspect), hidden("r0"), strict=True)))
    assert result is not None
    assert result.start is expected


def test_an_untrained_source_is_recognised() -> None:
    result = spectrum.compare([(white(i), white(i)) for i in range(6)])
    assert result is not None
    assert not result.trained


def test_nothing_to_judge_is_none() -> None:
    assert spectrum.compare([]) is None
    assert spectrum.compare([(white(0), white(0, (96, 64)))]) is None
    assert spectrum.compare([(white(0, (16, 300)), white(0, (16, 300)))]) is None
