"""Ranges over a real connection: how many requests, and what a wrong server can do."""

from __future__ import annotations

import gc
import random
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from time import monotonic

import pytest

from drupe.errors import DrupeError, LocatorError, SourceError
from drupe.sources.http import HttpTree
from drupe.sources.transfer import Limits
from range_server import Mode, RangeServer

DATA = random.Random(3).randbytes(3 << 20)
QUICK = Limits(backoff_s=0.0)


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with RangeServer() as running:
        running.files["/m/model.safetensors"] = DATA
        yield running
        gc.collect()


def _tree(server: RangeServer, limits: Limits = QUICK) -> HttpTree:
    return HttpTree(f"{server.url}/m/model.safetensors", limits=limits)


# -- how many requests ---------------------------------------------------------------------------------------


def test_a_header_costs_one_request(server: RangeServer) -> None:
    blob = _tree(server).open("model.safetensors")
    assert (blob.size, blob.read(0, 8), blob.read(8, 200_000)) == (len(DATA), DATA[:8], DATA[8:200_008])
    assert [request.range for request in server.log] == [(0, (256 << 10) - 1)]


def test_a_small_file_costs_one_request(server: RangeServer) -> None:
    server.files["/m/config.json"] = b"{}" * 1000
    tree = _tree(server)
    assert tree.open("config.json").read(500, 1500) == b"{}" * 750
    assert (tree.meter.requests, tree.meter.bytes_read) == (1, 2000)


def test_reading_on_from_the_beginning_costs_logarithmically_many_requests(server: RangeServer) -> None:
    blob = _tree(server, replace(QUICK, window=1 << 12)).open("model.safetensors")
    pieces = [blob.read(start, 1 << 10) for start in range(0, len(DATA), 1 << 10)]
    assert b"".join(pieces) == DATA
    assert len(server.log) == 1 + 10  # 4 KiB doubled ten times exceeds 3 MiB


def test_near_spans_share_a_request_and_far_ones_do_not(server: RangeServer) -> None:
    blob = _tree(server, replace(QUICK, gap=1000)).open("model.safetensors")
    blob.read(0, 1)
    spans = [(2_000_000, 10), (1_000_000, 10), (1_001_010, 10), (1_002_021, 10), (5, 5)]
    assert blob.read_many(spans) == [DATA[start : start + length] for start, length in spans]
    ranges = sorted(request.range or (0, 0) for request in server.log[1:])
    assert ranges == [(1_000_000, 1_001_019), (1_002_021, 1_002_030), (2_000_000, 2_000_009)]


def test_later_ranges_are_bound_to_the_first_version(server: RangeServer) -> None:
    _tree(server).open("model.safetensors").read(1_000_000, 10)
    assert "if-range" not in server.log[0].headers
    assert server.log[1].headers["if-range"].startswith('"')


def test_a_large_read_is_cut_into_requests_of_bounded_size(server: RangeServer) -> None:
    limits = replace(QUICK, request=1 << 19, kept=1 << 18)
    assert _tree(server, limits).open("model.safetensors").read(0, len(DATA)) == DATA
    lengths = [request.range[1] - request.range[0] + 1 for request in server.log if request.range]
    assert max(lengths) <= 1 << 19
    assert len(lengths) == 1 + 6


def test_56_blocks_of_4_shards_cost_56_requests_and_4_heads(server: RangeServer) -> None:
    row, shards = 8192, [f"model-{number:05}-of-00004.safetensors" for number in range(1, 5)]
    mentions = ", ".join(f'"t{number}": "{shard}"' for number, shard in enumerate(shards))
    server.files["/m/model.safetensors.index.json"] = ('{"weight_map": {' + mentions + "}}").encode()
    content = DATA * 4
    for shard in shards:
        server.files[f"/m/{shard}"] = content
    tree = HttpTree(f"{server.url}/m/model.safetensors.index.json", limits=QUICK)
    for shard in shards:
        blob = tree.open(shard)
        blob.read(8, 10_000)
        blocks = [(400_000 + block * 800_000, row) for block in range(14)]
        spans = [(start + line * row, 4096) for start, _ in blocks for line in range(8)]
        assert blob.read_many(spans) == [content[start : start + length] for start, length in spans]
    assert tree.meter.requests == len(server.log) == 56 + 4
    assert len({request.port for request in server.log}) <= QUICK.connections


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_an_index_lists_its_shards_and_the_siblings(suffix: str, server: RangeServer) -> None:
    text = '{"weight_map": {"a": "x1.SUFFIX", "b": "../x2.SUFFIX", "c": "absent.SUFFIX"}}'
    index = text.replace("SUFFIX", suffix).encode()
    server.files |= {f"/m/model.{suffix}.index.json": index, f"/m/x1.{suffix}": DATA[:1000]}
    server.files["/m/README.md"] = b"card"
    tree = HttpTree(f"{server.url}/m/model.{suffix}.index.json", limits=QUICK)
    assert tree.files() == {
        "README.md": 4,
        f"model.{suffix}.index.json": len(index),
        f"x1.{suffix}": 1000,
    }
    before = len(server.log)
    assert tree.open(f"x1.{suffix}").read(0, 1000) == DATA[:1000]
    with pytest.raises(LocatorError):
        tree.open("LICENSE")
    assert len(server.log) == before == tree.meter.requests


