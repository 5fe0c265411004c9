"""Fuzz every reader: damaged and lying files may only raise Drupe's own errors, soon, in little memory.

    python benchmarks/fuzz.py --seconds 600            # CPU seconds for each reader; both kinds of mutation
    python benchmarks/fuzz.py --only torch gguf --seconds 30 --seed 7

Seeds are the small files of the tests. Half of the cases are byte-level (flips, extreme integers, cuts, insertions,
moved pieces), half know the container: values inside the JSON header of a safetensors file, inside an entry of an
archive (repacked with right checksums), inside a configuration or tokenizer. A case is opened and some windows of
some tensors are read, as a comparison would. A finding is any other exception, more than 2 s of CPU, or more memory
than 4 x the size + 100 MB. Findings are kept with --keep FOLDER.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from common import ROOT, machine

sys.path.insert(0, str(ROOT / "tests"))
from blobs import MemoryBlob
from drupe.errors import DrupeError, LocatorError
from drupe.model import Block, open_model
from drupe.readers.interface import Absent, Window
from drupe.sources.interface import Meter

TESTS = ROOT / "tests"
SECONDS, MEMORY = 2.0, 100 << 20
EXTREMES = (
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    32767,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**64 - 1,
)

Folder = dict[str, bytes]


@dataclass
class MemoryTree:
    """A model folder that lives in memory."""

    content: Folder
    locator: str = "fuzz"
    revision: str | None = None
    selected: str | None = None
    meter: Meter = field(default_factory=Meter)

    def files(self) -> Mapping[str, int]:
        return {name: len(data) for name, data in sorted(self.content.items())}

    def open(self, name: str) -> MemoryBlob:
        if name not in self.content:
            raise LocatorError("no such file", where=name)
        return MemoryBlob(name, self.content[name])


class LateError(Exception):
    """More CPU time than a bad file may cost."""


def _read(folder: Path) -> Folder:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _each(folder: str, pattern: str, name: str | None = None) -> list[Folder]:
    return [
        {name or path.name: path.read_bytes()} for path in sorted((TESTS / "readers" / folder).glob(pattern))
    ]


def seeds() -> dict[str, list[Folder]]:
    """Reader -> small valid folders."""
    from hostile_files import save_small
    from readers.test_reader_contract import WRITERS

    found: dict[str, list[Folder]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, write in WRITERS.items():
            folder = Path(temporary) / name
            folder.mkdir()
            write(folder)
            found[name] = [_read(folder)]
        found["whole folder"] = [_read(save_small(Path(temporary) / "small"))]
    found["torch"] = [*_each("torch_files", "*.pt"), *_each("torch_files", "*.ckpt")]
    found["quantised"] = _each("quantised_files", "*.safetensors", "model.safetensors")
    found["flax"] = _each("format_files", "*.msgpack", "flax_model.msgpack")
    found["ctranslate2 files"] = _each("format_files", "ctranslate2*.bin", "model.bin")
    plain = {
        name: data
        for name, data in found["whole folder"][0].items()
        if name.endswith((".safetensors", ".json"))
    }
    found["beside the weights"] = [
        {**plain, "optimizer.pt": data} for folder in found["torch"] for data in folder.values()
    ]
    found["adapters"] = [
        _read(path.parent) for path in sorted((TESTS / "adapters").rglob("adapter_config.json"))
    ]
    found["numpy files"] = _each("format_files", "*.npz", "weights.npz")
    return found


def damage(data: bytes, dice: random.Random) -> bytes:
    """One to four byte-level changes."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        if not changed:
            return b"\0"
        place = min(int(dice.random() ** dice.choice((1, 4)) * len(changed)), len(changed) - 1)
        match dice.randrange(7):
            case 0:
                changed[place] ^= 1 << dice.randrange(8)
            case 1:
                changed[place] = dice.randrange(256)
            case 2:
                form = dice.choice(("<B", "<H", "<I", "<Q", ">I"))
                value = dice.choice(EXTREMES) % (1 << 8 * struct.calcsize(form))
                changed[place : place + struct.calcsize(form)] = struct.pack(form, value)
            case 3:
                del changed[place:]
            case 4:
                del changed[place : place + dice.choice((1, 2, 8, 64))]
            case 5:
                changed[place:place] = bytes(dice.randrange(256) for _ in range(dice.choice((1, 4, 64))))
            case 6:
                other = dice.randrange(len(changed))
                length = dice.choice((1, 8, 64, 512))
                changed[place : place + length] = changed[other : other + length]
    return bytes(changed)


