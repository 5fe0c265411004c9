"""The labelled pairs of the zoo: who is compared with whom, what was done, what must be said. Data, no values.

Positives: every edit of ``EDITS`` at its strengths on every family that it fits, trained children, merges, and
combinations. Negatives: all pairs of roots that could be confused (same family first), plain and disguised. Besides
them the same-seed pairs, which are neither.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pico_recipes import Family
from recipes import DEV, HELD, ROOTS, family_of, is_held, root_of

Edit = tuple[str, Mapping[str, Any]]
COPY = frozenset({"identical", "equivalent"})
DERIVED = frozenset({"derived", "partial"})
APART = frozenset({"independent", "inconclusive"})
SEED = frozenset({"shared_initialisation", "independent", "inconclusive"})
LLAMA = ("gqa", "mha", "qwen", "deep")
PLAIN = ("gqa", "mha", "deep")
"""Without biases and norms of q and k, which the exact rewrites would have to move along."""
FAMILIES = (*DEV, *HELD)


@dataclass(frozen=True, slots=True)
class Pair:
    """One comparison. ``kinds``: what must be named, the largest first; ``optional``: what may be named besides.

    ``truth``: parameters that are measured against (sigma, rank, map, shares, direction). ``sources``: further ones.
    """

    name: str
    row: str
    suspect: str
    source: str
    relations: frozenset[str]
    edits: tuple[Edit, ...] = ()
    kinds: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()
    truth: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()

    @property
    def related(self) -> bool:
        """Whether it is a positive."""
        return self.relations <= COPY | DERIVED

    @property
    def held(self) -> bool:
        """Whether any of its models is of the half that no threshold was chosen on."""
        return is_held(self.suspect) or is_held(self.source)


@dataclass(frozen=True, slots=True)
class Plan:
    """An edit, the families it fits, what it must be called."""

    row: str
    edits: tuple[Edit, ...]
    kinds: tuple[str, ...]
    relations: frozenset[str] = COPY
    families: tuple[str, ...] = FAMILIES
    truth: Mapping[str, Any] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    child: str = ""
    """The child that is edited, instead of the root."""


def _edit(kind: str, **parameters: Any) -> Edit:
    return kind, parameters


def _single() -> Iterator[Plan]:
    """One transformation, three strengths where it has any."""
    for sigma in (0.01, 0.1, 1.0):
        yield Plan("noise", (_edit("noise", sigma=sigma),), ("gaussian_noise",), truth={"sigma": sigma})
    for bits, group in ((8, 0), (4, 32), (3, 32), (2, 16)):
        grid = (_edit("quantise", bits=bits, group=group),)
        yield Plan("quantised", grid, ("quantised",), truth={"bits": bits})
    for sparsity in (0.3, 0.5, 0.9):
        yield Plan("pruned", (_edit("prune", sparsity=sparsity),), ("pruned",), DERIVED)
    for factor in (1.05, 1.3, 2.0):
        yield Plan("scaled", (_edit("scale", factor=factor),), ("rescaled",))
    yield Plan("permuted units", (_edit("permute_any_units"),), ("permuted",))
    yield Plan("renamed", (_edit("rename_all"),), ("renamed",))
    yield Plan("cast", (_edit("cast", to="fp16"),), ("cast",), COPY, truth={"maybe_identical": True})
    for count in (8, 64, 256):
        more = (_edit("extend_vocabulary", count=count),)
        yield Plan(
            "vocabulary", more, ("vocabulary_changed",), DERIVED, ("gqa", "mha", "qwen", "moe", "deep")
        )
    for keep in (1500, 1200, 768):
        less = (_edit("trim_vocabulary", keep=keep),)
        yield Plan(
            "vocabulary", less, ("vocabulary_changed",), DERIVED | COPY, ("gqa", "mha", "qwen", "moe", "deep")
        )
    yield from _exact()
    yield from _widths()


def _exact() -> Iterator[Plan]:
    """Rewrites that keep the function."""
    yield Plan("rotated", (_edit("rotate"),), ("rotated",), families=PLAIN, optional=frozenset({"rescaled"}))
    yield Plan("permuted heads", (_edit("permute_heads"),), ("permuted",), families=(*PLAIN, "qwen"))
    yield Plan("folded gains", (_edit("fold_gains"),), ("rescaled",), families=PLAIN)
    for spread in (0.1, 0.5, 1.0):
        units = (_edit("rescale_units", spread=spread),)
        yield Plan("rescaled units", units, ("rescaled",), families=LLAMA)
        heads = (_edit("rescale_heads", spread=spread),)
        yield Plan("rescaled heads", heads, ("rescaled",), families=PLAIN)
    for flip in (False, True):
        hidden = (_edit("permute_hidden", flip=flip),)
        optional = frozenset({"rotated"}) if flip else frozenset()
        yield Plan("permuted hidden", hidden, ("permuted",), families=LLAMA, optional=optional)
    order = (_edit("permute_vocabulary"),)
    yield Plan("permuted vocabulary", order, ("permuted",), families=LLAMA)


def _widths() -> Iterator[Plan]:
    """Units, dimensions and experts."""
    for keep in (0.9, 0.75, 0.5):
        yield Plan("units pruned", (_edit("prune_units", keep=keep),), ("width_pruned",), DERIVED)
        hidden = (_edit("prune_hidden", keep=keep),)
        yield Plan("hidden pruned", hidden, ("width_pruned",), DERIVED, PLAIN)
    for made in ({}, {"sigma": 0.1}, {"share": 0.5}):
        experts = (_edit("to_experts", **made),)
        kinds = ("gaussian_noise", "moe_upcycled") if "sigma" in made else ("moe_upcycled",)
        yield Plan("upcycled", experts, kinds, DERIVED, PLAIN, truth={"experts": 4})


def _layers(family: str, depth: int) -> Iterator[Plan]:
    """Layer maps, for families whose layers tests/zoo_structure.py can move."""
    identity = list(range(depth))
    orders = {
        "layers_dropped": ([k for k in identity if k != 1], identity[:-1], identity[::2]),
        "layers_reordered": ([1, 0, *identity[2:]], identity[::-1], [*identity[:-2], depth - 1, depth - 2]),
        "depth_upscaled": (
            [*identity[:-1], *identity[1:]],
            [*identity, depth - 1],
            [k for layer in identity for k in (layer, layer)],
        ),
    }
    for kind, maps in orders.items():
        for order in maps:
            edits = (_edit("map_layers", order=order),)
            yield Plan(kind.replace("_", " "), edits, (kind,), DERIVED, (family,), {"map": order})


def _combinations() -> Iterator[Plan]:
    """Several at once, the largest change first in ``kinds``."""
    rotate, units, heads = _edit("rotate"), _edit("permute_any_units"), _edit("permute_heads")
    noise, names = _edit("noise", sigma=0.1), _edit("rename_all")
    int4 = _edit("quantise", bits=4, group=32)
    fold = frozenset({"rescaled"})
    yield Plan("combined", (units, rotate), ("rotated", "permuted"), families=PLAIN, optional=fold)
    yield Plan(
        "combined",
        (units, rotate, noise),
        ("gaussian_noise", "rotated", "permuted"),
        families=PLAIN,
        optional=fold,
    )
    yield Plan("combined", (noise, names), ("gaussian_noise", "renamed"))
    yield Plan("combined", (int4, names), ("quantised", "renamed"))
    yield Plan("combined", (units, heads), ("permuted",), families=(*PLAIN, "qwen"))
    yield Plan("combined", (units, noise), ("gaussian_noise", "permuted"))
    yield Plan("combined", (_edit("prune", sparsity=0.5), names), ("pruned", "renamed"), DERIVED)
    trained = (("ft", "fine_tuned"), ("cpt", "continued_pretraining"))
    for child, kind in trained:
        yield Plan("combined", (names,), (kind, "renamed"), DERIVED, child=child)
        yield Plan("combined", (units,), (kind, "permuted"), DERIVED, child=child)
        yield Plan(
            "combined",
            (units, rotate),
            (kind, "rotated", "permuted"),
            DERIVED,
            PLAIN,
            optional=fold,
            child=child,
        )
        yield Plan("combined", (heads, names), (kind, "permuted", "renamed"), DERIVED, PLAIN, child=child)
        grow = _edit("extend_vocabulary", count=64)
        yield Plan(
            "combined", (grow,), (kind, "vocabulary_changed"), DERIVED, (*PLAIN, "qwen", "moe"), child=child
        )
    yield Plan("combined", (int4,), ("quantised", "fine_tuned"), DERIVED, child="ft")
    yield from _grids_moved(rotate, _edit("permute_hidden"), fold)
    yield Plan("combined", (_edit("cast", to="fp16"), units), ("cast", "permuted"))


def _grids_moved(rotate: Edit, hidden: Edit, fold: frozenset[str]) -> Iterator[Plan]:
    """A grid under a later permutation, rotation, noise or rounding, and over an earlier one."""
    turned = ("quantised", "rotated")
    for bits in (8, 4, 3):
        grid = _edit("quantise", bits=bits, group=32)
        truth = {"bits": bits}
        for edits in ((grid, rotate), (rotate, grid)):
            yield Plan("grid and rotation", edits, turned, families=PLAIN, truth=truth, optional=fold)
        for edits in ((grid, hidden), (hidden, grid)):
            kinds = ("quantised", "permuted")
            yield Plan("grid and permutation", edits, kinds, families=LLAMA, truth=truth)
    for bits, sigma, kinds in (
        (4, 0.05, ("quantised", "gaussian_noise")),
        (8, 0.02, ("gaussian_noise", "quantised")),
    ):
        edits = (_edit("quantise", bits=bits, group=32), _edit("noise", sigma=sigma))
        yield Plan("grid and noise", edits, kinds, truth={"bits": bits, "sigma": sigma})
    yield Plan(
        "units pruned, rotated",
        (_edit("prune_units", keep=0.75), rotate),
        ("width_pruned", "rotated"),
        DERIVED,
        PLAIN,
        optional=fold,
    )
    for keep in (0.9, 0.75, 0.5):
        edits = (rotate, _edit("prune_hidden", keep=keep))
        yield Plan("rotated, narrower", edits, ("width_pruned", "rotated"), DERIVED, PLAIN, optional=fold)
    yield Plan(
        "upcycled, rotated",
        (rotate, _edit("to_experts")),
        ("moe_upcycled", "rotated"),
        DERIVED,
        PLAIN,
        {"experts": 4},
        fold,
    )
    tuned = ("fine_tuned", "permuted")
    for seed in range(3):
        order, truth = (_edit("permute_experts", seed=seed),), {"order": _expert_order(seed)}
        yield Plan("permuted experts", order, ("permuted",), families=("moe",), truth=truth)
        yield Plan("permuted experts", order, tuned, DERIVED, ("moe",), truth, child="ft")


def _expert_order(seed: int) -> dict[str, int]:
    """``layer.expert`` of the suspect -> the source's expert, as tests/zoo_maps.py draws it."""
    dice, sizes = np.random.default_rng(seed), HELD["moe"]
    orders = [dice.permutation(sizes.experts) for _ in range(sizes.layers)]
    return {f"{layer}.{new}": int(old) for layer, order in enumerate(orders) for new, old in enumerate(order)}


