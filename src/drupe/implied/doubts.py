"""Code that changes what other code means: it is not followed, so nothing is said about what loads.

A statement at the top of a file is followed only when it binds a name that is asked for. What such statements do
besides (give a class of a library another constructor, stop with an error, import what may not be there), and
functions that Python itself would look for in a text, are found here in the syntax tree and reported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from drupe.implied.limits import names
from drupe.implied.values import Place, Unknown

KNOWN_PACKAGES = sys.stdlib_module_names | names(
    "torch torchvision torchaudio transformers numpy scipy einops flash_attn packaging tqdm huggingface_hub "
    "safetensors accelerate PIL regex requests timm peft tokenizers sentencepiece tiktoken pandas sklearn cv2 "
    "matplotlib librosa soundfile decord xformers triton apex deepspeed bitsandbytes diffusers datasets fla "
    "mamba_ssm causal_conv1d rotary_embedding_torch yaml filelock typing_extensions attr jaxtyping beartype "
    "pydantic open_clip numba kernels tensorflow jax flax sympy networkx msgpack nltk ftfy jinja2"
)
"""Packages that a machine that runs models has, or is expected to have."""
ALWAYS_THERE = sys.stdlib_module_names | {"torch", "transformers", "numpy"}
"""Packages without which no model runs."""
_RUNNING_TEXT = names("exec eval vars globals __import__ __builtins__ builtins")
_HARMLESS_TARGETS = names("__doc__ __name__ __module__ __qualname__ __all__ __version__")
_HARMLESS_OWNERS = (
    "torch.backends.",
    "torch._dynamo.",
    "torch._inductor.",
    "logger.",
    "warnings.",
    "logging.",
)
_HARMLESS_CALLS = ("require_", "check_", "warn", "print", "is_", "log", "register")
_REGISTERING = names(
    "setattr delattr register_parameter register_buffer register_module add_module _parameters _modules _buffers "
    "__dict__ __setattr__ __delattr__ exec eval vars globals"
)
_VALUES_ONLY = names("data _is_hf_initialized grad requires_grad")
MAX_SEARCHED = 64
"""Functions that one function leads to."""


def parse_doubts(file: str, tree: ast.Module) -> list[Unknown]:
    """Whatever in a file is not followed and may change what the rest means."""
    found = [Unknown(why, Place(file, line)) for line, why in (*_anywhere(tree), *_at_top(tree, file))]
    return found[:MAX_SEARCHED]


def _anywhere(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in _RUNNING_TEXT:
            yield node.lineno, f"{node.id} is used"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in {"sys.modules", "sys.meta_path"}:
                yield node.lineno, f"{name} is used"


def _at_top(tree: ast.Module, file: str) -> Iterator[tuple[int, str]]:
    defined = {one.name for one in tree.body if isinstance(one, ast.FunctionDef | ast.ClassDef)}
    changing = _changing(tree)
    for statement, guarded in _top(tree.body, False):
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr):
            for node in ast.walk(statement):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id in changing
                ):
                    yield node.lineno, f"{node.func.id} is called where the file is read"
        yield from _one_at_top(statement, guarded, defined, file)


def _changing(tree: ast.Module) -> set[str]:
    """Functions by name that may change attributes of something, or that call one that does."""
    callers: dict[str, set[str]] = {}
    found = {"setattr", "delattr"}
    functions = [one for one, _ in _top(tree.body, False) if isinstance(one, ast.FunctionDef)]
    for node in functions:
        for one in ast.walk(node):
            if isinstance(one, ast.Call) and isinstance(one.func, ast.Name):
                callers.setdefault(one.func.id, set()).add(node.name)
            if isinstance(one, ast.Attribute) and not isinstance(one.ctx, ast.Load):
                found.add(node.name)
    queue = list(found)
    while queue:
        more = callers.get(queue.pop(), set()) - found
        found |= more
        queue += more
    defined = {one.name for one in functions}
    return found & (defined | {"setattr", "delattr"})


def _one_at_top(
    statement: ast.stmt, guarded: bool, defined: set[str], file: str
) -> Iterator[tuple[int, str]]:
    line = statement.lineno
    if isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
        targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
        for target in targets:
            if isinstance(target, ast.Attribute) and not _is_harmless_target(target):
                yield line, f"{ast.unparse(target)[:80]} is changed where the file is read"
    elif isinstance(statement, ast.For | ast.While):
        if any(isinstance(one, ast.Assign | ast.AugAssign | ast.Attribute) for one in ast.walk(statement)):
            yield line, "a loop outside of any function is not followed"
    elif isinstance(statement, ast.Raise) and not guarded:
        yield line, "the file ends in an error here"
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        yield from _called_at_top(statement.value, guarded, defined)
    elif isinstance(statement, ast.Import | ast.ImportFrom) and not guarded and not file.startswith("<"):
        yield from ((line, why) for why in unknown_packages(statement))


def _called_at_top(call: ast.Call, guarded: bool, defined: set[str]) -> Iterator[tuple[int, str]]:
    name = ast.unparse(call.func)[:80]
    root, _, last = name.partition(".")
    last = last.rpartition(".")[2] or name
    if name in {"sys.exit", "exit", "quit", "os._exit", "os.abort"} and not guarded:
        yield call.lineno, "the file ends in an error here"
    elif name in {"setattr", "delattr"} or (root in defined and not last.startswith(_HARMLESS_CALLS)):
        yield call.lineno, f"{name} is called where the file is read"


def unknown_packages(statement: ast.Import | ast.ImportFrom) -> list[str]:
    """What an import needs that is neither torch, transformers, Python's own nor well known."""
    if isinstance(statement, ast.ImportFrom):
        roots = [] if statement.level else [(statement.module or "").partition(".")[0]]
    else:
        roots = [alias.name.partition(".")[0] for alias in statement.names]
    return [f"the package {root} may not be there" for root in roots if root not in KNOWN_PACKAGES]


