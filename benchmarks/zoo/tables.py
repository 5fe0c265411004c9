"""The tables of the zoo from the results of ``judge.py``, as Markdown.

    python benchmarks/zoo/tables.py results.jsonl [baselines.jsonl]

Intervals are Wilson's, 95 %, over pairs; pairs share roots, so read them as a guide: the number of root pairs stands
beside them.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from recipes import DEV, HELD, family_of, root_of

from drupe.stats import wilson
from pairs import SEED, Pair, pairs

Result = Mapping[str, Any]
Scored = tuple[Pair, Result]
ACCUSED = frozenset({"copy", "derivative"})
HALVES = {"dev": False, "held out": True}


def load(path: Path) -> list[Scored]:
    """Pairs with their results, crashes included."""
    known = {pair.name: pair for pair in pairs()}
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [(known[line["name"]], line) for line in lines if line["name"] in known]


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Probability that a positive scores above a negative, ties one half (Mann-Whitney)."""
    values = np.concatenate([positive, negative])
    order = np.unique(values, return_inverse=True)[1]
    counts = np.bincount(order)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[order]
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def power(positive: Sequence[float], negative: Sequence[float], rate: float = 0.01) -> tuple[int, int]:
    """Positives above the threshold that at most this share of the negatives exceeds."""
    allowed = int(rate * len(negative))
    threshold = sorted(negative, reverse=True)[allowed]
    return sum(score > threshold for score in positive), len(positive)


def score(result: Result) -> float:
    """How sure Drupe is that the weights are related: -log10 p."""
    return -float(result.get("log10_p") or 0.0)


def is_negative(pair: Pair) -> bool:
    """Independent roots; same-seed pairs and siblings are neither."""
    return not pair.related and pair.relations != SEED and pair.row != "siblings"


def share(right: int, total: int) -> str:
    """right/total with its interval."""
    low, high = wilson(right, total)
    return f"{right}/{total} ({low:.3f} to {high:.3f})" if total else "-"


def related_table(scored: Sequence[Scored]) -> Iterator[str]:
    """Related or not."""
    yield "| half | positives | negatives | root pairs | AUC | TPR at 1 % FPR | called related | accused | unsure |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for half, held in HALVES.items():
        chosen = [(p, r) for p, r in scored if p.held == held and "error" not in r]
        positive = [(p, r) for p, r in chosen if p.related]
        negative = [(p, r) for p, r in chosen if is_negative(p)]
        if not positive or not negative:
            continue
        yes, no = [score(r) for _, r in positive], [score(r) for _, r in negative]
        found = sum(r["label"] in ACCUSED for _, r in positive)
        roots = {frozenset((root_of(p.suspect), root_of(p.source))) for p, _ in negative}
        accused = sum(r["label"] in ACCUSED for _, r in negative)
        unsure = sum(r["relation"] == "inconclusive" for _, r in negative)
        ends = f"{share(found, len(positive))} | {share(accused, len(negative))} | {unsure}"
        yield (
            f"| {half} | {len(positive)} | {len(negative)} | {len(roots)} | {auc(yes, no):.4f} "
            f"| {share(*power(yes, no))} | {ends} |"
        )


def seed_table(scored: Sequence[Scored]) -> Iterator[str]:
    """Same seed, other data."""
    yield "| half | pairs | shared initialisation | independent | inconclusive | called derived |"
    yield "|---|---|---|---|---|---|"
    for half, held in HALVES.items():
        found = [r for p, r in scored if p.relations == SEED and p.held == held and "error" not in r]
        counts = [
            sum(r["relation"] == name for r in found)
            for name in ("shared_initialisation", "independent", "inconclusive")
        ]
        accused = sum(r["label"] in ACCUSED for r in found)
        yield f"| {half} | {len(found)} | {' | '.join(map(str, counts))} | {share(accused, len(found))} |"


def kinds_of(result: Result) -> list[str]:
    """The transformations that were named, the largest first, each once."""
    return list(dict.fromkeys(change["kind"] for change in result["changes"]))


def _merged(kinds: Iterable[str]) -> list[str]:
    """Fine-tuning and continued pretraining as one: a relative change of 0.3 parts them, by convention."""
    return ["trained" if kind in ("fine_tuned", "continued_pretraining") else kind for kind in kinds]


def first_right(pair: Pair, result: Result) -> bool:
    """Whether the first-ranked transformation is the largest one that was done."""
    return _merged(kinds_of(result)[:1]) == _merged(pair.kinds[:1])


