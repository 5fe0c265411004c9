"""Errors that the code raises: they go to the handler that takes them, else the code makes no model."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Sequence

from drupe.implied.core import Completion, Core
from drupe.implied.doubts import ALWAYS_THERE
from drupe.implied.values import External, Frame, Instance, Place, Unknown, options_of


class Raised(Exception):  # noqa: N818 - it is no error of ours
    """An error of the followed code, on its way to a handler."""

    def __init__(self, kind: str, place: Place) -> None:
        super().__init__(kind)
        self.kind = kind
        self.place = place


class Trying(Core):
    """Statements that raise or catch errors."""

    def fail(self, kind: str, why: str, place: Place) -> None:
        """The code raises an error here: caught by a ``try`` around it, else no model is made."""
        if self.tries and self.tries[-1] == self.journal.level:
            raise Raised(kind, place)
        if self.tries or self.journal.level == (0, 0):
            self.doubt(why, place)

    def raised_by(self, statement: ast.Raise, frame: Frame) -> Raised:
        """The error that a statement raises."""
        value = statement.exc.func if isinstance(statement.exc, ast.Call) else statement.exc
        named = value.id if isinstance(value, ast.Name) else ""
        return Raised(named, Place(frame.scope.file, statement.lineno))

    def follow_assert(self, statement: ast.Assert, frame: Frame) -> Completion:
        """An assertion that surely fails is an error."""
        if self.condition(statement.test, frame) is False:
            return ("raise", Raised("AssertionError", Place(frame.scope.file, statement.lineno)))
        return None

    def follow_try(self, statement: ast.Try, frame: Frame) -> Completion:
        """The body, and the handler that takes its error; both when an error is possible."""
        end = self._guarded(statement, frame) if statement.handlers else self.execute(statement.body, frame)
        return self.execute(statement.finalbody, frame) or end

    def _guarded(self, statement: ast.Try, frame: Frame) -> Completion:
        before = self.uncertain
        done, changes = self.journal.run(lambda: self._attempt(statement.body, frame))
        caught = done[1] if isinstance(done, tuple) and done[0] == "raise" else None
        if isinstance(caught, Raised):
            self.journal.join(changes)
            return self._handled(statement, caught, frame)
        end: Completion = done if isinstance(done, tuple) else None
        handler = statement.handlers[0].body
        if self.uncertain == before and not any(map(_is_optional, statement.body)):
            self.journal.join(changes)
            return end or self.execute(statement.orelse, frame)
        if len(statement.handlers) > 1 and any(map(_does_something, statement.handlers[1:])):
            self.doubt("which error is handled here is not known", self._at(statement, frame))
        other, others = self.journal.run(lambda: self.execute(handler, frame))
        end = self.joined((end, changes), (other if isinstance(other, tuple) else None, others), frame)
        if statement.orelse and end is None:
            return self.maybe(statement.orelse, frame)
        return end

    def _attempt(self, body: Sequence[ast.stmt], frame: Frame) -> Completion:
        self.tries.append(self.journal.level)
        try:
            return self.execute(body, frame)
        except Raised as error:
            return ("raise", error)
        finally:
            self.tries.pop()

    def _handled(self, statement: ast.Try, error: Raised, frame: Frame) -> Completion:
        for handler in statement.handlers:
            takes = self._takes(handler, error, frame)
            if takes is None:
                self.doubt(f"whether an error is handled here is not known: {error.kind}", error.place)
            if takes is not False:
                if handler.name is not None:
                    self.touch(frame)
                    frame.names[handler.name] = Unknown("an error", error.place)
                return self.execute(handler.body, frame)
        return ("raise", error)

    def _takes(self, handler: ast.ExceptHandler, error: Raised, frame: Frame) -> bool | None:
        if handler.type is None:
            return True
        value = self.evaluate(handler.type, frame)
        raised = getattr(builtins, error.kind, None)
        for one in value if isinstance(value, tuple | list) else options_of(value):
            kind = getattr(builtins, one.last, None) if isinstance(one, External) else None
            if kind in {Exception, BaseException}:
                return True
            if not isinstance(kind, type) or not isinstance(raised, type):
                return None
            if issubclass(raised, kind):
                return True
        return False

    def follow_with(self, statement: ast.With, frame: Frame) -> Completion:
        """A block; ``suppress`` catches its errors."""
        for item in statement.items:
            call = item.context_expr
            function = self.evaluate(call.func, frame) if isinstance(call, ast.Call) else None
            if isinstance(call, ast.Call) and isinstance(function, External) and function.last == "suppress":
                kinds = ast.Tuple(list(call.args), ast.Load(), lineno=call.lineno, col_offset=0)
                handler = ast.ExceptHandler(kinds, None, [ast.Pass(lineno=call.lineno, col_offset=0)])
                return self.follow_try(ast.Try(statement.body, [handler], [], []), frame)
            value = self.evaluate(call, frame)
            if isinstance(value, Instance):
                self.doubt("a with block whose manager is defined by the code", self._at(statement, frame))
            if item.optional_vars is not None:
                self.assign(item.optional_vars, value, frame)
        return self.execute(statement.body, frame)

    def _at(self, statement: ast.stmt, frame: Frame) -> Place:
        return Place(frame.scope.file, getattr(statement, "lineno", 0))


def _is_optional(statement: ast.stmt) -> bool:
    """An import of a package that may not be there."""
    if isinstance(statement, ast.ImportFrom):
        roots = [] if statement.level else [(statement.module or "").partition(".")[0]]
    elif isinstance(statement, ast.Import):
        roots = [alias.name.partition(".")[0] for alias in statement.names]
    else:
        return False
    return any(root not in ALWAYS_THERE for root in roots)


def _does_something(handler: ast.ExceptHandler) -> bool:
    return not all(isinstance(one, ast.Pass | ast.Raise) for one in handler.body)
