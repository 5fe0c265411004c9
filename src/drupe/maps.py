"""The recovered maps as a file: which matrix, layer, unit, token and dimension is which, and the rotation.

A NumPy archive (.npz) without pickled objects. ``index`` is a JSON text that says what the arrays are; a stranger
undoes the change with it and a few lines of NumPy (docs/how-to.md), and need not trust a word of the report.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drupe.diagnose import Diagnosis
from drupe.model import Matrix
from drupe.recover.findings import Lineage, PairFacts
from drupe.recover.parts import OUTPUT_ROLES

FORMAT = "drupe-maps-1"

Arrays = dict[str, NDArray[Any]]


def to_bytes(diagnosis: Diagnosis) -> bytes:
    """The archive. It holds the format alone when nothing was found to correspond."""
    arrays: Arrays = {}
    parts = [_part(number, *given, arrays) for number, given in enumerate(_lineages(diagnosis))]
    index = json.dumps({"format": FORMAT, "parts": parts}, ensure_ascii=False)
    buffer = io.BytesIO()
    np.savez(buffer, index=np.array(index), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _lineages(diagnosis: Diagnosis) -> Iterator[tuple[str, int, Lineage]]:
    """Name of the part, number of the source, and the facts, of all parts that were compared."""
    if not diagnosis.parts:
        if diagnosis.comparison.lineage is not None:
            yield "model", 0, diagnosis.comparison.lineage
        return
    for part in diagnosis.parts:
        if part.diagnosis is not None and part.diagnosis.comparison.lineage is not None:
            yield part.name, part.source or 0, part.diagnosis.comparison.lineage


def _part(number: int, name: str, source: int, lineage: Lineage, arrays: Arrays) -> dict[str, object]:
    """Arrays are named by number: a part's name is the artefact's, and an archive's entry may become a file."""
    prefix = f"{number}/"
    found: dict[str, object] = {"part": name, "source": source, "basis": lineage.basis.value}
    found["complete"] = lineage.full
    found["layers"] = [list(pair) for pair in lineage.layer_map]
    found["vectors"] = dict(lineage.tensors)
    if lineage.rotation is not None:
        found["rotation"] = _keep(arrays, f"{prefix}rotation", lineage.rotation)
    if lineage.hidden is not None:
        found["hidden"] = _keep(arrays, f"{prefix}hidden", lineage.hidden.columns)
        found["signs"] = _keep(arrays, f"{prefix}signs", lineage.hidden.signs)
    proven = [pair for pair in lineage.pairs if pair.proven]
    found["matrices"] = [_matrix(f"{prefix}{number}/", pair, arrays) for number, pair in enumerate(proven)]
    return found


def _matrix(prefix: str, pair: PairFacts, arrays: Arrays) -> dict[str, object]:
    """One proven pair: where it stands on both sides, and what turns one into the other."""
    role, layer = pair.place
    entry: dict[str, object] = {"role": role, "layer": layer}
    entry["suspect"], entry["source"] = _place(pair.suspect), _place(pair.source)
    entry["units_axis"] = int(role.rpartition(".")[2] in OUTPUT_ROLES)
    entry["sign"] = -1 if pair.negated else 1
    entry["unexplained"] = round(float(pair.residual.rho) ** 2, 9)
    named: dict[str, NDArray[Any] | None] = {"partners": pair.partners}
    named["suspect_gain"], named["source_gain"] = pair.gains
    named["row_scales"], named["column_scales"] = pair.scales or (None, None)
    for name, values in named.items():
        if values is not None:
            entry[name] = _keep(arrays, prefix + name, values)
    return entry


def _place(matrix: Matrix) -> dict[str, object]:
    """Which rows of which tensor; rows and columns as the comparison sees them, output units as rows."""
    return {key: value for key, value in asdict(matrix).items() if key not in ("role", "layer")}


def _keep(arrays: Arrays, name: str, values: NDArray[Any]) -> str:
    arrays[name] = values
    return name
