"""From "these layers correspond" to pairs of matrices in one coordinate system, one pair at a time.

Each pair is tested by itself (permutation z, the row map found on other values than it is tested on), so that a
map, which always comes out of an alignment, never passes for evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from drupe.model import Block, Matrix
from drupe.readers.interface import FloatArray
from drupe.recover.hidden import HiddenMap
from drupe.recover.parts import HIDDEN_ROLES, Parts, Place, dense_role
from drupe.recover.rotation import undo_rotation
from drupe.recover.tokens import TokenRows, shared_tokens
from drupe.recover.units import (
    MAX_ROWS,
    MOVED_GAIN,
    SIGNIFICANT_Z,
    RowMap,
    in_order,
    mapped_z,
    match_rows,
    recover_rows,
    row_permutation_z,
)
from drupe.roles import is_table_role
from drupe.signals.sketch.bits import window
from drupe.signals.sketch.spread import is_sampled

MOVED_CHANGE = 0.5
"""Relative change below which rows are taken to stand where they stood."""
POSITIONS = ("position", "token_type")
CONTROLS = 3
CONTROL_FACTOR = 2.0
"""z must exceed that of another layer by this factor: starts with structure make all layers alike."""
TABLE_Z = 12.0
"""Permutation z from which a table of tokens counts as corresponding; up to 7 between independent models."""
LEAN_ROWS = 4096
"""Rows of a token table that a lean plan turns back."""
SAMPLE_ROWS = 64
"""Rows of a matrix that a sampled comparison reads (one window of columns each)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What recovery believes: suspect layer -> source layer, the basis, and how much may be read."""

    layer_map: tuple[tuple[int, int], ...]
    rotation: FloatArray | None
    full: bool
    hidden: HiddenMap | None = None
    lean: bool = False
    """Of token tables some rows only: turning all of them back costs more than the layers do."""


@dataclass(frozen=True, slots=True)
class AlignedPair:
    """One pair in the source's coordinates; ``z`` is its own permutation z, ``moved`` what was permuted."""

    place: Place
    """The suspect's role and layer; borrowed from the source when its own names say nothing."""
    suspect: Matrix
    source: Matrix
    suspect_values: FloatArray
    source_values: FloatArray
    raw: bool
    """Whether the suspect's values are as stored (no rotation, no folding): grids are visible only then."""
    z: float
    moved: str | None = None
    reordered: bool = False
    """Whether what moved stands in another order, not only with gaps."""
    negated: bool = False
    """The suspect's values are the source's times a negative factor; they were negated back."""
    control: float = 0.0
    """Smallest |z| of the same matrix against other layers of the source: structure that all layers share."""

    @property
    def proven(self) -> bool:
        """Whether the rows correspond beyond chance.

        Token rows of unrelated models share the direction of frequency, so tables need twice the z.
        """
        floor = TABLE_Z if is_table_role(self.place[0]) or self.place[0] in POSITIONS else SIGNIFICANT_Z
        return self.z >= max(floor, CONTROL_FACTOR * self.control)


def align(a: Parts, b: Parts, plan: Plan) -> Iterator[AlignedPair]:
    """Token tables first, then the mapped layers; absent roles are left out."""
    tokens = shared_tokens(a, b, limit=0)
    for place in sorted((place for place in a.places if place[1] is None), key=str):
        pair = (
            _token_pair(a, b, place, plan, tokens)
            if is_table_role(place[0])
            else _plain(a, b, place, place, plan)
        )
        if pair is not None:
            yield pair
    controls: dict[str, float] = {}
    for i, j in plan.layer_map:
        yield from _layer(a, b, i, j, plan, controls)


