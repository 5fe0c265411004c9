"""Names, functions, classes and calls."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from drupe.implied.core import Core
from drupe.implied.library import PRELUDE_FILE, PRELUDE_NAMES
from drupe.implied.limits import MAX_RECURSION
from drupe.implied.values import (
    MISSING,
    Binding,
    Bound,
    ClassValue,
    Either,
    External,
    Frame,
    Function,
    Instance,
    ModuleScope,
    Native,
    Partial,
    Place,
    Super,
    Tensor,
    Unknown,
    describe,
    either,
)

_KINDS = {
    "property": "property",
    "cached_property": "property",
    "classproperty": "property",
    "setter": "setter",
    "getter": "property",
    "staticmethod": "staticmethod",
    "classmethod": "classmethod",
}


class Calls(Core):
    """Looks names up and follows calls."""

    def find_name(self, name: str, frame: Frame, place: Place) -> object:
        """The value of a name: enclosing calls, then the file, then Python's own."""
        inner: Frame | None = frame
        while inner is not None:
            if name in inner.names and (inner is frame or not inner.is_class):
                value = inner.names[name]
                return Unknown(f"{name} is not set", place) if value is MISSING else value
            inner = inner.parent
        value = self._global(frame.scope, name)
        return External(f"builtins.{name}") if value is MISSING else value

    def find_global(self, file: str, name: str) -> object:
        """A name at the top of one of the files, or MISSING."""
        scope = self.sources.scope(file)
        return MISSING if scope is None else self._global(scope, name)

    def _global(self, scope: ModuleScope, name: str) -> object:
        if name in scope.values:
            return scope.values[name]
        if name in scope.pending:
            return Unknown(f"{name} is defined by itself", Place(scope.file, 1), True)
        if name not in scope.bindings:
            return self._starred(scope, name)
        scope.pending.add(name)
        try:
            with self.journal.suspended():  # what a file defines belongs to no branch
                scope.values[name] = self._follow_bindings(scope, name)
        finally:
            scope.pending.discard(name)
        return scope.values[name]

    def _follow_bindings(self, scope: ModuleScope, name: str) -> object:
        """What the statements that bind a name leave: certain ones in order, else one of the conditional."""
        bindings = scope.bindings[name]
        certain = [one for one in bindings if not one.conditional]
        if certain:
            value = self._follow(scope, name, certain)
            later = bindings[bindings.index(certain[-1]) + 1 :]
            for one in later:
                if isinstance(one.statement, ast.ClassDef | ast.FunctionDef | ast.Assign):
                    self.doubt(
                        f"{name} is defined again under a condition", Place(scope.file, one.statement.lineno)
                    )
            if value is not None:
                return value
        conditional = [self._follow(scope, name, [one]) for one in bindings if one.conditional]
        return either(*conditional) if conditional else None

    def _follow(self, scope: ModuleScope, name: str, bindings: Sequence[Binding]) -> object:
        frame = Frame(scope)
        if scope.frame is None:
            scope.frame = frame
        for binding in bindings:
            self.execute([binding.statement], frame)
        return frame.names.get(name, MISSING)

    def _starred(self, scope: ModuleScope, name: str) -> object:
        for statement in scope.stars:
            file = self.sources.find_module(statement.module or "", statement.level, scope.file)
            if file is not None and file != scope.file and ("*" + file) not in scope.pending:
                scope.pending.add("*" + file)
                try:
                    value = self.find_global(file, name)
                finally:
                    scope.pending.discard("*" + file)
                if value is not MISSING:
                    return value
        return MISSING

    def imported(self, statement: ast.ImportFrom | ast.Import, name: str, file: str) -> object:
        """What an import binds to a name: something of the files, else an external."""
        alias = next(one for one in statement.names if (one.asname or one.name).split(".")[0] == name)
        if isinstance(statement, ast.Import):
            return External(alias.name if alias.asname else alias.name.split(".")[0])
        module = statement.module or ""
        found = self.sources.find_module(module, statement.level, file)
        if found is not None and found != file:
            value = self.find_global(found, alias.name)
            if value is not MISSING:
                return value
        if statement.level and self.sources.find_module(
            f"{module}.{alias.name}".strip("."), statement.level, file
        ):
            return External(f"file:{self.sources.find_module(alias.name, statement.level, file)}")
        return self.library(f"{'transformers.' if statement.level else ''}{module}.{alias.name}".strip("."))

    def library(self, name: str) -> object:
        """A library's name; few composite classes are followed in our words, given files first."""
        external = External(name)
        root = name.partition(".")[0]
        declared = self.sources.declared.get(external.last, [])
        if root == "transformers" and len(declared) == 1 and external.last not in PRELUDE_NAMES:
            value = self.find_global(declared[0], external.last)
            if isinstance(value, ClassValue):
                return value
        if external.last in PRELUDE_NAMES and root in {"transformers", "torch"}:
            return self.find_global(PRELUDE_FILE, external.last)
        return external

    def make_function(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, frame: Frame
    ) -> object:
        """A function with its defaults evaluated and its decorators applied."""
        defaults = [self.evaluate(one, frame) for one in node.args.defaults]
        keyword_defaults = {
            argument.arg: self.evaluate(default, frame)
            for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            if default is not None
        }
        outer: Frame | None = frame
        while outer is not None and outer.is_class:
            outer = outer.parent
        name = getattr(node, "name", "lambda")
        made = Function(name, node, outer or Frame(frame.scope), defaults, keyword_defaults)
        if isinstance(node, ast.Lambda):
            return made
        made.is_generator = _yields(node)
        for decorator in reversed(node.decorator_list):
            last = decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "")
            kind = _KINDS.get(last, "")
            if kind == "setter":  # the getter keeps the name
                getter = frame.names.get(name, made)
                if isinstance(getter, Function) and getter is not made:
                    getter.setter = made
                return getter
            made.kind = made.kind or kind
        return self._decorated(made, node, frame)

    def _decorated(
        self, made: Function, node: ast.FunctionDef | ast.AsyncFunctionDef, frame: Frame
    ) -> object:
        """Decorators that the code itself defines are applied; those of libraries leave a function as it is."""
        result: object = made
        for decorator in reversed(node.decorator_list):
            inner = decorator.func if isinstance(decorator, ast.Call) else decorator
            if isinstance(inner, ast.Name) and isinstance(self.evaluate(inner, frame), Function):
                place = Place(frame.scope.file, decorator.lineno)
                applied = self.call(self.evaluate(decorator, frame), [result], {}, place)
                result = applied if isinstance(applied, Function) else result
                if not isinstance(applied, Function):
                    return Unknown(f"what {inner.id} makes of {made.name}", place, True)
        return result

    def call(
        self, function: object, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        """The result of a call."""
        self.budget.charge()
        self.budget.where = f"{place.file}:{place.line}"
        if isinstance(function, Function):
            return self._call_function(function, arguments, keywords, place)
        if isinstance(function, Bound):
            return self.call(function.function, [function.receiver, *arguments], keywords, place)
        if isinstance(function, ClassValue):
            return self.construct(function, arguments, keywords, place)
        if isinstance(function, Native):
            return function.function(arguments, keywords, place)
        if isinstance(function, External):
            return self.call_library(function, arguments, keywords, place)
        if isinstance(function, Partial):
            merged = {**function.keywords, **keywords}
            return self.call(function.function, [*function.arguments, *arguments], merged, place)
        if isinstance(function, Either):
            return self._call_each(function, arguments, keywords, place)
        if isinstance(function, Instance):
            return self._call_instance(function, arguments, keywords, place)
        reason = describe(function) if isinstance(function, Unknown) else f"{describe(function)} is called"
        return Unknown(reason, place, isinstance(function, Unknown) and function.may_be_module)

    def _call_each(
        self, function: Either, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        results, branches = [], []
        for option in function.options:
            if option is None or option is MISSING:
                continue
            result, changes = self.journal.run(
                lambda option=option: self.call(option, arguments, keywords, place)  # type: ignore[misc]
            )
            results.append(result)
            branches.append(changes)
        if not results:
            return Unknown("nothing to call", place)
        self.journal.join(*branches)
        return either(*results)

    def _call_instance(
        self, instance: Instance, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        if instance.is_module:
            return Tensor(None, place)  # the forward pass gives values, never modules
        method = self.get_attribute(instance, "__call__", place)
        if method is MISSING:
            return Unknown(f"{describe(instance)} is called", place, True)
        return self.call(method, arguments, keywords, place)

    def _call_function(
        self, function: Function, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        if function.is_generator:
            return self._generate(function, arguments, keywords, place)
        frame = self.made(Frame(function.frame.scope, function.frame, function))
        _bind(function, arguments, keywords, frame, place)
        rest = function.node.args.kwarg
        if rest is not None:
            self.journal.born(frame.names[rest.arg])
        self.budget.charge(len(frame.names))
        depth = self.active.get(id(function), 0)
        if depth >= MAX_RECURSION:
            return Unknown(f"{function.name} calls itself without end", place, True)
        self.active[id(function)] = depth + 1
        self.budget.enter()
        try:
            if isinstance(function.node, ast.Lambda):
                return self.evaluate(function.node.body, frame)
            done = self.execute(function.node.body, frame)
        finally:
            self.budget.leave()
            self.active[id(function)] = depth
        if done is not None and done[0] == "raise":
            if frame.returns:
                return either(*frame.returns)
            place = getattr(done[1], "place", Place(function.frame.scope.file, 0))
            self.fail(getattr(done[1], "kind", ""), f"{function.name} would raise an error here", place)
            raised = self.raised(function, place)
            if arguments and isinstance(arguments[0], Instance) and function.name == "__init__":
                arguments[0].open.append(raised)
            return raised
        value = done[1] if done is not None and done[0] == "return" else None
        return either(*frame.returns, value)

    def _generate(
        self, function: Function, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        if self.may_register(function.node):
            self.doubt(f"{function.name} is a generator that changes modules", place)
        return Unknown(f"{function.name} is a generator", place, True)

    def raised(self, function: Function, place: Place) -> Unknown:
        """A function that ends in an error, as far as it could be followed."""
        return self.note(f"{function.name} would raise an error here", place)

    def bound_super(self, arguments: list[object], place: Place) -> object:
        """``super()`` or ``super(Class, self)``."""
        after = arguments[0] if arguments else None
        if isinstance(after, ClassValue) and len(arguments) > 1:
            return Super(arguments[1], after)
        return Unknown("super() outside of a class", place)


def _yields(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(isinstance(one, ast.Yield | ast.YieldFrom) for one in ast.walk(node))


def _bind(
    function: Function, arguments: list[object], keywords: dict[str, object], frame: Frame, place: Place
) -> None:
    """Give the parameters of a call their values, by position, by name, then by default."""
    spec = function.node.args
    names = [one.arg for one in (*spec.posonlyargs, *spec.args)]
    first_default = len(names) - len(function.defaults)
    rest = dict(keywords)
    for i, name in enumerate(names):
        if i < len(arguments):
            frame.names[name] = arguments[i]
        elif name in rest:
            frame.names[name] = rest.pop(name)
        elif i >= first_default:
            frame.names[name] = function.defaults[i - first_default]
        else:
            frame.names[name] = Unknown(f"the argument {name} of {function.name} is not given", place)
    if spec.vararg is not None:
        frame.names[spec.vararg.arg] = tuple(arguments[len(names) :])
    for one in spec.kwonlyargs:
        fallback = function.keyword_defaults.get(
            one.arg, Unknown(f"the argument {one.arg} of {function.name} is not given", place)
        )
        frame.names[one.arg] = rest.pop(one.arg, fallback)
    if spec.kwarg is not None:
        frame.names[spec.kwarg.arg] = rest
