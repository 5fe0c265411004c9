"""Small models and start-up: whole cold processes, wall and CPU seconds, beside ``python -c "import numpy"``.

    python benchmarks/startup.py
    python benchmarks/startup.py --real SMOLLM2_A SMOLLM2_B MINILM_SAFETENSORS MINILM_ONNX

Targets are wall time, which moves with other load on the machine; CPU time hardly does. ``--real``: folders of
published models, compared in full.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from common import DRUPE, PYTHON, Row, Run, machine, median_run, run, table
from sparse import TINY, random_rows, trained_rows, write_model, write_tokenizer

EVERY_ROW = 1 << 30


def timed(command: Sequence[str | Path], runs: int) -> tuple[Run, float, float]:
    """The last run and the medians of wall and CPU seconds; one run before them compiles modules."""
    run(command)
    done = [run(command) for _ in range(runs)]
    wall, cpu, _ = median_run(done)
    return done[-1], wall, cpu


def row(what: str, limit: float | None, command: Sequence[str | Path], runs: int, unit: float) -> Row:
    """One line; ``unit``: CPU seconds of importing numpy."""
    last, wall, cpu = timed(command, runs)
    measured = f"{wall:.2f} s ({cpu:.2f} s CPU, {cpu / unit:.1f} x `import numpy`)"
    if last.output.startswith(b"{"):
        measured = f"`{json.loads(last.output)['verdict']['label']}`, {measured}"
    met = last.code in (0, 1, 3) and (limit is None or wall <= limit)
    return Row(what, "" if limit is None else f"<= {limit} s", measured, met)


def small_models(folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """Pairs of 3 MB checkpoints: 128 wide, six layers, 2,048 pieces."""
    tokenizer = write_tokenizer(folder / "tokenizer.json", TINY.vocabulary)
    base = random_rows(1)
    for name, rows in (("source", base), ("tuned", trained_rows(base, 2)), ("stranger", random_rows(3))):
        write_model(folder / name, TINY, rows, filled=EVERY_ROW, tokenizer=tokenizer)
    yield "related", folder / "tuned", folder / "source"
    yield "independent", folder / "stranger", folder / "source"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--real", type=Path, nargs=4, default=(), metavar="FOLDER")
    arguments = parser.parse_args()
    runs = arguments.runs
    numpy = [PYTHON, "-c", "import numpy"]
    unit = timed(numpy, runs)[2]
    rows = [
        row('`python -c "import numpy"`, for comparison', None, numpy, runs, unit),
        row('`python -c "import drupe"`', 0.1, [PYTHON, "-c", "import drupe"], runs, unit),
        row("`drupe --help`", 0.25, [DRUPE, "--help"], runs, unit),
    ]
    with tempfile.TemporaryDirectory() as temporary:
        for what, suspect, source in small_models(Path(temporary)):
            for form in ("json", "terminal"):
                command = [DRUPE, "compare", suspect, source, "--format", form]
                rows.append(
                    row(f"`drupe compare`, two 3 MB checkpoints, {what}, {form}", 0.8, command, runs, unit)
                )
    for what, pair in zip(
        ("SmolLM2-135M twice", "MiniLM fp32 and int8"), _pairs(arguments.real), strict=False
    ):
        command = [DRUPE, "compare", *pair, "--budget", "full", "--format", "json"]
        rows.append(row(f"`drupe compare` in full, {what}", None, command, 3, unit))
    print(machine(), end="\n\n")
    print(table(rows))
    return 0 if all(one.met for one in rows) else 1


def _pairs(folders: Sequence[Path]) -> list[Sequence[Path]]:
    return [folders[:2], folders[2:]] if folders else []


if __name__ == "__main__":
    sys.exit(main())
