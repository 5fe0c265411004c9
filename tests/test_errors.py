"""The error tree: every error says what, where and what to do next, and exit code 2 covers them all."""

from __future__ import annotations

import inspect

import pytest

from drupe import errors
from drupe.errors import DrupeError, FormatError, LimitError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, DrupeError)]


def test_the_tree_is_the_one_that_is_drawn() -> None:
    drawn = [line.strip(" │├└─") for line in (errors.__doc__ or "").splitlines() if "Error " in line]
    assert {line.split()[0] for line in drawn} == {kind.__name__ for kind in KINDS}
    assert len(KINDS) == 9


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not LimitError])
def test_the_text_has_what_where_and_hint(kind: type[DrupeError]) -> None:
    error = kind("it broke", where="a.json", hint="mend it")
    assert (error.what, error.where, error.hint) == ("it broke", "a.json", "mend it")
    assert str(error) == "a.json: it broke (mend it)"
    assert str(kind("it broke", hint="mend it")) == "it broke (mend it)"
    if kind is not DrupeError:
        assert kind("it broke").hint
        assert str(kind("it broke")) == f"it broke ({kind.default_hint})"


def test_a_limit_names_both_values() -> None:
    error = LimitError("tensors", limit=10, actual=12, where="x", hint="none")
    assert str(error) == "x: tensors: 12 exceeds the limit of 10 (none)"
    assert (error.limit, error.actual) == (10, 12)
    assert isinstance(error, FormatError)
    assert str(LimitError("depth", limit=3, actual="more than 3")).startswith("depth: more than 3 exceeds")
