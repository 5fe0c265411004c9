"""The packaged peer, by its command line, on a sample of the pairs of the zoo.

    DRUPE_PEER_PYTHON=peerenv/bin/python python benchmarks/zoo/peer_sample.py zoo --each 4

Of positives, negatives of one configuration, negatives of other families and same-seed pairs of both halves, each so
many, drawn with a fixed seed. Every call costs seconds, so not all pairs are asked.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import peer
from judge import built

from pairs import SEED, Pair, pairs
from zoo_files import save


def group_of(pair: Pair) -> str:
    """The row of the table."""
    if pair.relations == SEED:
        return "same seed, other data"
    if pair.related:
        return "positives"
    return "other family" if pair.row == "other family" else "same configuration, other seed"


def answer(pair: Pair, zoo: Path) -> str:
    """Its decision and weight score."""
    with tempfile.TemporaryDirectory() as folder:
        suspect = save(built(pair, zoo), Path(folder) / "suspect") if pair.edits else zoo / pair.suspect
        try:
            result = peer.compare(suspect, zoo / pair.source)
        except (peer.PeerError, KeyError) as error:
            return f"fails ({type(error).__name__})"
    return str(result.decision)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--each", type=int, default=4)
    arguments = parser.parse_args()
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs():
        if pair.row != "siblings":
            groups[group_of(pair)].append(pair)
    print("| pairs | asked | decisions |\n|---|---|---|")
    for name, members in sorted(groups.items()):
        order = np.random.default_rng(0).permutation(len(members))[: arguments.each]
        told = Counter(answer(members[int(k)], arguments.zoo) for k in order)
        print(
            f"| {name} | {len(order)} | {', '.join(f'{k} {n}' for k, n in told.most_common())} |", flush=True
        )


if __name__ == "__main__":
    main()
