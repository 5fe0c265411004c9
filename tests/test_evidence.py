"""Evidence folder: all of it or nothing, no weights inside, read back like a model, and nothing of it trusted."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from drupe import evidence, workflows
from drupe.errors import DrupeError, UnsafePathError, UsageError
from drupe.fingerprint import to_bytes
from drupe.opening import open_subject
from hostile_files import save_small


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = save_small(tmp_path / "model")
    (folder / "sub").mkdir()
    (folder / "sub" / "NOTICE").write_text("Portions from org/other")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "big.txt").write_bytes(b"x" * (evidence.MAX_FILE + 1))
    return folder


@pytest.fixture
def kept(model: Path, tmp_path: Path) -> Path:
    return evidence.preserve(open_subject(str(model), offline=True), tmp_path / "out" / "evidence")


def test_what_is_kept(kept: Path, model: Path) -> None:
    files = {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()}
    texts = {p.name for p in model.iterdir() if p.is_file()} - {"big.txt", "picture.png"}
    texts = {name for name in texts if not name.endswith(".safetensors")} | {"sub/NOTICE"}
    headers = {f"headers/model-0000{n}-of-00002.safetensors.header" for n in (1, 2)}
    assert files == {"fingerprint.drupe", "manifest.json", *(f"files/{name}" for name in texts), *headers}
    assert (kept / "files" / "sub" / "NOTICE").read_text() == "Portions from org/other"
    size = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
    assert size < sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert os.listdir(kept.parent) == ["evidence"]


def test_the_manifest_lists_every_file_with_its_digest(kept: Path, model: Path) -> None:
    manifest = json.loads((kept / "manifest.json").read_text("utf-8"))
    assert manifest["schema"] == "drupe/evidence/1.0"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest["time"])
    assert manifest["model"]["locator"] == str(model)
    for name, facts in manifest["files"].items():
        data = (model / name).read_bytes()
        assert facts["size"] == len(data)
        if facts["kept"]:
            assert facts["sha256"] == hashlib.sha256(data).hexdigest()
            assert (kept / "files" / name).read_bytes() == data
    for name, digest in manifest["headers"].items():
        header = (kept / "headers" / f"{name}.header").read_bytes()
        assert hashlib.sha256(header).hexdigest() == digest
        assert header in (model / name).read_bytes()


def test_it_opens_as_the_model_it_was_made_of(kept: Path, model: Path) -> None:
    first, again = open_subject(str(model), offline=True), open_subject(str(kept), offline=True)
    assert to_bytes(again.fingerprint) == to_bytes(first.fingerprint)
    assert again.model is None
    assert again.texts is not None
    assert "sub/NOTICE" in {text.file for text in again.texts}
    report = workflows.compare(str(kept), str(model))
    assert report["verdict"]["label"] == "copy"  # type: ignore[index,call-overload]


def test_documents_of_the_kept_files_still_disclose(tmp_path: Path) -> None:
    folder = save_small(tmp_path / "mine")
    other = save_small(tmp_path / "other")
    kept = evidence.preserve(open_subject(str(folder), offline=True), tmp_path / "evidence")
    for suspect in (folder, kept):
        report = workflows.compare(str(suspect), str(other))
        assert report["verdict"]["disclosure"] == "disclosed"  # type: ignore[index,call-overload]


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = open_subject(str(model), offline=True)
    (tmp_path / "there").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("there", "dangling", "model"):
        with pytest.raises(UsageError, match="exists"):
            evidence.preserve(subject, tmp_path / name)
    (model / "config.json").write_text("{}   ")  # the file changed after it was opened
    (model / "README.md").unlink()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(DrupeError):
        evidence.preserve(subject, tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == before


def test_of_a_fingerprint_no_evidence_can_be_kept(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not of a fingerprint"):
        evidence.preserve(open_subject(str(kept), offline=True), tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("part", ["files", "fingerprint.drupe"])
def test_links_in_a_strangers_evidence_are_refused(part: str, kept: Path, tmp_path: Path) -> None:
    (kept / part).rename(tmp_path / "elsewhere")
    (kept / part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePathError, match="a link in an evidence folder"):
        open_subject(str(kept), offline=True)


def test_a_folder_name_that_is_no_utf8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff\xfe"))
    save_small(folder)
    kept = evidence.preserve(open_subject(str(folder), offline=True), tmp_path / "evidence")
    assert json.loads((kept / "manifest.json").read_bytes())["model"]["locator"] == str(folder)
