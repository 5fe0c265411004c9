"""A permuted and rotated pair with the widths of a 7B model: what the comparison costs.

    python benchmarks/zoo/wide.py                # writes about 4 GB to a temporary folder

Random weights with the statistics of a Llama (4,096 / 11,008, 32,000 tokens, three layers); the suspect has its FFN
units permuted, the residual stream rotated, and noise of 1 % of each matrix added. Both are bf16. The comparison runs
as a process of its own, with the default budget.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from common import machine
from numpy.typing import NDArray

from zoo_files import to_bf16

Array = NDArray[np.float32]
HIDDEN, FFN, VOCABULARY, HEADS = 4096, 11008, 32000, 32
WRITERS = ("o_proj", "down_proj")


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes of all tensors."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        base = f"model.layers.{layer}."
        for name in ("q", "k", "v", "o"):
            yield f"{base}self_attn.{name}_proj.weight", (HIDDEN, HIDDEN)
        for name in ("gate", "up"):
            yield f"{base}mlp.{name}_proj.weight", (FFN, HIDDEN)
        yield f"{base}mlp.down_proj.weight", (HIDDEN, FFN)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{base}{name}.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def values(number: int, shape: tuple[int, ...]) -> Array:
    """One tensor of the source, the same whenever it is asked for."""
    dice = np.random.default_rng(number)
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    return 0.02 * dice.standard_normal(shape, dtype=np.float32)


def disguised(name: str, matrix: Array, turn: Array, orders: dict[str, NDArray[np.intp]]) -> Array:
    """The suspect's tensor."""
    if matrix.ndim == 1:
        return matrix
    if ".mlp." in name:
        order = orders.setdefault(name.split(".")[2], np.random.default_rng(len(orders) + 7).permutation(FFN))
        matrix = matrix[:, order] if "down_proj" in name else matrix[order]
    turned = turn.T @ matrix if any(writer in name for writer in WRITERS) else matrix @ turn
    noise = np.random.default_rng(abs(hash(name)) % 2**32).standard_normal(turned.shape, dtype=np.float32)
    result: Array = turned + np.float32(0.01 * 0.02) * noise
    return result


def write(folder: Path, layers: int, turn: Array | None) -> None:
    """A model folder, tensor by tensor."""
    folder.mkdir()
    header: dict[str, object] = {}
    offset = 0
    for name, shape in shapes(layers):
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    orders: dict[str, NDArray[np.intp]] = {}
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, (name, shape) in enumerate(shapes(layers)):
            matrix = values(number, shape)
            file.write(to_bf16(matrix if turn is None else disguised(name, matrix, turn, orders)).tobytes())
    config = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
    }
    config |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": VOCABULARY}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


MEASURED = """
import sys
from drupe.cli import main
code = main(sys.argv[1:])
with open("/proc/self/status") as status:
    print(next(line for line in status if line.startswith("VmHWM")), file=sys.stderr)
raise SystemExit(code)
"""
"""The command, and its peak memory: that of a child as the system counts it begins with its parent's."""


def compare(folder: Path, *options: str) -> str:
    """One row: what is said, wall time, peak memory."""
    begin = time.perf_counter()
    command = [sys.executable, "-c", MEASURED, "compare", str(folder / "suspect"), str(folder / "source")]
    done = subprocess.run(
        [*command, *options, "--format", "json"], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - begin
    peak = int(done.stderr.rpartition("VmHWM:")[2].split()[0]) / 1e6
    report = json.loads(done.stdout)
    weights = report["components"]["weights"]
    kinds = ", ".join(change["kind"] for change in weights["transformations"])
    sigma = next(
        (
            c["parameters"]["relative_sigma"]
            for c in weights["transformations"]
            if c["kind"] == "gaussian_noise"
        ),
        0,
    )
    read = report["coverage"]["bytes_read"] / 1e9
    answer = f"{weights['relation']}: {kinds} (sigma {sigma:.4f})"
    return f"| {' '.join(options) or 'default'} | {answer} | {seconds:.1f} | {peak:.2f} | {read:.2f} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="everything read, too: a quarter of an hour")
    arguments = parser.parse_args()
    layers: int = arguments.layers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "source", layers, None)
        dice = np.random.default_rng(1).standard_normal((HIDDEN, HIDDEN), dtype=np.float32)
        write(folder / "suspect", layers, np.linalg.qr(dice)[0])
        print(machine())
        print("\n| budget | answer | s | GB of memory | GB read |\n|---|---|---|---|---|")
        print(compare(folder))
        if arguments.full:
            print(compare(folder, "--budget", "full"))


if __name__ == "__main__":
    main()
