"""A checkpoint as PyTorch's zip, without PyTorch: float32 tensors, one storage each."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from pickle_corpus import call, dictionary, items, name, pickled, text, whole
from zoo_files import Checkpoint


def write_torch(model: Checkpoint, folder: Path, file: str = "pytorch_model.bin") -> Path:
    """Writes ``pytorch_model.bin``; returns its path."""
    entries, storages = {}, []
    for key, (tensor, values) in enumerate(model.tensors.items()):
        data = np.ascontiguousarray(values, "<f4")
        storages.append((f"data/{key}", data.tobytes()))
        storage = items(
            text("storage"), name("torch", "FloatStorage"), text(str(key)), text("cpu"), whole(data.size)
        )
        steps = [step // 4 for step in data.strides]
        entries[tensor] = call(
            "torch._utils",
            "_rebuild_tensor_v2",
            storage + b"Q",
            whole(0),
            items(*map(whole, data.shape)),
            items(*map(whole, steps)),
            b"\x89",
            call("collections", "OrderedDict"),
        )
    path = folder / file
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(dictionary(**entries)))
        archive.writestr("archive/byteorder", b"little")
        for entry, raw in storages:
            archive.writestr(f"archive/{entry}", raw)
        archive.writestr("archive/version", b"3\n")
    return path
