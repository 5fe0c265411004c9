"""What the settings of an adapter say: ``adapter_config.json``, or the header of sd-scripts and diffusers.

PEFT's fields: huggingface.co/docs/peft/package_reference/lora. sd-scripts writes ``ss_*`` texts
(github.com/kohya-ss/sd-scripts, train_network.py). Patterns of a stranger are not run as regular expressions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from drupe.errors import FormatError, LimitError, UnsupportedError
from drupe.readers.config import text
from drupe.readers.interface import WeightFile
from drupe.readers.strict_json import Json, as_object, parse_json, read_json_object
from drupe.sources.interface import Tree

FILE = "adapter_config.json"
MAX_BYTES = 1 << 20
MAX_PATTERNS = 1000
MAX_MATCHES = 4 << 20
"""Modules times patterns."""
_PLAIN = re.compile(r"[\w.\\^$*:-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Start(StrEnum):
    """What the factors were before training."""

    RANDOM = "random"
    KNOWN = "known"
    """The same numbers for everybody who starts from this base or this text (EVA, MiCA)."""
    TAKEN_OUT = "taken_out"
    """A part of the base, which is taken out of the base first (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA)."""


_TAKEN_OUT = ("pissa", "olora", "corda", "loftq", "lora_ga")
_RANDOM = ("gaussian", "orthogonal", "kaiming")


@dataclass(frozen=True, slots=True)
class Settings:
    """``alpha`` None: not stated, the factor is then 1 (diffusers) or in the file (sd-scripts)."""

    method: str | None = None
    rank: int | None = None
    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    root_of_rank: bool = False
    transposed: bool = False
    base: str | None = None
    base_digest: str | None = None
    where: str = ""
    start: Start = Start.RANDOM

    def alpha_of(self, module: str) -> float | None:
        """Alpha of one module: the first pattern that ends its name, else the general one."""
        for pattern, alpha in self.alphas.items():
            if _ends(module, pattern):
                return alpha
        return self.alpha

    def factor(self, module: str, rank: int) -> float:
        """The factor of a product of that rank; the rank is the tensors', whatever the settings claim."""
        alpha = self.alpha_of(module)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.root_of_rank else rank)


def _ends(module: str, pattern: str) -> bool:
    r"""Whether a pattern of PEFT ends the module's name at a dot. ``.*`` is any text, ``\.`` a dot."""
    pieces = pattern.removesuffix("$").replace("\\.", ".").removeprefix("^").split(".*")
    if len(pieces) == 1:
        whole = pattern.startswith("^")
        return module == pieces[0] or (not whole and module.endswith("." + pieces[0]))
    if not module.endswith(pieces[-1]):
        return False
    position = 0
    for place, piece in enumerate(pieces[:-1]):
        found = module.find(piece, position)
        if found < 0 or (place == 0 and pattern.startswith("^") and found):
            return False
        position = found + len(piece)
    return position <= len(module) - len(pieces[-1])


def read_settings(tree: Tree, file: WeightFile) -> Settings:
    """The settings that stand beside a weight file or in its header. Raises FormatError and its kin."""
    first = next(iter(file.tensors.values()))
    folder = first.file.rpartition("/")[0]
    path = f"{folder}/{FILE}" if folder else FILE
    if path in tree.files():
        blob = tree.open(path)
        if blob.size > MAX_BYTES:
            raise LimitError("size of adapter_config.json", limit=MAX_BYTES, actual=blob.size, where=path)
        return from_config(read_json_object(blob), path)
    return from_header(file.metadata, first.file)


def from_config(raw: Mapping[str, Json], where: str) -> Settings:
    """From PEFT's ``adapter_config.json``."""
    alpha = raw.get("lora_alpha", raw.get("alpha"))
    patterns = raw.get("alpha_pattern") or {}
    table = as_object(patterns, f"{where}: alpha_pattern")
    if len(table) > MAX_PATTERNS:
        raise LimitError("patterns of alpha", limit=MAX_PATTERNS, actual=len(table), where=where)
    for pattern in table:
        if len(pattern) > 200 or not _PLAIN.fullmatch(pattern) or "*" in pattern.replace(".*", ""):
            raise UnsupportedError(
                f"alpha_pattern {pattern[:60]!r} is no plain name",
                where=where,
                hint="merge the adapter with its own library, then compare the merged model",
            )
    rank = raw.get("r")
    return Settings(
        method=text(raw.get("peft_type")),
        rank=rank if type(rank) is int else None,
        alpha=_number(alpha, "alpha", where),
        alphas={name: _given(value, name, where) for name, value in table.items()},
        root_of_rank=raw.get("use_rslora") is True,
        transposed=raw.get("fan_in_fan_out") is True,
        base=_base_name(text(raw.get("base_model_name_or_path"))),
        where=where,
        start=_start(text(raw.get("init_lora_weights"))),
    )


def _start(said: str | None) -> Start:
    """From PEFT's ``init_lora_weights``: true, false and no statement are a random start."""
    name = (said or "gaussian").lower()
    if name.startswith(_TAKEN_OUT):
        return Start.TAKEN_OUT
    return Start.RANDOM if name.startswith(_RANDOM) else Start.KNOWN


def from_header(metadata: Mapping[str, str], where: str) -> Settings:
    """From the texts of a safetensors header; alpha is then in the file, module by module."""
    rank = metadata.get("ss_network_dim", "")
    digest = metadata.get("ss_new_sd_model_hash", "").lower()
    alpha = None
    if "lora_adapter_metadata" in metadata:  # diffusers 0.35: {"unet.r": 4, "unet.lora_alpha": 8, ...}
        said = as_object(parse_json(metadata["lora_adapter_metadata"].encode(), where), where)
        alphas = {value for key, value in said.items() if key.endswith("lora_alpha") and type(value) is int}
        alpha = float(alphas.pop()) if len(alphas) == 1 else None
    return Settings(
        rank=int(rank) if rank.isdecimal() and len(rank) < 9 else None,
        alpha=alpha,
        base=_base_name(text(metadata.get("ss_sd_model_name"))),
        base_digest=digest if _SHA256.fullmatch(digest) else None,
        where=where,
    )


def _number(value: Json, name: str, where: str) -> float | None:
    return None if value is None else _given(value, name, where)


def _given(value: Json, name: str, where: str) -> float:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not abs(value) < 1e30:  # type: ignore[arg-type]  # NaN fails the comparison
        raise FormatError(f"{name[:60]} is {str(value)[:40]}, no number", where=where)
    return float(value)  # type: ignore[arg-type]


def _base_name(name: str | None) -> str | None:
    """A path of the machine that trained it counts by its last part; ORG/NAME stays."""
    if name is None:
        return None
    parts = [part for part in name.replace("\\", "/").rstrip("/").split("/") if part]
    local = name.startswith(("/", ".", "~")) or "\\" in name or len(parts) > 2
    cached = next((part for part in parts if part.startswith("models--")), "")
    if cached.count("--") >= 2:
        return "/".join(cached.split("--")[1:3])
    return (parts[-1] if local else "/".join(parts)) if parts else None
