"""What the parts of the interpreter know of each other: the shared state, and the methods each of them offers."""

from __future__ import annotations

import ast
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

from drupe.implied.doubts import registers
from drupe.implied.journal import Branch, Journal, Owner
from drupe.implied.limits import MAX_UNKNOWN, Budget
from drupe.implied.syntax import Sources
from drupe.implied.values import ClassValue, External, Frame, Instance, Place, Unknown

T = TypeVar("T")
Completion = tuple[str, object] | None
"""How a block ended: None at its end, else (return | break | continue | raise, value)."""


class Core(ABC):
    """State of one run, and the operations that its parts use of each other."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.budget = Budget()
        self.journal = Journal()
        self.notes: list[Unknown] = []
        self.active: dict[int, int] = {}
        self.doubts: dict[tuple[Place, str], Unknown] = {}
        self.tries: list[tuple[int, int]] = []
        """Where the ``try`` blocks stand that are at work, as levels of the journal."""
        self.uncertain = 0
        self._registering: dict[int, bool] = {}
        self.examined: dict[str, ClassValue] = {}
        """Values that could not be worked out so far."""

    def note(self, reason: str, place: Place) -> Unknown:
        """Report a place whose names could not be worked out."""
        unknown = Unknown(reason, place, True)
        if not any(one.place == place and one.reason == reason for one in self.notes[-20:]):
            self.notes.append(unknown)
        return unknown

    def give_up(self, reason: str, place: Place) -> None:
        """Report a place after which any name may exist."""
        self.notes.append(Unknown(reason, place, True, True))

    def doubt(self, reason: str, place: Place, what: str = "all") -> None:
        """Report code that is not followed exactly: nothing is said about what it can load.

        ``what``: ``all``, or ``misfit`` where only tensors that do not fit may be explained by it.
        """
        if len(self.doubts) < MAX_UNKNOWN:
            self.doubts.setdefault((place, what), Unknown(reason, place))

    def may_register(self, node: ast.AST) -> bool:
        """A function may add, replace or remove what a module registers."""
        if id(node) not in self._registering:
            self._registering[id(node)] = registers(node, self.sources.functions, self.budget.charge)
        return self._registering[id(node)]

    def touch(self, owner: Owner) -> None:
        """Call before an object changes."""
        self.budget.charge(self.journal.touch(owner))

    def made(self, owner: T) -> T:
        """A new object, remembered as such."""
        self.journal.born(owner)
        return owner

    @abstractmethod
    def evaluate(self, node: ast.expr, frame: Frame) -> object:
        """The value of an expression."""

    @abstractmethod
    def condition(self, node: ast.expr, frame: Frame) -> bool | None:
        """Whether an expression counts as true; None when not known."""

    @abstractmethod
    def execute(self, body: Sequence[ast.stmt], frame: Frame) -> Completion:
        """Follow statements."""

    @abstractmethod
    def both(self, first: Sequence[ast.stmt], second: Sequence[ast.stmt], frame: Frame) -> Completion:
        """Follow two branches of which one is taken."""

    @abstractmethod
    def numbered(self, instance: Instance) -> list[object]:
        """The modules of a list, in order."""

    @abstractmethod
    def joined(
        self, first: tuple[Completion, Branch], second: tuple[Completion, Branch], frame: Frame
    ) -> Completion:
        """How a block ended of which one of two branches was taken."""

    @abstractmethod
    def maybe(self, body: Sequence[ast.stmt], frame: Frame) -> Completion:
        """Follow statements that may not be reached."""

    @abstractmethod
    def fail(self, kind: str, why: str, place: Place) -> None:
        """The code raises an error here."""

    @abstractmethod
    def assign(self, target: ast.expr, value: object, frame: Frame) -> None:
        """Bind a target."""

    @abstractmethod
    def make_function(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, frame: Frame
    ) -> object:
        """A function with its defaults evaluated and its decorators applied."""

    @abstractmethod
    def make_class(self, node: ast.ClassDef, frame: Frame) -> object:
        """A class, its body followed."""

    @abstractmethod
    def find_name(self, name: str, frame: Frame, place: Place) -> object:
        """The value of a name."""

    @abstractmethod
    def imported(self, statement: ast.ImportFrom | ast.Import, name: str, file: str) -> object:
        """What an import binds to a name."""

    @abstractmethod
    def find_global(self, file: str, name: str) -> object:
        """A name at the top of one of the files, or MISSING."""

    @abstractmethod
    def call(
        self, function: object, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        """The result of a call."""

    @abstractmethod
    def get_attribute(self, owner: object, name: str, place: Place) -> object:
        """``owner.name``, or MISSING when there surely is none."""

    @abstractmethod
    def set_attribute(self, owner: object, name: str, value: object, place: Place) -> None:
        """``owner.name = value``."""

    @abstractmethod
    def native_method(self, instance: Instance, cls: External, name: str) -> object:
        """A method that a library class gives to its objects, or MISSING."""

    @abstractmethod
    def items(self, value: object, place: Place) -> list[object] | Unknown:
        """The items of an iterable."""

    @abstractmethod
    def classes_in(self, file: str) -> list[ClassValue]:
        """The classes that a file defines."""

    @abstractmethod
    def library(self, name: str) -> object:
        """What a library's name stands for."""

    @abstractmethod
    def construct(
        self, cls: ClassValue, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        """An object of a class."""

    @abstractmethod
    def call_library(
        self, function: External, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        """A call of a library."""

    @abstractmethod
    def layer_configs(self, owner: Instance, value: object) -> object:
        """``config.per_layer_config``: one configuration for each layer."""

    @abstractmethod
    def python_function(
        self, name: str, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        """A call of one of Python's own functions."""

    @abstractmethod
    def pairs_of(self, value: object, place: Place) -> dict[object, object]:
        """Keys and values of a list of pairs."""

    @abstractmethod
    def item(self, owner: object, index: object, place: Place) -> object:
        """``owner[index]``."""

    @abstractmethod
    def config_default(self, owner: Instance, name: str, place: Place) -> object:
        """What a configuration answers when neither it nor its class has the attribute."""
