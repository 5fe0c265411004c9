"""Large models from a sample: what the kernel read, how long it took, how much memory; against local files and HTTP.

    python benchmarks/large.py            # every row, some minutes
    python benchmarks/large.py --runs 3 --folder /somewhere/large

Models are sparse files: 14 and 140 GB on paper, about 0.8 GB on disk, random values in every sampled row. Bytes
are pages that came into the page cache (mincore), so a page counts in full and a hole counts as well; before each
run the pages are dropped. Times are of whole cold processes; CPU time is less moved by other
load than wall time, which is what the targets mean.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from common import DRUPE, MIB, Row, Run, cached_bytes, drop_cache, machine, median_run, run, table
from hub_server import HubServer
from sparse import (
    LLAMA_7B,
    LLAMA_7B_128K,
    LLAMA_70B,
    LLAMA_70B_128K,
    Filled,
    Rows,
    Shape,
    language_rows,
    random_rows,
    trained_rows,
    write_model,
    write_tokenizer,
)

SAMPLED = 64
"""Rows that a sampled comparison reads of a matrix."""
TIMEOUT = "120"


@dataclass(frozen=True, slots=True)
class Cold:
    """Several cold runs of one command: the last one's answer, medians, and the most pages of any."""

    answer: Run
    wall: float
    cpu: float
    rss: int
    pages: int

    @property
    def cost(self) -> str:
        return f"{self.pages / MIB:.1f} MiB, {self.wall:.2f} s ({self.cpu:.2f} s CPU), {self.rss / 1e6:.0f} MB memory"


def cold(command: list[str | Path], folders: list[Path], runs: int, environment: Mapping[str, str]) -> Cold:
    """Run a command with none of its input in the page cache."""
    run([DRUPE, "--version"])
    done, pages = [], 0
    for _ in range(runs):
        for folder in folders:
            drop_cache(folder)
        if left := sum(map(cached_bytes, folders)):
            raise SystemExit(f"the kernel kept {left} bytes of {folders} in its cache: nothing to measure")
        done.append(run(["timeout", TIMEOUT, *command], environment))
        pages = max(pages, sum(map(cached_bytes, folders)))
    return Cold(done[-1], *median_run(done), pages)