def test_a_page_instead_of_a_sibling_is_no_sibling(server: RangeServer) -> None:
    server.files["/m/config.json"] = b"<html>Welcome</html>"
    server.modes["/m/config.json"] = Mode.PAGE
    tree = _tree(server)
    assert list(tree.files()) == ["model.safetensors"]
    with pytest.raises(LocatorError):
        tree.open("config.json")


def test_the_query_belongs_to_the_selected_file_alone(server: RangeServer) -> None:
    server.files["/m/config.json"] = b"{}"
    tree = HttpTree(f"{server.url}/m/model.safetensors?token=secret", limits=QUICK)
    assert list(tree.files()) == ["config.json", "model.safetensors"]
    assert [path for path in server.paths() if "secret" in path] == ["/m/model.safetensors?token=secret"]
    assert tree.locator == f"{server.url}/m/model.safetensors?token=***"


# -- redirects and credentials -------------------------------------------------------------------------------


def test_a_redirect_is_followed_once_and_remembered(server: RangeServer) -> None:
    server.redirects["/m/model.safetensors"] = "/cdn/blob?signature=1"
    server.files["/cdn/blob"] = DATA
    blob = _tree(server).open("model.safetensors")
    for start in (1_000_000, 2_000_000):
        assert blob.read(start, 10) == DATA[start : start + 10]
    assert server.paths() == ["/m/model.safetensors", *["/cdn/blob?signature=1"] * 3]


def test_an_expired_redirect_is_asked_for_again(server: RangeServer) -> None:
    server.redirects["/m/model.safetensors"] = "/cdn/blob?signature=1"
    server.files["/cdn/blob"] = DATA
    blob = _tree(server).open("model.safetensors")
    server.expired.add("/cdn/blob?signature=1")
    server.redirects["/m/model.safetensors"] = "/cdn/blob?signature=2"
    assert blob.read(1_000_000, 10) == DATA[1_000_000:1_000_010]


def test_the_password_goes_to_its_own_host_only(server: RangeServer) -> None:
    with RangeServer() as other:
        other.files["/m/model.safetensors"] = DATA
        server.redirects["/m/model.safetensors"] = f"{other.url}/m/model.safetensors"
        tree = HttpTree(server.url.replace("//", "//user:p%40ss@") + "/m/model.safetensors", limits=QUICK)
        tree.open("model.safetensors")
        expected = "Basic " + b64encode(b"user:p@ss").decode()
        assert server.log[0].headers["authorization"] == expected
        assert "authorization" not in other.log[0].headers
    assert "user" not in tree.locator
    assert "p%40ss" not in tree.locator


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/m/model.safetensors", r"more than 5 redirects"),
        ("http://192.0.2.1/model", r"plain http is refused"),
        ("ftp://127.0.0.1/model", r"malformed address"),
        ("http://[::1", r"malformed address"),
    ],
)
def test_a_bad_redirect_is_refused(server: RangeServer, target: str, message: str) -> None:
    server.redirects["/m/model.safetensors"] = target
    with pytest.raises(SourceError, match=message):
        _tree(server).open("model.safetensors")


# -- refusals and failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "requests"),
    [(404, LocatorError, 1), (401, SourceError, 1), (403, SourceError, 1), (418, SourceError, 1)],
)
def test_a_refusal_is_final(server: RangeServer, status: int, kind: type[DrupeError], requests: int) -> None:
    server.failures["/m/model.safetensors"] = [status] * 9
    with pytest.raises(kind, match=r"HTTP 40[134]|HTTP 418|no such file"):
        _tree(server).open("model.safetensors")
    assert len(server.log) == requests


@pytest.mark.parametrize("statuses", [[429], [500, 503], [502, 504, 429]])
def test_a_busy_server_is_asked_again(server: RangeServer, statuses: list[int]) -> None:
    server.failures["/m/model.safetensors"] = list(statuses)
    assert _tree(server).open("model.safetensors").read(0, 9) == DATA[:9]
    assert len(server.log) == len(statuses) + 1


def test_a_server_that_stays_busy_is_given_up(server: RangeServer) -> None:
    server.failures["/m/model.safetensors"] = [500] * 9
    with pytest.raises(SourceError, match=r"HTTP 500, 4 attempts"):
        _tree(server).open("model.safetensors")
    assert len(server.log) == 4


