"""Are the p-values of independent models uniform? Pairs of roots of one configuration, matrix by matrix.

    python benchmarks/zoo/nulls.py zoo

Continuous: the permutation z of the rows of equal places (and of the next layer), and the z of the sign sketches over
the spread of the mismatched ones. Counts: hits of the token-response profile, one-sided. Tests of one pair of roots
are dependent; the number of root pairs is printed, and the p of Kolmogorov and Smirnov is also taken on one test per
pair and role, drawn at random.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from recipes import ROOTS, family_of, is_held
from scipy import stats

from drupe.opening import open_subject
from drupe.recover import profile
from drupe.recover.parts import Parts, parts_of
from drupe.recover.units import row_permutation_z
from drupe.roles import is_layer_role
from drupe.signals.sketch.compare import compare as compare_sketches
from drupe.signals.sketch.facts import WeightFacts

Test = tuple[str, str, float]
"""Pair of roots, role, p."""


def root_pairs(zoo: Path) -> Iterator[tuple[str, str]]:
    """Roots of one family."""
    roots = [
        r.name for r in ROOTS.recipes if not r.parent and "_seed" not in r.name and (zoo / r.name).is_dir()
    ]
    return ((a, b) for a, b in itertools.combinations(roots, 2) if family_of(a) == family_of(b))


def row_tests(name: str, a: Parts, b: Parts) -> Iterator[Test]:
    """Two-sided p of the row permutation z; the same layer and the next one."""
    for role, layer in sorted(a.places, key=str):
        if layer is None or not is_layer_role(role):
            continue
        mine = a.load(role, layer)
        for other in (layer, layer + 1):
            theirs = b.load(role, other)
            if mine is not None and theirs is not None and mine.shape == theirs.shape and len(mine) >= 16:
                yield name, role, float(2 * stats.norm.sf(abs(row_permutation_z(mine, theirs))))


def sketch_tests(name: str, a: WeightFacts, b: WeightFacts) -> Iterator[Test]:
    """Two-sided p of the sketches of equal places over the spread that Drupe takes from the mismatched ones.

    A count of bits has steps; the p-value is drawn within its step (a randomised test), so that it can be uniform.
    """
    dice = np.random.default_rng(0)
    scale = compare_sketches(a, b).scale
    theirs = {(m.role, m.layer): k for k, m in enumerate(b.matrices)}
    for k, matrix in enumerate(a.matrices):
        other = theirs.get((matrix.role, matrix.layer))
        if (
            other is None
            or not is_layer_role(matrix.role)
            or a.counts[k] != b.counts[other]
            or a.counts[k] < 64
        ):
            continue
        bits = int(a.counts[k])
        unequal = int(np.bitwise_count(a.words[k] ^ b.words[other]).sum())
        z = (bits - 2.0 * (unequal + dice.uniform(-0.5, 0.5))) / np.sqrt(bits) / scale
        yield name, str(matrix.role), float(2 * stats.norm.sf(abs(z)))


def summary(tests: Sequence[Test]) -> str:
    """One row of the table."""
    p = np.array([value for *_, value in tests])
    dice = np.random.default_rng(0)
    drawn = {}
    for k in dice.permutation(len(tests)):
        drawn[tests[k][:2]] = tests[k][2]
    pairs = len({name for name, *_ in tests})
    one = stats.kstest(list(drawn.values()), "uniform").pvalue
    return (
        f"{len(tests)} | {pairs} | {stats.kstest(p, 'uniform').pvalue:.3f} | {one:.3f} ({len(drawn)}) "
        f"| {np.mean(p < 0.05):.3f} | {np.mean(p < 0.01):.4f} | {p.min():.1e}"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path)
    zoo: Path = parser.parse_args().zoo
    rows: dict[tuple[str, str], list[Test]] = {}
    for first, second in root_pairs(zoo):
        half = "held out" if is_held(first) else "dev"
        name = f"{first}/{second}"
        sides = [open_subject(str(zoo / side), offline=True) for side in (first, second)]
        models = [side.model for side in sides if side.model is not None]
        a, b = (parts_of(model) for model in models)
        rows.setdefault(("rows", half), []).extend(row_tests(name, a, b))
        tests = sketch_tests(name, sides[0].fingerprint.weights, sides[1].fingerprint.weights)
        rows.setdefault(("sketch", half), []).extend(tests)
        found = profile.compare(a, b, None)
        if found.tested:
            rows.setdefault(("profile (count)", half), []).append((name, "up", 10.0**found.log10_p))
    print("| test | half | tests | root pairs | KS p | KS p, one a pair and role | < 0.05 | < 0.01 | least |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (test, half), tests in sorted(rows.items()):
        print(f"| {test} | {half} | {summary(tests)} |")


if __name__ == "__main__":
    main()