def _children() -> Iterator[Pair]:
    """Trained children: against their parents both ways, and siblings."""
    for recipe in ROOTS.recipes:
        if not recipe.parent:
            continue
        kind = {"tune": "fine_tuned", "continue": "continued_pretraining", "lora": "low_rank_update"}[
            recipe.stage
        ]
        truth: dict[str, Any] = {"direction": "suspect_from_source"}
        truth |= {"rank": recipe.rank, "modules": recipe.modules} if recipe.rank else {}
        name = f"{recipe.name} < {recipe.parent}"
        yield Pair(name, recipe.stage, recipe.name, recipe.parent, DERIVED, kinds=(kind,), truth=truth)
        if recipe.rank:
            rounded = (_edit("cast", to="bf16"),)
            yield Pair(
                f"{name} bf16",
                "lora bf16",
                recipe.name,
                recipe.parent,
                DERIVED,
                rounded,
                (kind,),
                truth=truth,
            )
        back = {"direction": "source_from_suspect"}
        yield Pair(
            f"{name} back",
            f"{recipe.stage} back",
            recipe.parent,
            recipe.name,
            DERIVED,
            kinds=(kind,),
            truth=back,
        )
    for family in FAMILIES:
        names = {recipe.name for recipe in ROOTS.recipes}
        for one, other in (("cpt", "ft"), ("ft", "ft2"), ("cpt2", "ft")):
            a, b = f"{family}0_{one}", f"{family}0_{other}"
            if {a, b} <= names:
                truth = {"direction": "siblings"}
                yield Pair(f"{a} ~ {b}", "siblings", a, b, DERIVED | {"common_source"}, truth=truth)