def all_right(pair: Pair, result: Result) -> bool:
    """Whether all that was done is named, and nothing else."""
    found, done = set(_merged(kinds_of(result))), set(_merged(pair.kinds))
    return done <= found <= done | pair.optional


def change_table(scored: Sequence[Scored]) -> Iterator[str]:
    """What was done, by row."""
    yield "| row | first named, dev | held out | whole set, dev | held out |"
    yield "|---|---|---|---|---|"
    rows: dict[str, list[Scored]] = defaultdict(list)
    for pair, result in scored:
        if pair.related and pair.kinds and "error" not in result and not pair.truth.get("maybe_identical"):
            rows[pair.row].append((pair, result))
            rows["**all**"].append((pair, result))
    for row, members in sorted(rows.items()):
        cells = []
        for judge in (first_right, all_right):
            for held in HALVES.values():
                half = [(p, r) for p, r in members if p.held == held]
                cells.append(share(sum(judge(p, r) for p, r in half), len(half)))
        yield f"| {row} | {' | '.join(cells)} |"


def parameter_table(scored: Sequence[Scored]) -> Iterator[str]:
    """Parameters of what was named rightly."""
    yield "| parameter | right, dev | held out |"
    yield "|---|---|---|"
    checks: dict[str, Callable[[Pair, Result], bool | None]] = {
        "sigma within 5 %": sigma_right,
        "bits": bits_right,
        "rank": rank_right,
        "merge shares within 0.02": shares_right,
        "merge method": method_right,
        "layer map": map_right,
        "experts made of an FFN: number and layers": experts_right,
        "order of the experts": order_right,
    }
    for name, check in checks.items():
        cells = []
        for held in HALVES.values():
            answers = [check(p, r) for p, r in scored if p.held == held and "error" not in r]
            told = [answer for answer in answers if answer is not None]
            cells.append(share(sum(told), len(told)))
        yield f"| {name} | {' | '.join(cells)} |"


def _parameters(result: Result, *kinds: str) -> Mapping[str, Any] | None:
    return next((change["parameters"] for change in result["changes"] if change["kind"] in kinds), None)


def sigma_right(pair: Pair, result: Result) -> bool | None:
    """Relative sigma of white noise."""
    if "sigma" not in pair.truth:
        return None
    found = _parameters(result, "gaussian_noise")
    return found is not None and abs(found["relative_sigma"] / pair.truth["sigma"] - 1) <= 0.05


def bits_right(pair: Pair, result: Result) -> bool | None:
    """Bits of a grid."""
    found = _parameters(result, "quantised")
    return None if "bits" not in pair.truth else found is not None and found["bits"] == pair.truth["bits"]


def rank_right(pair: Pair, result: Result) -> bool | None:
    """Rank of a low-rank update."""
    found = _parameters(result, "low_rank_update")
    return None if "rank" not in pair.truth else found is not None and found["rank"] == pair.truth["rank"]


def shares_right(pair: Pair, result: Result) -> bool | None:
    """Shares of known parents."""
    if "shares" not in pair.truth:
        return None
    found = _parameters(result, "merged")
    named = {entry["name"]: entry["share"] for entry in found["parents"]} if found else {}
    return named.keys() == pair.truth["shares"].keys() and all(
        value is not None and abs(value - pair.truth["shares"][name]) <= 0.02 for name, value in named.items()
    )


def method_right(pair: Pair, result: Result) -> bool | None:
    """How the parents were mixed; parents that are nearly equal have no angle between them."""
    if "method" not in pair.truth or (pair.truth["method"] == "slerp" and "ft2" in str(pair.edits)):
        return None
    found = _parameters(result, "merged")
    wanted = {"arithmetic": "task_arithmetic"}.get(pair.truth["method"], pair.truth["method"])
    return found is not None and found["method"] == wanted


def map_right(pair: Pair, result: Result) -> bool | None:
    """Suspect's layer -> source's layer."""
    if "map" not in pair.truth:
        return None
    found = _parameters(result, "layers_dropped", "layers_reordered", "depth_upscaled")
    return found is not None and found["map"] == {str(i): j for i, j in enumerate(pair.truth["map"])}


def experts_right(pair: Pair, result: Result) -> bool | None:
    """How many experts were made of an FFN, each of the one in its own layer."""
    if "experts" not in pair.truth:
        return None
    found = _parameters(result, "moe_upcycled")
    layers = {str(layer): layer for layer in range({**DEV, **HELD}[family_of(pair.source)].layers)}
    return found is not None and found["experts"] == pair.truth["experts"] and found["map"] == layers


