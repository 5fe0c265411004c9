"""Can the code of either side load the tensors of either side? Static: drupe.implied follows the code, nothing runs.

A finding of the code component. It moves no verdict: code of one architecture fits every model of that architecture
and size; what speaks is code that does not fit the weights it is published with, while another's does.
"""

from __future__ import annotations

from collections.abc import Mapping

from drupe.errors import DrupeError
from drupe.implied import Fit, Implied, Outcome, explain, fits, implied, pair_up
from drupe.messages import Message, msg
from drupe.model import Model
from drupe.readers.interface import Absent
from drupe.signals.interface import Component, Evidence, Failed, Finding, Measured, Skipped
from drupe.subject import Subject

SIGNAL = "code.fit"
_FITTING = (Outcome.FITS, Outcome.FITS_AFTER_RENAMES)


def compare(suspect: Subject, source: Subject) -> Finding | None:
    """None when no side has code files that are at hand; else which code fits which tensors."""
    models = [side.model for side in (suspect, source)]
    if not any(model is not None and not isinstance(model.code, Absent) for model in models):
        return None
    shapes = [_shapes(side) for side in (suspect, source)]
    if not all(shapes):
        return Skipped(SIGNAL, Component.CODE, msg("implied.no_tensors"))
    try:
        codes = [None if model is None else _implied(model) for model in models]
    except DrupeError as error:
        return Failed(SIGNAL, Component.CODE, msg("implied.too_large", reason=str(error)))
    return _finding(codes[0], codes[1], shapes[0], shapes[1])


def _shapes(side: Subject) -> Mapping[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.shape) for tensor in side.listed}


def _implied(model: Model) -> Implied | None:
    """What the code files of a model register under its configuration."""
    if isinstance(model.code, Absent):
        return None
    raw = {} if isinstance(model.config, Absent) else model.config.raw
    classes = () if isinstance(model.config, Absent) else model.config.architectures
    return implied({file.file: file.text for file in model.code.files}, raw, classes[0] if classes else None)


def _finding(
    ours: Implied | None,
    theirs: Implied | None,
    mine: Mapping[str, tuple[int, ...]],
    others: Mapping[str, tuple[int, ...]],
) -> Finding:
    tried: list[Fit]
    if ours is not None and theirs is not None:
        pairing = pair_up(ours, theirs, mine, others)
        tried = [pairing.suspect_own, pairing.source_others, pairing.suspect_others, pairing.source_own]
        reasons: tuple[Message, ...] = (pairing.headline, *pairing.reasons)
    else:
        code, said = (ours, "implied.suspect_code") if ours is not None else (theirs, "implied.source_code")
        assert code is not None
        tried = [fits(code, mine), fits(code, others)]
        sides = (msg("implied.suspect_tensors"), msg("implied.source_tensors"))
        reasons = tuple(explain(fit, msg(said), side) for fit, side in zip(tried, sides, strict=True))
    return Measured(
        signal=SIGNAL,
        component=Component.CODE,
        statistic=float(sum(fit.outcome in _FITTING for fit in tried)),
        null=msg("implied.null"),
        sample_size=len(tried),
        evidence=tuple(Evidence("*.py", reason) for reason in reasons),
        caveats=(msg("implied.caveat"),),
    )
