"""Proof by running: does the converted folder load in its class, and does that compute what the original computes?

Needs torch and transformers (``pip install 'drupe[run]'``), which are imported here only. Code of a model is never
run: an original whose class transformers does not know is put into the target's class straight from its own files,
by the map, so that what was written to the disk is what is tested.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drupe.convert.plan import Output, Plan
from drupe.convert.values import ITEM_BYTES, Values
from drupe.errors import UnsupportedError, UsageError
from drupe.model import Model

TOLERANCE = 1e-6
"""Largest difference of the logits (float32, of the same operations in the same order) relative to their size."""
SEQUENCES, LENGTH = 4, 128
TEXT = (
    "When in the Course of human events, it becomes necessary for one people to dissolve the political bands "
    "which have connected them with another, and to assume among the powers of the earth, the separate and equal "
    "station to which the Laws of Nature and of Nature's God entitle them, a decent respect to the opinions of "
    "mankind requires that they should declare the causes. def main() -> int: return sum([1, 2]) "
)
"""In the public domain."""


@dataclass(frozen=True, slots=True)
class Run:
    """What running showed. ``own_class``: the class in which the original ran; ``difference``: of logits, largest."""

    loaded_as: str
    own_class: str | None
    tokens: int
    difference: float
    perplexity: tuple[float, float]
    """Of the original, of the converted model."""


def run(model: Model, made: Plan, folder: Path, between_classes: bool) -> Run:
    """Load both and compare.

    ``between_classes``: the original must load in its own class. Raises UsageError without torch, UnsupportedError
    when the class does not take the tensors or computes something else.
    """
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        raise UsageError("running needs torch and transformers", hint="pip install 'drupe[run]'")
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    converted = _load(folder)
    theirs = _own_class(model)
    if between_classes and theirs is None:
        problem = (
            "the original does not load in its own class, so nothing shows that the target computes the same"
        )
        raise UnsupportedError(problem, where=model.tree.locator)
    original = theirs or _from_values(model, made, converted)
    most = getattr(converted.config, "max_position_embeddings", None) or LENGTH
    ids = torch.tensor(_tokens(folder, int(converted.config.vocab_size), min(LENGTH, int(most) - 2)))
    with torch.no_grad():
        first, second = original(ids), converted(ids)
    difference = float((first.logits - second.logits).abs().max() / first.logits.abs().max())
    found = Run(
        type(converted).__name__,
        type(original).__name__ if theirs is not None else None,
        ids.numel(),
        difference,
        (_perplexity(first.logits, ids), _perplexity(second.logits, ids)),
    )
    if not difference <= TOLERANCE:
        raise UnsupportedError(
            f"the converted model computes other logits (by {difference:.1e})", where=str(folder)
        )
    return found


def _load(folder: Path) -> Any:
    """The folder in the class that its configuration names; every tensor must find its place."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        loaded, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever transformers says of a folder that it cannot load
        raise UnsupportedError(
            f"transformers cannot load it: {str(error)[:300]}", where=str(folder)
        ) from None
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    wrong = {kind: sorted(map(str, info[kind]))[:4] for kind in kinds}
    if any(wrong.values()):
        told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in wrong.items() if names)
        raise UnsupportedError(
            f"{type(loaded).__name__} does not take these tensors: {told}", where=str(folder)
        )
    return loaded.eval()


def _own_class(model: Model) -> Any:
    """The original in a class of its own; None when transformers has none for it."""
    folder = Path(model.tree.locator)
    if not folder.is_dir():
        return None
    try:
        return _load(folder)
    except UnsupportedError:
        return None


def _from_values(model: Model, made: Plan, converted: Any) -> Any:
    """A second model of the target's class, filled from the original's files."""
    import copy

    import torch

    values = Values(model)
    state = {output.name: _tensor(values, output) for output in made.outputs}
    twin = copy.deepcopy(converted)
    with torch.no_grad():
        for name, parameter in twin.state_dict().items():
            if name in state:
                parameter.copy_(state[name])
    return twin


def _tensor(values: Values, output: Output) -> Any:
    import torch

    dtype = values.dtype(output.tensors[0])
    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
    raw = bytearray(b"".join(values.chunks(output)))
    if dtype not in kinds:
        raise UnsupportedError(f"{output.name} of type {dtype} ({ITEM_BYTES[dtype]} bytes) cannot be run")
    return torch.frombuffer(raw, dtype=kinds[dtype]).reshape(output.shape).to(torch.float32)


def _tokens(folder: Path, vocabulary: int, length: int) -> list[list[int]]:
    """Tokens of a text where there is a tokenizer, else drawn."""
    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        ids = [number for number in tokenizer(TEXT * 8)["input_ids"] if number < vocabulary]
    except Exception:  # no tokenizer, or none that can be loaded without code of its own
        ids = []
    need = SEQUENCES * length
    if len(ids) < need:
        ids += np.random.default_rng(0).integers(0, vocabulary, need - len(ids)).tolist()
    return [ids[k * length : (k + 1) * length] for k in range(SEQUENCES)]


def _perplexity(logits: Any, ids: Any) -> float:
    """exp of the mean cross-entropy of the next token, in nats."""
    import torch

    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    return math.exp(float(torch.nn.functional.cross_entropy(flat, ids[:, 1:].reshape(-1))))
