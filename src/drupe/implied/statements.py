"""Statements: control flow, assignment, definitions. An unknown condition is followed both ways and joined."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from drupe.implied import operators
from drupe.implied.core import Completion
from drupe.implied.doubts import unknown_packages
from drupe.implied.expressions import hashable
from drupe.implied.journal import Branch, mark_open
from drupe.implied.modules import is_list
from drupe.implied.trying import Trying
from drupe.implied.values import (
    MISSING,
    ClassValue,
    External,
    Frame,
    Function,
    Instance,
    Place,
    Tensor,
    Unknown,
    either,
    options_of,
)

_IGNORED = (ast.Pass,)


class Statements(Trying):
    """Executes statements on abstract values."""

    def execute(self, body: Sequence[ast.stmt], frame: Frame) -> Completion:
        """Follow statements until one of them leaves the block."""
        for i, statement in enumerate(body):
            self.budget.charge()
            before = len(frame.returns), frame.skips
            done = self._statement(statement, frame)
            if done is not None:
                return done
            if (len(frame.returns), frame.skips) != before and i + 1 < len(body):
                return self.maybe(body[i + 1 :], frame)  # the block may have been left already
        return None

    def maybe(self, body: Sequence[ast.stmt], frame: Frame) -> Completion:
        """Follow statements that may not be reached."""
        done, changes = self.journal.run(lambda: self.execute(body, frame))
        self.journal.join(changes, {})
        return done if isinstance(done, tuple) else None

    def _statement(self, statement: ast.stmt, frame: Frame) -> Completion:
        if isinstance(statement, ast.Assign):
            value = self.evaluate(statement.value, frame)
            for target in statement.targets:
                self.assign(target, value, frame)
        elif isinstance(statement, ast.Expr):
            if not isinstance(statement.value, ast.Constant):
                self.evaluate(statement.value, frame)
        elif isinstance(statement, ast.If):
            return self._if(statement, frame)
        elif isinstance(statement, ast.Return):
            return ("return", None if statement.value is None else self.evaluate(statement.value, frame))
        elif isinstance(statement, ast.For):
            return self._for(statement, frame)
        elif isinstance(statement, ast.While):
            return self._while(statement, frame)
        elif isinstance(statement, ast.Break):
            return ("break", None)
        elif isinstance(statement, ast.Continue):
            return ("continue", None)
        elif isinstance(statement, ast.Raise):
            return ("raise", self.raised_by(statement, frame))
        elif isinstance(statement, ast.Try):
            return self.follow_try(statement, frame)
        elif isinstance(statement, ast.With):
            return self.follow_with(statement, frame)
        elif isinstance(statement, ast.Assert):
            return self.follow_assert(statement, frame)
        elif isinstance(statement, ast.Match):
            return self._match(statement, frame)
        elif not isinstance(statement, _IGNORED):
            self._definition(statement, frame)
        return None

    def _match(self, statement: ast.Match, frame: Frame) -> Completion:
        """The case of a known value; otherwise every case may be the one."""
        subject = self.evaluate(statement.subject, frame)
        certain = isinstance(subject, int | float | str | type(None))
        for i, case in enumerate(statement.cases):
            hit = self._hits(case.pattern, subject, frame) if certain and case.guard is None else None
            if hit is None:
                rest = [
                    ast.Match(
                        statement.subject, statement.cases[i + 1 :], lineno=statement.lineno, col_offset=0
                    )
                ]
                return self.both(case.body, rest if statement.cases[i + 1 :] else [], frame)
            if hit:
                return self.execute(case.body, frame)
        return None

    def _hits(self, pattern: ast.pattern, subject: object, frame: Frame) -> bool | None:
        if isinstance(pattern, ast.MatchValue):
            return operators.compare(ast.Eq(), subject, self.evaluate(pattern.value, frame))
        if isinstance(pattern, ast.MatchSingleton):
            return subject is pattern.value
        if isinstance(pattern, ast.MatchOr):
            hits = {self._hits(one, subject, frame) for one in pattern.patterns}
            return True if True in hits else None if None in hits else False
        if isinstance(pattern, ast.MatchAs) and pattern.pattern is None:
            if pattern.name is not None:
                self._bind(pattern.name, subject, frame)
            return True
        return None

    def _definition(self, statement: ast.stmt, frame: Frame) -> None:
        place = Place(frame.scope.file, statement.lineno)
        if isinstance(statement, ast.AnnAssign):
            self._annotated(statement, frame)
        elif isinstance(statement, ast.AugAssign):
            self._augmented(statement, frame)
        elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            self._bind(statement.name, self.make_function(statement, frame), frame)
        elif isinstance(statement, ast.ClassDef):
            self._bind(statement.name, self.make_class(statement, frame), frame)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            for why in unknown_packages(statement) if frame.function is not None else ():
                self.fail("ModuleNotFoundError", why, place)
            for alias in statement.names:
                name = (alias.asname or alias.name).split(".")[0]
                self._bind(name, self.imported(statement, name, frame.scope.file), frame)
        elif isinstance(statement, ast.Delete):
            for target in statement.targets:
                self._delete(target, frame)
        elif isinstance(statement, ast.Global | ast.Nonlocal):
            self.doubt("names outside of a function are changed in it", place)
        else:
            self.give_up(f"{type(statement).__name__} is not followed", place)

    def _bind(self, name: str, value: object, frame: Frame) -> None:
        self.touch(frame)
        frame.names[name] = value

    def _annotated(self, statement: ast.AnnAssign, frame: Frame) -> None:
        if statement.value is None:
            return
        value = statement.value
        if frame.is_class and isinstance(value, ast.Call):  # dataclass fields: field(default=...)
            for keyword in value.keywords:
                if keyword.arg == "default":
                    return self.assign(statement.target, self.evaluate(keyword.value, frame), frame)
                if keyword.arg == "default_factory":
                    place = Place(frame.scope.file, statement.lineno)
                    made = self.call(self.evaluate(keyword.value, frame), [], {}, place)
                    return self.assign(statement.target, made, frame)
        self.assign(statement.target, self.evaluate(value, frame), frame)
        return None

    def _augmented(self, statement: ast.AugAssign, frame: Frame) -> None:
        place = Place(frame.scope.file, statement.lineno)
        old, new = self.evaluate(statement.target, frame), self.evaluate(statement.value, frame)
        if isinstance(old, list) and isinstance(statement.op, ast.Add):
            items = self.items(new, place)
            self.touch(old)
            old += items if isinstance(items, list) else [items]
            return
        if isinstance(old, Instance):
            extend = self.get_attribute(old, "extend", place)
            if extend is not MISSING:
                self.call(extend, [new], {}, place)
                return
        self.assign(statement.target, operators.binary(statement.op, old, new, place, self.budget), frame)

    def assign(self, target: ast.expr, value: object, frame: Frame) -> None:
        """Bind a target."""
        if isinstance(target, ast.Name):
            self._bind(target.id, value, frame)
            return
        place = Place(frame.scope.file, target.lineno)
        if isinstance(target, ast.Attribute):
            self.set_attribute(self.evaluate(target.value, frame), target.attr, value, place)
        elif isinstance(target, ast.Tuple | ast.List):
            self._unpack(target.elts, value, frame, place)
        elif isinstance(target, ast.Subscript):
            self._set_item(
                self.evaluate(target.value, frame), self.evaluate(target.slice, frame), value, place
            )

    def _unpack(self, targets: list[ast.expr], value: object, frame: Frame, place: Place) -> None:
        items: list[object] | Unknown = (
            Unknown("parts of a tensor", place) if isinstance(value, Tensor) else self.items(value, place)
        )
        if isinstance(items, Unknown):
            items = [items] * len(targets)
        starred = [i for i, target in enumerate(targets) if isinstance(target, ast.Starred)]
        if starred:
            at, after = starred[0], len(targets) - starred[0] - 1
            middle = items[at : len(items) - after]
            items = [*items[:at], middle, *items[len(items) - after :]]
        for i, target in enumerate(targets):
            inner = target.value if isinstance(target, ast.Starred) else target
            self.assign(inner, items[i] if i < len(items) else Unknown("too few values", place), frame)

    def _set_item(self, owner: object, index: object, value: object, place: Place) -> None:
        for one in options_of(owner):
            if isinstance(one, dict) and hashable(index):
                self.touch(one)
                one[index] = value
            elif isinstance(one, list) and isinstance(index, int) and -len(one) <= index < len(one):
                self.touch(one)
                one.insert(index % len(one), value)
                del one[index % (len(one) - 1) + 1]
            elif isinstance(one, Instance) and one.is_module:
                name = self.item_name(one, index, place)
                if name is not None:
                    self.set_attribute(one, name, value, place)
                else:
                    self.doubt("items under a name that is not known are set", place)
                    self.set_attribute(
                        one, "*", self.note("an item under a name that is not known", place), place
                    )

    def item_name(self, owner: Instance, index: object, place: Place) -> str | None:
        """Under which name an item of a container is kept; numbers count from the end when below zero."""
        if isinstance(index, str):
            return index
        if not isinstance(index, int):
            return None
        count = len(self.numbered(owner))
        if not is_list(owner) or owner.open:
            self.doubt("an item at a place that is not known is set", place)
        elif not -count <= index < count:
            self.fail("IndexError", "there is no such item", place)
        return str(index % count if count and index < 0 else index)

    def _delete(self, target: ast.expr, frame: Frame) -> None:
        if isinstance(target, ast.Attribute):
            owner = self.evaluate(target.value, frame)
            if isinstance(owner, Instance):
                self.touch(owner)
                owner.attrs.pop(target.attr, None)
        elif isinstance(target, ast.Subscript):
            owner, index = self.evaluate(target.value, frame), self.evaluate(target.slice, frame)
            if isinstance(owner, dict) and hashable(index):
                self.touch(owner)
                owner.pop(index, None)
            elif isinstance(owner, list) and isinstance(index, int) and -len(owner) <= index < len(owner):
                self.touch(owner)
                del owner[index]
            elif isinstance(owner, Instance):
                pop = self.get_attribute(owner, "pop", Place(frame.scope.file, target.lineno))
                if not isinstance(index, int | str):
                    self.doubt("items of a module are deleted", Place(frame.scope.file, target.lineno))
                self.call(pop, [index], {}, Place(frame.scope.file, target.lineno))

    def _if(self, statement: ast.If, frame: Frame) -> Completion:
        known = self.condition(statement.test, frame)
        if known is not None:
            return self.execute(statement.body if known else statement.orelse, frame)
        return self.both(statement.body, statement.orelse, frame)

    def both(self, first: Sequence[ast.stmt], second: Sequence[ast.stmt], frame: Frame) -> Completion:
        """Follow two branches apart; one that raises is not the one that a working model takes."""
        done, changes = self.journal.run(lambda: self.execute(first, frame))
        other, others = self.journal.run(lambda: self.execute(second, frame))
        ends: list[Completion] = [end if isinstance(end, tuple) else None for end in (done, other)]
        return self.joined((ends[0], changes), (ends[1], others), frame)

    def joined(
        self, first: tuple[Completion, Branch], second: tuple[Completion, Branch], frame: Frame
    ) -> Completion:
        """How a block ended of which one of two branches was taken."""
        (done, changes), (other, others) = first, second
        ends = [done, other]
        if _raises(ends[0]) or _raises(ends[1]):
            kept = 1 if _raises(ends[0]) else 0
            self.journal.join((changes, others)[kept])
            return ends[kept]
        self.journal.join(changes, others)
        returned = [end[1] for end in ends if end is not None and end[0] == "return"]
        if len(returned) == 2:
            return ("return", either(*returned))
        frame.returns += returned
        frame.skips += sum(end is not None and end[0] in {"break", "continue"} for end in ends)
        return None

    def _for(self, statement: ast.For, frame: Frame) -> Completion:
        place = Place(frame.scope.file, statement.lineno)
        items = self.items(self.evaluate(statement.iter, frame), place)
        if isinstance(items, Unknown):
            self._repeat(statement.body, statement.target, items, frame, place)
            return None
        before = frame.skips
        for item in items:
            self.budget.charge()
            if isinstance(item, Unknown) and item.tail:
                self._repeat(statement.body, statement.target, item, frame, place)
                continue
            self.assign(statement.target, item, frame)
            done = (
                self.maybe(statement.body, frame)
                if frame.skips > before
                else self.execute(statement.body, frame)
            )
            if done is not None and done[0] == "break":
                break
            if done is not None and done[0] != "continue":
                return done
        else:
            done = self.execute(statement.orelse, frame)
        frame.skips = before
        return done if done is not None and done[0] not in {"break", "continue"} else None

    def _repeat(
        self, body: Sequence[ast.stmt], target: ast.expr | None, why: Unknown, frame: Frame, place: Place
    ) -> None:
        """Follow a loop of unknown length once, and mark what it changed as open."""
        if target is not None:
            self.assign(target, why, frame)
        _, changes = self.journal.run(lambda: self.execute(body, frame))
        reason = Unknown(f"the number of rounds of a loop is not known: {why.reason}", place, True, True)
        for owner in self.journal.join(changes, {}):
            if isinstance(owner, list | dict) or (isinstance(owner, Instance) and owner.is_module):
                mark_open(owner, reason)

    def _while(self, statement: ast.While, frame: Frame) -> Completion:
        place = Place(frame.scope.file, statement.lineno)
        before = frame.skips
        done: Completion = None
        while True:
            self.budget.charge()
            known = self.condition(statement.test, frame)
            if known is None or frame.skips > before:
                self._repeat(statement.body, None, Unknown("the condition of a loop", place), frame, place)
                break
            if known is False:
                done = self.execute(statement.orelse, frame)
                break
            done = self.execute(statement.body, frame)
            if done is not None and done[0] != "continue":
                break
        frame.skips = before
        return done if done is not None and done[0] not in {"break", "continue"} else None

    def make_class(self, node: ast.ClassDef, frame: Frame) -> object:
        """A class: its body is followed at once, like Python does."""
        place = Place(frame.scope.file, node.lineno)
        bases = [self.evaluate(base, frame) for base in node.bases]
        inner = self.made(Frame(frame.scope, frame))
        inner.is_class = True
        made = ClassValue(node.name, place, _known_bases(bases), inner.names)
        for keyword in node.keywords:
            if keyword.arg == "metaclass" and "ABCMeta" not in ast.unparse(keyword.value):
                self.doubt(f"{node.name} has a metaclass", place)
        self.execute(node.body, inner)
        annotated = (one for one in node.body if isinstance(one, ast.AnnAssign) and one.value is not None)
        for one in annotated:
            if isinstance(one.target, ast.Name) and "ClassVar" not in ast.dump(one.annotation):
                made.fields[one.target.id] = inner.names.get(one.target.id)
        for value in inner.names.values():
            if isinstance(value, Function) and value.owner is None:
                value.owner = made
                if value.setter is not None:
                    value.setter.owner = made
        made.mro = [
            made,
            *self._linear([base for base in made.bases if isinstance(base, ClassValue | External)]),
        ]
        if any("__init_subclass__" in one.names for one in made.mro[1:] if isinstance(one, ClassValue)):
            self.doubt(f"{node.name} is changed by an __init_subclass__", place)
        return self._decorated_class(made, node, frame, place)

    def _linear(self, bases: list[ClassValue | External]) -> list[ClassValue | External]:
        """The bases' own orders merged (C3); where that is impossible, left to right."""
        queues: list[list[ClassValue | External]] = [
            list(base.mro) if isinstance(base, ClassValue) else [base] for base in bases
        ]
        queues.append(list(bases))
        found: list[ClassValue | External] = []
        while any(queues):
            self.budget.charge(sum(map(len, queues)))
            heads = [queue[0] for queue in queues if queue]
            chosen = next(
                (head for head in heads if not any(_within(head, queue[1:]) for queue in queues)), heads[0]
            )
            if len(found) > 200:
                break
            found.append(chosen)
            queues = [[one for one in queue if one != chosen] for queue in queues]
        return found

    def _decorated_class(self, made: ClassValue, node: ast.ClassDef, frame: Frame, place: Place) -> object:
        """Decorators of the code itself are applied; those of libraries leave the class as it is."""
        result: object = made
        for decorator in reversed(node.decorator_list):
            function = decorator.func if isinstance(decorator, ast.Call) else decorator
            value = self.evaluate(function, frame)
            if isinstance(value, Function):
                applied = self.call(self.evaluate(decorator, frame), [result], {}, place)
                result = applied if isinstance(applied, ClassValue) else result
        return result


def _raises(end: Completion) -> bool:
    return end is not None and end[0] == "raise"


def _known_bases(bases: list[object]) -> list[object]:
    return [
        base if isinstance(base, ClassValue | External) else External(f"unknown.{i}")
        for i, base in enumerate(option for base in bases for option in options_of(base)[:1])
    ]


def _within(one: ClassValue | External, queue: list[ClassValue | External]) -> bool:
    return any(one is other or one == other for other in queue)
