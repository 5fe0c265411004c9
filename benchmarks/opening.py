"""What opening costs in each format: milliseconds and bytes for a header, bytes for eight rows.

    python benchmarks/opening.py

Every file holds 300 matrices of 512 x 512 (float32, 315 MB; GGUF and ONNX too) and is written without values where
the format allows holes. Time is the median of nine openings in one process after a first one, which imports.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import onnx
from common import MIB, ROOT, Row, machine, table
from onnx import helper

sys.path.insert(0, str(ROOT / "tests"))
import format_writers
from drupe.readers.interface import Absent, Window
from drupe.readers.weights import open_weights
from drupe.sources.local import LocalTree
from readers.test_torch_file import sparse_checkpoint
from zoo_files import write_safetensors

COUNT, SIDE = 300, 512
NAMES = [f"model.layers.{k // 10}.part{k % 10}.weight" for k in range(COUNT)]
LIMIT_MS = 50.0


def _zeros() -> dict[str, np.ndarray]:
    shared = np.zeros((SIDE, SIDE), np.float32)
    return dict.fromkeys(NAMES, shared)


def _gguf(folder: Path) -> None:
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    for name, values in _zeros().items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _onnx(folder: Path) -> None:
    tensors = []
    for place, name in enumerate(NAMES):
        tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[SIDE, SIDE])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "w"), ("offset", place * 4 * SIDE**2), ("length", 4 * SIDE**2)):
            tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=str(value)))
        tensors.append(tensor)
    nodes = [helper.make_node("Identity", [name], [f"out.{name}"]) for name in NAMES]
    outs = [helper.make_tensor_value_info(f"out.{n}", onnx.TensorProto.FLOAT, [SIDE, SIDE]) for n in NAMES]
    graph = helper.make_graph(nodes, "g", [], outs, tensors)
    (folder / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with (folder / "w").open("wb") as file:
        file.truncate(COUNT * 4 * SIDE**2)


def _ctranslate2(folder: Path) -> None:
    (folder / "model.bin").write_bytes(format_writers.ctranslate2(_zeros()))


def _msgpack(folder: Path) -> None:
    (folder / "flax_model.msgpack").write_bytes(format_writers.pack(format_writers.nested(_zeros())))


WRITERS: dict[str, Callable[[Path], object]] = {
    "safetensors": lambda folder: write_safetensors(folder / "model.safetensors", _zeros(), "fp32"),
    "PyTorch zip": lambda folder: sparse_checkpoint(folder / "pytorch_model.bin", SIDE, SIDE, COUNT),
    "GGUF": _gguf,
    "ONNX, external data": _onnx,
    "npz": lambda folder: np.savez(folder / "weights.npz", **_zeros()),  # type: ignore[arg-type]
    "Flax msgpack": _msgpack,
    "CTranslate2": _ctranslate2,
}


def measure(write: Callable[[Path], object], name: str) -> Row:
    """One format: median time and bytes of opening, bytes of eight rows."""
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary))
        times = []
        for _ in range(10):
            tree = LocalTree(Path(temporary))
            start = time.perf_counter()
            file = open_weights(tree)
            times.append(1e3 * (time.perf_counter() - start))
        assert not isinstance(file, Absent)
        header = tree.meter.bytes_read
        tensor = next(n for n, info in file.tensors.items() if len(info.shape) == 2)
        file.read([Window(tensor, 0, 8, 0, file.tensors[tensor].matrix_shape[1])])
        rows = tree.meter.bytes_read - header
    middle = statistics.median(times[1:])
    met = middle <= LIMIT_MS and rows <= 64 * 1024
    cost = f"{middle:.0f} ms, {header / MIB:.2f} MiB; eight rows: {rows / 1024:.0f} KiB"
    return Row(f"open {name}, {len(file.tensors)} tensors", f"<= {LIMIT_MS:.0f} ms, by ranges", cost, met)


def two_gigabytes() -> Row:
    """Memory of listing and sampling a pickle checkpoint of 2 GB."""
    with tempfile.TemporaryDirectory() as temporary:
        sparse_checkpoint(Path(temporary) / "pytorch_model.bin", 2048, 2048, 128)
        file = open_weights(LocalTree(Path(temporary)))
        assert not isinstance(file, Absent)
        for name, info in file.tensors.items():
            if len(info.shape) == 2:
                file.read([Window(name, 0, 8, 0, info.matrix_shape[1])])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Row(
        "2 GB pickle checkpoint, eight rows of every tensor", "<= 200 MB", f"{peak:.0f} MB", peak <= 200
    )


def main() -> int:
    """Command line."""
    rows = [two_gigabytes()]  # first: the peak of a process only grows
    rows += [measure(write, name) for name, write in WRITERS.items()]
    print(machine(), table(rows), sep="\n\n")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
