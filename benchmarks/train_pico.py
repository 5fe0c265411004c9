"""Trains the small models that serve as truth in the tests (``tests/models``) and in calibrations.

    python -m venv trainenv && trainenv/bin/pip install torch==2.13.0 transformers==5.23.0
    trainenv/bin/python benchmarks/train_pico.py                       # tests/models, about 10 minutes
    trainenv/bin/python benchmarks/train_pico.py --scale zoo --out DIR  # d 128, 6 layers, about an hour

Every model is made from a recipe (``pico_recipes.py``): same seed = same initial weights, same order =
same batches. The corpora are what any Python machine has, so another machine makes models of the same kind,
not the same bytes; the committed files are the truth.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from pico_recipes import SCALES, TOKENIZERS, Family, Recipe, Scale, corpus

# A neighbour of this script must not hide a package of the imports below.
sys.path.remove(str(Path(__file__).resolve().parent))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers
import torch
import transformers
from torch.nn.utils import parametrize

POSITIONS = 128
# (windows per batch, tokens per window); masked tokens teach slowly: BERT trains four times as long
SHAPES = {"bert": (64, 32)}
SHAPE = (16, POSITIONS)
PATIENCE = {"bert": 4}
WARM_UP = 30
RATES = {"train": 3e-3, "tune": 1e-4, "continue": 2e-3, "lora": 1e-3}
STEPS = {"tune": 60, "lora": 80}
MASKED = 0.3  # BERT's share of masked tokens
SPECIALS = ["<unk>", "<s>", "</s>"]
BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MASK_ID = BERT_SPECIALS.index("[MASK]")


def train_tokenizer(name: str, vocabulary: int) -> tokenizers.Tokenizer:
    """A byte-level BPE, BERT's WordPiece or T5's Unigram, of ``vocabulary`` pieces."""
    kind, texts = TOKENIZERS[name][0], corpus(TOKENIZERS[name][1])
    if kind == "unigram":
        piece = tokenizers.Tokenizer(tokenizers.models.Unigram())
        piece.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
        piece.decoder = tokenizers.decoders.Metaspace()
        trainer: Any = tokenizers.trainers.UnigramTrainer(
            vocab_size=vocabulary, special_tokens=SPECIALS, unk_token=SPECIALS[0], show_progress=False
        )
    elif kind == "wordpiece":
        piece = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
        piece.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
        piece.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        trainer = tokenizers.trainers.WordPieceTrainer(
            vocab_size=vocabulary, special_tokens=BERT_SPECIALS, show_progress=False, limit_alphabet=200
        )
    else:
        piece = tokenizers.Tokenizer(tokenizers.models.BPE())
        piece.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        piece.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=SPECIALS,
            show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        )
    piece.train_from_iterator(texts, trainer)
    return piece


class Data:
    """Tokenizers and token streams, made when first asked for."""

    def __init__(self, scale: Scale, out: Path) -> None:
        self._scale = scale
        self._out = out
        self._tokenizers: dict[str, tokenizers.Tokenizer] = {}
        self._streams: dict[tuple[str, str], torch.Tensor] = {}

    def tokenizer(self, family: str) -> tokenizers.Tokenizer:
        """The family's tokenizer: a finished model's if there is one, so that ``--only`` adds to a set."""
        families = self._scale.families
        kind = families[family].tokenizer
        if kind not in self._tokenizers:
            kin = [r.name for r in self._scale.recipes if families[r.family].tokenizer == kind]
            files = [
                self._out / f"tokenizer-{kind}.json",
                *(self._out / name / "tokenizer.json" for name in kin),
            ]
            done = [path for path in files if path.exists()]
            self._tokenizers[kind] = (
                tokenizers.Tokenizer.from_file(str(done[0]))
                if done
                else train_tokenizer(kind, self._scale.vocabulary)
            )
        return self._tokenizers[kind]

    def stream(self, family: str, name: str) -> torch.Tensor:
        """A corpus as one long row of token ids."""
        key = (self._scale.families[family].tokenizer, name)
        if key not in self._streams:
            encoded = self.tokenizer(family).encode_batch(corpus(name), add_special_tokens=False)
            ids = np.concatenate([np.asarray(e.ids, dtype=np.int64) for e in encoded])
            self._streams[key] = torch.from_numpy(ids)
        return self._streams[key]


def blank_model(family: Family, vocabulary: int) -> Any:
    """An initialised model of the family; the caller has seeded torch."""
    common: dict[str, Any] = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {
        "hidden_size": family.hidden,
        "num_hidden_layers": family.layers,
        "num_attention_heads": family.heads,
        "intermediate_size": family.ffn,
        "max_position_embeddings": POSITIONS,
    }
    grouped = {"num_key_value_heads": family.kv, "tie_word_embeddings": family.tied}
    match family.kind:
        case "gpt2":
            gpt2 = {"n_embd": family.hidden, "n_layer": family.layers, "n_head": family.heads}
            gpt2 |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0)
            config = transformers.GPT2Config(**common, **gpt2, n_positions=POSITIONS)
            return transformers.GPT2LMHeadModel(config)
        case "bert":
            dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            del common["bos_token_id"], common["eos_token_id"]
            config = transformers.BertConfig(**common, **sizes, **dropout, type_vocab_size=2)
            return transformers.BertForMaskedLM(config)
        case "t5":
            t5 = {"d_model": family.hidden, "d_ff": family.ffn, "num_layers": family.layers}
            t5 |= {"num_heads": family.heads, "d_kv": family.hidden // family.heads}
            config = transformers.T5Config(
                **common,
                **t5,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
                pad_token_id=0,
                decoder_start_token_id=0,
                tie_word_embeddings=False,
            )
            return transformers.T5ForConditionalGeneration(config)
        case "neox":
            return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**common, **sizes))
        case "qwen2":
            return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**common, **sizes, **grouped))
        case "qwen3":
            size = {"head_dim": family.hidden // family.heads, "attention_bias": True}
            return transformers.Qwen3ForCausalLM(
                transformers.Qwen3Config(**common, **sizes, **grouped, **size)
            )
        case "mixtral":
            experts = {"num_local_experts": family.experts, "num_experts_per_tok": 2, "sliding_window": None}
            config = transformers.MixtralConfig(**common, **sizes, **grouped, **experts)
            return transformers.MixtralForCausalLM(config)
        case _:
            return transformers.LlamaForCausalLM(transformers.LlamaConfig(**common, **sizes, **grouped))


def class_for(kind: str) -> Any:
    """The class that loads a model of the kind with its head."""
    return {
        "bert": transformers.AutoModelForMaskedLM,
        "t5": transformers.AutoModelForSeq2SeqLM,
    }.get(kind, transformers.AutoModelForCausalLM)


def start(recipe: Recipe, scale: Scale, out: Path) -> Any:
    """The model before its training: fresh from its seed, or its parent as it was saved (bf16)."""
    family = scale.families[recipe.family]
    if recipe.parent:
        return class_for(family.kind).from_pretrained(out / recipe.parent, dtype=torch.float32)
    torch.manual_seed(recipe.seed)
    return blank_model(family, scale.vocabulary)


def loss_of(model: Any, kind: str, batch: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    """Next-token loss; for BERT the loss on masked tokens, for T5 that of the second half after the first."""
    if kind == "t5":
        half = batch.shape[1] // 2
        return model(input_ids=batch[:, :half], labels=batch[:, half:].contiguous()).loss  # type: ignore[no-any-return]
    if kind != "bert":
        logits = model(input_ids=batch[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    masked = torch.rand(batch.shape, generator=dice) < MASKED
    logits = model(input_ids=batch.masked_fill(masked, MASK_ID)).logits
    return torch.nn.functional.cross_entropy(logits[masked], batch[masked])


class LowRank(torch.nn.Module):
    """A weight plus a product of two small matrices, the second of which begins at zero."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = torch.nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.up = torch.nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The sum; scaled by two, as usual (alpha = 2 rank)."""
        return weight + 2.0 * self.up @ self.down


