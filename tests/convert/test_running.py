"""The converted folder runs in its class; needs torch and transformers (make test-run)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import zoo
from drupe.convert.steps import Written
from drupe.errors import UnsupportedError
from drupe.workflows import convert
from zoo_files import MODELS, Checkpoint, read_model, save

pytestmark = pytest.mark.filterwarnings("ignore")


def ran(model: Checkpoint | str, like: str, tmp_path: Path) -> Written:
    locator = model if isinstance(model, str) else str(save(model, tmp_path / "model"))
    written = convert(locator, like, tmp_path / "out", run=True)
    assert not isinstance(written, bytes)
    return written


def logits(folder: Path):  # type: ignore[no-untyped-def]
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.arange(2 * 64).reshape(2, 64) % 500
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return loaded(ids).logits


def yi(name: str) -> Checkpoint:
    """Under the names and the class of the first Yi, which transformers cannot load."""
    model = zoo.apply(read_model(name), "rename_yi")
    return replace(model, config={**model.config, "model_type": "Yi", "architectures": ["YiForCausalLM"]})


@pytest.mark.parametrize("name", ["r0", "r1", "w0"])
def test_yi_runs_as_a_llama_and_computes_what_the_origin_computes(name: str, tmp_path: Path) -> None:
    written = ran(yi(name), "llama", tmp_path)
    assert written.run is not None
    assert (written.run.loaded_as, written.run.own_class) == ("LlamaForCausalLM", None)
    assert written.run.difference <= 1e-6
    assert written.run.perplexity[0] == pytest.approx(written.run.perplexity[1])
    assert (logits(tmp_path / "out") - logits(MODELS / name)).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("edits", "like"),
    [
        ((("fuse_qkv", {}),), "llama"),
        ((("rename_all", {}),), str(MODELS / "r0")),
        ((), "phi3"),
        ((), "llama"),
    ],
    ids=["fused", "opaque", "to phi3", "as it is"],
)
def test_other_layouts_run(
    edits: tuple[tuple[str, dict[str, object]], ...], like: str, tmp_path: Path
) -> None:
    model = read_model("r0")
    for kind, parameters in edits:
        model = zoo.apply(model, kind, **parameters)
    written = ran(model, like, tmp_path)
    assert written.run is not None
    assert (logits(tmp_path / "out") - logits(MODELS / "r0")).abs().max() <= 2e-5


def test_a_class_that_does_not_take_the_tensors_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError):  # heads apart where the class shares one
        ran(str(MODELS / "g0"), "gpt_bigcode", tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_class_that_computes_something_else_is_an_error(tmp_path: Path) -> None:
    """Granite multiplies where Llama divides: names, shapes and settings fit."""
    with pytest.raises(UnsupportedError):
        ran(str(MODELS / "r0"), "granite", tmp_path)
    assert not (tmp_path / "out").exists()
