"""The package as a newcomer gets it: metadata, lock files, licence, make targets, the built wheel."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
# sha256 of the licence text as published at apache.org/licenses/LICENSE-2.0.txt
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
TEST_TOOLS = {
    *("pytest", "hypothesis", "mypy", "ruff", "jsonschema", "gguf", "onnx"),
    *("safetensors", "scipy", "sentencepiece", "tokenizers", "types-pyyaml"),
}


def project() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[<>=!~;\[ ]", line)[0]) for line in requirements}


def locked(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return {normal(package): version for package, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.M)}


def test_the_core_has_at_most_six_dependencies_and_no_framework() -> None:
    core = names(project()["dependencies"])
    assert len(core) <= 6
    assert not core & {"torch", "tensorflow", "jax", "transformers", "onnx", "onnxruntime", "gguf"}
    assert names(project()["optional-dependencies"]["dev"]) == TEST_TOOLS


def test_the_lock_files_hold_what_the_project_asks_for_and_agree() -> None:
    run, dev = locked("requirements.lock"), locked("requirements-dev.lock")
    assert names(project()["dependencies"]) <= set(run)
    assert set(dev) >= TEST_TOOLS
    assert run.items() <= dev.items()
    assert not set(dev) & {"torch", "transformers"}


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_lock_files_pin_digests_and_name_no_index(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"^\s*--(?!hash)|://", text, re.M)
    pins = re.split(r"^(?=[\w.-]+==)", text, flags=re.M)[1:]
    assert pins
    assert not [pin.split()[0] for pin in pins if "--hash=sha256:" not in pin]


def test_the_licence_is_the_unmodified_text() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2
    assert project()["license"] == "Apache-2.0"


def test_the_installed_version_is_the_declared_one() -> None:
    assert metadata.version("drupe") == project()["version"]


def test_the_command_line_runs_as_program_and_as_module() -> None:
    for command in (["-m", "drupe"], ["-c", "from drupe.cli import main; raise SystemExit(main())"]):
        result = subprocess.run(
            [sys.executable, *command, "--version"], capture_output=True, text=True, check=True
        )
        assert result.stdout.split() == ["drupe", project()["version"]]


@pytest.mark.skipif(shutil.which("make") is None, reason="GNU make is not installed")
@pytest.mark.parametrize("target", ["demo", "test", "check", "test-real", "bench", "format", "clean"])
def test_make_targets_are_well_formed(target: str) -> None:
    result = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_ci_runs_both_commands_and_stops_at_a_failure(tmp_path: Path) -> None:
    """With a make that fails in its second call, .ci/run fails too and has printed what make printed."""
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    fake = tmp_path / "make"
    fake.write_text('#!/bin/sh\necho "called $1"\n[ "$1" != test ]\n', encoding="utf-8")
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run([str(script)], env=environment, capture_output=True, text=True, check=False)
    assert result.stdout.split("\n")[:2] == ["called check", "called test"]
    assert result.returncode == 1


def test_a_built_wheel_holds_code_data_and_licence(tmp_path: Path) -> None:
    """Built from a copy by the build backend itself, as an installer would."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    shutil.copytree(
        ROOT / "src" / "drupe", copy / "src" / "drupe", ignore=shutil.ignore_patterns("__pycache__")
    )
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=copy, capture_output=True, check=True)
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    source = ROOT / "src" / "drupe"
    wanted = {f"drupe/{path.relative_to(source).as_posix()}" for path in source.rglob("*") if path.is_file()}
    wanted = {name for name in wanted if "__pycache__" not in name and ".mypy_cache" not in name}
    assert not wanted - held
    assert any(name.endswith("LICENSE") for name in held)
