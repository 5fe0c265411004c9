"""What is kept on disk: right bytes or none, bounded, shared between processes."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drupe.errors import UsageError
from drupe.sources.cache import RangeCache, open_cache

DATA = random.Random(7).randbytes(5000)
SPANS = st.tuples(st.integers(0, 4999), st.integers(1, 800))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder))


@settings(max_examples=60, deadline=None)
@given(puts=st.lists(SPANS, max_size=8), gets=st.lists(SPANS, min_size=1, max_size=8))
def test_any_span_is_right_or_missing(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[int, int]], gets: list[tuple[int, int]]
) -> None:
    cache = RangeCache(tmp_path_factory.mktemp("cache"), 1 << 20)
    spans = cache.spans("https://host/a", "1")
    held: set[int] = set()
    for start, length in puts:
        spans.put(start, DATA[start : start + length])
        held |= set(range(start, min(start + length, len(DATA))))
    for reader in (spans, cache.spans("https://host/a", "1")):  # the writer's view, and that of the next run
        for start, length in gets:
            stop = min(start + length, len(DATA))
            expected = DATA[start:stop] if held >= set(range(start, stop)) else None
            assert reader.get(start, stop) == expected


def test_versions_and_addresses_never_meet(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 1 << 20)
    cache.spans("https://host/a", '10 "1"').put(0, b"first")
    assert cache.spans("https://host/a", '10 "2"').get(0, 5) is None
    assert cache.spans("https://host/b", '10 "1"').get(0, 5) is None
    cache.drop("https://host/a", '10 "1"')
    assert cache.spans("https://host/a", '10 "1"').get(0, 5) is None


@pytest.mark.parametrize("damage", [b"", b"firsT", b"firs", b"first!"])
def test_a_damaged_span_is_a_miss_and_can_be_replaced(tmp_path: Path, damage: bytes) -> None:
    cache = RangeCache(tmp_path, 1 << 20)
    cache.spans("a", "1").put(0, b"first")
    (file,) = _files(tmp_path)
    file.write_bytes(damage)
    again = cache.spans("a", "1")
    assert again.get(0, 5) is None
    again.put(0, b"first")
    assert again.get(0, 5) == b"first"


@pytest.mark.parametrize("record", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"a": 1e999}'])
def test_a_damaged_record_is_a_miss_or_plain_data(tmp_path: Path, record: bytes) -> None:
    cache = RangeCache(tmp_path, 1 << 20)
    cache.remember("a", {"size": 1})
    assert cache.recall("a") == {"size": 1}
    (file,) = _files(tmp_path)
    file.write_bytes(record)
    assert cache.recall("a") in (None, {"a": float("inf")})


def test_the_limit_holds_and_the_longest_unused_goes_first(tmp_path: Path) -> None:
    limit = 80_000
    for number in range(40):
        cache = RangeCache(tmp_path, limit)  # a new one: each run counts anew
        cache.remember(f"a{number}", {})
        cache.spans(f"a{number}", "1").put(0, DATA)
        assert cache.recall("a0") is not None  # used in every run
        for shard in tmp_path.iterdir():
            for entry in shard.iterdir():
                moment = entry.stat().st_mtime - 10  # all of this happened earlier
                os.utime(entry, (moment, moment))
        assert _bytes(tmp_path) <= limit
    cache = RangeCache(tmp_path, limit)
    assert cache.spans("a0", "1").get(0, 5000) == DATA
    assert cache.spans("a1", "1").get(0, 5000) is None
    assert cache.spans("a39", "1").get(0, 5000) == DATA


def test_what_exceeds_an_eighth_of_the_limit_is_not_kept(tmp_path: Path) -> None:
    spans = RangeCache(tmp_path, 8000).spans("a", "1")
    spans.put(0, DATA[:1001])
    assert spans.get(0, 1001) is None
    assert _bytes(tmp_path) == 0


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    RangeCache(tmp_path / "ranges", 1 << 20).remember("a", {})
    assert stat.S_IMODE((tmp_path / "ranges").stat().st_mode) == 0o700


def test_a_cache_that_cannot_be_written_is_a_miss(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = RangeCache(tmp_path / "file" / "ranges", 1 << 20)
    cache.remember("a", {})
    cache.spans("a", "1").put(0, b"x")
    assert (cache.recall("a"), cache.spans("a", "1").get(0, 1)) == (None, None)


WORKER = """
import random, sys
from pathlib import Path
from drupe.sources.cache import RangeCache
data = random.Random(7).randbytes(5000)
rng, hits = random.Random(int(sys.argv[2])), 0
for _ in range(25):
    cache = RangeCache(Path(sys.argv[1]), 120_000)
    spans = cache.spans(f"a{rng.randrange(12)}", "1")
    cache.remember("shared", {"by": sys.argv[2]})
    assert cache.recall("shared") is None or cache.recall("shared").keys() == {"by"}
    for _ in range(8):
        start = rng.randrange(4000)
        stop = start + rng.randrange(1, 1000)
        found = spans.get(start, stop)
        assert found is None or found == data[start:stop]
        hits += found is not None
        spans.put(start, data[start:stop])
print(hits)
"""


def test_several_processes_share_it_while_it_is_trimmed(tmp_path: Path) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(number)], stdout=subprocess.PIPE, text=True
        )
        for number in range(4)
    ]
    hits = [int(run.communicate()[0] or -1) for run in runs]
    assert all(run.returncode == 0 for run in runs)
    assert sum(hits) > 0
    assert _bytes(tmp_path) <= 2 * 120_000


def test_the_environment_says_where_and_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DRUPE_CACHE", raising=False)
    monkeypatch.delenv("DRUPE_CACHE_LIMIT")
    kept = open_cache()
    assert kept is open_cache() is not None
    kept.remember("a", {})
    assert _files(tmp_path / "drupe" / "ranges")
    monkeypatch.setenv("DRUPE_CACHE_LIMIT", "0")
    assert open_cache() is None
    monkeypatch.setenv("DRUPE_CACHE_LIMIT", "2 stones")
    with pytest.raises(UsageError, match=r"DRUPE_CACHE_LIMIT='2 stones' is no size .*500M or 2G"):
        open_cache()
