"""Which layer of the suspect is which of the source: by vote, by their neighbours, and by trying."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from drupe.recover.align import Plan, align_layer
from drupe.recover.findings import Matches, PairFacts
from drupe.recover.parts import Parts
from drupe.signals.sketch.facts import WeightFacts


def map_layers(
    mine: Parts, theirs: Parts, evidence: Matches, facts: tuple[WeightFacts, WeightFacts]
) -> tuple[tuple[int, int], ...]:
    """Suspect layer -> source layer, by vote of the matched matrices; unmatched layers are left out.

    When only the sum over equal roles was significant, the layers of that sum are taken.
    """
    left, right = ({m: p for p, m in parts.places.items()} for parts in (mine, theirs))
    votes: dict[int, Counter[int]] = {}
    for match in evidence.strong:
        here = left.get(facts[0].matrices[match.suspect])
        there = right.get(facts[1].matrices[match.source])
        if here and there and here[1] is not None and there[1] is not None:
            votes.setdefault(here[1], Counter())[there[1]] += 1
    if votes:
        return tuple((i, _winner(votes[i], i)) for i in sorted(votes))
    pairs = [(facts[0].matrices[i].layer, facts[1].matrices[j].layer) for i, j in evidence.by_role]
    return tuple(sorted({(i, j) for i, j in pairs if i is not None and j is not None}))


def _winner(votes: Counter[int], layer: int) -> int:
    """Most votes; among equals the layer of the same number, else the smallest (repeated layers are equal)."""
    most = max(votes.values())
    equals = [j for j, count in votes.items() if count == most]
    return layer if layer in equals else min(equals)


def complete(mine: Parts, theirs: Parts, found: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The layers that the profile left out (layer 0, thinned ones): by the offset of their neighbours."""
    known = dict(found)
    if not known or not theirs.layers:
        return ()
    result = []
    for i in mine.layers:
        near = min(known, key=lambda k: abs(k - i))
        guess = known.get(i, i + known[near] - near)
        result.append((i, max(theirs.layers[0], min(guess, theirs.layers[-1]))))
    return tuple(result)


def settled(mine: Parts, theirs: Parts, plan: Plan, pairs: Sequence[PairFacts]) -> Plan:
    """The plan with layers of which nothing is proven put where something is, if there is such a place."""
    proven = {pair.place[1] for pair in pairs if pair.proven}
    taken = {j for i, j in plan.layer_map if i in proven}
    found = []
    for i, guess in plan.layer_map:
        rest = () if i in proven else sorted(set(theirs.layers) - {guess}, key=lambda j: (j in taken, j))
        places = (j for j in rest if _is_proven(mine, theirs, i, j, plan))
        found.append((i, next(places, guess)))
    return replace(plan, layer_map=tuple(found))


def _is_proven(mine: Parts, theirs: Parts, i: int, j: int, plan: Plan) -> bool:
    return any(pair.proven for pair in align_layer(mine, theirs, i, j, plan, {}))


def proven_layers(
    layer_map: Sequence[tuple[int, int]], pairs: Sequence[PairFacts], kept: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """Layers that were filled in stay in the map only when one of their pairs is proven (or was not tried)."""
    tried = {pair.place[1] for pair in pairs}
    proven = {pair.place[1] for pair in pairs if pair.proven}
    return tuple((i, j) for i, j in layer_map if i in proven or i not in tried or (i, j) in kept)
