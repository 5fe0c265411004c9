"""Files that are made of others pass on what those say: a warning must not be lost on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from drupe import workflows
from drupe.readers.interface import Absent
from drupe.readers.subset import subset
from drupe.readers.weights import open_weights
from drupe.readers.wrapping import flags_of, headers_of
from drupe.sources.local import LocalTree
from pickle_corpus import archive, call, checkpoint, text
from torch_writer import write_torch
from zoo_files import read_model

GADGET = archive(checkpoint(call("os", "system", text("true"))))


def one_file(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(GADGET)


def pipeline(folder: Path) -> None:
    for part in ("unet", "vae"):
        (folder / part).mkdir()
        (folder / part / "diffusion_pytorch_model.bin").write_bytes(GADGET)
    (folder / "model_index.json").write_text(json.dumps({part: ["d", "X"] for part in ("unet", "vae")}))


def ranks(folder: Path) -> None:
    for rank in range(2):
        (folder / f"consolidated.{rank:02d}.pth").write_bytes(GADGET)


def adapter(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(GADGET)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))


@pytest.mark.parametrize(("write", "count"), [(one_file, 1), (pipeline, 2), (ranks, 2), (adapter, 1)])
def test_dangerous_names_are_shown_however_the_files_are_put_together(
    write: Callable[[Path], None], count: int, tmp_path: Path
) -> None:
    write(tmp_path)
    flags = workflows.inspect(str(tmp_path), offline=True)["model"]["flags"]  # type: ignore[index,call-overload]
    assert [flag["what"] for flag in flags if flag["kind"] == "dangerous_code"] == ["os.system"] * count  # type: ignore[index,union-attr,call-overload]


def test_a_part_keeps_the_headers_and_flags_of_its_file(tmp_path: Path) -> None:
    pipeline(tmp_path)
    whole = open_weights(LocalTree(tmp_path))
    assert not isinstance(whole, Absent)
    part = subset(whole, {"unet:weight"})
    assert list(part.tensors) == ["unet:weight"]
    assert (flags_of(part), headers_of(part)) == (flags_of(whole), headers_of(whole))
    assert headers_of(whole)


def test_a_clean_file_has_nothing_to_say(tmp_path: Path) -> None:
    write_torch(read_model("g0"), tmp_path)
    weights = open_weights(LocalTree(tmp_path))
    assert not isinstance(weights, Absent)
    assert flags_of(weights) == ()
