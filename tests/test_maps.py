"""The exported maps: a stranger undoes the change with NumPy alone and finds what the report says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import zoo
from drupe import workflows
from drupe.cli import main
from zoo_files import read_model, save

Edit = tuple[str, dict[str, Any]]
MODELS = Path(__file__).parent / "models"
CASES: dict[str, tuple[Edit, ...]] = {
    "units": (("permute_units", {}),),
    "heads": (("permute_heads", {}),),
    "rotated": (("permute_units", {}), ("rotate", {})),
    "hidden": (("permute_hidden", {}),),
    "narrow": (("prune_hidden", {"keep": 0.75}),),
    "pruned units": (("prune_units", {"keep": 0.75}),),
    "tokens": (("permute_vocabulary", {}),),
    "rescaled": (("rescale_units", {}),),
    "flipped and rescaled": (("permute_hidden", {"flip": True}), ("rescale_units", {})),
    "rotated, narrower": (("rotate", {}), ("prune_hidden", {"keep": 0.75})),
    "rotated, half of the units": (("prune_units", {"keep": 0.5}), ("rotate", {})),
    "layers": (("map_layers", {"order": [0, 2, 3]}),),
}


def undone(
    archive: Any, part: dict[str, Any], entry: dict[str, Any], s: NDArray[Any], o: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both sides in one coordinate system; the lines of docs/how-to.md."""
    output = entry["role"].rpartition(".")[2] in ("o", "down")
    if "suspect_gain" in entry:
        s = s * archive[entry["suspect_gain"]]
    if "source_gain" in entry:
        o = o * archive[entry["source_gain"]]
    if "rotation" in part:
        q = archive[part["rotation"]]
        if q.shape[0] == q.shape[1]:
            s = q @ s if output else s @ q.T
        else:
            o = q.T @ o if output else o @ q
    if "hidden" in part:
        columns, signs = archive[part["hidden"]], archive[part["signs"]]
        o = o[columns] * signs[:, None] if output else o[:, columns] * signs
    if "partners" in entry:
        mine, theirs = archive[entry["partners"]].T
        axis = entry["units_axis"]
        s, o = np.take(s, mine, axis), np.take(o, theirs, axis)
    if "row_scales" in entry:
        o = archive[entry["row_scales"]][:, None] * o * archive[entry["column_scales"]]
    rows = min(len(s), len(o))  # a table that was extended
    return entry["sign"] * s[:rows], o[:rows]


def values(model: dict[str, NDArray[Any]], place: dict[str, Any]) -> NDArray[Any]:
    """The rows of a tensor that a matrix is."""
    tensor = model[place["tensor"]].astype(np.float32)
    tensor = tensor.T if place["transposed"] else tensor
    return tensor[place["row_start"] : place["row_start"] + place["rows"]]


@pytest.mark.parametrize("case", CASES)
def test_the_archive_undoes_the_change(case: str, tmp_path: Path) -> None:
    model = read_model("r0")
    for kind, parameters in CASES[case]:
        model = zoo.apply(model, kind, **parameters)
    save(model, tmp_path / "suspect")
    target = tmp_path / "maps.npz"
    workflows.compare(str(tmp_path / "suspect"), str(MODELS / "r0"), keep_maps=target)
    with np.load(target, allow_pickle=False) as archive:
        index = json.loads(str(archive["index"]))
        assert index["format"] == "drupe-maps-1"
        part = index["parts"][0]
        assert len(part["matrices"]) >= 17
        for entry in part["matrices"]:
            s, o = values(model.tensors, entry["suspect"]), values(read_model("r0").tensors, entry["source"])
            s, o = undone(archive, part, entry, s, o)
            assert s.shape == o.shape
            rest = float(((s - o) ** 2).sum() / (o**2).sum())
            assert rest < 0.01
            assert rest == pytest.approx(entry["unexplained"], abs=1e-3)


def test_nothing_found_is_an_archive_without_maps(tmp_path: Path) -> None:
    target = tmp_path / "maps.npz"
    options = ["compare", str(MODELS / "r1"), str(MODELS / "r0"), "--maps", str(target), "-q"]
    assert main(options) == 0
    with np.load(target, allow_pickle=False) as archive:
        parts = json.loads(str(archive["index"]))["parts"]
        assert not any(part["matrices"] for part in parts)
        assert archive.files == ["index"]


def test_a_file_that_cannot_be_written_is_a_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    options = ["compare", str(MODELS / "r0_ft"), str(MODELS / "r0"), "-q"]
    assert main([*options, "--maps", str(tmp_path / "file" / "maps.npz")]) == 2
    assert "maps.npz" in capsys.readouterr().err
