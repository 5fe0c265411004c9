"""The shipped schemes of ``drupe convert --like SCHEME``: names, shapes and configuration of tiny models, no values.

    PYTHONPATH=tests python benchmarks/build_blueprints.py     # needs torch and transformers; writes the data file

Every entry is what ``transformers`` writes with ``save_pretrained`` for the family of tests/architectures/make.py:
names and keys are facts; nothing is typed by hand.
"""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import transformers

from architectures.make import FAMILIES, build, grouped

TARGET = Path(__file__).resolve().parents[1] / "src" / "drupe" / "data" / "blueprints.json"
LEFT_OUT = {"gpt_bigcode_heads", "falcon_rw", "rwkv", "albert"}
"""Variants of an entry by settings, and families whose layers are not told apart by their names."""
NO_KEYS = {"transformers_version", "dtype", "torch_dtype", "_name_or_path", "id2label", "label2id"}


_LAYER = "model.layers.{0-2}."
SHELLS: dict[str, tuple[str, str, dict[str, str]]] = {
    "yi": ("Yi", "YiForCausalLM", {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}),
    "baichuan": (
        "baichuan",
        "BaichuanForCausalLM",
        {
            f"{_LAYER}self_attn.q_proj.weight 64x64": f"{_LAYER}self_attn.W_pack.weight 192x64",
            f"{_LAYER}self_attn.k_proj.weight 32x64": "",
            f"{_LAYER}self_attn.v_proj.weight 32x64": "",
        },
    ),
}
"""Families that are Llama's graph under other names, of which transformers has no class: model type, class, and what
their files say in place of Llama's. Facts: vLLM 0.2.3, model_executor/models/yi.py and baichuan.py."""


def shell(name: str, llama: dict[str, Any]) -> dict[str, Any]:
    """Llama's entry with what the family calls otherwise."""
    kind, architecture, renames = SHELLS[name]
    lines = llama["tensors"]
    for old, new in renames.items():
        lines = [line.replace(old, new) for line in lines]
    config = {**llama["config"], "model_type": kind, "architectures": [architecture]}
    return {"config": config, "tensors": [line for line in lines if line]}


def entry(family: str) -> dict[str, Any]:
    """Configuration and tensors of one family."""
    with tempfile.TemporaryDirectory() as folder:
        build(family).save_pretrained(folder)
        raw = (Path(folder) / "model.safetensors").read_bytes()
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    shapes = {name: item["shape"] for name, item in header.items() if name != "__metadata__"}
    kept = {key: value for key, value in config.items() if key not in NO_KEYS}
    return {"config": kept, "tensors": grouped(shapes)}


def main() -> None:
    """Write the file, one line per entry."""
    found = {}
    for family in FAMILIES:
        made = entry(family) if family not in LEFT_OUT else None
        if made is not None and "vocab_size" in made["config"]:
            found[family] = made
    found |= {name: shell(name, found["llama"]) for name in SHELLS}
    for place, family in enumerate(found):  # many families share one list of tensors
        same = [o for o in list(found)[:place] if found[o]["tensors"] == found[family]["tensors"]]
        if same:
            found[family]["tensors"] = same[0]
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'), sort_keys=True)}"
        for key, value in found.items()
    )
    source = json.dumps(
        f"transformers {transformers.__version__}, save_pretrained of tests/architectures/make.py"
    )
    TARGET.write_text(f'{{"provenance": {source},\n"blueprints": {{\n{lines}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