class Models:
    """The folders, written on first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizers = {size: folder / f"tokenizer-{size}.json" for size in (32000, 128256)}
        for size, path in self.tokenizers.items():
            if not path.exists():
                _apart(write_tokenizer, path, size)

    def sketched(self, shape: Shape, shards: int, padding: int) -> Path:
        """Values in the rows of a sketch; ``padding`` moves all tensors against the pages."""
        name = f"{shape.layers}x{shape.width}-{shape.vocabulary}-{shards}-{padding}"
        return self._write(name, shape, shards, 8, random_rows(1), padding)

    def source(self) -> Path:
        return self._write("source", LLAMA_7B, 1, SAMPLED, random_rows(1), 0)

    def tuned(self) -> Path:
        return self._write("tuned", LLAMA_7B, 3, SAMPLED, trained_rows(random_rows(1), 2), 0)

    def noisy(self) -> Path:
        return self._write("noisy", LLAMA_7B, 3, SAMPLED, trained_rows(random_rows(1), 3, 0.0, 0.1), 0)

    def stranger(self) -> Path:
        return self._write("stranger", LLAMA_7B, 3, SAMPLED, random_rows(4), 0)

    def speaking(self, seed: int) -> Path:
        """Independent, with the token tables of one language: the profile of responses is read and measured."""
        rows = language_rows(random_rows(seed), seed)
        return self._write(f"speaking-{seed}", LLAMA_7B, 3, _profiled, rows, 0)

    def _write(
        self, name: str, shape: Shape, shards: int, filled: int | Filled, rows: Rows, padding: int
    ) -> Path:
        path = self.folder / name
        if not path.exists():
            print(f"writing {name}", file=sys.stderr)
            tokenizer = self.tokenizers[shape.vocabulary]
            options = {"filled": filled, "shards": shards, "tokenizer": tokenizer, "padding": padding}
            _apart(write_model, path, shape, rows, **options)
        return path


def _profiled(name: str) -> int:
    """Rows with values of a model whose profile is measured: all of the tables and of three feed-forward layers."""
    whole = "embed" in name or "lm_head" in name or any(f"layers.{k}.mlp" in name for k in (1, 16, 31))
    return 1 << 30 if whole else SAMPLED


def _apart(function: Callable[..., object], *arguments: object, **options: object) -> None:
    """Call in a process of its own: the peak memory of a child begins with that of the process that starts it."""
    process = get_context("fork").Process(target=function, args=arguments, kwargs=options)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{arguments[0]} could not be written")


def sketches(models: Models, runs: int) -> Iterator[Row]:
    """Bytes, time and memory of ``drupe sketch``, at the best and the worst place of the tensors in pages."""
    cases = (
        ("14 GB, 32k vocabulary", LLAMA_7B, 1, 16),
        ("14 GB, 128k vocabulary", LLAMA_7B_128K, 3, 16),
        ("140 GB in 30 shards, 32k vocabulary", LLAMA_70B, 30, 24),
        ("140 GB in 30 shards, 128k vocabulary", LLAMA_70B_128K, 30, 24),
    )
    for what, shape, shards, most in cases:
        target = models.folder / "out.drupe"
        found = []
        for padding in (0, 1024, 2048, 3072):
            folder = models.sketched(shape, shards, padding)
            found.append(cold([DRUPE, "sketch", folder, "-o", target], [folder], runs, {}))
            shutil.rmtree(folder)
        worst = max(found, key=lambda one: one.pages)
        met = worst.pages <= most * MIB and worst.wall <= 2.0 and worst.rss <= 250e6 and not worst.answer.code
        yield Row(
            f"`sketch` of {what} ({min(one.pages for one in found) / MIB:.1f} to {worst.pages / MIB:.1f} MiB "
            "over four placements; the worst is given)",
            f"<= {most} MiB, <= 2 s, <= 250 MB",
            worst.cost,
            met,
        )


def comparisons(models: Models, runs: int) -> Iterator[Row]:
    """``drupe compare`` of two 14 GB models."""
    base, speaking = models.source(), models.speaking(5)
    cases = (
        ("source + rank 4 + noise", models.tuned(), base, ("derivative",), []),
        ("source + 10 % noise", models.noisy(), base, ("copy", "derivative"), []),
        (
            "independent, `--budget sample`",
            models.stranger(),
            base,
            ("inconclusive",),
            ["--budget", "sample"],
        ),
        ("independent", models.stranger(), base, ("same_design", "inconclusive"), []),
        (
            "independent, token tables of one language",
            models.speaking(6),
            speaking,
            ("same_design", "inconclusive"),
            [],
        ),
    )
    for what, suspect, source, labels, options in cases:
        command = [DRUPE, "compare", suspect, source, "--format", "json", *options]
        slow = what.startswith("independent") and not options
        result = cold(command, [suspect, source], 1 if slow else runs, {})
        if result.answer.code == 124:
            yield Row(f"`compare` 14 GB: {what}", "< 1 GiB", f"more than {result.cost}; stopped", False)
            continue
        report = json.loads(result.answer.output)
        label, level = report["verdict"]["label"], report["coverage"]["level"]
        limit = "< 1 GiB" if slow else "<= 3 s"
        met = (
            label in labels and level == "sample" and (result.pages < 1 << 30 if slow else result.wall <= 3.0)
        )
        yield Row(f"`compare` 14 GB: {what}", limit, f"`{label}` ({level}), {result.cost}", met)


def remote(models: Models) -> Iterator[Row]:
    """The suspect by HTTP ranges, against the source's fingerprint."""
    stored = models.folder / "source.drupe"
    run([DRUPE, "sketch", models.source(), "-o", stored])
    with HubServer({"org/suspect": models.tuned()}) as server:
        cache = str(models.folder / "no-cache")
        environment = {
            "HF_ENDPOINT": server.url,
            "HF_HUB_CACHE": cache,
            "HF_HOME": cache,
            "DRUPE_CACHE": cache,
        }
        done = run([DRUPE, "compare", "hf:org/suspect", stored, "--format", "json"], environment)
    report = json.loads(done.output)
    label, received = report["verdict"]["label"], report["coverage"]["bytes_read"]
    requests, redirects = (
        len(server.log),
        sum("/resolve/" in p and p.endswith(".safetensors") for p in server.paths()),
    )
    yield Row(
        "the same suspect by HTTP (3 shards), against a stored fingerprint",
        "<= 64 requests",
        f"`{label}`, {requests} requests in all ({redirects} of them redirected; listing, index, configuration and "
        f"tokenizer included), {received / MIB:.1f} MiB, {done.wall:.2f} s ({done.cpu:.2f} s CPU)",
        label == "derivative" and requests <= 64,
    )


def fingerprints(models: Models) -> Iterator[Row]:
    """Size and reproducibility of the file."""
    folder = models.sketched(LLAMA_7B_128K, 3, 0)
    contents = []
    for seed in ("0", "1", "random"):
        target = models.folder / f"seed-{seed}.drupe"
        run([DRUPE, "sketch", folder, "-o", target], {"PYTHONHASHSEED": seed})
        contents.append(target.read_bytes())
    same = len(set(contents)) == 1
    size = len(contents[0])
    yield Row(
        "fingerprint of 32 layers, 128k vocabulary",
        "<= 64 KiB, reproducible",
        f"{size / 1024:.1f} KiB, {'equal' if same else 'NOT equal'} under three hash seeds",
        same and size <= 64 << 10,
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="an existing folder with 2 GB of room; models are kept there"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        models = Models(arguments.folder or Path(temporary))
        rows = [
            *sketches(models, arguments.runs),
            *comparisons(models, arguments.runs),
            *remote(models),
            *fingerprints(models),
        ]
    print(machine(), end="\n\n")
    print(table(rows))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
