"""Null of the sketch: z between matrices of different layers of one model, for several shapes of the sample.

    python benchmarks/sketch_null.py FOLDER_OR_FILE...

Every pair of matrices of equal width from different places of one model, at five row blocks and both ends of the
columns. Prints the spread of z, its largest values, and the share beyond 4.42 (1e-5 under the normal distribution).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drupe.model import open_model
from drupe.readers.interface import FloatArray
from drupe.sources.local import LocalTree

ANCHORS = (0, 8, 16, 64, 128)


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of a matrix, columns they are read in, and columns of each row pair that give a bit."""

    rows: int
    span: int
    columns: int


SAMPLES = (
    Sample(8, 1024, 128),
    Sample(8, 512, 128),
    Sample(8, 256, 128),
    Sample(6, 256, 170),
    Sample(4, 256, 256),
)


def signs(matrix: FloatArray, sample: Sample, anchor: int, start: int) -> NDArray[np.float32]:
    """Signs of the row-pair differences; ties by a coin."""
    block = matrix[anchor : anchor + sample.rows, start : start + sample.span]
    dice = np.random.default_rng([sample.rows, sample.span, anchor, start])
    width = block.shape[1]
    pairs = range(0, sample.rows, 2)
    chosen = [dice.permutation(width)[: sample.columns] for _ in pairs]
    differences = np.concatenate([block[r, c] - block[r + 1, c] for r, c in zip(pairs, chosen, strict=True)])
    found = np.sign(differences)
    ties = found == 0
    found[ties] = np.random.default_rng(int(np.abs(block).sum() * 1e6) & 0xFFFFFFFF).choice(
        [-1, 1], ties.sum()
    )
    return found.astype(np.float32)


def null(matrices: dict[int, list[FloatArray]], sample: Sample) -> NDArray[np.float32]:
    """z of all pairs of one width."""
    found = []
    for width, group in matrices.items():
        span = min(sample.span, width)
        for anchor in ANCHORS:
            for start in {0, (width - span) // 256 * 256}:
                tall = [values for values in group if values.shape[0] >= anchor + sample.rows]
                bits = np.array([signs(values, sample, anchor, start) for values in tall])
                z = bits @ bits.T / np.sqrt(bits.shape[1])
                found.append(z[np.triu_indices(len(tall), 1)])
    return np.concatenate(found)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+")
    print("| model | rows x columns | pairs | sd of z | 99.9 % of abs z | largest | beyond 4.42 |")
    print("|---|---|---|---|---|---|---|")
    for path in parser.parse_args().models:
        model = open_model(LocalTree(path))
        groups: dict[int, list[FloatArray]] = {}
        for matrix in model.matrices:
            if matrix.layer is not None:
                groups.setdefault(matrix.columns, []).append(model.load(matrix))
        for sample in SAMPLES:
            z = null(groups, sample)
            size = np.abs(z)
            print(
                f"| {path.stem} | {sample.rows} x {sample.span} | {z.size} | {z.std():.3f} | "
                f"{np.quantile(size, 0.999):.2f} | {size.max():.1f} | {(size > 4.42).mean():.1e} |"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
