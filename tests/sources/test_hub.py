"""The hub's endpoints, over a real connection, and its cache on this machine, made by its own client."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

from drupe.errors import DrupeError, LocatorError, OfflineError, SourceError
from drupe.sources.hub import HubTree
from drupe.sources.transfer import Limits
from range_server import Mode, RangeServer, Repository

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = random.Random(4).randbytes(1 << 20)
FILES = {
    "README.md": b"card",
    ".gitattributes": b"x",
    "../escape.txt": b"x",
    "config.json": b'{"a": 1}',
    "model.safetensors": WEIGHTS,
    "onnx/config.json": b"{}",
    "onnx/model.onnx": WEIGHTS[:1000],
    "onnx/model.onnx_data": b"data",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RangeServer]:
    with RangeServer() as running:
        running.repositories["org/name"] = Repository(dict(FILES), COMMIT)
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running


def test_lists_a_repository_at_a_pinned_commit_with_one_request(server: RangeServer) -> None:
    tree = HubTree("hf:org/name")
    assert tree.revision == COMMIT
    assert list(tree.files()) == [
        *("README.md", "config.json", "model.safetensors"),
        *("onnx/config.json", "onnx/model.onnx", "onnx/model.onnx_data"),
    ]
    assert tree.known_digests["model.safetensors"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert tree.meter.requests == len(server.log) == 1


def test_reads_large_files_behind_one_redirect_at_the_pinned_commit(server: RangeServer) -> None:
    blob = HubTree("hf:org/name@main").open("model.safetensors")
    assert blob.read(0, 100) == WEIGHTS[:100]
    assert blob.read_many([(900_000, 10)]) == [WEIGHTS[900_000:900_010]]
    cdn = "/cdn/org/name/model.safetensors?signature=0"
    assert server.paths()[1:] == [f"/org/name/resolve/{COMMIT}/model.safetensors", cdn, cdn]


@pytest.mark.parametrize(
    ("locator", "selected", "names"),
    [
        ("hf:org/name/onnx", None, ["config.json", "model.onnx", "model.onnx_data"]),
        ("hf:org/name@main/onnx/model.onnx", "model.onnx", ["config.json", "model.onnx", "model.onnx_data"]),
        (
            f"hf:org/name@{COMMIT}/model.safetensors",
            "model.safetensors",
            ["README.md", "config.json", "model.safetensors"],
        ),
    ],
)
def test_a_folder_or_a_file_can_be_selected(
    server: RangeServer, locator: str, selected: str | None, names: list[str]
) -> None:
    tree = HubTree(locator)
    assert (tree.selected, list(tree.files())) == (selected, names)
    assert tree.open("config.json").read(0, 1) == b"{"


def test_sizes_are_asked_for_when_the_mirror_lists_none(server: RangeServer) -> None:
    server.repositories["org/name"].sizes = False
    assert HubTree("hf:org/name").files()["model.safetensors"] == len(WEIGHTS)


def test_a_size_that_differs_from_the_listing_is_a_source_error(server: RangeServer) -> None:
    server.repositories["org/name"].listed["model.safetensors"] = 2 << 20
    with pytest.raises(SourceError, match=r"has 1048576 bytes, the repository announced 2097152"):
        HubTree("hf:org/name").open("model.safetensors").read(0, 8)


@pytest.mark.parametrize(
    ("locator", "kind", "message"),
    [
        ("hf:org/absent", LocatorError, r"no such repository.*HF_TOKEN"),
        ("hf:org/name@v9", LocatorError, r"no revision 'v9'"),
        ("hf:org/name/absent", LocatorError, r"no folder or file 'absent'"),
        ("hf:name", LocatorError, r"not of the form hf:ORG/NAME"),
        ("hf:org/na--me", LocatorError, r"not a valid repository name"),
        ("hf:org/name/../x", DrupeError, r"leaves its folder"),
        ("hf:../name", DrupeError, r"leaves its folder"),
    ],
)
def test_what_is_missing_is_said(
    server: RangeServer, locator: str, kind: type[DrupeError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        HubTree(locator)


def test_a_gated_file_says_where_to_ask(server: RangeServer) -> None:
    server.repositories["org/name"].gated = True
    blob = HubTree("hf:org/name").open("model.safetensors")
    with pytest.raises(
        SourceError, match=r"gated \(HTTP 403\).*accept its conditions at .*/org/name, then set"
    ):
        blob.read(0, 8)


@pytest.mark.parametrize(
    ("status", "headers", "token", "kind", "message"),
    [
        (
            401,
            {"X-Error-Code": "GatedRepo"},
            "",
            SourceError,
            r"gated \(HTTP 401\).*set HF_TOKEN to a token of",
        ),
        (403, {"X-Error-Code": "GatedRepo"}, "x", SourceError, r"gated.*the account of your token.*approval"),
        (404, {"X-Error-Code": "RepoNotFound"}, "x", LocatorError, r"no such repository.*your token must"),
        (401, {}, "", LocatorError, r"no such repository \(HTTP 401\).*private, set HF_TOKEN"),
        (
            *(401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "x", SourceError),
            r"does not know your token .*hf auth login",
        ),
        (403, {}, "x", SourceError, r"may not read this repository \(HTTP 403\).*fine-grained"),
        (
            *(403, {"X-Error-Message": "Access to this resource is disabled."}, "", SourceError),
            r"the hub has disabled this repository",
        ),
        (429, {"Retry-After": "7200"}, "", SourceError, r"HTTP 429.*asks to wait 7200 s.*try again later"),
    ],
)
@pytest.mark.parametrize("of", ["listing", "file"])
def test_every_refusal_says_what_to_do(
    server: RangeServer,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    headers: dict[str, str],
    token: str,
    kind: type[DrupeError],
    message: str,
    of: str,
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    path = f"/org/name/resolve/{COMMIT}/model.safetensors"
    server.failures["/api/models/org/name/revision/main" if of == "listing" else path] = [(status, headers)]
    with pytest.raises(kind, match=message) as caught:
        HubTree("hf:org/name").open("model.safetensors").read(0, 8)
    assert caught.value.where == "hf:org/name" or status == 429
    assert len(server.log) == (1 if of == "listing" else 2)


def test_the_token_opens_a_private_repository_and_stays_with_the_hub(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repositories["org/name"].token = "hf_secret"
    with pytest.raises(LocatorError):
        HubTree("hf:org/name")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with RangeServer() as other:
        other.files["/blob"] = WEIGHTS
        server.redirects[f"/org/name/resolve/{COMMIT}/model.safetensors"] = f"{other.url}/blob"
        assert HubTree("hf:org/name").open("model.safetensors").read(0, 8) == WEIGHTS[:8]
        assert "authorization" not in other.log[0].headers
    assert server.log[-1].headers["authorization"] == "Bearer hf_secret"


def test_a_busy_hub_is_asked_again(server: RangeServer) -> None:
    server.failures["/api/models/org/name/revision/main"] = [503, 429]
    assert HubTree("hf:org/name").meter.requests == 3


def test_an_unreachable_hub_is_a_source_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with RangeServer() as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.url)
    with pytest.raises(SourceError, match=r"ConnectError.*--offline"):
        HubTree("hf:org/name")


@pytest.mark.parametrize(
    "body",
    [
        *(b"[]", b'{"id": "x"}', b'{"id": "x", "sha": "main", "siblings": []}', b"not JSON", b"[" * 100_000),
        b'{"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{"rfilename": 7}]}',
    ],
)
def test_a_malformed_listing_is_a_source_error(server: RangeServer, body: bytes) -> None:
    server.redirects["/api/models/org/name/revision/main"] = "/listing"
    server.files["/listing"] = body
    with pytest.raises(SourceError, match=r"malformed|names no commit"):
        HubTree("hf:org/name")


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
def test_a_listing_that_misbehaves_is_a_source_error(server: RangeServer, mode: Mode, message: str) -> None:
    server.redirects["/api/models/org/name/revision/main"] = "/listing"
    server.files["/listing"] = b"{}" * 1000
    server.modes["/listing"] = mode
    limits = Limits(backoff_s=0.0)
    if mode in (Mode.DRIP, Mode.HANG):
        limits = Limits(backoff_s=0.0, deadline_s=0.4, slowest=1 << 40, silence_s=0.2)
    with pytest.raises(SourceError, match=message):
        HubTree("hf:org/name", limits=limits)


@pytest.fixture
def cached(server: RangeServer, tmp_path: Path) -> RangeServer:
    """A cache made by the real client."""
    for name in ("model.safetensors", "config.json"):
        hf_hub_download("org/name", name, endpoint=server.url, cache_dir=tmp_path / "cache", token=False)
    server.log.clear()
    return server


def test_offline_reads_what_the_real_client_has_cached(cached: RangeServer) -> None:
    tree = HubTree("hf:org/name", offline=True)
    assert (tree.revision, list(tree.files())) == (COMMIT, ["config.json", "model.safetensors"])
    assert tree.open("model.safetensors").read(5, 10) == WEIGHTS[5:15]
    assert cached.log == []


def test_online_the_cache_spares_the_download(cached: RangeServer) -> None:
    tree = HubTree("hf:org/name")
    assert tree.open("model.safetensors").read(5, 10) == WEIGHTS[5:15]
    assert tree.open("README.md").read(0, 4) == b"card"
    assert cached.paths()[1:] == [f"/org/name/resolve/{COMMIT}/README.md"]


def test_a_cached_file_of_another_size_is_not_trusted(cached: RangeServer) -> None:
    cached.repositories["org/name"].files["config.json"] = b'{"a": 12345}'
    assert HubTree("hf:org/name").open("config.json").read(0, 12) == b'{"a": 12345}'


@pytest.mark.parametrize("locator", ["hf:org/other", "hf:org/name@v2", f"hf:org/name@{'b' * 40}"])
def test_offline_what_is_not_cached_is_an_offline_error(cached: RangeServer, locator: str) -> None:
    with pytest.raises(OfflineError, match=r"is not in the cache.*without --offline"):
        HubTree(locator, offline=True)


def test_the_hubs_own_offline_variable_is_obeyed(
    cached: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert HubTree("hf:org/name").open("config.json").size == 8
    assert cached.log == []


def test_56_blocks_of_4_shards_behind_redirects(server: RangeServer) -> None:
    content = WEIGHTS * 12
    shards = {f"model-{number:05}-of-00004.safetensors": content for number in range(1, 5)}
    server.repositories["org/big"] = Repository(shards, COMMIT)
    tree = HubTree("hf:org/big", limits=Limits(backoff_s=0.0))
    for shard in shards:
        spans = [(400_000 + block * 800_000 + line * 8192, 4096) for block in range(14) for line in range(8)]
        assert tree.open(shard).read_many(spans) == [content[start : start + 4096] for start, _ in spans]
    assert tree.meter.requests == len(server.log) == 1 + 4 * 2 + 56