def add_low_rank(model: Any, rank: int, modules: str) -> list[torch.nn.Module]:
    """Freeze the model and put a trainable low-rank update on the linear modules of these names."""
    model.requires_grad_(requires_grad=False)
    found = [m for name, m in model.named_modules() if name.rpartition(".")[2] in modules.split()]
    for module in found:
        parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))
    return found


def train(model: Any, recipe: Recipe, kind: str, stream: torch.Tensor, steps: int) -> list[float]:
    """AdamW (0.9, 0.95), weight decay 0.1 on matrices, warm-up, cosine to 10 %; returns the losses."""
    matrices = [p for p in model.parameters() if p.ndim >= 2 and p.requires_grad]
    vectors = [p for p in model.parameters() if p.ndim < 2 and p.requires_grad]
    rate = RATES[recipe.stage]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    dice = torch.Generator().manual_seed(1000 + recipe.order)
    batch, window = SHAPES.get(kind, SHAPE)
    window += kind not in ("bert", "t5")  # one more token, as the target of the last
    losses: list[float] = []
    model.train()
    for step in range(steps):
        cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM_UP) * cosine
        at = torch.randint(len(stream) - window, (batch, 1), generator=dice)
        loss = loss_of(model, kind, stream[at + torch.arange(window)], dice)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


