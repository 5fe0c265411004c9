"""Trains the adapters of adapter_null.py with peft: families drawn from a grid by the number of the set.

    python3 -m venv peftenv && peftenv/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2
    peftenv/bin/python benchmarks/train_adapters.py OUT --set 1        # about 10 minutes

A family is a base of tests/models and one recipe (method, rank, targets, rate, steps); ``MEMBERS`` says who is
trained by it. ``manifest.json`` in OUT lists all. Texts: what any Python carries, two kinds; batches are drawn anew.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import random
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.remove(str(Path(__file__).resolve().parent))  # a neighbour must not hide a package
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

MODELS = Path(__file__).resolve().parent.parent / "tests" / "models"
BASES = ("r1", "r2", "q0", "w0", "g0", "g1")
TARGETS = {
    "gpt2": (["c_attn"], ["c_attn", "c_fc"], ["attn.c_proj", "mlp.c_proj"]),
    "llama": (
        ["q_proj", "v_proj"],
        ["q_proj", "k_proj", "v_proj", "o_proj"],
        ["down_proj", "gate_proj"],
        "all-linear",
    ),
}
METHODS = ("lora",) * 7 + (
    "rslora",
    "gaussian",
    "dora",
    "dora",
    "loha",
    "ia3",
    "ia3",
    "pissa",
    "pissa",
    "olora",
)
RATES = (5e-5, 2e-4, 1e-3, 3e-3, 1e-2)
STEPS = (40, 120, 300)
WINDOWS, LENGTH = 8, 64
MEMBERS = {  # start, text, order of the batches
    "a": (0, "code", 0),
    "other_seed": (1, "code", 1),
    "stranger": (2, "words", 2),
    "same_start_other_text": (0, "words", 3),
    "same_start_same_text": (0, "code", 4),
}
ON = {"on_little": ("code", 10), "on_more": ("words", 60)}


@dataclass(frozen=True)
class Family:
    name: str
    base: str
    method: str
    rank: int
    alpha: int
    targets: Any
    rate: float
    steps: int
    saved: str


def families(number: int) -> list[Family]:
    draw = random.Random(number)
    found = []
    for place, method in enumerate(METHODS):
        special = method in ("pissa", "olora")  # peft starts these on no Conv1D
        base = draw.choice(BASES[:4] if special else BASES)
        rank = draw.choice((1, 2, 4, 8, 16))
        targets = draw.choice(TARGETS["gpt2" if base.startswith("g") else "llama"])
        if method == "loha" and base.startswith("g"):  # nor LoHa
            base = "r2"
        if method == "ia3":
            targets = ["c_attn", "mlp.c_proj"] if base.startswith("g") else ["k_proj", "v_proj", "down_proj"]
        rate = draw.choice(RATES[2:] if method in ("ia3", "loha") else RATES[:3] if special else RATES)
        found.append(
            Family(
                f"s{number}_{place:02d}_{method}",
                base,
                method,
                rank,
                rank * draw.choice((1, 2, 4)),
                targets,
                rate,
                draw.choice(STEPS),
                draw.choice(("fp32", "fp32", "fp16", "bf16")),
            )
        )
    return found


def settings(family: Family) -> Any:
    turned = family.base.startswith("g")
    if family.method == "ia3":
        forward = [t for t in family.targets if t in ("mlp.c_proj", "down_proj")]
        return IA3Config(target_modules=family.targets, feedforward_modules=forward, fan_in_fan_out=turned)
    if family.method == "loha":
        targets = ["q_proj", "down_proj"] if not turned else ["c_attn"]
        return LoHaConfig(r=family.rank, alpha=family.alpha, target_modules=targets)
    start = family.method if family.method in ("gaussian", "pissa", "olora") else True
    return LoraConfig(
        r=family.rank,
        lora_alpha=family.alpha,
        target_modules=family.targets,
        fan_in_fan_out=turned,
        init_lora_weights=start,
        use_rslora=family.method == "rslora",
        use_dora=family.method == "dora",
    )


def text_of(kind: str) -> str:
    import asyncio.base_events
    import email.message
    import http.client
    import pathlib
    import pydoc_data.topics
    import subprocess
    import tarfile
    import unittest.mock

    if kind == "words":
        return "\n".join(pydoc_data.topics.topics.values())[:300_000]
    modules = (asyncio.base_events, email.message, http.client, pathlib, subprocess, tarfile, unittest.mock)
    return "\n".join(inspect.getsource(module) for module in modules)


def base_model(name: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32)
    model.name_or_path = model.config._name_or_path = name
    return model


class Trainer:
    def __init__(self, out: Path) -> None:
        self.out = out
        self.tokens: dict[tuple[str, str], torch.Tensor] = {}
        self.manifest: list[dict[str, Any]] = []

    def ids(self, base: str, kind: str) -> torch.Tensor:
        if (base, kind) not in self.tokens:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(MODELS / base / "tokenizer.json"))
            self.tokens[base, kind] = torch.tensor(tokenizer(text_of(kind))["input_ids"])
        return self.tokens[base, kind]

    def train(self, model: Any, family: Family, kind: str, order: int, steps: int, rate: float) -> float:
        ids, draw = self.ids(family.base, kind), random.Random(order)
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
        loss = torch.tensor(0.0)
        for _ in range(steps):
            places = [draw.randrange(len(ids) - LENGTH - 1) for _ in range(WINDOWS)]
            batch = torch.stack([ids[p : p + LENGTH] for p in places])
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        return float(loss)

    def save(self, model: Any, family: Family, member: str, **more: Any) -> Path:
        folder = self.out / f"{family.name}-{member}"
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, save_embedding_layers=False, **more)
        for inner in [path for path in folder.iterdir() if path.is_dir()]:  # a named adapter
            for path in inner.iterdir():
                path.rename(folder / path.name)
            inner.rmdir()
        (folder / "README.md").unlink(missing_ok=True)
        self.manifest.append({"folder": folder.name, "member": member, "family": asdict(family)})
        return folder

    def round(self, folder: Path, saved: str) -> None:
        kind = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[saved]
        path = folder / "adapter_model.safetensors"
        save_file({k: v.to(kind) for k, v in load_file(path).items()}, path, metadata={"format": "pt"})

    def run(self, family: Family, salt: int) -> None:
        for member, (start, kind, order) in MEMBERS.items():
            torch.manual_seed(salt * 100 + start)
            model = get_peft_model(base_model(family.base), settings(family))
            loss = self.train(model, family, kind, salt * 100 + order, family.steps, family.rate)
            folder = self.save(model, family, member)
            self.round(folder, family.saved)
            print(folder.name, f"{loss:.3f}", flush=True)
        source = self.out / f"{family.name}-a"
        for number, (member, (kind, steps)) in enumerate(ON.items()):
            model = PeftModel.from_pretrained(base_model(family.base), source, is_trainable=True)
            self.train(model, family, kind, salt * 100 + 50 + number, steps, family.rate / 4)
            self.round(self.save(model, family, member), family.saved)
        merged = PeftModel.from_pretrained(base_model(family.base), source).merge_and_unload()
        merged.save_pretrained(self.out / f"{family.name}-merged_model")
        if family.method in ("lora", "rslora", "gaussian"):
            self.mix(family, source)

    def mix(self, family: Family, source: Path) -> None:
        for way, weights in (("cat", [0.5, 0.5]), ("cat", [0.3, 0.7]), ("linear", [0.8, 0.2])):
            model = PeftModel.from_pretrained(base_model(family.base), source)
            model.load_adapter(self.out / f"{family.name}-stranger", "two")
            model.add_weighted_adapter(["default", "two"], weights, "mixed", combination_type=way)
            self.save(model, family, f"mixed_{way}_{weights[0]}", selected_adapters=["mixed"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", type=int, default=1)
    parser.add_argument("--part", type=int, default=0, help="every other family, for a second process")
    parser.add_argument("--parts", type=int, default=1)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    trainer = Trainer(given.out)
    for place, family in list(enumerate(families(given.set)))[given.part :: given.parts]:
        trainer.run(family, given.set * 1000 + place)
        path = given.out / f"manifest-{given.part}.json"
        path.write_text(json.dumps(trainer.manifest, indent=1))


if __name__ == "__main__":
    main()