def _token_pair(
    a: Parts, b: Parts, place: tuple[str, int | None], plan: Plan, tokens: TokenRows | None
) -> AlignedPair | None:
    mine, theirs = a.places[place], b.places.get(place)
    if theirs is None and place[0] == "head":  # a tied head is the embedding
        theirs = b.places.get(("embed", None))
    if theirs is None or (mine.columns != theirs.columns and plan.hidden is None):
        return None
    in_place = _plain(a, b, place, place, plan, crop=True) if mine.rows == theirs.rows else None
    if in_place is not None and in_place.proven:
        return in_place
    if tokens is None or not plan.full:
        return in_place or _plain(a, b, place, place, plan, crop=True)
    suspect, source = a.model.load(mine)[tokens.suspect], b.model.load(theirs)[tokens.source]
    if plan.hidden is not None:
        moved = plan.hidden.apply(place[0], source)
        source = source if moved is None else moved
    if suspect.shape != source.shape:
        return None
    if plan.rotation is not None:
        suspect = undo_rotation(place[0], suspect, plan.rotation)
    z = row_permutation_z(suspect, source)
    found = AlignedPair(place, mine, theirs, suspect, source, False, z)
    if mine.rows != theirs.rows:
        return found
    return replace(found, moved="vocabulary", reordered=True) if found.proven else in_place


