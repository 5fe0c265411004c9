"""The deep comparison of two opened models: what corresponds to what, in which basis, and what is left.

Order of questions, cheapest first: do the sketches match in place? If so the layer map and the pairs come from
them. If not, is a map possible at all (widths, depths, gates)? If it is, do the units answer to the same tokens
(profile)? Then the residual stream was rotated: undo it. Every answer is a fact; diagnose.py draws conclusions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drupe.model import Matrix, Model
from drupe.readers.interface import Absent, FloatArray
from drupe.recover import profile as profiles
from drupe.recover import spectrum as spectra
from drupe.recover.admissible import Admissible, admissible
from drupe.recover.align import AlignedPair, Plan, align, spread
from drupe.recover.contents import match_contents
from drupe.recover.experts import expert_of, in_order
from drupe.recover.feedback import feedback
from drupe.recover.findings import Basis, Lineage, Matches, PairFacts
from drupe.recover.grids import Grids, find_grids
from drupe.recover.hidden import find_hidden
from drupe.recover.layers import complete, map_layers, proven_layers, settled
from drupe.recover.parts import Parts, Place, dense_role, parts_of
from drupe.recover.permuted import compare_rows
from drupe.recover.profile_opaque import compare_opaque
from drupe.recover.quoted import gain_correlation
from drupe.recover.refine import refine_rotation
from drupe.recover.rotation import NarrowTurn, find_rotation
from drupe.recover.tensors import match_tensors
from drupe.recover.vectors import compare_vectors
from drupe.residual import Residual, measure, unit_scales
from drupe.roles import is_layer_role, is_table_role
from drupe.signals.sketch.compare import LOG10_ALPHA, SIGNIFICANT, SketchResult
from drupe.signals.sketch.facts import WeightFacts
from drupe.stats import log10_at_least

SPREAD_LAYERS = 8
MANY_ZEROS, DISTINCT = 0.02, 0.8
"""Share of new zeros from which pruning is thought of, and of distinct values among the others: 0.95 in bf16 rows of
100, 0.6 on a torn grid of four bits."""
SPECTRAL_PAIRS = 16
"""Pairs whose residual spectrum, grid and singular directions are computed; equality is checked on all."""
ENOUGH_PAIRS = 8
"""Changed pairs whose residual spectrum says what the change is; fewer are too easily the wrong ones."""
MIN_FOLDED, FOLDED_REST = 0.02, 0.5
"""Relative change from which scales of rows and columns are looked for, and the share of it that they may leave."""
PLAIN_CORRELATION = 0.9
"""Sketch correlation above which no shared start is possible, so a sample needs no profile."""


_NO_PROFILE = profiles.ProfileResult(False)


def investigate(
    a: Model,
    b: Model,
    sketch: SketchResult,
    facts: tuple[WeightFacts, WeightFacts],
    *,
    full: bool,
    escalate: bool,
) -> Lineage:
    """Run the steps that apply. ``full``: everything may be read; ``escalate``: a few whole layers may be."""
    by_role = sketch.role_pairs if sketch.role_log10_p < sketch.content_log10_p else ()
    evidence = Matches(sketch.matched, sketch.comparable, sketch.log10_p, by_role)
    if full and _opaque(a, b) and _any_informative(facts):
        evidence = _by_content(a, b, facts) or evidence
    if evidence.log10_p <= SIGNIFICANT:
        return _in_place(a, b, evidence, sketch, facts, full=full, escalate=escalate)
    return _out_of_place(a, b, evidence, facts, full=full, escalate=escalate)


def _out_of_place(
    a: Model,
    b: Model,
    evidence: Matches,
    facts: tuple[WeightFacts, WeightFacts],
    *,
    full: bool,
    escalate: bool,
) -> Lineage:
    """Nothing agrees in place: channels permuted, the residual stream rotated, the tables alone, or nothing."""
    mine, theirs = parts_of(a), parts_of(b)
    possible = admissible(mine, theirs, *facts)
    if not (full or (escalate and possible.possible)):
        return Lineage(Basis.NONE, evidence, _NO_PROFILE, full=full, map_possible=possible)
    if full and possible.possible and not any(_looks_like_transformer(side) for side in facts):
        rows = compare_rows(a, b, facts)
        return Lineage(Basis.NONE, evidence, _NO_PROFILE, full=full, map_possible=possible, rows=rows)
    profile = _profile(
        mine, theirs, sparing=not full
    )  # also where the widths seem to exclude a map: it costs little
    if profile.borrowed:
        names = dict(profile.borrowed)
        mine = parts_of(a, names) if profile.borrowed_is_suspect else mine
        theirs = theirs if profile.borrowed_is_suspect else parts_of(b, names)
    if profile.significant:
        return _rotated(mine, theirs, evidence, profile, full=full)
    if not possible.possible:
        return Lineage(Basis.NONE, evidence, profile, full=full, map_possible=possible)
    return _tables(mine, theirs, evidence, profile, possible, full=full)


def _looks_like_transformer(facts: WeightFacts) -> bool:
    """Layer roles by name, or several tall matrices with as many of the transposed shape (FFN in and out)."""
    shapes = Counter((m.rows, m.columns) for m in facts.matrices)
    tall = [(shape, count) for shape, count in shapes.items() if shape[0] > shape[1] and count >= 2]
    ffn = any(shapes[shape[::-1]] >= 2 for shape, _ in tall)
    return ffn or any(is_layer_role(matrix.role) for matrix in facts.matrices)


def _profile(mine: Parts, theirs: Parts, *, sparing: bool) -> profiles.ProfileResult:
    """The search over layers, or over matrices where one side's names say nothing."""
    known = [any(is_layer_role(role) for role, _ in parts.places) for parts in (mine, theirs)]
    if known == [False, True]:
        return compare_opaque(mine, theirs, opaque_is_suspect=True)
    if known == [True, False]:
        return compare_opaque(theirs, mine, opaque_is_suspect=False)
    return profiles.compare(mine, theirs, None, sparing=sparing)


