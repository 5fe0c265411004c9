"""Right labels on the truth table, by row of the benchmark, with the peer on the same directories.

    python benchmarks/accuracy.py                       Drupe alone, every pair of tests/cases
    DRUPE_PEER_PYTHON=... python benchmarks/accuracy.py --peer 2    the peer on two pairs of each row, too
    python benchmarks/accuracy.py --zoo FOLDER          all ordered pairs of the models of train_pico.py --scale zoo

Prints Markdown. Intervals are Wilson's, 95 %, over pairs; pairs share models, so read them as a guide.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import peer

from cases_loader import Case, load_cases, materialise
from drupe import workflows
from drupe.stats import wilson

# Row of the table -> what its case names start with; the first match wins.
ROWS: dict[str, tuple[str, ...]] = {
    "independent, also renamed, cast, quantised, pruned": ("independent", "unrelated"),
    "same seed, other data": ("same-seed",),
    "rotation + permutation": ("rotated",),
    "the same + fine-tune, + noise; + continued pretraining": (
        "fine-tune-rotated",
        "continued-pretraining-rotated",
    ),
    "embeddings only": ("embeddings-only",),
    "layers dropped, repeated, reordered": ("layers",),
    "copy": ("copy",),
    "rename (Yi's two, a prefix, all names, fused), reshard": ("renamed", "resharded", "fused"),
    "cast": ("cast",),
    "noise 0.1 and 1": ("noise",),
    "int4, int8": ("int",),
    "fine-tune": ("fine-tune",),
    "long continued pretraining, siblings": ("continued-pretraining", "siblings"),
    "FFN or head permutation": ("permuted",),
    "others (scale, prune, low rank, vocabulary)": (
        "scaled",
        "rescaled",
        "pruned",
        "low-rank",
        "vocabulary",
        "folded",
    ),
    "units or dimensions left out, experts": ("width", "upcycled"),
    "damaged (NaN, zeros, constants)": ("one-layer", "constant", "all-"),
}
INNOCENT = frozenset({"same_design", "unrelated"})
FAMILY = frozenset({"r0", "r0_ft", "r0_ft2", "r0_cpt", "r0_cpt2", "r0_cptc"})
SEED = frozenset({"r3", "r5"})
HELD = frozenset({"r4", "r5", "r0_ft2", "r0_cpt2", "r0_cptc"})


@dataclass(slots=True)
class Row:
    """Counts of one row."""

    right: int = 0
    total: int = 0
    held_right: int = 0
    held: int = 0
    kinds: int = 0
    accused: int = 0
    peer: list[str] = field(default_factory=list)


def row_of(case: Case) -> str:
    """The row of a case; a new kind of case needs a row."""
    for row, prefixes in ROWS.items():
        if case.name.startswith(prefixes):
            return row
    raise SystemExit(f"no row for {case.name!r}: add it to ROWS")


def judge(case: Case, row: Row, folder: Path, ask_peer: bool) -> None:
    """Compare one pair and count."""
    suspect, source = materialise(case, folder)
    report = workflows.compare(str(suspect), str(source))
    components, verdict = report["components"], report["verdict"]
    assert isinstance(components, dict)
    assert isinstance(verdict, dict)
    weights = components["weights"]
    assert isinstance(weights, dict)
    label, right = verdict["label"], verdict["label"] in case.labels and weights["relation"] in case.relations
    row.total += 1
    row.right += right
    row.held += case.split == "held"
    row.held_right += right and case.split == "held"
    kinds = weights["transformations"]
    assert isinstance(kinds, list)
    row.kinds += case.kinds_match(str(item["kind"]) for item in kinds if isinstance(item, dict))
    row.accused += case.label in INNOCENT and label in ("copy", "derivative")
    if ask_peer:
        row.peer.append(ask(suspect, source))


def ask(suspect: Path, source: Path) -> str:
    """The peer's decision and weight-only score, or why it gave none."""
    try:
        result = peer.compare(suspect, source)
    except (peer.PeerError, KeyError) as error:
        return f"fails ({str(error)[-60:].strip()})"
    score = "none" if result.weight_score is None else f"{result.weight_score:.3f}"
    return f"{result.decision} ({score})"


def table(rows: dict[str, Row]) -> Iterable[str]:
    """The Markdown table."""
    yield "| pairs | label and relation right (95 %) | held out | set of changes | accused | peer (weight score) |"
    yield "|---|---|---|---|---|---|"
    for name, row in rows.items():
        low, high = wilson(row.right, row.total)
        answers = "; ".join(f"{answer} x{n}" for answer, n in Counter(row.peer).items()) or "-"
        yield (
            f"| {name} | {row.right}/{row.total} ({low:.2f}-{high:.2f}) | {row.held_right}/{row.held} "
            f"| {row.kinds}/{row.total} | {row.accused} | {answers} |"
        )


def zoo_truth(a: str, b: str) -> str:
    """Relation of two models of the larger zoo, from how they were trained."""
    if {a, b} <= FAMILY:
        return "derived"
    return "shared_initialisation" if {a, b} <= FAMILY | SEED else "independent"


def zoo_table(folder: Path) -> Iterable[str]:
    """All ordered pairs of the larger models."""
    names = sorted(path.parent.name for path in folder.glob("*/model.safetensors"))
    counts: dict[tuple[str, str], Counter[str]] = {}
    for a, b in itertools.permutations(names, 2):
        report = workflows.compare(str(folder / a), str(folder / b))
        components = report["components"]
        assert isinstance(components, dict)
        weights = components["weights"]
        assert isinstance(weights, dict)
        split = "held" if {a, b} & HELD else "dev"
        counts.setdefault((zoo_truth(a, b), split), Counter())[str(weights["relation"])] += 1
    yield "| truth | split | ordered pairs | answers |"
    yield "|---|---|---|---|"
    for (truth, split), answers in sorted(counts.items()):
        given = ", ".join(f"{relation} {n}" for relation, n in answers.most_common())
        yield f"| {truth} | {split} | {answers.total()} | {given} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer", type=int, default=0, metavar="N", help="ask the peer on N pairs of each row"
    )
    parser.add_argument("--zoo", type=Path, help="folder of the larger models")
    arguments = parser.parse_args()
    if arguments.zoo:
        print("\n".join(zoo_table(arguments.zoo)))
        return
    rows: dict[str, Row] = {name: Row() for name in ROWS}
    with tempfile.TemporaryDirectory() as folder:
        for case in load_cases():
            row = rows[row_of(case)]
            judge(case, row, Path(folder) / case.name, len(row.peer) < arguments.peer)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
