"""The verbs end to end: what they return, read and write, for every kind of side."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import drupe
import zoo
from drupe import document, workflows
from drupe.comparison import FULL, SAMPLE
from drupe.errors import FormatError, LimitError, LocatorError, OfflineError, UsageError
from drupe.messages import Message
from hostile_files import save_small
from zoo_files import MODELS, read_model, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("workflows") / "model")


def compared(suspect: object, source: object, **options: Any) -> dict[str, Any]:
    return workflows.compare(str(suspect), str(source), **options)


def as_fingerprint(folder: Path, place: Path) -> Path:
    return workflows.sketch([str(folder)], place / "model.drupe")[0]


def as_evidence(folder: Path, place: Path) -> Path:
    return workflows.sketch([str(folder)], place / "kept.drupe", keep_evidence=place / "kept")[1]


SIDES: dict[str, Callable[[Path, Path], Path]] = {
    "folder": lambda folder, place: folder,
    "fingerprint": as_fingerprint,
    "evidence": as_evidence,
}


@pytest.mark.parametrize("suspect", SIDES)
@pytest.mark.parametrize("source", SIDES)
def test_every_kind_of_side_is_compared_with_every_other(
    suspect: str, source: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    pair = SIDES[suspect](folder, tmp_path / "a"), SIDES[source](folder, tmp_path / "b")
    report = compared(*pair)
    assert report["verdict"]["label"] == "copy"
    assert report["components"]["weights"]["relation"] in ("identical", "equivalent")
    assert [report[side]["locator"] for side in ("suspect", "source")] == [str(path) for path in pair]
    assert report["suspect"]["digest"] == report["source"]["digest"]
    skipped = {f["signal"] for f in report["findings"] if f["status"] == "skipped"}
    assert ("weights.profile" in skipped) or suspect == source == "folder"
    document.loads(document.dumps(report).encode(), "own")


def test_two_fingerprints_need_no_file_of_the_models(tmp_path: Path) -> None:
    place = as_fingerprint(MODELS / "r0", tmp_path)
    report = compared(place, place)
    assert report["coverage"]["bytes_read"] == 0
    assert report["coverage"]["level"] == "sample"


def test_coverage_says_how_much_was_read() -> None:
    full, sample = (compared(MODELS / "r0_ft", MODELS / "r0", budget=budget) for budget in (FULL, SAMPLE))
    assert (full["coverage"]["level"], sample["coverage"]["level"]) == ("full", "sample")
    assert 0 < sample["coverage"]["share"] < full["coverage"]["share"] <= 1
    assert sample["coverage"]["bytes_read"] < full["coverage"]["bytes_read"]
    assert full["verdict"]["label"] == sample["verdict"]["label"] == "derivative"
    assert len(sample["verdict"]["caveats"]) > 0


def test_the_same_question_gets_the_same_answer() -> None:
    pair = (MODELS / "r0_ft", MODELS / "r0")
    assert document.dumps(compared(*pair)) == document.dumps(compared(*pair))


def test_progress_names_both_sides(folder: Path) -> None:
    heard: list[Message] = []
    compared(folder, MODELS / "r0", notify=heard.append)
    texts = [message.text("en") for message in heard]
    assert len(texts) >= 3
    assert str(folder) in texts[0]
    assert str(MODELS / "r0") in texts[1]
    assert all(message.text("zh") for message in heard)


def test_documents_belong_to_the_suspect(folder: Path, tmp_path: Path) -> None:
    source = save_small(tmp_path / "Kernel-7B")
    for name in ("README.md", "LICENSE"):
        (source / name).unlink()
    note = [("note.txt", b"built on Kernel-7B")]
    assert compared(folder, source)["verdict"]["disclosure"] == "undisclosed"
    assert compared(folder, source, documents=note)["verdict"]["disclosure"] == "disclosed"


def test_sketching_several_models_into_a_folder(tmp_path: Path) -> None:
    models = [str(MODELS / name) for name in ("r0", "r1")]
    written = workflows.sketch(models, tmp_path / "out")
    assert [path.name for path in written] == ["r0.drupe", "r1.drupe"]
    assert os.listdir(tmp_path) == ["out"]
    with pytest.raises(UsageError, match="one model at a time"):
        workflows.sketch(models, tmp_path / "x", keep_evidence=tmp_path / "kept")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("locator", "stem"),
    [
        ("a/b/", "b"),
        ("hf:org/name@main", "name"),
        ("https://h/x/m.gguf", "m.gguf"),
        ("..", "model"),
        ("/", "model"),
        ("a/\x1b[31m", "__31m"),
        ("C:\\models\\x", "x"),
        (".hidden", "hidden"),
    ],
)
def test_file_names_from_locators_are_harmless(locator: str, stem: str) -> None:
    assert workflows._stem(locator) == stem


def test_two_models_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    models = [str(save_small(tmp_path / parent / "model", seed)) for seed, parent in enumerate("ab")]
    try:
        written = workflows.sketch(models, tmp_path / "out")
    except UsageError:
        assert not (tmp_path / "out").exists()
    else:
        assert len({path.read_bytes() for path in written}) == 2


@pytest.mark.parametrize("locator", ["hf:org/name", "https://example.org/model.safetensors"])
def test_offline_makes_no_connection(
    locator: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for call in (
        lambda: compared(locator, folder, offline=True),
        lambda: compared(folder, locator, offline=True),
        lambda: workflows.inspect(locator, offline=True),
    ):
        with pytest.raises(OfflineError):
            call()


def test_reports_are_loaded_back_and_bad_ones_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = compared(folder, folder)
    path = tmp_path / "r.json"
    path.write_text(document.dumps(report), "utf-8")
    assert workflows.load_report(path) == report
    path.write_text("{}")
    with pytest.raises(FormatError, match=r"r\.json"):
        workflows.load_report(path)
    with pytest.raises(LocatorError):
        workflows.load_report(tmp_path / "none.json")
    monkeypatch.setattr(document, "MAX_BYTES", 1)
    with pytest.raises(LimitError):
        workflows.load_report(path)


def test_the_public_names_of_the_package_are_these_verbs() -> None:
    assert drupe.compare is workflows.compare
    assert drupe.inspect is workflows.inspect
    assert drupe.sketch is workflows.sketch
    assert drupe.load_report is workflows.load_report


def test_what_every_layer_inherits_is_said(tmp_path: Path) -> None:
    """A layer of another model in the middle, and one left out."""
    other, model = read_model("r1"), zoo.apply(read_model("r0"), "map_layers", order=[0, 1, 3])
    foreign = {n: v for n, v in other.tensors.items() if n.startswith("model.layers.1.")}
    save(model.with_tensors({**model.tensors, **foreign}), tmp_path / "mixed")
    weights = compared(tmp_path / "mixed", MODELS / "r0")["components"]["weights"]
    assert weights["relation"] == "partial"
    assert weights["layers"] == [
        {"layer": 0, "source": 0, "inherited": 1.0},
        {"layer": 1, "source": None, "inherited": 0.0},
        {"layer": 2, "source": 3, "inherited": 1.0},
    ]
    independent = compared(MODELS / "r1", MODELS / "r0")["components"]["weights"]
    assert "layers" not in independent
