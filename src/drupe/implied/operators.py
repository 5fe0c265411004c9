"""Arithmetic and comparison on values that may be unknown; results are bounded in size."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

from drupe.implied.limits import MAX_BITS, MAX_STEPS, MAX_TEXT, Budget
from drupe.implied.tensors import broadcast
from drupe.implied.values import ClassValue, Either, External, Place, Tensor, Unknown, describe, either

_BINARY: dict[type[ast.operator], Callable[..., object]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.RShift: operator.rshift,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
}
_COMPARE: dict[type[ast.cmpop], Callable[..., bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_PLAIN = (int, float, str, bytes, list, tuple, dict, set, frozenset, range, type(None))


def binary(kind: ast.operator, a: object, b: object, place: Place, budget: Budget) -> object:
    """``a OP b``."""
    if isinstance(a, Either) or isinstance(b, Either):
        lefts = a.options if isinstance(a, Either) else (a,)
        rights = b.options if isinstance(b, Either) else (b,)
        return either(*(binary(kind, x, y, place, budget) for x in lefts for y in rights))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return broadcast(a, b, place)
    if not isinstance(a, _PLAIN) or not isinstance(b, _PLAIN):
        for side in (a, b):
            if isinstance(side, Unknown):
                return Unknown(side.reason, side.place, isinstance(kind, ast.Add) and side.may_be_module)
        return Unknown(f"{describe(a)} {type(kind).__name__} {describe(b)}", place)
    if not _bounded(kind, a, b, budget):
        return Unknown("a number or text beyond any real one", place)
    try:
        if isinstance(kind, ast.BitOr) and isinstance(a, dict) and isinstance(b, dict):
            return a | b
        return _BINARY[type(kind)](a, b)
    except (ArithmeticError, TypeError, ValueError, KeyError) as error:
        return Unknown(f"{type(error).__name__} in an operation", place)


def _bounded(kind: ast.operator, a: object, b: object, budget: Budget) -> bool:
    """The result of an operation stays small; lists are charged for."""
    if isinstance(kind, ast.Mod) and isinstance(a, str):
        return len(a) < 200 and not any(mark in a for mark in ("*", "99", "00")) and _small(b)
    if isinstance(kind, ast.Mult):
        for sized, times in ((a, b), (b, a)):
            if isinstance(sized, str | bytes | list | tuple) and isinstance(times, int):
                size = len(sized) * max(times, 0)
                if isinstance(sized, str | bytes):
                    return size <= MAX_TEXT
                budget.charge(min(size, MAX_STEPS))
                return True
    if isinstance(kind, ast.Add) and isinstance(a, list | tuple) and isinstance(b, list | tuple):
        budget.charge(len(a) + len(b))
    if isinstance(a, str | bytes) and isinstance(b, str | bytes):
        return len(a) + len(b) <= MAX_TEXT
    if isinstance(a, dict | set) and isinstance(b, dict | set):
        budget.charge(len(a) + len(b))
    if isinstance(kind, ast.Pow | ast.LShift):
        return _power_is_small(kind, a, b)
    return _small(a) and _small(b)


def _power_is_small(kind: ast.operator, a: object, b: object) -> bool:
    if not isinstance(b, int) or not isinstance(a, int):
        return isinstance(a, int | float) and isinstance(b, int | float) and abs(a) < 1e9 and abs(b) < 64
    bits = a.bit_length() * abs(b) if isinstance(kind, ast.Pow) else a.bit_length() + abs(b)
    return bits <= MAX_BITS


def _small(value: object) -> bool:
    if isinstance(value, tuple):
        return len(value) < 20 and all(map(_small, value))
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    return not isinstance(value, int) or value.bit_length() <= MAX_BITS


def unary(kind: ast.unaryop, value: object, place: Place) -> object:
    """``-value`` and ``+value`` and ``~value``."""
    if isinstance(value, Either):
        return either(*(unary(kind, one, place) for one in value.options))
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, int | float):
        return Unknown(describe(value), place)
    if isinstance(kind, ast.USub):
        return -value
    if isinstance(kind, ast.Invert) and isinstance(value, int):
        return ~int(value)
    return +value


def compare(kind: ast.cmpop, a: object, b: object) -> bool | None:
    """``a OP b``; None when not known."""
    if isinstance(a, Either) or isinstance(b, Either):
        lefts = a.options if isinstance(a, Either) else (a,)
        rights = b.options if isinstance(b, Either) else (b,)
        results = {compare(kind, x, y) for x in lefts for y in rights}
        return results.pop() if len(results) == 1 else None
    if isinstance(kind, ast.IsNot | ast.NotEq | ast.NotIn):
        positive = {ast.IsNot: ast.Is, ast.NotEq: ast.Eq, ast.NotIn: ast.In}[type(kind)]()
        result = compare(positive, a, b)
        return None if result is None else not result
    if isinstance(kind, ast.In):
        return _contains(b, a)
    if isinstance(a, Unknown) or isinstance(b, Unknown):
        return None
    if isinstance(kind, ast.Is | ast.Eq):
        return _equal(kind, a, b)
    if isinstance(a, int | float | str | tuple | list) and isinstance(b, int | float | str | tuple | list):
        try:
            return _COMPARE[type(kind)](a, b)
        except (TypeError, RecursionError):
            return None
    return None


def _equal(kind: ast.cmpop, a: object, b: object) -> bool | None:
    if a is None or b is None:
        return a is b
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return None
    if isinstance(a, int | float | str) and isinstance(b, int | float | str):
        if isinstance(kind, ast.Is) and isinstance(a, bool) != isinstance(b, bool):
            return False
        return a == b
    if isinstance(a, External) and isinstance(b, External):
        return True if a == b else None
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if type(a) is not type(b) or len(a) != len(b):
            return False
        results = {_equal(kind, x, y) if _flat(x, y) else None for x, y in zip(a, b, strict=True)}
        return False if False in results else None if None in results else True
    if isinstance(a, ClassValue) or isinstance(b, ClassValue):
        return a is b
    return True if a is b else None if type(a) is type(b) else False


def _flat(a: object, b: object) -> bool:
    return not any(isinstance(one, list | tuple | dict | Unknown | Either) for one in (a, b))


def _contains(container: object, item: object) -> bool | None:
    if isinstance(item, Unknown) or isinstance(container, Unknown):
        return None
    if isinstance(container, External) and container.last == "ACT2FN":
        return True if isinstance(item, str) else None
    if isinstance(container, str):
        return item in container if isinstance(item, str) else None
    if isinstance(container, range):
        return item in container if isinstance(item, int) else None
    if isinstance(container, dict | set | frozenset):
        try:
            return True if item in container else None if _vague(container) else False
        except TypeError:
            return None
    if isinstance(container, list | tuple):
        results = {_equal(ast.Eq(), item, one) if _flat(item, one) else None for one in container}
        return True if True in results else None if None in results else False
    return None


def _vague(container: object) -> bool:
    items = container if isinstance(container, dict | set | frozenset) else ()
    return any(isinstance(one, Unknown | Either) for one in items)
