"""From "these layers correspond" to pairs of matrices in one coordinate system, one pair at a time.

Each pair is tested by itself (permutation z, the row map found on other values than it is tested on), so that a
map, which always comes out of an alignment, never passes for evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from drupe.model import Block, Matrix
from drupe.readers.interface import FloatArray
from drupe.recover.hidden import HiddenMap
from drupe.recover.parts import HIDDEN_ROLES, OUTPUT_ROLES, Parts, Place, dense_role, runs
from drupe.recover.rotation import NarrowTurn, undo_rotation
from drupe.recover.tokens import TokenRows, shared_tokens
from drupe.recover.units import (
    MAX_ROWS,
    MOVED_GAIN,
    SIGNIFICANT_Z,
    RowMap,
    in_order,
    is_reordered,
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
ROW_ROLES = ("q", "k", "v", "o", "router")
"""Matrices whose rows (o: columns) may stand in another order by themselves: heads, experts."""
POSITIONS = ("position", "token_type")
CONTROLS = 3
CONTROL_FACTOR = 2.0
"""z must exceed that of another layer by this factor: starts with structure make all layers alike."""
TABLE_Z = 12.0
"""Permutation z from which a table of tokens counts as corresponding; up to 7 between independent models."""
LEAN_ROWS = 1024
"""Rows (units, tokens) of a matrix that a lean plan turns back."""
Numbers = NDArray[np.intp]
Gains = tuple[FloatArray | None, FloatArray | None]
"""Norm gains that were folded into the columns of the suspect and of the source."""
SAMPLE_ROWS = 64
"""Rows of a matrix that a sampled comparison reads (one window of columns each)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What recovery believes: suspect layer -> source layer, the basis, and how much may be read."""

    layer_map: tuple[tuple[int, int], ...]
    rotation: FloatArray | None
    full: bool
    hidden: HiddenMap | NarrowTurn | None = None
    """Brings the source into the suspect's dimensions, where those are fewer or in another order."""
    lean: bool = False
    """Of every matrix some evenly spread units or tokens only: turning all of them back is what costs."""

    @property
    def folds(self) -> bool:
        """Whether norm gains are folded into the matrices behind them: only so does a rotation undo."""
        return self.rotation is not None or isinstance(self.hidden, NarrowTurn)

    def taken(self, count: int) -> Numbers | slice:
        """Which of ``count`` units or tokens are looked at."""
        return runs(count, LEAN_ROWS) if self.lean else slice(None)


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
    """Whether the suspect's values are as stored (no rotation, no folding)."""
    z: float
    moved: str | None = None
    reordered: bool = False
    """Whether what moved stands in another order, not only with gaps."""
    negated: bool = False
    """The suspect's values are the source's times a negative factor; they were negated back."""
    numbers: Numbers | None = None
    """Which of the suspect's units, and of the source's, the values are; None: all of them, in order."""
    stored: FloatArray | None = None
    """The suspect's values before a rotation was undone."""
    partners: Numbers | None = None
    """(k, 2): units or tokens of the suspect, and of the source, that belong together; None: all stand in place."""
    gains: Gains = (None, None)
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
        yield from align_layer(a, b, i, j, plan, controls)


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
    taken = plan.taken(len(tokens.suspect))
    gains = _gains(a, b, place, place, (mine, theirs), plan)
    suspect = _times(a.rows(mine, tokens.suspect[taken]), gains[0])
    source = _times(b.rows(theirs, tokens.source[taken]), gains[1])
    if plan.hidden is not None:
        moved = plan.hidden.apply(place[0], source)
        source = source if moved is None else moved
    if suspect.shape != source.shape:
        return None
    if plan.rotation is not None:
        suspect = undo_rotation(place[0], suspect, plan.rotation)
    z = row_permutation_z(suspect, source)
    partners = np.stack([tokens.suspect[taken], tokens.source[taken]], axis=1)
    found = AlignedPair(place, mine, theirs, suspect, source, False, z, partners=partners, gains=gains)
    if mine.rows != theirs.rows and not is_reordered(partners[:, 1]):
        return found
    return replace(found, moved="vocabulary", reordered=True) if found.proven else in_place or found


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
    gains = _gains(a, b, mine, theirs, (left, right), plan)
    loaded = _both(a, b, left, right, mine[0], plan, gains, crop=crop)
    if loaded is None:
        return None
    suspect, source = loaded
    numbers = _numbers(mine[0], left, plan)
    if suspect.shape == source.shape and not (plan.lean and _is_output(mine[0])):
        suspect, source, numbers = _drop_empty_rows(mine[0], suspect, source, numbers)
    stored = None
    if plan.rotation is not None:
        stored = suspect if gains[0] is None or (gains[0] == 1.0).all() else None
        suspect = undo_rotation(mine[0], suspect, plan.rotation)
    found = AlignedPair(
        mine, left, right, suspect, source, not plan.folds, 0.0, numbers=numbers, gains=gains, stored=stored
    )
    if suspect.shape != source.shape:
        return found
    z = row_permutation_z(suspect, source)
    negated = z <= -SIGNIFICANT_Z
    if negated:
        suspect, z = -suspect, -z
    return replace(found, suspect_values=suspect, z=z, negated=negated)


