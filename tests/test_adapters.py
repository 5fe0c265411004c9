"""Adapters from the files to the verdict: against bases, against each other, and applied. No false accusation."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from drupe import cli, document, workflows
from drupe import fingerprint as fingerprints
from drupe.errors import UsageError
from drupe.opening import open_subject
from drupe.recover.adapter_factors import Factors as Pair
from drupe.recover.adapter_factors import log10_overlap, log10_same_signs
from drupe.report import interface
from drupe.signals.sketch.spread import SAMPLED_CHANGES
from zoo_files import MODELS, read_model, save

ADAPTERS = Path(__file__).parent / "adapters"
Factors = dict[str, Any]
APART = ("trained_other_seed", "trained_same_seed", "trained_stranger")


def compared(suspect: Path, source: Path, *further: Path, adapter: Path | None = None) -> dict[str, Any]:
    report = workflows.compare(
        str(suspect),
        str(source),
        *map(str, further),
        adapter=None if adapter is None else str(adapter),
        offline=True,
    )
    jsonschema.validate(report, document.json_schema())
    assert document.loads(document.dumps(report).encode(), "report") == report
    for language in ("en", "zh"):
        assert interface.render(report, "terminal", language=language, verbose=True, to_file=True)
    return report


def weights(report: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = report["components"]["weights"]
    return found


def outcome(report: dict[str, Any]) -> tuple[str, str, list[str]]:
    found = weights(report)
    return report["verdict"]["label"], found["relation"], [item["kind"] for item in found["transformations"]]


def declaring(folder: Path, name: str, base: object) -> Path:
    """An adapter that declares another base."""
    shutil.copytree(ADAPTERS / name, folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": base}))
    return folder


# --- against a base


@pytest.mark.parametrize(
    ("name", "base"), [("lora", "r0"), ("dora", "r0"), ("ia3", "r0"), ("gpt2", "g0"), ("saved_modules", "q0")]
)
def test_its_own_declaration_makes_it_a_derivative(name: str, base: str) -> None:
    report = compared(ADAPTERS / name, MODELS / base)
    assert outcome(report) == ("derivative", "derived", ["adapter"])
    found = weights(report)
    assert found["transformations"][0]["parameters"]["base"] == base
    assert (found["direction"], found["log10_p"], found["shared_fraction"]) == (
        "suspect_from_source",
        None,
        0.0,
    )
    assert any("own declaration" in caveat for caveat in report["verdict"]["caveats"])
    assert report["verdict"]["disclosure"] == "disclosed"
    assert report["components"]["architecture"]["relation"] == "absent"


@pytest.mark.parametrize("base", ["r1", "r0_ft", "r0_cpt"])
def test_fitting_alone_proves_nothing(base: str) -> None:
    report = compared(ADAPTERS / "lora", MODELS / base)
    assert outcome(report) == ("inconclusive", "inconclusive", [])
    assert any("declares another base: r0" in reason for reason in weights(report)["reasons"])


@pytest.mark.parametrize("stated", [None, "r0_ft", "somebody/r0x", "R0-chat"])
def test_another_name_or_none_proves_nothing(stated: str | None, tmp_path: Path) -> None:
    report = compared(declaring(tmp_path / "a", "lora", stated), MODELS / "r0")
    assert outcome(report) == ("inconclusive", "inconclusive", [])


@pytest.mark.parametrize("stated", ["R0", "org/r0", "/home/me/r0/"])
def test_the_same_name_otherwise_written(stated: str, tmp_path: Path) -> None:
    assert outcome(compared(declaring(tmp_path / "a", "lora", stated), MODELS / "r0"))[0] == "derivative"


def test_a_name_that_contains_the_base_is_another_model(tmp_path: Path) -> None:
    """Enough for a disclosure, too little for a verdict."""
    base = save(read_model("r0"), tmp_path / "Granite-7B")
    for stated in ("Granite-7B-Chat", "Granite", "org/Granite-7B-v2"):
        adapter = declaring(tmp_path / stated.replace("/", "_"), "lora", stated)
        assert outcome(compared(adapter, base))[0] == "inconclusive"
    assert outcome(compared(declaring(tmp_path / "own", "lora", "org/Granite-7B"), base))[0] == "derivative"


def test_a_name_that_tools_left_in_the_base_is_not_its_own(tmp_path: Path) -> None:
    """The config of a fine-tune often still says the name of its parent."""
    base = save(read_model("r0_ft"), tmp_path / "Marble-7B-tuned")
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**settings, "_name_or_path": "Marble-7B"}))
    assert outcome(compared(declaring(tmp_path / "a", "lora", "Marble-7B"), base))[0] == "inconclusive"


def test_the_digest_of_the_base_is_a_declaration(tmp_path: Path) -> None:
    data = (MODELS / "r0" / "model.safetensors").read_bytes()
    factors = load_file(ADAPTERS / "lora" / "adapter_model.safetensors")
    for digest, label in ((hashlib.sha256(data).hexdigest(), "derivative"), ("0" * 64, "inconclusive")):
        folder = tmp_path / label
        folder.mkdir()
        save_file(factors, folder / "a.safetensors", metadata={"ss_new_sd_model_hash": digest})
        assert outcome(compared(folder, MODELS / "r0"))[0] == label


def test_other_shapes_exclude_it() -> None:
    report = compared(ADAPTERS / "lora", MODELS / "w0")
    assert outcome(report)[:2] == ("unrelated", "independent")
    assert any("64 x 128" in reason and "48 x 160" in reason for reason in weights(report)["reasons"])


def test_a_declaration_that_its_shapes_contradict_proves_nothing(tmp_path: Path) -> None:
    report = compared(declaring(tmp_path / "a", "lora", "w0"), MODELS / "w0")
    assert outcome(report)[:2] == ("inconclusive", "inconclusive")


def test_other_names_are_not_tested() -> None:
    assert outcome(compared(ADAPTERS / "lora", MODELS / "g0"))[:2] == ("inconclusive", "inconclusive")


def test_a_model_is_not_derived_from_its_adapter() -> None:
    report = compared(MODELS / "r0", ADAPTERS / "lora")
    assert outcome(report) == ("inconclusive", "inconclusive", [])


def test_of_several_sources_the_declared_one_speaks() -> None:
    report = compared(ADAPTERS / "lora", MODELS / "r1", MODELS / "r0")
    assert outcome(report)[0] == "derivative"
    assert weights(report)["parts"][0]["source"] == 1


# --- against another adapter


@pytest.mark.parametrize(
    ("name", "label", "relation", "kinds"),
    [
        ("trained_a", "copy", "identical", []),
        ("trained_gauge", "copy", "equivalent", []),
        ("trained_alpha", "copy", "equivalent", ["rescaled"]),
        ("trained_noise", "copy", "equivalent", ["gaussian_noise"]),
        ("trained_on", "inconclusive", "inconclusive", []),  # as one start on one text gives
        ("trained_again", "inconclusive", "inconclusive", []),
        ("trained_same_seed", "inconclusive", "inconclusive", []),
        ("trained_other_seed", "unrelated", "independent", []),
        ("trained_stranger", "unrelated", "independent", []),
    ],
)
def test_two_adapters(name: str, label: str, relation: str, kinds: list[str]) -> None:
    for suspect, source in ((name, "trained_a"), ("trained_a", name)):
        assert outcome(compared(ADAPTERS / suspect, ADAPTERS / source)) == (label, relation, kinds)


@pytest.mark.parametrize("place", range(len(APART)))
def test_one_base_does_not_make_adapters_related(place: int) -> None:
    """Trained apart, whatever text and seed: never more than chance could ask about."""
    for other in APART[place + 1 :]:
        assert outcome(compared(ADAPTERS / APART[place], ADAPTERS / other))[0] == "unrelated"


def test_noise_is_measured() -> None:
    change = weights(compared(ADAPTERS / "trained_noise", ADAPTERS / "trained_a"))["transformations"][0]
    assert change["parameters"]["relative_sigma"] == pytest.approx(0.03, abs=0.002)


def test_a_cast_of_the_factors(tmp_path: Path) -> None:
    shutil.copytree(ADAPTERS / "trained_a", tmp_path / "a")
    factors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    half = {name: values.astype(np.float16) for name, values in factors.items()}
    save_file(half, tmp_path / "a" / "adapter_model.safetensors")
    report = compared(tmp_path / "a", ADAPTERS / "trained_a")
    assert outcome(report)[:2] == ("copy", "equivalent")


def test_half_of_an_adapter_taken_over_is_partial(tmp_path: Path) -> None:
    shutil.copytree(ADAPTERS / "trained_stranger", tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    mixed, source = load_file(path), load_file(ADAPTERS / "trained_a" / "adapter_model.safetensors")
    mixed.update(
        {name: values for name, values in source.items() if "layers.1" in name or "layers.2" in name}
    )
    save_file(mixed, path)
    report = compared(tmp_path / "a", ADAPTERS / "trained_a")
    assert outcome(report)[:2] == ("derivative", "partial")
    assert weights(report)["shared_fraction"] == pytest.approx(0.5)


def test_one_tensor_taken_over_is_no_evidence(tmp_path: Path) -> None:
    shutil.copytree(ADAPTERS / "trained_stranger", tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    mixed, source = load_file(path), load_file(ADAPTERS / "trained_a" / "adapter_model.safetensors")
    mixed.update({name: values for name, values in source.items() if "layers.1.self_attn.q_proj" in name})
    save_file(mixed, path)
    assert outcome(compared(tmp_path / "a", ADAPTERS / "trained_a"))[0] in ("inconclusive", "unrelated")


def test_untrained_adapters_are_no_copies(tmp_path: Path) -> None:
    """A new LoRA is zero everywhere, whoever made it."""
    for name in ("a", "b"):
        shutil.copytree(ADAPTERS / "trained_a", tmp_path / name)
        path = tmp_path / name / "adapter_model.safetensors"
        factors = load_file(path)
        save_file({k: v * (0 if "lora_B" in k else 1) for k, v in factors.items()}, path)
    report = compared(tmp_path / "a", tmp_path / "b")
    assert outcome(report) == ("inconclusive", "inconclusive", [])


def test_what_is_saved_whole_is_the_base_and_no_evidence(tmp_path: Path) -> None:
    """Two adapters that store the same table of their base, and have nothing else in common."""
    table = read_model("r0").tensors["model.embed_tokens.weight"].astype(np.float32)
    for name in ("trained_other_seed", "trained_stranger"):
        shutil.copytree(ADAPTERS / name, tmp_path / name)
        path = tmp_path / name / "adapter_model.safetensors"
        save_file({**load_file(path), "base_model.model.model.embed_tokens.weight": table}, path)
    report = compared(tmp_path / "trained_other_seed", tmp_path / "trained_stranger")
    assert outcome(report)[0] == "unrelated"


def changed(name: str, folder: Path, change: Callable[[Factors], None], **settings: object) -> Path:
    """An adapter with other values and other settings."""
    shutil.copytree(ADAPTERS / name, folder)
    factors: Factors = load_file(folder / "adapter_model.safetensors")
    change(factors)
    stored = {key: np.ascontiguousarray(value, np.float32) for key, value in factors.items()}
    save_file(stored, folder / "adapter_model.safetensors")
    said = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**said, **settings}))
    return folder


def blurred(share: float) -> Callable[[Factors], None]:
    """Every tensor with so much noise, relative to its spread."""

    def change(factors: Factors) -> None:
        random = np.random.default_rng(7)
        for name, value in factors.items():
            factors[name] = value + share * value.std() * random.standard_normal(value.shape)

    return change


def nothing(factors: Factors) -> None:
    """No change."""


def downs(factors: Factors) -> list[tuple[str, str]]:
    return [(name, name.replace("lora_A", "lora_B")) for name in factors if "lora_A" in name]


def test_vectors_that_start_at_one_prove_nothing_unless_equal(tmp_path: Path) -> None:
    """IA3 has no random start: trained apart on one text they had a cosine of 0.98 (benchmarks/adapter_null.py)."""
    near = changed("ia3", tmp_path / "near", blurred(0.05))
    assert outcome(compared(near, ADAPTERS / "ia3"))[0] == "inconclusive"
    rounded = changed("ia3", tmp_path / "cast", nothing)
    factors = load_file(rounded / "adapter_model.safetensors")
    half = {name: value.astype(np.float16) for name, value in factors.items()}
    save_file(half, rounded / "adapter_model.safetensors")
    assert outcome(compared(rounded, ADAPTERS / "ia3"))[0] == "copy"


def test_a_start_in_the_base_itself_proves_nothing_unless_equal(tmp_path: Path) -> None:
    """PiSSA: strangers start from the same principal parts; had it been random, this would be a copy with noise."""
    source = changed("trained_a", tmp_path / "a", nothing, init_lora_weights="pissa_niter_4")
    near = changed("trained_a", tmp_path / "b", blurred(0.03), init_lora_weights="pissa_niter_4")
    assert outcome(compared(ADAPTERS / "trained_noise", ADAPTERS / "trained_a"))[0] == "copy"
    assert outcome(compared(near, source))[0] == "inconclusive"
    assert outcome(compared(source, source))[0] == "copy"
    with pytest.raises(UsageError, match="takes out of the base"):
        compared(MODELS / "r0", MODELS / "r0", adapter=source)


def test_such_a_start_is_seen_where_nobody_declares_it(tmp_path: Path) -> None:
    """Factors as square roots of principal parts on both sides."""

    def balance(factors: Factors) -> None:
        for down, up in downs(factors):
            u, s, v = np.linalg.svd(factors[up].astype(np.float64) @ factors[down], full_matrices=False)
            root = np.sqrt(s[:4])
            factors[up], factors[down] = u[:, :4] * root, root[:, None] * v[:4]

    def balance_near(factors: Factors) -> None:
        balance(factors)
        blurred(0.01)(factors)

    source = changed("trained_a", tmp_path / "a", balance)
    assert outcome(compared(source, ADAPTERS / "trained_a"))[0] == "copy"
    assert outcome(compared(changed("trained_a", tmp_path / "b", balance_near), source))[0] == "inconclusive"


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_a_mixture_holds_each_of_its_parents(share: float, tmp_path: Path) -> None:
    """Factors concatenated (PEFT: ``cat``): the directions of each parent are all there, however small its share."""
    other = load_file(ADAPTERS / "trained_stranger" / "adapter_model.safetensors")

    def mix(factors: Factors) -> None:
        for down, up in downs(factors):
            factors[up] = np.hstack([share * 4 * factors[up], (1 - share) * 4 * other[up]])
            factors[down] = np.vstack([factors[down], other[down]])

    mixture = changed("trained_a", tmp_path / "m", mix)
    for parent in ("trained_a", "trained_stranger"):
        assert outcome(compared(mixture, ADAPTERS / parent))[0] == "derivative"
    assert outcome(compared(mixture, ADAPTERS / "trained_other_seed"))[0] == "unrelated"


def test_what_was_cut_to_half_its_rank_descends(tmp_path: Path) -> None:
    def cut(factors: Factors) -> None:
        for down, up in downs(factors):
            u, s, v = np.linalg.svd(factors[up].astype(np.float64) @ factors[down], full_matrices=False)
            factors[up], factors[down] = u[:, :2] * s[:2], v[:2]

    assert (
        outcome(compared(changed("trained_a", tmp_path / "c", cut), ADAPTERS / "trained_a"))[0]
        == "derivative"
    )


def test_a_mixture_of_factors_is_not_called_independent(tmp_path: Path) -> None:
    """A fifth of another adapter, factor by factor: too little to be proven, too much for chance."""
    other = load_file(ADAPTERS / "trained_stranger" / "adapter_model.safetensors")

    def mix(factors: Factors) -> None:
        for name in factors:
            factors[name] = np.sqrt(0.2) * factors[name] + np.sqrt(0.8) * other[name]

    report = compared(changed("trained_a", tmp_path / "m", mix), ADAPTERS / "trained_a")
    assert outcome(report)[0] == "inconclusive"
    assert any("point the same way" in reason for reason in weights(report)["reasons"])


def test_the_signs_of_random_starts_are_coins() -> None:
    """No more than a fraction p of unrelated factors has a bound of p or less, common directions or not."""
    random = np.random.default_rng(0)
    learned = random.standard_normal(12)
    bounds = []
    for _ in range(2000):
        a, b = (
            (random.standard_normal((8, 12)) + random.choice([-3, 3], (8, 1)) * learned).astype(np.float32)
            for _ in range(2)
        )
        bounds.append(log10_same_signs([Pair(a, a, b, b)]))
    for p in (0.3, 0.1, 0.03, 0.01):
        assert np.mean(np.array(bounds) <= np.log10(p)) <= p


@pytest.mark.parametrize(
    ("old", "new"), [("self_attn.", "attn.wx."), ("base_model.model.model.", "transformer.")]
)
def test_other_names_are_no_other_values(old: str, new: str, tmp_path: Path) -> None:
    """Names that nobody can match prove no independence; those of another layout are matched."""

    def rename(factors: Factors) -> None:
        for name in list(factors):
            factors[name.replace(old, new)] = factors.pop(name)

    report = compared(changed("trained_a", tmp_path / "r", rename), ADAPTERS / "trained_a")
    assert outcome(report)[0] in ("inconclusive", "copy")


def test_nothing_in_common_is_excluded() -> None:
    assert outcome(compared(ADAPTERS / "lora", ADAPTERS / "gpt2"))[:2] == ("unrelated", "independent")


def test_the_bound_holds_for_random_input_factors() -> None:
    """No more than a fraction p of independent differences has a bound of p or less."""
    random = np.random.default_rng(0)
    bounds = []
    for _ in range(2000):
        a, b = (random.standard_normal((12, 2)) @ random.standard_normal((2, 12)) for _ in range(2))
        bounds.append(log10_overlap(float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)), 2, 12))
    for p in (0.3, 0.1, 0.03, 0.01):
        assert np.mean(np.array(bounds) <= np.log10(p)) <= p


# --- applied


def merged(folder: Path, name: str, base: str) -> Path:
    """The base with W + alpha / r B A computed here, rounded to the base's bfloat16."""
    model = read_model(base)
    settings = json.loads((ADAPTERS / name / "adapter_config.json").read_text())
    factors = load_file(ADAPTERS / name / "adapter_model.safetensors")
    tensors = dict(model.tensors)
    for key in [key for key in factors if ".lora_A." in key]:
        a, b = factors[key], factors[key.replace(".lora_A.", ".lora_B.")]
        target = key.replace("base_model.model.", "").replace("lora_A.", "")
        delta = settings["lora_alpha"] / settings["r"] * b @ a
        tensors[target] = tensors[target] + (delta.T if settings["fan_in_fan_out"] else delta)
    return save(model.with_tensors(tensors), folder)