def _opaque(a: Model, b: Model) -> bool:
    """Whether any matrix of either side has no role by its name."""
    return any(matrix.role is None for matrix in (*a.matrices, *b.matrices))


def _any_informative(facts: tuple[WeightFacts, WeightFacts]) -> bool:
    return all(bool(side.informative.any()) for side in facts)


def _by_content(a: Model, b: Model, facts: tuple[WeightFacts, WeightFacts]) -> Matches | None:
    """Whole matrices in place of sketches, where names say nothing; None when the models are too large."""
    matches = match_contents(a, b, facts)
    if not matches:
        return None
    hits = sum(match.significant for match in matches)
    log10_p = log10_at_least(hits, len(matches), LOG10_ALPHA) if hits >= 2 else 0.0
    return Matches(matches, len(matches), log10_p)


def _in_place(
    a: Model,
    b: Model,
    evidence: Matches,
    sketch: SketchResult,
    facts: tuple[WeightFacts, WeightFacts],
    *,
    full: bool,
    escalate: bool,
) -> Lineage:
    mine, theirs = _borrow(a, b, evidence, facts)
    voted = map_layers(mine, theirs, evidence, facts)
    layer_map = complete(mine, theirs, voted)
    chosen = layer_map if full else spread(layer_map, SPREAD_LAYERS)
    mine = in_order(mine, theirs, chosen)
    hidden = find_hidden(mine, theirs) if full and _is_narrower(mine, theirs) else None
    plan, pairs, arrays = _settle_and_measure(mine, theirs, Plan(chosen, None, full, hidden))
    layer_map = plan.layer_map if full else layer_map
    doubtful = 2 * sketch.agreement - 1 < PLAIN_CORRELATION
    vectors = compare_vectors(a, b) if full else (None, None)
    tensors = match_tensors(a, b, _names(a), _names(b)) if full and _opaque(a, b) else {}
    profile = _NO_PROFILE
    if chosen and (full or (doubtful and escalate)):
        profile = profiles.compare(mine, theirs, spread(plan.layer_map, 6 if full else 3), sparing=not full)
    return Lineage(
        Basis.RAW,
        evidence,
        profile,
        full=full,
        layer_map=proven_layers(layer_map, pairs, voted),
        pairs=pairs,
        spectrum=spectra.compare(arrays) if full and not profile.proves_descent and doubtful else None,
        vectors_equal=vectors[0],
        vectors_change=vectors[1],
        tables_only=bool(pairs) and not any(pair.proven and _is_hidden(pair.place) for pair in pairs),
        feedback=feedback(a, b, pairs, sparing=not full) if hidden is None and (full or escalate) else None,
        tensors=tensors,
        hidden=hidden,
        gains=gain_correlation(a, b, tensors) if full else None,
    )


def _is_narrower(mine: Parts, theirs: Parts) -> bool:
    """Whether the suspect's residual stream has fewer dimensions."""
    left, right = mine.places.get(("embed", None)), theirs.places.get(("embed", None))
    return left is not None and right is not None and left.columns < right.columns


def _names(model: Model) -> Sequence[str]:
    return () if isinstance(model.weights, Absent) else list(model.weights.tensors)


def _is_hidden(place: Place) -> bool:
    return not is_table_role(place[0]) and place[0] not in ("position", "token_type")


