"""Both branches of an unknown condition: what each changes is undone and joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from drupe.implied.values import MISSING, Frame, Instance, Unknown, either

State = list[object] | dict[object, object] | set[object]
Owner = list[object] | dict[object, object] | set[object] | Instance | Frame
Branch = dict[int, tuple[Owner, State, State]]
"""What a branch changed: per object its state before and after."""


class Journal:
    """Remembers the state of everything that changes while a branch is followed."""

    def __init__(self) -> None:
        self._levels: list[dict[int, tuple[Owner, State]]] = []
        self._born: list[dict[int, object]] = []
        self._suspended = 0

    @property
    def level(self) -> tuple[int, int]:
        """How deep in branches: the same twice when nothing is undone in between."""
        return self._suspended, len(self._levels)

    def touch(self, owner: Owner) -> int:
        """Call before an object changes; what remembering its state has cost, in steps."""
        if not self._levels or id(owner) in self._levels[-1] or id(owner) in self._born[-1]:
            return 0
        state = _copy(owner)
        self._levels[-1][id(owner)] = (owner, state)
        return 3 * len(state)  # remembered, copied again at the end, and joined

    def born(self, owner: object) -> None:
        """Call when an object is made: nobody outside of the branch knows it, so nothing is to be undone."""
        if self._born:
            self._born[-1][id(owner)] = owner

    def run(self, branch: Callable[[], object]) -> tuple[object, Branch]:
        """Follow a branch and undo it; (its result, per object its state before and after)."""
        self._levels.append({})
        self._born.append({})
        try:
            result = branch()
        finally:
            level, made = self._levels.pop(), self._born.pop()
            if self._born:
                self._born[-1].update(made)
            changes = {key: (owner, before, _copy(owner)) for key, (owner, before) in level.items()}
            for owner, before, _ in changes.values():
                _restore(owner, before)
        return result, changes

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """What happens inside is not part of any branch."""
        levels, born, self._levels, self._born = self._levels, self._born, [], []
        self._suspended += 1
        try:
            yield
        finally:
            self._levels, self._born = levels, born
            self._suspended -= 1

    def join(self, *branches: Branch) -> list[Owner]:
        """Give every changed object the state that it has after one branch or another."""
        owners = {key: (owner, before) for changes in branches for key, (owner, before, _) in changes.items()}
        for key, (owner, before) in owners.items():
            self.touch(owner)
            states = [changes[key][2] if key in changes else before for changes in branches]
            _restore(owner, _merge(states))
        return [owner for owner, _ in owners.values()]


def _state(owner: Owner) -> State:
    """The container in which an object keeps what can change."""
    if isinstance(owner, Instance):
        return cast("State", owner.attrs)
    if isinstance(owner, Frame):
        return cast("State", owner.names)
    return owner


def _copy(owner: Owner) -> State:
    return _state(owner).copy()


def _restore(owner: Owner, state: State) -> None:
    target = _state(owner)
    if isinstance(target, list) and isinstance(state, list):
        target[:] = state
    elif isinstance(target, dict) and isinstance(state, dict):
        target.clear()
        target |= state
    elif isinstance(target, set) and isinstance(state, set):
        target.clear()
        target.update(state)


def _merge(states: list[State]) -> State:
    first = states[0]
    if isinstance(first, list):
        lists = [state for state in states if isinstance(state, list)]
        length = max(map(len, lists))
        return [either(*(one[i] if i < len(one) else MISSING for one in lists)) for i in range(length)]
    if isinstance(first, dict):
        dicts = [state for state in states if isinstance(state, dict)]
        keys = dict.fromkeys(key for one in dicts for key in one)
        return {key: either(*(one.get(key, MISSING) for one in dicts)) for key in keys}
    return set().union(*(state for state in states if isinstance(state, set)))


def mark_open(owner: Owner, why: Unknown) -> None:
    """Something is added to it an unknown number of times."""
    if isinstance(owner, list):
        owner.append(why)
    elif isinstance(owner, dict):
        owner[why] = why
    elif isinstance(owner, Instance):
        owner.open.append(why)
