"""A second run: one question per file, no byte twice, never two versions; and then none at all, offline."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from drupe import workflows
from drupe.errors import LocatorError, OfflineError, SourceError
from drupe.sources.http import HttpTree
from drupe.sources.hub import HubTree
from drupe.sources.paths import SIBLINGS
from drupe.sources.transfer import Limits
from range_server import Mode, RangeServer, Repository

DATA = random.Random(5).randbytes(3 << 20)
OTHER = random.Random(6).randbytes(3 << 20)
QUICK = Limits(backoff_s=0.0)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEXT = "89abcdef0123456789abcdef0123456789abcdef"
SPANS = [(0, 9), (1_000_000, 4096), (2_000_000, 100), (2_900_000, 50_000)]
FILE = "/m/model.safetensors"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RangeServer]:
    with RangeServer() as running:
        running.files[FILE] = DATA
        monkeypatch.setenv("DRUPE_CACHE", str(tmp_path / "drupe"))
        monkeypatch.delenv("DRUPE_CACHE_LIMIT")
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running


def _read(server: RangeServer, *, offline: bool = False, limits: Limits = QUICK) -> list[bytes]:
    tree = HttpTree(f"{server.url}{FILE}", offline=offline, limits=limits)
    return tree.open("model.safetensors").read_many(SPANS)


def _parts(data: bytes) -> list[bytes]:
    return [data[start : start + length] for start, length in SPANS]


def test_a_second_run_asks_once_and_receives_nothing(server: RangeServer) -> None:
    assert _read(server) == _parts(DATA)
    first = len(server.log)
    assert _read(server) == _parts(DATA)
    (question,) = server.log[first:]
    assert question.headers["if-none-match"].startswith('"')


def test_only_what_is_missing_is_fetched(server: RangeServer) -> None:
    _read(server)
    before = len(server.log)
    blob = HttpTree(f"{server.url}{FILE}", limits=QUICK).open("model.safetensors")
    more = [*SPANS, (1_500_000, 10)]
    assert blob.read_many(more) == [DATA[start : start + length] for start, length in more]
    assert [request.range for request in server.log[before + 1 :]] == [(1_500_000, 1_500_009)]


def test_a_run_that_was_cut_short_is_resumed(server: RangeServer) -> None:
    limits = replace(QUICK, request=1 << 18, gap=0, connections=1, retries=0, kept=0)
    blob = HttpTree(f"{server.url}{FILE}", limits=limits).open("model.safetensors")
    assert blob.read(0, 1 << 20) == DATA[: 1 << 20]
    server.failures[FILE] = [500] * 9
    with pytest.raises(SourceError, match=r"HTTP 500"):
        blob.read(1 << 20, 1 << 18)
    server.failures.clear()
    before = len(server.log)
    again = HttpTree(f"{server.url}{FILE}", limits=limits).open("model.safetensors")
    assert again.read(0, 2 << 20) == DATA[: 2 << 20]
    starts = sorted((request.range or (0, 0))[0] for request in server.log[before + 1 :])
    assert starts == [(4 + place) << 18 for place in range(4)]


def test_a_new_version_replaces_the_kept_one(server: RangeServer, tmp_path: Path) -> None:
    _read(server)
    server.files[FILE] = OTHER
    assert _read(server) == _parts(OTHER)
    assert _read(server, offline=True) == _parts(OTHER)
    kept = sum(path.stat().st_size for path in (tmp_path / "drupe").rglob("*") if path.is_file())
    assert kept < 1 << 20  # the old version is gone


def test_a_version_that_changes_during_a_run_is_an_error_not_a_mixture(server: RangeServer) -> None:
    _read(server)
    blob = HttpTree(f"{server.url}{FILE}", limits=QUICK).open("model.safetensors")
    assert blob.read(0, 9) == DATA[:9]
    server.files[FILE] = OTHER
    assert (
        blob.read(1_000_000, 10) == DATA[1_000_000:1_000_010]
    )  # kept, of the version that was there at first
    with pytest.raises(SourceError, match=r"changed while it was read \(start again\)"):
        blob.read(1_500_000, 10)


@pytest.mark.parametrize("mode", [Mode.NO_ETAG, Mode.WEAK_CHANGING, Mode.CHANGING])
def test_without_a_lasting_strong_validator_nothing_is_reused(server: RangeServer, mode: Mode) -> None:
    server.modes[FILE] = mode
    for data in (DATA, OTHER):
        server.files[FILE] = data
        blob = HttpTree(f"{server.url}{FILE}", limits=QUICK).open("model.safetensors")
        assert blob.read(0, 100) == data[:100]
    if mode is not Mode.CHANGING:
        with pytest.raises(OfflineError):
            _read(server, offline=True)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (Mode.NOT_MODIFIED_OTHER, r"unchanged and states another entity tag"),
        (Mode.WRONG_RANGE, r"the server answers with"),
    ],
)
def test_a_lie_about_the_kept_version_is_a_source_error(
    server: RangeServer, mode: Mode, message: str
) -> None:
    _read(server)
    server.modes[FILE] = mode
    server.files[FILE] = OTHER if mode is Mode.WRONG_RANGE else DATA
    with pytest.raises(SourceError, match=message):
        _read(server)


def test_unchanged_is_no_answer_to_a_first_question(server: RangeServer) -> None:
    server.modes[FILE] = Mode.NOT_MODIFIED
    with pytest.raises(SourceError, match=r"HTTP 304"):
        _read(server)


def test_a_server_that_cannot_say_unchanged_costs_one_window(server: RangeServer) -> None:
    _read(server)
    server.modes[FILE] = Mode.IGNORE_CONDITION
    before = len(server.log)
    assert _read(server) == _parts(DATA)
    assert [request.range for request in server.log[before:]] == [(0, QUICK.window - 1)]


def test_offline_reads_what_was_read_and_nothing_else(server: RangeServer) -> None:
    server.files["/m/config.json"] = b"{}"
    online = HttpTree(f"{server.url}{FILE}", limits=QUICK)
    names = list(online.files())
    _read(server)
    server.log.clear()
    tree = HttpTree(f"{server.url}{FILE}", offline=True)
    assert list(tree.files()) == names == ["config.json", "model.safetensors"]
    assert _read(server, offline=True) == _parts(DATA)
    with pytest.raises(LocatorError, match=r"no such file"):
        tree.open("README.md")  # the server was asked for it, and had none
    for read in (lambda: tree.open("extra.json"), lambda: tree.open("model.safetensors").read(1_500_000, 1)):
        with pytest.raises(OfflineError, match=r"not in the cache.*without --offline"):
            read()
    assert server.log == []


def test_the_password_is_no_part_of_what_is_kept(server: RangeServer, tmp_path: Path) -> None:
    HttpTree(server.url.replace("//", "//user:s3cret@") + FILE).open("model.safetensors").read(0, 1)
    files = [path for path in (tmp_path / "drupe").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"s3cret" in path.read_bytes() or "s3cret" in str(path)]


# -- the hub: the commit is the version ------------------------------------------------------------------------


def test_of_a_pinned_commit_only_the_listing_is_asked_again(server: RangeServer) -> None:
    server.repositories["org/name"] = Repository({"model.safetensors": DATA, "config.json": b"{}"}, COMMIT)
    for _ in range(2):
        server.log.clear()
        tree = HubTree("hf:org/name", limits=QUICK)
        assert tree.open("config.json").read(0, 2) == b"{}"
        assert tree.open("model.safetensors").read_many(SPANS) == _parts(DATA)
    assert server.paths() == ["/api/models/org/name/revision/main?blobs=true"]


def test_a_new_commit_is_read_anew(server: RangeServer) -> None:
    server.repositories["org/name"] = Repository({"model.safetensors": DATA}, COMMIT)
    HubTree("hf:org/name", limits=QUICK).open("model.safetensors").read_many(SPANS)
    server.repositories["org/name"] = Repository({"model.safetensors": OTHER}, NEXT)
    tree = HubTree("hf:org/name", limits=QUICK)
    assert (tree.revision, tree.open("model.safetensors").read_many(SPANS)) == (NEXT, _parts(OTHER))


def test_another_mirror_of_a_commit_may_state_another_tag(server: RangeServer) -> None:
    """The hub moves files between stores: their entity tags change, the commit does not."""
    server.repositories["org/name"] = Repository({"model.safetensors": DATA}, COMMIT)
    HubTree("hf:org/name", limits=QUICK).open("model.safetensors").read_many(SPANS)
    server.modes["/cdn/org/name/model.safetensors"] = Mode.OTHER_ETAG
    blob = HubTree("hf:org/name", limits=QUICK).open("model.safetensors")
    assert blob.read_many([*SPANS, (1_500_000, 8)])[-1] == DATA[1_500_000:1_500_008]
    server.modes["/cdn/org/name/model.safetensors"] = Mode.CHANGING
    with pytest.raises(SourceError, match=r"changed while it was read"):
        blob.read(1_700_000, 8)


def test_offline_a_repository_is_what_the_last_run_saw(server: RangeServer) -> None:
    server.repositories["org/name"] = Repository({"model.safetensors": DATA, "config.json": b"{}"}, COMMIT)
    HubTree("hf:org/name", limits=QUICK).open("model.safetensors").read_many(SPANS)
    server.log.clear()
    tree = HubTree("hf:org/name", offline=True)
    assert (tree.revision, list(tree.files())) == (COMMIT, ["config.json", "model.safetensors"])
    assert tree.open("model.safetensors").read_many(SPANS) == _parts(DATA)
    with pytest.raises(OfflineError, match=r"not in the cache"):
        tree.open("config.json").read(0, 1)
    with pytest.raises(OfflineError, match=r"org/name at v2 is not in the cache"):
        HubTree("hf:org/name@v2", offline=True)
    assert server.log == []


# -- end to end ------------------------------------------------------------------------------------------------

MODELS = Path(__file__).parents[1] / "models"


@pytest.mark.parametrize("kind", ["hf", "ms", "http"])
def test_a_comparison_is_repeated_without_the_network(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
    for name in ("r0", "r0_ft"):
        files = {path.name: path.read_bytes() for path in (MODELS / name).iterdir()}
        server.repositories[f"org/{name}"] = server.scopes[f"org/{name}"] = Repository(files, COMMIT)
        server.files |= {f"/models/x/{name}/{file}": data for file, data in files.items()}
    pattern = {"hf": "hf:org/{}", "ms": "ms:org/{}", "http": server.url + "/models/x/{}/model.safetensors"}[
        kind
    ]
    suspect, source = pattern.format("r0_ft"), pattern.format("r0")
    reports, requests = [], []
    for offline in (False, False, True):
        server.log.clear()
        report = workflows.compare(suspect, source, offline=offline)
        coverage = report.pop("coverage")
        assert isinstance(coverage, dict)
        assert coverage["requests"] == len(server.log)
        reports.append(report)
        requests.append([path for path in server.paths() if not path.startswith("/api/")])
    assert reports[0] == reports[1] == reports[2]
    assert requests[0]
    # of a web server, each file is asked for once more, the absent ones included; of a commit, none
    assert len(requests[1]) == (2 * len({*SIBLINGS, "model.safetensors"}) if kind == "http" else 0)
    assert requests[2] == []