def distort(value: object, dice: random.Random) -> object:
    """A JSON value with one value replaced, doubled or dropped somewhere inside."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(list(value))
        match dice.randrange(6):
            case 0:
                return {other: item for other, item in value.items() if other != key}
            case 1:
                return {**value, dice.choice(("", key + "x", "\ud800", "../x", "a" * 300)): value[key]}
            case _:
                return {**value, key: distort(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.8:
        place = dice.randrange(len(value))
        return [*value[:place], distort(value[place], dice), *value[place + dice.randrange(2) :]]
    if isinstance(value, int) and dice.random() < 0.7:
        return dice.choice((value + 1, value - 1, -value, value * 2, float(value), str(value), *EXTREMES))
    if isinstance(value, str) and dice.random() < 0.6:
        return dice.choice(
            (value + "x", value[:-1], value.upper(), value * 50, "\x1b[2J", "\u202e" + value, "NaN")
        )
    return dice.choice((None, True, [], {}, "", "x", 1.5, -1, 1e308, [[]], {"a": {"a": {}}}, *EXTREMES))


def rewrite(name: str, data: bytes, dice: random.Random) -> bytes:
    """A change inside the container, its lengths and checksums right again; else a damaged file."""
    try:
        if name.endswith(".safetensors"):
            length = int.from_bytes(data[:8], "little")
            header = json.dumps(distort(json.loads(data[8 : 8 + length]), dice)).encode()
            return len(header).to_bytes(8, "little") + header + data[8 + length :]
        if name.endswith(".json"):
            return json.dumps(distort(json.loads(data), dice)).encode()
        if data[:2] == b"PK":
            return _repacked(data, dice)
    except (ValueError, KeyError, zipfile.BadZipFile, struct.error):
        pass
    return damage(data, dice)


def _repacked(data: bytes, dice: random.Random) -> bytes:
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(output, "w") as target:
        entries = source.infolist()
        chosen = dice.choice(entries)
        for entry in entries:
            content = source.read(entry)
            if entry is chosen:
                content = damage(content, dice)
            if entry is not chosen or dice.random() < 0.95:
                target.writestr(
                    entry.filename, content, dice.choice((entry.compress_type, zipfile.ZIP_DEFLATED))
                )
    return output.getvalue()


def mutated(folder: Folder, dice: random.Random) -> Folder:
    """The folder with one file changed."""
    name = dice.choice(list(folder))
    change = dice.choice((rewrite, lambda _, data, dice: damage(data, dice)))
    return {**folder, name: change(name, folder[name], dice)}


def use(folder: Folder, dice: random.Random) -> None:
    """Open the model and read a few windows, as a comparison would."""
    model = open_model(MemoryTree(folder))
    if isinstance(model.weights, Absent):
        return
    names = list(model.weights.tensors)
    for name in dice.sample(names, min(len(names), 4)):
        rows, columns = model.weights.tensors[name].matrix_shape
        model.weights.read([Window(name, 0, min(rows, 2), 0, min(columns, 64))])
    for matrix in model.matrices[:4]:
        model.read([Block(matrix, 0, min(8, matrix.rows), 0, min(64, matrix.columns))])


def _alarm(*_: object) -> None:
    raise LateError


def attempt(folder: Folder, dice: random.Random) -> str | None:
    """None, or what a case did that it must not do."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        use(folder, dice)
    except DrupeError:
        pass
    except LateError:
        return "more than 2 s"
    except MemoryError:
        return "MemoryError"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {str(error)[:80]}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    size = sum(map(len, folder.values()))
    return f"{grown >> 20} MB of memory for {size} bytes" if grown > 4 * size + MEMORY else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the cases of one reader did."""

    reader: str
    cases: int
    seconds: float
    findings: Mapping[str, int]


def fuzz(reader: str, folders: Sequence[Folder], seconds: float, seed: int, keep: Path | None) -> Outcome:
    """Change and open until the CPU time is spent."""
    signal.signal(signal.SIGVTALRM, _alarm)
    dice = random.Random(f"{reader} {seed}")
    found: Counter[str] = Counter()
    cases, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        folder = mutated(dice.choice(folders), dice)
        problem = attempt(folder, dice)
        cases += 1
        if problem is None:
            continue
        found[problem] += 1
        if keep is not None and found[problem] == 1:
            for name, data in folder.items():
                path = keep / f"{reader} {len(found)}" / name.replace("/", "_")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    return Outcome(reader, cases, time.process_time() - start, dict(found))


def _run(job: tuple[str, list[Folder], float, int, Path | None]) -> Outcome:
    return fuzz(*job)


def outcomes(
    jobs: Sequence[tuple[str, list[Folder], float, int, Path | None]], workers: int
) -> Iterator[Outcome]:
    """Each reader in a process of its own, so that the memory of one does not hide that of another."""
    with get_context("fork").Pool(workers, maxtasksperchild=1) as pool:
        yield from pool.imap(_run, jobs, chunksize=1)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600, help="CPU seconds for each reader")
    parser.add_argument("--only", nargs="*", help="readers by name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a folder for the files that did it")
    options = parser.parse_args()
    chosen = {name: folders for name, folders in seeds().items() if not options.only or name in options.only}
    jobs = [(name, folders, options.seconds, options.seed, options.keep) for name, folders in chosen.items()]
    print(f"{machine()}\n\n| reader | seeds | cases | CPU s | findings |\n|---|---|---|---|---|", flush=True)
    clean = True
    for outcome in outcomes(jobs, options.workers):
        what = "; ".join(f"{problem} ({count})" for problem, count in outcome.findings.items()) or "none"
        count = len(chosen[outcome.reader])
        print(
            f"| {outcome.reader} | {count} | {outcome.cases:,} | {outcome.seconds:.0f} | {what} |", flush=True
        )
        clean &= not outcome.findings
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
