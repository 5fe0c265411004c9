"""What a stranger's code may cost: every limit, and the count of what was used."""

from __future__ import annotations

import sys

from drupe.errors import LimitError

MAX_FILES = 512
"""Source files of one folder that are looked at."""
MAX_FILE_CHARACTERS = 1 << 20
"""Of one file; the largest modelling file of transformers 5.23.0 has 195,366."""
MAX_FILE_TOKENS = 80_000
"""Words, signs and lines of one file; the largest modelling file of transformers 5.23.0 has 38,000."""
MAX_TOKENS = 110_000
"""Words, signs and lines of all files that are parsed: a syntax tree takes up to 900 bytes of memory for each."""
MAX_STEPS = 500_000
"""Expressions and statements that are followed, and items that they make."""
MAX_DEPTH = 36
"""Calls within calls; modelling code of transformers needs at most 14."""
MAX_RECURSION = 10
"""Times that one function may be at work at once; a class that contains itself has no end."""
MAX_TEXT = 4096
"""Characters of a string that the code computes."""
MAX_BITS = 256
"""Bits of a number that the code computes."""
MAX_MODULES = 150_000
"""Modules that are made."""
MAX_PARAMETERS = 150_000
"""Parameters and buffers of one model; the largest published mixtures of experts hold about 100,000."""
MAX_UNKNOWN = 200
"""Places that are reported as not understood."""
MAX_OPTIONS = 6
"""Values that one variable may have where a condition is not known."""


def names(text: str) -> frozenset[str]:
    """A table of names, written as one text."""
    return frozenset(text.split())


MODULE_COST = 8
"""Steps that making a module is worth, in time."""


class Budget:
    """Counts steps, modules and the depth of calls; raises LimitError when one is used up."""

    def __init__(self) -> None:
        self.steps = 0
        self.modules = 0
        self.depth = 0
        self.where = ""

    def charge(self, steps: int = 1) -> None:
        """Use up ``steps``."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise _limit("steps needed to follow the code", MAX_STEPS, self.steps, self.where)

    def add_module(self) -> None:
        """One more module was made."""
        self.modules += 1
        self.charge(MODULE_COST)
        if self.modules > MAX_MODULES:
            raise _limit("modules that the code makes", MAX_MODULES, self.modules, self.where)

    def enter(self) -> None:
        """One call deeper."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _limit("calls within calls", MAX_DEPTH, self.depth, self.where)

    def leave(self) -> None:
        """One call less deep."""
        self.depth -= 1


def _limit(what: str, limit: int, actual: int, where: str) -> LimitError:
    hint = "no published model needs as much; the code or its configuration was made to mislead"
    return LimitError(what, limit=limit, actual=actual, where=where, hint=hint)


def too_deep(where: str) -> LimitError:
    """Expressions nest deeper than the interpreter's stack."""
    limit = sys.getrecursionlimit()
    return LimitError("nesting of expressions", limit=limit, actual=f"more than {limit}", where=where)
