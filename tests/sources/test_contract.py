"""One contract for every tree: the same names, the same bytes, the same errors."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobs import MemoryBlob
from drupe.errors import FormatError, LocatorError, OfflineError, UnsafePathError
from drupe.sources.fs import FsTree
from drupe.sources.http import HttpTree
from drupe.sources.hub import HubTree
from drupe.sources.interface import Blob, Tree
from drupe.sources.local import LocalTree
from drupe.sources.modelscope import ModelScopeTree
from drupe.sources.transfer import Limits
from range_server import RangeServer, Repository

FILES = {
    "LICENSE": b"",
    "config.json": b'{"hidden_size": 64}',
    "model.safetensors": random.Random(1).randbytes(1_500_000),
    "tokenizer.json": random.Random(2).randbytes(300_000),
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LIMITS = Limits(window=4096, gap=4096, request=1 << 16, kept=100_000)
"""Small, so that most reads leave what is kept in memory."""
Spans = list[tuple[int, int]]


def _local(folder: Path, server: RangeServer) -> Tree:
    return LocalTree(folder)


def _selected(folder: Path, server: RangeServer) -> Tree:
    return LocalTree(folder / "model.safetensors")


def _http(folder: Path, server: RangeServer) -> Tree:
    return HttpTree(f"{server.url}/model/model.safetensors", limits=LIMITS)


def _hub(folder: Path, server: RangeServer) -> Tree:
    return HubTree("hf:org/model", limits=LIMITS)


def _cached(folder: Path, server: RangeServer) -> Tree:
    return HubTree("hf:org/cached", offline=True)


def _modelscope(folder: Path, server: RangeServer) -> Tree:
    return ModelScopeTree("ms:org/model", limits=LIMITS)


def _memory(folder: Path, server: RangeServer) -> Tree:
    system = fsspec.filesystem("memory")
    for name, data in FILES.items():
        system.pipe_file(f"/contract/{name}", data)
    return FsTree("memory://contract", limits=LIMITS)


def _zip(folder: Path, server: RangeServer) -> Tree:
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as writer:
        for name, data in FILES.items():
            kind = zipfile.ZIP_STORED if name == "model.safetensors" else zipfile.ZIP_DEFLATED
            writer.writestr(f"in/{name}", data, kind)
    return FsTree(f"zip://in::file://{archive}", limits=LIMITS)


def _kept(online: Tree, offline: Callable[[], Tree]) -> Tree:
    """A tree without connection, after one that read everything."""
    for name, size in online.files().items():
        online.open(name).read(0, size)
    return offline()


def _http_kept(folder: Path, server: RangeServer) -> Tree:
    url = f"{server.url}/model/model.safetensors"
    return _kept(HttpTree(url, limits=LIMITS), lambda: HttpTree(url, offline=True, limits=LIMITS))


def _hub_kept(folder: Path, server: RangeServer) -> Tree:
    online = HubTree("hf:org/model", limits=LIMITS)
    return _kept(online, lambda: HubTree("hf:org/model", offline=True, limits=LIMITS))


def _modelscope_kept(folder: Path, server: RangeServer) -> Tree:
    online = ModelScopeTree("ms:org/model", limits=LIMITS)
    return _kept(online, lambda: ModelScopeTree("ms:org/model", offline=True, limits=LIMITS))


KINDS: dict[str, Callable[[Path, RangeServer], Tree]] = {
    "local": _local,
    "selected": _selected,
    "http": _http,
    "hub": _hub,
    "cached": _cached,
    "modelscope": _modelscope,
    "memory": _memory,
    "zip": _zip,
    "http-kept": _http_kept,
    "hub-kept": _hub_kept,
    "modelscope-kept": _modelscope_kept,
}


@pytest.fixture(scope="module", params=KINDS)
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    folder = tmp_path_factory.mktemp("model")
    cache = tmp_path_factory.mktemp("cache")
    with ExitStack() as stack:
        server = stack.enter_context(RangeServer())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_HUB_CACHE", str(cache))
        patch.setenv("MODELSCOPE_ENDPOINT", server.url)
        patch.setenv("DRUPE_CACHE", str(tmp_path_factory.mktemp("ranges")))
        patch.setenv("DRUPE_CACHE_LIMIT", "100M")
        server.repositories["org/model"] = Repository(dict(FILES), COMMIT)
        server.scopes["org/model"] = Repository(dict(FILES), COMMIT)
        snapshot = cache / "models--org--cached" / "snapshots" / COMMIT
        (cache / "models--org--cached" / "blobs").mkdir(parents=True)
        (cache / "models--org--cached" / "refs").mkdir()
        (cache / "models--org--cached" / "refs" / "main").write_text(COMMIT)
        snapshot.mkdir(parents=True)
        for name, data in FILES.items():
            (folder / name).write_bytes(data)
            server.files[f"/model/{name}"] = data
            (cache / "models--org--cached" / "blobs" / f"hash-{name}").write_bytes(data)
            (snapshot / name).symlink_to(f"../../blobs/hash-{name}")
        yield KINDS[request.param](folder, server)


def test_lists_names_and_sizes_in_order(tree: Tree) -> None:
    assert list(tree.files().items()) == [(name, len(data)) for name, data in sorted(FILES.items())]


def test_a_blob_knows_its_name_and_size(tree: Tree) -> None:
    for name, data in FILES.items():
        blob = tree.open(name)
        assert (blob.name, blob.size, blob.read(0, len(data))) == (name, len(data), data)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_spans_give_the_same_bytes_as_memory(tree: Tree, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(FILES)))
    content = FILES[name]
    starts = st.integers(0, len(content))
    span = starts.flatmap(lambda start: st.tuples(st.just(start), st.integers(0, len(content) - start)))
    near = starts.flatmap(
        lambda start: st.tuples(st.just(start), st.integers(0, min(4096, len(content) - start)))
    )
    spans: Spans = data.draw(st.lists(span | near, max_size=8))
    blob, memory = tree.open(name), MemoryBlob(name, content)
    assert blob.read_many(spans) == memory.read_many(spans)
    assert [blob.read(*each) for each in spans] == memory.read_many(spans)


@pytest.mark.parametrize("span", [(-1, 2), (0, 1_500_001), (1_500_000, 1), (5, -1), (2**62, 2**62)])
def test_a_span_outside_is_a_format_error(tree: Tree, span: tuple[int, int]) -> None:
    blobs: list[Blob] = [tree.open("model.safetensors"), MemoryBlob("m", FILES["model.safetensors"])]
    for blob in blobs:
        with pytest.raises(FormatError, match="1500000"):
            blob.read(*span)
        with pytest.raises(FormatError):
            blob.read_many([(0, 1), span])


@pytest.mark.parametrize(
    "name", ["../secret", "a/../../b", "/etc/passwd", "", ".", "..\\x", "C:/x", "a//b", "a\0b"]
)
def test_a_path_that_escapes_is_refused(tree: Tree, name: str) -> None:
    with pytest.raises(UnsafePathError):
        tree.open(name)


def test_an_absent_file_is_a_locator_error(tree: Tree, request: pytest.FixtureRequest) -> None:
    """Offline, nobody knows whether a web server has a file that was never asked for."""
    unknown = request.node.callspec.id == "http-kept"
    with pytest.raises(OfflineError if unknown else LocatorError, match=r"no such file|not in the cache"):
        tree.open("absent.safetensors")


def test_the_meter_counts_payload_and_requests(tree: Tree, request: pytest.FixtureRequest) -> None:
    before = (tree.meter.bytes_read, tree.meter.requests)
    for start in range(900_000, 1_400_000, 100_000):
        tree.open("model.safetensors").read(start, 1000)
    assert tree.meter.bytes_read - before[0] >= 5000
    is_kept = request.node.callspec.id.endswith("-kept")
    assert (tree.meter.requests == before[1] == 0) if is_kept else (tree.meter.requests > 0)