def _rotated(
    mine: Parts, theirs: Parts, evidence: Matches, profile: profiles.ProfileResult, *, full: bool
) -> Lineage:
    """Units answer alike, nothing agrees in place: find the rotation, refine it, measure what is left."""
    layer_map = complete(mine, theirs, profile.layer_map)
    # Turning a layer of 4,096 back takes seconds on two cores.
    chosen = layer_map if full else spread(profile.layer_map, 1)
    lean = not full
    hidden = find_hidden(mine, theirs)
    if hidden is not None:
        plan, pairs, arrays = _settle_and_measure(mine, theirs, Plan(chosen, None, True, hidden, lean))
        return Lineage(
            Basis.RAW,
            evidence,
            profile,
            full=full,
            layer_map=proven_layers(plan.layer_map if full else layer_map, pairs, profile.layer_map),
            pairs=pairs,
            spectrum=None if profile.proves_descent else spectra.compare(arrays),
            hidden=hidden,
        )
    tables = align(mine, theirs, Plan((), None, True, lean=lean))
    in_place = any(
        pair.proven and is_table_role(pair.place[0]) for pair in tables
    )  # only sampled rows differ
    rotation = None if in_place else find_rotation(mine, theirs)
    if rotation is None and not in_place:
        return Lineage(Basis.ROTATED, evidence, profile, full=full, layer_map=profile.layer_map)
    turn = None if rotation is None or rotation.is_near_identity else rotation.matrix
    if rotation is not None and turn is not None and full and not rotation.is_narrow:
        turn = refine_rotation(align(mine, theirs, _turning(chosen, turn)), turn)
    plan, pairs, arrays = _settle_and_measure(mine, theirs, _turning(chosen, turn, lean=lean))
    return Lineage(
        Basis.RAW if turn is None else Basis.ROTATED,
        evidence,
        profile,
        full=full,
        layer_map=proven_layers(plan.layer_map if full else layer_map, pairs, profile.layer_map),
        pairs=pairs,
        spectrum=None if profile.proves_descent else spectra.compare(arrays),
        rotation=turn,
        rotation_excess=0.0 if full or turn is None or rotation is None else rotation.excess,
    )


def _turning(layer_map: tuple[tuple[int, int], ...], turn: FloatArray | None, *, lean: bool = False) -> Plan:
    """The plan of a rotation: the suspect is turned back, or the source to the suspect where that is narrower."""
    if turn is None or len(turn) == turn.shape[1]:
        return Plan(layer_map, turn, True, lean=lean)
    return Plan(layer_map, None, True, NarrowTurn(turn), lean)


def _tables(
    mine: Parts,
    theirs: Parts,
    evidence: Matches,
    profile: profiles.ProfileResult,
    possible: Admissible,
    *,
    full: bool,
) -> Lineage:
    """Hidden matrices are at null: do the token tables alone correspond, token by token?"""
    pairs, arrays = _measure(mine, theirs, Plan((), None, True)) if full else ((), [])
    if not any(pair.proven and is_table_role(pair.place[0]) for pair in pairs):
        return Lineage(Basis.NONE, evidence, profile, full=full, map_possible=possible)
    return Lineage(
        Basis.RAW,
        evidence,
        profile,
        full=full,
        pairs=pairs,
        spectrum=spectra.compare(arrays),
        tables_only=True,
    )


def _settle_and_measure(
    mine: Parts, theirs: Parts, plan: Plan
) -> tuple[Plan, tuple[PairFacts, ...], list[tuple[FloatArray, FloatArray]]]:
    """The facts, with layers that are proven nowhere tried at other places, where everything may be read."""
    pairs, arrays = _measure(mine, theirs, plan)
    better = settled(mine, theirs, plan, pairs) if plan.full and not plan.lean else plan
    if better.layer_map != plan.layer_map:
        pairs, arrays = _measure(mine, theirs, better)
    return better, pairs, arrays


def _measure(
    mine: Parts, theirs: Parts, plan: Plan
) -> tuple[tuple[PairFacts, ...], list[tuple[FloatArray, FloatArray]]]:
    """Facts of every pair; the arrays of a few proven ones are kept for the spectrum."""
    total = max(len(plan.layer_map) * 7 + 2, len(mine.places))
    # Drawn, not every n-th: a step of a multiple of seven would always meet the same role.
    drawn = set(np.random.default_rng(0).permutation(total)[:SPECTRAL_PAIRS].tolist())
    facts, arrays = [], {}
    for index, pair in enumerate(align(mine, theirs, plan)):
        deep = index in drawn or is_table_role(pair.place[0])
        facts.append(_facts(pair, mine.model, plan, deep=deep))
        if index in drawn and pair.proven:
            arrays[index] = (pair.suspect_values, pair.source_values)
    missed = frozenset() if plan.lean else _changed_unseen(facts)
    for index, pair in enumerate(align(mine, theirs, plan)) if missed else ():
        if index in missed:
            facts[index] = _facts(pair, mine.model, plan, deep=True)
            arrays[index] = (pair.suspect_values, pair.source_values)
    return tuple(facts), [arrays[index] for index in sorted(arrays)]


