"""Code beside the weights is tried on both sides' tensors by ``drupe compare``; nothing of it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.workflows import compare, sketch
from test_implied import HERE, truth
from zoo_files import write_model

CASES = json.loads((HERE / "cases.json").read_text("utf-8"))


def folder(
    tmp_path: Path, name: str, code: str | None, tensors: dict[str, tuple[int, ...]], seed: int
) -> str:
    """A model folder: random values, the configuration and the code of a case."""
    dice = np.random.default_rng(seed)
    values = {key: dice.standard_normal(shape).astype(np.float32) for key, shape in tensors.items()}
    target = tmp_path / name
    write_model(target, values, CASES[code or "multimodal"]["config"])
    for file in CASES[code]["files"] if code else ():
        text = (HERE / "code" / f"{file}.py.txt").read_text("utf-8")
        (target / f"{file}.py").write_text(text + "\nopen('/tmp/ran', 'w').write('x')\n")
    return str(target)


def fit(report: Any) -> dict[str, Any] | None:
    """The finding, if there is one."""
    return next((one for one in report["findings"] if one["signal"] == "code.fit"), None)


def said(finding: dict[str, Any] | None) -> list[str]:
    assert finding is not None
    return [evidence["what"] for evidence in finding["evidence"]]


def test_two_renamed_prefixes_are_named_in_all_four_combinations(tmp_path: Path) -> None:
    suspect = folder(tmp_path, "suspect", "disguised", truth("disguised"), 1)
    source = folder(tmp_path, "source", "multimodal", truth("multimodal"), 1)
    report = compare(suspect, source)
    headline, *reasons = said(fit(report))
    assert headline == "The suspect's own code loads the suspect's weights; the source's can after 2 renames."
    assert len(reasons) == 4
    assert "llm -> language_model" in reasons[1]
    assert report["components"]["code"]["relation"] != "identical"


def test_published_code_that_cannot_load_the_published_weights(tmp_path: Path) -> None:
    suspect = folder(tmp_path, "suspect", "llama_like", truth("disguised"), 1)
    source = folder(tmp_path, "source", "multimodal", truth("multimodal"), 2)
    headline = said(fit(compare(suspect, source)))[0]
    assert (
        headline
        == "The suspect's own code cannot load the suspect's own weights; the source's can after 2 renames."
    )


def test_fitting_code_alone_moves_no_verdict(tmp_path: Path) -> None:
    suspect = folder(tmp_path, "suspect", "multimodal", truth("multimodal"), 3)
    source = folder(tmp_path, "source", "multimodal", truth("multimodal"), 4)
    report = compare(suspect, source)
    assert fit(report)["statistic"] == 4  # type: ignore[index]
    assert report["verdict"]["label"] not in ("copy", "derivative")


def test_code_of_one_side_only(tmp_path: Path) -> None:
    suspect = folder(tmp_path, "suspect", None, truth("disguised"), 1)
    source = folder(tmp_path, "source", "multimodal", truth("multimodal"), 1)
    first, second = said(fit(compare(suspect, source)))
    assert first.startswith("the source's code can load the suspect's weights after 2 renames")
    assert second.startswith("the source's code can load the source's weights as they are")


def test_no_code_no_finding_and_fingerprints_keep_none(tmp_path: Path) -> None:
    bare = folder(tmp_path, "bare", None, truth("multimodal"), 1)
    assert fit(compare(bare, bare)) is None
    source = folder(tmp_path, "source", "multimodal", truth("multimodal"), 1)
    sketch([source], tmp_path / "source.drupe")
    assert fit(compare(bare, str(tmp_path / "source.drupe"))) is None


@pytest.mark.parametrize("text", ["def broken(:\n", "class A(" * 200, "x = 1\n" * 3])
def test_code_that_is_none_is_said_to_be_unknown(text: str, tmp_path: Path) -> None:
    suspect = folder(tmp_path, "suspect", None, truth("disguised"), 1)
    (Path(suspect) / "modeling.py").write_text(text)
    source = folder(tmp_path, "source", "multimodal", truth("multimodal"), 1)
    finding = fit(compare(suspect, source))
    assert finding is not None
    assert finding["status"] == "measured"
    assert "could not be worked out" in said(finding)[0]
    assert not Path("/tmp/ran").exists()
