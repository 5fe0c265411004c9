"""The interpreter: all parts together, and the model that a class makes of a configuration."""

from __future__ import annotations

from collections.abc import Mapping

from drupe.implied.libraries import Libraries
from drupe.implied.library import PRELUDE, PRELUDE_FILE
from drupe.implied.limits import too_deep
from drupe.implied.statements import Statements
from drupe.implied.syntax import Sources, parse_scope
from drupe.implied.values import ClassValue, Either, Instance, Place, Unknown


class Interpreter(Statements, Libraries):
    """Follows the code of some files; nothing is imported, compiled or run."""

    def __init__(self, files: Mapping[str, str]) -> None:
        super().__init__(Sources(files))
        self.sources.add(PRELUDE_FILE, parse_scope(PRELUDE_FILE, PRELUDE))

    def classes_in(self, file: str) -> list[ClassValue]:
        """The classes that a file defines."""
        names = [name for name, files in self.sources.declared.items() if file in files]
        found = [self.find_global(file, name) for name in names]
        return [one for one in found if isinstance(one, ClassValue)]

    def build(self, cls: ClassValue, config: Instance) -> Instance | Unknown:
        """``cls(config)``. Raises LimitError when the code needs more than any real model."""
        place = Place(cls.place.file, cls.place.line)
        try:
            made = self.call(cls, [config], {}, place)
        except RecursionError:
            raise too_deep(self.budget.where) from None
        if isinstance(made, Either):
            made = next((one for one in made.options if isinstance(one, Instance)), made)
        return made if isinstance(made, Instance) else Unknown("the class makes no module", place)