def _changed_unseen(facts: Sequence[PairFacts]) -> frozenset[int]:
    """Changed pairs to look at more closely, when few of those that were drawn had changed at all."""
    changed = [k for k, pair in enumerate(facts) if pair.proven and 0.0 < pair.residual.rho < 2.0]
    seen = [k for k in changed if not np.isnan(facts[k].residual.edge)]
    if len(seen) >= min(ENOUGH_PAIRS, len(changed)):
        return frozenset()
    rest = sorted(set(changed) - set(seen))
    chosen = np.random.default_rng(0).permutation(len(rest))[:SPECTRAL_PAIRS]
    return frozenset(rest[int(k)] for k in chosen)


def _facts(pair: AlignedPair, suspect: Model, plan: Plan, *, deep: bool) -> PairFacts:
    assert not isinstance(suspect.weights, Absent)
    info = suspect.weights.tensors[pair.suspect.tensor]
    source, values = pair.source_values, pair.suspect_values
    residual = measure(source, values, info.dtype, spectral=deep)
    scales = _scales(pair, residual)
    folded = None
    if scales is not None:
        factors = np.outer(*scales).astype(np.float32)
        unscaled = np.divide(values, factors, out=np.zeros_like(values), where=factors != 0)
        source, folded = source * factors, residual
        residual = measure(source, values, info.dtype, spectral=deep)
    else:
        unscaled = values
    grids = Grids()
    kept = None
    if deep and residual.new_zeros >= MANY_ZEROS and _is_continuous(values):
        kept = measure(np.where(values == 0, np.float32(0.0), source), values, info.dtype)
    if deep and pair.proven and residual.rho > 0.0:
        grids = find_grids(pair, source, unscaled, plan, info.dtype)
    return PairFacts(
        pair.place,
        pair.suspect,
        pair.source,
        pair.z,
        pair.proven and bool(np.isfinite(residual.rho)),
        pair.moved,
        pair.raw,
        residual,
        lattice=grids.suspect,
        source_lattice=grids.source,
        delta=grids.difference,
        replayed=grids.replayed,
        kept=kept,
        remainder=grids.remainder,
        negated=pair.negated,
        reordered=pair.reordered,
        folded=folded,
        scales=scales,
        partners=pair.partners,
        gains=pair.gains,
        shape=(values.shape[0], values.shape[1]),
    )


def _is_continuous(values: FloatArray) -> bool:
    """Whether values other than zero seldom repeat within a row: on a coarse grid, zeros are a place like others."""
    rows = values[:: max(1, len(values) // 32)]
    shares = [len(np.unique(row[row != 0])) / count for row in rows if (count := np.count_nonzero(row))]
    return bool(shares) and float(np.median(shares)) >= DISTINCT


def _scales(pair: AlignedPair, residual: Residual) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Scales of rows and columns that explain most of the difference of a pair, or None."""
    if not pair.proven or pair.negated or not residual.rho > MIN_FOLDED:
        return None
    source, values = pair.source_values, pair.suspect_values
    left = float(
        np.linalg.norm(values - np.outer(*unit_scales(source, values, 4)).astype(np.float32) * source)
    )
    if left >= FOLDED_REST * float(np.linalg.norm(values - source)):
        return None
    return unit_scales(source, values, 200)


def _borrow(
    a: Model, b: Model, evidence: Matches, facts: tuple[WeightFacts, WeightFacts]
) -> tuple[Parts, Parts]:
    """Parts of both sides; names that say nothing get the places of what they were matched with."""
    mine: dict[Matrix, Place] = {}
    theirs: dict[Matrix, Place] = {}
    for number, match in enumerate(evidence.matches if _opaque(a, b) else evidence.strong):
        left, right = facts[0].matrices[match.suspect], facts[1].matrices[match.source]
        if right.role is not None and right.role == dense_role(left.role or ""):
            continue  # an expert, or the same role
        if expert_of(left.role) is not None and expert_of(right.role) is not None:
            continue  # which expert is which is asked for all of a layer at once
        if is_table_role(left.role) and is_table_role(right.role):
            continue  # a head that was untied
        if right.role is not None and left.role != right.role:  # opaque, or claiming another role than it has
            mine[left] = (right.role, right.layer)
        elif left.role is not None and right.role is None:
            theirs[right] = (left.role, left.layer)
        elif left.role is None:
            mine[left] = theirs[right] = (f"matched {number}", None)
    return parts_of(a, mine), parts_of(b, theirs)
