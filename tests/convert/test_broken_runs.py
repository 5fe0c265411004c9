"""A conversion that is killed leaves no target; the next run goes on with what is finished."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from drupe.errors import LocatorError, SourceError
from drupe.workflows import convert
from zoo_files import read_safetensors, write_model

KILLS = 50
LAYERS = 24
SHARD = 4 << 20
SCRIPT = """
import sys
from pathlib import Path
from drupe.workflows import convert
convert(sys.argv[1], "llama", Path(sys.argv[2]), shard_size=int(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 40 MB under the names that Yi had, q, k and v fused, so that tensors are copied and assembled."""
    dice = np.random.default_rng(0)

    def values(*shape: int) -> np.ndarray:
        return dice.standard_normal(shape, np.float32)

    tensors = {"model.embed_tokens.weight": values(2048, 256), "model.norm.weight": values(256)}
    for k in range(LAYERS):
        base = f"model.layers.{k}."
        tensors |= {
            f"{base}self_attn.W_pack.weight": values(768, 256),
            f"{base}self_attn.o_proj.weight": values(256, 256),
            f"{base}mlp.gate_proj.weight": values(704, 256),
            f"{base}mlp.up_proj.weight": values(704, 256),
            f"{base}mlp.down_proj.weight": values(256, 704),
            f"{base}input_layernorm.weight": values(256),
            f"{base}post_attention_layernorm.weight": values(256),
        }
    config = {
        "model_type": "baichuan",
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": LAYERS,
    }
    return write_model(tmp_path_factory.mktemp("model") / "m", tensors, config)


def start(model: Path, target: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(model), str(target), str(SHARD)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def check(target: Path, model: Path) -> None:
    """Everything there, nothing else, every value the model's."""
    found = {}
    for file in sorted(target.glob("*.safetensors")):
        found.update(read_safetensors(file)[0])
    wanted, _ = read_safetensors(model / "model.safetensors")
    assert len(found) == 2 + 9 * LAYERS
    q = np.concatenate([found[f"model.layers.3.self_attn.{part}_proj.weight"] for part in "qkv"])
    assert np.array_equal(q, wanted["model.layers.3.self_attn.W_pack.weight"])
    assert np.array_equal(
        found["model.layers.7.mlp.down_proj.weight"], wanted["model.layers.7.mlp.down_proj.weight"]
    )
    assert not list(target.glob(".*"))
    assert {"rename.json", "config.json", "PULL_REQUEST.md"} <= {path.name for path in target.iterdir()}


def test_killed_at_random_moments_it_leaves_nothing_half_written_and_goes_on(
    model: Path, tmp_path: Path
) -> None:
    started = time.monotonic()
    whole = start(model, tmp_path / "whole")
    assert whole.wait() == 0
    duration = time.monotonic() - started
    check(tmp_path / "whole", model)
    dice = np.random.default_rng(1)
    target, kills, ended = tmp_path / "out", 0, 0
    while kills < KILLS:
        process = start(model, target)
        time.sleep(float(dice.uniform(0.0, duration)))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:  # it was faster, perhaps since others had begun
            check(target, model)
            target.rename(tmp_path / f"done{ended}")
            ended += 1
            continue
        kills += 1
        if target.exists():  # killed after it was moved: then it is whole
            check(target, model)
            target.rename(tmp_path / f"done{ended}")
            ended += 1
    last = start(model, target)
    assert last.wait() == 0
    check(target, model)
    assert not list(tmp_path.glob(".*"))


def test_finished_shards_are_not_written_again(model: Path, tmp_path: Path) -> None:
    target, folder = tmp_path / "out", tmp_path / ".out.drupe-convert"

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(str(model), "llama", target, shard_size=SHARD, amount=interrupt)
    records = [path.name.removesuffix(".record.json") for path in folder.glob("*.record.json")]
    assert len(records) > 2
    before = {name: (folder / name).stat().st_mtime_ns for name in records}
    convert(str(model), "llama", target, shard_size=SHARD)
    assert {name: (target / name).stat().st_mtime_ns for name in records} == before
    check(target, model)


def test_a_model_that_was_changed_meanwhile_is_begun_anew(tmp_path: Path) -> None:
    from zoo_files import read_model, save

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    folder = save(read_model("r0"), tmp_path / "model")
    with pytest.raises(KeyboardInterrupt):
        convert(str(folder), "llama", tmp_path / "out", shard_size=100_000, amount=interrupt)
    save(read_model("r1"), folder)
    convert(str(folder), "llama", tmp_path / "out", shard_size=100_000)
    found = {
        k: v
        for file in (tmp_path / "out").glob("*.safetensors")
        for k, v in read_safetensors(file)[0].items()
    }
    assert all(np.array_equal(found[name], v) for name, v in read_model("r1").tensors.items())


def test_a_record_of_another_conversion_does_not_count(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / ".out.drupe-convert"
    folder.mkdir()
    (folder / "lock").touch()
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    (folder / "model.safetensors.record.json").write_text('{"identity": "other", "sha256": {}}')
    (folder / "stray").mkdir()
    convert(str(model), "llama", tmp_path / "out")
    check(tmp_path / "out", model)


def test_two_runs_do_not_write_to_one_place(model: Path, tmp_path: Path) -> None:
    def second(done: int, total: int) -> None:
        with pytest.raises(LocatorError, match="another conversion is writing there"):
            convert(str(model), "llama", tmp_path / "out")

    convert(str(model), "llama", tmp_path / "out", amount=second)
    check(tmp_path / "out", model)


def test_a_full_disk_is_an_error_and_the_next_run_goes_on(model: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # files of this process end after 1 MB
    try:
        with pytest.raises(SourceError, match="File too large"):
            convert(str(model), "llama", tmp_path / "out", shard_size=SHARD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out").exists()
    convert(str(model), "llama", tmp_path / "out", shard_size=SHARD)
    check(tmp_path / "out", model)
