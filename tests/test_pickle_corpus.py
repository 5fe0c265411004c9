"""Malicious checkpoints: none is executed, none hangs, each is flagged or refused; good tensors stay readable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pickle_corpus
from pickle_corpus import CANARY, GADGETS, LIVE_GADGETS, Attack, corpus, plain

ATTACKS = corpus()
TIME_LIMIT = 300
"""Seconds for all files together; a hang of one shows as this."""
Outcome = dict[str, object]
RUNS_IT = """
import os, pickle, sys
for home in sys.argv[1:]:
    os.chdir(home)
    try:
        with open("evil.pt", "rb") as file:
            pickle.load(file)
    except Exception:
        pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def lines(folder: Path) -> list[object]:
    """What a process of its own printed that opened every file."""
    result = subprocess.run(
        [sys.executable, pickle_corpus.__file__, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        timeout=TIME_LIMIT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def outcomes(lines: list[object]) -> dict[str, Outcome]:
    return dict(lines[:-1])  # type: ignore[call-overload]


def test_the_corpus_is_large_and_every_file_was_opened(outcomes: dict[str, Outcome]) -> None:
    assert set(outcomes) == set(ATTACKS)
    assert len({attack.data for attack in ATTACKS.values()}) >= 400


def test_nothing_was_executed(outcomes: dict[str, Outcome], folder: Path) -> None:
    assert outcomes
    assert not list(folder.rglob(CANARY))


def test_nothing_was_imported(lines: list[object]) -> None:
    """No gadget's module is in memory that the reading itself does not need."""
    modules = lines[-1]
    assert isinstance(modules, list)
    assert "json" in modules
    foreign = {
        "antigravity",
        "timeit",
        "cProfile",
        "profile",
        "pdb",
        "bdb",
        "pty",
        "runpy",
        "doctest",
        "webbrowser",
    }
    foreign |= {
        "lib2to3",
        "idlelib",
        "imaplib",
        "smtplib",
        "ensurepip",
        "pip",
        "venv",
        "torch",
        "uuid",
    }
    found = foreign & set(modules)
    assert not found


@pytest.mark.parametrize("name", ATTACKS)
def test_each_file_is_flagged_or_refused(name: str, outcomes: dict[str, Outcome]) -> None:
    attack: Attack = ATTACKS[name]
    found = outcomes[name]
    flags, refused = found["flags"], str(found["refused"])
    assert isinstance(flags, list)
    if not attack.named:
        assert refused
        return
    assert attack.named in refused or attack.named in [what for _, what in flags]
    if attack.named != "my_package.layers.Thing" and not refused:
        assert ["dangerous_code", attack.named] in flags or attack.named == "my.Thing"


@pytest.mark.parametrize("gadget", GADGETS)
def test_the_tensors_beside_a_gadget_stay_readable(gadget: str, outcomes: dict[str, Outcome]) -> None:
    found = outcomes[f"{gadget} in a archive"]
    assert found["refused"] == ""
    assert found["values"] == [[0.0, 3.0]]


def test_the_attacks_are_real(tmp_path: Path) -> None:
    """Python's own unpickler runs them: what the other tests show is not for want of a working payload."""
    homes = []
    for number, gadget in enumerate(LIVE_GADGETS):
        home = tmp_path / str(number)
        home.mkdir()
        (home / "evil.pt").write_bytes(plain(GADGETS[gadget][1]))
        homes.append(str(home))
    subprocess.run(
        [sys.executable, "-c", RUNS_IT, *homes], capture_output=True, timeout=TIME_LIMIT, check=True
    )
    dead = [
        name for name, home in zip(LIVE_GADGETS, homes, strict=True) if not (Path(home) / CANARY).exists()
    ]
    assert not dead
