"""Names that Drupe reads off modelling files against those that torch registers, on transformers' own models.

    python -m venv torchenv && torchenv/bin/pip install torch==2.13.0 transformers==5.23.0
    DRUPE_TORCH_PYTHON=torchenv/bin/python python benchmarks/implied_names.py [--variants] [--all]

Each pair is a model folder of the package (its ``.py`` files, as text) and the ``config.json`` that
``save_pretrained`` would write for the class's default configuration. The truth is ``state_dict()`` of the real
class on the meta device, made by the other Python. The pairs were chosen by family before any result was seen and
split by the alphabet: every second one is held out. At the first look at those, names were equal in 26 of 26 and
shapes in 25; one shape was wrong (torch.FloatTensor with several sizes) and has been repaired
since. ``--variants`` flips single switches of the configurations; ``--all`` takes every further model folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import machine

from drupe.errors import DrupeError
from drupe.implied import implied
from drupe.stats import wilson

PYTHON_VARIABLE = "DRUPE_TORCH_PYTHON"
# dbrx and nemotron were chosen too; transformers 5.23.0 itself cannot build their default configurations.
CHOSEN = """
albert:AlbertForMaskedLM bart:BartForConditionalGeneration bert:BertForMaskedLM bloom:BloomForCausalLM
clip:CLIPModel codegen:CodeGenForCausalLM cohere:CohereForCausalLM deepseek_v2:DeepseekV2ForCausalLM
deepseek_v3:DeepseekV3ForCausalLM distilbert:DistilBertForMaskedLM electra:ElectraForMaskedLM
falcon:FalconForCausalLM gemma:GemmaForCausalLM gemma2:Gemma2ForCausalLM
gemma3:Gemma3ForConditionalGeneration glm:GlmForCausalLM glm4:Glm4ForCausalLM gpt2:GPT2LMHeadModel
gpt_bigcode:GPTBigCodeForCausalLM gpt_neox:GPTNeoXForCausalLM gpt_oss:GptOssForCausalLM
gptj:GPTJForCausalLM granite:GraniteForCausalLM jamba:JambaForCausalLM llama:LlamaForCausalLM
llava:LlavaForConditionalGeneration mamba:MambaForCausalLM mistral:MistralForCausalLM
mixtral:MixtralForCausalLM modernbert:ModernBertForMaskedLM mpt:MptForCausalLM olmo:OlmoForCausalLM
olmo2:Olmo2ForCausalLM opt:OPTForCausalLM persimmon:PersimmonForCausalLM phi:PhiForCausalLM
phi3:Phi3ForCausalLM qwen2:Qwen2ForCausalLM qwen2_moe:Qwen2MoeForCausalLM
qwen2_vl:Qwen2VLForConditionalGeneration qwen3:Qwen3ForCausalLM qwen3_moe:Qwen3MoeForCausalLM
roberta:RobertaForMaskedLM rwkv:RwkvForCausalLM siglip:SiglipModel stablelm:StableLmForCausalLM
starcoder2:Starcoder2ForCausalLM t5:T5ForConditionalGeneration vit:ViTForImageClassification
wav2vec2:Wav2Vec2ForCTC whisper:WhisperForConditionalGeneration xlnet:XLNetLMHeadModel
"""
PAIRS = CHOSEN.split()
# Files of a model folder that hold no model.
NO_MODEL = (
    "modular_",
    "convert_",
    "tokenization",
    "processing",
    "image_processing",
    "feature_extraction",
    "video_",
)

WORKER = r"""
import json, os, re, signal, sys, warnings
warnings.simplefilter("ignore")
os.environ["HF_HUB_OFFLINE"] = "1"
import torch, transformers
transformers.logging.set_verbosity_error()
out, mode, pairs = sys.argv[1], sys.argv[2], sys.argv[3:]
root = os.path.join(os.path.dirname(transformers.__file__), "models")
kinds = ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining",
         "ForImageClassification", "ForObjectDetection", "ForSemanticSegmentation", "ForCTC", "Model"]
generic = {"use_cache", "return_dict", "output_hidden_states", "output_attentions", "is_encoder_decoder"}

def stop(*_):
    raise TimeoutError

def main_class(family):
    path = os.path.join(root, family, f"modeling_{family}.py")
    if not os.path.exists(path):
        return None
    names = [n for n in re.findall(r"^class (\w+)\(", open(path).read(), re.M) if hasattr(transformers, n)]
    return next((n for k in kinds for n in names if n.endswith(k) and not n.endswith("PreTrainedModel")), None)

def folders(config, seen):
    seen.add(type(config).__module__.split(".")[-2])
    for value in vars(config).values():
        if isinstance(value, transformers.PreTrainedConfig):
            folders(value, seen)
    return seen

def build(name, values):
    cls = getattr(transformers, name)
    with torch.device("meta"):
        model = cls(cls.config_class(**json.loads(json.dumps(values))))
    shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
    return {"config": values, "names": shapes, "folders": sorted(folders(model.config, set()))}

def configs(name):
    cls = getattr(transformers, name).config_class
    values = json.loads(cls(architectures=[name]).to_json_string())
    yield "", values
    if mode == "variants":
        full = cls().to_dict()
        switches = [k for k, v in full.items() if isinstance(v, bool) and k not in generic and not k.startswith("_")]
        for key in switches[:12]:
            yield key, {**values, key: not full[key]}

signal.signal(signal.SIGALRM, stop)
if mode == "all":
    known = {pair.split(":")[0] for pair in pairs}
    pairs = [f"{f}:{main_class(f)}" for f in sorted(os.listdir(root)) if f not in known and main_class(f)]
