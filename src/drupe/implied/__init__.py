"""The tensors that a model's code implies, from its syntax tree alone; nothing is imported or run.

:func:`implied` follows the constructors of a modelling file under a configuration and lists the names and
shapes that ``state_dict()`` would have; :func:`fits` says whether a file of tensors can be loaded into that,
and after which renames. What could not be worked out is listed with its place, never guessed.
"""

from __future__ import annotations

from drupe.implied.fit import Fit, Outcome, Rename, fits
from drupe.implied.follow import implied
from drupe.implied.pairing import Pairing, explain, pair_up
from drupe.implied.results import Entry, Gap, Implied, Place

__all__ = [
    "Entry",
    "Fit",
    "Gap",
    "Implied",
    "Outcome",
    "Pairing",
    "Place",
    "Rename",
    "explain",
    "fits",
    "implied",
    "pair_up",
]