def _merges() -> Iterator[Pair]:
    """Merges of known parents: the base and all parents are given."""
    for family in ("gqa", "qwen", "deep"):
        base, ft, ft2, cpt = (f"{family}0{end}" for end in ("", "_ft", "_ft2", "_cpt"))
        for share, one, other in ((0.5, ft, ft2), (0.3, ft, ft2), (0.6, cpt, ft), (0.8, cpt, ft)):
            for method in ("merge", "slerp"):
                edits = (_edit(method, other=other, share=share),)
                truth = {
                    "shares": {one: share, other: 1 - share},
                    "method": "linear" if method == "merge" else "slerp",
                }
                name = f"{one} {share} + {other} {method}"
                yield Pair(
                    name, "merged", one, one, DERIVED, edits, ("merged",), truth=truth, sources=(other,)
                )
        for method, options in (
            ("arithmetic", {"scale": 0.7}),
            ("dare", {"drop": 0.5}),
            ("ties", {"density": 0.3}),
        ):
            edits = (_edit(method, parents=[cpt, ft], **options),)
            truth = {"method": method}
            yield Pair(
                f"{base} {method} {cpt} {ft}",
                "merged",
                base,
                base,
                DERIVED,
                edits,
                ("merged",),
                truth=truth,
                sources=(cpt, ft),
            )