def order_right(pair: Pair, result: Result) -> bool | None:
    """Which expert of every layer is which."""
    if "order" not in pair.truth:
        return None
    maps = [change["parameters"].get("map") for change in result["changes"] if change["kind"] == "permuted"]
    return pair.truth["order"] in maps


ARTEFACTS = frozenset({"quantised", "pruned", "depth_upscaled", "width_pruned", "moe_upcycled"})
"""What is made of a source and cannot be undone: the edited side came after."""


def direction_table(scored: Sequence[Scored]) -> Iterator[str]:
    """Who was made of whom, where the change is long or leaves an artefact."""
    yield "| half | cue | pairs | answered | right of the answered | siblings |"
    yield "|---|---|---|---|---|---|"
    for half, held in HALVES.items():
        mine = [(p, r) for p, r in scored if p.held == held and "error" not in r]
        chosen = [(p, r) for p, r in mine if "direction" in p.truth]
        kin = [r["direction"] for p, r in chosen if p.row == "siblings"]
        told = ", ".join(f"{name} {kin.count(name)}" for name in sorted(set(kin)))
        long = [(r, p.truth["direction"]) for p, r in chosen if is_long(p, r) and p.row != "siblings"]
        made = [(r, "suspect_from_source") for p, r in mine if p.related and set(p.kinds) & ARTEFACTS]
        for cue, asked, others in (("a change of 0.3 and more", long, told), ("an artefact", made, "")):
            answered = [(r, truth) for r, truth in asked if r["direction"] != "undetermined"]
            right = sum(r["direction"] == truth for r, truth in answered)
            cells = (share(len(answered), len(asked)), share(right, len(answered)), others)
            yield f"| {half} | {cue} | {len(asked)} | " + " | ".join(cells) + " |"


def is_long(pair: Pair, result: Result) -> bool:
    """Relative change of 0.3 and more, or an artefact of which only one order is possible."""
    found = _parameters(result, "continued_pretraining", "fine_tuned")
    return found is not None and (found.get("relative_change") or 0.0) >= 0.3


def wrong(scored: Sequence[Scored]) -> Iterator[str]:
    """Every miss, so that the reader need not trust the counts."""
    for pair, result in sorted(scored, key=lambda entry: entry[0].name):
        if "error" in result:
            yield f"- {pair.name}: {result['error'][:120]}"
        elif result["relation"] not in pair.relations or (
            pair.related
            and pair.kinds
            and not all_right(pair, result)
            and not pair.truth.get("maybe_identical")
        ):
            yield (
                f"- {pair.name}: {result['relation']}, {', '.join(kinds_of(result)) or 'no change'}"
                f" (done: {', '.join(pair.kinds) or 'nothing'})"
            )


def baseline_table(path: Path) -> Iterator[str]:
    """Other methods on the same pairs."""
    known = {pair.name: pair for pair in pairs()}
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for line in path.read_text("utf-8").splitlines():
        entry = json.loads(line)
        for method, value in entry["scores"].items():
            if value is not None and entry["name"] in known:
                scores[method][entry["name"]] = value
    yield "| method | half | scored | AUC | AUC, same configuration | AUC, same seed | TPR at 1 % FPR |"
    yield "|---|---|---|---|---|---|---|"
    for method, values in sorted(scores.items()):
        for half, held in HALVES.items():
            chosen = [(known[name], value) for name, value in values.items() if known[name].held == held]
            yes = [value for pair, value in chosen if pair.related]
            no = [value for pair, value in chosen if is_negative(pair)]
            hard = [value for pair, value in chosen if is_negative(pair) and pair.row != "other family"]
            seed = [value for pair, value in chosen if pair.relations == SEED]
            cells = [f"{auc(yes, other):.3f}" if yes and other else "-" for other in (no, hard, seed)]
            rate = share(*power(yes, no)) if yes and no else "-"
            yield f"| {method} | {half} | {len(chosen)} | {' | '.join(cells)} | {rate} |"


def main() -> None:
    """Command line."""
    scored = load(Path(sys.argv[1]))
    sections: dict[str, Iterable[str]] = {
        "Related or not": related_table(scored),
        "Same seed, other data": seed_table(scored),
        "What was done": change_table(scored),
        "Parameters": parameter_table(scored),
        "Direction": direction_table(scored),
        "Every miss": wrong(scored),
    }
    if len(sys.argv) > 2:
        sections["Other methods on the same pairs"] = baseline_table(Path(sys.argv[2]))
    for title, lines in sections.items():
        print(f"### {title}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
