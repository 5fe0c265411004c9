"""No file can hurt: whatever a model folder holds, ``drupe`` ends with a typed error or with an honest result.

Every case runs through the command line in this process; what is built to explode runs again in a process of
its own, whose memory and processor time are measured against those of a trivial run.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe import cli, document
from drupe import fingerprint as fingerprints
from drupe.comparison import compare
from drupe.diagnose import diagnose
from drupe.errors import DrupeError
from drupe.opening import open_subject
from drupe.report import interface
from drupe.subject import Subject
from drupe.verdict import judge
from hostile_files import HOSTILE, save_small, small
from zoo_files import Checkpoint, save

GIVEN_UP = ("Traceback", "internal error", "Warning")
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What steers a terminal: controls, escapes, bidi overrides; a line end is none."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("sound") / "model")


Ends = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ends(capfd: pytest.CaptureFixture[str]) -> Ends:
    """Runs a command line; exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


def listing(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("name", HOSTILE)
def test_bad_input_is_refused_by_name_with_exit_code_2(
    name: str, tmp_path: Path, sound: Path, ends: Ends
) -> None:
    case = HOSTILE[name]
    case.make(tmp_path)
    before = listing(tmp_path)
    locator = os.path.join(tmp_path, case.locator) if case.locator else tmp_path
    commands: list[tuple[object, ...]] = [
        ("inspect", locator),
        ("compare", locator, sound),
        ("compare", sound, locator),
    ]
    for command in commands[:1] if case.costly else commands:
        code, out, err = ends(*command, "--offline")
        assert (code, out) == (2, ""), err
        assert case.file in err
        assert re.search(case.says, err), err
        assert not any(word in err for word in GIVEN_UP), err
        assert not STEERING.search(err), err
        assert err.startswith("drupe: ")
        assert err.count("\n") == 1
    assert listing(tmp_path) == before


CHILD = """
import sys, time
from drupe.cli import main
code = main(sys.argv[2:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
open(sys.argv[1], "w").write(f"{int(peak.split()[1]) * 1024} {time.process_time()} {code}")
"""


def measured(tmp_path: Path, *arguments: object) -> tuple[int, float, int]:
    """Peak memory in bytes, processor seconds and exit code of a process of its own, under limits."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    note = tmp_path / "cost"
    command = [sys.executable, "-c", CHILD, str(note), *map(str, arguments)]
    subprocess.run(command, check=True, preexec_fn=limit, capture_output=True)
    peak, seconds, code = note.read_text().split()
    return int(peak), float(seconds), int(code)


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, float]:
    """Peak memory and processor time of a run that finds nothing to do."""
    peak, seconds, code = measured(tmp_path_factory.mktemp("idle"), "inspect", "/nowhere")
    assert code == 2
    return peak, seconds


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("name", [name for name, case in HOSTILE.items() if case.costly])
def test_refusing_costs_4_times_the_file_and_100_mb_at_most(
    name: str, tmp_path: Path, idle: tuple[int, float]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    HOSTILE[name].make(model)
    size = sum(path.stat().st_size for path in model.rglob("*"))
    peak, seconds, code = measured(tmp_path, "inspect", model, "--offline")
    assert code == 2
    assert peak - idle[0] <= 4 * size + (100 << 20)
    # Two seconds where a trivial run takes a quarter of one: the machine's own speed is the unit.
    assert seconds - idle[1] <= max(2.0, 8 * idle[1])


# Damage that leaves something to analyse
def edited(change: Callable[[np.ndarray], Any], only: str = "") -> Checkpoint:
    model = small()
    tensors = {n: np.float32(change(v.copy())) if re.search(only, n) else v for n, v in model.tensors.items()}
    return model.with_tensors(tensors)


def poisoned(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values.flat[:: max(1, values.size // 3)] = value
        return values

    return change


WORTHLESS: dict[str, Callable[[np.ndarray], Any]] = {
    "NaN": lambda v: np.full_like(v, np.nan),
    "Inf": lambda v: np.full_like(v, np.inf),
    "zero": np.zeros_like,
    "constant": lambda v: np.full_like(v, 0.5),
    "largest float": lambda v: np.full_like(v, 3.3e38),
    "three values": lambda v: np.arange(v.size).reshape(v.shape) % 3,
    "empty": lambda v: v[:0],
    "one column": lambda v: v[..., :1],
}


@pytest.mark.parametrize("kind", WORTHLESS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_weights_without_information_prove_nothing(kind: str, dtype: str, tmp_path: Path, ends: Ends) -> None:
    """Even against themselves: values that anybody can have are no kernel."""
    model = edited(WORTHLESS[kind])
    for name in ("a", "b"):
        save(Checkpoint(model.tensors, model.config, model.tokenizer, dtype=dtype), tmp_path / name)
    assert ends("inspect", tmp_path / "a")[0] == 0
    code, out, err = ends("compare", tmp_path / "a", tmp_path / "b", "--format", "json")
    report = json.loads(out)
    assert report["verdict"]["label"] in ("inconclusive", "same_design")
    assert code in (0, 3)
    assert report["components"]["weights"]["relation"] not in (
        "identical",
        "equivalent",
        "derived",
        "partial",
    )
    assert not err


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.3e38, 0.0])
def test_poison_in_some_tensors_leaves_what_the_others_prove(
    value: float, tmp_path: Path, sound: Path, ends: Ends
) -> None:
    save(edited(poisoned(value), "q_proj|down_proj"), tmp_path / "model")
    code, out, err = ends("compare", tmp_path / "model", sound, "--format", "json")
    report = json.loads(out)
    assert report["verdict"]["label"] in ("copy", "derivative")
    assert not any(
        change["kind"] == "rescaled" for change in report["components"]["weights"]["transformations"]
    )
    assert (code, err) == (1, "")


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.3e38])
def test_poison_everywhere_accuses_nobody(value: float, tmp_path: Path, sound: Path, ends: Ends) -> None:
    other = small(1)
    change = poisoned(value)
    save(other.with_tensors({n: change(v) for n, v in other.tensors.items()}), tmp_path / "model")
    code, out, _ = ends("compare", tmp_path / "model", sound, "--format", "json")
    assert code in (0, 3)
    assert json.loads(out)["verdict"]["label"] not in ("copy", "derivative")


@pytest.mark.parametrize("kept", ["embed_tokens", "mlp.up_proj", "model.norm", "nothing"])
def test_a_model_of_hardly_any_tensor_is_analysed(kept: str, tmp_path: Path, sound: Path, ends: Ends) -> None:
    model = small()
    tensors = {name: values for name, values in model.tensors.items() if kept in name}
    save(Checkpoint(tensors, model.config), tmp_path / "model")
    other = save(Checkpoint(tensors and small(1).tensors, model.config), tmp_path / "other")
    assert ends("inspect", tmp_path / "model")[0] == 0
    for source, allowed in ((sound, (0, 1, 3)), (other, (0, 3))):
        code, out, err = ends("compare", tmp_path / "model", source, "--format", "json")
        assert (code in allowed, err) == (True, "")
        assert code != 1 or "proj" in kept or "embed" in kept  # a vector of ones proves nothing
        document.loads(out.encode(), "own output")


# Parts that are missing
PARTS = {
    "weights": r"\.safetensors",
    "config": r"^config\.json",
    "tokenizer": r"^tokenizer",
    "code": r"\.py",
    "documents": r"README|LICENSE",
}


@pytest.mark.parametrize("missing", PARTS)
def test_a_missing_part_is_absent_with_its_reason_and_the_rest_is_compared(
    missing: str, tmp_path: Path, sound: Path, ends: Ends
) -> None:
    folder = save_small(tmp_path / "model")
    for path in folder.iterdir():
        if re.search(PARTS[missing], path.name):
            path.unlink()
    for command in (("compare", folder, sound), ("compare", sound, folder)):
        code, out, err = ends(*command, "--format", "json")
        report = json.loads(out)
        parts = report["suspect" if command[1] == folder else "source"]["parts"]
        assert re.match("absent: .+", parts.pop(missing))
        assert set(parts.values()) == {"present"}
        label = report["verdict"]["label"]
        assert (label, code) == (("same_design", 0) if missing == "weights" else ("copy", 1))
        assert not err


@pytest.mark.parametrize(
    ("kept", "labels"),
    [
        (["config.json", "tokenizer.json"], {"same_design"}),
        (["modeling_x.py"], {"same_design", "inconclusive"}),
        (["config.json"], {"same_design", "inconclusive"}),
        (["tokenizer.json", "tokenizer_config.json"], {"same_design", "inconclusive"}),
    ],
    ids=str,
)
def test_without_weights_nothing_is_called_a_copy(
    kept: list[str], labels: set[str], tmp_path: Path, sound: Path, ends: Ends
) -> None:
    save_small(tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        if path.name not in kept:
            path.unlink()
    code, out, _ = ends("compare", tmp_path / "model", sound, "--format", "json")
    label = json.loads(out)["verdict"]["label"]
    assert label in labels
    assert code == {"same_design": 0, "inconclusive": 3}[label]


# Words of strangers
EVIL = "\x1b[31mred\x1b]0;title\x07 \u202egnp.exe\u2066 \x9b2J \x00 \x08 核"


def test_no_text_of_a_stranger_steers_the_terminal(tmp_path: Path, sound: Path, ends: Ends) -> None:
    model = small()
    tensors = {f"{name}{EVIL}": values for name, values in model.tensors.items()}
    config = {**model.config, "model_type": EVIL, "architectures": [EVIL], "_name_or_path": f"a/{EVIL}"}
    tokenizer = {
        "model": {"type": "BPE", "vocab": {EVIL: 0, "b": 1}},
        "added_tokens": [{"id": 2, "content": EVIL}],
    }
    extras = {
        "README.md": f"---\nlicense: {EVIL}\nbase_model: '{EVIL}'\n---\n# {EVIL}\n{EVIL}",
        "modeling.py": f"# Copyright 2024 {EVIL}\n",
    }
    save(Checkpoint(tensors, config, tokenizer, extras=extras), tmp_path / "m\x1b[31m\u202e")
    folder = tmp_path / "m\x1b[31m\u202e"
    for arguments in (("inspect", folder), ("compare", folder, sound), ("compare", sound, folder)):
        for language in ("en", "zh"):
            code, out, err = ends(*arguments, "--lang", language)
            assert code in (0, 1, 3), err
            assert not STEERING.search(out + err)
            _, out, _ = ends(*arguments, "--lang", language, "--format", "json")
            assert not re.search(r"[\x00-\x08\x0b-\x1f]", out)
            if arguments[0] == "compare":
                document.loads(out.encode(), "own output")


# Byte flips
BYTES = (0, 1, 0x7F, 0x80, 0xFF, *b'"9-[{,')


def flipped(original: bytes, dice: random.Random, reach: int) -> bytes:
    data = bytearray(original)
    for _ in range(dice.choice((1, 1, 2, 8))):
        data[dice.randrange(min(len(data), reach))] = dice.choice((*BYTES, dice.randrange(256)))
    return bytes(data) if dice.random() < 0.9 else bytes(data[: dice.randrange(len(data))])


def analysed(left: Subject, right: Subject) -> str:
    """All stages, the written document and its pages; the label."""
    return judge(diagnose(compare(left, right))).label.value


def test_2000_byte_flips_in_a_model_folder_raise_typed_errors_only(tmp_path: Path, sound: Path) -> None:
    folder, dice, outcomes = save_small(tmp_path / "model"), random.Random(20260101), Counter[str]()
    source = open_subject(str(sound), offline=True)
    whole = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    for _ in range(2000):
        path = dice.choice(list(whole))
        path.write_bytes(flipped(whole[path], dice, dice.choice((200, 6000, 1 << 20))))
        try:
            outcomes[analysed(open_subject(str(folder), offline=True), source)] += 1
        except DrupeError:
            outcomes["refused"] += 1
        path.write_bytes(whole[path])
    assert outcomes["refused"] > 400
    assert outcomes["copy"] + outcomes["derivative"] > 400  # a flipped value does not hide the rest
    assert not outcomes["unrelated"]


def test_byte_flips_in_a_fingerprint(sound: Path) -> None:
    subject, dice, outcomes = open_subject(str(sound), offline=True), random.Random(7), Counter[str]()
    data = fingerprints.to_bytes(subject.fingerprint)
    for _ in range(1500):
        try:
            found = fingerprints.from_bytes(flipped(data, dice, len(data)), "x.drupe")
            fingerprints.to_bytes(found)
            outcomes[analysed(Subject(found), subject)] += 1
        except DrupeError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 300
    assert sum(outcomes.values()) - outcomes["refused"] > 100


def test_byte_flips_in_a_report(sound: Path, ends: Ends) -> None:
    _, text, _ = ends("compare", sound, sound, "--format", "json")
    dice, shown, refused = random.Random(3), 0, 0
    for _ in range(600):
        try:
            report = document.loads(flipped(text.encode(), dice, len(text)), "report.json")
            for language in ("en", "zh"):
                assert not STEERING.search(
                    interface.render(report, "terminal", language=language, to_file=True)
                )
            shown += 1
        except DrupeError:
            refused += 1
    assert min(shown, refused) > 50
