"""The whole zoo with one command: trains what is missing, compares all pairs, writes all tables.

    python3 -m venv trainenv && trainenv/bin/pip install torch==2.13.0 transformers==5.23.0
    python benchmarks/zoo/run.py zoo --train-python trainenv/bin/python     # about 75 minutes on two cores

``zoo/tables.md`` holds what benchmarks/README.md shows. ``--fresh`` compares all pairs again with the present code.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent


def output(python: str, script: str, *arguments: str) -> str:
    """What a script of this folder prints; its progress goes to stderr. A failure ends the run."""
    print(f"{script} ...", file=sys.stderr, flush=True)
    begin = time.monotonic()
    done = subprocess.run(
        [python, str(HERE / script), *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{script} failed with {done.returncode}; what was done is kept, run it again")
    print(f"{script}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    return done.stdout


def tables(zoo: Path, *, wide: bool) -> str:
    """All tables, from the models in a folder."""
    results, others = zoo / "results.jsonl", zoo / "baselines.jsonl"
    output(sys.executable, "judge.py", str(zoo), str(results))
    output(sys.executable, "baselines.py", str(zoo), str(others))
    found = [output(sys.executable, "tables.py", str(results), str(others))]
    rest: Sequence[tuple[str, str]] = (
        ("Nulls", "nulls.py"),
        ("Three models", "triples.py"),
        ("Where it breaks", "power.py"),
        ("Random compositions", "compositions.py"),
    )
    found += [f"### {title}\n\n{output(sys.executable, script, str(zoo))}" for title, script in rest]
    if wide:
        found.append("### Cost at the widths of a 7B model\n\n" + output(sys.executable, "wide.py"))
    return "\n".join(found)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path)
    parser.add_argument(
        "--train-python", default=sys.executable, help="interpreter with torch and transformers"
    )
    parser.add_argument("--trained", action="store_true", help="the models are all there: train none")
    parser.add_argument("--fresh", action="store_true", help="forget the results of an earlier run")
    parser.add_argument("--no-wide", action="store_true", help="without the pair of 4 GB")
    arguments = parser.parse_args()
    zoo: Path = arguments.zoo
    if not arguments.trained:
        output(arguments.train_python, "train.py", str(zoo))
    if arguments.fresh:
        for name in ("results.jsonl", "baselines.jsonl"):
            (zoo / name).unlink(missing_ok=True)
    text = tables(zoo, wide=not arguments.no_wide)
    (zoo / "tables.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
