"""Every kind of change to weights, made on a model of the tests and named by ``drupe compare``: docs/changes.md.

python benchmarks/changes.py            # print
python benchmarks/changes.py --write    # docs/changes.md and docs/zh/changes.md
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common import ROOT

from drupe import workflows

MODELS = ROOT / "tests" / "models"


@dataclass(frozen=True, slots=True)
class Example:
    """An edit of a model, or a trained one as it is, and what it is compared with."""

    kind: str
    model: str
    edits: str = ""
    sources: tuple[str, ...] = ("r0",)


EXAMPLES = (
    Example("renamed", "r0", "rename_all"),
    Example("resharded", "r0", "reshard files=3"),
    Example("cast", "r0", "cast to=fp16"),
    Example("quantised", "r0", "quantise bits=4 group=32"),
    Example("quantised", "r0", "quantise bits=4 group=32 permute_units rotate"),
    Example("gaussian_noise", "r0", "noise sigma=0.1"),
    Example("gaussian_noise", "r0", "quantise bits=8 group=32 noise sigma=0.02"),
    Example("rescaled", "r0", "rescale_units spread=0.5"),
    Example("permuted", "r0", "permute_units permute_heads"),
    Example("permuted", "r0", "permute_hidden flip=true"),
    Example("permuted", "r0", "permute_vocabulary"),
    Example("rotated", "r0", "permute_units rotate"),
    Example("fine_tuned", "r0_ft"),
    Example("low_rank_update", "r0", "lora rank=4"),
    Example("continued_pretraining", "r0_cpt"),
    Example("merged", "r0_cpt", "merge other=r0_cpt2 share=0.3", ("r0_cpt", "r0_cpt2")),
    Example("merged", "r0", "ties parents=r0_cpt,r0_cpt2 density=0.3", ("r0", "r0_cpt", "r0_cpt2")),
    Example("pruned", "r0", "prune sparsity=0.5"),
    Example("pruned", "r0", "prune pattern=2:4"),
    Example("width_pruned", "r0", "prune_units keep=0.5"),
    Example("width_pruned", "r0", "prune_hidden keep=0.75"),
    Example("width_pruned", "r0", "rotate prune_hidden keep=0.75"),
    Example("layers_dropped", "r0", "map_layers order=[0,1,3]"),
    Example("layers_reordered", "r0", "map_layers order=[0,2,1,3]"),
    Example("depth_upscaled", "r0", "map_layers order=[0,1,2,1,2,3]"),
    Example("moe_upcycled", "r0", "to_experts experts=4"),
    Example("vocabulary_changed", "r0", "extend_vocabulary count=64"),
)
TEXTS = {
    "en": (
        "# What can be done to weights, and how it is named",
        """Each row can be repeated: the first command makes the model, the second compares it. `adapter` needs an
adapter ([008](design/008-adapters.md)); `reformatted`, `distilled` and `unknown_change` have no example: the first
is of code, the second leaves nothing in weights, the third says that no kind fits. Made by
`python benchmarks/changes.py --write`.""",
        "| done | made by | `drupe compare` says |",
    ),
    "zh": (
        "# 可以对权重做什么，报告怎样称呼",
        """每一行都可以重做：第一条命令造出模型，第二条命令比较。`adapter` 需要适配器
（[008](../design/008-adapters.md)）；`reformatted`、`distilled` 和 `unknown_change` 没有例子：
第一个说的是代码，第二个在权重里不留痕迹，第三个表示哪一种都不符合。
本页由 `python benchmarks/changes.py --write` 生成。""",
        "| 做了什么 | 怎样造出 | `drupe compare` 的结论 |",
    ),
}


def said(example: Example, folder: Path) -> tuple[str, str]:
    """The commands, and the relation with all changes."""
    names = [f"tests/models/{name}" for name in example.sources]
    if example.edits:
        words = [sys.executable, str(ROOT / "tests" / "zoo.py"), example.model, *example.edits.split()]
        subprocess.run([*words, "-o", str(folder / "x")], check=True, cwd=ROOT)
        suspect, make = str(folder / "x"), f"`python tests/zoo.py {example.model} {example.edits} -o x`<br>"
    else:
        suspect, make = str(MODELS / example.model), ""
    shown = "x" if example.edits else f"tests/models/{example.model}"
    report = workflows.compare(suspect, *(str(ROOT / name) for name in names))
    components = report["components"]
    assert isinstance(components, dict)
    weights = components["weights"]
    assert isinstance(weights, dict)
    further = "".join(f" --source {name}" for name in names[1:])
    command = f"{make}`drupe compare {shlex.quote(shown)} {names[0]}{further}`"
    changes = [_short(change) for change in weights["transformations"]]
    return command, f"{weights['relation']}: {'; '.join(changes)}"


def _short(change: dict[str, object]) -> str:
    parameters = change["parameters"]
    assert isinstance(parameters, dict)
    told = [f"{key} {_value(value)}" for key, value in parameters.items() if key not in ("factors",)]
    return f"`{change['kind']}` {', '.join(told)}".strip()


def _value(value: object) -> str:
    if isinstance(value, dict):
        shown = ", ".join(f"{key}: {entry}" for key, entry in list(value.items())[:3])
        return f"({shown}{', ...' if len(value) > 3 else ''})"
    if isinstance(value, list):
        return "(" + ", ".join(_value(entry) for entry in value) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)


def page(rows: list[tuple[str, str, str]], language: str) -> str:
    """The Markdown page."""
    title, text, head = TEXTS[language]
    lines = [f"| `{kind}` | {command} | {answer} |" for kind, command, answer in rows]
    return "\n".join([title, "", text, "", head, "|---|---|---|", *lines, ""])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    rows = []
    for example in EXAMPLES:
        with tempfile.TemporaryDirectory() as folder:
            command, answer = said(example, Path(folder))
        assert f"`{example.kind}`" in answer, (example, answer)
        rows.append((example.kind, command, answer))
    for language, place in (("en", "docs/changes.md"), ("zh", "docs/zh/changes.md")):
        if write:
            (ROOT / place).write_text(page(rows, language), "utf-8")
        else:
            print(page(rows, language))


if __name__ == "__main__":
    main()