def _top(body: Sequence[ast.stmt], guarded: bool) -> Iterator[tuple[ast.stmt, bool]]:
    """Statements outside of functions and classes; ``guarded``: under a condition, or with a handler."""
    for one in body:
        if isinstance(one, ast.If):
            known = constant(one.test)
            yield from _top(one.body if known is not False else [], guarded or known is None)
            yield from _top(one.orelse if known is not True else [], guarded or known is None)
        elif isinstance(one, ast.Try):
            caught = guarded or bool(one.handlers)
            for part in (one.body, one.orelse, *(handler.body for handler in one.handlers)):
                yield from _top(part, caught)
            yield from _top(one.finalbody, guarded)
        elif isinstance(one, ast.With):
            yield from _top(one.body, guarded or "suppress" in ast.unparse(one.items[0]))
        elif isinstance(one, ast.ClassDef):
            yield from _top(one.body, True)
        else:
            yield one, guarded


def constant(test: ast.expr) -> bool | None:
    """Whether a condition that is written as a constant holds."""
    return bool(test.value) if isinstance(test, ast.Constant) else None


def _is_harmless_target(target: ast.Attribute) -> bool:
    return target.attr in _HARMLESS_TARGETS or ast.unparse(target).startswith(_HARMLESS_OWNERS)


def registers(
    node: ast.AST, functions: Mapping[str, Sequence[ast.AST]], charge: Callable[[int], None]
) -> bool:
    """A function, or one that it calls by name, may add, replace or remove what a module registers."""
    queue, seen = [node], {id(node)}
    while queue and len(seen) <= MAX_SEARCHED:
        for count, one in enumerate(ast.walk(queue.pop())):
            charge(count % 4 == 0)
            if _changes(one):
                return True
            if isinstance(one, ast.Call):
                name = getattr(one.func, "attr", getattr(one.func, "id", ""))
                more = [each for each in functions.get(name, ()) if id(each) not in seen]
                seen.update(map(id, more))
                queue += more
    return bool(queue)


def _changes(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _REGISTERING
    if isinstance(node, ast.Attribute):
        stored = not isinstance(node.ctx, ast.Load) and node.attr not in _VALUES_ONLY
        return stored or node.attr in _REGISTERING
    if isinstance(node, ast.Subscript):
        is_tensor = isinstance(node.slice, ast.Tuple)  # no module takes several indices
        return not isinstance(node.ctx, ast.Load) and isinstance(node.value, ast.Name) and not is_tensor
    return isinstance(node, ast.Global | ast.Nonlocal)


def mangle(tree: ast.AST) -> None:
    """Write private names of classes as Python does: ``__a`` in ``class B`` is ``_B__a``."""
    queue: list[tuple[ast.AST, str]] = [(tree, "")]
    while queue:
        node, prefix = queue.pop()
        inner = prefix
        if isinstance(node, ast.ClassDef):
            inner = f"_{node.name.lstrip('_')}" if node.name.strip("_") else ""
        for field in ("attr", "id", "name", "arg") if prefix else ():
            text = getattr(node, field, None)
            if isinstance(text, str) and text.startswith("__") and not text.endswith("__"):
                setattr(node, field, prefix + text)
        queue += [(child, inner) for child in ast.iter_child_nodes(node)]
