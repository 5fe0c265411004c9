"""Which class is the model: the one that the configuration names, else the one that contains most."""

from __future__ import annotations

import ast
import posixpath
from collections.abc import Iterator, Mapping

from drupe.implied.configs import is_config_class
from drupe.implied.interpreter import Interpreter
from drupe.implied.modules import is_torch_module
from drupe.implied.values import ClassValue, ModuleScope

MAX_CANDIDATES = 6
"""Classes that nobody else uses and that are tried when the configuration names none."""
_PREFERRED = ("AutoModelForCausalLM", "AutoModelForConditionalGeneration", "AutoModel")


def named_entry(
    machine: Interpreter, config: Mapping[str, object], architecture: str | None
) -> tuple[ClassValue, str] | None:
    """The class that the caller or the configuration names, and how it is named."""
    listed = config.get("architectures")
    names = [architecture, *(listed if isinstance(listed, list) else [])]
    for name in names:
        cls = class_named(machine, name) if isinstance(name, str) else None
        if cls is not None:
            return cls, "architecture"
    auto_map = config.get("auto_map")
    entries = auto_map if isinstance(auto_map, dict) else {}
    keys = [key for key in _PREFERRED if key in entries]
    keys += [
        key for key in entries if isinstance(key, str) and key.startswith("AutoModel") and key not in keys
    ]
    for key in keys:
        value = entries[key]
        cls = class_named(machine, value.rpartition(".")[2]) if isinstance(value, str) else None
        if cls is not None:
            return cls, "auto_map"
    return None


def class_named(machine: Interpreter, name: str) -> ClassValue | None:
    """A class of the files, preferring files that are named like modelling code."""
    files = sorted(
        machine.sources.declared.get(name, []), key=lambda file: ("model" not in file, len(file), file)
    )
    for file in files:
        value = machine.find_global(file, name)
        if isinstance(value, ClassValue):
            return value
    return None


def candidates(machine: Interpreter) -> list[ClassValue]:
    """Modules that no other class of the files uses or derives from, in order of the files."""
    files = [
        file for file in machine.sources.files if not posixpath.basename(file).startswith("configuration")
    ]
    used: set[str] = set()
    for file in files:
        scope = machine.sources.scope(file)
        used |= set(_used(scope)) if scope is not None else set()
    found = [cls for file in files for cls in machine.classes_in(file) if cls.name not in used]
    return [cls for cls in found if any(map(is_torch_module, cls.externals()))][:MAX_CANDIDATES]


def _used(scope: ModuleScope) -> Iterator[str]:
    """Names that classes and functions mention, outside of themselves."""
    for bindings in scope.bindings.values():
        for binding in bindings:
            own = getattr(binding.statement, "name", "")
            if isinstance(binding.statement, ast.ClassDef | ast.FunctionDef):
                for node in ast.walk(binding.statement):
                    if isinstance(node, ast.Name) and node.id != own:
                        yield node.id


def config_class_of(machine: Interpreter, cls: ClassValue, config: Mapping[str, object]) -> ClassValue | None:
    """The configuration class: by model type, else the one that the model's class names."""
    model_type = config.get("model_type")
    if isinstance(model_type, str):
        found = machine.config_classes(model_type)
        if found:
            return found[0]
    pair = cls.find("config_class")
    if pair is not None and isinstance(pair[0], ClassValue) and is_config_class(pair[0]):
        return pair[0]
    init = cls.find("__init__")
    node = getattr(init[0], "node", None) if init is not None else None
    if isinstance(node, ast.FunctionDef):
        for argument in node.args.args[1:2]:
            if isinstance(argument.annotation, ast.Name):
                value = machine.find_global(cls.place.file, argument.annotation.id)
                if isinstance(value, ClassValue) and is_config_class(value):
                    return value
    return None
