"""``drupe demo`` without a network, on trained pico models in wheels made here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from drupe import cli, demo
from drupe.messages import LANGUAGES, catalogue
from package_index import Index, local_index

MODELS = Path(__file__).parent / "models"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    return local_index(tmp_path, monkeypatch)


def model_files(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (MODELS / name).iterdir()}


def plan_text(index: Index, label: str = "derivative") -> str:
    """A demo of two suspects (fine-tuned, of another seed) and one source."""
    tables = []
    for name in ("r0", "r0_ft", "r1"):
        package = index.add(f"pico-{name.replace('_', '-')}", model_files(name))
        files = ", ".join(
            f'{{ path = "{m.path}", name = "{m.name}", size = {m.size}, sha256 = "{m.sha256}" }}'
            for m in package.members
        )
        tables.append(
            f'[[model]]\nname = "{name}"\nwhat = "minilm"\npackage = "{package.name}"\n'
            f'version = "1.0"\nsize = {package.size}\nsha256 = "{package.sha256}"\n'
            f'licence = "Apache-2.0"\norigin = "tests"\nfiles = [{files}]\n'
        )
    for suspect, expected in (("r0_ft", label), ("r1", "same_design")):
        tables.append(
            f'[[comparison]]\nsuspect = "{suspect}"\nsource = "r0"\nlabel = "{expected}"\n'
            'disclosure = "unknown"\ntransformations = []\n'
        )
    return "\n".join(tables)


@pytest.fixture
def pico(index: Index, monkeypatch: pytest.MonkeyPatch) -> demo.Plan:
    plan = demo.read_plan(plan_text(index))
    monkeypatch.setattr(demo, "published", lambda: plan)
    return plan


def test_the_demo_names_every_origin_and_what_was_expected(
    pico: demo.Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--lang", "en"]) == cli.OK
    out, err = capsys.readouterr()
    for exhibit in pico.exhibits:
        assert f"package  {exhibit.package.name} 1.0" in out
        assert f"{exhibit.package.requirement}: downloading" in err
        assert all(member.sha256[:16] in out for member in exhibit.package.members)
    assert out.index("sha256:") < out.index("[derivative]") < out.index("[same_design]")
    assert out.rindex("As expected: r0_ft against r0") < out.rindex("As expected: r1 against r0")
    assert "100 %" in err
    assert cli.main(["demo", "--offline", "-q"]) == cli.OK
    assert capsys.readouterr() == ("", "")


def test_verbose_shows_whole_digests_and_paths_in_the_wheel(pico: demo.Plan) -> None:
    text = demo.provenance(pico, "zh", verbose=True)
    for exhibit in pico.exhibits:
        assert exhibit.package.sha256 in text
        assert all(member.sha256 in text and member.path in text for member in exhibit.package.members)


def test_json_on_stdout_is_one_array_and_nothing_else(
    pico: demo.Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--format", "json", "--lang", "en"]) == cli.OK
    out, err = capsys.readouterr()
    assert [report["verdict"]["label"] for report in json.loads(out)] == ["derivative", "same_design"]
    assert "As expected" in err


def test_json_into_files_is_one_report_each(
    pico: demo.Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "both.json"
    assert cli.main(["demo", "--format", "json", "-o", str(target)]) == cli.OK
    labels = [
        json.loads((tmp_path / name).read_text())["verdict"]["label"] for name in ("both.json", "both-2.json")
    ]
    assert labels == ["derivative", "same_design"]
    assert cli.main(["report", str(tmp_path / "both-2.json")]) == cli.OK


def test_an_unexpected_verdict_is_said_and_is_exit_code_2(
    index: Index, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = demo.read_plan(plan_text(index, label="unrelated"))
    monkeypatch.setattr(demo, "published", lambda: plan)
    assert cli.main(["demo", "--lang", "en"]) == cli.FAILED
    out = capsys.readouterr().out
    assert "Not as expected: r0_ft against r0" in out
    assert re.search(r"expected  unrelated\n  found     derivative, ", out)
    assert "As expected: r1 against r0" in out


@pytest.mark.parametrize(
    ("actual", "same"),
    [
        (demo.Expected("copy", "disclosed", ("renamed", "cast")), True),
        (demo.Expected("copy", "disclosed", ("cast",)), False),
        (demo.Expected("copy", "undisclosed", ("renamed",)), False),
        (demo.Expected("derivative", "disclosed", ("renamed",)), False),
    ],
)
def test_label_disclosure_and_transformations_must_agree(actual: demo.Expected, same: bool) -> None:
    assert demo.agrees(demo.Expected("copy", "disclosed", ("renamed",)), actual) is same


def test_the_published_plan_is_whole() -> None:
    plan = demo.published()
    names = {exhibit.name for exhibit in plan.exhibits}
    assert {side for pair in plan.comparisons for side in (pair.suspect, pair.source)} == names
    assert [pair.expected.label for pair in plan.comparisons] == ["copy", "unrelated"]
    for exhibit in plan.exhibits:
        package = exhibit.package
        assert all(f"demo.what.{exhibit.what}" in catalogue(language) for language in LANGUAGES)
        pins = [(package.sha256, package.size), *((m.sha256, m.size) for m in package.members)]
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) and size > 0 for digest, size in pins)
        for member in package.members:
            assert re.fullmatch(r"[\w.-]+", member.name)  # a plain name: nothing leaves the folder
            assert not member.name.startswith(".")
        assert exhibit.licence
        assert exhibit.origin.startswith("https://")


def test_an_unknown_or_missing_key_of_a_plan_is_an_error(index: Index) -> None:
    text = plan_text(index)
    with pytest.raises(TypeError, match="license"):
        demo.read_plan(text.replace("licence", "license"))
    with pytest.raises(TypeError, match="licence"):
        demo.read_plan(text.replace('licence = "Apache-2.0"\n', ""))
