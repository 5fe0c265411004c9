"""What must be said of a file's code reaches the reader: inspection and comparison, both languages, saved or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from drupe import document
from drupe.cli import main
from drupe.readers.strict_json import as_object
from pickle_corpus import GADGETS, archive, dictionary, pickled, tensor

FILES = Path(__file__).parents[1] / "readers" / "torch_files"


@pytest.fixture
def suspect(tmp_path: Path) -> Path:
    """Weights beside a call of a dangerous name, one of an unknown name, and seven more."""
    unknown = b"".join(b"cmy.package\nThing%d\n0" % k for k in range(7))
    body = GADGETS["os.system"][1] + b"0" + unknown + GADGETS["an unknown name"][1]
    folder = tmp_path / "suspect"
    folder.mkdir()
    data = archive(pickled(dictionary(**{"up.weight": tensor(), "extra": body})))
    (folder / "pytorch_model.bin").write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("language", "says"),
    [
        (
            "en",
            [
                "WARNING: pytorch_model.bin: archive/data.pkl calls for os.system",
                "my.package.Thing0",
                "and 3 more",
            ],
        ),
        ("zh", ["警告：pytorch_model.bin: archive/data.pkl", "os.system", "另有 3 项"]),
    ],
)
def test_an_inspection_warns(
    suspect: Path,
    language: str,
    says: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["inspect", str(suspect), "--lang", language]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert not [part for part in says if part not in text]


def test_a_comparison_warns_and_the_saved_report_does_so_again(
    suspect: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "report.json"
    main(["compare", str(suspect), str(FILES / "zip_state_dict.bin"), "--format", "json", "-o", str(saved)])
    report = document.loads(saved.read_bytes(), "saved")
    side = as_object(report["suspect"], "suspect")
    assert isinstance(side["flags"], list)
    first = as_object(side["flags"][0], "flag")
    assert (first["kind"], first["what"]) == ("dangerous_code", "os.system")
    assert isinstance(first["position"], int)
    assert len(side["flags"]) == 9
    assert "flags" not in as_object(report["source"], "source")
    capsys.readouterr()
    main(["report", str(saved)])
    assert "WARNING: pytorch_model.bin" in " ".join(capsys.readouterr().out.split())


def test_the_schema_knows_the_kinds_of_remarks(suspect: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", str(suspect), "--format", "json"])
    text = capsys.readouterr().out
    assert document.loads(text.encode(), "inspection")["kind"] == "inspection"
    with pytest.raises(document.FormatError):
        document.loads(text.replace('"dangerous_code"', '"harmless_code"').encode(), "inspection")
