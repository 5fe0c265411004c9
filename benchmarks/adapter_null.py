"""Do adapters that were trained apart look alike? Adapters that no threshold was chosen on.

    DRUPE_PEFT_PYTHON=peftenv/bin/python python benchmarks/adapter_null.py --set 2     # trains them, 10 minutes
    python benchmarks/adapter_null.py --made OUT                                       # made before

Null: two adapters of one base with a random start of their own (other seed; same or other text; same or another
recipe). They must never be a copy or a derivative. `shared start` is the null's hard edge: one seed, as two people
who run one script have. Positive kinds are edits of an adapter and adapters that were trained on from it or mixed of
it. The recipes, a set of which is drawn by its number, are in train_adapters.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from common import ROOT, machine
from safetensors.numpy import load_file, save_file

from drupe.comparison import Comparison, compare
from drupe.diagnose import diagnose
from drupe.errors import UsageError
from drupe.opening import open_subject
from drupe.subject import Subject
from drupe.verdict import judge

PYTHON_VARIABLE = "DRUPE_PEFT_PYTHON"
MODELS = ROOT / "tests" / "models"
OTHER = {"r1": "r2", "r2": "r1", "g0": "g1", "g1": "g0", "q0": "w0", "w0": "q0"}
Factors = dict[str, Any]
ALLOWED = {
    "same values": ("copy",),
    "noise": ("copy", "derivative", "inconclusive"),
    "rank cut": ("copy", "derivative", "inconclusive"),
    "trained on": ("derivative", "inconclusive"),
    "mixed": ("derivative", "inconclusive"),
    "apart": ("unrelated", "inconclusive"),
    "shared start": ("unrelated", "inconclusive"),
    "own base": ("derivative",),
    "another base": ("inconclusive", "unrelated"),
    "merged, its base": ("derivative",),
    "merged, base + adapter": ("copy", "refused"),
}

LABELS = ("copy", "derivative", "inconclusive", "unrelated", "refused")
ROWS = (  # statistic, threshold, kind of pair, its start, whether its upper end is near the threshold
    ("median cosine", ">= 0.99", "apart", "random", True),
    ("median cosine", ">= 0.99", "apart", "known", True),
    ("median cosine", ">= 0.99", "shared start, other text", "random", True),
    ("median cosine", ">= 0.99", "shared start, same text", "random", True),
    ("median cosine", ">= 0.99", "trained on, on_little", "random", False),
    ("median cosine", ">= 0.99", "trained on, on_more", "random", False),
    ("median cosine", ">= 0.99", "noise", "random", False),
    ("largest cosine", ">= 0.99, two", "apart", "random", True),
    ("largest cosine", ">= 0.99, two", "shared start, same text", "random", True),
    ("largest cosine", ">= 0.99, two", "trained on, on_more", "random", False),
    ("contained, log10 p", "<= -5", "apart", "random", False),
    ("contained, log10 p", "<= -5", "shared start", "random", False),
    ("contained, log10 p", "<= -5", "mixed, mixed_cat", "random", True),
    ("contained, log10 p", "<= -5", "rank cut", "random", True),
    ("signs, log10 p", "<= -3", "apart", "random", False),
    ("signs, log10 p", "<= -3", "shared start", "random", True),
    ("signs, log10 p", "<= -3", "mixed, mixed_linear", "random", True),
    ("edge", "< 1.08", "noise", "random", True),
    ("edge", "< 1.08", "trained on", "random", False),
    ("kurtosis, abs z", "<= 4", "noise", "random", True),
    ("kurtosis, abs z", "<= 4", "trained on", "random", False),
    ("levels, z", "<= 4", "noise", "random", True),
    ("levels, z", "<= 4", "trained on", "random", False),
)


@dataclass(frozen=True, slots=True)
class Case:
    kind: str
    what: str
    suspect: Path
    source: Path
    method: str
    adapter: Path | None = None

    @property
    def start(self) -> str:
        """IA3 starts from ones, PiSSA and OLoRA from the base: for these there is no null."""
        return "known" if {"ia3", "pissa", "olora"} & set(self.method.split("-")) else "random"


@dataclass(frozen=True, slots=True)
class Result:
    case: Case
    label: str
    relation: str
    kinds: tuple[str, ...]
    stats: dict[str, float]


def _pairs(factors: Factors) -> Iterator[tuple[str, str]]:
    for down in [name for name in factors if ".lora_A." in name]:
        yield down, down.replace(".lora_A.", ".lora_B.")


def _gauge(factors: Factors) -> None:
    dice = np.random.default_rng(1)
    for down, up in _pairs(factors):
        rank = len(factors[down])
        g = dice.standard_normal((rank, rank)) + 2.0 * np.eye(rank)
        factors[down], factors[up] = g @ factors[down], factors[up] @ np.linalg.inv(g)


def _noise(sigma: float) -> Callable[[Factors], None]:
    def change(factors: Factors) -> None:
        dice = np.random.default_rng(2)
        for name, value in factors.items():
            factors[name] = value + sigma * value.std() * dice.standard_normal(value.shape)

    return change


def _halve(factors: Factors) -> None:
    """The best approximation of half the rank, as LoRA resizers make it."""
    for down, up in _pairs(factors):
        rank = len(factors[down])
        u, s, v = np.linalg.svd(factors[up] @ factors[down], full_matrices=False)
        kept, root = max(1, rank // 2), np.sqrt(s[: max(1, rank // 2)] * max(1, rank // 2) / rank)
        factors[up], factors[down] = u[:, :kept] * root, root[:, None] * v[:kept]


def _plain(factors: Factors) -> None:
    for name in list(factors):
        short = name.removeprefix("base_model.model.")
        factors[short.replace("lora_A", "lora_down").replace("lora_B", "lora_up")] = factors.pop(name)


def _edited(
    source: Path, folder: Path, change: Callable[[Factors], None] | None, kind: Any = np.float32, **more: Any
) -> Path:
    shutil.copytree(source, folder)
    path = folder / "adapter_model.safetensors"
    factors: Factors = {name: value.astype(np.float64) for name, value in load_file(path).items()}
    if change is not None:
        change(factors)
    save_file({name: np.ascontiguousarray(value.astype(kind)) for name, value in factors.items()}, path)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **more}))
    return folder


def edits(a: Path, family: dict[str, Any], out: Path) -> Iterator[Case]:
    """Edits of one adapter."""
    method = family["method"]
    made: list[tuple[str, str, Path]] = [
        ("same values", "copied", a),
        ("same values", "fp16", _edited(a, out / "fp16", None, np.float16)),
        ("same values", "bf16", _edited(a, out / "bf16", None, ml_dtypes.bfloat16)),
        *(("noise", f"{x}", _edited(a, out / f"noise{x}", _noise(x))) for x in (0.01, 0.03, 0.1)),
    ]
    if method not in ("ia3", "loha"):
        made += [
            ("same values", "renamed", _edited(a, out / "plain", _plain)),
            ("same values", "alpha", _edited(a, out / "alpha", None, lora_alpha=family["alpha"] * 1.7)),
        ]
        if method != "dora":
            made.append(("same values", "other factors", _edited(a, out / "gauge", _gauge)))
            if family["rank"] > 1:
                made.append(("rank cut", "half", _edited(a, out / "half", _halve, alpha=None)))
    for kind, what, path in made:
        yield Case(kind, what, path, a, method)


def of_family(root: Path, family: dict[str, Any], out: Path) -> Iterator[Case]:
    name, method, base = family["name"], family["method"], family["base"]
    member = {path.name.removeprefix(f"{name}-"): path for path in root.glob(f"{name}-*")}
    a = member["a"]
    yield from edits(a, family, out)
    yield Case("apart", "other seed", member["other_seed"], a, method)
    yield Case("apart", "other seed and text", member["stranger"], a, method)
    yield Case("apart", "other seed, same text", member["stranger"], member["same_start_other_text"], method)
    yield Case("shared start", "other text", member["same_start_other_text"], a, method)
    yield Case("shared start", "same text", member["same_start_same_text"], a, method)
    for which in ("on_little", "on_more"):
        yield Case("trained on", which, member[which], a, method)
        yield Case("trained on", f"{which}, reversed", a, member[which], method)
        yield Case("apart", f"{which} of another", member[which], member["stranger"], method)
    for which in sorted(set(member) - {"merged_model"}):
        if which.startswith("mixed"):
            yield Case("mixed", which, member[which], a, method)
            yield Case("mixed", which, member[which], member["stranger"], method)
    yield Case("own base", "", a, MODELS / base, method)
    yield Case("another base", "", a, MODELS / OTHER[base], method)
    yield Case("merged, its base", "", member["merged_model"], MODELS / base, method)
    yield Case("merged, base + adapter", "", MODELS / base, member["merged_model"], method, a)


def across(root: Path, families: list[dict[str, Any]]) -> Iterator[Case]:
    """Adapters of one base by two recipes; two seeds each."""
    by_base: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for family in families:
        by_base[family["base"]].append(family)
    for members in by_base.values():
        for one, two in combinations(members, 2):
            methods = "-".join(sorted({one["method"], two["method"]}))
            for first, second in (("a", "a"), ("a", "stranger"), ("stranger", "a")):
                suspect, source = root / f"{one['name']}-{first}", root / f"{two['name']}-{second}"
                yield Case("apart", "another recipe", suspect, source, methods)


@cache
def _subject(path: Path, adapter: Path | None) -> Subject:
    return open_subject(str(path), adapter=None if adapter is None else str(adapter), offline=True)


def result(case: Case) -> Result:
    try:
        comparison = compare(_subject(case.suspect, case.adapter), _subject(case.source, None))
    except UsageError:
        return Result(case, "refused", "", (), {})
    diagnosis = diagnose(comparison)
    verdict = judge(diagnosis)
    relation = next(str(v.relation) for c, v in verdict.components.items() if str(c) == "weights")
    kinds = tuple(str(kind) for kind in diagnosis.kinds)
    return Result(case, verdict.label.value, relation, kinds, _statistics(comparison))


def _statistics(comparison: Comparison) -> dict[str, float]:
    deltas = comparison.deltas
    speaking = [pair for pair in deltas.pairs if pair.speaks] if deltas else []
    if deltas is None or not speaking:
        return {}
    cosines = [abs(pair.cosine) for pair in speaking]
    found = {
        "median cosine": float(np.median(cosines)),
        "largest cosine": max(cosines),
        "contained, log10 p": float(np.median([pair.log10_contained for pair in speaking])),
        "signs, log10 p": deltas.log10_signs,
    }
    if deltas.rest.edge is not None:
        z = {"kurtosis, abs z": abs(deltas.rest.kurtosis_z), "levels, z": deltas.rest.levels_z}
        found |= {"edge": deltas.rest.edge, **z}
    return found


def labels(results: list[Result]) -> Iterator[str]:
    """Verdicts by kind of pair."""
    yield "| kind of pair | pairs | copy | derivative | inconclusive | unrelated | refused | wrong |"
    yield "|---|---|---|---|---|---|---|---|"
    groups: dict[str, list[Result]] = defaultdict(list)
    for one in results:
        groups[f"{one.case.kind}, {one.case.start} start"].append(one)
    for title, members in sorted(groups.items()):
        counts = Counter(one.label for one in members)
        wrong = sum(one.label not in ALLOWED[members[0].case.kind] for one in members)
        shown = " | ".join(str(counts[label]) for label in LABELS)
        yield f"| {title} | {len(members)} | {shown} | {wrong} |"


def statistics(results: list[Result]) -> Iterator[str]:
    """How far each threshold is from both sides; of random starts only, but where the row says otherwise."""
    yield "| statistic | threshold | kind of pair | pairs | median | 99 % towards it | extreme |"
    yield "|---|---|---|---|---|---|---|"
    for name, threshold, kind, start, high in ROWS:
        chosen = [one for one in results if name in one.stats and one.case.start == start]
        named = [one for one in chosen if f"{one.case.kind}, {one.case.what}".startswith(kind)]
        found = np.array([one.stats[name] for one in named])
        if found.size:
            ends = np.quantile(found, (0.5, 0.99, 1.0) if high else (0.5, 0.01, 0.0))
            title = kind if start == "random" else f"{kind} ({start} start)"
            shown = " | ".join(f"{v:.3f}" if abs(v) < 2 else f"{v:.1f}" for v in ends)
            yield f"| {name} | {threshold} | {title} | {found.size} | {shown} |"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", type=int, default=1)
    parser.add_argument("--made", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = given.made or Path(temporary) / "made"
        if given.made is None:
            script = Path(__file__).with_name("train_adapters.py")
            subprocess.run([os.environ[PYTHON_VARIABLE], script, root, "--set", str(given.set)], check=True)
        listed = [one for path in sorted(root.glob("manifest*.json")) for one in json.loads(path.read_text())]
        families = list({one["family"]["name"]: one["family"] for one in listed}.values())
        print(machine(), "", sep="\n")
        results: list[Result] = []
        for family in families:
            cases = of_family(root, family, Path(temporary) / family["name"])
            results += [result(case) for case in cases]
        results += [result(case) for case in across(root, families)]
        print(f"{len(families)} families, {len(listed)} adapters, {len(results)} pairs.", "", sep="\n")
        print(*labels(results), "", *statistics(results), "", sep="\n")
        for one in results:
            if one.label not in ALLOWED[one.case.kind]:
                case, found = one.case, {name: round(value, 3) for name, value in one.stats.items()}
                print(f"wrong: {case.kind}, {case.what}: {one.label} {one.kinds}", case.suspect.name, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
