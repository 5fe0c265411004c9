"""Writes ``src/drupe/data/ggml_grids.toml``: the codebooks of the IQ types, as facts of the format.

Usage: python tests/readers/format_files/make_grids.py (needs the PyPI package ``gguf``, a dev dependency).
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
from gguf import quants

TARGET = Path(__file__).parents[3] / "src" / "drupe" / "data" / "ggml_grids.toml"
NAMES = ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
HEAD = f"""\
# The codebooks of ggml's IQ types: row i of a grid is the vector that code i stands for. Facts of the format
# (iq*_grid in ggml/src/ggml-common.h, github.com/ggml-org/ggml, MIT licence, Copyright 2023-2026 The ggml
# authors), derived from the values that the PyPI package gguf {version("gguf")} (MIT licence) decodes with.
# "codes" packs the places in "levels", lowest bits first, "bits" each; "width" values make a vector.
# Made by tests/readers/format_files/make_grids.py.
"""


def table(name: str) -> str:
    kind = getattr(quants, name)
    kind.init_grid()
    grid = kind.grid.reshape(kind.grid_shape).astype(int)
    levels = sorted(set(grid.ravel().tolist()))
    bits = 2 if len(levels) <= 4 else 4
    digits = np.searchsorted(levels, grid).reshape(-1, 8 // bits).astype(np.uint8)
    packed = np.bitwise_or.reduce(digits << np.arange(0, 8, bits, dtype=np.uint8), axis=1)
    text = packed.astype(np.uint8).tobytes().hex()
    lines = "\n".join(text[start : start + 100] for start in range(0, len(text), 100))
    head = f"[{name.lower()}]\nlevels = {levels}\nbits = {bits}\nwidth = {grid.shape[1]}"
    return f'{head}\ncodes = """\n{lines}"""\n'


if __name__ == "__main__":
    TARGET.write_text("\n".join([HEAD, *map(table, NAMES)]), encoding="utf-8")