@pytest.mark.parametrize(("name", "base"), [("lora", "r0"), ("gpt2", "g0"), ("trained_a", "r0")])
def test_base_and_adapter_are_a_copy_of_what_was_merged(name: str, base: str, tmp_path: Path) -> None:
    folder = merged(tmp_path / "merged", name, base)
    report = compared(MODELS / base, folder, adapter=ADAPTERS / name)
    assert outcome(report)[:2] == ("copy", "equivalent")
    assert report["suspect"]["adapter"]["applied"] == str(ADAPTERS / name)
    assert set(outcome(report)[2]) <= {"cast", "renamed"}
    without = compared(folder, MODELS / base)
    assert outcome(without)[:2] == ("derivative", "derived")


def test_a_merged_adapter_is_seen_in_its_rank(tmp_path: Path) -> None:
    report = compared(MODELS / "r0", MODELS / "r0", adapter=ADAPTERS / "lora")
    assert outcome(report)[2] == ["low_rank_update"]
    assert weights(report)["transformations"][0]["parameters"]["rank"] == 4


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = merged(tmp_path / "merged", "lora", "r0")
    r0, lora = str(MODELS / "r0"), str(ADAPTERS / "lora")
    assert cli.main(["compare", r0, "--adapter", lora, str(folder), "-q"]) == 1
    assert cli.main(["inspect", r0, "--adapter", lora, "--lang", "en"]) == 0
    shown = capsys.readouterr().out
    assert f"adapter applied: {lora}" in shown
    assert cli.main(["sketch", r0, "--adapter", lora, "-o", str(tmp_path / "f.drupe"), "-q"]) == 0
    assert cli.main(["compare", str(tmp_path / "f.drupe"), str(folder), "-q"]) == 1
    capsys.readouterr()
    for arguments, said in (
        (["compare", str(MODELS / "w0"), r0, "--adapter", lora], "does not fit this base"),
        (["inspect", r0, "--adapter", r0], "no adapter"),
        (["inspect", str(tmp_path / "f.drupe"), "--adapter", lora], "not a fingerprint"),
        (["sketch", r0, r0, "--adapter", lora, "-o", str(tmp_path / "x")], "one model"),
        (["inspect", str(ADAPTERS / "lokr")], "not read"),
    ):
        assert cli.main(arguments) == 2
        assert said in capsys.readouterr().err


