"""A fingerprint is a file format: pinned bytes, byte-for-byte reproducible, small, and strict when it is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe import fingerprint as fingerprints
from drupe.errors import FormatError, LimitError
from drupe.facts import to_json
from drupe.fingerprint import MAGIC, Fingerprint, from_bytes, to_bytes
from drupe.flags import NOTHING
from drupe.opening import header_digest, open_subject
from drupe.uninformative import State
from hostile_files import save_small, small
from zoo_files import MODELS, save

RECORD = 8 * 8 + 2 + 1 + 8 + 4
KINDS = sorted(path.name for path in MODELS.iterdir() if path.is_dir())


def fingerprint_of(folder: Path) -> Fingerprint:
    return open_subject(str(folder), offline=True).fingerprint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return to_bytes(fingerprint_of(save_small(tmp_path_factory.mktemp("small") / "model")))


def parts(data: bytes) -> tuple[dict[str, Any], bytes, bytes]:
    header, sample = (int.from_bytes(data[k : k + 4], "little") for k in (8, 12))
    return json.loads(data[16 : 16 + header]), data[16 + header :][:sample], data[16 + header + sample :]


def assembled(header: object, sample: bytes, records: bytes) -> bytes:
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return (
        MAGIC + len(text).to_bytes(4, "little") + len(sample).to_bytes(4, "little") + text + sample + records
    )


def test_the_layout_is_pinned(data: bytes) -> None:
    assert data[:8] == b"DRUPEFP1"
    header, sample, records = parts(data)
    assert assembled(header, sample, records) == data
    assert (len(sample), len(records)) == (24 * 9, 8 * RECORD)
    assert list(header) == [
        *("absent", "code", "declared", "matrices", "names"),
        *("sketch_version", "storage", "structure", "tokenizer"),
    ]
    assert header["sketch_version"] == 1
    assert header["matrices"][0] == ["model.embed_tokens.weight", "", [24, 32, 0, 0, 0], "embed"]
    assert header["matrices"][-1] == ["model.layers.{}.self_attn.v_proj.weight", "0", [32, 32, 0, 0, 1], "v"]
    # the first record: 8 words, 4 pairs x 32 columns used, informative, digest, scale about 1
    assert records[64:67] == (128).to_bytes(2, "little") + b"\0"
    assert np.frombuffer(records[75:79], "<f4")[0] == pytest.approx(1.0, abs=0.2)
    assert records[64 - 48 : 64] == bytes(48)  # words beyond the 128 bits


@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_is_read_back(name: str) -> None:
    first = fingerprint_of(MODELS / name)
    data = to_bytes(first)
    again = from_bytes(data, "x")
    assert to_bytes(again) == data
    for facts in ("structure", "names", "declared", "code", "storage"):
        assert to_json(getattr(again, facts)) == to_json(getattr(first, facts))
    assert header_digest(again) == header_digest(first)
    assert {part: str(reason) for part, reason in again.absent.items()} == {
        part: str(reason) for part, reason in first.absent.items()
    }
    assert set(again.weights.matrices) == set(first.weights.matrices)
    row = {matrix: place for place, matrix in enumerate(again.weights.matrices)}
    order = [row[matrix] for matrix in first.weights.matrices]
    for field in ("words", "counts", "digests", "rms", "states"):
        assert np.array_equal(getattr(again.weights, field)[order], getattr(first.weights, field))


def test_the_same_files_give_the_same_bytes_in_any_process(tmp_path: Path, data: bytes) -> None:
    """Another hash seed, another order of creation, another place and time of the files."""
    model = small()
    names = list(model.tensors)
    code = (
        "import sys; from drupe import fingerprint as f; from drupe.opening import open_subject;"
        "sys.stdout.buffer.write(f.to_bytes(open_subject(sys.argv[1], offline=True).fingerprint))"
    )
    for seed in ("1", "77"):
        folder = tmp_path / seed / "model"
        folder.mkdir(parents=True)
        written = save_small(tmp_path / f"first-{seed}")
        files = sorted(written.iterdir(), reverse=seed == "77")
        for place, path in enumerate(files):
            (folder / path.name).write_bytes(path.read_bytes())
            os.utime(folder / path.name, (place, place))
        environment = {**os.environ, "PYTHONHASHSEED": seed, "LANG": "C", "TZ": "Asia/Shanghai"}
        done = subprocess.run(
            [sys.executable, "-c", code, folder], env=environment, capture_output=True, check=True
        )
        assert done.stdout == data
    assert len(names) == 11


def test_the_order_of_the_tensors_in_the_file_moves_only_its_digest(tmp_path: Path) -> None:
    model = small()
    turned = model.with_tensors(dict(reversed(model.tensors.items())))
    a, b = (
        parts(to_bytes(fingerprint_of(save(m, tmp_path / n / "model"))))
        for m, n in ((model, "a"), (turned, "b"))
    )
    assert a[1:] == b[1:]
    a[0]["names"].pop("order_digest"), b[0]["names"].pop("order_digest")
    assert a[0] == b[0]


def test_no_weight_value_and_no_path_is_inside(data: bytes, tmp_path: Path) -> None:
    assert str(tmp_path.parent).encode() not in data
    values = small().tensors["model.layers.0.mlp.up_proj.weight"]
    raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    assert not any(raw[at : at + 8] in data for at in range(0, len(raw) - 8, 2))


def test_a_model_of_32_layers_and_128k_pieces_fits_64_kib(tmp_path: Path) -> None:
    """Llama-3-8B's shapes as a sparse file of 16 GB, with a vocabulary of its size."""
    shapes: dict[str, list[int]] = {
        "model.embed_tokens.weight": [128256, 4096],
        "lm_head.weight": [128256, 4096],
    }
    matrices = {"q": (4096, 4096), "k": (1024, 4096), "v": (1024, 4096), "o": (4096, 4096)}
    gated = {"gate": (14336, 4096), "up": (14336, 4096), "down": (4096, 14336)}
    for layer in range(32):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{n}_proj.weight": list(s) for n, s in matrices.items()}
        shapes |= {f"{prefix}mlp.{n}_proj.weight": list(s) for n, s in gated.items()}
        shapes |= {f"{prefix}{n}.weight": [4096] for n in ("input_layernorm", "post_attention_layernorm")}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    vocabulary = {f"w{(i * 2654435761) % (1 << 32):x}": i for i in range(128_000)}
    tokenizer = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32}'
    )
    subject = open_subject(str(tmp_path), offline=True)
    data = to_bytes(subject.fingerprint)
    assert len(subject.fingerprint.weights.matrices) == 32 * 7 + 2
    assert len(data) <= 64 << 10
    assert set(subject.fingerprint.weights.states.tolist()) == {State.ALL_ZERO}
    assert subject.model is not None
    assert subject.model.tree.meter.bytes_read < 24 << 20


