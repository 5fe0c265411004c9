"""Patterns of names that a model's code declares, matched without its regular expressions being trusted.

Only letters, digits, ``.``, ``\\.``, ``\\d+``, ``.*``, ``^`` and ``$`` are understood; anything else matches nothing.
The parts between ``.*`` are searched one after the other, so the time is linear in the name.
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_PATTERN = 200
MAX_NAME = 256
"""Characters of a name that is matched."""
_SAFE = re.compile(r"\^?(?:[A-Za-z0-9_\-]|\\\.|\.\*|\.\+|\.|\\d\+|\\d\*|\\d|\[0-9\]\+)*\$?")
_ANY = re.compile(r"(?<!\\)\.[*+]")


@lru_cache(256)
def parts_of(pattern: str) -> tuple[re.Pattern[str], ...] | None:
    """The parts that must be found in order; None when the pattern is not understood."""
    if len(pattern) > MAX_PATTERN or not _SAFE.fullmatch(pattern):
        return None
    return tuple(re.compile(re.sub(r"(\\d|\[0-9\])([+*])", r"\1\2+", part)) for part in _ANY.split(pattern))


def matches(pattern: str, name: str) -> bool:
    """The pattern is found in the name.

    >>> matches(r"encoder\\.embed_tokens\\.weight", "encoder.embed_tokens.weight")
    True
    """
    parts = parts_of(pattern)
    if parts is None or len(name) > MAX_NAME:
        return False
    at = 0
    for part in parts:
        found = part.search(name, at)
        if found is None:
            return False
        at = found.end()
    return True