for pair in pairs:
    family, name = pair.split(":")
    seen = None
    try:
        for variant, values in configs(name):
            signal.alarm(30)
            try:
                truth = build(name, values)
            except BaseException as error:
                if not variant:
                    print(f"{family}: transformers itself fails: {type(error).__name__}", file=sys.stderr)
                continue
            finally:
                signal.alarm(0)
            if variant and truth["names"] == seen:
                continue
            seen = seen or truth["names"]
            if mode != "variants" or variant:
                with open(os.path.join(out, f"{family}@{variant}.json"), "w") as file:
                    json.dump(truth, file)
    except Exception as error:
        print(f"{family}: no configuration: {type(error).__name__}", file=sys.stderr)
print(json.dumps({"root": root, "torch": torch.__version__, "transformers": transformers.__version__}))
"""


@dataclass(frozen=True, slots=True)
class Result:
    """One pair. ``silent``: names that are wrong and not marked as optional or open."""

    pair: str
    names: bool
    shapes: bool
    certain: bool
    silent: int
    count: int
    seconds: float
    note: str


def torch_python() -> str:
    """The interpreter that has torch and transformers."""
    path = os.environ.get(PYTHON_VARIABLE, "")
    if not Path(path).is_file():
        raise SystemExit(
            f"{PYTHON_VARIABLE} must name the python of an environment with torch and transformers"
        )
    return path


def truths(mode: str, pairs: Sequence[str], folder: Path) -> dict[str, str]:
    """Let the other Python write what torch registers; what it is."""
    command = [torch_python(), "-c", WORKER, str(folder), mode, *pairs]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    sys.stderr.write("".join(line + "\n" for line in done.stderr.splitlines() if ": transformers " in line))
    told: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return told


def code_of(root: Path, folders: Sequence[str]) -> dict[str, str]:
    """The source files of model folders, as text."""
    return {
        f"{folder}/{path.name}": path.read_text("utf-8")
        for folder in folders
        for path in sorted((root / folder).glob("*.py"))
        if not path.name.startswith(NO_MODEL)
    }


def measure(root: Path, file: Path) -> Result:
    """Follow one pair and compare."""
    truth = json.loads(file.read_text("utf-8"))
    pair = file.stem.rstrip("@")
    files = code_of(root, sorted({pair.split("@")[0], *truth["folders"]}))
    wanted = {name: tuple(shape) for name, shape in truth["names"].items()}
    begin = time.perf_counter()
    try:
        found = implied(files, truth["config"])
    except DrupeError as error:
        return Result(pair, False, False, False, 0, len(wanted), time.perf_counter() - begin, str(error)[:90])
    seconds = time.perf_counter() - begin
    got = found.parameters
    missing = [name for name in wanted if name not in got]
    extra = [name for name in got if name not in wanted]
    shapes = not missing and not extra and all(got[name] == shape for name, shape in wanted.items())
    silent = [name for name in missing if not found.is_open(name)]
    silent += [name for name in extra if name not in found.optional]
    silent += [name for name in wanted if name in got and not compatible(got[name], wanted[name])]
    why = found.unknown[0].why if found.unknown else ""
    note = f"{len(missing)} missing, {len(extra)} extra; {why[:90]}" if missing or extra else ""
    certain = not found.optional and not found.unknown
    return Result(pair, not missing and not extra, shapes, certain, len(silent), len(wanted), seconds, note)


def compatible(found: tuple[int | None, ...] | None, wanted: tuple[int, ...]) -> bool:
    """Equal where known."""
    if found is None:
        return True
    return len(found) == len(wanted) and all(a is None or a == b for a, b in zip(found, wanted, strict=True))


def lines(title: str, results: Sequence[Result]) -> Iterator[str]:
    """One row of the table."""
    total = len(results)
    names = sum(one.names for one in results)
    low, high = wilson(names, total)
    shapes = sum(one.shapes for one in results)
    silent = sum(one.silent > 0 for one in results)
    certain = sum(one.names and one.certain for one in results)
    slowest = max((one.seconds for one in results), default=0.0)
    yield (
        f"| {title} | {total} | {names} ({100 * names / max(total, 1):.1f} %) | {100 * low:.1f}-{100 * high:.1f} % "
        f"| {shapes} | {certain} | {silent} | {sum(one.count for one in results)} | {slowest:.2f} s |"
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--variants", action="store_true", help="single switches of the configurations flipped"
    )
    parser.add_argument("--all", action="store_true", help="every further model folder of transformers")
    arguments = parser.parse_args()
    groups: list[tuple[str, list[Result]]] = []
    modes = ["pairs", *(["variants"] if arguments.variants else []), *(["all"] if arguments.all else [])]
    for mode in modes:
        with tempfile.TemporaryDirectory() as parent:
            told = truths(mode, PAIRS, Path(parent))
            results = [measure(Path(told["root"]), file) for file in sorted(Path(parent).iterdir())]
        dev = {pair.split(":")[0] for pair in PAIRS[0::2]}
        if mode == "all":
            groups.append(("all other folders", results))
            continue
        groups.append((f"{mode}, development", [one for one in results if one.pair.split("@")[0] in dev]))
        groups.append((f"{mode}, held out", [one for one in results if one.pair.split("@")[0] not in dev]))
    print(f"{machine()}; torch {told['torch']}, transformers {told['transformers']}\n")
    print(
        "| set | pairs | names equal | 95 % interval | shapes too | certain | silently wrong | tensors | slowest |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for title, results in groups:
        print("\n".join(lines(title, results)))
    for _, results in groups:
        for one in results:
            if not one.names or one.silent:
                print(f"- {one.pair}: {one.note or 'a shape'}; silently wrong: {one.silent}")
    return 0 if all(one.names for title, results in groups[:2] for one in results) else 1


if __name__ == "__main__":
    sys.exit(main())
