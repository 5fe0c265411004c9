"""Pickles, read as data: a small stack machine that follows the opcodes and never imports, builds or calls.

Unpickling is a program of stack instructions. This machine runs it with symbols: a name becomes
:class:`Global`, a call :class:`Call`. Opcodes and their arguments: the documentation inside CPython's
``pickletools`` (https://github.com/python/cpython/blob/3.11/Lib/pickletools.py), PEP 307, 3154 and 574.

Bounded by a :class:`Budget` for a whole file: instructions, memory of the values, length of strings and numbers.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from drupe.errors import FormatError, LimitError
from drupe.readers.pickle_globals import Danger, danger_of
from drupe.readers.pickle_values import Call, Global, Pairs, Persistent, Stream, Use, Value

MAX_PICKLE = 64 << 20
"""Bytes of one pickle; those of the largest published checkpoints have about 20 MB."""
MAX_OPERATIONS = 2_000_000
"""Instructions of all pickles of one file: 45,000 tensors take that many."""
MAX_STRING = 16 << 20
MAX_NUMBER = 1024
"""Bytes of a whole number."""
MAX_LINE = 4096
"""Bytes of an argument that ends with its line."""
MAX_NAMES = 10_000
"""Different names that a pickle imports."""
MAX_NESTED, NESTED_DEPTH = 64, 3
"""Byte strings that are themselves pickles, and how deep they may hide in each other."""

LOAD_NOWHERE = "do not load this file anywhere"
"""The hint of an error about a file that calls for dangerous names."""

Read = Callable[[int, int], bytes]
"""(start, length) -> bytes."""
_WINDOW = 1 << 16
_MEMORY_FLOOR = 80 << 20


@dataclass(slots=True)
class Budget:
    """What the pickles of one file may still cost: instructions, and bytes of memory for their values."""

    memory: int
    operations: int = MAX_OPERATIONS

    @staticmethod
    def of_file(size: int) -> Budget:
        """The budget of a file of so many bytes."""
        return Budget(4 * size + _MEMORY_FLOOR)


class _ShortError(Exception):
    """The window ends before the argument does."""


class _StopSignal(Exception):  # noqa: N818  # not an error
    """The STOP instruction."""


@dataclass(slots=True)
class _Machine:
    """The state of one run. ``at`` counts in the window, which starts at byte ``base`` of the file."""

    read: Read
    size: int
    base: int
    where: str
    budget: Budget
    window: bytes = b""
    at: int = 0
    operation: int = 0
    stack: list[Value] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    fence: int = 0
    """Values below it belong to an outer MARK."""
    memo: dict[int, Value] = field(default_factory=dict)
    names: dict[tuple[str, str], Global] = field(default_factory=dict)
    uses: dict[str, Use] = field(default_factory=dict)
    references: list[Persistent] = field(default_factory=list)
    nested: list[tuple[int, bytes]] = field(default_factory=list)

    # the run
    def run(self) -> Value:
        self._widen()
        while True:
            try:
                self._run_window()
            except _StopSignal:
                return self.pop()
            except _ShortError:
                self._widen()
            except (ValueError, OverflowError) as error:
                raise self.damaged(f"an argument is malformed: {str(error)[:100]}") from None

    def _run_window(self) -> None:
        """Instructions until STOP or the end of the window; an instruction cut there is taken up again."""
        operations, costs, budget = _OPERATIONS, _COSTS, self.budget
        while True:
            self.operation = self.at
            if self.at >= len(self.window):
                raise _ShortError
            code = self.window[self.at]
            self.at += 1
            budget.memory -= costs[code]
            budget.operations -= 1
            if budget.memory < 0 or budget.operations < 0:
                self._exhausted()
            action = operations.get(code)
            if action is None:
                raise self.damaged(f"byte {code:#04x} is no instruction of a pickle")
            action(self)

    def _exhausted(self) -> None:
        if self.budget.operations < 0:
            actual = f"more than {MAX_OPERATIONS}"
            raise LimitError(
                "instructions of a pickle", limit=MAX_OPERATIONS, actual=actual, where=self.where
            )
        limit = 4 * self.size + _MEMORY_FLOOR
        what = "bytes of memory for the values of a pickle"
        raise LimitError(what, limit=limit, actual=f"more than {limit}", where=self.where)

    def _widen(self) -> None:
        """Read more of the file and go back to the instruction that needs it."""
        known, room = len(self.window), self.size - self.base
        if known >= room:
            raise self.damaged("the pickle ends in the middle")
        if known >= MAX_PICKLE:
            raise LimitError(
                "bytes of a pickle", limit=MAX_PICKLE, actual=f"more than {known}", where=self.where
            )
        self.window = self.read(self.base, min(room, max(_WINDOW, 4 * known), MAX_PICKLE))
        self.at = self.operation

    def damaged(self, what: str) -> FormatError:
        return FormatError(f"{what} (byte {self.base + self.operation} of the pickle)", where=self.where)

    # arguments
    def take(self, length: int) -> bytes:
        start = self.at
        stop = start + length
        if stop > len(self.window):
            raise _ShortError
        self.at = stop
        return self.window[start:stop]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def text(self, width: int, limit: int = MAX_STRING) -> bytes:
        """An argument with its length in front; a length beyond the file is refused before any is read."""
        length = self.number(width)
        left = self.size - self.base - self.at
        if length > min(limit, left):
            raise LimitError("bytes of a value", limit=min(limit, left), actual=length, where=self.where)
        return self.take(length)

    def line(self) -> bytes:
        end = self.window.find(b"\n", self.at, self.at + MAX_LINE)
        if end < 0:
            if len(self.window) - self.at >= MAX_LINE:
                raise LimitError(
                    "bytes of a line", limit=MAX_LINE, actual=f"more than {MAX_LINE}", where=self.where
                )
            raise _ShortError
        return self.take(end + 1 - self.at)[:-1]

    # the stack
    def push(self, value: Value) -> None:
        self.stack.append(value)

    def pop(self) -> Value:
        if len(self.stack) <= self.fence:
            raise self.damaged("the stack is empty")
        return self.stack.pop()

    def top(self) -> Value:
        if len(self.stack) <= self.fence:
            raise self.damaged("the stack is empty")
        return self.stack[-1]

    def since_mark(self) -> list[Value]:
        if not self.marks:
            raise self.damaged("no MARK on the stack")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        self.fence = self.marks[-1] if self.marks else 0
        return values

    def name(self, module: str, name: str) -> Global:
        """The symbol of an imported name; the name is noted."""
        known = self.names.get((module, name))
        if known is None:
            if len(self.names) >= MAX_NAMES:
                actual = f"more than {MAX_NAMES}"
                raise LimitError("names in a pickle", limit=MAX_NAMES, actual=actual, where=self.where)
            known = self.names[module, name] = Global(module, name)
            self.note(known.path, danger_of(module, name))
        return known

    def note(self, path: str, danger: Danger) -> None:
        position = self.base + self.operation
        self.uses.setdefault(path, Use(path[:500], position, danger))

    def literal(self, raw: bytes, value: Value) -> None:
        """Push a string; one that is itself a pickle is looked into later."""
        self.stack.append(value)
        if raw[:1] == b"\x80" and len(raw) > 3 and raw[1] <= 5 and len(self.nested) < MAX_NESTED:
            self.nested.append((self.base + self.operation, raw))


Operation = Callable[[_Machine], None]


def _fixed(value: Value) -> Operation:
    return lambda m: m.stack.append(value)


def _string(m: _Machine, raw: bytes) -> None:
    """A byte string of Python 2: text when it is UTF-8."""
    try:
        m.literal(raw, raw.decode("utf-8"))
    except UnicodeDecodeError:
        m.literal(raw, raw)


def _quoted(m: _Machine) -> None:
    raw = m.line().strip()
    if len(raw) < 2 or raw[0] != raw[-1] or raw[:1] not in (b"'", b'"'):
        raise m.damaged("a string without quotes")
    _string(m, codecs.escape_decode(raw[1:-1])[0])


def _unicode(m: _Machine, raw: bytes) -> None:
    text = raw.decode("utf-8", "surrogatepass")
    if text[:1] == "\x80" and len(text) < MAX_LINE * 256:  # a pickle as latin-1 text
        m.literal(text.encode("latin-1", "replace"), text)
    else:
        m.stack.append(text)


def _whole(m: _Machine) -> None:
    """``I01`` and ``I00`` are truth values."""
    raw = m.line()
    m.push(raw == b"01" if raw in (b"01", b"00") else _decimal(raw))


def _decimal(raw: bytes) -> int:
    return int(raw[:MAX_NUMBER].decode("ascii").rstrip("L").strip(), 0)


def _mark(m: _Machine) -> None:
    m.marks.append(len(m.stack))
    m.fence = len(m.stack)


def _pop(m: _Machine) -> None:
    if m.marks and len(m.stack) == m.fence:
        m.since_mark()
    else:
        m.pop()


def _tuple(m: _Machine, count: int) -> None:
    values = [m.pop() for _ in range(count)]
    m.push(tuple(reversed(values)))


def _pairs(m: _Machine, values: list[Value]) -> list[tuple[Value, Value]]:
    if len(values) % 2:
        raise m.damaged("a key without a value")
    return list(zip(values[::2], values[1::2], strict=True))


def _append(m: _Machine, values: list[Value]) -> None:
    target = m.top()
    if isinstance(target, list):
        target.extend(values)
    elif isinstance(target, Call):
        target.items.extend(values)
    else:
        _meddle(m, target)


def _set_items(m: _Machine, values: list[Value]) -> None:
    target = m.top()
    pairs = _pairs(m, values)
    if isinstance(target, Pairs | Call):
        target.pairs.extend(pairs)
    else:
        _meddle(m, target)


def _build(m: _Machine) -> None:
    state = m.pop()
    target = m.top()
    if isinstance(target, Call):
        target.state = state
    elif not isinstance(target, Pairs | list | Persistent):
        _meddle(m, target)


def _meddle(m: _Machine, target: Value) -> None:
    """Something is written into what is no container: into an imported name, it changes the interpreter."""
    if not isinstance(target, Global):
        raise m.damaged(f"items or a state for a value of type {type(target).__name__}")
    m.note(f"{target.path} (overwritten)", Danger.DANGEROUS)


def _call(m: _Machine, function: Value, arguments: Value) -> None:
    m.push(Call(function, arguments if isinstance(arguments, tuple) else (arguments,)))


def _reduce(m: _Machine) -> None:
    arguments = m.pop()
    _call(m, m.pop(), arguments)


def _new_object_ex(m: _Machine) -> None:
    keywords, arguments, function = m.pop(), m.pop(), m.pop()
    positional = arguments if isinstance(arguments, tuple) else (arguments,)
    m.push(Call(function, (*positional, keywords) if keywords else positional))


def _object(m: _Machine) -> None:
    values = m.since_mark()
    if not values:
        raise m.damaged("an object without a class")
    m.push(Call(values[0], tuple(values[1:])))


def _line_name(m: _Machine) -> Global:
    module, name = m.line().decode("utf-8"), m.line().decode("utf-8")
    return m.name(module, name)


def _instance(m: _Machine) -> None:
    function = _line_name(m)
    m.push(Call(function, tuple(m.since_mark())))


def _stack_name(m: _Machine) -> None:
    name, module = m.pop(), m.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise m.damaged("a name that is no string")
    m.push(m.name(module[:MAX_LINE], name[:MAX_LINE]))


def _refer(m: _Machine, key: Value) -> None:
    reference = Persistent(key)
    m.references.append(reference)
    m.push(reference)


def _extension(width: int) -> Operation:
    """A number that stands for a name which only the reading program knows."""

    def action(m: _Machine) -> None:
        code = m.number(width)
        m.note(f"extension {code}", Danger.DANGEROUS)
        m.push(Global("extension", str(code)))

    return action


def _put(m: _Machine, index: int) -> None:
    m.memo[index] = m.top()


def _get(m: _Machine, index: int) -> None:
    if index not in m.memo:
        raise m.damaged(f"nothing is remembered as {index}")
    m.stack.append(m.memo[index])


def _frame(m: _Machine) -> None:
    length, left = m.number(8), m.size - m.base - m.at
    if length > left:
        raise LimitError("bytes of a frame", limit=left, actual=length, where=m.where)


def _protocol(m: _Machine) -> None:
    version = m.number(1)
    if version > 5:
        raise m.damaged(f"protocol {version} is unknown")


def _stop(m: _Machine) -> None:
    raise _StopSignal


def _signed(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _buffer(m: _Machine) -> None:
    raise m.damaged("buffers outside of the file")


_ACTIONS: dict[str, Operation] = {
    "(": _mark, ".": _stop, "0": _pop, "1": lambda m: m.since_mark().clear(), "2": lambda m: m.push(m.top()),
    "F": lambda m: m.push(float(m.line()[:MAX_NUMBER])), "I": _whole, "J": lambda m: m.push(_signed(m.take(4))),
    "K": lambda m: m.push(m.number(1)), "L": lambda m: m.push(_decimal(m.line())), "M": lambda m: m.push(m.number(2)),
    "N": _fixed(None), "P": lambda m: _refer(m, m.line().decode("utf-8")),
    "Q": lambda m: _refer(m, m.pop()), "R": _reduce, "S": _quoted, "T": lambda m: _string(m, m.text(4)),
    "U": lambda m: _string(m, m.text(1)), "V": lambda m: m.push(m.line().decode("raw_unicode_escape")),
    "X": lambda m: _unicode(m, m.text(4)), "a": lambda m: _append(m, [m.pop()]), "b": _build,
    "c": lambda m: m.push(_line_name(m)), "d": lambda m: m.push(Pairs(_pairs(m, m.since_mark()))),
    "}": lambda m: m.push(Pairs()), "e": lambda m: _append(m, m.since_mark()),
    "g": lambda m: _get(m, _decimal(m.line())), "h": lambda m: _get(m, m.number(1)), "i": _instance,
    "j": lambda m: _get(m, m.number(4)), "l": lambda m: m.push(m.since_mark()), "]": lambda m: m.push([]),
    "o": _object, "p": lambda m: _put(m, _decimal(m.line())), "q": lambda m: _put(m, m.number(1)),
    "r": lambda m: _put(m, m.number(4)), "s": lambda m: _set_items(m, [m.pop(), m.pop()][::-1]),
    "t": lambda m: m.push(tuple(m.since_mark())), ")": _fixed(()), "u": lambda m: _set_items(m, m.since_mark()),
    "G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]), "B": lambda m: _bytes(m, 4),
    "C": lambda m: _bytes(m, 1), "\x80": _protocol, "\x81": _reduce, "\x82": _extension(1), "\x83": _extension(2),
    "\x84": _extension(4), "\x85": lambda m: _tuple(m, 1), "\x86": lambda m: _tuple(m, 2),
    "\x87": lambda m: _tuple(m, 3), "\x88": _fixed(True), "\x89": _fixed(False),
    "\x8a": lambda m: m.push(_signed(m.text(1))), "\x8b": lambda m: m.push(_signed(m.text(4, MAX_NUMBER))),
    "\x8c": lambda m: _unicode(m, m.text(1)), "\x8d": lambda m: _unicode(m, m.text(8)),
    "\x8e": lambda m: _bytes(m, 8), "\x8f": lambda m: m.push([]), "\x90": lambda m: _append(m, m.since_mark()),
    "\x91": lambda m: m.push(m.since_mark()), "\x92": _new_object_ex, "\x93": _stack_name,
    "\x94": lambda m: _put(m, len(m.memo)), "\x95": _frame, "\x96": lambda m: _bytes(m, 8), "\x97": _buffer,
    "\x98": _buffer,
}  # fmt: skip
_OPERATIONS: Mapping[int, Operation] = {ord(code): action for code, action in _ACTIONS.items()}
_PRICES = {
    "0.\x80\x95": 0, "KMN2hgj\x88\x89)": 10, "pqr\x94": 120, "JFGIL\x8a\x8b": 44, "(": 48, "]\x8fla": 100,
    "\x85\x86\x87t": 96, "}d\x91": 160, "RbOoi\x81\x92c\x93": 260, "PQ": 80, "su": 160, "SUTVXBC\x8c\x8d\x8e\x96": 90,
}  # fmt: skip
_COSTS = [next((cost for codes, cost in _PRICES.items() if chr(code) in codes), 40) for code in range(256)]
"""Bytes of memory that an instruction takes (CPython 3.11), the bytes of its strings apart."""


def _bytes(m: _Machine, width: int) -> None:
    raw = m.text(width)
    m.literal(raw, raw)


def read_stream(
    read: Read,
    size: int,
    start: int,
    where: str,
    budget: Budget,
    depth: int = 0,
    uses: dict[str, Use] | None = None,
) -> Stream:
    """The pickle that starts at a byte of a file of ``size`` bytes.

    ``uses`` is filled with the imported names, also those of a pickle that breaks off. Raises FormatError when it is
    damaged, naming what it would have called until there; LimitError beyond the budget.
    """
    machine = _Machine(read, size, start, where, budget, uses={} if uses is None else uses)
    try:
        value = machine.run()
    except FormatError as error:
        dangerous = [use.path for use in machine.uses.values() if use.danger is Danger.DANGEROUS]
        if not dangerous:
            raise
        what = (
            f"{error.what}; until there it calls for {', '.join(repr(path[:80]) for path in dangerous[:3])}"
        )
        raise FormatError(what, where=where, hint=LOAD_NOWHERE) from None
    for position, raw in machine.nested if depth < NESTED_DEPTH else ():
        _look_inside(machine, position, raw, depth)
    return Stream(value, start + machine.at, tuple(machine.uses.values()), tuple(machine.references))


def _look_inside(machine: _Machine, position: int, raw: bytes, depth: int) -> None:
    """Note the names in a string that is itself a pickle; a string that only looks like one is no error."""
    try:
        inner = read_streams(raw, machine.where, machine.budget, depth + 1)
    except FormatError as error:
        if min(machine.budget.memory, machine.budget.operations) < 0:
            raise
        if error.hint == LOAD_NOWHERE:
            machine.uses.setdefault("nested", Use("a damaged pickle in a string", position, Danger.DANGEROUS))
        return
    for stream in inner:
        for use in stream.uses:
            machine.uses.setdefault(use.path, Use(use.path, position, use.danger))


def read_streams(data: bytes, where: str, budget: Budget, depth: int = 0) -> list[Stream]:
    """The pickles that lie one after the other in ``data``, up to its last byte.

    >>> [stream.value for stream in read_streams(b"I1\\n.\\x80\\x02]K\\x02a.", "example", Budget.of_file(10))]
    [1, [2]]
    """
    streams: list[Stream] = []
    at = 0
    while at < len(data) or not streams:
        start = at
        stream = read_stream(lambda s, n: data[s : s + n], len(data), start, where, budget, depth)
        streams.append(stream)
        at = stream.stop
    return streams
