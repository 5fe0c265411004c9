"""Files beside the weights: every attack of the corpus is named there, nothing stops the work, all is bounded."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from blobs import MemoryBlob
from drupe import workflows
from drupe.errors import LocatorError, SourceError
from drupe.readers import beside
from drupe.readers.beside import MAX_BYTES, MAX_FILES, MAX_OPERATIONS, read_beside
from drupe.readers.interface import Flag, FlagKind
from drupe.readers.strict_json import Json, as_object
from drupe.sources.hub import HubTree
from drupe.sources.interface import Meter
from drupe.sources.local import LocalTree
from hostile_files import save_small
from pickle_corpus import (
    CANARY,
    GADGETS,
    INNER,
    Attack,
    archive,
    archives,
    call,
    checkpoint,
    corpus,
    legacy,
    other_containers,
    pickled,
    text,
)
from range_server import RangeServer, Repository

EVIL = archive(checkpoint(call("os", "system", text("true"))))


@dataclass
class MemoryTree:
    """Named bytes as a folder; ``lost``: files whose bytes cannot be had."""

    content: Mapping[str, bytes]
    lost: frozenset[str] = frozenset()
    locator: str = "memory"
    revision: None = None
    selected: None = None
    meter: Meter = field(default_factory=Meter)
    blobs: dict[str, MemoryBlob] = field(default_factory=dict)

    def files(self) -> Mapping[str, int]:
        return {name: len(data) for name, data in sorted(self.content.items())}

    def open(self, name: str) -> MemoryBlob:
        if name not in self.content:
            raise LocatorError("no such file", where=name)
        if name in self.lost:
            self.blobs[name] = MemoryBlob(name, b"")
            raise SourceError("the server does not answer", where=name)
        return self.blobs.setdefault(name, MemoryBlob(name, self.content[name]))


def scanned(**files: bytes) -> list[Flag]:
    """The flags of files, whose names are written with two underscores for the dot."""
    return list(read_beside(MemoryTree({name.replace("__", "."): data for name, data in files.items()}), ()))


def kinds(flags: list[Flag]) -> set[FlagKind]:
    return {flag.kind for flag in flags}


# pickles
@pytest.mark.parametrize("file", ["optimizer.pt", "rng_state.pth", "run/training_args.bin", "model.pkl"])
def test_every_attack_on_the_code_is_named_and_none_runs(file: str, tmp_path: Path) -> None:
    attacks = {label: attack for label, attack in corpus().items() if attack.named}
    assert len(attacks) > 400
    silent = []
    for number, (label, attack) in enumerate(attacks.items()):
        folder = tmp_path / str(number)
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_bytes(attack.data)
        found = read_beside(LocalTree(folder), ())
        assert all(flag.beside for flag in found)
        if not any(attack.named in (flag.what, *flag.reason.split("'")) for flag in found):
            silent.append(label)
    assert silent == []
    assert not list(tmp_path.rglob(CANARY))


@pytest.mark.parametrize(
    ("label", "attack"), [pair for pair in (archives() | other_containers()).items() if not pair[1].named]
)
def test_what_cannot_be_followed_is_a_flag_and_no_error(label: str, attack: Attack) -> None:
    assert label
    assert kinds(scanned(optimizer__pt=attack.data)) & {FlagKind.NOT_READ, FlagKind.DANGEROUS_CODE}


def test_the_weights_beside_are_read_and_the_remarks_are_apart(tmp_path: Path) -> None:
    folder = save_small(tmp_path / "model")
    clean = as_object(workflows.inspect(str(folder), offline=True)["model"], "model")
    assert "flags" not in clean
    (folder / "optimizer.pt").write_bytes(EVIL)
    (folder / "scaler.pt").write_bytes(zlib.compress(INNER))
    report = workflows.inspect(str(folder), offline=True)
    model = as_object(report["model"], "model")
    assert model["parameters"] == clean["parameters"]
    assert model["digest"] == clean["digest"]
    flags = [as_object(flag, "flag") for flag in model["flags"]]  # type: ignore[union-attr]
    assert [(flag["kind"], flag["file"], flag["beside"]) for flag in flags] == [
        ("dangerous_code", "optimizer.pt: archive/data.pkl", True),
        ("not_read", "scaler.pt", True),
    ]
    compared = workflows.compare(str(folder), str(folder), offline=True)
    assert as_object(compared["suspect"], "suspect")["flags"] == model["flags"]


def test_files_of_the_weights_are_not_looked_at_twice(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(EVIL)
    flags = as_object(workflows.inspect(str(tmp_path), offline=True)["model"], "model")["flags"]
    assert isinstance(flags, list)
    assert [as_object(flag, "flag")["beside"] for flag in flags] == [False]


def test_a_selected_file_has_nothing_beside_it(tmp_path: Path) -> None:
    folder = save_small(tmp_path / "model")
    (folder / "optimizer.pt").write_bytes(EVIL)
    weights = next(folder.glob("*.safetensors*"))
    model = as_object(workflows.inspect(str(weights), offline=True)["model"], "model")
    assert "flags" not in model


def test_other_weights_in_pickles_are_looked_at(tmp_path: Path) -> None:
    folder = save_small(tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(EVIL)
    flags = as_object(workflows.inspect(str(folder), offline=True)["model"], "model")["flags"]
    assert isinstance(flags, list)
    assert as_object(flags[0], "flag")["what"] == "os.system"


@pytest.mark.parametrize(
    "data", [archive(checkpoint(b"N")), legacy(checkpoint(b"N")), pickled(b"N"), b"I1\n."]
)
def test_harmless_pickles_say_nothing(data: bytes) -> None:
    assert scanned(optimizer__pt=data) == []


@pytest.mark.parametrize("seed", range(20))
def test_numbers_in_a_file_called_bin_say_nothing(seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal(5000).astype("<f4")
    assert scanned(vectors__bin=values.tobytes(), zeros__bin=bytes(999), none__bin=b"") == []


@pytest.mark.parametrize(
    "data",
    [
        EVIL,
        INNER,
        legacy(checkpoint(b"N"), trailing=INNER),
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
    ],
)
def test_a_pickle_in_a_file_called_bin_is_found_by_its_bytes(data: bytes) -> None:
    assert "os.system" in [flag.what for flag in scanned(vectors__bin=data)]


def test_names_before_a_break_are_kept() -> None:
    """joblib puts the raw values of an array between the instructions."""
    body = b"\x80\x04" + call("my.package", "Thing") + call("os", "system", text("true")) + b"\xff" * 64
    found = scanned(pipeline__joblib=body)
    assert [(flag.kind, flag.what) for flag in found[:2]] == [
        (FlagKind.UNKNOWN_CODE, "my.package.Thing"),
        (FlagKind.DANGEROUS_CODE, "os.system"),
    ]
    assert found[2].kind is FlagKind.NOT_READ


# bounds
def test_a_large_file_is_read_by_ranges_only() -> None:
    padding = np.random.default_rng(0).bytes(8 << 20)
    data = archive(checkpoint(call("os", "system", text("true"))), {"data/1": padding})
    tree = MemoryTree({"optimizer.pt": data})
    assert [flag.what for flag in read_beside(tree, ())] == ["os.system"]
    assert sum(length for _, length in tree.blobs["optimizer.pt"].spans) < 32 << 10


def test_a_repository_is_read_by_listing_and_ranges(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    padding = np.random.default_rng(0).bytes(4 << 20)
    data = archive(checkpoint(call("os", "system", text("true"))), {"data/1": padding})
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with RangeServer() as server:
        server.repositories["org/name"] = Repository({"sub/optimizer.pt": data, "sub/a.txt": b"x"}, "0" * 40)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        tree = HubTree("hf:org/name/sub")
        found = read_beside(tree, ())
        assert [(flag.what, flag.file) for flag in found] == [("os.system", "optimizer.pt: archive/data.pkl")]
        assert tree.meter.bytes_read < 2 << 20
        assert tree.meter.requests < 12


def test_files_beyond_the_limit_are_named_as_not_looked_at() -> None:
    files = {f"{number:03d}.pt": EVIL for number in range(MAX_FILES + 5)}
    found = list(read_beside(MemoryTree(files), ()))
    assert len(found) == MAX_FILES + 1
    assert (found[-1].kind, found[-1].file) == (FlagKind.NOT_READ, f"{MAX_FILES:03d}.pt")
    assert found[-1].what == "5 files from here on"


def test_files_that_say_what_they_are_come_first() -> None:
    files = {f"a{number:03d}.bin": bytes(9) for number in range(MAX_FILES)} | {"z.pt": EVIL}
    assert "os.system" in [flag.what for flag in read_beside(MemoryTree(files), ())]


def test_the_bytes_of_all_files_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_Room", lambda: ROOM(2000, MAX_OPERATIONS))
    large = pickled(b"B" + struct.pack("<I", 70_000) + bytes(70_000) + GADGETS["os.system"][1])
    found = scanned(a__pt=large, b__pt=INNER)
    assert [(flag.kind, flag.file) for flag in found] == [
        (FlagKind.NOT_READ, "a.pt"),
        (FlagKind.DANGEROUS_CODE, "b.pt"),
    ]
    assert str(MAX_BYTES) in found[0].reason


def test_a_bin_that_there_is_no_room_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_Room", lambda: ROOM(10, MAX_OPERATIONS))
    assert [(flag.kind, flag.file) for flag in scanned(vectors__bin=INNER)] == [
        (FlagKind.NOT_READ, "vectors.bin")
    ]


def test_the_instructions_of_all_files_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_Room", lambda: ROOM(MAX_BYTES, 1000))
    found = scanned(
        a__pt=pickled(b"N0" * 400 + b"N"), b__pt=pickled(b"N0" * 400 + b"N"), c__pt=INNER, d__pt=INNER
    )
    assert [(flag.file, flag.what) for flag in found] == [("b.pt", ""), ("c.pt", "2 files from here on")]


ROOM = beside._Room


def test_a_file_that_cannot_be_had_ends_the_looking_and_not_the_work() -> None:
    tree = MemoryTree({"a.pt": EVIL, "b.pt": EVIL, "c.pt": EVIL}, lost=frozenset({"b.pt", "c.pt"}))
    found = list(read_beside(tree, ()))
    assert [(flag.kind, flag.file) for flag in found] == [
        (FlagKind.DANGEROUS_CODE, "a.pt: archive/data.pkl"),
        (FlagKind.NOT_READ, "b.pt"),
        (FlagKind.NOT_READ, "c.pt"),
    ]
    assert "c.pt" not in tree.blobs


# code
SETTINGS: dict[str, tuple[dict[str, Json], set[tuple[str, str]]]] = {
    "auto_map": (
        {
            "config.json": {
                "auto_map": {"AutoModel": "modeling_x.Model", "AutoConfig": "configuration_x.Config"}
            }
        },
        {("modeling_x.py", "Model"), ("configuration_x.py", "Config")},
    ),
    "auto_map of a tokenizer": (
        {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["tokenization_x.Slow", None]}}},
        {("tokenization_x.py", "Slow")},
    ),
    "auto_map of another repository": (
        {"config.json": {"auto_map": {"AutoModel": "org/other--modeling_x.Model"}}},
        {("org/other--modeling_x.py", "Model")},
    ),
    "in a folder": (
        {"encoder/config.json": {"auto_map": {"AutoModel": "sub.modeling.Model"}}},
        {("encoder/sub/modeling.py", "Model")},
    ),
    "custom_pipelines": (
        {"config.json": {"custom_pipelines": {"my-task": {"impl": "my_pipeline.Pipe"}, "odd": 3}}},
        {("my_pipeline.py", "Pipe")},
    ),
    "modules.json": (
        {
            "modules.json": [
                {"type": "custom_st.Pooling"},
                {"type": "sentence_transformers.models.Dense"},
                7,
            ],
            "custom_st.py": "",
        },
        {("custom_st.py", "Pooling")},
    ),
    "model_index.json": (
        {
            "model_index.json": {
                "unet": ["my_unet", "Unet"],
                "vae": ["diffusers", "Vae"],
                "_class_name": "P",
            },
            "unet/my_unet.py": "",
        },
        {("unet/my_unet.py", "Unet")},
    ),
    "by convention": (
        {"handler.py": "", "other.py": ""},
        {("handler.py", beside._CONVENTIONS["handler.py"])},
    ),
    "nothing": ({"config.json": {"auto_map": 3, "custom_pipelines": []}, "modeling.py": ""}, set()),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_code_that_a_loader_would_run_is_listed_as_that(case: str) -> None:
    files, expected = SETTINGS[case]
    found = list(
        read_beside(MemoryTree({name: json.dumps(value).encode() for name, value in files.items()}), ())
    )
    assert {(flag.file, flag.what) for flag in found} == expected
    assert kinds(found) <= {FlagKind.LOADER_CODE}


def test_a_key_in_escapes_is_the_same_key() -> None:
    raw = b'{"\\u0061uto_map": {"AutoModel": "modeling_x.Model"}}'
    assert [flag.file for flag in scanned(config__json=raw)] == ["modeling_x.py"]


def test_settings_that_cannot_be_read_are_flags() -> None:
    many = {f"C{number}": f"module.C{number}" for number in range(999)}
    found = scanned(
        config__json=json.dumps({"auto_map": many}).encode(), processor_config__json=b'{"auto_map": ['
    )
    assert [flag.file for flag in found if flag.kind is FlagKind.NOT_READ] == [
        "config.json",
        "processor_config.json",
    ]


@pytest.mark.parametrize(
    ("language", "says"),
    [
        (
            "en",
            [
                "WARNING: beside the weights: optimizer.pt: archive/data.pkl calls for os.system",
                "code that a loader",
            ],
        ),
        ("zh", ["警告：权重之外的文件 optimizer.pt", "加载器在获得许可"]),
    ],
)
def test_both_languages_say_it(
    language: str,
    says: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from drupe.cli import main

    monkeypatch.setenv("COLUMNS", "400")
    folder = save_small(tmp_path / "model")
    (folder / "optimizer.pt").write_bytes(EVIL)
    (folder / "handler.py").write_text("pass\n")
    assert main(["inspect", str(folder), "--lang", language]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert not [part for part in says if part not in shown]
