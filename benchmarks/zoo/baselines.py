"""What other methods say of the pairs of the zoo, from their published formulas; higher = more alike.

    python benchmarks/zoo/baselines.py zoo baselines.jsonl

- ``awm``: hidden dimensions aligned by assignment on |cos| of embedding columns, unbiased linear CKA of q and k, best
  partner of each layer (AWM, ICLR 2026).
- ``huref``: cosine of the invariant terms X Wq' Wk X', X Wv' Wo' X', X Wup' Wdown' X' of the last two layers, X the
  embeddings of shared tokens (HuRef, NeurIPS 2024).
- ``pdf``: correlation over layers of the standard deviations of q, k, v, o ("intrinsic fingerprint", 2025).
- ``csu``, ``match``: Spearman's test of the assignment of FFN units, against the identity and between gate and up;
  Fisher over layers, as -log10 p (Zhu et al., ICML 2025).
- ``cka``: linear CKA of the embeddings of shared tokens, what REEF (ICLR 2025) computes of later representations;
  here from weights alone, so a stand-in.

A method that cannot read a pair (other widths, no gate) gives none. All read the true roles, also after a rename:
what is compared is the statistic, not the reader.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from judge import built
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import linear_sum_assignment

from drupe.model import open_model
from drupe.recover.parts import Parts, parts_of
from drupe.recover.tokens import shared_tokens
from drupe.sources.locator import open_tree
from pairs import Pair, pairs
from zoo_files import save

Matrix = NDArray[np.float64]
TOKENS = 512


def load(parts: Parts, role: str, layer: int | None = None) -> Matrix | None:
    """A matrix as float64, None when there is none."""
    found = parts.load(role, layer)
    return None if found is None else np.asarray(found, np.float64)


def tokens(a: Parts, b: Parts) -> tuple[Matrix, Matrix] | None:
    """Embeddings of the shared tokens of both."""
    rows, mine, theirs = shared_tokens(a, b, TOKENS), load(a, "embed"), load(b, "embed")
    return (
        None if rows is None or mine is None or theirs is None else (mine[rows.suspect], theirs[rows.source])
    )


def cosines(a: Matrix, b: Matrix) -> Matrix:
    """Of all rows with all rows."""
    left, right = (m / np.maximum(np.linalg.norm(m, axis=1, keepdims=True), 1e-12) for m in (a, b))
    result: Matrix = left @ right.T
    return result


def unbiased_cka(a: Matrix, b: Matrix) -> float:
    """Linear CKA with the unbiased HSIC (Song et al., JMLR 2012); rows are the samples."""

    def hsic(x: Matrix, y: Matrix) -> float:
        k, m = x @ x.T, y @ y.T
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        n = len(k)
        value = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)
        return float(value) / (n * (n - 3))

    return hsic(a, b) / max(np.sqrt(abs(hsic(a, a) * hsic(b, b))), 1e-30)


def awm(a: Parts, b: Parts) -> float | None:
    """AWM."""
    found = tokens(a, b)
    if found is None or found[0].shape[1] != found[1].shape[1]:
        return None
    likeness = cosines(found[0].T, found[1].T)
    rows, columns = linear_sum_assignment(-np.abs(likeness))
    signs = np.sign(likeness[rows, columns])
    values = []
    for i in a.layers:
        best = -1.0
        for j in b.layers:
            pairs_ = [(load(a, role, i), load(b, role, j)) for role in ("q", "k")]
            told = [
                unbiased_cka(mine.T, (theirs[:, columns] * signs).T)
                for mine, theirs in pairs_
                if mine is not None and theirs is not None and mine.shape[1] == theirs.shape[1]
            ]
            best = max(best, float(np.mean(told))) if told else best
        values.append(best)
    return float(np.mean(values)) if values and max(values) > -1.0 else None


def huref(a: Parts, b: Parts) -> float | None:
    """HuRef's invariant terms."""
    found = tokens(a, b)
    if found is None or len(a.layers) < 2 or len(b.layers) < 2:
        return None
    told = []
    for mine, theirs in zip(a.layers[-2:], b.layers[-2:], strict=True):
        terms = [_terms(parts, layer, x) for parts, layer, x in ((a, mine, found[0]), (b, theirs, found[1]))]
        for name in terms[0].keys() & terms[1].keys():
            left, right = terms[0][name].ravel(), terms[1][name].ravel()
            told.append(float(left @ right / max(np.linalg.norm(left) * np.linalg.norm(right), 1e-30)))
    return float(np.mean(told)) if told else None


