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
from pico_recipes import SCALES, Recipe, Scale, corpus

# A neighbour of this script must not hide a package of the imports below.
sys.path.remove(str(Path(__file__).resolve().parent))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers
import torch
import transformers

POSITIONS = 128
# (windows per batch, tokens per window); masked tokens teach slowly: BERT trains four times as long
SHAPES = {"bert": (64, 32)}
SHAPE = (16, POSITIONS)
PATIENCE = {"bert": 4}
WARM_UP = 30
RATES = {"train": 3e-3, "tune": 1e-4, "continue": 2e-3}
TUNE_STEPS = 60
MASKED = 0.3  # BERT's share of masked tokens
SPECIALS = ["<unk>", "<s>", "</s>"]
BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MASK_ID = BERT_SPECIALS.index("[MASK]")
# Families with a tokenizer of their own: r, w and q share one, as the members of a real family do.
TOKENIZER_CORPORA = {"llama": "source", "gpt2": "headers", "bert": "licences"}
TOKENIZER_OF = {"llama": "llama", "wide": "llama", "qwen2": "llama", "gpt2": "gpt2", "bert": "bert"}


def train_tokenizer(kind: str, vocabulary: int) -> tokenizers.Tokenizer:
    """A byte-level BPE, or BERT's WordPiece, of ``vocabulary`` pieces."""
    texts = corpus(TOKENIZER_CORPORA[kind])
    if kind == "bert":
        piece = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
        piece.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
        piece.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        trainer: Any = tokenizers.trainers.WordPieceTrainer(
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
        kind = TOKENIZER_OF[family]
        if kind not in self._tokenizers:
            kin = [r.name for r in self._scale.recipes if TOKENIZER_OF[r.family] == kind]
            done = [path for name in kin if (path := self._out / name / "tokenizer.json").exists()]
            self._tokenizers[kind] = (
                tokenizers.Tokenizer.from_file(str(done[0]))
                if done
                else train_tokenizer(kind, self._scale.vocabulary)
            )
        return self._tokenizers[kind]

    def stream(self, family: str, name: str) -> torch.Tensor:
        """A corpus as one long row of token ids."""
        key = (TOKENIZER_OF[family], name)
        if key not in self._streams:
            encoded = self.tokenizer(family).encode_batch(corpus(name), add_special_tokens=False)
            ids = np.concatenate([np.asarray(e.ids, dtype=np.int64) for e in encoded])
            self._streams[key] = torch.from_numpy(ids)
        return self._streams[key]


def blank_model(family: str, scale: Scale) -> Any:
    """An initialised model of the family; the caller has seeded torch."""
    size = scale.sizes[family]
    common: dict[str, Any] = {"vocab_size": scale.vocabulary, "hidden_size": size["hidden"]}
    if family == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=scale.vocabulary,
                n_embd=size["hidden"],
                n_layer=size["layers"],
                n_head=size["heads"],
                n_positions=POSITIONS,
                bos_token_id=1,
                eos_token_id=2,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
        )
    common |= {"num_hidden_layers": size["layers"], "num_attention_heads": size["heads"]}
    common |= {"intermediate_size": size["ffn"], "max_position_embeddings": POSITIONS}
    if family == "bert":
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return transformers.BertForMaskedLM(transformers.BertConfig(**common, **dropout, type_vocab_size=2))
    common |= {"num_key_value_heads": size["kv"], "tie_word_embeddings": bool(size["tied"])}
    common |= {"bos_token_id": 1, "eos_token_id": 2}
    if family == "qwen2":
        return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**common))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**common))


def start(recipe: Recipe, scale: Scale, out: Path) -> Any:
    """The model before its training: fresh from its seed, or its parent as it was saved (bf16)."""
    if recipe.parent:
        auto = (
            transformers.AutoModelForMaskedLM
            if recipe.family == "bert"
            else transformers.AutoModelForCausalLM
        )
        return auto.from_pretrained(out / recipe.parent, dtype=torch.float32)
    torch.manual_seed(recipe.seed)
    return blank_model(recipe.family, scale)


def loss_of(model: Any, family: str, batch: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    """Next-token loss, or for BERT the loss on masked tokens."""
    if family != "bert":
        logits = model(input_ids=batch[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    masked = torch.rand(batch.shape, generator=dice) < MASKED
    logits = model(input_ids=batch.masked_fill(masked, MASK_ID)).logits
    return torch.nn.functional.cross_entropy(logits[masked], batch[masked])


def train(model: Any, recipe: Recipe, stream: torch.Tensor, steps: int) -> list[float]:
    """AdamW (0.9, 0.95), weight decay 0.1 on matrices, warm-up, cosine to 10 %; returns the losses."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    rate = RATES[recipe.stage]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    dice = torch.Generator().manual_seed(1000 + recipe.order)
    batch, window = SHAPES.get(recipe.family, SHAPE)
    window += recipe.family != "bert"  # one more token, as the target of the last
    losses: list[float] = []
    model.train()
    for step in range(steps):
        cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM_UP) * cosine
        at = torch.randint(len(stream) - window, (batch, 1), generator=dice)
        loss = loss_of(model, recipe.family, stream[at + torch.arange(window)], dice)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


def save(model: Any, folder: Path, tokenizer: tokenizers.Tokenizer) -> None:
    """A Hugging Face style folder: bf16 weights, config.json, tokenizer.json without indentation."""
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    (folder / "generation_config.json").unlink(missing_ok=True)
    text = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text + "\n", "utf-8")


def reference_logits(folder: Path, family: str) -> list[float]:
    """What ``transformers`` computes with the saved model: the first logits after ids 5 to 20."""
    auto = transformers.AutoModelForMaskedLM if family == "bert" else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(5, 21)[None]).logits[0, -1, :8]
    return [round(value, 4) for value in logits.tolist()]


def make(recipe: Recipe, scale: Scale, out: Path, data: Data) -> dict[str, Any]:
    """Trains and saves one model; returns its line of the training log."""
    begin = time.perf_counter()
    model = start(recipe, scale, out)
    steps = TUNE_STEPS if recipe.stage == "tune" else scale.steps * PATIENCE.get(recipe.family, 1)
    losses = train(model, recipe, data.stream(recipe.family, recipe.corpus), steps)
    save(model, out / recipe.name, data.tokenizer(recipe.family))
    return {
        "steps": steps,
        "logits": reference_logits(out / recipe.name, recipe.family),
        "loss_first": round(losses[0], 3),
        "loss_last": round(float(np.mean(losses[-20:])), 3),
        "seconds": round(time.perf_counter() - begin, 1),
    }


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
        done = json.loads(log.read_text("utf-8")) if log.exists() else {}
        done[recipe.name] = entry
        log.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
