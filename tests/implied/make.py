"""What torch says: names and shapes of ``state_dict()`` of every case and of every Feature class -> truth.json.

    python -m venv env && env/bin/pip install torch==2.13.0 transformers==5.23.0
    env/bin/python tests/implied/make.py

The code under ``code/`` was written for these tests; here, and only here, it is imported and run.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

HERE = Path(__file__).parent
FEATURES: dict[str, object] = {
    "n": 4, "norm": "layer", "kind": "y", "flag": True, "nothing": None, "layer_types": ["a", "b", "a"], "k": 2,
    "cross": [0, 1, 3],
}  # fmt: skip


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def load(folder: Path, name: str) -> ModuleType:
    return importlib.import_module(f"{folder.name}.{name}")


def main() -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model_code"
        folder.mkdir()
        (folder / "__init__.py").touch()
        for file in (HERE / "code").glob("*.py.txt"):
            (folder / file.name.removesuffix(".txt")).write_text(file.read_text("utf-8"), "utf-8")
        sys.path.insert(0, parent)
        truth: dict[str, object] = {}
        for case, entry in json.loads((HERE / "cases.json").read_text("utf-8")).items():
            cls = getattr(load(folder, entry["files"][-1]), entry["architecture"])
            with torch.device("meta"):
                truth[case] = shapes(cls(cls.config_class(**entry["config"])))
        features = load(folder, "modeling_features")
        for name in dir(features):
            if name.startswith("Feature"):
                truth[name] = shapes(getattr(features, name)(SimpleNamespace(**FEATURES)))
    text = json.dumps({"features": FEATURES, "state_dict": truth}, separators=(",", ":"))
    (HERE / "truth.json").write_text(text.replace("},", "},\n") + "\n", "utf-8")


if __name__ == "__main__":
    main()
