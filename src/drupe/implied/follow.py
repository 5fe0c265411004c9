"""Files and a configuration -> what the code implies."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from drupe.implied import entry as entries
from drupe.implied.collect import implied_by
from drupe.implied.interpreter import Interpreter
from drupe.implied.limits import too_deep
from drupe.implied.results import Entry, Gap, Implied
from drupe.implied.values import ClassValue, Frame, Instance, Place, Unknown
from drupe.readers.strict_json import Json


def implied(files: Mapping[str, str], config: Mapping[str, Json], architecture: str | None = None) -> Implied:
    """The tensors that the code in ``files`` (path -> text) registers under a configuration.

    Raises LimitError when the code needs more steps, modules or depth than any real model; a file that cannot
    be parsed, and everything else that is not understood, is an entry of ``unknown``.
    """
    machine = Interpreter(files)
    try:
        return _follow(machine, config, architecture)
    except RecursionError:
        raise too_deep(machine.budget.where) from None


def _follow(machine: Interpreter, config: Mapping[str, Json], architecture: str | None) -> Implied:
    named = entries.named_entry(machine, config, architecture)
    if named is not None:
        return _build(machine, config, *named)
    found = [_build(machine, config, cls, "contains_most") for cls in entries.candidates(machine)]
    if found:
        return max(found, key=lambda one: len(one.parameters))
    gap = Gap(Place("", 0), "no file defines a module that the configuration names")
    return Implied(None, unknown=(*_gaps(machine), gap))


def _build(machine: Interpreter, config: Mapping[str, Json], cls: ClassValue, how: str) -> Implied:
    entry = Entry(cls.name, cls.place, how)
    machine.notes.clear()
    values = machine.make_config(dict(config), entries.config_class_of(machine, cls, config), cls.place)
    machine.notes.clear()
    made = machine.build(cls, values)
    mapping = cls.find("_checkpoint_conversion_mapping")
    if mapping is not None and mapping[0]:
        machine.doubt("loaders rename tensors by a mapping of the class", cls.place, "misfit")
    machine.sources.parse_imported()
    check_tops(machine)
    gaps = _gaps(machine)
    if isinstance(made, Unknown) or not isinstance(made, Instance):
        return Implied(entry, unknown=(*gaps, Gap(made.place, made.reason, "")))
    return implied_by(made, entry, gaps, machine.budget)


def _gaps(machine: Interpreter) -> list[Gap]:
    seen = (*machine.sources.failures, *machine.notes)
    found = [Gap(one.place, one.reason, "" if one.tail else None) for one in seen]
    found += [Gap(one.place, one.reason, "", "all") for one in machine.sources.doubts]
    found += [Gap(one.place, one.reason, "", what) for (_, what), one in machine.doubts.items()]
    return found


def check_tops(machine: Interpreter) -> None:
    """Conditions outside of functions that surely end in an error."""
    for file, tree in list(machine.sources.trees.items()):
        scope = machine.sources.scope(file)
        for one in tree.body if scope is not None else ():
            stops = isinstance(one, ast.If) and any(isinstance(each, ast.Raise) for each in one.body)
            if isinstance(one, ast.Assert) or (isinstance(one, ast.If) and stops):
                assert scope is not None
                if machine.condition(one.test, Frame(scope)) is isinstance(one, ast.If):
                    machine.doubt("the file ends in an error here", Place(file, one.lineno))