@pytest.mark.parametrize("wait", ["3600", "9" * 5000, "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_server_that_asks_for_a_long_pause_is_not_waited_for(server: RangeServer, wait: str) -> None:
    server.failures["/m/model.safetensors"] = [(429, {"Retry-After": wait})]
    with pytest.raises(SourceError, match=r"HTTP 429, and the server asks to wait .* \(.*try again later"):
        _tree(server).open("model.safetensors")
    assert len(server.log) == 1


@pytest.mark.parametrize("wait", ["1", "soon", "-5", "Fri, 31 Dec 1999 23:59:59 GMT"])
def test_a_short_pause_is_kept(server: RangeServer, wait: str) -> None:
    server.failures["/m/model.safetensors"] = [(429, {"Retry-After": wait})]
    began = monotonic()
    assert _tree(server).open("model.safetensors").read(0, 9) == DATA[:9]
    assert monotonic() - began >= (1.0 if wait == "1" else 0.0)


def test_an_unreachable_server_is_a_source_error(server: RangeServer) -> None:
    with RangeServer() as gone:
        url = gone.url
    with pytest.raises(SourceError, match=r"ConnectError"):
        HttpTree(f"{url}/m/model.safetensors?key=secret").open("model.safetensors")


def test_a_file_cut_short_once_is_fetched_again(server: RangeServer) -> None:
    server.modes["/m/model.safetensors"] = Mode.TRUNCATED_ONCE
    assert _tree(server).open("model.safetensors").read(0, 9) == DATA[:9]
    assert len(server.log) == 2


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (Mode.WRONG_RANGE, r"asked for bytes 0-262143, the server answers with 'bytes 1-262144/3145728'"),
        (Mode.NO_CONTENT_RANGE, r"Content-Range is ''"),
        (Mode.WRONG_LENGTH, r"Content-Length 3 for a range of 262144 bytes"),
        (Mode.TRUNCATED, r"4 attempts"),
        (Mode.COMPRESSED, r"compresses"),
        (Mode.ENDLESS, r"sends more than 67108864 bytes"),
    ],
)
def test_a_lie_is_a_source_error_that_says_which(server: RangeServer, mode: Mode, message: str) -> None:
    server.modes["/m/model.safetensors"] = mode
    with pytest.raises(SourceError, match=message):
        _tree(server).open("model.safetensors")


@pytest.mark.parametrize("mode", [Mode.CHANGING, Mode.WEAK_CHANGING, Mode.CHANGING_SIZE])
def test_a_file_that_changes_in_between_is_a_source_error(server: RangeServer, mode: Mode) -> None:
    server.modes["/m/model.safetensors"] = mode
    blob = _tree(server).open("model.safetensors")
    with pytest.raises(SourceError, match=r"changed while it was read"):
        blob.read(1_000_000, 10)


@pytest.mark.parametrize("mode", [Mode.IGNORE_RANGE, Mode.CHUNKED])
def test_a_server_without_ranges_is_read_whole_once(server: RangeServer, mode: Mode) -> None:
    server.modes["/m/model.safetensors"] = mode
    blob = _tree(server).open("model.safetensors")
    assert blob.read_many([(1_000_000, 10), (3, 4)]) == [DATA[1_000_000:1_000_010], DATA[3:7]]
    assert (blob.size, len(server.log)) == (len(DATA), 1)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (Mode.IGNORE_RANGE, r"ignores range requests and the file has 3145728 bytes"),
        (Mode.CHUNKED, r"more than"),
    ],
)
def test_a_large_file_without_ranges_is_refused(server: RangeServer, mode: Mode, message: str) -> None:
    server.modes["/m/model.safetensors"] = mode
    tree = _tree(server, replace(QUICK, unranged=1 << 20))
    with pytest.raises(SourceError, match=message):
        tree.open("model.safetensors")
    assert tree.meter.bytes_read <= 2 << 20


def test_a_drip_ends_at_the_deadline(server: RangeServer) -> None:
    server.modes["/m/model.safetensors"] = Mode.DRIP
    with pytest.raises(SourceError, match=r"no complete answer within"):
        _tree(server, replace(QUICK, deadline_s=0.3, slowest=1 << 40)).open("model.safetensors")


def test_silence_is_a_source_error(server: RangeServer) -> None:
    server.modes["/m/model.safetensors"] = Mode.HANG
    with pytest.raises(SourceError, match=r"ReadTimeout"):
        _tree(server, replace(QUICK, silence_s=0.2)).open("model.safetensors")


def test_an_empty_file_is_empty(server: RangeServer) -> None:
    server.files["/m/model.safetensors"] = b""
    blob = _tree(server).open("model.safetensors")
    assert (blob.size, blob.read(0, 0)) == (0, b"")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://example.org/model.safetensors", r"plain http is refused"),
        ("https://example.org/folder/", r"names no file"),
        ("https://example.org:port/a", r"not a valid URL"),
        ("https:///a", r"with a host"),
        ("https://example.org/%2e%2e", r"names no file"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_a_request(url: str, message: str) -> None:
    with pytest.raises(DrupeError, match=message):
        HttpTree(url)


def test_plain_http_is_accepted_from_the_configured_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example/")
    assert HttpTree("http://mirror.example/a/m.gguf").selected == "m.gguf"