def _terms(parts: Parts, layer: int, x: Matrix) -> Mapping[str, Matrix]:
    found: dict[str, Matrix] = {}
    q, k, v, o, up, down = (load(parts, role, layer) for role in ("q", "k", "v", "o", "up", "down"))
    if q is not None and k is not None:
        group = q.shape[0] // max(k.shape[0], 1)
        found["qk"] = (x @ q.T) @ np.repeat(x @ k.T, group, axis=1)[:, : q.shape[0]].T
    if v is not None and o is not None and o.shape[1] % v.shape[0] == 0:
        found["vo"] = np.repeat(x @ v.T, o.shape[1] // v.shape[0], axis=1) @ o.T @ x.T
    if up is not None and down is not None and down.shape[1] == up.shape[0]:
        found["ffn"] = (x @ up.T) @ down.T @ x.T
    return found


def pdf(a: Parts, b: Parts) -> float | None:
    """Standard deviations over layers."""
    told = []
    for role in ("q", "k", "v", "o"):
        curves = []
        for parts in (a, b):
            values = [m.std() for layer in parts.layers if (m := load(parts, role, layer)) is not None]
            curves.append(np.array(values))
        if min(map(len, curves)) < 3:
            continue
        points = np.linspace(0, 1, max(map(len, curves)))
        left, right = (np.interp(points, np.linspace(0, 1, len(c)), c) for c in curves)
        if left.std() > 0 and right.std() > 0:
            told.append(float(np.corrcoef(left, right)[0, 1]))
    return float(np.mean(told)) if told else None


def csu(a: Parts, b: Parts) -> float | None:
    """Assignment of up's rows against the identity."""
    return _spearman(a, b, lambda up, _: (up, np.arange(len(up))), ("up",))


def match(a: Parts, b: Parts) -> float | None:
    """Assignment of gate's rows against that of up's."""
    return _spearman(a, b, lambda up, gate: (up, gate), ("up", "gate"))


def _spearman(a: Parts, b: Parts, two: Callable[[Any, Any], Any], roles: tuple[str, ...]) -> float | None:
    logs = []
    for layer in sorted(set(a.layers) & set(b.layers)):
        maps = []
        for role in roles:
            mine, theirs = load(a, role, layer), load(b, role, layer)
            if mine is None or theirs is None or mine.shape != theirs.shape:
                return None
            maps.append(linear_sum_assignment(-cosines(mine, theirs))[1])
        first, second = two(maps[0], maps[-1])
        p = float(stats.spearmanr(first, second, alternative="greater").pvalue)
        logs.append(np.log(max(p, 1e-300)))
    if not logs:
        return None
    log_p = float(stats.chi2.logsf(-2 * sum(logs), 2 * len(logs)))
    return -(log_p if np.isfinite(log_p) else sum(logs)) / float(
        np.log(10)
    )  # beyond what doubles hold: the sum


def cka(a: Parts, b: Parts) -> float | None:
    """CKA of the tokens' embeddings."""
    found = tokens(a, b)
    return None if found is None else float(unbiased_cka(*(x - x.mean(axis=0) for x in found)))


METHODS: Mapping[str, Callable[[Parts, Parts], float | None]] = {
    "awm": awm,
    "huref": huref,
    "pdf": pdf,
    "csu": csu,
    "match": match,
    "cka": cka,
}


def measure(job: tuple[Pair, Path]) -> dict[str, Any]:
    """All methods on one pair."""
    pair, zoo = job
    edits = tuple(edit for edit in pair.edits if edit[0] != "rename_all")
    with tempfile.TemporaryDirectory() as folder:
        plain = Pair(pair.name, pair.row, pair.suspect, pair.source, pair.relations, edits)
        suspect = str(save(built(plain, zoo), Path(folder) / "suspect")) if edits else str(zoo / pair.suspect)
        sides = [
            parts_of(open_model(open_tree(path, offline=True))) for path in (suspect, str(zoo / pair.source))
        ]
        scores = {}
        for name, method in METHODS.items():
            value = method(sides[0], sides[1])
            scores[name] = None if value is None or not np.isfinite(value) else round(value, 6)
    return {"name": pair.name, "scores": scores}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    out: Path = arguments.out
    done = (
        {json.loads(line)["name"] for line in out.read_text("utf-8").splitlines()} if out.exists() else set()
    )
    jobs = [(pair, arguments.zoo) for pair in pairs() if pair.name not in done]
    with (
        multiprocessing.get_context("spawn").Pool(arguments.workers) as pool,
        out.open("a", encoding="utf-8") as file,
    ):
        for number, result in enumerate(pool.imap_unordered(measure, jobs, chunksize=4), 1):
            file.write(json.dumps(result) + "\n")
            if number % 100 == 0:
                print(f"\r{number} of {len(jobs)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


if __name__ == "__main__":
    main()
