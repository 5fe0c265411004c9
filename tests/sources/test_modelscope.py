"""ModelScope's endpoints, over a real connection."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import service_routes
from drupe.errors import DrupeError, LimitError, LocatorError, OfflineError, SourceError
from drupe.sources import modelscope
from drupe.sources.modelscope import ModelScopeTree
from drupe.sources.transfer import Limits
from range_server import Mode, RangeServer, Repository

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = random.Random(4).randbytes(1 << 20)
FILES = {
    "README.md": b"card",
    ".gitattributes": b"x",
    "../escape.txt": b"x",
    "configuration.json": b"{}",
    "model.safetensors": WEIGHTS,
    "onnx/config.json": b"{}",
    "onnx/model.onnx": WEIGHTS[:1000],
}
QUICK = Limits(backoff_s=0.0)
LISTING = "/api/v1/models/org/name/repo/files"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RangeServer]:
    with RangeServer() as running:
        running.scopes["org/name"] = Repository(dict(FILES), COMMIT)
        monkeypatch.setenv("MODELSCOPE_DOMAIN", running.url)
        monkeypatch.delenv("MODELSCOPE_ENDPOINT", raising=False)
        monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
        yield running


def _tree(locator: str = "ms:org/name") -> ModelScopeTree:
    return ModelScopeTree(locator, limits=QUICK)


@pytest.mark.parametrize("said", ["full", "short"])
def test_lists_a_repository_at_the_commit_that_it_names(server: RangeServer, said: str) -> None:
    server.scopes["org/name"].said = said
    tree = _tree()
    assert tree.revision == COMMIT
    assert list(tree.files()) == [
        *("README.md", "configuration.json", "model.safetensors", "onnx/config.json", "onnx/model.onnx"),
    ]
    assert tree.known_digests["model.safetensors"] == hashlib.sha256(WEIGHTS).hexdigest()
    blob = tree.open("model.safetensors")
    assert blob.read_many([(0, 100), (900_000, 10)]) == [WEIGHTS[:100], WEIGHTS[900_000:900_010]]
    first, second, file, *cdn = server.paths()
    assert first.endswith("Revision=master&Recursive=True")
    assert second.endswith(f"Revision={COMMIT}&Recursive=True")
    assert file.endswith(f"/repo?Revision={COMMIT}&FilePath=model.safetensors")
    assert cdn == ["/cdn/org/name/model.safetensors?signature=0"] * 2


@pytest.mark.parametrize(("said", "commits"), [("no", True), ("full", False)])
def test_without_a_usable_commit_it_reads_the_branch_and_says_so(
    server: RangeServer, said: str, commits: bool
) -> None:
    server.scopes["org/name"].said, server.scopes["org/name"].commits = said, commits
    tree = _tree()
    assert tree.revision is None
    assert tree.open("README.md").read(0, 4) == b"card"
    assert server.paths()[-1].endswith("Revision=master&FilePath=README.md")


@pytest.mark.parametrize(
    ("locator", "selected", "names"),
    [
        ("ms:org/name/onnx", None, ["config.json", "model.onnx"]),
        ("ms:org/name@main/onnx/model.onnx", "model.onnx", ["config.json", "model.onnx"]),
        (f"ms:org/name@{COMMIT}/model.safetensors", "model.safetensors", ["README.md", "model.safetensors"]),
    ],
)
def test_a_folder_or_a_file_can_be_selected(
    server: RangeServer, locator: str, selected: str | None, names: list[str]
) -> None:
    tree = _tree(locator)
    assert (tree.selected, list(tree.files())) == (selected, names)


def test_a_listing_that_is_cut_is_completed_folder_by_folder(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_routes, "CUT", 10)
    monkeypatch.setattr(modelscope, "CUT", 10)
    names = [f"{part}/{number}/f.txt" for part in "abc" for number in range(5)] + ["x.txt"]
    server.scopes["org/name"] = Repository(dict.fromkeys(names, b"1"), COMMIT)
    assert list(_tree().files()) == sorted(names)
    monkeypatch.setattr(modelscope, "MAX_REQUESTS", 5)
    with pytest.raises(LimitError, match=r"folders to list: more than 5 exceeds the limit of 5"):
        _tree()
    server.scopes["org/name"] = Repository({f"{number}.txt": b"1" for number in range(10)}, COMMIT)
    with pytest.raises(LimitError, match=r"would be incomplete"):
        _tree()


@pytest.mark.parametrize(
    ("locator", "kind", "message"),
    [
        ("ms:org/absent", LocatorError, r"no such repository.*HTTP 404.*MODELSCOPE_API_TOKEN"),
        ("ms:org/name@v9", LocatorError, r"no revision 'v9'"),
        ("ms:org/name/absent", LocatorError, r"no folder or file 'absent'"),
        ("ms:name", LocatorError, r"not of the form ms:ORG/NAME"),
        ("ms:org/name/../x", DrupeError, r"leaves its folder"),
    ],
)
def test_what_is_missing_is_said(
    server: RangeServer, locator: str, kind: type[DrupeError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        _tree(locator)


def test_a_gated_repository_says_where_to_apply(server: RangeServer) -> None:
    server.scopes["org/name"].gated = True
    with pytest.raises(
        SourceError, match=r"HTTP 403.*apply at .*/models/org/name, then set MODELSCOPE_API_TOKEN"
    ):
        _tree()


def test_the_token_stays_with_its_host(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.scopes["org/name"].token = "ms_secret"
    with pytest.raises(LocatorError):
        _tree()
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms_secret")
    with RangeServer() as other:
        other.files["/blob"] = WEIGHTS
        server.redirects["/api/v1/models/org/name/repo"] = f"{other.url}/blob"
        assert _tree().open("model.safetensors").read(0, 8) == WEIGHTS[:8]
        assert not {"authorization", "cookie"} & other.log[0].headers.keys()
    assert server.log[-1].headers["authorization"] == "Bearer ms_secret"
    assert server.log[-1].headers["cookie"] == "m_session_id=ms_secret"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"not JSON", r"malformed \(no JSON\)"),
        (b"[" * 100_000, r"malformed \(no JSON\)"),
        (b"[]", r"malformed \(no object\)"),
        (b'{"Data": []}', r"malformed \(Data is no object\)"),
        (b'{"Data": {"Files": {}}}', r"malformed \(Files is no list\)"),
        (b'{"Data": {"Files": [1]}}', r"malformed \(Files is no list\)"),
        (b'{"Success": false, "Message": "on\\u001b[31m fire"}', r"reports a failure: on"),
        (b" " * (modelscope.MAX_ANSWER + 1), r"the answer has 8388609 bytes, more than 8388608"),
    ],
)
def test_a_malformed_listing_is_a_source_error(server: RangeServer, body: bytes, message: str) -> None:
    server.redirects[LISTING] = "/listing"
    server.files["/listing"] = body
    with pytest.raises(SourceError, match=message):
        _tree()


def test_strange_entries_are_left_out_or_asked_for(server: RangeServer) -> None:
    entries = [
        {"Path": 1, "Size": 1},
        {"Path": "a\0b", "Size": 1},
        {"Path": "README.md", "Type": "blob", "Size": "4", "Sha256": 7},
        {"Path": "onnx", "Type": "tree"},
    ]
    server.redirects[LISTING] = "/listing"
    server.files["/listing"] = json.dumps({"Data": {"Files": entries, "LatestCommitter": "x"}}).encode()
    assert _tree().files() == {"README.md": 4}


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (Mode.ENDLESS, r"sends more than 8388608 bytes"),
        (Mode.COMPRESSED, r"compresses"),
        (Mode.TRUNCATED, r"attempts"),
        (Mode.DRIP, r"no complete answer within"),
        (Mode.HANG, r"ReadTimeout"),
    ],
)
def test_a_server_that_misbehaves_is_a_source_error(server: RangeServer, mode: Mode, message: str) -> None:
    server.redirects[LISTING] = "/listing"
    server.files["/listing"] = b'{"Data": {"Files": []}}' * 100
    server.modes["/listing"] = mode
    limits = replace(QUICK, deadline_s=0.4, slowest=1 << 40, silence_s=0.2)
    if mode is Mode.ENDLESS:
        limits = QUICK
    with pytest.raises(SourceError, match=message):
        ModelScopeTree("ms:org/name", limits=limits)


def test_a_size_that_differs_from_the_listing_is_a_source_error(server: RangeServer) -> None:
    server.scopes["org/name"].listed["model.safetensors"] = 2 << 20
    with pytest.raises(SourceError, match=r"has 1048576 bytes, the repository announced 2097152"):
        _tree().open("model.safetensors").read(0, 8)


def test_a_busy_server_is_asked_again_and_one_that_wants_too_much_time_is_not(server: RangeServer) -> None:
    server.failures[LISTING] = [503, 429]
    assert _tree().meter.requests == 4
    server.failures[LISTING] = [(429, {"Retry-After": "3600"})]
    with pytest.raises(SourceError, match=r"HTTP 429, and the server asks to wait 3600 s .*try again later"):
        _tree()


def test_plain_http_is_refused_but_from_the_configured_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://192.0.2.1")
    with pytest.raises(OfflineError):  # accepted: it gets as far as the missing cache
        ModelScopeTree("ms:org/name", offline=True)
