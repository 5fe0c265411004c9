"""What an expression of modelling code can stand for, without anything being run.

Numbers, text, None, lists, tuples, dictionaries, sets and ranges are Python's own. Everything else is one of
the classes here; :class:`Unknown` carries the reason, and :class:`Either` the values of several branches.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from drupe.implied.limits import MAX_OPTIONS

Dims = tuple[int | None, ...]
"""A shape; an extent that could not be worked out is None."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is written."""

    file: str
    line: int


NOWHERE: Final = Place("", 0)


class Missing:
    """No such attribute, key or item (in one of the branches)."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()


@dataclass(frozen=True, slots=True, eq=False)
class Unknown:
    """A value that could not be worked out, and why.

    ``may_be_module``: it may bring parameters along. ``tail``: at the end of a list, any number of values.
    """

    reason: str
    place: Place = NOWHERE
    may_be_module: bool = False
    tail: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Either:
    """One of several values: a condition that decides it is not known."""

    options: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class External:
    """A name of a library that is not among the files, by its dotted path: ``torch.nn.Linear``."""

    name: str

    @property
    def last(self) -> str:
        """The last part of the path."""
        return self.name.rpartition(".")[2]


@dataclass(slots=True, eq=False)
class Tensor:
    """A tensor of which only the shape is known, or not even that (None)."""

    shape: Dims | None = None
    place: Place = NOWHERE


@dataclass(slots=True, eq=False)
class Parameter(Tensor):
    """What ``nn.Parameter`` makes."""


@dataclass(slots=True, eq=False)
class Buffer(Tensor):
    """What ``register_buffer`` makes."""

    persistent: bool = True


class Frame:
    """The names of one call, class body or file."""

    __slots__ = ("function", "is_class", "names", "parent", "returns", "scope", "skips")

    def __init__(
        self, scope: ModuleScope, parent: Frame | None = None, function: Function | None = None
    ) -> None:
        self.scope = scope
        self.parent = parent
        self.function = function
        self.names: dict[str, object] = {}
        self.returns: list[object] = []
        """Values of returns that stand under a condition which is not known."""
        self.skips = 0
        """Rounds of a loop that may have been left early, likewise."""
        self.is_class = False


@dataclass(slots=True, eq=False)
class ModuleScope:
    """One source file: the statements that bind each of its names, followed when a name is asked for."""

    file: str
    bindings: Mapping[str, list[Binding]]
    stars: list[ast.ImportFrom]
    values: dict[str, object] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    frame: Frame | None = None


@dataclass(frozen=True, slots=True)
class Binding:
    """A statement at the top of a file that binds a name; ``conditional`` when under ``if`` or ``try``."""

    statement: ast.stmt
    conditional: bool


@dataclass(slots=True, eq=False)
class Function:
    """A function or lambda of the code. ``kind``: "", property, classmethod or staticmethod."""

    name: str
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    frame: Frame
    defaults: list[object]
    keyword_defaults: dict[str, object]
    kind: str = ""
    owner: ClassValue | None = None
    is_generator: bool = False
    setter: Function | None = None
    """What assigning to a property calls."""


@dataclass(slots=True, eq=False)
class ClassValue:
    """A class of the code. ``mro`` holds classes of the code and externals; ``fields`` annotated defaults."""

    name: str
    place: Place
    bases: list[object]
    names: dict[str, object]
    fields: dict[str, object] = field(default_factory=dict)
    mro: list[ClassValue | External] = field(default_factory=list)

    def find(self, name: str, after: ClassValue | External | None = None) -> tuple[object, object] | None:
        """(value, class) of a class attribute along the mro; externals are left to the caller."""
        started = after is None
        for one in self.mro:
            if started and isinstance(one, ClassValue) and name in one.names:
                return one.names[name], one
            started = started or one is after
        return None

    def externals(self) -> Iterator[External]:
        """The library classes that it derives from."""
        return (one for one in self.mro if isinstance(one, External))


class Instance:
    """An object of a class: attributes, and for a module whether there may be more of them (``open``)."""

    __slots__ = ("attrs", "cls", "is_config", "is_module", "left_empty", "open", "place")

    def __init__(self, cls: ClassValue | External, place: Place) -> None:
        self.cls = cls
        self.place = place
        self.attrs: dict[str, object] = {}
        self.open: list[Unknown] = []
        self.is_module = False
        self.left_empty: dict[str, bool] = {}
        """Buffers that are None, and whether they are saved: a tensor put there later is one."""
        self.is_config = False

    @property
    def mro(self) -> list[ClassValue | External]:
        """The classes in which an attribute is looked up, in order."""
        return self.cls.mro if isinstance(self.cls, ClassValue) else [self.cls]


def clone(module: object) -> object:
    """The same module once more: its modules and tensors anew, everything else shared."""
    if isinstance(module, Instance) and module.is_module:
        made = Instance(module.cls, module.place)
        made.is_module, made.open = True, list(module.open)
        made.left_empty = dict(module.left_empty)
        made.attrs = {key: clone(value) for key, value in module.attrs.items()}
        return made
    if isinstance(module, Buffer):
        return Buffer(module.shape, module.place, module.persistent)
    return Parameter(module.shape, module.place) if isinstance(module, Parameter) else module


def count_modules(value: object, depth: int = 0) -> int | None:
    """Modules and tensors of a plain tree of modules; None when it is anything else."""
    if isinstance(value, Parameter | Buffer):
        return 1
    if not isinstance(value, Instance):
        return None if isinstance(value, Either | Unknown | list | dict) else 0
    if not value.is_module:
        return 0 if value.is_config else None
    if depth > 16 or value.open:
        return None
    total = 1
    for one in value.attrs.values():
        inner = count_modules(one, depth + 1)
        if inner is None or inner > 4096:
            return None
        total += inner
    return total


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """A method with its object (or class)."""

    function: object
    receiver: object


@dataclass(frozen=True, slots=True, eq=False)
class Partial:
    """``functools.partial``."""

    function: object
    arguments: tuple[object, ...]
    keywords: Mapping[str, object]


@dataclass(frozen=True, slots=True, eq=False)
class Super:
    """``super()``: attributes of ``receiver`` from the classes after ``after``."""

    receiver: object
    after: ClassValue


@dataclass(frozen=True, slots=True, eq=False)
class Native:
    """A function that this package knows: (arguments, keywords, place) -> value."""

    name: str
    function: Callable[[list[object], dict[str, object], Place], object]


def either(*values: object) -> object:
    """One value when all are the same, else :class:`Either`; too many become unknown."""
    options: list[object] = []
    for value in values:
        for option in value.options if isinstance(value, Either) else (value,):
            if not any(same(option, known) for known in options):
                options.append(option)
    if len(options) == 1:
        return options[0]
    if len(options) > MAX_OPTIONS:
        return Unknown(f"more than {MAX_OPTIONS} possible values", may_be_module=True)
    return Either(tuple(options))


def same(a: object, b: object) -> bool:
    """Surely the same value."""
    if a is b:
        return True
    if isinstance(a, Unknown) and isinstance(b, Unknown):
        return a.reason == b.reason and a.may_be_module == b.may_be_module
    if isinstance(a, int | float | str | External) and type(a) is type(b):
        return a == b
    return isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))


def tail_of(items: list[object]) -> Unknown | None:
    """The mark of a list whose length is not known."""
    last = items[-1] if items else None
    return last if isinstance(last, Unknown) and last.tail else None


def options_of(value: object) -> tuple[object, ...]:
    """The values that a value may be, the missing one left out."""
    if isinstance(value, Either):
        return tuple(option for option in value.options if option is not MISSING)
    return (value,)


def truth(value: object) -> bool | None:
    """Whether it counts as true; None when that is not known."""
    if isinstance(value, Either):
        known = {truth(option) for option in options_of(value)}
        return known.pop() if len(known) == 1 else None
    if isinstance(value, Unknown | Tensor | External | Missing):
        return None if not isinstance(value, Missing) else False
    if isinstance(value, Instance):
        return True
    if isinstance(value, bool | int | float | str | bytes | list | tuple | dict | set | range | type(None)):
        return bool(value)
    return True


def describe(value: object) -> str:
    """A few words on a value, for a reason."""
    if isinstance(value, Unknown):
        return value.reason
    if isinstance(value, External):
        return value.name.removeprefix("builtins.")
    if isinstance(value, ClassValue | Function):
        return value.name
    if isinstance(value, Instance):
        return f"an object of {describe(value.cls)}"
    if isinstance(value, Tensor):
        return "a tensor"
    return repr(value)[:60] if isinstance(value, int | float | str | type(None)) else type(value).__name__
