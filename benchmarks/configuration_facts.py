"""Stage 1 of the table of configurations: what transformers' own classes hold, built on the meta device.

    python benchmarks/configuration_facts.py FOLDER      # needs torch and transformers; 3 minutes

Writes ``FOLDER/transformers.jsonl``: for every model type its default configuration, where that stands, and
the names and shapes of the parameters as ``save_pretrained`` would write them; then the same for variants with one
switch turned. No weights exist at any moment. build_configurations.py reads the result without torch.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1")
if find_spec("torch") is not None:
    import torch
    import transformers

HEADS = (
    *("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "MASKED_LM", "CAUSAL_LM", "IMAGE_TEXT_TO_TEXT"),
    *("MULTIMODAL_LM", "ZERO_SHOT_IMAGE_CLASSIFICATION"),
)
TIMEOUT = 60
MAX_VARIANTS = 24
VARIANT_LAYERS = 4
_NO_MODULE = re.compile(
    r"^(return_|output_|use_cache|is_decoder|add_cross|chunk|tie_word|torchscript|gradient|scale_embedding|norm_topk"
    r"|initializ|_|do_sample|early|force|remove_invalid|mamba_|encoder_only|classifier|add_router|pre_infer)"
)
_NUMBERS = (
    "n_shared_experts",
    "num_shared_experts",
    "first_k_dense_replace",
    "shared_expert_intermediate_size",
)


class TooSlowError(Exception):
    """A class that is not built in time."""


@contextlib.contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raise TooSlowError after that time."""

    def stop(*_: object) -> None:
        raise TooSlowError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def model_classes() -> Iterator[tuple[str, str, str]]:
    """Model type, kind of head, name of the class that predicts something."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    for model_type in CONFIG_MAPPING_NAMES:
        for head in HEADS:
            table = getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES", {})
            if model_type in table:
                name = table[model_type]
                yield model_type, head, name if isinstance(name, str) else name[0]
                break


def tensors_of(model: Any) -> dict[str, list[int]]:
    """Names and shapes as in a file; of many experts the first two."""
    from transformers.core_model_loading import revert_weight_conversion

    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    state = {name: value for name, value in model.state_dict().items() if name not in tied}
    with contextlib.suppress(Exception):
        state = revert_weight_conversion(model, state)
    beyond = re.compile(r"experts\.(\d+)\.")
    return {
        name: list(value.shape)
        for name, value in state.items()
        if not (match := beyond.search(name)) or int(match[1]) < 2
    }


def build(class_name: str, config: Any) -> Any:
    with torch.device("meta"):
        return getattr(transformers, class_name)(config)


def inner(raw: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that describes the language model."""
    return next((raw[key] for key in ("text_config", "llm_config") if isinstance(raw.get(key), dict)), raw)


def variants(raw: Mapping[str, Any]) -> Iterator[str]:
    """Keys with a switch that may change the modules."""
    found = [key for key, value in raw.items() if isinstance(value, bool) and not _NO_MODULE.match(key)]
    found += [key for key in _NUMBERS if isinstance(raw.get(key), int) and raw[key]]
    yield from found[:MAX_VARIANTS]


def turned(config_class: Any, key: str) -> Any:
    """The default configuration with few layers and one switch turned."""
    config = config_class()
    place = getattr(config, "text_config", None) or config
    value = getattr(place, key)
    fewer = (
        {"num_hidden_layers": VARIANT_LAYERS}
        if getattr(place, "num_hidden_layers", 0) > VARIANT_LAYERS
        else {}
    )
    changed = {key: (not value) if isinstance(value, bool) else 0}
    if place is config:
        return config_class(**fewer, **changed)
    return config_class(text_config={**place.to_dict(), "layer_types": None, **fewer, **changed})


def facts(model_type: str, head: str, class_name: str) -> dict[str, Any]:
    """One line of the result."""
    config_class = transformers.CONFIG_MAPPING[model_type]
    file = inspect.getsourcefile(config_class) or ""
    text = Path(file).read_text(encoding="utf-8")
    start = re.search(rf"^class {config_class.__name__}\b", text, re.MULTILINE)
    before = text[: start.start()] if start else text
    named = re.findall(r'checkpoint="([^"]+)"', before)
    row: dict[str, Any] = {
        "type": model_type,
        "head": head,
        "class": class_name,
        "config_class": config_class.__name__,
        "file": "transformers/" + file.rsplit("/transformers/", 1)[-1],
        "line": before.count("\n") + 1,
        "like": named[-1] if named else None,
    }
    config = config_class()
    row["config"] = json.loads(json.dumps(config.to_dict(), default=str))
    model = build(class_name, config)
    row["tensors"] = tensors_of(model)
    row["modules"] = sorted({type(module).__name__ for module in model.modules()})
    return row


def variant_facts(model_type: str, class_name: str, raw: dict[str, Any]) -> Iterator[dict[str, Any]]:
    config_class = transformers.CONFIG_MAPPING[model_type]
    for key in variants(inner(raw)):
        try:
            with limit(TIMEOUT // 4):
                config = turned(config_class, key)
                tensors = tensors_of(build(class_name, config))
                written = json.loads(json.dumps(config.to_dict(), default=str))
            yield {"type": model_type, "turned": key, "config": written, "tensors": tensors}
        except Exception as error:
            yield {"type": model_type, "turned": key, "error": f"{type(error).__name__}: {str(error)[:120]}"}


def main() -> None:
    folder = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with (folder / "transformers.jsonl").open("w") as out:
        for model_type, head, class_name in model_classes():
            try:
                with limit(TIMEOUT):
                    row = facts(model_type, head, class_name)
            except Exception as error:
                row = {
                    "type": model_type,
                    "head": head,
                    "error": f"{type(error).__name__}: {str(error)[:120]}",
                }
            out.write(json.dumps(row) + "\n")
            for variant in (
                variant_facts(model_type, class_name, row.get("config") or {}) if "tensors" in row else ()
            ):
                out.write(json.dumps(variant) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
