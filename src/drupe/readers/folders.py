"""Models that are kept in several folders, and which files of a folder are the model.

diffusers pipelines name their folders in ``model_index.json`` (``"unet": ["diffusers", "UNet2DConditionModel"]``),
sentence-transformers in ``modules.json`` (a list of ``{"path": "2_Dense", ...}``, the empty path being the root).
Formats: huggingface.co/docs/diffusers (loading), sbert.net (``SentenceTransformer.save``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from drupe.readers.strict_json import parse_json, read_json_object
from drupe.sources.interface import Tree

MAX_FOLDERS = 32
MAX_INDEX = 1 << 20
"""Bytes of the file that names the folders."""
_VARIANT = re.compile(r"\.(?:fp16|bf16|fp32|non_ema|ema|ema_only|int8)(?=[.-])")


def part_folders(tree: Tree) -> tuple[str, ...]:
    """The folders that hold the parts of a model, "" for the root; none for a model of one folder."""
    files = tree.files()
    if 0 < files.get("model_index.json", 0) <= MAX_INDEX:
        entries = read_json_object(tree.open("model_index.json"))
        named = [key for key, value in entries.items() if isinstance(value, list) and not key.startswith("_")]
    elif 0 < files.get("modules.json", 0) <= MAX_INDEX:
        modules = parse_json(tree.open("modules.json").read(0, files["modules.json"]), "modules.json")
        listed = modules if isinstance(modules, list) else []
        named = [str(entry.get("path", "")) for entry in listed if isinstance(entry, dict)]
    else:
        return ()
    folders = {path.rpartition("/")[0] for path in files}
    return tuple(name for name in dict.fromkeys(named) if name in folders)[:MAX_FOLDERS]


def without_variants(names: Sequence[str]) -> list[str]:
    """One of the variants in which a folder holds the same tensors: the plain files, else those of the first."""
    variants = [match[0] if (match := _VARIANT.search(name.rpartition("/")[2])) else "" for name in names]
    kept = "" if "" in variants else min(variants, default="")
    return [name for name, variant in zip(names, variants, strict=True) if variant == kept]
