"""The command line as a contract: verbs, options, exit codes, where output goes, and what a shell may do to it."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drupe import cli, workflows
from drupe.cli import exit_code, parse_budget, parse_fail_on
from drupe.comparison import AUTO, FULL, SAMPLE
from drupe.document import Report
from drupe.errors import UsageError
from drupe.fingerprint import MAGIC
from hostile_files import save_small, small
from zoo_files import MODELS, Checkpoint, save

Ends = Callable[..., tuple[int, str, str]]
LABELS = ("copy", "derivative", "wrapper", "same_design", "unrelated", "inconclusive")
DEFAULT = {"copy": 1, "derivative": 1, "wrapper": 1, "same_design": 0, "unrelated": 0, "inconclusive": 3}


@pytest.fixture
def ends(capsys: pytest.CaptureFixture[str]) -> Ends:
    """Runs a command line; exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``a``; ``b`` the same values without documents; ``c`` other values; ``code`` nothing but code."""
    folder = tmp_path_factory.mktemp("models")
    save_small(folder / "a")
    model = small()
    save(Checkpoint(model.tensors, model.config, model.tokenizer), folder / "b")
    save(small(1), folder / "c")
    (folder / "code").mkdir()
    (folder / "code" / "m.py").write_text("class Z:\n    pass\n")
    return folder


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    program = f"{shlex.quote(sys.executable)} -m drupe"
    script = f"set -o pipefail; {command.replace('drupe ', program + ' ', 1)}"
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, env={**os.environ, **environment}, check=False
    )


# Exit codes
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("disclosure", ["disclosed", "undisclosed", "unknown"])
@pytest.mark.parametrize(
    "option",
    [None, "undisclosed", "copy", "copy:undisclosed", "copy,derivative", "same_design", "inconclusive"],
)
def test_exit_codes_follow_the_contract(label: str, disclosure: str, option: str | None) -> None:
    """--fail-on narrows what gives 1 to what is listed; unknown never fires; 3 stays 3."""
    report: Report = {"verdict": {"label": label, "disclosure": disclosure}}
    found = exit_code(report, parse_fail_on(option))
    if label == "inconclusive":
        assert found == 3
    elif option is None:
        assert found == DEFAULT[label]
    elif option == "undisclosed":
        assert found == int(disclosure == "undisclosed" and DEFAULT[label] == 1)
    else:
        listed = dict(item.partition(":")[::2] for item in option.split(","))
        assert found == int(label in listed and listed[label] in ("", disclosure))


@pytest.mark.parametrize(
    "text", ["", "copy,", "stolen", "copy:disclosed", "undisclosed,copy", "copy:", "COPY"]
)
def test_fail_on_refuses_what_it_does_not_know(text: str) -> None:
    if text == "copy:":
        assert parse_fail_on(text) == {("copy", False)}
        return
    with pytest.raises(UsageError, match="--fail-on"):
        parse_fail_on(text)


@pytest.mark.parametrize(
    ("text", "limit"),
    [("0", 0), ("500M", 500 << 20), ("1G", 1 << 30), ("2GiB", 2 << 30), ("3kb", 3072), ("7", 7)],
)
def test_budgets(text: str, limit: int) -> None:
    assert parse_budget(text).full_below == limit


def test_named_budgets() -> None:
    assert (parse_budget("auto"), parse_budget("sample"), parse_budget("full")) == (AUTO, SAMPLE, FULL)


@pytest.mark.parametrize("text", ["", "-1", "1.5G", "much", "1P", "G", "9" * 5000, "0x10", "1 000"])
def test_a_budget_that_is_no_amount(text: str) -> None:
    with pytest.raises(UsageError, match="--budget"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("pair", "options", "code"),
    [
        (("a", "a"), [], 1),
        (("a", "b"), [], 1),
        (("b", "a"), [], 1),
        (("c", "a"), [], 3),
        (("code", "a"), [], 3),
        (("a", "b"), ["--fail-on", "derivative"], 0),
        (("a", "b"), ["--fail-on", "copy"], 1),
        (("a", "b"), ["--fail-on", "undisclosed"], 0),
        (("b", "a"), ["--fail-on", "undisclosed"], 0),
        (("code", "a"), ["--fail-on", "copy"], 3),
        (("a", "nowhere"), [], 2),
        (("nowhere", "a"), [], 2),
    ],
    ids=str,
)
def test_compare_ends_with_the_code_of_its_verdict(
    pair: tuple[str, str], options: list[str], code: int, models: Path, ends: Ends
) -> None:
    found, out, err = ends("compare", *(models / name for name in pair), *options)
    assert found == code, (out, err)
    assert bool(out) == (code != 2)
    assert bool(err) == (code == 2)


def test_a_document_may_name_the_source(models: Path, tmp_path: Path, ends: Ends) -> None:
    note = tmp_path / "note.txt"
    note.write_text("These weights are those of Kernel-7B.\n")
    source = tmp_path / "Kernel-7B"
    save_small(source)
    command = ("compare", models / "b", source, "--format", "json", "--fail-on", "undisclosed")
    code, out, _ = ends(*command)
    assert (code, json.loads(out)["verdict"]["disclosure"]) == (0, "unknown")
    code, out, _ = ends(*command, "--document", note)
    assert (code, json.loads(out)["verdict"]["disclosure"]) == (0, "disclosed")
    note.write_text("We trained it all by ourselves.\n")
    code, out, _ = ends(*command, "--document", note)
    assert (code, json.loads(out)["verdict"]["disclosure"]) == (1, "undisclosed")


@pytest.mark.parametrize(
    ("content", "says"), [(None, "no such file"), (b"x" * ((1 << 20) + 1), "exceeds"), (b"\x89PNG\0", "")]
)
def test_a_document_that_cannot_be_one(
    content: bytes | None, says: str, models: Path, tmp_path: Path, ends: Ends
) -> None:
    path = tmp_path / "note.txt"
    if content is not None:
        path.write_bytes(content)
    code, out, err = ends("compare", models / "a", models / "b", "--document", path)
    assert (code, out) == (2, "")
    assert "note.txt" in err
    assert says in err


# Where the output goes
def test_json_is_the_same_in_a_file_on_stdout_and_with_quiet(
    models: Path, tmp_path: Path, ends: Ends
) -> None:
    command = ("compare", models / "a", models / "b", "--format", "json")
    code, out, err = ends(*command)
    assert (code, err) == (1, "")
    assert json.loads(out)["verdict"]["label"] == "copy"
    assert ends(*command, "--quiet") == (1, out, "")
    assert ends(*command, "-o", tmp_path / "r.json") == (1, "", "")
    assert (tmp_path / "r.json").read_text("utf-8") == out


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_saved_report_is_rendered_again_without_the_models(
    language: str, models: Path, tmp_path: Path, ends: Ends
) -> None:
    pair = (models / "a", models / "b")
    _, page, _ = ends("compare", *pair, "--lang", language)
    ends("compare", *pair, "--format", "json", "--output", tmp_path / "r.json")
    assert ends("report", tmp_path / "r.json", "--lang", language) == (0, page, "")
    assert bool(re.search("[\u4e00-\u9fff]{4}", page)) == (language == "zh")


def test_quiet_says_nothing_and_verbose_says_more(models: Path, ends: Ends) -> None:
    pair = ("compare", models / "a", models / "b")
    assert ends(*pair, "-q") == (1, "", "")
    assert len(ends(*pair, "-v")[1]) >= len(ends(*pair)[1])
    code, out, err = ends(*pair, "-q", "-v")
    assert (code, out) == (2, "")
    assert "not allowed with" in err


def test_sketch_writes_and_names_its_files(models: Path, tmp_path: Path, ends: Ends) -> None:
    code, out, err = ends("sketch", models / "a", "-o", tmp_path / "a.drupe")
    assert (code, out, err) == (0, f"{tmp_path}/a.drupe\n", "")
    assert (tmp_path / "a.drupe").read_bytes().startswith(MAGIC)
    code, out, _ = ends("sketch", models / "a", models / "c", "-o", tmp_path / "many", "-q")
    assert (code, out) == (0, "")
    assert sorted(os.listdir(tmp_path / "many")) == ["a.drupe", "c.drupe"]
    assert (tmp_path / "many" / "a.drupe").read_bytes() == (tmp_path / "a.drupe").read_bytes()
    code, out, _ = ends("sketch", models / "a", "-o", tmp_path / "b.drupe", "--evidence", tmp_path / "kept")
    assert (code, out.split()) == (0, [f"{tmp_path}/b.drupe", f"{tmp_path}/kept"])
    assert ends("compare", tmp_path / "kept", tmp_path / "a.drupe", "-q")[0] == 1
    assert (
        ends("sketch", models / "a", models / "c", "-o", tmp_path / "x", "--evidence", tmp_path / "y")[0] == 2
    )


def test_inspect_shows_facts_and_ends_with_0(models: Path, ends: Ends) -> None:
    for name in ("a", "b", "c", "code"):
        code, out, err = ends("inspect", models / name)
        assert (code, err) == (0, "")
        code, out, _ = ends("inspect", models / name, "--format", "json")
        assert json.loads(out)["kind"] == "inspection"


@pytest.mark.parametrize("verb", ["inspect", "compare", "report", "sketch"])
@pytest.mark.parametrize("target", ["file/inner.json", "folder", "n" * 300])
def test_what_cannot_be_written_is_exit_code_2(
    verb: str, target: str, models: Path, tmp_path: Path, ends: Ends
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    saved = tmp_path / "saved.json"
    ends("compare", models / "a", models / "b", "--format", "json", "-o", saved)
    inputs = {"compare": (models / "a", models / "b"), "report": (saved,)}.get(verb, (models / "a",))
    code, out, err = ends(verb, *inputs, "-o", tmp_path / target)
    assert (code, out) == (2, "")
    assert err.startswith(f"drupe: {tmp_path / target}: ")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "saved.json"]


def test_a_device_as_output_stays_a_device(models: Path, ends: Ends) -> None:
    assert ends("compare", models / "a", models / "b", "-o", "/dev/null") == (1, "", "")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


# Usage
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["accuse", "x"],
        ["compare", "x"],
        ["compare", "x", "y", "--format", "html"],
        ["compare", "x", "y", "--lang", "fr"],
        ["sketch", "x"],
        ["inspect"],
        ["inspect", "x", "--budget", "full"],
        ["report"],
    ],
    ids=str,
)
def test_a_command_that_makes_no_sense(arguments: list[str], ends: Ends) -> None:
    code, out, err = ends(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: drupe")


@pytest.mark.parametrize("verb", ["", "inspect", "compare", "sketch", "report", "demo"])
def test_help_shows_examples_and_nothing_that_is_not_there(verb: str, ends: Ends) -> None:
    code, out, _ = ends(*[verb] * bool(verb), "--help")
    assert code == 0
    assert "example" in out
    for absent in ("html", "sarif", "probe", "serve", "canary", "comply", "--behaviour", "index"):
        assert not re.search(rf"(?<!\w){absent}(?!\w)", out)


def test_a_defect_of_drupe_is_never_taken_for_a_copy(
    models: Path, monkeypatch: pytest.MonkeyPatch, ends: Ends
) -> None:
    """Python ends with 1 after a crash, and 1 is a verdict here."""

    def broken(*arguments: Any, **named: Any) -> Report:
        raise ZeroDivisionError("\x1b[31mdefect")

    monkeypatch.setattr(workflows, "compare", broken)
    code, out, err = ends("compare", models / "a", models / "b")
    assert (code, out) == (2, "")
    assert "internal error" in err
    assert "Traceback" not in err + out
    assert "\x1b" not in err
    assert "Traceback" in ends("compare", models / "a", models / "b", "--verbose")[2]


def test_an_interrupt_is_not_a_verdict(monkeypatch: pytest.MonkeyPatch, ends: Ends) -> None:
    def interrupted(*arguments: Any, **named: Any) -> Report:
        raise KeyboardInterrupt

    monkeypatch.setattr(workflows, "inspect", interrupted)
    assert ends("inspect", "x")[0] == 130


# A shell around it
def test_a_reader_that_leaves_early_changes_nothing(models: Path) -> None:
    done = shell(f"drupe compare {models}/a {models}/b -v | head -c 1")
    assert (done.returncode, len(done.stdout), done.stderr) == (1, 1, b"")
    done = shell(f"drupe compare {models}/a {models}/b --format json | true")
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_behind_stdout_is_exit_code_2(models: Path) -> None:
    done = shell(f"drupe compare {models}/a {models}/b > /dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith(b"drupe: standard output: No space left")
    assert done.stderr.count(b"\n") == 1


def test_a_terminal_without_chinese_is_no_crash(models: Path) -> None:
    done = shell(f"drupe compare {models}/a {models}/b --lang zh", PYTHONIOENCODING="ascii", NO_COLOR="1")
    assert (done.returncode, done.stderr) == (1, b"")
    assert b"\\u" in done.stdout


def test_the_language_of_the_environment_is_the_default(models: Path) -> None:
    for language, name in (("zh_CN.UTF-8", "zh"), ("en_US.UTF-8", "en"), ("", "en"), ("C", "en")):
        done = shell(f"drupe compare {models}/a {models}/b", LANG=language, PYTHONUTF8="1")
        same = shell(f"drupe compare {models}/a {models}/b --lang {name}", LANG="C", PYTHONUTF8="1")
        assert done.stdout == same.stdout


def terminal_bytes(command: list[str], **environment: str) -> bytes:
    """What a program writes when stdout and stderr are a terminal."""
    import pty

    leader, follower = pty.openpty()
    with subprocess.Popen(
        command, stdout=follower, stderr=follower, env={**os.environ, "TERM": "xterm-256color", **environment}
    ) as process:
        os.close(follower)
        written = b""
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            written += piece
        process.wait()
    os.close(leader)
    return written


def test_no_color_is_respected_and_colour_is_for_terminals(models: Path) -> None:
    command = [sys.executable, "-m", "drupe", "compare", str(models / "a"), str(models / "b"), "-v"]
    colour = re.compile(rb"\x1b\[[0-9;]*(3[0-7]|9[0-7])(;[0-9]+)*m")
    assert b"[copy]" in terminal_bytes(command)
    assert not colour.search(terminal_bytes(command, NO_COLOR="1"))
    assert b"\x1b" not in shell(f"drupe compare {models}/a {models}/b").stdout


def test_the_published_models_of_the_tests_end_as_documented(ends: Ends) -> None:
    assert ends("compare", MODELS / "r0_ft", MODELS / "r0", "-q")[0] == 1
    assert ends("compare", MODELS / "r1", MODELS / "r0", "-q")[0] == 0
