"""Whose code can load whose tensors: all four combinations, with the renames and the lines that say so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drupe.implied import Implied, Outcome, fits, pair_up
from drupe.messages import LANGUAGES, catalogue
from test_implied import of_case, of_text, truth

HERE = Path(__file__).parent / "implied"
Shapes = dict[str, tuple[int, ...]]


def renamed(tensors: Shapes, *rules: tuple[str, str]) -> Shapes:
    found = {}
    for name, shape in tensors.items():
        for old, new in rules:
            name = new + name.removeprefix(old) if name.startswith(old) else name
        found[name] = shape
    return found


@pytest.mark.parametrize("case", json.loads((HERE / "cases.json").read_text("utf-8")))
def test_a_model_fits_its_own_tensors(case: str) -> None:
    fit = fits(of_case(case), truth(case))
    assert (fit.outcome, fit.missing, fit.unexpected, fit.wrong, fit.renames) == (
        Outcome.FITS,
        (),
        (),
        (),
        (),
    )


def test_the_disguise_of_a_multimodal_model_is_right_in_all_four_combinations() -> None:
    """Two prefixes renamed, code reformatted and its identifiers renamed."""
    found = pair_up(of_case("disguised"), of_case("multimodal"), truth("disguised"), truth("multimodal"))
    assert found.suspect_own.outcome is Outcome.FITS
    assert found.source_own.outcome is Outcome.FITS
    assert found.source_others.outcome is Outcome.FITS_AFTER_RENAMES
    assert {(one.code, one.file) for one in found.source_others.renames} == {
        ("llm", "language_model"),
        ("vpm", "vision_model"),
    }
    assert found.suspect_others.outcome is Outcome.FITS_AFTER_RENAMES
    assert {(one.code, one.file) for one in found.suspect_others.renames} == {
        ("language_model", "llm"),
        ("vision_model", "vpm"),
    }
    counts = {one.code: one.count for one in found.source_others.renames}
    assert counts == {
        old: sum(name.startswith(old) for name in truth("multimodal")) for old in ("llm", "vpm")
    }
    assert found.headline.text("en") == (
        "The suspect's own code loads the suspect's weights; the source's can after 2 renames."
    )


def test_own_code_that_cannot_load_its_own_weights() -> None:
    """The code that was published with the weights belongs to another design; the source's loads them."""
    tensors = renamed(truth("multimodal"), ("llm.", "language_model."), ("vpm.", "vision_model."))
    found = pair_up(of_case("llama_like"), of_case("multimodal"), tensors, truth("multimodal"))
    assert found.suspect_own.outcome is Outcome.DOES_NOT_FIT
    assert found.suspect_others.outcome is Outcome.DOES_NOT_FIT
    assert found.source_own.outcome is Outcome.FITS
    assert found.source_others.outcome is Outcome.FITS_AFTER_RENAMES
    assert found.headline.text("en") == (
        "The suspect's own code cannot load the suspect's own weights; the source's can after 2 renames."
    )
    reasons = [reason.text("en") for reason in found.reasons]
    assert "modeling_llama_like.py, line" in reasons[0]
    assert "llm -> language_model" in reasons[1]
    assert all(reason.text("zh") for reason in found.reasons)


def test_strangers_do_not_fit() -> None:
    found = pair_up(of_case("gpt_like"), of_case("moe_like"), truth("gpt_like"), truth("moe_like"))
    outcomes = (found.suspect_own, found.source_own, found.suspect_others, found.source_others)
    assert [one.outcome.value for one in outcomes] == ["fits", "fits", "does_not_fit", "does_not_fit"]
    assert found.source_others.left > 0


def test_what_is_missing_or_wrong_is_named_with_its_line() -> None:
    tensors = truth("llama_like")
    del tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = (5, 5)
    tensors["extra"] = (1,)
    fit = fits(of_case("llama_like"), tensors)
    assert fit.outcome is Outcome.DOES_NOT_FIT
    assert [one.name for one in fit.missing] == ["model.norm.weight"]
    assert (fit.missing[0].place.file, fit.missing[0].place.line) == ("modeling_llama_like.py", 14)
    assert [(one.name, one.wanted, one.found) for one in fit.wrong] == [
        ("model.layers.0.mlp.up_proj.weight", (64, 32), (5, 5))
    ]
    assert fit.unexpected == ("extra",)


