"""Which tree a locator opens, and that --offline connects to nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from drupe.errors import DrupeError, LocatorError, OfflineError
from drupe.opening import is_remote
from drupe.sources.fs import FsTree
from drupe.sources.http import HttpTree
from drupe.sources.hub import HubTree
from drupe.sources.local import LocalTree
from drupe.sources.locator import open_tree
from drupe.sources.modelscope import ModelScopeTree
from drupe.sources.ollama import OllamaTree
from drupe.sources.urls import check_scheme, redact
from range_server import OllamaModel, RangeServer, Repository

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_path_or_file_address_is_local(tmp_path: Path) -> None:
    (tmp_path / "a b.gguf").write_bytes(b"abc")
    for locator in (str(tmp_path), f"file://{tmp_path}", f"file://localhost{tmp_path}"):
        tree = open_tree(locator, offline=True)
        assert isinstance(tree, LocalTree)
        assert (tree.locator, dict(tree.files())) == (locator, {"a b.gguf": 3})
    selected = open_tree(f"file://{tmp_path}/a%20b.gguf", offline=True)
    assert selected.open("a b.gguf").read(0, 3) == b"abc"


def test_each_kind_of_locator_opens_its_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    model = OllamaModel([("model", b"GGUF", {})])
    with RangeServer() as server:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
        monkeypatch.setenv("DRUPE_OLLAMA_REGISTRY", server.url)
        server.scopes["org/name"] = Repository({"model.safetensors": b"abc"}, COMMIT)
        server.ollama["library/tiny:latest"] = model
        assert isinstance(open_tree("ms:org/name", offline=False), ModelScopeTree)
        remote = open_tree("ollama:tiny", offline=False)
        assert isinstance(remote, OllamaTree)
    (tmp_path / "manifests/registry.ollama.ai/library/tiny").mkdir(parents=True)
    (tmp_path / "manifests/registry.ollama.ai/library/tiny/latest").write_bytes(model.manifest)
    local = open_tree("ollama:tiny", offline=False)
    memory = open_tree("memory://", offline=True)
    assert isinstance(memory, FsTree)
    assert [is_remote(tree) for tree in (remote, local, memory, LocalTree(tmp_path))] == [True, *[False] * 3]


def test_an_existing_path_with_a_colon_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd:name").mkdir()
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_tree("odd:name", offline=True), LocalTree)


def test_network_locators_open_their_trees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with RangeServer() as server:
        server.repositories["org/name"] = Repository({"model.safetensors": b"abc"}, COMMIT)
        server.files["/files/model.safetensors"] = b"abc"
        assert isinstance(open_tree(f"{server.url}/files/model.safetensors", offline=False), HttpTree)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        pages = ("", "/tree/main", "/resolve/main/model.safetensors", f"/blob/{COMMIT}/model.safetensors")
        for locator in ("hf:org/name", *(f"{server.url}/org/name{page}" for page in pages)):
            tree = open_tree(locator, offline=False)
            assert isinstance(tree, HubTree)
            assert (tree.locator, tree.revision, dict(tree.files())) == (
                locator,
                COMMIT,
                {"model.safetensors": 3},
            )


@pytest.mark.parametrize(
    ("locator", "message"),
    [
        (
            "ftp://user:secret@host/key?token=secret",
            r"unknown kind of locator 'ftp'.*hf:ORG/NAME.*https://HOST",
        ),
        ("zip://a::http://user:secret@host/a.zip", r"http:// is not read \(accepted: s3://"),
        ("ms:name", r"not of the form ms:ORG/NAME"),
        ("ollama:a/b/c/d", r"not of the form ollama:"),
        ("ollama:..", r"not of the form ollama:"),
        ("C:\\models\\x", r"Windows path"),
        ("\\\\server\\share", r"Windows path"),
        ("/nowhere/at/all", r"no such file or folder \(accepted: a path"),
        ("org/name", r"write hf:org/name"),
        ("file://elsewhere/a", r"another machine"),
        ("", r"an empty locator"),
        ("a\0b", r"no such file or folder"),
        ("~nobody-of-that-name/x", r"no such file or folder"),
    ],
)
def test_what_cannot_be_opened_says_what_can(locator: str, message: str) -> None:
    with pytest.raises(LocatorError, match=message) as caught:
        open_tree(locator, offline=False)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("locator", ["https://user:secret@example.org/m.gguf?sig=secret", "hf:org/name"])
def test_offline_the_network_is_an_offline_error(
    locator: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OfflineError, match=r"run once without --offline") as caught:
        open_tree(locator, offline=True)
    assert "secret" not in str(caught.value)


NO_SOCKETS = """
import sys
def forbid(event, arguments):
    if event.startswith("socket."):
        print("SOCKET", event, arguments)
sys.addaudithook(forbid)
from drupe.errors import OfflineError
from drupe.sources.locator import open_tree
tree = open_tree("hf:org/name", offline=True)
print(tree.open("config.json").read(0, 2).decode())
for locator in ("hf:org/other", "https://huggingface.co/org/other", "https://example.org/m.gguf"):
    try:
        open_tree(locator, offline=True)
    except OfflineError:
        print("refused")
"""


def test_offline_creates_no_socket_at_all(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(b"{}")
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text(COMMIT)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", NO_SOCKETS],
        env={"HF_HUB_CACHE": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["{}", "refused", "refused", "refused"]


def test_a_redirect_from_https_to_http_is_refused_even_on_this_machine() -> None:
    with pytest.raises(DrupeError, match=r"redirects to plain http"):
        check_scheme("http://127.0.0.1/a", redirected_from="https://example.org/a?sig=secret")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@h/a?x=1&y=2#f", "https://***@h/a?x=***&y=***"),
        ("https://u:p@q@h/a", "https://***@h/a"),
        ("https://h/a@b", "https://h/a@b"),
        ("/a/path?x=1", "/a/path?x=1"),
    ],
)
def test_tokens_are_not_shown(url: str, shown: str) -> None:
    assert redact(url) == shown
