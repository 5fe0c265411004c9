"""Part by part: each with its own relation and source, from folders, files and fingerprints."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
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


def test_a_new_projector_makes_an_assembled_copy_a_part(tmp_path: Path) -> None:
    def with_projector(path: Path, seed: int) -> Path:
        model = read_model("r0")
        dice = np.random.default_rng(seed)
        tensors = {f"language_model.{name}": values for name, values in model.tensors.items()}
        tensors |= {f"vision_tower.{name}": values for name, values in read_model("b0").tensors.items()}
        for number in (1, 2):
            values = 0.02 * dice.standard_normal((64, 64))
            tensors[f"multi_modal_projector.linear_{number}.weight"] = values.astype(np.float32)
        return save(model.with_tensors(tensors), path)

    report = compared(with_projector(tmp_path / "x", 1), with_projector(tmp_path / "y", 2))
    assert (report["verdict"]["label"], report["components"]["weights"]["relation"]) == (
        "derivative",
        "partial",
    )
    assert compared(tmp_path / "x", tmp_path / "x")["verdict"]["label"] == "copy"


@pytest.mark.parametrize(
    ("taken", "share"),
    [
        ("shared", 0.25),
        ("encoder", 0.375),
        ("decoder", 0.375),
        ("encoder|shared", 0.625),
        ("coder|shared", 1.0),
    ],
)
def test_what_both_coders_share_counts_once(taken: str, share: float, tmp_path: Path) -> None:
    def coders(seed: int) -> Tensors:
        dice = np.random.default_rng(seed)
        names = [
            f"{side}.block.{layer}.layer.{part}.weight"
            for side in ("encoder", "decoder")
            for layer in range(3)
            for part in ("0.SelfAttention.q", "0.SelfAttention.k", "0.SelfAttention.v", "0.SelfAttention.o")
        ]
        found = {name: dice.standard_normal((64, 64)).astype(np.float32) for name in names}
        return {"shared.weight": dice.standard_normal((512, 64)).astype(np.float32), **found}

    mine, theirs = coders(1), coders(2)
    suspect = {name: theirs[name] if re.search(taken, name) else values for name, values in mine.items()}
    base = Checkpoint({}, {"model_type": "t5"}, dtype="fp32")
    source = save(base.with_tensors(theirs), tmp_path / "source")
    report = compared(save(base.with_tensors(suspect), tmp_path / "suspect"), source)
    assert report["components"]["weights"]["shared_fraction"] == pytest.approx(share, abs=0.002)