def _positives() -> Iterator[Pair]:
    plans = [*_single(), *_combinations()]
    for family, sizes in (*DEV.items(), *HELD.items()):
        movable = _layers(family, sizes.layers) if _is_movable(sizes) else ()
        for number, plan in enumerate((*plans, *movable)):
            if family not in plan.families:
                continue
            suspect = f"{family}0_{plan.child}" if plan.child else f"{family}0"
            if plan.child and suspect not in {recipe.name for recipe in ROOTS.recipes}:
                continue
            name = f"{suspect} {number:03} {' + '.join(kind for kind, _ in plan.edits)}"
            yield Pair(
                name,
                plan.row,
                suspect,
                f"{family}0",
                plan.relations,
                plan.edits,
                plan.kinds,
                plan.optional,
                plan.truth,
            )
    yield from _children()
    yield from _merges()


def _is_movable(sizes: Family) -> bool:
    return sizes.kind != "t5"


def _negatives() -> Iterator[Pair]:
    """Pairs of roots and of children of different roots; same family first, some of them disguised."""
    roots = [
        recipe.name
        for recipe in ROOTS.recipes
        if recipe.name == root_of(recipe.name) and "_seed" not in recipe.name
    ]
    disguises: tuple[tuple[Edit, ...], ...] = (
        (),
        (_edit("rename_all"),),
        (_edit("noise", sigma=0.1),),
        (_edit("quantise", bits=4, group=32),),
        (_edit("permute_any_units"),),
    )
    for a, b in itertools.permutations(roots, 2):
        same = family_of(a) == family_of(b)
        if not same and a > b:
            continue
        for edits in disguises if same else ((),):
            told = " + ".join(kind for kind, _ in edits)
            row = "same configuration" if same else "other family"
            yield Pair(f"{a} / {b} {told}".strip(), row, a, b, APART, edits)
    children = [recipe.name for recipe in ROOTS.recipes if recipe.parent]
    for child, root in itertools.product(children, roots):
        if family_of(child) == family_of(root) and root_of(child) != root and not root.endswith("0"):
            yield Pair(f"{child} / {root}", "child of another root", child, root, APART)


def _same_seed() -> Iterator[Pair]:
    """Same initial weights, other data: no lineage."""
    seeds = [recipe.name for recipe in ROOTS.recipes if "_seed" in recipe.name]
    for name in seeds:
        root = name.partition("_")[0]
        kin = [root, *(other for other in seeds if other != name and other.startswith(f"{root}_"))]
        for other in kin:
            for edits in ((), (_edit("noise", sigma=0.1),), (_edit("quantise", bits=4, group=32),)):
                told = " + ".join(kind for kind, _ in edits)
                yield Pair(f"{name} / {other} {told}".strip(), "same seed", name, other, SEED, edits)
                if other == root:
                    yield Pair(f"{other} / {name} {told}".strip(), "same seed", other, name, SEED, edits)


def pairs() -> tuple[Pair, ...]:
    """All of them, by name."""
    found = (*_positives(), *_negatives(), *_same_seed())
    assert len({pair.name for pair in found}) == len(found)
    return found
