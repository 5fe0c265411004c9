"""Methods of strings and functions of ``math``, with bounded results."""

from __future__ import annotations

import math

from drupe.implied.limits import MAX_TEXT, names
from drupe.implied.values import Native, Place, Unknown

_TEXT_METHODS = names(
    "lower upper strip lstrip rstrip startswith endswith removeprefix removesuffix title capitalize "
    "isdigit isnumeric isalpha"
)


def text_method(owner: str, name: str) -> object:
    """A method of a string; its result is bounded."""

    def run(arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        del keywords
        if name in _TEXT_METHODS:
            if all(isinstance(one, str) or _all_text(one) for one in arguments):
                return getattr(owner, name)(*arguments)
        elif name in {"split", "rsplit"} and all(isinstance(one, str | int) for one in arguments):
            return getattr(owner, name)(*arguments)
        elif name == "replace" and len(arguments) == 2:
            return _replaced(owner, arguments, place)
        elif name == "join":
            return _joined(owner, arguments[0] if arguments else None, place)
        elif name == "format" and len(owner) < 200 and ":" not in owner:
            return _formatted(owner, arguments, place)
        return Unknown(f"str.{name}", place)

    return Native(f"str.{name}", run)


def _all_text(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(one, str) for one in value)


def _replaced(owner: str, arguments: list[object], place: Place) -> object:
    old, new = arguments
    if isinstance(old, str) and isinstance(new, str) and len(owner) * (len(new) + 1) <= 1 << 20:
        return owner.replace(old, new)[:MAX_TEXT]
    return Unknown("str.replace", place)


def _joined(owner: str, parts: object, place: Place) -> object:
    if isinstance(parts, list | tuple) and all(isinstance(one, str) for one in parts):
        size = sum(len(one) + len(owner) for one in parts if isinstance(one, str))
        if size <= MAX_TEXT:
            return owner.join(one for one in parts if isinstance(one, str))
    return Unknown("str.join", place)


def _formatted(owner: str, arguments: list[object], place: Place) -> object:
    if all(isinstance(one, int | str) for one in arguments) and "." not in owner and "[" not in owner:
        try:
            return owner.format(*arguments)[:MAX_TEXT]
        except (IndexError, KeyError, ValueError):
            pass
    return Unknown("str.format", place)


_FUNCTIONS = names("ceil floor sqrt log log2 log10 exp prod gcd pow fabs cos sin")


def mathematics(root: str, name: str, arguments: list[object], place: Place) -> object:
    """``math.NAME(...)`` or ``numpy.NAME(...)`` of known numbers."""
    unknown = Unknown(f"{root}.{name}", place)
    numbers = [one for one in arguments if isinstance(one, int | float)]
    if len(numbers) != len(arguments):
        return next((one for one in arguments if isinstance(one, Unknown)), unknown)
    if name not in _FUNCTIONS or any(isinstance(one, int) and one.bit_length() > 64 for one in numbers):
        return unknown
    try:
        if name == "prod":
            return math.prod(numbers) if len(numbers) <= 64 else unknown
        result: object = getattr(math, name)(*numbers)
        return float(result) if root == "numpy" and isinstance(result, int) else result
    except (ValueError, OverflowError, TypeError):
        return unknown