def test_a_transposed_matrix_is_no_fit() -> None:
    """Names and sizes alone would pass: Conv1D stores the same matrix the other way round."""
    tensors = truth("gpt_like")
    name = "transformer.h.0.mlp.c_fc.weight"
    tensors[name] = tensors[name][::-1]
    assert fits(of_case("gpt_like"), tensors).outcome is Outcome.DOES_NOT_FIT


def test_tied_optional_and_allowed_tensors_may_be_absent() -> None:
    tensors = truth("gpt_like")
    for name in ("lm_head.weight", "transformer.h.0.attn.bias"):  # tied; allowed by the class
        del tensors[name]
    tensors["transformer.h.1.attn.masked_bias"] = ()  # not saved by this version, allowed by the class
    assert fits(of_case("gpt_like"), tensors).outcome is Outcome.FITS
    del tensors["transformer.wte.weight"]  # both of the tied pair
    assert fits(of_case("gpt_like"), tensors).outcome is Outcome.DOES_NOT_FIT


def test_untied_heads_are_required() -> None:
    tensors = truth("llama_like")
    del tensors["lm_head.weight"]
    assert fits(of_case("llama_like"), tensors).outcome is Outcome.DOES_NOT_FIT
    tied = truth("llama_like_biased")
    del tied["lm_head.weight"]
    assert fits(of_case("llama_like_biased"), tied).outcome is Outcome.FITS


def test_the_base_prefix_is_stripped_as_loaders_do() -> None:
    core = {name.removeprefix("transformer."): shape for name, shape in truth("gpt_like").items()}
    fit = fits(of_case("gpt_like"), core)
    assert (fit.outcome, fit.prefix) == (Outcome.FITS, "transformer.")


def test_an_open_part_makes_the_answer_unknown_not_a_misfit() -> None:
    found = of_text(
        "from torch import nn\nfrom transformers import PreTrainedModel\nclass M(PreTrainedModel):\n"
        "    def __init__(self, config):\n        super().__init__(config)\n"
        "        self.tower = Nobody(config)\n        self.proj = nn.Linear(2, 2)\n"
    )
    proj: Shapes = {"proj.weight": (2, 2), "proj.bias": (2,)}
    assert fits(found, {**proj, "tower.0.weight": (3, 3)}).outcome is Outcome.UNKNOWN
    assert fits(found, {"tower.0.weight": (3, 3)}).outcome is Outcome.DOES_NOT_FIT  # proj is missing for sure
    assert fits(replace(found, entry=None), proj).outcome is Outcome.UNKNOWN
    assert fits(Implied(None), {}).outcome is Outcome.UNKNOWN


WORDS = st.text(alphabet="abcdefgh_", min_size=3, max_size=9)


@given(WORDS, WORDS)
@settings(max_examples=30, deadline=None)
def test_any_two_prefixes_are_found(first: str, second: str) -> None:
    rules = (("llm.", f"{first}."), ("vpm.", f"{second}."))
    if len({first, second, "llm", "vpm", "resampler"}) < 5:
        return
    fit = fits(of_case("multimodal"), renamed(truth("multimodal"), *rules))
    assert fit.outcome is Outcome.FITS_AFTER_RENAMES
    assert {(one.code, one.file) for one in fit.renames} == {("llm", first), ("vpm", second)}


def test_modules_inside_of_layers_are_renamed_too() -> None:
    tensors = {
        name.replace("input_layernorm", "ln1").replace("post_attention_layernorm", "ln2"): shape
        for name, shape in truth("llama_like").items()
    }
    fit = fits(of_case("llama_like"), tensors)
    assert fit.outcome is Outcome.FITS_AFTER_RENAMES
    assert {(one.code, one.file) for one in fit.renames} == {
        ("input_layernorm", "ln1"),
        ("post_attention_layernorm", "ln2"),
    }


def test_fewer_layers_do_not_fit() -> None:
    tensors = {name: shape for name, shape in truth("llama_like").items() if ".layers.2." not in name}
    assert fits(of_case("llama_like"), tensors).outcome is Outcome.DOES_NOT_FIT


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_pair_of_outcomes_has_its_sentence(language: str) -> None:
    shorts = ("fits", "renamed", "fails", "unknown")
    keys = {f"implied.headline.{own}.{others}" for own in shorts for others in shorts}
    assert keys <= catalogue(language).keys()