# --- inspected and kept


@pytest.mark.parametrize(
    ("language", "words"), [("en", "adapter: lora, rank 4, alpha 8.0"), ("zh", "适配器：lora，秩 4")]
)
def test_inspect_says_what_it_is(language: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(ADAPTERS / "lora"), "--lang", language]) == 0
    shown = capsys.readouterr().out.replace("\n", " ")
    assert words in shown
    assert "r0" in shown


def test_the_inspection_follows_its_schema() -> None:
    for name in ("lora", "ia3", "pipeline_kohya"):
        report = workflows.inspect(str(ADAPTERS / name), offline=True)
        jsonschema.validate(report, document.json_schema("inspection"))
        assert report["model"]["adapter"]["applied"] is None
    report = workflows.inspect(str(ADAPTERS / "rslora_patterns"), offline=True)
    assert report["model"]["adapter"]["ranks"] == [2, 4, 8]
    assert report["declared"]["base_models"] == ["r0"]


def test_a_lie_about_the_rank_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ADAPTERS / "lora", tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 64}))
    assert cli.main(["inspect", str(tmp_path / "a"), "--lang", "en"]) == 0
    assert "claim rank 64; its tensors have 4" in capsys.readouterr().out.replace("\n", " ")


def test_of_many_changes_a_fingerprint_keeps_a_sample(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    factors = {
        f"base_model.model.model.layers.{n}.mlp.up_proj.lora_{side}.weight": random.standard_normal(shape)
        for n in range(600)
        for side, shape in (("A", (2, 64)), ("B", (64, 2)))
    }
    (tmp_path / "a").mkdir()
    save_file({k: v.astype(np.float32) for k, v in factors.items()}, tmp_path / "a" / "a.safetensors")
    fingerprint = open_subject(str(tmp_path / "a"), offline=True).fingerprint
    assert len(fingerprint.weights.matrices) == SAMPLED_CHANGES
    (tmp_path / "a.drupe").write_bytes(fingerprints.to_bytes(fingerprint))
    assert outcome(compared(tmp_path / "a.drupe", tmp_path / "a"))[0] == "copy"


def test_a_fingerprint_keeps_what_is_needed(tmp_path: Path) -> None:
    """A base is judged from two fingerprints; two adapters need their files, unless every sample is equal."""
    kept = {}
    for path in (
        ADAPTERS / "lora",
        ADAPTERS / "trained_a",
        ADAPTERS / "trained_noise",
        MODELS / "r0",
        MODELS / "w0",
    ):
        kept[path.name] = tmp_path / f"{path.name}.drupe"
        data = fingerprints.to_bytes(open_subject(str(path), offline=True).fingerprint)
        kept[path.name].write_bytes(data)
        assert fingerprints.to_bytes(fingerprints.from_bytes(data, "x")) == data
        assert (b'"adapter"' in data) == (path.parent == ADAPTERS)
    assert outcome(compared(kept["lora"], kept["r0"]))[0] == "derivative"
    assert outcome(compared(kept["lora"], kept["w0"]))[:2] == ("unrelated", "independent")
    assert outcome(compared(kept["trained_a"], kept["trained_a"]))[0] == "copy"
    assert outcome(compared(kept["trained_noise"], kept["trained_a"]))[0] == "inconclusive"