def edit(path: tuple[str | int, ...], value: object) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        node: Any = header
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


GROUP = ["a.{}", "0-999999", [8, 32, 0, 0, 0], ""]


def flags(*names: object, kind: str = "not_read", omitted: int = 0, text: str = "") -> dict[str, Any]:
    return {"groups": [[kind, "f.bin", False, text, list(names)]], "omitted": omitted}


def test_flags_are_a_key_that_may_be_there(data: bytes) -> None:
    header, sample, records = parts(data)
    assert from_bytes(data, "x").flags == NOTHING
    header["flags"] = flags(["os.system", 7], ["a", None], kind="dangerous_code", omitted=3)
    flagged = assembled(header, sample, records)
    again = from_bytes(flagged, "x")
    assert [(flag.what, flag.position) for flag in again.flags.kept] == [("os.system", 7), ("a", None)]
    assert again.flags.omitted == 3
    assert to_bytes(again) == flagged


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (edit(("sketch_version",), 2), FormatError),
        (edit(("unknown",), 1), FormatError),
        (edit(("matrices",), {}), FormatError),
        (edit(("matrices", 0), GROUP), LimitError),
        (edit(("names", "groups"), [["a.{}", "0-999999", [8], "F32"]]), LimitError),
        (edit(("names", "groups"), [["x" * 100_000 + "{}", "0-99999", [8], "F32"]]), LimitError),
        (edit(("names", "groups"), [["a.{}", "0-9999999999", [8], "F32"]]), FormatError),
        (edit(("names", "groups"), [["a.{}", "9-0", [8], "F32"]]), FormatError),
        (edit(("matrices", 1), ["model.embed_tokens.weight", "", [24, 32, 0, 0, 0], "embed"]), FormatError),
        (edit(("absent",), {"weights": ["no.such.reason", {}]}), FormatError),
        (edit(("absent",), {"weights": ["compare.no_weights", {"x": 1}, 3]}), FormatError),
        (edit(("absent",), {"kernel": ["compare.no_weights", {}]}), FormatError),
        (edit(("tokenizer",), None), FormatError),
        (edit(("tokenizer", "pieces"), -1), FormatError),
        (edit(("tokenizer", "alphabetical"), float("nan")), FormatError),
        (edit(("structure", "depth"), "4"), FormatError),
        (edit(("structure", "depth"), True), FormatError),
        (edit(("code", "files"), [["a", "b"]]), FormatError),
        (edit(("flags",), []), FormatError),
        (edit(("flags",), flags(["a", -1])), FormatError),
        (edit(("flags",), flags(["a", "1"])), FormatError),
        (edit(("flags",), flags(["a", 1], kind="odd")), FormatError),
        (edit(("flags",), flags(["a", 1], omitted=-1)), FormatError),
        (edit(("flags",), flags(*[["a", 1]] * 201)), LimitError),
        (edit(("flags",), flags(["a" * 5000, 1])), LimitError),
        (edit(("flags",), flags(["a", 1], text="b" * 5000)), LimitError),
    ],
    ids=str,
)
def test_what_is_not_canonical_is_refused(
    data: bytes, change: Callable[[dict[str, Any]], None], error: type[FormatError]
) -> None:
    header, sample, records = parts(data)
    change(header)
    with pytest.raises(error) as caught:
        from_bytes(assembled(header, sample, records), "stranger.drupe")
    assert "stranger.drupe" in str(caught.value) or caught.value.where


@pytest.mark.parametrize("cut", [0, 7, 8, 15, 16, 40, -RECORD, -1])
def test_truncations_are_refused(data: bytes, cut: int) -> None:
    with pytest.raises(FormatError, match=r"x\.drupe"):
        from_bytes(data[:cut], "x.drupe")


def test_a_file_with_something_behind_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="bytes of records"):
        from_bytes(data + b"\0", "x.drupe")


def test_a_sketch_that_claims_more_bits_than_it_has(data: bytes) -> None:
    header, sample, records = parts(data)
    with pytest.raises(FormatError, match="more bits"):
        from_bytes(assembled(header, sample, records[:64] + b"\xff\xff" + records[66:]), "x")


def test_too_large_a_file_is_refused(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "MAX_BYTES", 100)
    with pytest.raises(LimitError) as caught:
        from_bytes(data, "x")
    assert (caught.value.limit, caught.value.actual) == (100, len(data))


def test_a_model_without_weights_has_one_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    first = fingerprint_of(tmp_path)
    assert len(to_bytes(first)) < 2000
    assert set(first.absent) == {"weights", "tokenizer", "code", "documents"}
    assert from_bytes(to_bytes(first), "x").storage.format == ""
