"""A single wrong byte of a written file is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from drupe.convert import steps
from drupe.convert.values import Values
from drupe.convert.verify import ReadBack, check_header
from drupe.convert.writer import shards_of
from drupe.errors import SourceError
from drupe.workflows import convert
from zoo_files import MODELS, read_model, save


@pytest.mark.parametrize("like", ["llama", "phi3", "baichuan"])
@pytest.mark.parametrize("place", [0.001, 0.5, 0.999])
def test_a_flipped_bit_is_found(like: str, place: float, tmp_path: Path) -> None:
    shell = read_model("r0")  # of a class that is not known, so that any names may be tried
    folder = str(save(replace(shell, config={**shell.config, "model_type": "shell"}), tmp_path / "shell"))
    model = steps.open_weights_of(folder, offline=True)
    target, source = steps.target_of(like, offline=True)
    made = steps.plan_for(model, target, source)
    values = Values(model)
    (shard,) = shards_of(made.outputs, values, 1 << 30)
    convert(folder, like, tmp_path / "out")
    path = tmp_path / "out" / shard.file

    def read_back() -> None:
        start = len(shard.header)
        starts = {}
        with ReadBack(path, values, wanted=False) as check:
            for output in shard.outputs:
                starts[output.name] = start
                check.add(output, start, None)
                start += values.size(output)
        check_header(path, starts)

    read_back()
    data = bytearray(path.read_bytes())
    data[len(shard.header) + int(place * (len(data) - len(shard.header)))] ^= 4
    path.write_bytes(data)
    with pytest.raises(SourceError, match="read back with other values"):
        read_back()


def test_a_header_that_says_otherwise_is_found(tmp_path: Path) -> None:
    convert(str(MODELS / "r0"), "llama", tmp_path / "out")
    with pytest.raises(SourceError, match="header"):
        check_header(tmp_path / "out" / "model.safetensors", {"model.norm.weight": 8})
