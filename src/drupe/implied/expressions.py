"""Expressions: one method per kind of node."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import cast

from drupe.implied import operators
from drupe.implied.core import Core
from drupe.implied.library import ACTIVATIONS
from drupe.implied.limits import MAX_TEXT
from drupe.implied.tensors import indexed
from drupe.implied.values import (
    MISSING,
    Either,
    External,
    Frame,
    Instance,
    Place,
    Tensor,
    Unknown,
    describe,
    either,
    truth,
)

_Evaluator = Callable[[ast.expr, Frame], object]


class Expressions(Core):
    """Evaluates expressions."""

    def evaluate(self, node: ast.expr, frame: Frame) -> object:
        """The value of an expression."""
        budget = self.budget
        budget.charge()
        method = cast("_Evaluator | None", getattr(self, f"_eval_{type(node).__name__.lower()}", None))
        if method is None:
            return Unknown(f"{type(node).__name__} is not followed", self._place(node, frame))
        value = method(node, frame)
        if isinstance(value, Unknown):
            self.uncertain += 1
        return value

    def _place(self, node: ast.AST, frame: Frame) -> Place:
        return Place(frame.scope.file, getattr(node, "lineno", 0))

    def condition(self, node: ast.expr, frame: Frame) -> bool | None:
        """Whether an expression counts as true, by three-valued logic."""
        if isinstance(node, ast.BoolOp):
            decisive = isinstance(node.op, ast.Or)
            result: bool | None = not decisive
            for part in node.values:
                known = self.condition(part, frame)
                if known is decisive:
                    return decisive
                if known is None:
                    result = None
            return result
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            known = self.condition(node.operand, frame)
            return None if known is None else not known
        value = self.evaluate(node, frame)
        if isinstance(value, Instance):
            length = self.items(value, self._place(node, frame)) if _is_container(value) else None
            return bool(length) if isinstance(length, list) else True
        return truth(value)

    def _eval_constant(self, node: ast.Constant, frame: Frame) -> object:
        return node.value

    def _eval_name(self, node: ast.Name, frame: Frame) -> object:
        return self.find_name(node.id, frame, self._place(node, frame))

    def _eval_attribute(self, node: ast.Attribute, frame: Frame) -> object:
        place = self._place(node, frame)
        owner = self.evaluate(node.value, frame)
        value = self.get_attribute(owner, node.attr, place)
        if value is MISSING:
            if isinstance(owner, Instance) and (owner.is_config or not owner.open):
                self.fail("AttributeError", f"{describe(owner)} has no attribute {node.attr}", place)
            return Unknown(f"{describe(owner)} has no attribute {node.attr}", place)
        return value

    def _eval_call(self, node: ast.Call, frame: Frame) -> object:
        place = self._place(node, frame)
        if isinstance(node.func, ast.Name) and node.func.id in {"super", "locals"} and not node.args:
            return self._special(node.func.id, frame, place)
        function = self.evaluate(node.func, frame)
        arguments: list[object] = []
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                items = self.items(self.evaluate(argument.value, frame), place)
                arguments += items if isinstance(items, list) else [items]
            else:
                arguments.append(self.evaluate(argument, frame))
        keywords: dict[str, object] = self.made({})
        for keyword in node.keywords:
            value = self.evaluate(keyword.value, frame)
            if keyword.arg is not None:
                keywords[keyword.arg] = value
            elif isinstance(value, dict):
                self.budget.charge(len(value))
                keywords.update({key: item for key, item in value.items() if isinstance(key, str)})
        return self.call(function, arguments, keywords, place)

    def _special(self, name: str, frame: Frame, place: Place) -> object:
        if name == "locals":
            return dict(frame.names)
        inner: Frame | None = frame
        while inner is not None and (inner.function is None or inner.function.owner is None):
            inner = inner.parent
        if inner is None or inner.function is None:
            return Unknown("super() outside of a method", place)
        return self.call(
            External("builtins.super"),
            [inner.function.owner, next(iter(inner.names.values()), None)],
            {},
            place,
        )

    def _eval_binop(self, node: ast.BinOp, frame: Frame) -> object:
        left, right = self.evaluate(node.left, frame), self.evaluate(node.right, frame)
        return operators.binary(node.op, left, right, self._place(node, frame), self.budget)

    def _eval_unaryop(self, node: ast.UnaryOp, frame: Frame) -> object:
        if isinstance(node.op, ast.Not):
            known = self.condition(node.operand, frame)
            return Unknown("a condition", self._place(node, frame)) if known is None else not known
        return operators.unary(node.op, self.evaluate(node.operand, frame), self._place(node, frame))

    def _eval_boolop(self, node: ast.BoolOp, frame: Frame) -> object:
        decisive = isinstance(node.op, ast.Or)
        seen: list[object] = []
        for part in node.values[:-1]:
            value = self.evaluate(part, frame)
            known = truth(value)
            if known is decisive:
                return either(*seen, value)
            if known is None:
                seen.append(value)
        last = self.evaluate(node.values[-1], frame)
        return either(*seen, last) if seen else last

    def _eval_compare(self, node: ast.Compare, frame: Frame) -> object:
        left = self.evaluate(node.left, frame)
        result: bool | None = True
        for kind, part in zip(node.ops, node.comparators, strict=True):
            right = self.evaluate(part, frame)
            self.budget.charge(len(right) if isinstance(right, list | tuple) else 1)
            known = operators.compare(kind, left, right)
            if known is False:
                return False
            if known is None:
                result = None
            left = right
        return Unknown("a comparison", self._place(node, frame)) if result is None else True

    def _eval_ifexp(self, node: ast.IfExp, frame: Frame) -> object:
        known = self.condition(node.test, frame)
        if known is not None:
            return self.evaluate(node.body if known else node.orelse, frame)
        first, changes = self.journal.run(lambda: self.evaluate(node.body, frame))
        second, others = self.journal.run(lambda: self.evaluate(node.orelse, frame))
        self.journal.join(changes, others)
        return either(first, second)

    def _eval_namedexpr(self, node: ast.NamedExpr, frame: Frame) -> object:
        value = self.evaluate(node.value, frame)
        self.assign(node.target, value, frame)
        return value

    def _eval_lambda(self, node: ast.Lambda, frame: Frame) -> object:
        return self.make_function(node, frame)

    def _eval_list(self, node: ast.List, frame: Frame) -> object:
        return self.made(self._elements(node.elts, frame))

    def _eval_tuple(self, node: ast.Tuple, frame: Frame) -> object:
        return tuple(self._elements(node.elts, frame))

    def _eval_set(self, node: ast.Set, frame: Frame) -> object:
        return {one for one in self._elements(node.elts, frame) if hashable(one)}

    def _elements(self, nodes: list[ast.expr], frame: Frame) -> list[object]:
        found: list[object] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                items = self.items(self.evaluate(node.value, frame), self._place(node, frame))
                found += items if isinstance(items, list) else [items]
            else:
                found.append(self.evaluate(node, frame))
        return found

    def _eval_dict(self, node: ast.Dict, frame: Frame) -> object:
        found: dict[object, object] = self.made({})
        for key_node, value_node in zip(node.keys, node.values, strict=True):
            value = self.evaluate(value_node, frame)
            if key_node is None:
                if isinstance(value, dict):
                    self.budget.charge(len(value))
                    found.update(value)
                continue
            key = self.evaluate(key_node, frame)
            if hashable(key):
                found[key] = value
        return found

    def _eval_starred(self, node: ast.Starred, frame: Frame) -> object:
        return self.evaluate(node.value, frame)

    def _eval_joinedstr(self, node: ast.JoinedStr, frame: Frame) -> object:
        parts: list[str] = []
        for part in node.values:
            value = self.evaluate(part, frame)
            if not isinstance(value, str):
                return (
                    value
                    if isinstance(value, Unknown | Either)
                    else Unknown("text", self._place(node, frame))
                )
            parts.append(value)
        text = "".join(parts)
        return text if len(text) <= MAX_TEXT else Unknown("a long text", self._place(node, frame))

    def _eval_formattedvalue(self, node: ast.FormattedValue, frame: Frame) -> object:
        value = self.evaluate(node.value, frame)
        form = self.evaluate(node.format_spec, frame) if node.format_spec is not None else ""
        place = self._place(node, frame)
        if (
            not isinstance(value, int | float | str | type(None))
            or not isinstance(form, str)
            or len(form) > 4
        ):
            return value if isinstance(value, Unknown) else Unknown(f"the text of {describe(value)}", place)
        shown = repr(value) if node.conversion == ord("r") else value
        try:
            return str(shown) if not form else format(shown, form)[:MAX_TEXT]
        except ValueError:
            return Unknown("a format", place)

    def _eval_subscript(self, node: ast.Subscript, frame: Frame) -> object:
        place = self._place(node, frame)
        owner, index = self.evaluate(node.value, frame), self.evaluate(node.slice, frame)
        return self.item(owner, index, place)

    def item(self, owner: object, index: object, place: Place) -> object:
        """``owner[index]``."""
        if isinstance(owner, Either):
            return either(*(self.item(one, index, place) for one in owner.options if one is not MISSING))
        if isinstance(owner, Tensor):
            return indexed(owner, index)
        if isinstance(owner, External):
            return self._library_item(owner, index, place)
        if isinstance(index, Unknown | Either) and isinstance(owner, dict | list | tuple) and owner:
            values = list(owner.values()) if isinstance(owner, dict) else list(owner)
            if isinstance(index, Either) and all(map(hashable, index.options)):
                return either(*(self.item(owner, one, place) for one in index.options))
            return either(*values[:32])
        if isinstance(owner, Instance):
            return self._instance_item(owner, index, place)
        if isinstance(owner, Unknown):
            return owner
        try:
            if isinstance(owner, dict) and hashable(index):
                return owner[index]
            if isinstance(owner, list | tuple | str | range) and isinstance(index, int | slice):
                self.budget.charge(len(owner) if isinstance(index, slice) else 1)
                return owner[index]
        except (KeyError, IndexError, TypeError, ValueError):
            if self.tries and self.tries[-1] == self.journal.level:
                kind = "KeyError" if isinstance(owner, dict) else "IndexError"
                self.fail(kind, f"there is no item {describe(index)}", place)
            return Unknown(f"there is no item {describe(index)}", place, isinstance(owner, dict))
        return Unknown(f"an item of {describe(owner)}", place)

    def _library_item(self, owner: External, index: object, place: Place) -> object:
        if owner.last in {"ACT2FN", "ACT2CLS"}:
            other = {
                "prelu": External("torch.nn.PReLU"),
                "xielu": self.library("transformers.XIELUActivation"),
            }
            if isinstance(index, str) and index in other:
                return self.call(other[index], [], {}, place) if owner.last == "ACT2FN" else other[index]
            if isinstance(index, str) and index in ACTIVATIONS:
                module = Instance(External("torch.nn.Identity"), place)
                module.is_module = True
                return module if owner.last == "ACT2FN" else External("torch.nn.Identity")
            return Unknown(
                f"the activation {describe(index)} may have parameters",
                place,
                index == "prelu" or index == "xielu",
            )
        if owner.last in {"CONFIG_MAPPING", "MODEL_MAPPING"}:
            return (
                External(f"{owner.name}.{index}")
                if isinstance(index, str)
                else Unknown("a model type", place)
            )
        if owner.last[:1].isupper() and not owner.last.isupper():
            return owner  # a generic class: Sequence[int], dict[str, int]
        return Unknown(f"an item of {owner.name}", place)

    def _instance_item(self, owner: Instance, index: object, place: Place) -> object:
        if not _is_container(owner):
            method = self.get_attribute(owner, "__getitem__", place)
            if method is MISSING:
                return Unknown(f"an item of {describe(owner)}", place, True)
            return self.call(method, [index], {}, place)
        if isinstance(index, str):
            return owner.attrs.get(index, Unknown(f"there is no item {index}", place, True))
        items = self.items(owner, place)
        if not isinstance(items, list) or not isinstance(index, int | slice):
            return Unknown(f"an item of {describe(owner)}", place, True)
        if isinstance(index, slice):
            return self.call(owner.cls, [items[index]], {}, place)
        return items[index] if -len(items) <= index < len(items) else Unknown("no such item", place, True)

    def _eval_slice(self, node: ast.Slice, frame: Frame) -> object:
        ends = [
            None if part is None else self.evaluate(part, frame)
            for part in (node.lower, node.upper, node.step)
        ]
        if all(end is None or isinstance(end, int) for end in ends):
            return slice(*ends)
        return Unknown("the ends of a slice", self._place(node, frame))


def hashable(value: object) -> bool:
    """It can be a key."""
    if isinstance(value, tuple):
        return len(value) < 64 and all(map(hashable, value))
    return not isinstance(value, list | dict | set | slice)


def _is_container(instance: Instance) -> bool:
    return any(isinstance(one, External) and one.last in _CONTAINERS for one in instance.mro)


_CONTAINERS = {"ModuleList", "Sequential", "ModuleDict", "ParameterList", "ParameterDict"}