def _plain(
    a: Parts,
    b: Parts,
    mine: tuple[str, int | None],
    theirs: tuple[str, int | None],
    plan: Plan,
    *,
    crop: bool = False,
) -> AlignedPair | None:
    """Rows in place; in a rotated basis the gains are folded and the rotation undone.

    FFN matrices of another number of units are kept as they are: their rows are still to be found.
    """
    left, right = a.places.get(mine), b.places.get(theirs)
    if right is None and theirs[0] == "head":
        right = b.places.get(("embed", None))
    if left is None or right is None:
        return None
    loaded = _both(a, b, left, right, mine[0], plan, crop=crop)
    if loaded is None:
        return None
    suspect, source = loaded
    if suspect.shape != source.shape:
        return AlignedPair(mine, left, right, suspect, source, plan.rotation is None, 0.0)
    suspect, source = _drop_empty_rows(suspect, source)
    if plan.lean and crop:
        step = max(1, len(suspect) // LEAN_ROWS)
        suspect, source = suspect[::step], source[::step]
    if plan.rotation is not None:
        suspect = undo_rotation(mine[0], _folded(a, mine, suspect), plan.rotation)
        source = _folded(b, theirs, source)
    z = row_permutation_z(suspect, source)
    negated = z <= -SIGNIFICANT_Z
    if negated:
        suspect, z = -suspect, -z
    return AlignedPair(mine, left, right, suspect, source, plan.rotation is None, z, negated=negated)


def _both(
    a: Parts, b: Parts, left: Matrix, right: Matrix, role: str, plan: Plan, *, crop: bool
) -> tuple[FloatArray, FloatArray] | None:
    """Values of both sides, the source's in the suspect's dimensions; None when they cannot correspond."""
    if plan.hidden is not None:
        moved = plan.hidden.apply(role, b.model.load(right))
        if moved is None:
            return None
        suspect = a.model.load(left)
        source = moved[: len(suspect)] if crop else moved
        suspect = suspect[: len(source)] if crop else suspect
    else:
        axis = int(role.rpartition(".")[2] == "down")  # of the units
        sizes = ((left.rows, left.columns), (right.rows, right.columns))
        differs = [mine != theirs for mine, theirs in zip(*sizes, strict=True)]
        if (differs[1] and not (axis == 1 and plan.full)) or (differs[0] and not crop and not plan.full):
            return None
        rows = min(left.rows, right.rows) if crop else None
        suspect, source = (_values(p, m, rows, plan.full) for p, m in ((a, left), (b, right)))
    if suspect.shape == source.shape:
        return suspect, source
    units = role.rpartition(".")[2]
    fits = units in ("gate", "up") and suspect.shape[1] == source.shape[1]
    fits |= units == "down" and suspect.shape[0] == source.shape[0]
    return (suspect, source) if fits and plan.rotation is None and plan.full else None


def _values(parts: Parts, matrix: Matrix, rows: int | None, full: bool) -> FloatArray:
    if full:
        return parts.model.load(matrix)[:rows]
    start, stop = window(matrix.columns)
    most = matrix.rows if rows is None else rows
    return parts.model.read([Block(matrix, 0, min(most, SAMPLE_ROWS), start, stop)])[0]


def _drop_empty_rows(suspect: FloatArray, source: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Rows that are zero on both sides say nothing (padding, holes)."""
    kept = suspect.any(axis=1) | source.any(axis=1)
    return (suspect, source) if kept.all() or not kept.any() else (suspect[kept], source[kept])


def _folded(parts: Parts, place: tuple[str, int | None], values: FloatArray) -> FloatArray:
    """The matrix with the norm gain in front of it folded in; output matrices have none."""
    if place[0].rpartition(".")[2] not in ("q", "k", "v", "gate", "up", "head"):
        return values
    gain = parts.gain(*place)
    return values if gain is None or gain.size != values.shape[1] else values * gain


def _layer(
    a: Parts, b: Parts, i: int, j: int, plan: Plan, controls: dict[str, float]
) -> Iterator[AlignedPair]:
    roles = sorted({role for role, layer in a.places if layer == i and (plan.full or is_sampled(role))})
    pairs = {role: _plain(a, b, (role, i), (_dense(role, j, b), j), plan) for role in roles}
    found = {}
    for role, pair in pairs.items():
        if pair is not None:
            if role not in controls and pair.z >= SIGNIFICANT_Z:  # one layer tells what all of them share
                controls[role] = _control(b, pair, j, plan)
            found[role] = replace(pair, control=controls.get(role, 0.0))
    if plan.full:
        found = {role: _unless_moved(pair) for role, pair in found.items()}
        for stack in sorted({role[: -len("up")] for role in found if role.rpartition(".")[2] == "up"}):
            found = _undo_units(found, stack)
        for role, pair in found.items():
            if role.rpartition(".")[2] in ("q", "k", "v", "o") and not _in_place(pair):
                found[role] = _undo_rows(pair, columns=role.rpartition(".")[2] == "o")
        found = {role: pair for role, pair in found.items() if _is_square(pair)}
        found = {role: _negated_back(pair) for role, pair in found.items()}
    order = {role: place for place, role in enumerate(HIDDEN_ROLES)}
    for role in sorted(found, key=lambda r: order.get(r, 99)):
        yield found[role]


def _dense(role: str, layer: int, source: Parts) -> str:
    """The role in a source that has no experts: any of them may be a copy of its FFN."""
    return role if (role, layer) in source.places else dense_role(role)


def _control(b: Parts, pair: AlignedPair, layer: int, plan: Plan) -> float:
    """Smallest |z| of the suspect's matrix against up to three other layers of the source, same role.

    The smallest: a start with structure raises all layers, a repeated layer only some. 0 without another layer.
    """
    role = pair.source.role or pair.place[0]
    others = [other for other in b.layers if other != layer and (role, other) in b.places]
    if not others:
        return 0.0
    step = max(1, len(others) // CONTROLS)
    return min(_other_z(b, pair, role, other, plan) for other in others[::step][:CONTROLS])


def _other_z(b: Parts, pair: AlignedPair, role: str, layer: int, plan: Plan) -> float:
    matrix = b.places[role, layer]
    if (matrix.rows, matrix.columns) != (pair.source.rows, pair.source.columns):
        return 0.0
    if plan.hidden is not None:
        values = b.model.load(matrix)
        moved = plan.hidden.apply(role, values)
        values = values if moved is None else moved
        rows = min(len(values), len(pair.suspect_values))
        return abs(row_permutation_z(pair.suspect_values[:rows], values[:rows]))
    if not plan.full:
        values = _values(b, matrix, matrix.rows, full=False)
        rows = min(len(values), len(pair.suspect_values))
        return abs(row_permutation_z(pair.suspect_values[:rows], values[:rows]))
    count = min(matrix.rows, len(pair.suspect_values))
    step = max(1, count // MAX_ROWS)
    chosen = range(0, step * (count // step), step)  # the rows that the test takes, and no others
    blocks = [Block(matrix, row, row + 1, 0, matrix.columns) for row in chosen]
    values = np.concatenate(b.model.read(blocks))
    if plan.rotation is not None:
        values = _folded(b, (role, layer), values)
    return abs(row_permutation_z(pair.suspect_values[: step * (count // step) : step], values))


def _is_square(pair: AlignedPair) -> bool:
    """Whether both sides have one shape: units of another number were found."""
    return pair.suspect_values.shape == pair.source_values.shape


def _unless_moved(pair: AlignedPair) -> AlignedPair:
    """Heads in another order may look negated, row by row: the sign is judged again when rows have moved."""
    if not pair.negated or relative_change(pair) < MOVED_CHANGE:
        return pair
    return replace(pair, suspect_values=-pair.suspect_values, z=-pair.z, negated=False)


def _negated_back(pair: AlignedPair) -> AlignedPair:
    """A pair that no map explains better than a negative factor."""
    if pair.negated or pair.moved is not None or pair.z > -SIGNIFICANT_Z:
        return pair
    return replace(pair, suspect_values=-pair.suspect_values, z=-pair.z, negated=True)


def _in_place(pair: AlignedPair) -> bool:
    """Proven as it stands, and so alike that no row can have moved."""
    return pair.proven and _is_square(pair) and relative_change(pair) < MOVED_CHANGE


def relative_change(pair: AlignedPair) -> float:
    """|D| / |A| of a pair."""
    norm = float(np.linalg.norm(pair.source_values))
    return float(np.linalg.norm(pair.suspect_values - pair.source_values)) / norm if norm else 0.0


def _undo_units(found: dict[str, AlignedPair], stack: str) -> dict[str, AlignedPair]:
    """FFN units of one stack or expert: the map is found on one matrix and tested on another, then applied to all."""
    votes = [role for name in ("gate", "up", "down") if (role := stack + name) in found]
    if len(votes) < 2 or all(_in_place(found[role]) for role in votes):
        return found
    first, second = votes[0], votes[1]
    rows = match_rows(_unit_view(found[first], True), _unit_view(found[first], False))
    views = (_unit_view(found[second], True), _unit_view(found[second], False))
    z = mapped_z(*views, rows)
    stays = mapped_z(*views, in_order(rows)) if _is_square(found[second]) else 0.0
    if z < SIGNIFICANT_Z or z < MOVED_GAIN * stays:
        return found
    undone = dict(found)
    for role in votes:
        undone[role] = _move(found[role], rows, columns=role == f"{stack}down", z=z)
    return undone


def _unit_view(pair: AlignedPair, suspect: bool) -> FloatArray:
    """Units as rows."""
    values = pair.suspect_values if suspect else pair.source_values
    return values.T if pair.place[0].rpartition(".")[2] == "down" else values


def _undo_rows(pair: AlignedPair, *, columns: bool) -> AlignedPair:
    suspect, source = pair.suspect_values, pair.source_values
    if columns:
        suspect, source = suspect.T, source.T
    recovery = recover_rows(suspect, source)
    return pair if recovery.rows is None else _move(pair, recovery.rows, columns=columns, z=recovery.z)


def _move(pair: AlignedPair, rows: RowMap, *, columns: bool, z: float) -> AlignedPair:
    """Keep the matched units of both sides, the source's in the suspect's order."""
    found = np.flatnonzero(rows.source_rows >= 0)
    partner = rows.source_rows[found]
    suspect, source = pair.suspect_values, pair.source_values
    suspect = suspect[:, found] if columns else suspect[found]
    source = source[:, partner] if columns else source[partner]
    kind = "units" if pair.place[0].rpartition(".")[2] in ("gate", "up", "down") else "heads"
    reordered = bool((np.diff(partner) < 0).any())
    return replace(
        pair, suspect_values=suspect, source_values=source, z=z, moved=kind, reordered=reordered, control=0.0
    )


def thinned(pair: AlignedPair, most: int = 1 << 22) -> AlignedPair:
    """The same with fewer rows, evenly spread, for what is measured by its statistics."""
    step = max(1, pair.suspect_values.size // most)
    return replace(pair, suspect_values=pair.suspect_values[::step], source_values=pair.source_values[::step])


def spread(layers: Sequence[tuple[int, int]], most: int) -> tuple[tuple[int, int], ...]:
    """At most ``most`` of the layer pairs, evenly spread, first and last included."""
    if len(layers) <= most:
        return tuple(layers)
    return tuple(layers[int(k)] for k in np.linspace(0, len(layers) - 1, most))
