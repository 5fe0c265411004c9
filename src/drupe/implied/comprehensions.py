"""Comprehensions, and what a table of numbers is worth."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import cast

from drupe.implied.core import Core
from drupe.implied.expressions import hashable
from drupe.implied.limits import MAX_MODULES
from drupe.implied.values import (
    Buffer,
    Frame,
    Instance,
    Place,
    Tensor,
    Unknown,
    clone,
    count_modules,
)

LONG = 512
"""Items of a comprehension; no model has as many layers or experts in one list of plain numbers."""
FEW = 8
"""Items from which on equal modules are copied instead of being followed one by one."""


class Comprehensions(Core):
    """Follows comprehensions."""

    def _eval_listcomp(self, node: ast.ListComp, frame: Frame) -> object:
        found: list[object] = self.made([])
        inner = self.made(Frame(frame.scope, frame))
        if self._repeats(node, frame, found, inner):
            return found
        if self._is_long(node, frame, inner):
            self._eval_long(node, frame, inner, found)
            return found
        why = self._comprehend(
            node.generators, 0, inner, lambda one: found.append(self.evaluate(node.elt, one))
        )
        if why is not None:
            found.append(why)
        return found

    def _repeats(self, node: ast.ListComp, frame: Frame, found: list[object], inner: Frame) -> bool:
        """``[Expert(config) for _ in range(n)]``: made twice, and copied when both are alike."""
        generator = node.generators[0]
        target = generator.target
        if len(node.generators) > 1 or generator.ifs or not isinstance(target, ast.Name):
            return False
        if not isinstance(node.elt, ast.Call) or any(
            isinstance(one, ast.Name) and one.id == target.id for one in ast.walk(node.elt)
        ):
            return False
        items = self.evaluate(generator.iter, frame)
        if not isinstance(items, range) or not FEW <= len(items) <= MAX_MODULES:
            return False
        first, second = self.evaluate(node.elt, inner), self.evaluate(node.elt, inner)
        size = count_modules(first)
        if not isinstance(first, Instance) or size is None or not alike(first, second):
            return False
        found += [first, second]
        for _ in items[2:]:
            self.budget.charge(size)
            found.append(clone(first))
        return True

    def _is_long(self, node: ast.ListComp, frame: Frame, inner: Frame) -> bool:
        """A plain comprehension over a long range: tables of numbers, of which only the length matters."""
        generator = node.generators[0]
        if len(node.generators) > 1 or generator.ifs or not isinstance(generator.iter, ast.Call):
            return False
        named = isinstance(generator.iter.func, ast.Name) and generator.iter.func.id == "range"
        values = self.evaluate(generator.iter, frame) if named else None
        if not isinstance(values, range) or len(values) <= LONG:
            return False
        inner.names[""] = values
        return True

    def _eval_long(self, node: ast.ListComp, frame: Frame, inner: Frame, found: list[object]) -> None:
        """All items when they may be modules, else the first one's kind for each."""
        values = inner.names.pop("")
        place = _place(node, frame)
        items = values if isinstance(values, range) else range(0)
        for i, item in enumerate(items):
            self.assign(node.generators[0].target, item, inner)
            value = self.evaluate(node.elt, inner)
            if i == 0 and isinstance(value, int | float | str | list | tuple | Tensor):
                self.budget.charge(len(items) // 8)
                plain = (
                    value
                    if isinstance(value, list | tuple | Tensor)
                    else Unknown("one of many numbers", place)
                )
                found.extend(
                    [plain] * len(items) if len(items) < 1 << 20 else [Unknown("a table", place, tail=True)]
                )
                return
            if i == 0:
                self.budget.charge(len(items))
            found.append(value)

    def _eval_generatorexp(self, node: ast.GeneratorExp, frame: Frame) -> object:
        return self._eval_listcomp(cast("ast.ListComp", node), frame)

    def _eval_setcomp(self, node: ast.SetComp, frame: Frame) -> object:
        listed = self._eval_listcomp(cast("ast.ListComp", node), frame)
        return {one for one in listed if hashable(one)} if isinstance(listed, list) else listed

    def _eval_dictcomp(self, node: ast.DictComp, frame: Frame) -> object:
        found: dict[object, object] = self.made({})

        def add(inner: Frame) -> None:
            key = self.evaluate(node.key, inner)
            found[key if hashable(key) else repr(key)] = self.evaluate(node.value, inner)

        why = self._comprehend(node.generators, 0, self.made(Frame(frame.scope, frame)), add)
        if why is not None:
            found[why] = why
        return found

    def _comprehend(
        self, generators: list[ast.comprehension], at: int, frame: Frame, add: Callable[[Frame], None]
    ) -> Unknown | None:
        """Follow a comprehension; the reason when the number of its items is not known."""
        if at == len(generators):
            add(frame)
            return None
        generator = generators[at]
        place = _place(generator.iter, frame)
        items = self.items(self.evaluate(generator.iter, frame), place)
        if isinstance(items, Unknown):
            return Unknown(f"the number of items is not known: {items.reason}", place, True, True)
        why: Unknown | None = None
        for item in items:
            if isinstance(item, Unknown) and item.tail:
                why = item
                continue
            self.assign(generator.target, item, frame)
            known = [self.condition(test, frame) for test in generator.ifs]
            if False in known:
                continue
            if None in known:
                why = Unknown("a condition in a comprehension is not known", place, True, True)
                continue
            why = self._comprehend(generators, at + 1, frame, add) or why
        return why


def _place(node: ast.AST, frame: Frame) -> Place:
    return Place(frame.scope.file, getattr(node, "lineno", 0))


def alike(a: object, b: object) -> bool:
    """Two plain trees of modules with the same names, classes and shapes."""
    if isinstance(a, Instance) and isinstance(b, Instance):
        if a is b or a.cls != b.cls or a.attrs.keys() != b.attrs.keys():
            return a is b and not a.is_module
        return all(alike(one, b.attrs[key]) for key, one in a.attrs.items())
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        persistent = (isinstance(one, Buffer) and one.persistent for one in (a, b))
        return type(a) is type(b) and a.shape == b.shape and len(set(persistent)) == 1
    if isinstance(a, Instance | Tensor) or isinstance(b, Instance | Tensor):
        return False
    return a is b or type(a) is type(b)
