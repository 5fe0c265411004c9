"""Are surface changes ever called training? Every trained model of tests/models, changed without training.

    python benchmarks/residual_null.py             # about two minutes

Null: the suspect is the source after noise, rounding, packing or folding, so nothing has a trained direction. Counted
are pairs of matrices whose residual is at or beyond the edge from which a pair speaks (CLEAR_EDGE), comparisons with
so many of them that they count (MIN_CLEAR), and labels other than `copy`. The second table is that of rounding with
error feedback (GPTQ): excess as in recover/feedback.py, 0 under the null, bound FEEDBACK_EXCESS. `dev` = the models
whose residuals were looked at when the thresholds were set (r0 and its kin); all others are held out. Last rows, the
power: trained pairs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from common import ROOT, machine

sys.path.insert(0, str(ROOT / "tests"))
import zoo
from drupe.comparison import compare
from drupe.diagnose import diagnose
from drupe.diagnose.pool import CLEAR_EDGE, MIN_CLEAR
from drupe.fingerprint import extract
from drupe.model import open_model
from drupe.sources.locator import open_tree
from drupe.subject import Subject
from drupe.verdict import judge
from gptq import gptq
from pairs import Judged, judged, subject
from readers.quantised_packers import quantised
from zoo_files import Checkpoint, read_model

DEV = ("r0", "r0_ft", "r0_cpt", "r0_cpt2", "r3")
HELD = ("r1", "r2", "r5", "g0", "g1", "b0", "b1", "q0", "w0")
TRAINED = (("r0_ft", "r0"), ("r0_cpt", "r0"), ("r0_cpt2", "r0"), ("r0_cpt2", "r0_cpt"), ("g0_ft", "g0"))
Change = Callable[[Checkpoint], Checkpoint]


def _noise(sigma: float) -> Change:
    return lambda model: zoo.apply(model, "noise", sigma=sigma)


def _grid(bits: int, group: int) -> Change:
    return lambda model: zoo.apply(model, "quantise", bits=bits, group=group)


CHANGES: dict[str, Change] = {
    **{f"noise {sigma}": _noise(sigma) for sigma in (0.01, 0.1, 1.0)},
    **{
        f"{bits} bits by {group or 'row'}": _grid(bits, group)
        for bits, group in ((8, 0), (6, 32), (4, 32), (3, 32), (2, 32))
    },
}
PACKINGS = ("gptq", "awq", "nf4", "mlx", "hqq", "fp8")


def _packed(name: str, scheme: str, folder: Path) -> Judged:
    opened = open_model(
        open_tree(str(quantised(read_model(name), scheme, folder / f"{name}-{scheme}")), offline=True)
    )
    comparison = compare(Subject(extract(opened), opened), subject(name, folder))
    found = diagnose(comparison)
    return Judged(comparison, found, judge(found))


FEEDBACK = [(bits, group, order) for bits in (4, 3, 2) for group in (32, 0) for order in (False, True)]
LLAMAS = ("r0", "r1", "r2", "r5", "q0", "w0")
"""Models whose inputs tests/zoo_forward.py computes."""


def feedback_cases(names: tuple[str, ...], folder: Path) -> Iterator[tuple[str, Judged]]:
    """Every model after GPTQ from its own activations."""
    for name in names:
        for bits, group, order in FEEDBACK:
            rounded = gptq(read_model(name), bits=bits, group=group, act_order=order)
            kind = f"{bits} bits by {group or 'row'}{', act-order' if order else ''}"
            yield kind, judged(rounded, name, folder)


def trained_feedback(pairs: tuple[tuple[str, str], ...], folder: Path) -> Iterator[tuple[str, Judged]]:
    """Trained models after GPTQ, against what they were trained from."""
    for suspect, source in pairs:
        for bits in (4, 3, 2):
            rounded = gptq(read_model(suspect), bits=bits, group=0)
            yield f"{suspect} {bits} bits", judged(rounded, source, folder)


def feedback_row(title: str, results: list[tuple[str, Judged]]) -> str:
    """One line of the second table."""
    lineages = [result.comparison.lineage for _, result in results]
    found = np.array(
        [line.feedback.excess for line in lineages if line is not None and line.feedback is not None]
    )
    tail = " / ".join(f"{q:+.3f}" for q in np.quantile(found, (0.0, 0.5, 1.0)))
    copies = sum(result.label == "copy" for _, result in results)
    odd = [kind for kind, result in results if (result.label == "copy") != (not title.startswith("trained"))]
    return f"| {title} | {len(results)} | {tail} | {copies} | {', '.join(odd) or 'none'} |"


def cases(names: tuple[str, ...], folder: Path) -> Iterator[tuple[str, Judged]]:
    """Every model after every change, against itself."""
    for name in names:
        for kind, change in CHANGES.items():
            yield kind, judged(change(read_model(name)), name, folder)
        fits = all(v.shape[1] % 64 == 0 for v in read_model(name).tensors.values() if v.ndim == 2)
        for scheme in PACKINGS if fits else ():
            yield f"packed {scheme}", _packed(name, scheme, folder)


def edges(result: Judged) -> np.ndarray:
    """Edges of the changed pairs that were looked at closely."""
    lineage = result.comparison.lineage
    found = [p.residual.edge for p in lineage.pairs if p.proven and p.residual.equal < 1.0] if lineage else []
    return np.array([edge for edge in found if np.isfinite(edge) and edge > 0.0])


def row(title: str, results: list[tuple[str, Judged]]) -> str:
    """One line of the table."""
    found = [edges(result) for _, result in results]
    flat = np.concatenate(found)
    clear = sum(int((one >= CLEAR_EDGE).sum()) >= MIN_CLEAR for one in found)
    copies = sum(result.label == "copy" for _, result in results)
    tail = " ".join(f"{q:.2f}" for q in np.quantile(flat, (0.5, 0.99, 1.0)))
    share = float((flat >= CLEAR_EDGE).mean())
    odd = sorted({kind for kind, result in results if result.label != "copy"})
    return (
        f"| {title} | {len(results)} | {flat.size:,} | {tail} | {share:.4f} | {clear} | {copies} |"
        f" {', '.join(odd) or 'none'} |"
    )


def main() -> int:
    """Command line."""
    print(machine(), "", sep="\n")
    head = ("models", "comparisons", "pairs", "edge: median, 99 %, largest", "beyond 1.2", "counted", "copy")
    print(f"| {' | '.join(head)} | not copy |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for title, names in (("dev", DEV), ("held out", HELD)):
            print(row(f"surface changes, {title}", list(cases(names, Path(temporary)))), flush=True)
        trained = [("trained", judged(a, b, Path(temporary))) for a, b in TRAINED]
        print(row("trained", trained))
        print(
            "",
            "| GPTQ of | comparisons | excess: least, median, largest | copy | unlike the others |",
            sep="\n",
        )
        print("|---|---|---|---|---|")
        for title, names in (("dev", LLAMAS[:1]), ("held out", LLAMAS[1:])):
            print(feedback_row(title, list(feedback_cases(names, Path(temporary)))), flush=True)
        for title, pairs in (("trained, dev", TRAINED[:2]), ("trained, held out", TRAINED[2:4])):
            print(feedback_row(title, list(trained_feedback(pairs, Path(temporary)))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
