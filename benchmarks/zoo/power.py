"""Where it breaks: how often the relation is still found, as the change grows.

    python benchmarks/zoo/power.py zoo

Every row is one kind of change at growing strength, over the roots that it fits; a cell says how many pairs of a
strength are still called related. Merge parents: equal parts of that many roots of one family, so that every one of
them holds 1 / n of the suspect.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from recipes import ROOTS, family_of

import zoo as zoo_edits
from drupe import workflows
from zoo_files import Checkpoint, read_model, save

RELATED = frozenset({"copy", "derivative"})
ROWS: dict[str, tuple[str, str, tuple[Any, ...], tuple[str, ...]]] = {
    "noise, times the weights' deviation": (
        "noise",
        "sigma",
        (1, 3, 10, 20, 30),
        ("gqa", "gpt", "bert", "deep", "neox"),
    ),
    "share pruned": (
        "prune",
        "sparsity",
        (0.5, 0.9, 0.95, 0.98, 0.99),
        ("gqa", "gpt", "bert", "deep", "neox"),
    ),
    "share of units kept": (
        "prune_units",
        "keep",
        (0.5, 0.25, 0.1, 0.05),
        ("gqa", "gpt", "bert", "deep", "neox"),
    ),
    "share of dimensions kept": ("prune_hidden", "keep", (0.75, 0.5, 0.25), ("gqa", "mha", "deep")),
}


def label(model: Checkpoint, source: Path) -> str:
    """What Drupe calls an edited model against a root."""
    with tempfile.TemporaryDirectory() as folder:
        report = workflows.compare(str(save(model, Path(folder) / "suspect")), str(source))
    verdict = report["verdict"]
    assert isinstance(verdict, dict)
    return str(verdict["label"])


def edited(zoo: Path) -> Iterator[str]:
    """One change at growing strength, plain and rotated."""
    for title, (kind, parameter, strengths, families) in ROWS.items():
        cells = []
        for strength in strengths:
            found = [
                label(
                    zoo_edits.apply(read_model(zoo / f"{f}0"), kind, **{parameter: strength}), zoo / f"{f}0"
                )
                for f in families
            ]
            cells.append(f"{strength}: {sum(x in RELATED for x in found)}/{len(found)}")
        yield f"| {title} | {'; '.join(cells)} |"
    cells = []
    for sigma in (0.5, 1, 2, 3, 5):
        found = []
        for family in ("gqa", "mha", "deep"):
            model = zoo_edits.apply(read_model(zoo / f"{family}0"), "permute_any_units")
            for kind, options in (("rotate", {}), ("noise", {"sigma": sigma})):
                model = zoo_edits.apply(model, kind, **options)
            found.append(label(model, zoo / f"{family}0"))
        cells.append(f"{sigma}: {sum(x in RELATED for x in found)}/{len(found)}")
    yield f"| permuted, rotated, then noise | {'; '.join(cells)} |"


def merged(zoo: Path) -> Iterator[str]:
    """Equal parts of several roots."""
    roots = [r.name for r in ROOTS.recipes if not r.parent and "_seed" not in r.name]
    cells = []
    for count in (2, 3, 4):
        found = []
        for family in ("gqa", "qwen"):
            names = [name for name in roots if family_of(name) == family][:count]
            models = [read_model(zoo / name) for name in names]
            mean = {
                name: np.mean([m.tensors[name] for m in models], axis=0, dtype=np.float32)
                for name in models[0].tensors
            }
            found += [label(models[0].with_tensors(mean), zoo / name) for name in names]
        cells.append(f"{count}: {sum(x in RELATED for x in found)}/{len(found)}")
    yield f"| parents of a merge (each against the merge) | {'; '.join(cells)} |"


def trained(zoo: Path) -> Iterator[str]:
    """Trainings as long as the first, one after another."""
    cells = []
    for length, ends in (("1 training", "_cpt"), ("2 trainings", "_cpt2")):
        names = [r.name for r in ROOTS.recipes if r.name.endswith(ends)]
        found = []
        for name in names:
            report = workflows.compare(str(zoo / name), str(zoo / f"{family_of(name)}0"))
            verdict = report["verdict"]
            assert isinstance(verdict, dict)
            found.append(verdict["label"])
        cells.append(f"{length}: {sum(x in RELATED for x in found)}/{len(found)}")
    yield f"| continued pretraining, in lengths of the training | {'; '.join(cells)} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path)
    zoo: Path = parser.parse_args().zoo
    print("| change | strength: called related |\n|---|---|")
    for part in (edited, merged, trained):
        for line in part(zoo):
            print(line, flush=True)


if __name__ == "__main__":
    main()