def save(model: Any, folder: Path, tokenizer: tokenizers.Tokenizer, dtype: torch.dtype) -> None:
    """A Hugging Face style folder: weights, config.json, tokenizer.json without indentation."""
    model.to(dtype).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    (folder / "generation_config.json").unlink(missing_ok=True)
    text = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text + "\n", "utf-8")


def reference_logits(folder: Path, kind: str) -> list[float]:
    """What ``transformers`` computes with the saved model: the first logits after ids 5 to 20."""
    model = class_for(kind).from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(5, 21)[None]
    with torch.no_grad():
        inputs = {"input_ids": ids, "labels": ids} if kind == "t5" else {"input_ids": ids}
        logits = model(**inputs).logits[0, -1, :8]
    return [round(value, 4) for value in logits.tolist()]


def make(recipe: Recipe, scale: Scale, out: Path, data: Data) -> dict[str, Any]:
    """Trains and saves one model; returns its line of the training log."""
    begin = time.perf_counter()
    model = start(recipe, scale, out)
    kind = scale.families[recipe.family].kind
    steps = STEPS.get(recipe.stage, scale.steps * PATIENCE.get(kind, 1))
    updated = add_low_rank(model, recipe.rank, recipe.modules) if recipe.stage == "lora" else []
    losses = train(model, recipe, kind, data.stream(recipe.family, recipe.corpus), steps)
    for module in updated:
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    dtype = torch.float32 if updated else torch.bfloat16
    save(model, out / recipe.name, data.tokenizer(recipe.family), dtype)
    return {
        "steps": steps,
        "logits": reference_logits(out / recipe.name, kind),
        "loss_first": round(losses[0], 3),
        "loss_last": round(float(np.mean(losses[-20:])), 3),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def write_log(log: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Add the lines of some models to the training log."""
    done = json.loads(log.read_text("utf-8")) if log.exists() else {}
    log.write_text(json.dumps(done | entries, indent=1, sort_keys=True) + "\n", "utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=sorted(SCALES), default="pico")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "models")
    parser.add_argument("--only", default="", help="names, comma-separated; their parents must exist")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    scale = SCALES[arguments.scale]
    names = [recipe.name for recipe in scale.recipes]
    wanted = arguments.only.split(",") if arguments.only else names
    if unknown := set(wanted) - set(names):
        parser.error(f"no recipe for {sorted(unknown)}; there are {names}")
    data = Data(scale, arguments.out)
    log = arguments.out / "training.json"
    for recipe in (recipe for recipe in scale.recipes if recipe.name in wanted):
        entry = make(recipe, scale, arguments.out, data)
        print(recipe.name, json.dumps(entry), flush=True)
        write_log(log, {recipe.name: entry})


if __name__ == "__main__":
    main()
