"""Names, files, order, dtype and function-preserving rewrites: whatever is done, the answer must not move."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zoo
from drupe.signals.sketch.facts import extract
from pairs import judged, subject
from zoo_files import Checkpoint, read_model

Edit = Callable[[Checkpoint, int], Checkpoint]
SLOW = settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


def shuffled_files(model: Checkpoint, seed: int) -> Checkpoint:
    names = list(model.tensors)
    order = np.random.default_rng(seed).permutation(len(names))
    return model.with_tensors({names[i]: model.tensors[names[i]] for i in order})


def prefixed(model: Checkpoint, seed: int) -> Checkpoint:
    return model.with_tensors({f"wrapped_{seed}.{name}": values for name, values in model.tensors.items()})


STORAGE: dict[str, Edit] = {
    "rename_all": lambda model, seed: zoo.apply(model, "rename_all", seed=seed),
    "rename_yi": lambda model, seed: zoo.apply(model, "rename_yi"),
    "prefix": prefixed,
    "reshard": lambda model, seed: zoo.apply(model, "reshard", files=2 + seed % 4),
    "order": shuffled_files,
    "wider": lambda model, seed: zoo.apply(model, "cast", to="fp32"),
}
"""What changes no value."""

REWRITES: dict[str, Edit] = {
    "units": lambda model, seed: zoo.apply(model, "permute_units", seed=seed),
    "heads": lambda model, seed: zoo.apply(model, "permute_heads", seed=seed),
    "rescaled": lambda model, seed: zoo.apply(model, "rescale_units", spread=0.3, seed=seed),
    "folded": lambda model, seed: zoo.apply(model, "fold_gains"),
    "rotated": lambda model, seed: zoo.apply(model, "rotate", seed=seed),
}
"""What changes values and leaves the function as it is."""

TRUTH = {
    ("r0", "r0"): {"copy"},
    ("r0_ft", "r0"): {"derivative"},
    ("r0_cpt", "r0"): {"derivative"},
    ("r3", "r0"): {"same_design"},
    ("r1", "r0"): {"same_design", "unrelated"},  # opaque names hide the shared design
    ("r2", "r0_cpt"): {"same_design", "unrelated"},
}
storage = st.lists(st.sampled_from(sorted(STORAGE)), min_size=1, max_size=3, unique=True)


def rewritten(model: Checkpoint, edits: list[str], table: dict[str, Edit], seed: int) -> Checkpoint:
    # names last: the other edits look for tensors by the names they have
    for name in sorted(edits, key=lambda edit: (edit.startswith(("rename", "prefix")), edit)):
        model = table[name](model, seed)
    return model


@pytest.mark.parametrize("pair", TRUTH, ids=lambda pair: "-".join(pair))
@given(edits=storage, seed=st.integers(0, 1000))
@SLOW
def test_storage_never_moves_the_label(
    pair: tuple[str, str], edits: list[str], seed: int, tmp_path: Path
) -> None:
    suspect = rewritten(read_model(pair[0]), edits, STORAGE, seed)
    result = judged(suspect, pair[1], tmp_path)
    assert result.label in TRUTH[pair]
    if pair == ("r0", "r0"):
        assert result.kinds <= {"renamed", "resharded", "cast"}


@pytest.mark.parametrize(
    "pair", [("r0_cpt", "r0"), ("r1", "r0"), ("r3", "r0")], ids=lambda pair: "-".join(pair)
)
@given(edits=storage, seed=st.integers(0, 1000))
@SLOW
def test_storage_of_the_source_never_moves_the_label(
    pair: tuple[str, str], edits: list[str], seed: int, tmp_path: Path
) -> None:
    source = rewritten(read_model(pair[1]), edits, STORAGE, seed)
    assert judged(pair[0], source, tmp_path).label in TRUTH[pair]


@pytest.mark.parametrize("suspect", ["r0", "r0_ft", "r0_cpt"])
@given(
    edits=st.lists(st.sampled_from(sorted(REWRITES)), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 99),
)
@SLOW
def test_rewrites_never_free_a_descendant(suspect: str, edits: list[str], seed: int, tmp_path: Path) -> None:
    model = rewritten(read_model(suspect), edits, REWRITES, seed)
    assert judged(model, "r0", tmp_path).label in {"copy", "derivative"}


@pytest.mark.parametrize("suspect", ["r1", "r2", "r3", "r5"])
@given(
    edits=st.lists(st.sampled_from(sorted(REWRITES)), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 99),
)
@SLOW
def test_rewrites_never_accuse_the_innocent(
    suspect: str, edits: list[str], seed: int, tmp_path: Path
) -> None:
    model = rewritten(read_model(suspect), edits, REWRITES, seed)
    assert judged(model, "r0", tmp_path).label not in {"copy", "derivative"}


@given(seed=st.integers(0, 1000), edits=st.lists(st.sampled_from(["reshard", "order", "wider"]), unique=True))
@SLOW
def test_sketches_depend_on_values_alone(seed: int, edits: list[str], tmp_path: Path) -> None:
    plain = subject("r0", tmp_path).fingerprint.weights
    other = subject(rewritten(read_model("r0"), edits, STORAGE, seed), tmp_path).fingerprint.weights
    place = {matrix.tensor: row for row, matrix in enumerate(other.matrices)}
    rows = [place[matrix.tensor] for matrix in plain.matrices]
    assert (plain.words == other.words[rows]).all()
    assert (plain.digests == other.digests[rows]).all()
    assert (plain.states == other.states[rows]).all()


def test_sketches_are_the_same_on_every_reading(tmp_path: Path) -> None:
    side = subject("r0", tmp_path)
    assert side.model is not None
    again = extract(side.model)
    assert (again.words == side.fingerprint.weights.words).all()


NAMES = {
    "gate and up": ("gate_proj", "up_proj"),
    "q and k": ("q_proj", "k_proj"),
    "k and v": ("k_proj", "v_proj"),
    "q and o": ("q_proj", "o_proj"),
    "the two norms": ("input_layernorm", "post_attention_layernorm"),
}


@pytest.mark.parametrize("swap", NAMES)
def test_names_that_lie_hide_nothing_and_prove_nothing(swap: str, tmp_path: Path) -> None:
    first, second = NAMES[swap]

    def exchanged(model: Checkpoint) -> Checkpoint:
        swaps = {first: second, second: first}
        pattern = re.compile(f"{first}|{second}")
        return model.with_tensors(
            {pattern.sub(lambda hit: swaps[hit.group()], name): v for name, v in model.tensors.items()}
        )

    assert judged(exchanged(read_model("r0")), "r0", tmp_path).label == "copy"
    assert judged(exchanged(read_model("r0_cpt")), "r0", tmp_path).label == "derivative"
    assert judged(exchanged(read_model("r1")), "r0", tmp_path).label in {"same_design", "inconclusive"}


def test_layers_numbered_backwards_are_found(tmp_path: Path) -> None:
    for name in ("r0", "r0_cpt"):
        model = zoo.apply(read_model(name), "map_layers", order=[3, 2, 1, 0])
        result = judged(model, "r0", tmp_path)
        assert result.label == "derivative"
        assert "layers_reordered" in result.kinds


def test_configurations_that_lie_or_are_gone_change_no_relation(tmp_path: Path) -> None:
    lies = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "num_attention_heads": 8}
    for config in ({**read_model("r0").config, **lies}, {}):
        assert judged(replace(read_model("r0"), config=config), "r0", tmp_path).relation == "identical"
        assert judged(replace(read_model("r1"), config=config), "r0", tmp_path).relation == "independent"


@pytest.mark.parametrize("factor", [1e-3, -3.0, 1e3])
def test_a_factor_over_everything_is_undone(factor: float, tmp_path: Path) -> None:
    result = judged(zoo.apply(read_model("r0"), "scale", factor=factor), "r0", tmp_path)
    assert result.relation == "equivalent"
    assert "rescaled" in result.kinds
    assert judged(zoo.apply(read_model("r1"), "scale", factor=factor), "r0", tmp_path).label == "same_design"


def test_an_attacker_who_knows_the_sampled_rows_gains_nothing(tmp_path: Path) -> None:
    dice = np.random.default_rng(5)
    tensors = {}
    for name, values in read_model("r0").tensors.items():
        tensors[name] = values.copy()
        if values.ndim == 2:
            tensors[name][:8] = values.std() * dice.standard_normal((8, values.shape[1]))
    evaded = read_model("r0").with_tensors(tensors)
    assert judged(evaded, "r0", tmp_path).label in {"copy", "derivative"}
    assert judged(zoo.apply(evaded, "rename_all"), "r0", tmp_path).label in {"copy", "derivative"}


def test_a_model_inside_a_larger_one_is_a_part(tmp_path: Path) -> None:
    dice = np.random.default_rng(6)
    tower = {
        f"vision_tower.blocks.{layer}.{part}.weight": (0.05 * dice.standard_normal((96, 96))).astype(
            np.float32
        )
        for layer in range(8)
        for part in ("q", "k", "v", "o")
    }
    for name, expected in (("r0", "partial"), ("r1", "independent")):
        inner = {f"language_model.{tensor}": values for tensor, values in read_model(name).tensors.items()}
        result = judged(read_model(name).with_tensors({**inner, **tower}), "r0", tmp_path)
        assert result.relation == expected


def test_the_answer_is_the_same_both_times(tmp_path: Path) -> None:
    first, second = (judged("r0_cpt", "r0", tmp_path) for _ in range(2))
    assert first.diagnosis.transformations == second.diagnosis.transformations
    assert first.diagnosis.log10_p == second.diagnosis.log10_p


def _assembled(main: str, second: str, prefix: str = "vision.") -> Checkpoint:
    """Two trained towers in one model, the second under a prefix of its own."""
    model = read_model(main)
    further = {prefix + name: values for name, values in read_model(second).tensors.items()}
    return model.with_tensors({**model.tensors, **further})


@pytest.mark.parametrize(("main", "second"), [("r0", "r1"), ("b0", "r0"), ("g0", "r1")])
def test_a_second_tower_is_neither_lost_nor_mistaken_for_the_first(
    main: str, second: str, tmp_path: Path
) -> None:
    ours = _assembled(main, second)
    assert judged(_assembled(main, second, "vpm.model."), ours, tmp_path).relation == "equivalent"
    swapped = judged(_assembled(main, "r2"), ours, tmp_path)
    assert (swapped.label, swapped.relation) == ("derivative", "partial")
    stranger = judged(_assembled("r5", "r2"), ours, tmp_path)
    assert stranger.label in ("same_design", "unrelated", "inconclusive")


def _folded(name: str, bits: int | None) -> Checkpoint:
    """Gains spread between norms and the matrices behind them, and between up and down, as AWQ does; then rounded."""
    model, dice = read_model(name), np.random.default_rng(3)
    tensors = dict(model.tensors)
    for layer in range(model.config["num_hidden_layers"]):
        stem = f"model.layers.{layer}."
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            scale = np.exp(0.7 * dice.standard_normal(model.config["hidden_size"])).astype(np.float32)
            tensors[f"{stem}{norm}.weight"] = tensors[f"{stem}{norm}.weight"] / scale
            for reader in readers:
                tensors[f"{stem}{reader}.weight"] = tensors[f"{stem}{reader}.weight"] * scale
        up, down = f"{stem}mlp.up_proj.weight", f"{stem}mlp.down_proj.weight"
        scale = np.exp(0.7 * dice.standard_normal(len(tensors[up]))).astype(np.float32)
        tensors[up], tensors[down] = tensors[up] / scale[:, None], tensors[down] * scale
    folded = model.with_tensors(tensors)
    return zoo.apply(folded, "quantise", bits=bits, group=32) if bits else folded


@pytest.mark.parametrize("bits", [None, 4])
def test_gains_folded_into_the_next_matrix_are_undone(bits: int | None, tmp_path: Path) -> None:
    copied = judged(_folded("r0", bits), "r0", tmp_path)
    assert (copied.label, copied.relation) == ("copy", "equivalent")
    assert copied.kinds == ({"rescaled", "quantised"} if bits else {"rescaled"})
    tuned = judged(_folded("r0_ft", bits), "r0", tmp_path)
    assert (tuned.label, tuned.relation) == ("derivative", "derived")
    assert judged(_folded("r1", bits), "r0", tmp_path).relation == "independent"


@pytest.mark.parametrize(
    "words", [("ff", "gate_proj", "up_proj", "down_proj"), ("ff", "alpha", "beta", "gamma")]
)
@pytest.mark.parametrize("name", ["r0", "q0", "w0"])
def test_a_module_of_unknown_name_is_still_compared(
    words: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    """Only the FFN under a name that no scheme knows: the rest of the names must not decide what is looked at."""
    model = read_model(name)
    new = dict(zip(("mlp", "gate_proj", "up_proj", "down_proj"), words, strict=True))
    tensors = {
        ".".join(new.get(part, part) for part in key.split(".")): v for key, v in model.tensors.items()
    }
    found = judged(model.with_tensors(tensors), name, tmp_path)
    assert (found.label, found.relation) == ("copy", "equivalent")
    assert judged(model.with_tensors(tensors), "r2", tmp_path).label not in ("copy", "derivative")


@pytest.mark.parametrize("name", ["r0", "q0", "g0", "b0"])
def test_every_opaque_name_is_in_the_map(name: str, tmp_path: Path) -> None:
    """Names opaque, order shuffled: norm gains and biases are led back too."""
    model = read_model(name)
    renamed = zoo.apply(model, "rename_all", seed=4)
    changes = judged(renamed, name, tmp_path).diagnosis.transformations
    (found,) = (change.parameters["map"] for change in changes if change.kind == "renamed")
    assert isinstance(found, dict)
    assert found.keys() == model.tensors.keys()
    assert all(np.array_equal(model.tensors[old], renamed.tensors[new]) for old, new in found.items())


def test_a_few_values_changed_far_are_no_noise(tmp_path: Path) -> None:
    dice = np.random.default_rng(8)
    tensors = dict(read_model("r0").tensors)
    for name, values in tensors.items():
        if values.ndim == 2:
            hit = dice.random(values.shape) < 0.004
            tensors[name] = values + 2.0 * values.std() * (hit * dice.standard_normal(values.shape)).astype(
                np.float32
            )
    found = judged(read_model("r0").with_tensors(tensors), "r0", tmp_path)
    assert (found.label, found.relation) == ("derivative", "derived")
    assert "gaussian_noise" not in found.kinds


def _mixed(base: str, other: str, pattern: str) -> Checkpoint:
    """The base with those tensors of another model."""
    theirs = read_model(other).tensors
    tensors = {
        name: theirs[name] if re.search(pattern, name) else values
        for name, values in read_model(base).tensors.items()
    }
    return read_model(base).with_tensors(tensors)


def test_one_foreign_matrix_makes_a_copy_a_part(tmp_path: Path) -> None:
    found = judged(_mixed("r0", "r1", r"layers\.1\.self_attn\.q_proj"), "r0", tmp_path)
    assert (found.label, found.relation) == ("derivative", "partial")
    assert 0.97 < found.diagnosis.shared_fraction < 1.0


@pytest.mark.parametrize("pattern", ["o_proj", "v_proj", "up_proj", r"layers\.2\.mlp"])
def test_training_of_one_kind_of_matrix_is_no_noise(pattern: str, tmp_path: Path) -> None:
    found = judged(_mixed("r0", "r0_cpt", pattern), "r0", tmp_path)
    assert (found.label, found.relation) == ("derivative", "derived")
    assert "gaussian_noise" not in found.kinds


@pytest.mark.parametrize("pattern", ["[qkv]_proj", r"layers\.1\."])
def test_training_of_some_matrices_shows_through_a_grid(pattern: str, tmp_path: Path) -> None:
    found = judged(zoo.apply(_mixed("r0", "r0_cpt", pattern), "quantise", bits=4, group=32), "r0", tmp_path)
    assert (found.label, found.relation) == ("derivative", "derived")
    assert "quantised" in found.kinds


@pytest.mark.parametrize("dtype", ["fp16", "grid"])
@pytest.mark.parametrize("pattern", ["embed", "embed|norm", "norm"])
def test_trained_tables_and_gains_show_through_surface_changes(
    pattern: str, dtype: str, tmp_path: Path
) -> None:
    mixed = _mixed("r0", "r0_cpt", pattern)
    suspect = (
        zoo.apply(mixed, "quantise", bits=4, group=32) if dtype == "grid" else replace(mixed, dtype=dtype)
    )
    found = judged(suspect, "r0", tmp_path)
    assert (found.label, found.relation) == ("derivative", "derived")
