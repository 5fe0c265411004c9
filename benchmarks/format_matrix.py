"""One trained model in every format against itself in every other: the matrix of docs/formats.md.

    python benchmarks/format_matrix.py             # prints the table; some minutes
    python benchmarks/format_matrix.py --write     # and puts it into docs/formats.md and docs/zh/formats.md

The suspect stands in the row, the source in the column. Every other model of the same design (r1, independent) is
compared in each format with the source in safetensors: none may be related.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import gguf
from common import ROOT, machine

sys.path.insert(0, str(ROOT / "tests"))
from drupe import workflows
from readers import test_formats_end_to_end as writers
from readers.quantised_packers import quantised
from torch_writer import write_torch
from zoo_files import Checkpoint, read_model, save

Write = Callable[[Checkpoint, Path], object]
SHORT = {"copy": "c", "derivative": "d", "same_design": "-", "unrelated": "-", "inconclusive": "?"}


def _beside(write: Write) -> Write:
    """Weights in another format, the configuration and tokenizer as they were."""

    def run(model: Checkpoint, folder: Path) -> None:
        save(model, folder)
        (folder / "model.safetensors").unlink()
        write(model, folder)

    return run


def _sharded(model: Checkpoint, folder: Path) -> None:
    from dataclasses import replace

    save(replace(model, shards=3), folder)


def _gguf(kind: str, parts: int = 0) -> Write:
    if kind not in writers.ENCODERS:
        type_ = gguf.GGMLQuantizationType[kind]
        writers.ENCODERS[kind] = lambda values: gguf.quants.quantize(values, type_)
    return lambda model, folder: writers.write_gguf(model, folder, kind, parts)


def _packed(scheme: str) -> Write:
    return lambda model, folder: quantised(model, scheme, folder)


def _fingerprint(model: Checkpoint, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        save(model, Path(temporary) / "m")
        workflows.sketch([str(Path(temporary) / "m")], folder / "model.drupe")


FORMATS: dict[str, Write] = {
    "safetensors": save,
    "safetensors, sharded": _sharded,
    "PyTorch zip": _beside(write_torch),
    "npz": _beside(writers.write_npz),
    "npy": _beside(writers.write_npy),
    "Flax msgpack": _beside(writers.write_flax),
    "CTranslate2": _beside(writers.write_ctranslate2),
    "GGUF F16": _gguf("F16"),
    "GGUF Q8_0": _gguf("Q8_0"),
    "GGUF IQ4_NL": _gguf("IQ4_NL"),
    "GGUF, split": _gguf("F16", 5),
    **{
        name: _packed(name.split()[0].lower()) for name in ("GPTQ 4", "AWQ 4", "NF4", "MLX 4", "HQQ 4", "fp8")
    },
    "fingerprint": _fingerprint,
}


def locator(folder: Path) -> str:
    """The folder, or the one file in it that is a fingerprint."""
    kept = folder / "model.drupe"
    return str(kept if kept.exists() else folder)


def label(suspect: Path, source: Path) -> str:
    report = workflows.compare(locator(suspect), locator(source), offline=True)
    return str(report["verdict"]["label"])  # type: ignore[index,call-overload]


def matrix(folder: Path) -> tuple[str, bool]:
    """The table, and whether every pair of one model is a copy or a derivative and no stranger is."""
    places = {}
    for number, (name, write) in enumerate(FORMATS.items()):
        for model in ("r0", "r1"):
            places[name, model] = folder / f"{model}-{number}"
            places[name, model].mkdir()
            write(read_model(model), places[name, model])
    rows, fine = [], True
    for name in FORMATS:
        found = [label(places[name, "r0"], places[other, "r0"]) for other in FORMATS]
        stranger = label(places[name, "r1"], places["safetensors", "r0"])
        fine &= set(found) <= {"copy", "derivative"} and SHORT[stranger] in "-?"
        rows.append([name, *(SHORT[one] for one in found), SHORT[stranger]])
        print(name, *rows[-1][1:], file=sys.stderr)
    numbers = [str(number + 1) for number in range(len(FORMATS))]
    lines = [["suspect \\ source", *numbers, "r1"], ["---"] * (len(FORMATS) + 2)]
    lines += [[f"{number} {row[0]}", *row[1:]] for number, row in zip(numbers, rows, strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines), fine


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the table into the pages")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        table, fine = matrix(Path(temporary))
    print(machine(), table, sep="\n\n")
    for page in ("docs/formats.md", "docs/zh/formats.md") if options.write else ():
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        pattern = r"(<!-- begin matrix -->\n).*?(<!-- end matrix -->)"
        path.write_text(
            re.sub(pattern, lambda m: f"{m[1]}\n{table}\n\n{m[2]}", text, flags=re.S), encoding="utf-8"
        )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
