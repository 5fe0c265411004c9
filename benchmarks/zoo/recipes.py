"""Which models are trained for the zoo, and which half each belongs to. Data and pure functions, no torch.

A root has its own seed. Models of one family share tokenizer, sizes and often the corpus, so their roots are the
hard negatives: same configuration, other seed. ``seed`` children start from a root's initial weights and see other
data: no lineage, and not independent either. The held-out half has other architectures and other seeds; no
threshold was chosen on it.
"""

from __future__ import annotations

from pico_recipes import Family, Recipe, Scale

DEV = {
    "gqa": Family("llama", "llama", 96, 5, 6, 256, kv=2),
    "mha": Family("llama", "words", 80, 4, 5, 216, kv=5, tied=True),
    "gpt": Family("gpt2", "gpt2", 96, 4, 6, 384),
    "bert": Family("bert", "bert", 80, 3, 5, 320),
}
HELD = {
    "qwen": Family("qwen3", "words", 96, 5, 6, 240, kv=2, tied=True),
    "moe": Family("mixtral", "llama", 80, 4, 4, 112, kv=2, experts=4),
    "t5": Family("t5", "unigram", 80, 3, 5, 216),
    "deep": Family("llama", "gpt2", 112, 6, 4, 304, kv=2),
    "neox": Family("neox", "llama", 96, 4, 4, 320),
}
ALL_LINEAR = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
_ROOTS = {
    "gqa": ("source", "source", "docstrings", "licences"),
    "mha": ("docstrings", "docstrings", "source"),
    "gpt": ("headers", "headers", "licences"),
    "bert": ("licences", "licences", "docstrings"),
    "qwen": ("docstrings", "docstrings", "source", "licences"),
    "moe": ("source", "source", "docstrings"),
    "t5": ("docstrings", "docstrings", "licences"),
    "deep": ("headers", "headers", "source"),
    "neox": ("source", "source"),
}
_SAME_SEED = {
    "gqa": ("docstrings", "source"),
    "mha": ("licences",),
    "gpt": ("docstrings",),
    "qwen": ("source", "docstrings"),
    "moe": ("licences",),
    "t5": ("licences",),
    "deep": ("docstrings", "headers"),
    "neox": ("headers",),
}
_OTHER = {"docstrings": "licences", "source": "docstrings", "licences": "headers", "headers": "source"}
_CHILDREN: dict[str, tuple[tuple[str, str, str, int, str], ...]] = {
    # name, parent ("" = the root), stage, rank, modules
    "gqa": (
        ("ft", "", "tune", 0, ""),
        ("ft2", "", "tune", 0, ""),
        ("cpt", "", "continue", 0, ""),
        ("cpt2", "cpt", "continue", 0, ""),
        ("lora4", "", "lora", 4, "q_proj v_proj"),
        ("lora8", "", "lora", 8, ALL_LINEAR),
    ),
    "mha": (("ft", "", "tune", 0, ""), ("cpt", "", "continue", 0, "")),
    "gpt": (("ft", "", "tune", 0, ""), ("cpt", "", "continue", 0, "")),
    "bert": (("ft", "", "tune", 0, ""),),
    "qwen": (
        ("ft", "", "tune", 0, ""),
        ("ft2", "", "tune", 0, ""),
        ("cpt", "", "continue", 0, ""),
        ("cpt2", "cpt", "continue", 0, ""),
        ("lora2", "", "lora", 2, "q_proj v_proj"),
        ("lora16", "", "lora", 16, ALL_LINEAR),
    ),
    "moe": (("ft", "", "tune", 0, ""), ("cpt", "", "continue", 0, "")),
    "t5": (("ft", "", "tune", 0, ""), ("cpt", "", "continue", 0, "")),
    "deep": (
        ("ft", "", "tune", 0, ""),
        ("ft2", "", "tune", 0, ""),
        ("cpt", "", "continue", 0, ""),
        ("lora4", "", "lora", 4, ALL_LINEAR),
        ("lora8", "", "lora", 8, "q_proj k_proj v_proj o_proj"),
    ),
    "neox": (("ft", "", "tune", 0, ""), ("cpt", "", "continue", 0, "")),
}


def recipes() -> tuple[Recipe, ...]:
    """Roots (``gqa0``, ``gqa1``), same-seed siblings (``gqa0_seed0``), children (``gqa0_ft``); parents first."""
    made: list[Recipe] = []
    for place, (family, corpora) in enumerate(_ROOTS.items()):
        first = 1000 * (place + 1)
        for k, corpus in enumerate(corpora):
            made.append(Recipe(f"{family}{k}", family, corpus, seed=first + k, order=first + k))
        for k, corpus in enumerate(_SAME_SEED.get(family, ())):
            made.append(Recipe(f"{family}0_seed{k}", family, corpus, seed=first, order=first + 50 + k))
        corpus = _OTHER[corpora[0]]
        for k, (name, parent, stage, rank, modules) in enumerate(_CHILDREN.get(family, ())):
            before = f"{family}0_{parent}" if parent else f"{family}0"
            order = first + 100 + k
            made.append(Recipe(f"{family}0_{name}", family, corpus, 0, order, before, stage, rank, modules))
            corpus = _OTHER[corpus]
    return tuple(made)


ROOTS = Scale(vocabulary=1536, steps=350, families={**DEV, **HELD}, recipes=recipes())


def root_of(name: str) -> str:
    """The root of a model's lineage; a same-seed sibling is its own.

    >>> root_of("gqa0_cpt2"), root_of("gqa0_seed1"), root_of("gqa3")
    ('gqa0', 'gqa0_seed1', 'gqa3')
    """
    return name if "_seed" in name else name.partition("_")[0]


def family_of(name: str) -> str:
    """The family of a model.

    >>> family_of("qwen0_cpt2"), family_of("t50_ft")
    ('qwen', 't5')
    """
    return next(family for family in (*DEV, *HELD) if name.startswith(family))


def is_held(name: str) -> bool:
    """Whether the model belongs to the half that no threshold was chosen on."""
    return family_of(name) in HELD
