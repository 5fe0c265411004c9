"""Suspect and source, code and tensors: the four combinations, and the sentence that they allow."""

from __future__ import annotations

from dataclasses import dataclass

from drupe.implied.fit import Fit, Outcome, Shapes, fits
from drupe.implied.results import Implied
from drupe.messages import Message, msg

MAX_EXAMPLES = 4


@dataclass(frozen=True, slots=True)
class Pairing:
    """Each model's code with each model's tensors; the first word of a field is whose code it is."""

    suspect_own: Fit
    suspect_others: Fit
    source_own: Fit
    source_others: Fit

    @property
    def headline(self) -> Message:
        """Whose code can load the suspect's weights, in one sentence."""
        own, others = self.suspect_own, self.source_others
        parameters = {"own": len(own.renames), "others": len(others.renames)}
        return Message(f"implied.headline.{_short(own)}.{_short(others)}", parameters)

    @property
    def reasons(self) -> tuple[Message, ...]:
        """One sentence for each of the four, with file and line."""
        return (
            explain(self.suspect_own, msg("implied.suspect_code"), msg("implied.suspect_tensors")),
            explain(self.source_others, msg("implied.source_code"), msg("implied.suspect_tensors")),
            explain(self.suspect_others, msg("implied.suspect_code"), msg("implied.source_tensors")),
            explain(self.source_own, msg("implied.source_code"), msg("implied.source_tensors")),
        )


def pair_up(suspect: Implied, source: Implied, suspect_tensors: Shapes, source_tensors: Shapes) -> Pairing:
    """All four combinations of code and tensors."""
    return Pairing(
        suspect_own=fits(suspect, suspect_tensors),
        suspect_others=fits(suspect, source_tensors),
        source_own=fits(source, source_tensors),
        source_others=fits(source, suspect_tensors),
    )


def explain(fit: Fit, code: Message, tensors: Message) -> Message:
    """What became of loading ``tensors`` into ``code``."""
    if fit.outcome is Outcome.UNKNOWN:
        return msg("implied.unknown", code=code, tensors=tensors)
    if fit.outcome is Outcome.FITS:
        return msg("implied.fits", code=code, tensors=tensors, count=fit.matched)
    if fit.outcome is Outcome.FITS_AFTER_RENAMES:
        shown = ", ".join(f"{one.code} -> {one.file}" for one in fit.renames[:MAX_EXAMPLES])
        return msg("implied.renamed", code=code, tensors=tensors, count=len(fit.renames), renames=shown)
    return msg("implied.fails", code=code, tensors=tensors, why=_why(fit))


def _why(fit: Fit) -> Message:
    """The first thing that is wrong, with its place in the code, and how much else."""
    if fit.missing:
        first = fit.missing[0]
        return msg(
            "implied.missing",
            count=len(fit.missing),
            name=first.name,
            file=first.place.file,
            line=first.place.line,
            left=len(fit.unexpected),
        )
    if fit.wrong:
        wrong = fit.wrong[0]
        return msg(
            "implied.wrong",
            count=len(fit.wrong),
            name=wrong.name,
            file=wrong.place.file,
            line=wrong.place.line,
            wanted=_shape(wrong.wanted),
            found=_shape(wrong.found),
        )
    return msg("implied.left", count=len(fit.unexpected), name=fit.unexpected[0] if fit.unexpected else "")


def _shape(shape: tuple[int | None, ...]) -> str:
    return " x ".join("?" if one is None else str(one) for one in shape) or "1"


def _short(fit: Fit) -> str:
    return {
        Outcome.FITS: "fits",
        Outcome.FITS_AFTER_RENAMES: "renamed",
        Outcome.DOES_NOT_FIT: "fails",
        Outcome.UNKNOWN: "unknown",
    }[fit.outcome]
