"""Runs Drupe on the pairs of the zoo, several at a time; one JSON line a pair, what is there already is kept.

    python benchmarks/zoo/judge.py zoo results.jsonl
    python benchmarks/zoo/judge.py zoo results.jsonl --only rotated --half dev

Models are those of ``train.py``. Suspects are written to a temporary folder, edited by ``tests/zoo.py``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))


import zoo as zoo_edits
from drupe import workflows
from pairs import Pair, pairs
from zoo_files import Checkpoint, read_model, save

_MODELS = ("other", "parents")


def built(pair: Pair, zoo: Path) -> Checkpoint:
    """The suspect, edited; models that an edit names are read."""
    model = read_model(zoo / pair.suspect)
    for kind, parameters in pair.edits:
        given = {key: _read(value, zoo) if key in _MODELS else value for key, value in parameters.items()}
        model = zoo_edits.apply(model, kind, **given)
    if any(kind == "merge" or kind in ("slerp", "dare", "ties", "arithmetic") for kind, _ in pair.edits):
        model = replace(model, extras={})
    return model


def _read(value: Any, zoo: Path) -> Any:
    return (
        read_model(zoo / value)
        if isinstance(value, str)
        else {name: read_model(zoo / name) for name in value}
    )


def judge(job: tuple[Pair, Path]) -> dict[str, Any]:
    """One pair: what Drupe says, how sure it is, and how long it took."""
    pair, zoo = job
    with tempfile.TemporaryDirectory() as folder:
        suspect = (
            str(save(built(pair, zoo), Path(folder) / "suspect")) if pair.edits else str(zoo / pair.suspect)
        )
        begin = time.process_time()
        try:
            further = [str(zoo / name) for name in pair.sources]
            report = workflows.compare(suspect, str(zoo / pair.source), *further)
        except Exception as error:  # a benchmark must count a crash, not die of it
            return {"name": pair.name, "error": f"{type(error).__name__}: {error}"}
    return {"name": pair.name, **summary(report), "seconds": round(time.process_time() - begin, 3)}


def summary(report: Any) -> dict[str, Any]:
    """The parts of a report that the tables need."""
    weights = report["components"]["weights"]
    findings = {
        finding["signal"]: [finding["statistic"], finding["log10_p"], finding["sample_size"]]
        for finding in report["findings"]
        if finding["signal"].startswith("weights.") and finding["status"] == "measured"
    }
    return {
        "label": report["verdict"]["label"],
        "relation": weights["relation"],
        "log10_p": weights["log10_p"],
        "changes": weights["transformations"],
        "direction": weights["direction"],
        "shared": weights["shared_fraction"],
        "findings": findings,
    }


def run(chosen: Iterable[Pair], zoo: Path, out: Path, workers: int) -> None:
    """Append the results of all pairs that are not in the file yet."""
    done = (
        {json.loads(line)["name"] for line in out.read_text("utf-8").splitlines()} if out.exists() else set()
    )
    jobs = [(pair, zoo) for pair in chosen if pair.name not in done]
    with multiprocessing.get_context("spawn").Pool(workers) as pool, out.open("a", encoding="utf-8") as file:
        for number, result in enumerate(pool.imap_unordered(judge, jobs, chunksize=4), 1):
            file.write(json.dumps(result) + "\n")
            if sys.stderr.isatty() or number % 100 == 0:
                print(f"\r{number} of {len(jobs)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", help="rows of the table whose name contains this")
    parser.add_argument("--half", choices=("dev", "held"))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    chosen = [
        pair
        for pair in pairs()
        if (arguments.only is None or arguments.only in pair.row)
        and (arguments.half is None or pair.held == (arguments.half == "held"))
    ]
    run(chosen, arguments.zoo, arguments.out, arguments.workers)


if __name__ == "__main__":
    main()
