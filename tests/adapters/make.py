"""Writes the adapters of this folder with peft 0.21.2 (torch 2.13.0, transformers 5.23.0). Needs all three.

    python tests/adapters/make.py

Each folder is what ``PeftModel.save_pretrained`` wrote; ``merged.rows`` holds every ``STEP``-th row of the tensors
that ``merge_and_unload`` changed, computed in float32. ``base_conv`` is a tiny module with convolutions. The folders
``trained_*`` were trained on r0: ``a``; ``again`` from its random start on its text in another order; other seeds and
texts; ``on`` from ``a``; and ``a`` with other factors of the same product, with noise, with another alpha.
"""

from __future__ import annotations

import copy
import inspect
import json
import random
import re
import shutil
from pathlib import Path

import torch
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"
STEP = 31


def base(name: str) -> nn.Module:
    model = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32)
    model.name_or_path = model.config._name_or_path = name
    return model


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(8, 16, 3)
        self.point = nn.Conv2d(16, 24, 1)
        self.out = nn.Linear(24, 40)

    def forward(self, x):
        return self.out(self.point(self.conv_in(x)).mean((2, 3)))


def shake(model: nn.Module, seed: int) -> None:
    """Random values in every trainable tensor: a new adapter changes nothing."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p) * (1.0 if p.dim() > 1 else 4.0))


def write(name: str, model: nn.Module, config, seed: int = 0) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(seed)
    adapted = get_peft_model(model, config)
    shake(adapted, seed)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    merged = adapted.merge_and_unload().state_dict()
    changed = {
        k: v[::STEP].contiguous().clone()
        for k, v in merged.items()
        if k in before and not torch.equal(v, before[k])
    }
    save_file(changed, folder / "merged.rows")
    print(name, len(changed), sorted(load_file(folder / "adapter_model.safetensors"))[:3])


def text_of(kind: str) -> str:
    import argparse
    import ast
    import logging
    import pydoc
    import textwrap
    import typing

    sources = [inspect.getsource(m) for m in (argparse, ast, logging, textwrap)]
    if kind == "code":
        return "\n".join(sources)
    return "\n".join(
        re.findall(
            r'"""(.*?)"""', "\n".join([*sources, inspect.getsource(pydoc), inspect.getsource(typing)]), re.S
        )
    )


def train(
    name: str, seed: int, kind: str, start: Path | None = None, steps: int = 150, order: int | None = None
) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(MODELS / "r0" / "tokenizer.json"))
    ids = torch.tensor(tokenizer(text_of(kind))["input_ids"])
    model = base("r0")
    torch.manual_seed(seed)
    if start is None:
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    else:
        model = PeftModel.from_pretrained(model, start, is_trainable=True)
    draw = random.Random(seed if order is None else order)
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=2e-3 if start is None else 5e-4
    )
    for _ in range(steps):
        places = [draw.randrange(len(ids) - 65) for _ in range(16)]
        batch = torch.stack([ids[p : p + 64] for p in places])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    print(name, float(loss))
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)


def edit(name: str, source: str, change, alpha: float | None = None) -> None:
    shutil.rmtree(HERE / name, ignore_errors=True)
    shutil.copytree(HERE / source, HERE / name)
    path = HERE / name / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})
    if alpha is not None:
        config = json.loads((HERE / name / "adapter_config.json").read_text())
        config["lora_alpha"] = alpha
        (HERE / name / "adapter_config.json").write_text(json.dumps(config, indent=2))


def gauge(tensors) -> None:
    """A -> G A, B -> B G^-1."""
    torch.manual_seed(9)
    for key in [k for k in tensors if ".lora_A." in k]:
        partner = key.replace(".lora_A.", ".lora_B.")
        g = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0] * torch.tensor(
            [0.5, 1.0, 2.0, 3.0], dtype=torch.float64
        )
        a, b = tensors[key].double(), tensors[partner].double()
        tensors[key], tensors[partner] = (g @ a).float(), (b @ torch.linalg.inv(g)).float()


def noise(tensors) -> None:
    torch.manual_seed(10)
    for key, value in tensors.items():
        tensors[key] = value + 0.03 * value.std() * torch.randn_like(value)


def main() -> None:
    two = {"layers_to_transform": [0, 2]}
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], **two)
    write("lora", base("r0"), lora)
    patterns = LoraConfig(
        r=4,
        lora_alpha=8,
        use_rslora=True,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"v_proj": 2, r"layers.0.self_attn.q_proj": 8},
        alpha_pattern={"v_proj": 5},
        **two,
    )
    write("rslora_patterns", base("r0"), patterns, 1)
    dora = copy.deepcopy(lora)
    dora.use_dora = True
    write("dora", base("r0"), dora, 2)
    write(
        "ia3",
        base("r0"),
        IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        3,
    )
    write(
        "ia3_bias",
        base("q0"),
        IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        3,
    )
    write(
        "embeddings", base("w0"), LoraConfig(r=2, lora_alpha=4, target_modules=["embed_tokens", "q_proj"]), 4
    )
    write(
        "embeddings_dora",
        base("w0"),
        LoraConfig(r=2, lora_alpha=4, use_dora=True, target_modules=["embed_tokens"]),
        4,
    )
    write(
        "gpt2",
        base("g0"),
        LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, **two),
        5,
    )
    write(
        "gpt2_dora",
        base("g0"),
        LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=["c_attn"], fan_in_fan_out=True, **two),
        5,
    )
    write(
        "gpt2_ia3",
        base("g0"),
        IA3Config(
            target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True
        ),
        6,
    )
    save_norm = LoraConfig(
        r=2, lora_alpha=2, target_modules=["o_proj"], modules_to_save=["norm"], bias="all", **two
    )
    write("saved_modules", base("q0"), save_norm, 7)
    write("loha", base("r0"), LoHaConfig(r=3, alpha=6, target_modules=["q_proj"], **two), 8)
    write("lokr", base("r0"), LoKrConfig(r=3, alpha=6, target_modules=["q_proj"], **two), 8)
    torch.manual_seed(11)
    conv = Conv()
    (HERE / "base_conv").mkdir(exist_ok=True)
    save_file(conv.state_dict(), HERE / "base_conv" / "model.safetensors")
    write(
        "conv",
        copy.deepcopy(conv),
        LoraConfig(r=4, lora_alpha=8, target_modules=["conv_in", "point", "out"]),
        12,
    )
    write(
        "conv_dora",
        copy.deepcopy(conv),
        LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=["conv_in", "point", "out"]),
        12,
    )
    train("trained_a", 0, "code")
    train("trained_again", 0, "code", order=77)
    train("trained_other_seed", 1, "code")
    train("trained_same_seed", 0, "texts")
    train("trained_stranger", 2, "texts")
    train("trained_on", 3, "texts", HERE / "trained_a", 60)
    edit("trained_gauge", "trained_a", gauge)
    edit("trained_noise", "trained_a", noise)
    edit("trained_alpha", "trained_a", lambda tensors: None, alpha=12)


if __name__ == "__main__":
    main()
