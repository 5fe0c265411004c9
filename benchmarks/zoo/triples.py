"""Three models of one lineage: is the one between the others found? One row a half.

    python benchmarks/zoo/triples.py zoo

All triples of a root, its descendants and the models of the same start. The truth is the tree of the recipes: the
node where the three ways meet. An answer is right when that node is named, or a model nearer to it than a third of
the shortest of the three distances; "silent" is right when the node is none of the three.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from common import machine
from recipes import ROOTS, is_held

from drupe.model import Model
from drupe.opening import open_subject
from drupe.recover.merge import common_matrices
from drupe.recover.parts import parts_of
from drupe.recover.placing import place
from drupe.stats import wilson

PARENTS = {recipe.name: recipe.parent for recipe in ROOTS.recipes}


def ancestors(name: str) -> list[str]:
    """The model and what it was made from, up to the random start that its root shares."""
    line = [name]
    while PARENTS[line[-1]]:
        line.append(PARENTS[line[-1]])
    return [*line, f"start of {line[-1].partition('_')[0]}"]


def meeting(names: tuple[str, ...]) -> str:
    """Where the ways between three models meet: the deepest common ancestor of any two, of three candidates."""
    candidates = []
    for one, other in itertools.combinations(names, 2):
        line = ancestors(other)
        candidates.append(next(node for node in ancestors(one) if node in line))
    return max(candidates, key=lambda node: len(ancestors(node)) if node in PARENTS else 0)


def distances(models: dict[str, Model]) -> dict[tuple[str, str], float]:
    """Of every two of the models, over all common matrices."""
    names = list(models)
    stacks = common_matrices([parts_of(models[name]) for name in names])
    table = {}
    for one, other in itertools.permutations(range(len(names)), 2):
        rows = [np.vstack([mine[None], theirs]) for mine, theirs in stacks]
        squared = sum(
            float(((r[one] - r[other]).astype(np.float64) ** 2).sum() / (r[0] ** 2).sum()) for r in rows
        )
        table[names[one], names[other]] = squared**0.5
    return table


def opened(folder: Path) -> Model:
    """The model of a folder."""
    found = open_subject(str(folder), offline=True).model
    assert found is not None
    return found


def triples(zoo: Path) -> dict[bool, list[str]]:
    """What was said of every triple, by half."""
    said: dict[bool, list[str]] = {False: [], True: []}
    for root in sorted({name.partition("_")[0] for name in PARENTS}):
        names = [name for name in PARENTS if name.partition("_")[0] == root and (zoo / name).is_dir()]
        models = {name: opened(zoo / name) for name in names}
        far = distances(models) if len(names) > 2 else {}
        for three in itertools.combinations(names, 3):
            found = place(models[three[0]], [models[three[1]], models[three[2]]])
            if not found:
                continue
            answer = None if found[0].between is None else three[found[0].between + 1]
            truth = meeting(three)
            shortest = min(far[pair] for pair in itertools.combinations(three, 2))
            near = (
                answer is not None
                and truth in models
                and answer != truth
                and far[answer, truth] < shortest / 2
            )
            if answer is None:
                told = "elsewhere" if found[0].elsewhere else "silent"
                said[is_held(root)].append(f"{told}, rightly" if truth not in three else told)
            else:
                said[is_held(root)].append("right" if answer == truth or near else f"wrong: {three} {answer}")
    return said


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path)
    said = triples(parser.parse_args().zoo)
    print(machine())
    columns = (
        "half",
        "triples",
        "one is named",
        "rightly",
        "elsewhere",
        "rightly",
        "silent",
        "and none was right",
    )
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for held, rows in said.items():
        right = rows.count("right")
        wrong = [row for row in rows if row.startswith("wrong")]
        answered = right + len(wrong)
        low, high = wilson(right, answered)
        print(
            f"| {'held-out' if held else 'dev'} | {len(rows)} | {answered} | {right} ({low:.2f} to {high:.2f}) | "
            f"{rows.count('elsewhere') + rows.count('elsewhere, rightly')} | {rows.count('elsewhere, rightly')} | "
            f"{rows.count('silent') + rows.count('silent, rightly')} | {rows.count('silent, rightly')} |"
        )
        for row in wrong:
            print(f"- {row}")


if __name__ == "__main__":
    main()
