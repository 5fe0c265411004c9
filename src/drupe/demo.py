"""``drupe demo``: the main job on real published models, and whether it came out as it must.

Which models, from which packages, and what is expected: ``data/demo.toml``. :func:`fetch` fills the cache,
:func:`run` compares; :func:`provenance` and :func:`conclusion` are the sentences around the reports.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from drupe import packages, workflows
from drupe.document import Report
from drupe.messages import Language, Message, msg
from drupe.packages import Amount, Member, Notify, Package
from drupe.readers.strict_json import as_object

_DIGITS = 16
"""Hexadecimal digits of a digest that are shown without -v, as in the reports."""


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One published model. ``what``: key of the sentence that describes it; ``origin``: who published it."""

    name: str
    what: str
    licence: str
    origin: str
    package: Package


@dataclass(frozen=True, slots=True)
class Expected:
    """What must come out: label, disclosure, and at least these transformations."""

    label: str
    disclosure: str
    transformations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One pair, by the names of two exhibits."""

    suspect: str
    source: str
    expected: Expected


@dataclass(frozen=True, slots=True)
class Plan:
    """The content of ``data/demo.toml``."""

    exhibits: tuple[Exhibit, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The reports, in the order of ``plan.comparisons``."""

    plan: Plan
    reports: tuple[Report, ...]

    @property
    def as_expected(self) -> bool:
        """Whether every verdict is the expected one."""
        pairs = zip(self.plan.comparisons, self.reports, strict=True)
        return all(agrees(pair.expected, found(report)) for pair, report in pairs)


def published() -> Plan:
    """The plan that ships with Drupe."""
    file = resources.files("drupe") / "data" / "demo.toml"
    return read_plan(file.read_text(encoding="utf-8"))


def read_plan(text: str) -> Plan:
    """A plan from the text of a ``demo.toml``; a missing or unknown key is an error of the file."""
    table = tomllib.loads(text)
    exhibits = tuple(_exhibit(**entry) for entry in table["model"])
    return Plan(exhibits, tuple(_comparison(**entry) for entry in table["comparison"]))


def _exhibit(
    *,
    name: str,
    what: str,
    licence: str,
    origin: str,
    package: str,
    version: str,
    size: int,
    sha256: str,
    files: Sequence[Mapping[str, Any]],
) -> Exhibit:
    members = tuple(Member(**entry) for entry in files)
    return Exhibit(name, what, licence, origin, Package(package, version, size, sha256, members))


def _comparison(
    *, suspect: str, source: str, label: str, disclosure: str, transformations: Sequence[str]
) -> Comparison:
    return Comparison(suspect, source, Expected(label, disclosure, tuple(transformations)))


def folder() -> Path:
    """Where the models of the demo are kept."""
    return packages.cache_folder() / "demo"


def fetch(plan: Plan, *, offline: bool, notify: Notify, amount: Amount) -> None:
    """Download what the cache lacks and verify all of it. Raises OfflineError, SourceError or FormatError."""
    for exhibit in plan.exhibits:
        notify(msg("demo.step.verifying", name=exhibit.name))
        packages.fetch(
            exhibit.package, folder() / exhibit.name, offline=offline, notify=notify, amount=amount
        )


def run(plan: Plan, *, notify: Notify) -> Outcome:
    """Compare the pairs of a plan; everything is in the cache, so no connection is made."""
    reports = []
    for pair in plan.comparisons:
        notify(msg("demo.step.comparing", suspect=pair.suspect, source=pair.source))
        sides = (str(folder() / pair.suspect), str(folder() / pair.source))
        reports.append(workflows.compare(*sides, offline=True, notify=notify))
    return Outcome(plan, tuple(reports))


def found(report: Report) -> Expected:
    """What a report says, in the terms of an expectation."""
    verdict = as_object(report["verdict"], "verdict")
    weights = as_object(as_object(report["components"], "components")["weights"], "weights")
    changes = weights["transformations"]
    assert isinstance(changes, list)
    kinds = [str(as_object(change, "transformation")["kind"]) for change in changes]
    return Expected(str(verdict["label"]), str(verdict["disclosure"]), tuple(kinds))


def agrees(expected: Expected, actual: Expected) -> bool:
    """Label and disclosure as expected, and no expected transformation missing."""
    same = (actual.label, actual.disclosure) == (expected.label, expected.disclosure)
    return same and set(expected.transformations) <= set(actual.transformations)


def provenance(plan: Plan, language: Language, *, verbose: bool = False) -> str:
    """Where every file came from: package, version, licence, sizes and digests."""
    lines = [msg("demo.origins", folder=str(folder())).text(language), ""]
    for exhibit in plan.exhibits:
        package = exhibit.package
        lines.append(f"{exhibit.name}: {msg(f'demo.what.{exhibit.what}').text(language)}")
        lines.append("  " + msg("demo.package", name=package.name, version=package.version).text(language))
        lines.append("  " + _wheel(package, verbose).text(language))
        lines.append("  " + msg("demo.licence", licence=exhibit.licence).text(language))
        lines.append("  " + msg("demo.origin", origin=exhibit.origin).text(language))
        lines += [_file(member, verbose) for member in package.members]
        lines.append("")
    return "\n".join(lines)


def _wheel(package: Package, verbose: bool) -> Message:
    return msg("demo.wheel", size=_size(package.size), sha256=_digest(package.sha256, verbose))


def _file(member: Member, verbose: bool) -> str:
    digest = f"sha256:{_digest(member.sha256, verbose)}"
    if verbose:
        return f"    {member.name}  {_size(member.size)}\n      {digest}\n      {member.path}"
    return f"    {member.name:<31} {_size(member.size):>9}  {digest}"


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"


def _digest(sha256: str, verbose: bool) -> str:
    return sha256 if verbose else f"{sha256[:_DIGITS]}..."


def title(plan: Plan, index: int, language: Language) -> str:
    """The heading above one report."""
    pair, count = plan.comparisons[index], len(plan.comparisons)
    message = msg("demo.title", number=index + 1, count=count, suspect=pair.suspect, source=pair.source)
    return f"\n=== {message.text(language)} ===\n\n"


def conclusion(outcome: Outcome, language: Language) -> str:
    """For each pair: whether it came out as it must, what was expected, and what was found."""
    lines = [""]
    for pair, report in zip(outcome.plan.comparisons, outcome.reports, strict=True):
        actual = found(report)
        key = "demo.as_expected" if agrees(pair.expected, actual) else "demo.not_as_expected"
        lines.append(msg(key, suspect=pair.suspect, source=pair.source).text(language))
        for word, result in (("expected", pair.expected), ("found", actual)):
            lines.append("  " + msg(f"demo.{word}", result=_summary(result)).text(language))
    return "\n".join(lines) + "\n"


def _summary(result: Expected) -> str:
    """In the words of the JSON report, which are the same in every language."""
    said = () if result.disclosure == "unknown" else (result.disclosure,)
    return ", ".join((result.label, *sorted(result.transformations), *said))
