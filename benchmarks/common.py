"""Cold processes, and what the kernel counted of them."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MIB = 1 << 20
PAGE = mmap.PAGESIZE
ROOT = Path(__file__).resolve().parent.parent
PYTHON = Path(sys.executable)
DRUPE = PYTHON.with_name("drupe")


def files_of(folder: Path) -> list[Path]:
    """Every file below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def drop_cache(folder: Path) -> None:
    """Ask the kernel to forget the pages of these files (clean ones are dropped at once)."""
    for path in files_of(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_bytes(folder: Path) -> int:
    """Bytes of these files that lie in the page cache, by mincore(2): a read of a hole counts as well."""
    return sum(_resident(path) for path in files_of(folder))


_LIBC = ctypes.CDLL(None, use_errno=True)


def _resident(path: Path) -> int:
    size = path.stat().st_size
    if not size:
        return 0
    pages = -(-size // PAGE)
    found = (ctypes.c_ubyte * pages)()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE) as view,
    ):
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        if _LIBC.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), found):
            raise OSError(ctypes.get_errno(), "mincore")
    return PAGE * int((np.frombuffer(found, np.uint8) & 1).sum())


@dataclass(frozen=True, slots=True)
class Run:
    """One process. ``read_calls``: bytes that read system calls delivered (rchar); ``rss``: its peak, bytes."""

    code: int
    wall: float
    cpu: float
    rss: int
    read_calls: int
    output: bytes
    errors: bytes


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end, its modules compiled (a user's second start)."""
    names = {**os.environ, **(environment or {})}
    names.pop("PYTHONDONTWRITEBYTECODE", None)
    names.setdefault("PYTHONPYCACHEPREFIX", str(Path(tempfile.gettempdir()) / "drupe-bench-pycache"))
    arguments = [str(part) for part in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begin = time.perf_counter()
        process = subprocess.Popen(arguments, env=names, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        wall = time.perf_counter() - begin
        delivered = _delivered(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        cpu = usage.ru_utime + usage.ru_stime
        return Run(process.returncode, wall, cpu, usage.ru_maxrss << 10, delivered, out.read(), err.read())


def _delivered(pid: int) -> int:
    """rchar of a process that ended and was not yet waited for."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise OSError("no rchar in /proc/PID/io")


def median_run(runs: Sequence[Run]) -> tuple[float, float, int]:
    """Medians of wall seconds, CPU seconds and peak memory."""
    return (
        statistics.median(one.wall for one in runs),
        statistics.median(one.cpu for one in runs),
        int(statistics.median(one.rss for one in runs)),
    )


def machine() -> str:
    """One line: processor, cores, memory, system, Python, numpy; the load tells how noisy wall times are."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, numpy {np.__version__}, load {os.getloadavg()[0]:.1f}"
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: what, target, measured, and whether it is met."""

    what: str
    target: str
    measured: str
    met: bool


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| what | target | measured | met |", "|---|---|---|---|"]
    lines += [f"| {r.what} | {r.target} | {r.measured} | {'yes' if r.met else '**no**'} |" for r in rows]
    return "\n".join(lines)
