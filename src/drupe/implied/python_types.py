"""Python's own functions, on values that may be unknown."""

from __future__ import annotations

from collections.abc import Callable

from drupe.implied.expressions import hashable
from drupe.implied.python_containers import Containers
from drupe.implied.values import (
    MISSING,
    Bound,
    ClassValue,
    Either,
    External,
    Function,
    Instance,
    Native,
    Partial,
    Place,
    Tensor,
    Unknown,
    either,
    options_of,
    tail_of,
    truth,
)

_FRESH = {"list", "dict", "set", "enumerate", "zip", "map", "filter", "reversed", "sorted"}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "list": list,
    "tuple": tuple,
    "dict": dict,
    "set": set,
    "Mapping": dict,
    "Sequence": (list, tuple, str),
    "Iterable": (list, tuple, dict, set, str),
    "OrderedDict": dict,
    "NoneType": type(None),
}


class PythonTypes(Containers):
    """Functions of Python."""

    def python_function(
        self, name: str, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        """A call of one of Python's own functions."""
        method: Callable[..., object] | None = getattr(self, f"_python_{name}", None)
        if method is not None:
            result: object = method(arguments, keywords, place)
            return self.made(result) if name in _FRESH else result
        if name in {
            "int",
            "float",
            "str",
            "bool",
            "abs",
            "round",
            "min",
            "max",
            "sum",
            "any",
            "all",
            "pow",
            "divmod",
        }:
            return self._numeric(name, arguments, keywords, place)
        if name == "delattr":
            self._delete_attribute(arguments, place)
            return None
        if name in {"print", "breakpoint"}:
            return None
        if name.endswith(("Error", "Exception", "Warning")):
            return Unknown(name, place)
        if name in {
            "id",
            "hash",
            "repr",
            "open",
            "input",
            "vars",
            "dir",
            "globals",
            "object",
            "iter",
            "bytes",
        }:
            return Unknown(name, place)
        return Unknown(f"{name} is not defined in the files", place, True)

    def _numeric(
        self, name: str, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        if len(arguments) == 1 and isinstance(arguments[0], Either):
            return either(*(self._numeric(name, [one], keywords, place) for one in arguments[0].options))
        if name == "bool":
            known = truth(arguments[0]) if arguments else False
            return Unknown("a condition", place) if known is None else known
        if name in {"min", "max", "sum", "any", "all"}:
            return self._reduced(name, arguments, keywords, place)
        if not all(isinstance(one, int | float) or _short_text(one) for one in arguments):
            return next((one for one in arguments if isinstance(one, Unknown)), Unknown(name, place))
        try:
            values = arguments[:2]
            if name == "pow" or any(isinstance(one, int) and one.bit_length() > 64 for one in values):
                return Unknown(name, place)
            functions: dict[str, Callable[..., object]] = {
                **{"int": int, "float": float, "str": str, "abs": abs, "round": round},
                "divmod": divmod,
            }
            return functions[name](*values)
        except (TypeError, ValueError, ArithmeticError):
            return Unknown(name, place)

    def _reduced(
        self, name: str, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        items = self.items(arguments[0], place) if len(arguments) == 1 else list(arguments)
        if name == "sum" and len(arguments) == 2:
            items = self.items(arguments[0], place)
        if not isinstance(items, list):
            return items
        if name in {"any", "all"}:
            known = {truth(one) for one in items}
            decisive = name == "any"
            return decisive if decisive in known else Unknown(name, place) if None in known else not decisive
        start = arguments[1] if name == "sum" and len(arguments) == 2 else 0
        if name == "sum" and isinstance(start, list):
            joined = [one for item in items if isinstance(item, list) for one in item]
            self.budget.charge(len(joined))
            return [*start, *joined]
        numbers = [one for one in items if isinstance(one, int | float) and abs(one) < 1 << 62]
        if len(numbers) != len(items) or "key" in keywords:
            return Unknown(name, place)
        if not numbers and name != "sum":
            return keywords.get("default", Unknown(name, place))
        return sum(numbers) if name == "sum" else (min if name == "min" else max)(numbers)

    def _python_len(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        value = arguments[0] if arguments else None
        if isinstance(value, str | range):
            return len(value)
        if isinstance(value, Tensor):
            return (
                value.shape[0] if value.shape and value.shape[0] is not None else Unknown("a length", place)
            )
        items = self.items(value, place)
        if isinstance(items, Unknown) or tail_of(items) is not None:
            return Unknown("a length that is not known", place)
        return len(items)

    def _python_range(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        if any(isinstance(one, Either) for one in arguments) and len(arguments) == 1:
            return either(*(self._python_range([one], {}, place) for one in options_of(arguments[0])))
        bounds = [one for one in arguments if isinstance(one, int) and one.bit_length() < 62]
        if len(bounds) != len(arguments) or not 1 <= len(bounds) <= 3 or (len(bounds) == 3 and not bounds[2]):
            return next((one for one in arguments if isinstance(one, Unknown)), Unknown("a range", place))
        return range(*bounds)

    def _python_list(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        return self.items(arguments[0], place) if arguments else []

    def _python_tuple(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        items = self.items(arguments[0], place) if arguments else []
        return tuple(items) if isinstance(items, list) else items

    def _python_set(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        items = self.items(arguments[0], place) if arguments else []
        return {one for one in items if hashable(one)} if isinstance(items, list) else items

    _python_frozenset = _python_set

    def _python_dict(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        first = arguments[0] if arguments else None
        if isinstance(first, Unknown | Either):
            return first
        return {**(first if isinstance(first, dict) else self.pairs_of(first, place)), **keywords}

    def _python_enumerate(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        items = self.items(arguments[0], place) if arguments else []
        start = arguments[1] if len(arguments) > 1 else keywords.get("start", 0)
        if not isinstance(items, list) or not isinstance(start, int):
            return items
        tail = tail_of(items)
        pairs: list[object] = [(i, one) for i, one in enumerate(items, start)]
        return pairs if tail is None else [*pairs[:-1], tail]

    def _python_zip(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        columns = [self.items(one, place) for one in arguments]
        for column in columns:
            tail = tail_of(column) if isinstance(column, list) else column
            if tail is not None:
                return tail
        return list(zip(*(column for column in columns if isinstance(column, list)), strict=False))

    def _python_map(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        rows = self._python_zip(arguments[1:], {}, place)
        if not isinstance(rows, list):
            return rows
        return [self.call(arguments[0], list(row), {}, place) for row in rows]

    def _python_filter(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        items = self.items(arguments[1], place) if len(arguments) > 1 else []
        if not isinstance(items, list):
            return items
        kept = [one if arguments[0] is None else self.call(arguments[0], [one], {}, place) for one in items]
        return [one for one, keep in zip(items, kept, strict=True) if truth(keep) is not False]

    def _python_reversed(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        items = self.items(arguments[0], place) if arguments else []
        if not isinstance(items, list):
            return items
        return items[::-1] if tail_of(items) is None else tail_of(items)

    def _python_sorted(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        items = self.items(arguments[0], place) if arguments else []
        numbers = isinstance(items, list) and all(isinstance(one, int | float) for one in items)
        texts = isinstance(items, list) and all(isinstance(one, str) for one in items)
        if not isinstance(items, list) or not (numbers or texts) or "key" in keywords:
            return items if isinstance(items, Unknown) else Unknown("sorted", place)
        ordered = sorted(items)  # type: ignore[type-var]
        return ordered[::-1] if truth(keywords.get("reverse", False)) else ordered

    def _python_next(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        items = self.items(arguments[0], place) if arguments else []
        if isinstance(items, list) and items:
            return items[0]
        return arguments[1] if len(arguments) > 1 else Unknown("next", place, True)

    def _python_getattr(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        name = arguments[1] if len(arguments) > 1 else None
        if not isinstance(name, str):
            return Unknown("an attribute whose name is not known", place, True)
        owners = arguments[0].options if isinstance(arguments[0], Either) else (arguments[0],)
        default = arguments[2] if len(arguments) > 2 else Unknown(f"there is no {name}", place)
        found = [self.get_attribute(owner, name, place) for owner in owners if owner is not MISSING]
        return either(*(default if value is MISSING else value for value in found))

    def _python_hasattr(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        name = arguments[1] if len(arguments) > 1 else None
        if not isinstance(name, str) or isinstance(arguments[0], Unknown | Either):
            return Unknown("hasattr", place)
        if isinstance(arguments[0], External):
            return True if arguments[0].name.startswith("torch") else Unknown("hasattr", place)
        value = self.get_attribute(arguments[0], name, place)
        return (
            Unknown(f"whether there is {name}", place) if isinstance(value, Unknown) else value is not MISSING
        )

    def _python_setattr(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        if len(arguments) != 3:
            return None
        owner, name, value = arguments
        if isinstance(name, str):
            self.set_attribute(owner, name, value, place)
        elif isinstance(owner, Instance) and owner.is_module and not isinstance(value, int | float | str):
            self.touch(owner)
            owner.open.append(self.note("setattr with a name that is not known", place))
            self.doubt("setattr with a name that is not known", place)
        return None

    def _delete_attribute(self, arguments: list[object], place: Place) -> None:
        owner, name = (*arguments, None, None)[:2]
        if isinstance(owner, Instance) and isinstance(name, str):
            self.touch(owner)
            owner.attrs.pop(name, None)
        else:
            self.doubt("delattr of something that is not known", place)

    def _python_isinstance(
        self, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        if len(arguments) != 2:
            return Unknown("isinstance", place)
        kinds = arguments[1] if isinstance(arguments[1], tuple) else (arguments[1],)
        results = {self._is_a(option, kind) for option in options_of(arguments[0]) for kind in kinds}
        if isinstance(arguments[0], Either):
            return Unknown("isinstance", place) if len(results) != 1 or None in results else results.pop()
        return True if True in results else Unknown("isinstance", place) if None in results else False

    def _is_a(self, value: object, kind: object) -> bool | None:
        if isinstance(value, Unknown) or not isinstance(kind, ClassValue | External):
            return None
        if isinstance(value, Instance):
            if isinstance(kind, External) and kind.last == "Module":
                return value.is_module
            if any(one is kind or one == kind for one in value.mro):
                return True
            if isinstance(kind, External) and kind.last in _TYPES:
                return False
            last = getattr(kind, "last", "")
            return any(getattr(one, "last", "-") == last for one in value.mro)
        if isinstance(kind, External) and kind.last in _TYPES:
            if isinstance(value, bool) and kind.last == "int":
                return True
            return isinstance(value, _TYPES[kind.last])
        if isinstance(kind, External) and kind.last in {"Tensor", "Parameter"}:
            return isinstance(value, Tensor)
        return False if isinstance(kind, ClassValue | External) else None

    def _python_issubclass(
        self, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        cls = arguments[0] if arguments else None
        if isinstance(cls, ClassValue) and len(arguments) == 2:
            kinds = arguments[1] if isinstance(arguments[1], tuple) else (arguments[1],)
            return any(one is kind or one == kind for one in cls.mro for kind in kinds)
        return Unknown("issubclass", place)

    def _python_type(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        value = arguments[0] if arguments else None
        if isinstance(value, Instance):
            return value.cls
        if isinstance(value, int | float | str | list | tuple | dict | set | type(None)):
            return External(f"builtins.{type(value).__name__}")
        return Unknown("type", place)

    def _python_callable(self, arguments: list[object], keywords: dict[str, object], place: Place) -> object:
        value = arguments[0] if arguments else None
        if isinstance(value, Unknown | Either | External):
            return Unknown("callable", place)
        return isinstance(value, Function | Bound | ClassValue | Native | Partial | Instance)


def _short_text(value: object) -> bool:
    return isinstance(value, str) and len(value) < 100
