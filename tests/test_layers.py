"""Arrows go one way: who may import whom, read off the syntax tree, lazy and typing imports included.

``LAYERS`` is the architecture as data, lowest first. A module imports only from layers below its own, or from
its own unit (a plug-in of several files). A module without a layer fails, and so does a name without a file.
"""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "drupe"

# Lowest first. ``name.*`` is a unit: the modules of that folder or prefix, which may import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("messages", "stats", "model_names", "files", "threads"),
    # where bytes come from
    ("sources.interface", "sources.paths", "sources.urls"),
    ("sources.spans", "sources.transfer", "sources.cache"),
    ("sources.windowed",),
    ("sources.ranged",),
    ("sources.local", "sources.http"),
    ("sources.repository",),
    ("sources.hub", "sources.modelscope", "sources.ollama", "sources.fs"),
    ("sources.locator",),
    # what bytes mean: support first, then one unit per format
    ("readers.strict_json", "readers.protobuf", "readers.interface", "readers.zip_entries"),
    ("readers.pickle_*", "readers.shard_index"),
    ("readers.packed*", "readers.config"),
    ("readers.dense", "readers.forward", "readers.wrapping"),
    (
        *("readers.torch_*", "readers.numpy_file", "readers.msgpack_file", "readers.ctranslate2"),
        *("readers.safetensors", "readers.gguf*", "readers.onnx*", "readers.tokenizer.*"),
        *("readers.card", "readers.code", "readers.quantised.*", "readers.adapters.*"),
    ),
    ("readers.subset", "readers.folders", "readers.ranks", "readers.beside"),
    ("readers.weights",),
    # a model, seen lazily
    ("schemes", "fused", "name_groups", "facts", "uninformative", "graph", "shape_kinds"),
    ("roles", "flags", "configurations", "graph_config"),
    ("matrices", "graph_tensors", "graph_shapes", "graph_words"),
    ("model",),
    # one unit per signal
    ("signals.interface",),
    ("signals.declared", "signals.names", "signals.structure", "signals.sketch.*", "signals.tokenizer.*"),
    ("signals.genome",),
    # what a model's code asks for, from its syntax tree
    ("implied.*",),
    ("fingerprint",),
    ("subject",),
    ("division",),
    # what needs the tensors of both models
    ("residual", "lattice", "recover.units", "recover.parts", "recover.spectrum", "recover.adapt"),
    ("replay", "recover.merge"),
    ("recover.placing",),
    ("recover.tokens", "recover.adapter_factors"),
    ("recover.profile", "recover.admissible", "recover.contents", "recover.adapters", "recover.tensors"),
    ("recover.vectors",),
    ("recover.rotation", "recover.hidden", "recover.quoted", "recover.profile_opaque", "recover.permuted"),
    ("recover.align", "recover.experts"),
    ("recover.grids",),
    ("recover.refine",),
    ("recover.refine",),
    ("recover.findings",),
    ("recover.feedback", "recover.layers"),
    ("recover.lineage",),
    # judgement
    ("code_fit",),
    ("comparison",),
    ("diagnose.*",),
    ("assembly", "maps"),
    ("verdict",),
    ("document_schema",),
    ("document",),
    # one renderer per format, and what several of them need
    ("report.interface", "report.layout", "report.words"),
    ("report.flags", "report.adapters"),
    ("report.findings", "report.inspection", "report.progress"),
    ("report.terminal", "report.json_text"),
    # the verbs
    ("opening", "packages"),
    ("inspection", "evidence"),
    # the same weights under other names
    ("convert.pieces", "convert.params"),
    ("convert.blueprint",),
    ("convert.plan",),
    ("convert.values", "convert.config", "convert.row_order"),
    ("convert.heads",),
    ("convert.verify", "convert.request", "convert.running", "convert.meaning"),
    ("convert.writer",),
    ("convert.steps",),
    ("workflows",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
# The public face names workflows lazily and is imported by nobody for its contents but the version.
FACE = "drupe"
PLUG_INS = ("sources", "readers", "signals", "report")
STAGES = frozenset({"opening", "comparison", "assembly", "verdict", "document"})
# Which third-party package may be imported where (prefixes of module names); all others nowhere.
THIRD_PARTY: Mapping[str, tuple[str, ...]] = {
    "numpy": ("",),
    "rich": ("report.", "cli"),
    "huggingface_hub": ("sources.hub", "sources.transfer"),
    "httpx": ("sources.transfer",),
    "httpx2": ("sources.transfer",),
    "threadpoolctl": ("threads",),
    "yaml": ("readers.card",),
    "torch": ("convert.running",),
    "transformers": ("convert.running",),
}
# Judgement is pure: no files, no clock, no network, no randomness without a seed.
PURE = (
    "diagnose.*",
    "verdict",
    "stats",
    "signals.tokenizer.decision",
    "convert.plan",
    "convert.pieces",
    "implied.*",
)
IMPURE_MODULES = frozenset(
    {"os", "pathlib", "random", "time", "datetime", "socket", "subprocess", "tempfile"}
)
MAX_FILE, MAX_FUNCTION, MAX_MEDIAN_FILE, MAX_MEDIAN_FUNCTION = 400, 60, 120, 10


@cache
def modules() -> Mapping[str, Path]:
    """Module name without the leading ``drupe.`` -> file; the package itself is ``drupe``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name or FACE] = path
    return found


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


def is_package(name: str) -> bool:
    return modules()[name].name == "__init__.py"


def imported_names(name: str) -> Iterator[str]:
    """Dotted names of all import statements, wherever they stand; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                own = f"drupe.{name}".split(".")
                kept = own[: len(own) - node.level + is_package(name)]
                base = ".".join([*kept, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def edges(name: str) -> frozenset[str]:
    """Modules of this package that ``name`` imports."""
    found = set()
    for dotted in imported_names(name):
        parts = dotted.split(".")
        if parts[0] != "drupe":
            continue
        inner = ".".join(parts[1:])
        while inner and inner not in modules():
            inner = inner.rpartition(".")[0]
        found.add(inner or FACE)
    return frozenset(found - {name})


def third_party(name: str) -> set[str]:
    roots = {dotted.split(".")[0] for dotted in imported_names(name)}
    return roots - set(sys.stdlib_module_names) - {"drupe"}


@cache
def place(name: str) -> tuple[int, str] | None:
    """(layer, unit) of a module: an exact name wins over a unit; packages that only hold others have none."""
    patterns = [(level, pattern) for level, layer in enumerate(LAYERS) for pattern in layer]
    exact = [entry for entry in patterns if entry[1] == name]
    within = [entry for entry in patterns if _is_in_unit(name, entry[1])]
    return (exact or within or [None])[0]


def _is_in_unit(name: str, pattern: str) -> bool:
    if pattern.endswith(".*"):
        return name == pattern[:-2] or name.startswith(pattern[:-1])
    return pattern.endswith("*") and name.startswith(pattern[:-1])


def is_holder(name: str) -> bool:
    """A package whose ``__init__`` imports nothing of ours: it only holds its modules."""
    return is_package(name) and not edges(name)


@pytest.mark.parametrize("name", [name for name in modules() if name != FACE])
def test_a_module_imports_only_from_below(name: str) -> None:
    mine = place(name)
    if mine is None:
        assert is_holder(name), f"{name} stands in no layer: add it to LAYERS"
        return
    wrong = []
    for other in sorted(edges(name)):
        theirs = place(other)
        if other == FACE or theirs is None:
            continue
        same_unit = theirs == mine and theirs[1].endswith("*")
        if theirs[0] >= mine[0] and not same_unit:
            wrong.append(other)
    assert not wrong, f"{name} imports from its own layer or above: {', '.join(wrong)}"


def test_every_entry_of_the_table_names_a_file() -> None:
    patterns = [pattern for layer in LAYERS for pattern in layer]
    orphans = [
        pattern
        for pattern in patterns
        if not any(pattern in (name, (place(name) or (0, ""))[1]) for name in modules())
    ]
    assert not orphans


def test_there_is_no_import_cycle() -> None:
    graph = {name: edges(name) - {FACE} for name in modules() if name != FACE}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("folder", PLUG_INS)
def test_plug_ins_of_one_folder_do_not_import_each_other(folder: str) -> None:
    """Support modules stand in a lower layer than the plug-ins that use them."""
    wrong = []
    for name in modules():
        mine = place(name)
        if not name.startswith(f"{folder}.") or mine is None:
            continue
        for other in edges(name):
            theirs = place(other)
            if other.startswith(f"{folder}.") and theirs and theirs[0] == mine[0] and theirs[1] != mine[1]:
                wrong.append(f"{name} -> {other}")
    assert not wrong


def test_only_workflows_knows_all_stages() -> None:
    assert {name for name in modules() if edges(name) >= STAGES} == {"workflows"}


def test_renderers_compute_nothing() -> None:
    """They see the document and words, never a model, a comparison or a verdict."""
    below = {"opening", "comparison", "diagnose", "verdict", "fingerprint", "model"}
    seen = {name: edges(name) & below for name in modules() if name.startswith("report")}
    assert not {name: sorted(found) for name, found in seen.items() if found}


def test_third_party_packages_are_imported_where_they_belong_only() -> None:
    wrong = [
        f"{name}: {package}"
        for name in modules()
        for package in sorted(third_party(name))
        if not any(name.startswith(prefix) for prefix in THIRD_PARTY.get(package, ()))
    ]
    assert not wrong


def test_judgement_is_pure() -> None:
    wrong = {
        name: sorted({dotted.split(".")[0] for dotted in imported_names(name)} & IMPURE_MODULES)
        for name in modules()
        if any(name == pattern or _is_in_unit(name, pattern) for pattern in PURE)
    }
    assert not {name: found for name, found in wrong.items() if found}


def test_nothing_executes_an_artefact() -> None:
    """No pickle, no eval, no import by name, no native code by path."""
    forbidden_modules = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "runpy", "ctypes"}
    forbidden_calls = {"eval", "exec", "compile", "__import__"}
    wrong = []
    for name in modules():
        roots = {dotted.split(".")[0] for dotted in imported_names(name)}
        wrong += [f"{name}: {root}" for root in sorted(roots & forbidden_modules)]
        for node in ast.walk(tree_of(name)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in forbidden_calls
            ):
                wrong.append(f"{name}:{node.lineno}: {node.func.id}()")
    assert not wrong


def loaded_after(statement: str) -> set[str]:
    """Top-level packages in memory of a fresh interpreter after a statement."""
    code = f"{statement}\nimport sys\nprint(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


HEAVY = {"numpy", "scipy", "rich", "huggingface_hub", "yaml", "httpx", "httpx2", "torch", "onnx", "gguf"}


@pytest.mark.parametrize("statement", ["import drupe", "import drupe.cli"])
def test_importing_the_package_or_the_command_line_loads_nothing_heavy(statement: str) -> None:
    assert not loaded_after(statement) & HEAVY


def function_sizes() -> dict[str, int]:
    """``module:function`` -> lines from ``def`` to its end, docstring included."""
    return {
        f"{name}:{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for name in modules()
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_files_stay_short() -> None:
    texts = {name: path.read_text(encoding="utf-8") for name, path in modules().items()}
    sizes = {name: sum(bool(line.strip()) for line in text.splitlines()) for name, text in texts.items()}
    assert not {name: size for name, size in sizes.items() if size > MAX_FILE}
    median = statistics.median(sizes.values())
    assert median <= MAX_MEDIAN_FILE, f"the median file has {median} lines"


def test_functions_stay_short() -> None:
    sizes = function_sizes()
    assert not {name: size for name, size in sizes.items() if size > MAX_FUNCTION}
    assert statistics.median(sizes.values()) <= MAX_MEDIAN_FUNCTION
