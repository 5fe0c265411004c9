"""Part by part: each with its own relation and source, from folders, files and fingerprints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drupe import document, workflows
from zoo import apply
from zoo_files import Checkpoint, Tensors, read_model, save


def folder(path: Path, parts: dict[str, Checkpoint]) -> Path:
    """A diffusers-like folder of trained models."""
    for name, model in parts.items():
        save(model, path / name)
    index = {"_class_name": "Pipeline", **{name: ["transformers", "Model"] for name in parts}}
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def joined(path: Path, language: str, vision: str, *, prefix: str = "vision_tower.") -> Path:
    """One file with two towers."""
    model = read_model(language)
    tensors: Tensors = {f"language_model.{name}": values for name, values in model.tensors.items()}
    tensors |= {prefix + name: values for name, values in read_model(vision).tensors.items()}
    return save(model.with_tensors(tensors), path)


def compared(suspect: Path, *sources: Path) -> dict[str, Any]:
    report = workflows.compare(str(suspect), *map(str, sources), offline=True)
    assert document.loads(document.dumps(report).encode(), "own") == report
    return report


def parts_of(report: dict[str, Any]) -> dict[str, tuple[str, int | None]]:
    return {p["name"]: (p["relation"], p["source"]) for p in report["components"]["weights"]["parts"]}


def test_each_folder_of_a_pipeline_is_judged_by_itself(tmp_path: Path) -> None:
    source = folder(tmp_path / "a", {"text_encoder": read_model("b0"), "transformer": read_model("r0")})
    noisy = apply(read_model("r0"), "noise", sigma=0.1)
    suspect = folder(tmp_path / "b", {"text_encoder": read_model("b1"), "transformer": noisy})
    report = compared(suspect, source)
    assert parts_of(report) == {"transformer": ("equivalent", 0), "text_encoder": ("independent", 0)}
    weights = report["components"]["weights"]
    share = next(p["share"] for p in weights["parts"] if p["name"] == "transformer")
    assert weights["shared_fraction"] == pytest.approx(share, abs=1e-3)
    assert (report["verdict"]["label"], weights["relation"]) == ("derivative", "partial")
    assert [change["kind"] for change in weights["transformations"]] == ["gaussian_noise"]


def test_a_whole_pipeline_copied_is_a_copy(tmp_path: Path) -> None:
    parts = {"text_encoder": read_model("b0"), "transformer": read_model("r0")}
    report = compared(folder(tmp_path / "b", parts), folder(tmp_path / "a", parts))
    assert report["components"]["weights"]["relation"] == "identical"
    assert report["verdict"]["label"] == "copy"
    assert report["originality"]["weights_inherited"] == 1.0


def test_parts_may_have_sources_of_their_own(tmp_path: Path) -> None:
    suspect = joined(tmp_path / "x", "r0", "b0")
    sources = [save(read_model(name), tmp_path / name) for name in ("r1", "b0", "r0")]
    report = compared(suspect, *sources)
    assert parts_of(report) == {"language_model": ("equivalent", 2), "vision_tower": ("equivalent", 1)}
    assert [source["locator"] for source in report["sources"]] == [str(path) for path in sources[1:]]
    assert report["source"]["locator"] == str(sources[0])
    assert report["verdict"]["label"] == "copy"


def test_independent_parts_stay_independent_however_many_sources(tmp_path: Path) -> None:
    suspect = joined(tmp_path / "x", "r1", "b1")
    sources = [save(read_model(name), tmp_path / name) for name in ("r0", "b0", "g0", "q0")]
    report = compared(suspect, *sources)
    assert {relation for relation, _ in parts_of(report).values()} <= {"independent", "inconclusive"}
    assert report["verdict"]["label"] in ("same_design", "unrelated", "inconclusive")


def test_a_part_that_no_source_has_is_absent(tmp_path: Path) -> None:
    report = compared(joined(tmp_path / "x", "r0", "g0"), save(read_model("r0"), tmp_path / "r0"))
    assert parts_of(report)["language_model"] == ("equivalent", 0)
    assert parts_of(report)["vision_tower"][0] in ("absent", "independent")
    assert report["components"]["weights"]["relation"] == "partial"


def test_parts_are_found_under_other_prefixes_and_from_fingerprints(tmp_path: Path) -> None:
    source = joined(tmp_path / "a", "r0", "b0")
    renamed = joined(tmp_path / "b", "r0", "b0", prefix="vison.")
    kept = workflows.sketch([str(source)], tmp_path / "kept.drupe")[0]
    for other in (source, kept):
        report = compared(renamed, other)
        assert {relation for relation, _ in parts_of(report).values()} <= {"identical", "equivalent"}
        assert report["verdict"]["label"] == "copy"


def test_every_named_source_must_be_disclosed(tmp_path: Path) -> None:
    suspect = joined(tmp_path / "x", "r0", "b0")
    sources = [save(read_model(name), tmp_path / f"Pebble-{name}") for name in ("r0", "b0")]
    card = suspect / "README.md"
    card.write_text("# Mosaic\nThe language model is Pebble-r0.\n")
    assert compared(suspect, *sources)["verdict"]["disclosure"] == "undisclosed"
    card.write_text("# Mosaic\nThe language model is Pebble-r0, the vision tower Pebble-b0.\n")
    assert compared(suspect, *sources)["verdict"]["disclosure"] == "disclosed"


def test_models_of_which_no_part_corresponds_are_compared_as_wholes(tmp_path: Path) -> None:
    report = compared(joined(tmp_path / "x", "r0", "b0"), save(read_model("w0"), tmp_path / "w0"))
    assert report["components"]["weights"]["relation"] in ("independent", "inconclusive")
    assert report["components"]["weights"]["relation"] != "absent"
