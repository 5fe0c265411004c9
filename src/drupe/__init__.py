"""Drupe: is a model a kernel of its own, or somebody else's kernel in a new shell?

The public names are loaded on first use, so that ``import drupe`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "compare": "drupe.workflows",
    "inspect": "drupe.workflows",
    "sketch": "drupe.workflows",
    "load_report": "drupe.workflows",
    "DrupeError": "drupe.errors",
}
__all__ = ["DrupeError", "compare", "inspect", "load_report", "sketch"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'drupe' has no attribute {name!r}")
    # A sub-module may carry the name of a public function: the function wins, once and for all.
    globals()[name] = value = getattr(import_module(_PUBLIC[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
