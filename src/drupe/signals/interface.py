"""What a signal returns, and the contract of every signal.

A signal owns its extractor (Model -> portable facts) and its comparison (facts, facts -> finding). It works
from fingerprints alone. "Skipped because" and "failed because" are results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from drupe.messages import Message


class Component(StrEnum):
    """The five parts of a model that are judged apart."""

    ARCHITECTURE = "architecture"
    CODE = "code"
    TOKENIZER = "tokenizer"
    WEIGHTS = "weights"
    BEHAVIOUR = "behaviour"


@dataclass(frozen=True, slots=True)
class Effect:
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Baseline:
    """The same number on pairs that are unrelated: quantiles of ``what``."""

    what: Message
    q50: float
    q99: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """One place a reader can check: file, tensor or line, and what is to be seen there."""

    where: str
    what: Message


@dataclass(frozen=True, slots=True)
class Measured:
    """A number with its null, significance, effect, sample size, evidence and caveats.

    ``log10_p`` is None for descriptive findings that carry no test; ``null`` then says why.
    """

    signal: str
    component: Component
    statistic: float
    null: Message
    sample_size: int
    log10_p: float | None = None
    effect: Effect | None = None
    baseline: Baseline | None = None
    evidence: Sequence[Evidence] = ()
    caveats: Sequence[Message] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """The signal does not apply; the reason is part of the result."""

    signal: str
    component: Component
    reason: Message


@dataclass(frozen=True, slots=True)
class Failed:
    """The signal applies and broke (bad input in one part); the rest is still compared."""

    signal: str
    component: Component
    reason: Message


Finding = Measured | Skipped | Failed
