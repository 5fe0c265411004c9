"""What was done to names, files, layers, vocabulary and order. Values are in residual.py. Pure."""

from __future__ import annotations

import numpy as np

from drupe.comparison import Comparison
from drupe.diagnose.kinds import Kind, Transformation, Value
from drupe.diagnose.residual import classify
from drupe.fingerprint import Fingerprint
from drupe.messages import Message, msg
from drupe.recover.experts import expert_of
from drupe.recover.findings import Basis, Lineage, PairFacts
from drupe.recover.parts import dense_role


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
    more = [
        *_experts(c.lineage),
        *_widths(c.lineage),
        *_layers(c, c.lineage),
        *_vocabulary(c),
        *_moved(c.lineage),
    ]
    changes = [*outcome.changes, *more, *surface]
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
        for match in (c.lineage.evidence.strong if c.lineage else c.sketch.matched)
        if right[match.source].tensor != left[match.suspect].tensor
        and not _is_expert_of(left[match.suspect].role, right[match.source].role)
        and not _is_other_expert(left[match.suspect].role, right[match.source].role)
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
        for what in ("units", "heads", "vocabulary")
        if any(pair.moved == what and pair.reordered for pair in lineage.pairs if pair.proven)
    ]
    experts = _experts_moved(lineage)
    if experts:
        found.append(Transformation(Kind.PERMUTED, {"what": "experts", "map": experts}))
    hidden = lineage.hidden
    if hidden is not None and hidden.kept == 1.0:
        found.insert(0, Transformation(Kind.PERMUTED, {"what": "hidden", "negated": hidden.flipped}))
    if lineage.basis is Basis.ROTATED:
        found.insert(0, Transformation(Kind.ROTATED))
    return found


def _experts_moved(lineage: Lineage) -> dict[str, Value]:
    """``layer.expert`` of the suspect -> number of the source's expert, where any of them moved."""
    table: dict[str, Value] = {}
    for pair in lineage.pairs:
        mine, theirs = expert_of(pair.suspect.role), expert_of(pair.source.role)
        if pair.proven and mine is not None and theirs is not None:
            table[f"{pair.suspect.layer}.{mine[1]}"] = theirs[1]
    return table if any(int(key.rpartition(".")[2]) != value for key, value in table.items()) else {}


def _is_other_expert(suspect: str | None, source: str | None) -> bool:
    """Whether two experts have changed places: their order is told by itself, not as a rename."""
    return suspect != source and expert_of(suspect) is not None and expert_of(source) is not None


def _is_expert_of(suspect: str | None, source: str | None) -> bool:
    """Whether a role is that of an expert, and the other the same one in a model without experts."""
    return suspect is not None and suspect != source and dense_role(suspect) == source


def _is_upcycled(pair: PairFacts) -> bool:
    return _is_expert_of(pair.place[0], pair.source.role)


def _experts(lineage: Lineage) -> list[Transformation]:
    """The FFN of a dense source as the experts of a mixture: copies of it, or parts."""
    found = [pair for pair in lineage.pairs if pair.proven and _is_upcycled(pair)]
    if not found:
        return []
    count = len({pair.place[0].rpartition(".")[0] for pair in found})
    layers = {str(i): j for i, j in lineage.layer_map}
    kept = round(float(np.median([min(1.0, pair.suspect.size / pair.source.size) for pair in found])), 4)
    return [Transformation(Kind.MOE_UPCYCLED, {"experts": count, "map": layers, "kept": kept})]


def _widths(lineage: Lineage) -> list[Transformation]:
    """Dimensions of the residual stream, and units of the FFN, that were left out."""
    kept: dict[str, Value] = {}
    if lineage.hidden is not None and lineage.hidden.kept < 1.0:
        kept["hidden"] = round(lineage.hidden.kept, 4)
    if lineage.rotation is not None and lineage.rotation.shape[1] < len(lineage.rotation):
        kept["hidden"] = round(lineage.rotation.shape[1] / len(lineage.rotation), 4)
    shares = [
        pair.suspect.rows / pair.source.rows
        for pair in lineage.pairs
        if pair.proven
        and pair.moved == "units"
        and pair.place[0].rpartition(".")[2] == "up"
        and not _is_upcycled(pair)
    ]
    if shares and float(np.median(shares)) < 1.0:
        kept["units"] = round(float(np.median(shares)), 4)
    return [Transformation(Kind.WIDTH_PRUNED, {"kept": kept})] if kept else []
