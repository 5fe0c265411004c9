"""Errors that the code raises: they go to the handler that takes them, else the code makes no model."""

from __future__ import annotations

import ast
import builtins

from drupe.implied.core import Completion, Core
from drupe.implied.doubts import unknown_packages
from drupe.implied.values import External, Frame, Instance, Place, Unknown, options_of


class Raised(Exception):
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
        caught: Raised | None = None
        end: Completion = None
        before = self.uncertain
        if not statement.handlers:
            end = self.execute(statement.body, frame)
        elif self._may_raise(statement):
            end = self._either_way(statement, frame)
        else:
            self.tries.append(self.journal.level)
            try:
                end = self.execute(statement.body, frame)
            except Raised as error:
                caught = error
            finally:
                self.tries.pop()
            if end is not None and end[0] == "raise" and isinstance(end[1], Raised):
                caught, end = end[1], None
            if caught is not None:
                end = self._handled(statement, caught, frame)
            elif self.uncertain != before:
                end = self._perhaps_handled(statement, end, frame)
            elif end is None:
                end = self.execute(statement.orelse, frame)
        return self.execute(statement.finalbody, frame) or end

    def _may_raise(self, statement: ast.Try) -> bool:
        return any(
            isinstance(one, ast.Import | ast.ImportFrom) and _is_optional(one) for one in statement.body
        )

    def _either_way(self, statement: ast.Try, frame: Frame) -> Completion:
        return self.both([*statement.body, *statement.orelse], statement.handlers[0].body, frame)

    def _perhaps_handled(self, statement: ast.Try, end: Completion, frame: Frame) -> Completion:
        """Something in the body is not known and may have raised: what the handlers change is possible."""
        if end is not None:
            if any(registering(one) for one in statement.handlers):
                self.doubt("an error may have been raised and handled here", self._at(statement, frame))
            return end
        return self.both(statement.orelse, statement.handlers[0].body, frame)

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


def _is_optional(statement: ast.Import | ast.ImportFrom) -> bool:
    return bool(unknown_packages(statement)) or any(
        root
        in {
            "flash_attn",
            "apex",
            "einops",
            "xformers",
            "triton",
            "deepspeed",
            "mamba_ssm",
            "causal_conv1d",
            "fla",
        }
        for root in _roots(statement)
    )


def _roots(statement: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(statement, ast.ImportFrom):
        return [] if statement.level else [(statement.module or "").partition(".")[0]]
    return [alias.name.partition(".")[0] for alias in statement.names]


def registering(handler: ast.ExceptHandler) -> bool:
    """A handler that does something."""
    return not all(isinstance(one, ast.Pass | ast.Raise) for one in handler.body)
