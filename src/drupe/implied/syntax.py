"""Bounded parsing of source files: sizes and words are counted before a tree is built.

A tree takes up to 900 bytes of memory per word or sign (measured, CPython 3.11), so these are counted first;
what nests too deeply for Python's own parser is an error of the file like any other.
"""

from __future__ import annotations

import ast
import posixpath
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from drupe.implied.doubts import constant, mangle, parse_doubts
from drupe.implied.limits import MAX_FILE_CHARACTERS, MAX_FILE_TOKENS, MAX_FILES, MAX_TOKENS
from drupe.implied.values import Binding, ModuleScope, Place, Unknown

_TOKEN = re.compile(r"\w+|[^\w\s]|\n")
_CLASS = re.compile(r"^class[ \t]+(\w+)", re.MULTILINE)
_MUTATORS = {"update", "append", "extend", "setdefault", "insert", "register"}


class Sources:
    """The files of a model, each parsed when it is first needed."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = {
            name: files[name] for name in sorted(files)[:MAX_FILES] if name.lower().endswith((".py", ".pyi"))
        }
        self.failures: list[Unknown] = []
        self.doubts: list[Unknown] = []
        self.functions: dict[str, list[ast.AST]] = defaultdict(list)
        """Every function of the parsed files by name."""
        self.trees: dict[str, ast.Module] = {}
        self.declared: dict[str, list[str]] = defaultdict(list)
        self._scopes: dict[str, ModuleScope | None] = {}
        self._room = MAX_TOKENS
        for name, text in self.files.items():
            for match in _CLASS.finditer(text[:MAX_FILE_CHARACTERS]):
                self.declared[match[1]].append(name)

    def add(self, file: str, scope: ModuleScope) -> None:
        """Add a file that is parsed already; it is none of the model's."""
        self._scopes[file] = scope

    def scope(self, file: str) -> ModuleScope | None:
        """The names of a file; None (and an entry in ``failures``) when it cannot be parsed."""
        if file not in self._scopes:
            self._scopes[file] = self._parse(file)
        return self._scopes[file]

    def _parse(self, file: str) -> ModuleScope | None:
        text = self.files[file]
        if len(text) > MAX_FILE_CHARACTERS:
            return self._fail(file, 1, f"{len(text)} characters exceed the limit of {MAX_FILE_CHARACTERS}")
        limit = min(MAX_FILE_TOKENS, self._room)
        count = 0
        for _ in _TOKEN.finditer(text):
            count += 1
            if count > limit:
                return self._fail(file, 1, f"more than {limit} words and signs")
        self._room -= count
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in a stranger's strings
                tree = ast.parse(text)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None) or 1
            return self._fail(file, line, f"no valid Python: {str(error)[:120]}")
        except (RecursionError, MemoryError):
            return self._fail(file, 1, "expressions nest too deeply")
        return self._kept(file, tree)

    def _kept(self, file: str, tree: ast.Module) -> ModuleScope | None:
        try:
            self.doubts += parse_doubts(file, tree)
        except RecursionError:
            return self._fail(file, 1, "expressions nest too deeply")
        mangle(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self.functions[node.name].append(node)
        self.trees[file] = tree
        return _scope(file, tree)

    def parse_imported(self) -> None:
        """Files that are imported for what they do, not for a name: they are parsed as well."""
        seen: set[str] = set()
        while seen != self.trees.keys():
            for file in [one for one in self.trees if one not in seen]:
                seen.add(file)
                for statement in self.trees[file].body:
                    for found in self._files_of(statement, file):
                        self.scope(found)

    def _files_of(self, statement: ast.stmt, file: str) -> Iterator[str]:
        if isinstance(statement, ast.ImportFrom):
            stem = statement.module or ""
            dotted = [stem, *(f"{stem}.{alias.name}".strip(".") for alias in statement.names)]
        elif isinstance(statement, ast.Import):
            dotted = [alias.name for alias in statement.names]
        else:
            return
        for one in dotted:
            found = self.find_module(one, getattr(statement, "level", 0), file) if one else None
            if found is not None:
                yield found

    def _fail(self, file: str, line: int, reason: str) -> ModuleScope | None:
        self.failures.append(Unknown(reason, Place(file, line)))
        return None

    def find_module(self, dotted: str, level: int, importer: str) -> str | None:
        """The file that an import names: relative ones by path, then by file name; absolute ones by path."""
        tail = [*dotted.split(".")] if dotted else []
        folder = posixpath.dirname(importer)
        for _ in range(level - 1):
            folder = posixpath.dirname(folder)
        path = posixpath.join(folder, *tail) if level else "/".join(tail)
        for candidate in (f"{path}.py", f"{path}/__init__.py"):
            if candidate.lstrip("/") in self.files and tail:
                return candidate.lstrip("/")
        if not level:
            beside = posixpath.join(folder, *tail) + ".py"
            return beside if len(tail) == 1 and beside in self.files else None
        named = [file for file in self.files if tail and posixpath.basename(file) == f"{tail[-1]}.py"]
        return named[0] if len(named) == 1 else None


def parse_scope(file: str, text: str) -> ModuleScope:
    """The names of a trusted text."""
    return _scope(file, ast.parse(text))


def _scope(file: str, tree: ast.Module) -> ModuleScope:
    bindings: dict[str, list[Binding]] = defaultdict(list)
    stars: list[ast.ImportFrom] = []
    for statement, conditional in _statements(tree.body, False):
        if isinstance(statement, ast.ImportFrom) and any(alias.name == "*" for alias in statement.names):
            stars.append(statement)
        for name in _bound(statement):
            bindings[name].append(Binding(statement, conditional))
    return ModuleScope(file, dict(bindings), stars)


def _statements(body: Sequence[ast.stmt], conditional: bool) -> Iterator[tuple[ast.stmt, bool]]:
    for statement in body:
        if isinstance(statement, ast.If):
            known = constant(statement.test)
            if known is not False:
                yield from _statements(statement.body, conditional or known is None)
            if known is not True:
                yield from _statements(statement.orelse, conditional or known is None)
        elif isinstance(statement, ast.Try):
            yield from _statements(statement.body, True)
            for handler in statement.handlers:
                yield from _statements(handler.body, True)
            yield from _statements(statement.orelse, True)
            yield from _statements(statement.finalbody, conditional)
        elif isinstance(statement, ast.With):
            caught = "suppress" in ast.unparse(statement.items[0].context_expr)[:200]
            yield from _statements(statement.body, conditional or caught)
        else:
            yield statement, conditional


def _bound(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).split(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.Assign):
        for target in statement.targets:
            yield from _targets(target)
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        yield from _targets(statement.target)
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        function = statement.value.func
        if (
            isinstance(function, ast.Attribute)
            and isinstance(function.value, ast.Name)
            and function.attr in _MUTATORS
        ):
            yield function.value.id


def _targets(target: ast.expr) -> Iterator[str]:
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Tuple | ast.List):
        for element in target.elts:
            yield from _targets(element)
    elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
        yield target.value.id
