"""What was done to names, files, layers, vocabulary and order. Values are in residual.py. Pure."""

from __future__ import annotations

from drupe.comparison import Comparison
from drupe.diagnose.kinds import Kind, Transformation, Value
from drupe.diagnose.residual import classify
from drupe.fingerprint import Fingerprint
from drupe.messages import Message, msg
from drupe.recover.findings import Basis, Lineage


def transformations_of(c: Comparison) -> tuple[tuple[Transformation, ...], bool, tuple[Message, ...]]:
    """What was done, the largest change first; whether nothing was; reasons."""
    surface = [*_renamed(c), *_resharded(c)]
    if c.lineage is None or not c.lineage.pairs:
        unchanged = c.same_values == 1.0
        changes = [] if unchanged else [Transformation(Kind.UNKNOWN_CHANGE, {"relative_change": None})]
        if c.lineage is not None and c.lineage.basis is Basis.ROTATED:
            changes.insert(0, Transformation(Kind.ROTATED))
        if c.lineage is not None and c.lineage.rows is not None:
            changes.insert(0, Transformation(Kind.PERMUTED, {"what": "units"}))
        return tuple(changes + surface), unchanged, () if unchanged else (msg("diagnosis.change_untold"),)
    outcome = classify(c, c.lineage)
    changes = [*outcome.changes, *_layers(c, c.lineage), *_vocabulary(c), *_moved(c.lineage), *surface]
    return tuple(changes), outcome.unchanged and not changes, outcome.reasons


def _renamed(c: Comparison) -> list[Transformation]:
    """Renames from the names alone, or, when the names are opaque, from the contents."""
    by_names = c.names
    if by_names is not None and by_names.renamed_tensors and by_names.unexplained == 0:
        parameters: dict[str, Value] = {
            "count": len(by_names.renamed_modules),
            "map": dict(by_names.renamed_modules),
        }
        return [Transformation(Kind.RENAMED, parameters)]
    left, right = c.suspect.weights.matrices, c.source.weights.matrices
    renamed = {
        right[match.source].tensor: left[match.suspect].tensor
        for match in (c.lineage.evidence.matched if c.lineage else c.sketch.matched)
        if right[match.source].tensor != left[match.suspect].tensor
        and not {right[match.source].role, left[match.suspect].role} <= {"embed", "head"}  # a tied head
    }
    if not renamed:
        return []
    for suspect, origin in c.lineage.tensors.items() if c.lineage else ():
        if origin not in renamed and suspect not in renamed.values() and suspect != origin:
            renamed[origin] = suspect
    if c.lineage is not None and any(i != j for i, j in c.lineage.layer_map):
        return []  # other numbers are a layer map, not names
    return [Transformation(Kind.RENAMED, {"count": len(renamed), "map": renamed})]


def _resharded(c: Comparison) -> list[Transformation]:
    a, b = c.suspect.storage, c.source.storage
    if a.format == b.format and a.files != b.files:
        return [Transformation(Kind.RESHARDED, {"from": b.files, "to": a.files})]
    return []


def _layers(c: Comparison, lineage: Lineage) -> list[Transformation]:
    """Dropped, repeated, reordered: read off the layer map."""
    if not lineage.layer_map:
        return []
    targets = [j for _, j in lineage.layer_map]
    table = {str(i): j for i, j in lineage.layer_map}
    depths = [_depth(side) for side in (c.suspect, c.source)]
    if len(set(targets)) < len(targets):
        return [Transformation(Kind.DEPTH_UPSCALED, {"map": table})]
    if targets != sorted(targets):
        return [Transformation(Kind.LAYERS_REORDERED, {"map": table})]
    if 0 < depths[0] < depths[1] and len(targets) == depths[0]:
        return [Transformation(Kind.LAYERS_DROPPED, {"map": table})]
    return []


def _depth(side: Fingerprint) -> int:
    """Number of layers: as the configuration states, else counted; 0 where the names say nothing about layers."""
    known = {matrix.layer for matrix in side.weights.matrices if matrix.layer is not None}
    stated = side.structure.canonical.get("num_hidden_layers")
    return stated if known and isinstance(stated, int) else len(known)


def _vocabulary(c: Comparison) -> list[Transformation]:
    tables = [
        next((m for m in side.weights.matrices if m.role == "embed"), None) for side in (c.suspect, c.source)
    ]
    if tables[0] is None or tables[1] is None or tables[0].rows == tables[1].rows:
        return []
    difference = tables[0].rows - tables[1].rows
    added = c.tokenizer.only_suspect if c.tokenizer else max(difference, 0)
    removed = c.tokenizer.only_source if c.tokenizer else max(-difference, 0)
    offset = c.tokenizer.offset if c.tokenizer else 0
    parameters: dict[str, Value] = {
        "added": max(added, difference, 0),
        "removed": max(removed, -difference, 0),
        "offset": offset,
    }
    return [Transformation(Kind.VOCABULARY_CHANGED, parameters)]


def _moved(lineage: Lineage) -> list[Transformation]:
    found = [
        Transformation(Kind.PERMUTED, {"what": what})
        for what in ("units", "heads")
        if any(pair.moved == what for pair in lineage.pairs if pair.proven)
    ]
    if lineage.basis is Basis.ROTATED:
        found.insert(0, Transformation(Kind.ROTATED))
    return found