def _both(
    a: Parts, b: Parts, left: Matrix, right: Matrix, role: str, plan: Plan, gains: Gains, *, crop: bool
) -> tuple[FloatArray, FloatArray] | None:
    """Values of both sides, gains folded, the source's in the suspect's dimensions; None: they cannot correspond."""
    if plan.hidden is not None:
        moved = plan.hidden.apply(role, _times(b.model.load(right), gains[1]))
        if moved is None:
            return None
        suspect = _times(a.model.load(left), gains[0])
        source = moved[: len(suspect)] if crop else moved
        suspect = suspect[: len(source)] if crop else suspect
        suspect, source = (_sample(role, values, plan) for values in (suspect, source))
    else:
        axis = int(role.rpartition(".")[2] == "down")  # of the units
        sizes = ((left.rows, left.columns), (right.rows, right.columns))
        differs = [mine != theirs for mine, theirs in zip(*sizes, strict=True)]
        if (differs[1] and not (axis == 1 and plan.full)) or (differs[0] and not crop and not plan.full):
            return None
        rows = min(left.rows, right.rows) if crop else None
        sides = ((a, left, gains[0]), (b, right, gains[1]))
        suspect, source = (_times(_values(p, m, role, rows, plan), gain) for p, m, gain in sides)
    if suspect.shape == source.shape:
        return suspect, source
    units = role.rpartition(".")[2]
    fits = units in ("gate", "up") and suspect.shape[1] == source.shape[1]
    fits |= units == "down" and suspect.shape[0] == source.shape[0]
    return (suspect, source) if fits and plan.full else None


def _sample(role: str, values: FloatArray, plan: Plan) -> FloatArray:
    """The units or tokens that the plan takes of a whole matrix."""
    if _is_output(role):
        return values[:, plan.taken(values.shape[1])]
    return values[plan.taken(len(values))]


def _values(parts: Parts, matrix: Matrix, role: str, rows: int | None, plan: Plan) -> FloatArray:
    count = matrix.rows if rows is None else rows
    if plan.lean and not _is_output(role):
        return parts.rows(matrix, runs(count, LEAN_ROWS))
    if plan.full:
        return _sample(role, parts.model.load(matrix)[:count], plan)
    start, stop = window(matrix.columns)
    return parts.model.read([Block(matrix, 0, min(count, SAMPLE_ROWS), start, stop)])[0]


def _numbers(role: str, matrix: Matrix, plan: Plan) -> Numbers | None:
    """The units that a lean plan takes of a matrix; None: all."""
    count = matrix.columns if _is_output(role) else matrix.rows
    return runs(count, LEAN_ROWS) if plan.lean and not is_table_role(role) else None


def _drop_empty_rows(
    role: str, suspect: FloatArray, source: FloatArray, numbers: Numbers | None
) -> tuple[FloatArray, FloatArray, Numbers | None]:
    """Rows that are zero on both sides say nothing (padding, holes)."""
    kept = suspect.any(axis=1) | source.any(axis=1)
    if kept.all() or not kept.any():
        return suspect, source, numbers
    if not _is_output(role) and not is_table_role(role):
        numbers = np.flatnonzero(kept) if numbers is None else numbers[kept]
    return suspect[kept], source[kept], numbers


def _gains(a: Parts, b: Parts, mine: Place, theirs: Place, sides: tuple[Matrix, Matrix], plan: Plan) -> Gains:
    """The norm gains in front of both matrices, where the plan folds them."""
    if not plan.folds:
        return None, None
    return _gain(a, mine, sides[0].columns), _gain(b, theirs, sides[1].columns)


def _gain(parts: Parts, place: Place, columns: int) -> FloatArray | None:
    """The norm gain in front of a matrix, to be folded in; output matrices have none."""
    if place[0].rpartition(".")[2] not in ("q", "k", "v", "gate", "up", "head"):
        return None
    gain = parts.gain(*place)
    return None if gain is None or gain.size != columns else gain


def _times(values: FloatArray, gain: FloatArray | None) -> FloatArray:
    return values if gain is None else values * gain


