"""The null of every statistic that may accuse somebody, over independent pairs: one table.

    .venv/bin/python benchmarks/calibration.py [--pairs 60] [--models DIR]

Untrained models are drawn here (seven kinds, see tests/pairs.py); trained ones are tests/models, and with --models
further folders below DIR whose names say their lineage as there (r0, r0_ft ... share a start; r0 and r1 do not).
Columns: sample size, mean, standard deviation, p of a Kolmogorov-Smirnov test against the stated null (z-scores
only), 99 % quantile and largest value.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from drupe.fingerprint import extract
from drupe.lattice import find_lattice
from drupe.model import open_model
from drupe.recover import profile
from drupe.recover.parts import parts_of
from drupe.recover.units import held_out_z, row_permutation_z
from drupe.residual import spectral_edge, squared_spectrum, to_bfloat16
from drupe.signals.interface import Measured
from drupe.signals.sketch import compare as sketch
from drupe.signals.sketch.bits import agreement_z
from drupe.signals.sketch.facts import WeightFacts
from drupe.sources.locator import open_tree
from drupe.subject import Subject
from pairs import KINDS, subject, untrained, with_tokens_of
from test_calibration import INDEPENDENT
from test_residual import NULLS, SHAPES
from zoo import quantise_groups
from zoo_files import MODELS, Tensor

Floats = NDArray[np.float64]
SHARED_STARTS = ({"r0", "r0_ft", "r0_ft2", "r0_cpt", "r0_cpt2", "r0_cptc", "r3", "r5"},)


def row(name: str, values: Sequence[float] | Floats, *, null: str = "") -> None:
    """One line of the table."""
    sample = np.asarray(values, float)
    p = f"{stats.kstest(sample, null).pvalue:.2f}" if null else ""
    print(
        f"| {name} | {sample.size:,} | {sample.mean():+.3f} | {sample.std():.3f} | {p} | "
        f"{np.quantile(np.abs(sample), 0.99):.2f} | {np.abs(sample).max():.2f} |",
        flush=True,
    )


def sketch_z(a: WeightFacts, b: WeightFacts) -> Floats:
    """z of every two matrices that may be compared, smoothed over the steps of a count of bits."""
    tables = [np.zeros(0)]
    for key, (left, right) in sketch._groups(a, b).items():
        z = agreement_z(a.words[left], b.words[right], key[2]).ravel()
        tables.append(z + np.random.default_rng(z.size).uniform(-1, 1, z.size) / np.sqrt(key[2]))
    return np.concatenate(tables)


def hidden(side: Subject) -> Iterator[Tensor]:
    """The matrices inside layers."""
    assert side.model is not None
    return (side.model.load(matrix) for matrix in side.model.matrices if matrix.layer is not None)


def tables(side: Subject) -> Iterator[Tensor]:
    """Embeddings and head."""
    assert side.model is not None
    return (side.model.load(matrix) for matrix in side.model.matrices if matrix.role in ("embed", "head"))


def of_sketches(name: str, pairs: Sequence[tuple[Subject, Subject]]) -> None:
    """Single matrices, the sum over roles, and the corrected p of the model."""
    facts = [(a.fingerprint.weights, b.fingerprint.weights) for a, b in pairs]
    row(f"sketch z, {name}", np.concatenate([sketch_z(a, b) for a, b in facts]), null="norm")
    results = [sketch.compare(a, b) for a, b in facts]
    row(f"sketch: in-pair scale, {name}", [result.scale for result in results])
    row(f"sketch: log10 p of the pair, {name}", [result.log10_p for result in results])


def of_rows(name: str, pairs: Sequence[tuple[Subject, Subject]]) -> None:
    """Row correspondence in place, and after a map found on other columns."""
    for what, view in (("inside layers", hidden), ("token tables", tables)):
        both = [(x, y) for a, b in pairs for x, y in product(view(a), view(b)) if x.shape == y.shape]
        if both:
            z = [row_permutation_z(x, y) for x, y in both]
            row(f"row permutation z, {what}, {name}", z, null="norm")
    both = [
        (x, y) for a, b in pairs for x, y in zip(hidden(a), hidden(b), strict=False) if x.shape == y.shape
    ]
    row(f"held-out z of a recovered row map, {name}", [held_out_z(x, y) for x, y in both])


def layers_of(result: profile.ProfileResult) -> int:
    """Suspect layers that were tested."""
    (finding,) = result.findings
    return len(finding.evidence) if isinstance(finding, Measured) else 0


def of_profiles(name: str, pairs: Sequence[tuple[Subject, Subject]]) -> None:
    """Hits per layer (stated null mean: 0.75) and the corrected p."""
    sides = [(parts_of(a.model), parts_of(b.model)) for a, b in pairs if a.model and b.model]
    results = [result for a, b in sides if (result := profile.compare(a, b, None)).tested]
    if results:
        row(f"profile hits per layer, {name}", [r.hits / layers_of(r) for r in results])
        row(f"profile log10 p, {name}", [r.log10_p for r in results])


def of_residuals(repeats: int) -> None:
    """Log spectral edge of residuals without training (stated null: mean 0, sd 0.025)."""
    for kind, draw in NULLS.items():
        logs = []
        for seed, shape in product(range(repeats), SHAPES):
            d = draw(np.random.default_rng([seed, *shape]), shape)
            logs.append(float(np.log(spectral_edge(d, squared_spectrum(d)))))
        row(f"log spectral edge, {kind}", logs)


def of_lattices(repeats: int) -> None:
    """Share of matrices taken for quantised: never quantised, and 4 bits."""
    for name, bits in (("never quantised", 0), ("4 bits, groups of 32", 4)):
        found = []
        for seed in range(repeats):
            values = np.random.default_rng(seed).standard_normal((64, 128), np.float32)
            stored = to_bfloat16(quantise_groups(values, bits=bits, group=32) if bits else values)
            found.append(float(find_lattice(stored) is not None))
        row(f"found on a grid, bf16, {name}", found)


def independent(a: str, b: str) -> bool:
    """Whether two folders are known to have different random starts."""
    return a != b and not any({a, b} <= family for family in SHARED_STARTS)


def trained_pairs(models: Path | None) -> Iterator[tuple[str, list[tuple[Subject, Subject]]]]:
    """Committed pairs, then all independent pairs below a folder."""

    def opened(folder: Path) -> Subject:
        model = open_model(open_tree(str(folder), offline=True))
        return Subject(extract(model), model)

    names = sorted({name for pair in INDEPENDENT for name in pair})
    sides = {name: opened(MODELS / name) for name in names}
    yield "tests/models", [(sides[a], sides[b]) for a, b in INDEPENDENT]
    if models is not None:
        folders = sorted(path.parent for path in models.glob("*/model.safetensors"))
        more = {folder.name: opened(folder) for folder in folders}
        pairs = [(more[a], more[b]) for a, b in combinations(more, 2) if independent(a, b)]
        yield f"{models.name} ({len(pairs)} pairs)", pairs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=60, help="untrained pairs of each kind")
    parser.add_argument("--models", type=Path, help="a folder of further trained models")
    options = parser.parse_args()
    print("| statistic | n | mean | sd | KS p | 99 % of the size | max |\n|---|---|---|---|---|---|---|")
    for name, pairs in trained_pairs(options.models):
        for measure in (of_sketches, of_rows, of_profiles):
            measure(name, pairs)
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            drawn = [
                [
                    subject(with_tokens_of(untrained(kind, 2 * n + side), f"r{side}"), Path(folder))
                    for side in (0, 1)
                ]
                for n in range(options.pairs)
            ]
            pairs = [(a, b) for a, b in drawn]
            of_sketches(kind, pairs)
            of_rows(kind, pairs[: max(1, options.pairs // 6)])
            of_profiles(kind, pairs[: max(1, options.pairs // 6)])
    of_residuals(max(4, options.pairs // 8))
    of_lattices(options.pairs)


if __name__ == "__main__":
    main()
