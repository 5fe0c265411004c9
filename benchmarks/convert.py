"""How fast is a conversion beside a plain copy of the same files, and how much memory does it take?

    python benchmarks/convert.py [--layers 8] [--rounds 5]       # about 1 GB under the temporary folder, twice

A checkpoint in two shards (random BF16 values, Yi's first names) is copied with `cp -r` and converted, in turn: with
two modules renamed (`--like llama`), and with q, k, v and gate, up fused (`--like phi3`). Every conversion reads back
and compares every value, and ends when the files are on the disk; the copy is timed without and with `sync`. Ratios
are of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from common import machine

HIDDEN, INNER, PIECES, HEADS = 2048, 5504, 32000, 16


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama of that depth, with two modules renamed."""
    table = (PIECES, HIDDEN)
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table, "model.norm.weight": (HIDDEN,)}
    for layer in range(layers):
        base = f"model.layers.{layer}."
        found |= {f"{base}self_attn.{part}_proj.weight": (HIDDEN, HIDDEN) for part in "qkvo"}
        found |= {f"{base}mlp.{part}_proj.weight": (INNER, HIDDEN) for part in ("gate", "up")}
        found |= {f"{base}mlp.down_proj.weight": (HIDDEN, INNER)}
        found |= {f"{base}{norm}.weight": (HIDDEN,) for norm in ("ln1", "ln2")}
    return found | {"lm_head.weight": table}


def write(folder: Path, layers: int) -> int:
    """Two shards, an index and a configuration; returns the bytes of the tensors."""
    names = list(shapes(layers).items())
    middle, weight_map = len(names) // 2, {}
    for number, part in enumerate((names[:middle], names[middle:]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        weight_map |= {name: file for name, _ in part}
        _write_shard(folder / file, dict(part))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {
        "model_type": "Yi",
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _write_shard(path: Path, tensors: Mapping[str, tuple[int, ...]]) -> None:
    header, offset = {}, 0
    for name, shape in tensors.items():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    dice = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, offset, 1 << 24):
            file.write(dice.bytes(min(1 << 24, offset - start)))


def seconds(work: Callable[[], object], target: Path) -> float:
    """Wall time of one run into an empty place, all earlier writes on the disk."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    time.sleep(1.0)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model, target = Path(temporary) / "model", Path(temporary) / "out"
        model.mkdir()
        size = write(model, options.layers)
        shard = max(path.stat().st_size for path in model.glob("*.safetensors"))

        def converted(like: str) -> list[str]:
            command = [
                sys.executable,
                "-m",
                "drupe",
                "convert",
                str(model),
                "--like",
                like,
                "-o",
                str(target),
                "-q",
            ]
            return [*command, "--shard-size", str(shard + (1 << 20))]

        def copied() -> None:
            subprocess.run(["cp", "-r", str(model), str(target)], check=True)

        def copied_to_disk() -> None:
            copied()
            os.sync()

        kinds: dict[str, Callable[[], object]] = {
            "cp -r": copied,
            "cp -r, sync": copied_to_disk,
            "convert, renamed": lambda: subprocess.run(converted("llama"), check=True),
            "convert, renamed, with digests": lambda: subprocess.run(
                [*converted("llama"), "--digests"], check=True
            ),
            "convert, fused": lambda: subprocess.run(converted("phi3"), check=True),
        }
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        dice = np.random.default_rng(0)
        for _ in range(options.rounds):
            for kind in dice.permutation(list(kinds)):  # what was deleted before costs the next one something
                times[kind].append(seconds(kinds[kind], target))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(
        machine(),
        "",
        f"{size / 1e9:.2f} GB, largest shard {shard / 1e6:.0f} MB, {options.rounds} rounds",
        "",
        sep="\n",
    )
    print("| what | GB/s: median (least to most) | speed over cp | speed over cp, sync |\n|---|---|---|---|")
    middle = {kind: statistics.median(values) for kind, values in times.items()}
    for kind, values in times.items():
        rates = [size / 1e9 / value for value in (middle[kind], max(values), min(values))]
        ratios = [middle[other] / middle[kind] for other in ("cp -r", "cp -r, sync")]
        print(
            f"| {kind} | {rates[0]:.2f} ({rates[1]:.2f} to {rates[2]:.2f}) | {ratios[0]:.2f} | {ratios[1]:.2f} |"
        )
    print(
        f"\nPeak memory of a conversion: {peak:.0f} MB, {peak * 1.048576e6 / shard:.2f} of the largest shard"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
