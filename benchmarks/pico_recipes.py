"""What is trained by ``train_pico.py``: corpora, recipes and sizes, as data and pure functions (no torch)."""

from __future__ import annotations

import ast
import importlib.metadata
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

CORPUS_BYTES = 4_000_000
FILE_BYTES = 120_000  # no single licence or module may fill a corpus


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture and its sizes. ``tokenizer``: a key of TOKENIZERS; ``experts``: of a mixture, two a token."""

    kind: str  # llama | qwen2 | qwen3 | mixtral | gpt2 | neox | bert | t5
    tokenizer: str
    hidden: int
    layers: int
    heads: int
    ffn: int
    kv: int = 0
    tied: bool = False
    experts: int = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """One model: ``seed`` draws the initial weights, ``order`` the batches; ``parent`` replaces the seed.

    ``rank``, ``modules``: of a low-rank update that is trained alone and merged in, when the stage is ``lora``.
    """

    name: str
    family: str
    corpus: str
    seed: int = 0
    order: int = 0
    parent: str = ""
    stage: str = "train"  # train | tune (short, small rate) | continue (as long as the training) | lora
    rank: int = 0
    modules: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """The families of a set and the length of the trainings."""

    vocabulary: int
    steps: int
    families: dict[str, Family]
    recipes: tuple[Recipe, ...]


# name -> algorithm and corpus
TOKENIZERS = {
    "llama": ("bpe", "source"),
    "gpt2": ("bpe", "headers"),
    "bert": ("wordpiece", "licences"),
    "words": ("bpe", "docstrings"),
    "unigram": ("unigram", "docstrings"),
}

# Families: llama (r*), wide (w*, a Llama that no map takes to r*), qwen2 (q*), gpt2 (g*), bert (b*).
PICO = Scale(
    vocabulary=1024,
    steps=500,
    families={
        "llama": Family("llama", "llama", 64, 4, 4, 128, kv=2, tied=True),
        "wide": Family("llama", "llama", 48, 3, 4, 160, kv=2),
        "qwen2": Family("qwen2", "llama", 48, 3, 4, 128, kv=2, tied=True),
        "gpt2": Family("gpt2", "gpt2", 48, 3, 4, 192),
        "bert": Family("bert", "bert", 48, 3, 4, 192),
    },
    recipes=(
        Recipe("r0", "llama", "source", seed=0, order=0),
        Recipe("r1", "llama", "source", seed=1, order=1),
        Recipe("r3", "llama", "docstrings", seed=0, order=3),
        Recipe("r0_ft", "llama", "docstrings", order=10, parent="r0", stage="tune"),
        Recipe("r0_cpt", "llama", "licences", order=12, parent="r0", stage="continue"),
        Recipe("r0_cpt2", "llama", "headers", order=13, parent="r0_cpt", stage="continue"),
        Recipe("r2", "llama", "docstrings", seed=2, order=2),
        Recipe("r5", "llama", "source", seed=0, order=5),
        Recipe("g0", "gpt2", "headers", seed=20, order=20),
        Recipe("g1", "gpt2", "headers", seed=21, order=21),
        Recipe("g0_ft", "gpt2", "licences", order=22, parent="g0", stage="tune"),
        Recipe("b0", "bert", "licences", seed=30, order=30),
        Recipe("b1", "bert", "licences", seed=31, order=31),
        Recipe("w0", "wide", "source", seed=40, order=40),
        Recipe("q0", "qwen2", "source", seed=50, order=50),
    ),
)

ZOO = Scale(
    vocabulary=2048,
    steps=600,
    families={"llama": Family("llama", "llama", 128, 6, 4, 352, kv=2)},
    recipes=(
        Recipe("r0", "llama", "source", seed=0, order=0),
        Recipe("r1", "llama", "source", seed=1, order=1),
        Recipe("r3", "llama", "docstrings", seed=0, order=3),
        Recipe("r0_ft", "llama", "docstrings", order=10, parent="r0", stage="tune"),
        Recipe("r0_ft2", "llama", "licences", order=11, parent="r0", stage="tune"),
        Recipe("r0_cpt", "llama", "licences", order=12, parent="r0", stage="continue"),
        Recipe("r0_cpt2", "llama", "headers", order=13, parent="r0_cpt", stage="continue"),
        Recipe("r5", "llama", "source", seed=0, order=5),
        Recipe("r2", "llama", "docstrings", seed=2, order=2),
        Recipe("r0_cptc", "llama", "docstrings", order=14, parent="r0", stage="continue"),
        Recipe("r4", "llama", "licences", seed=4, order=4),
    ),
)

SCALES = {"pico": PICO, "zoo": ZOO}


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, owners) and node.body and isinstance(node.body[0], ast.Expr):
            value = node.body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value


def _library() -> Iterator[tuple[str, ast.Module]]:
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "test", "tests", "lib2to3", "idlelib", "turtledemo", "pydoc_data", "encodings"}
    for path in sorted(root.rglob("*.py")):
        if skip.isdisjoint(path.relative_to(root).parts):
            try:
                text = path.read_text("utf-8")
                yield text[:FILE_BYTES], ast.parse(text)
            except (SyntaxError, UnicodeDecodeError):
                continue


def source_corpus() -> Iterator[str]:
    """The standard library's code without its documentation strings, so that two corpora share no text."""
    for text, tree in _library():
        lines = text.split("\n")
        for value in _docstrings(tree):
            for number in range(value.lineno - 1, min(value.end_lineno or value.lineno, len(lines))):
                lines[number] = ""
        yield "\n".join(line for line in lines if line.strip())


def docstring_corpus() -> Iterator[str]:
    """The standard library's documentation strings and pydoc's language topics."""
    from pydoc_data.topics import topics  # no types; generated by CPython's own build

    yield from (str(topics[key]) for key in sorted(topics))
    for _, tree in _library():
        yield from (str(value.value) for value in _docstrings(tree))


def licence_corpus() -> Iterator[str]:
    """Licence, notice and description texts of the installed packages."""
    starts = ("LICEN", "METADATA", "README", "COPYING", "NOTICE")
    paths: dict[str, Path] = {}
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or ():
            if file.name.upper().startswith(starts):
                paths[str(file)] = Path(str(distribution.locate_file(file)))
    for _, path in sorted(paths.items()):
        if path.is_file():
            yield path.read_text("utf-8", "ignore")[:FILE_BYTES]


def header_corpus() -> Iterator[str]:
    """The C headers of Python and numpy."""
    import numpy as np

    for root in (Path(sysconfig.get_path("include")), Path(np.get_include())):
        for path in sorted(root.rglob("*.h")):
            yield path.read_text("utf-8", "ignore")[:FILE_BYTES]


CORPORA: dict[str, Callable[[], Iterator[str]]] = {
    "source": source_corpus,
    "docstrings": docstring_corpus,
    "licences": licence_corpus,
    "headers": header_corpus,
}


def corpus(name: str) -> list[str]:
    """The texts of a corpus, in a fixed order, up to CORPUS_BYTES characters."""
    texts: list[str] = []
    total = 0
    for text in CORPORA[name]():
        if total >= CORPUS_BYTES:
            break
        texts.append(text)
        total += len(text)
    return texts
