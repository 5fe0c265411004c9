"""The names and shapes that code implies are those of torch's own ``state_dict()``, and nothing is guessed.

``tests/implied/truth.json`` was written by torch (``tests/implied/make.py``); the code under
``tests/implied/code`` is followed here as text and never imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drupe.errors import LimitError
from drupe.implied import Implied, core, implied
from drupe.implied.limits import MAX_DEPTH, MAX_STEPS
from drupe.implied.patterns import matches, parts_of
from implied.hostile_code import CONFIG, HEAD, HOSTILE, model

HERE = Path(__file__).parent / "implied"

CASES: dict[str, dict] = json.loads((HERE / "cases.json").read_text("utf-8"))
TRUTH: dict[str, dict] = json.loads((HERE / "truth.json").read_text("utf-8"))
FEATURES = sorted(name for name in TRUTH["state_dict"] if name.startswith("Feature"))


def code(*names: str) -> dict[str, str]:
    return {f"{name}.py": (HERE / "code" / f"{name}.py.txt").read_text("utf-8") for name in names}


def truth(case: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in TRUTH["state_dict"][case].items()}


@cache
def of_case(case: str) -> Implied:
    entry = CASES[case]
    return implied(code(*entry["files"]), entry["config"], entry["architecture"])


def of_text(text: str, config: Mapping[str, object] | None = None) -> Implied:
    return implied({"modeling_m.py": text}, {"architectures": ["M"], "model_type": "m", **(config or {})})


@pytest.mark.parametrize("case", CASES)
def test_a_model_implies_what_torch_registers(case: str) -> None:
    found = of_case(case)
    assert dict(found.parameters) == truth(case)
    assert not found.unknown
    assert not found.optional


@pytest.mark.parametrize("feature", [name for name in FEATURES if name != "FeatureConditions"])
def test_a_feature_of_the_language_is_followed(feature: str) -> None:
    found = implied(code("modeling_features"), TRUTH["features"], feature)
    assert dict(found.parameters) == truth(feature)
    assert not found.unknown
    assert not found.optional


def test_what_depends_on_a_library_or_an_unknown_configuration_is_marked() -> None:
    """No configuration class is among the files: whether an attribute exists is not known, nor is FusedNorm."""
    found = implied(code("modeling_features"), TRUTH["features"], "FeatureConditions")
    expected = truth("FeatureConditions")
    assert set(found.parameters) == set(expected)
    assert found.parameters["a.weight"] == (None, None)
    assert {name: found.parameters[name] for name in expected if name != "a.weight"} == {
        name: shape for name, shape in expected.items() if name != "a.weight"
    }
    assert found.optional == {"norms.weight", "norms.bias"}
    assert [gap.prefix for gap in found.unknown] == ["norms"]


def test_every_name_has_the_line_that_makes_it() -> None:
    found = of_case("llama_like")
    place = found.places["model.layers.2.mlp.up_proj.weight"]
    line = code("modeling_llama_like")[place.file].splitlines()[place.line - 1]
    assert "self.up_proj = nn.Linear(" in line
    assert found.places.keys() == found.parameters.keys()


def test_tied_buffers_and_optional_names_are_told_apart() -> None:
    assert of_case("llama_like_biased").tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in of_case("llama_like").tied  # the configuration says untied
    assert of_case("gpt_like").buffers == {"transformer.h.0.attn.bias", "transformer.h.1.attn.bias"}
    assert "transformer.h.0.attn.masked_bias" in of_case("gpt_like").transient
    assert of_case("gpt_like").tied["lm_head.weight"] == "transformer.wte.weight"
    assert of_case("llama_like").base_prefix == "model"


def test_the_entry_is_the_architecture_then_the_auto_map_then_the_largest() -> None:
    files = code("configuration_llama_like", "modeling_llama_like")
    config = {"model_type": "llama_like"}
    named = implied(files, {**config, "architectures": ["LlamaLikeModel"]}).entry
    mapped = implied(files, {**config, "auto_map": {"AutoModel": "modeling_llama_like.LlamaLikeModel"}}).entry
    largest = implied(files, config).entry
    assert [(one.name, one.how) for one in (named, mapped, largest) if one] == [
        ("LlamaLikeModel", "architecture"),
        ("LlamaLikeModel", "auto_map"),
        ("LlamaLikeForCausalLM", "contains_most"),
    ]
    assert largest is not None
    assert largest.place.file == "modeling_llama_like.py"


def test_an_unknown_class_opens_a_prefix_and_nothing_else() -> None:
    text = (
        HEAD
        + "from transformers import AutoModel\n"
        + model(
            "self.tower = AutoModel.from_config(config.vision_config)\nself.proj = nn.Linear(2, 3)"
        ).removeprefix(HEAD)
    )
    found = of_text(text, {"vision_config": {"model_type": "nobody_knows"}})
    assert set(found.parameters) == {"proj.weight", "proj.bias"}
    assert found.is_open("tower.layers.0.weight")
    assert not found.is_open("proj.other")
    assert [gap.place.line for gap in found.unknown] == [8]


def test_an_auto_class_finds_the_model_among_the_files() -> None:
    files = code("configuration_llama_like", "modeling_llama_like")
    text = (
        HEAD
        + "from transformers import AutoModel\n"
        + model("self.tower = AutoModel.from_config(config.text_config)").removeprefix(HEAD)
    )
    config = {"architectures": ["M"], "text_config": {"model_type": "llama_like", "num_hidden_layers": 1}}
    found = implied({**files, "modeling_m.py": text}, config)
    assert not found.unknown
    assert found.parameters["tower.layers.0.self_attn.q_proj.weight"] == (32, 32)


@pytest.mark.parametrize(
    ("body", "required", "optional"),
    [
        (
            "self.a = nn.Linear(2, 2) if config.nobody else nn.Linear(2, 2, bias=False)",
            {"a.weight"},
            {"a.bias"},
        ),
        ("if config.nobody:\n    self.a = nn.Linear(2, 2)", set(), {"a.weight", "a.bias"}),
        ("self.a = nn.Linear(2, 2, bias=config.nobody)", {"a.weight"}, {"a.bias"}),
        (
            "for i in range(2):\n    if config.nobody and False:\n        self.a = nn.Linear(2, 2)",
            set(),
            set(),
        ),
        (
            "x = []\nif config.nobody:\n    x.append(nn.Embedding(2, 2))\nx.append(nn.Embedding(3, 3))\n"
            "self.x = nn.ModuleList(x)",
            set(),
            {"x.0.weight", "x.1.weight"},
        ),
    ],
)
def test_an_unknown_condition_is_followed_both_ways(
    body: str, required: set[str], optional: set[str]
) -> None:
    found = of_text(model(body))
    assert set(found.parameters) - found.optional == required
    assert found.optional == optional


def test_numbers_after_a_conditional_item_are_open() -> None:
    body = "x = []\nif config.nobody:\n    x.append(nn.Embedding(2, 2))\nself.x = nn.ModuleList(x)"
    assert of_text(model(body)).is_open("x.1.weight")


def test_what_comes_after_an_unknown_number_of_items_gets_no_number() -> None:
    loop = "for i in range(config.nobody):\n    x.append(nn.Embedding(2, 2))\n"
    found = of_text(model(f"x = []\n{loop}x.append(nn.Linear(3, 3))\nself.x = nn.ModuleList(x)"))
    assert set(found.parameters) == found.optional == {"x.0.weight"}
    assert found.is_open("x.1.weight")


def test_lists_of_unknown_length_and_unknown_names_are_open() -> None:
    for body in (
        "self.x = nn.ModuleList([nn.Linear(2, 2) for i in range(config.nobody)])",
        "self.x = nn.ModuleList()\nfor i in range(config.nobody):\n    self.x.append(nn.Linear(2, 2))",
        "self.x = nn.ModuleDict({config.nobody: nn.Linear(2, 2)})",
        "self.x = nn.ModuleList(nobody(config))",
        "self.x = Nobody(config)",
    ):
        found = of_text(model(body))
        assert found.is_open("x.5.weight"), body
        assert not found.is_open("y.weight"), body
    assert of_text(model("setattr(self, config.nobody, nn.Linear(2, 2))")).is_open("anything")
    assert of_text(HEAD + "class M(Nobody):\n    pass\n").is_open("anything")


def test_a_constructor_that_raises_leaves_its_module_open() -> None:
    found = of_text(
        model("self.a = nn.Linear(2, 2)\nif config.n:\n    raise ValueError\nself.b = nn.Linear(2, 2)"),
        {"n": 1},
    )
    assert set(found.parameters) == {"a.weight", "a.bias"}
    assert found.is_open("b.weight")


@pytest.mark.parametrize(
    ("body", "required", "optional"),
    [
        ("if config.nobody:\n    return\nself.a = nn.Embedding(2, 2)", set(), {"a.weight"}),
        (
            "for i in range(3):\n    if i == 1 and config.nobody:\n        break\n"
            "    setattr(self, f'a{i}', nn.Embedding(2, 2))\nself.b = nn.Embedding(2, 2)",
            {"a0.weight", "b.weight"},
            {"a1.weight", "a2.weight"},
        ),
        (
            "for i in range(3):\n    if i == 1:\n        if config.nobody:\n            continue\n"
            "    setattr(self, f'a{i}', nn.Embedding(2, 2))",
            {"a0.weight"},
            {"a1.weight", "a2.weight"},
        ),
        (
            "match config.n:\n    case 1 | 2:\n        self.a = nn.Embedding(2, 2)\n"
            "    case 3:\n        self.b = nn.Embedding(2, 2)\n    case _:\n        self.c = nn.Embedding(2, 2)",
            {"b.weight"},
            set(),
        ),
        (
            "match config.nobody:\n    case 1:\n        self.a = nn.Embedding(2, 2)\n"
            "    case other:\n        self.b = nn.Embedding(2, 2)",
            set(),
            {"a.weight", "b.weight"},
        ),
        ("self.a = pick(config.nobody)", set(), {"a.weight", "a.bias"}),
        ("self.a = pick(True)", {"a.weight"}, set()),
        ("self.a = wrapped(2)", {"a.weight"}, set()),
    ],
)
def test_a_path_that_may_be_left_early_makes_the_rest_optional(
    body: str, required: set[str], optional: set[str]
) -> None:
    before = (
        "def pick(flag):\n    if flag:\n        return nn.Embedding(2, 2)\n    return nn.Conv1d(2, 2, 2)\n"
        "def double(function):\n    def inner(n):\n        return function(2 * n)\n    return inner\n"
        "@double\ndef wrapped(n):\n    return nn.Embedding(n, n)\n"
    )
    found = of_text(model(body, before), {"n": 3})
    names = set(found.parameters)
    if "pick(config" in body:
        assert found.parameters["a.weight"] is None
        assert (names - found.optional, found.optional) == ({"a.weight"}, {"a.bias"})
        return
    assert (names - found.optional, found.optional) == (required, optional)
    if "wrapped" in body:
        assert found.parameters["a.weight"] == (4, 4)


@pytest.mark.parametrize("method", ["__new__", "state_dict", "_load_from_state_dict", "__setattr__"])
def test_a_class_that_names_its_tensors_itself_is_open(method: str) -> None:
    before = f"class Own(nn.Linear):\n    def {method}(self, *args, **kwargs):\n        return None\n"
    found = of_text(model("self.a = Own(2, 2)\nself.b = nn.Linear(2, 2)", before))
    assert found.is_open("a.other")
    assert not found.is_open("b.other")


def test_a_broken_file_is_named_and_the_others_are_followed() -> None:
    files = {"modeling_m.py": model("self.a = nn.Linear(2, 2)"), "broken.py": "class M2(:\n"}
    text = files["modeling_m.py"].replace("import torch\n", "import torch\nfrom .broken import Other\n", 1)
    found = implied({**files, "modeling_m.py": text.replace("(2, 2)", "(2, 2 if Other else 3)")}, CONFIG)
    assert found.parameters["a.weight"] == (None, 2)
    assert [(gap.place.file, gap.place.line) for gap in found.unknown] == [("broken.py", 1)]


def test_no_files_and_no_models_are_an_answer() -> None:
    for files in ({}, {"a.py": ""}, {"a.py": "x = 1"}, {"readme.md": "class M(nn.Module): pass"}):
        found = implied(files, CONFIG)
        assert found.entry is None
        assert found.unknown


def cost(name: str) -> tuple[LimitError | None, core.Budget]:
    """What following a hostile file ends in, and what it used."""
    seen: list[core.Budget] = []

    class Counting(core.Budget):
        def __init__(self) -> None:
            super().__init__()
            seen.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "Budget", Counting)
        files = {"modeling_m.py": HOSTILE[name], "modeling_b.py": "from .modeling_m import *\n"}
        try:
            implied(files, CONFIG)
        except LimitError as error:
            return error, seen[0]
    return None, seen[0]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_code_ends_in_a_typed_error_or_an_answer(name: str) -> None:
    """Time and memory are bounded by the count of steps, which is stopped before anything large is made."""
    error, used = cost(name)
    assert used.depth <= MAX_DEPTH + 1
    if error is None:
        assert used.steps <= MAX_STEPS
    else:
        assert isinstance(error.actual, str) or error.actual > error.limit
        assert error.hint


def test_hostile_code_does_meet_the_limits() -> None:
    assert cost("endless loop")[0] is not None
    assert cost("module list of a billion")[0] is not None


@given(st.text(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_text_is_read(text: str) -> None:
    assert implied({"modeling_m.py": text}, CONFIG).entry is None or "class" in text


WORDS = (
    "self . a = ( ) [ ] { } : , nn Linear ModuleList 1 2 config n for in range if else i lambda * ** + - not "
    "class M def x return None 'k' super __init__ Parameter torch zeros ;"
)
TOKENS = st.sampled_from(WORDS.split())


@given(st.lists(TOKENS, max_size=25))
@settings(max_examples=300, deadline=None)
def test_any_statement_is_followed(tokens: list[str]) -> None:
    assert of_text(model(" ".join(tokens) or "pass"), {"n": 3}) is not None


@given(st.sampled_from(FEATURES), st.data())
@settings(max_examples=40, deadline=None)
def test_a_damaged_file_is_read(feature: str, data: st.DataObject) -> None:
    text = code("modeling_features")["modeling_features.py"]
    start = data.draw(st.integers(0, len(text)))
    cut = text[:start] + text[start + data.draw(st.integers(1, 40)) :]
    assert implied({"modeling_features.py": cut}, TRUTH["features"], feature) is not None


def test_following_twice_gives_the_same() -> None:
    entry = CASES["multimodal"]
    files = code(*entry["files"])
    shuffled = dict(reversed(files.items()))
    assert implied(shuffled, entry["config"], entry["architecture"]) == of_case("multimodal")


def test_patterns_that_backtrack_are_never_tried() -> None:
    assert parts_of("(a+)+$") is None
    assert not matches("(a|a)*", "aaaa")
    assert not matches("a" * 300, "a" * 300)
    assert not matches(".*".join("a" * 60) + "b", "a" * 250)
    assert matches(r"h\.\d+\.attn\.masked_bias", "transformer.h.11.attn.masked_bias")
    assert matches(r"^h.*bias$", "h.0.attn.bias")
    assert not matches(r"^attn\.bias$", "h.0.attn.bias")
    assert not matches(r"a.*b.*c", "c.b.a")
