"""Random compositions of edits, of descendants and of strangers: what the list of pairs.py did not think of.

    python benchmarks/zoo/compositions.py zoo                    # 200 of each, about five minutes
    python benchmarks/zoo/compositions.py zoo --seed 7 -v        # every composition that was not named in full

One to four of twenty edits in random order, on a root or a trained child of it (descendants), or on another root of
the family (strangers), against the root. Many sets cannot be told apart by anybody (little noise under a continued
training, a cast under another change), so the share that is named in full is a figure to compare versions by, not a
target; that no stranger is related and every descendant is, is one.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import machine

import zoo as zoo_edits
from drupe import workflows
from drupe.stats import wilson
from zoo_files import Checkpoint, read_model, save

FAMILIES = ("gqa", "mha", "gpt", "bert", "qwen", "deep", "neox", "moe", "t5")
RELATED = frozenset({"copy", "derivative"})
TRAINED = {"_ft": "fine_tuned", "_cpt": "fine_tuned"}
"""Children; both kinds count as one."""
EDITS: dict[str, tuple[str, dict[str, Any], str]] = {
    "noise": ("noise", {"sigma": 0.1}, "gaussian_noise"),
    "little noise": ("noise", {"sigma": 0.03}, "gaussian_noise"),
    "int4": ("quantise", {"bits": 4, "group": 32}, "quantised"),
    "int8": ("quantise", {"bits": 8, "group": 0}, "quantised"),
    "rotate": ("rotate", {}, "rotated"),
    "units": ("permute_any_units", {}, "permuted"),
    "heads": ("permute_heads", {}, "permuted"),
    "hidden": ("permute_hidden", {"flip": True}, "permuted"),
    "vocabulary": ("permute_vocabulary", {}, "permuted"),
    "names": ("rename_all", {}, "renamed"),
    "drop": ("map_layers", {"order": [0, 1, 3]}, "layers_dropped"),
    "repeat": ("map_layers", {"order": [0, 1, 2, 1, 2, 3]}, "depth_upscaled"),
    "swap": ("map_layers", {"order": [0, 2, 1, 3]}, "layers_reordered"),
    "fewer units": ("prune_units", {"keep": 0.75}, "width_pruned"),
    "fewer dimensions": ("prune_hidden", {"keep": 0.75}, "width_pruned"),
    "rescale": ("rescale_units", {}, "rescaled"),
    "extend": ("extend_vocabulary", {"count": 64}, "vocabulary_changed"),
    "prune": ("prune", {"sparsity": 0.3}, "pruned"),
    "cast": ("cast", {"to": "fp16"}, "cast"),
    "experts": ("to_experts", {"experts": 4}, "moe_upcycled"),
}
LAST = ("experts", "names")
"""After these the other edits find nothing to work on."""


def composed(model: Checkpoint, names: list[str]) -> Checkpoint | None:
    """The model with these edits; None when one does not fit it."""
    try:
        for name in names:
            model = zoo_edits.apply(model, EDITS[name][0], **EDITS[name][1])
    except (KeyError, ValueError, IndexError):
        return None
    return model


def draw(dice: random.Random, zoo: Path, *, stranger: bool) -> tuple[str, str, list[str]]:
    """Suspect's model, source, and the edits, in order."""
    family = dice.choice(FAMILIES)
    source = f"{family}0"
    suspect = f"{family}{dice.choice('12')}" if stranger else source + dice.choice(("", "", "", *TRAINED))
    count = dice.choice((1, 2, 2, 3, 3, 4))
    names = dice.sample(sorted(set(EDITS) - set(LAST)), count)
    if dice.random() < 0.2:
        names[-1] = "names" if family == "moe" else dice.choice(LAST)
    return (suspect if (zoo / suspect).is_dir() else source), source, names


def said(model: Checkpoint, source: Path) -> tuple[str, set[str]]:
    """Label and kinds, continued pretraining as fine-tuning."""
    with tempfile.TemporaryDirectory() as folder:
        report = workflows.compare(str(save(model, Path(folder) / "suspect")), str(source))
    kinds = {change["kind"] for change in report["components"]["weights"]["transformations"]}  # type: ignore[call-overload,index]
    if "continued_pretraining" in kinds:
        kinds = kinds - {"continued_pretraining"} | {"fine_tuned"}
    return str(report["verdict"]["label"]), kinds  # type: ignore[index,call-overload]


def run(zoo: Path, count: int, seed: int, *, stranger: bool, verbose: bool) -> Counter[str]:
    """Counts of labels, and of those that are named in full."""
    dice, told = random.Random(seed), Counter[str]()
    while told["all"] < count:
        suspect, source, names = draw(dice, zoo, stranger=stranger)
        model = composed(read_model(zoo / suspect), names)
        if model is None or (stranger and suspect == source):
            continue
        label, kinds = said(model, zoo / source)
        want = {EDITS[name][2] for name in names} | {
            kind for end, kind in TRAINED.items() if suspect.endswith(end)
        }
        is_full = want <= kinds <= want | {"rescaled"}  # a rotation folds the gains
        told.update(("all", "related" if label in RELATED else label, *(["in full"] if is_full else [])))
        if verbose and not stranger and not is_full:
            print(f"- {suspect}: {', '.join(names)}: {label}, {', '.join(sorted(kinds))}", file=sys.stderr)
        if label in RELATED and stranger:
            print(f"- ACCUSED {suspect} against {source}: {', '.join(names)}", file=sys.stderr)
    return told


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-v", "--verbose", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of numpy, in edits that divide
    print(machine())
    print("\n| compositions on | number | related | inconclusive | named in full |\n|---|---|---|---|---|")
    for name, stranger in (("descendants", False), ("strangers", True)):
        told = run(
            arguments.zoo, arguments.count, arguments.seed, stranger=stranger, verbose=arguments.verbose
        )
        low, high = wilson(told["related"], told["all"])
        full = "-" if stranger else str(told["in full"])
        related = f"{told['related']} ({low:.3f} to {high:.3f})"
        print(f"| {name} | {told['all']} | {related} | {told['inconclusive']} | {full} |")


if __name__ == "__main__":
    main()
