"""Trains the models of the zoo (``recipes.py``), several lineages at a time; what is there already is kept.

python3 -m venv trainenv && trainenv/bin/pip install torch==2.13.0 transformers==5.23.0
trainenv/bin/python benchmarks/zoo/train.py zoo            # 64 models, about 45 minutes on two cores
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
import torch
import train_pico
import transformers
from pico_recipes import Recipe
from recipes import ROOTS


def lineages() -> list[list[Recipe]]:
    """Recipes that need one another, parents first; the longest first, so that the workers end together."""
    found: dict[str, list[Recipe]] = defaultdict(list)
    for recipe in ROOTS.recipes:
        found[recipe.parent.partition("_")[0] or recipe.name].append(recipe)
    return sorted(found.values(), key=len, reverse=True)


def train_all(job: tuple[list[Recipe], Path]) -> dict[str, dict[str, Any]]:
    """One lineage; returns its lines of the training log."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    recipes, out = job
    data = train_pico.Data(ROOTS, out)
    done = {}
    for recipe in recipes:
        if (out / recipe.name / "tokenizer.json").exists():  # written last
            continue
        done[recipe.name] = train_pico.make(recipe, ROOTS, out, data)
        print(recipe.name, json.dumps(done[recipe.name]), flush=True)
    return done


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for family in ROOTS.families.values():
        file = arguments.out / f"tokenizer-{family.tokenizer}.json"
        if not file.exists():
            train_pico.train_tokenizer(family.tokenizer, ROOTS.vocabulary).save(str(file))
    jobs = [(recipes, arguments.out) for recipes in lineages()]
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        for entries in pool.imap_unordered(train_all, jobs):
            train_pico.write_log(arguments.out / "training.json", entries)


if __name__ == "__main__":
    main()