def align_layer(
    a: Parts, b: Parts, i: int, j: int, plan: Plan, controls: dict[str, float]
) -> Iterator[AlignedPair]:
    """The matrices of one layer; ``controls`` by role, filled as they are met."""
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
            found = _undo_units(b, found, stack, plan)
        for role, pair in found.items():
            if role.rpartition(".")[2] in ROW_ROLES and not _in_place(pair):
                found[role] = _undo_rows(pair, _whole(b, pair, plan))
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
        gain = _gain(b, (role, layer), matrix.columns) if plan.folds else None
        values = _times(b.model.load(matrix), gain)
        moved = plan.hidden.apply(role, values)
        values = _sample(role, values if moved is None else moved, plan)
        rows = min(len(values), len(pair.suspect_values))
        return abs(row_permutation_z(pair.suspect_values[:rows], values[:rows]))
    if not plan.full:
        values = _values(b, matrix, role, matrix.rows, plan)
        rows = min(len(values), len(pair.suspect_values))
        return abs(row_permutation_z(pair.suspect_values[:rows], values[:rows]))
    is_output = _is_output(role)
    taken = np.arange(matrix.rows)
    if not is_output:
        taken = taken[plan.taken(matrix.rows)]
    count = min(len(taken), len(pair.suspect_values))
    step = max(1, count // MAX_ROWS)
    chosen = taken[: step * (count // step) : step]  # the rows that the test takes, and no others
    values = b.rows(matrix, chosen)
    if is_output:
        values = values[:, plan.taken(matrix.columns)]
    if plan.rotation is not None:
        values = _times(values, _gain(b, (role, layer), matrix.columns))
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


def _whole(b: Parts, pair: AlignedPair, plan: Plan) -> FloatArray:
    """All units of the source of a pair."""
    if not plan.lean:
        return pair.source_values
    values = _times(b.model.load(pair.source), pair.gains[1])
    moved = None if plan.hidden is None else plan.hidden.apply(pair.place[0], values)
    return values if moved is None else moved


def _undo_units(b: Parts, found: dict[str, AlignedPair], stack: str, plan: Plan) -> dict[str, AlignedPair]:
    """FFN units of one stack or expert: the map is found on one matrix and tested on another, then applied to all."""
    votes = [role for name in ("gate", "up", "down") if (role := stack + name) in found]
    if len(votes) < 2 or all(_in_place(found[role]) for role in votes):
        return found
    whole = {role: _units(role, _whole(b, found[role], plan)) for role in votes}
    first, second = votes[0], votes[1]
    mine = _units(second, found[second].suspect_values)
    theirs = _units(second, found[second].source_values)
    rows = match_rows(_units(first, found[first].suspect_values), whole[first])
    z = mapped_z(mine, whole[second], rows)
    stays = mapped_z(mine, theirs, in_order(rows)) if _is_square(found[second]) else 0.0
    if z < SIGNIFICANT_Z or z < MOVED_GAIN * stays:
        return found
    return found | {role: _move(found[role], rows, whole[role], z) for role in votes}


def _is_output(role: str) -> bool:
    """Whether the rows live in the residual stream, and the columns are units or heads."""
    return role.rpartition(".")[2] in OUTPUT_ROLES


def _units(role: str, values: FloatArray) -> FloatArray:
    """Units or heads as rows."""
    return values.T if _is_output(role) else values


def _undo_rows(pair: AlignedPair, whole: FloatArray) -> AlignedPair:
    role = pair.place[0]
    suspect, source, whole = (_units(role, x) for x in (pair.suspect_values, pair.source_values, whole))
    recovery = recover_rows(suspect, source, whole)
    return pair if recovery.rows is None else _move(pair, recovery.rows, whole, recovery.z)


def _move(pair: AlignedPair, rows: RowMap, whole: FloatArray, z: float) -> AlignedPair:
    """Keep the matched units of both sides, the source's (``whole``: units as rows) in the suspect's order."""
    found = np.flatnonzero(rows.source_rows >= 0)
    partner = rows.source_rows[found]
    mine, theirs = found, partner
    if pair.numbers is not None:
        mine = pair.numbers[found]
        theirs = (
            partner if len(whole) != len(_units(pair.place[0], pair.source_values)) else pair.numbers[partner]
        )
    role = pair.place[0]
    suspect = _units(role, _units(role, pair.suspect_values)[found])
    source = _units(role, whole[partner])
    last = role.rpartition(".")[2]
    kind = "units" if last in ("gate", "up", "down") else "experts" if last == "router" else "heads"
    reordered = is_reordered(partner)
    stored = None if pair.stored is None else _units(role, _units(role, pair.stored)[found])
    moved = replace(
        pair,
        suspect_values=suspect,
        source_values=source,
        stored=stored,
        z=z,
        moved=kind,
        reordered=reordered,
    )
    return replace(moved, partners=np.stack([mine, theirs], axis=1), control=0.0)


def spread(layers: Sequence[tuple[int, int]], most: int) -> tuple[tuple[int, int], ...]:
    """At most ``most`` of the layer pairs, evenly spread, first and last included."""
    if len(layers) <= most:
        return tuple(layers)
    return tuple(layers[int(k)] for k in np.linspace(0, len(layers) - 1, most))
