"""Report: the one public schema (``drupe/report/1.N``). Plain English text plus a table of its Chinese.

Built from a verdict, written as JSON, read back strictly (an unknown key is an error unless the report is
newer), rendered by report/*. Nothing is computed here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata, resources

from drupe.diagnose import Diagnosis, PartResult, Transformation, layer_shares
from drupe.document_schema import Checker
from drupe.errors import FormatError
from drupe.messages import Message
from drupe.readers.strict_json import Json, as_object, parse_json
from drupe.signals.interface import Failed, Finding, Measured, Skipped
from drupe.verdict import Relation, Verdict, weights_relation

SCHEMA = "drupe/report/1.1"
_MINOR = 1
KINDS = {"comparison": "report-1.json", "inspection": "inspection-1.json"}
"""Kind of document -> the file of its schema."""
MAX_BYTES = 64 << 20
"""Of a saved report."""
MAX_MAP = 2000
"""Entries of one map that a report keeps; the rest is counted."""

Report = dict[str, Json]
"""The document itself: JSON types only, keys as published in data/schema."""


class Translations:
    """Collects the Chinese of every sentence that enters the document."""

    def __init__(self) -> None:
        self.chinese: dict[str, Json] = {}

    def __call__(self, message: Message) -> str:
        """The English text; remembers the Chinese."""
        text = message.text("en")
        self.chinese[text] = message.text("zh")
        return text

    def all(self, messages: Iterable[Message]) -> list[Json]:
        """Several sentences."""
        return [self(message) for message in messages]


def build(
    verdict: Verdict,
    diagnosis: Diagnosis,
    *,
    suspect: Mapping[str, Json],
    sources: Sequence[Mapping[str, Json]],
    coverage: Mapping[str, Json],
) -> Report:
    """The report of one comparison; ``suspect``, ``sources`` and ``coverage`` are ready tables."""
    say = Translations()
    for side in (diagnosis.comparison.suspect, diagnosis.comparison.source):
        say.all(side.absent.values())  # the tables of the sides quote these reasons
    components: dict[str, Json] = {
        component.value: {"relation": part.relation.value, "reasons": say.all(part.reasons)}
        for component, part in verdict.components.items()
    }
    components["weights"] = _weights(diagnosis, components["weights"])
    return {
        "schema": SCHEMA,
        "kind": "comparison",
        "tool": {"name": "drupe", "version": version()},
        "suspect": dict(suspect),
        "coverage": dict(coverage),
        "source": dict(sources[0]),
        "sources": [dict(source) for source in sources[1:]],
        "components": components,
        "originality": _originality(verdict, say),
        "verdict": {
            "label": verdict.label.value,
            "disclosure": verdict.disclosure.value,
            "summary": {"en": verdict.summary.text("en"), "zh": verdict.summary.text("zh")},
            "caveats": say.all(verdict.caveats),
        },
        "findings": [_finding(finding, say) for finding in diagnosis.comparison.findings],
        "translations": {"zh": say.chinese},
    }


def version() -> str:
    """The installed version of Drupe."""
    return metadata.version("drupe")


def _weights(d: Diagnosis, base: Json) -> dict[str, Json]:
    return {
        **as_object(base, "weights"),
        "log10_p": None if d.log10_p is None else round(d.log10_p, 2),
        "shared_fraction": round(d.shared_fraction, 4),
        "transformations": [_transformation(item) for item in d.transformations],
        "direction": d.direction,
        "parts": [_part(part) for part in d.parts],
        **({"layers": layers} if (layers := _layers(d)) else {}),
    }


def _layers(d: Diagnosis) -> list[Json]:
    """What every layer inherits, part by part where a model was judged so."""
    whole = [(None, d)] if not d.parts else []
    parts = [(part.name, part.diagnosis) for part in d.parts if part.diagnosis is not None]
    found: list[Json] = []
    for name, diagnosis in (*whole, *parts):
        for share in layer_shares(diagnosis):
            entry: dict[str, Json] = {"layer": share.layer, "source": share.source}
            entry["inherited"] = round(share.inherited, 4)
            found.append(entry if name is None or len(d.parts) == 1 else {"part": name, **entry})
    return found


def _part(part: PartResult) -> dict[str, Json]:
    relation = Relation.ABSENT if part.diagnosis is None else weights_relation(part.diagnosis)
    return {
        "name": part.name,
        "relation": relation.value,
        "share": round(part.share, 4),
        "source": part.source,
        "like": part.like,
    }


def _transformation(item: Transformation) -> dict[str, Json]:
    return {
        "kind": item.kind.value,
        "parameters": {key: _plain(value) for key, value in item.parameters.items()},
    }


def _plain(value: object) -> Json:
    """JSON types; long maps are cut (their ``count`` stands beside them)."""
    if isinstance(value, Mapping):
        return {str(key): _plain(value[key]) for key in list(value)[:MAX_MAP]}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value[:MAX_MAP]]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def _originality(verdict: Verdict, say: Translations) -> dict[str, Json]:
    own = verdict.originality
    return {
        "weights_inherited": own.weights_inherited,
        "code_inherited": own.code_inherited,
        "surface_only": own.surface_only,
        "credit": say.all(own.credit),
    }


def _finding(finding: Finding, say: Translations) -> dict[str, Json]:
    base: dict[str, Json] = {"signal": finding.signal, "component": finding.component.value}
    match finding:
        case Skipped():
            return {**base, "status": "skipped", "reason": say(finding.reason)}
        case Failed():
            return {**base, "status": "failed", "reason": say(finding.reason)}
        case Measured():
            return {**base, "status": "measured", **_measured(finding, say)}


def _measured(f: Measured, say: Translations) -> dict[str, Json]:
    effect: Json = None
    if f.effect is not None:
        numbers = (f.effect.estimate, f.effect.low, f.effect.high)
        effect = {
            key: _number(value) for key, value in zip(("estimate", "low", "high"), numbers, strict=True)
        }
    baseline: Json = None
    if f.baseline is not None:
        quantiles = {"q50": _number(f.baseline.q50), "q99": _number(f.baseline.q99)}
        baseline = {"what": say(f.baseline.what), **quantiles}
    return {
        "statistic": _number(f.statistic),
        "null": say(f.null),
        "log10_p": None if f.log10_p is None else _number(f.log10_p),
        "effect": effect,
        "sample_size": int(f.sample_size),
        "baseline": baseline,
        "evidence": [{"where": item.where, "what": say(item.what)} for item in f.evidence],
        "caveats": say.all(f.caveats),
    }


def _number(value: float) -> float | None:
    """Six significant digits; JSON has no NaN and no infinity."""
    number = float(value)
    return float(f"{number:.6g}") if number == number and abs(number) != float("inf") else None


def dumps(report: Report) -> str:
    """The JSON text: two spaces, keys in published order, non-ASCII kept where UTF-8 can hold it."""
    try:
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except UnicodeEncodeError:  # a file name that is no UTF-8: escaped, it survives the round trip
        text = json.dumps(report, indent=2, ensure_ascii=True, allow_nan=False)
    return text + "\n"


def dumps_all(reports: Sequence[Report]) -> str:
    """Several reports as one JSON array."""
    return "[\n" + ",\n".join(dumps(report).rstrip("\n") for report in reports) + "\n]\n"


def loads(data: bytes, where: str) -> Report:
    """Read a saved report. Raises FormatError when it is none, damaged, or of another major version.

    The whole document is checked against the published schema; an unknown key passes only when the report was
    written by a newer minor version.
    """
    report = as_object(parse_json(data, where), where)
    schema = report.get("schema")
    if not isinstance(schema, str) or not schema.startswith("drupe/report/"):
        raise FormatError("not a Drupe report (no schema)", where=where)
    found = re.fullmatch(r"drupe/report/1\.([0-9]{1,6})", schema)
    if found is None:
        raise FormatError(f"schema {schema[:40]!r} is not of version 1", where=where, hint="update Drupe")
    kind = report.get("kind", "comparison")  # its absence is named by the check
    if not isinstance(kind, str) or kind not in KINDS:
        known = " nor ".join(KINDS)
        raise FormatError(
            f"a report of kind {str(kind)[:40]!r}, neither {known}", where=where, hint="update Drupe"
        )
    rules, newer = json_schema(kind), int(found[1]) > _MINOR
    Checker(rules, where, lenient=newer).check(report, rules)
    if newer:
        _check_writable(report, where)
    return report


def _check_writable(report: Report, where: str) -> None:
    """Keys that this version does not know are carried along, so they must be JSON that can be written."""
    try:
        dumps(report)
    except (ValueError, RecursionError):
        raise FormatError("a number is not finite, or the nesting is too deep", where=where) from None


def json_schema(kind: str = "comparison") -> dict[str, Json]:
    """The published JSON Schema of a report of that kind."""
    file = resources.files("drupe") / "data" / "schema" / KINDS[kind]
    return as_object(json.loads(file.read_text(encoding="utf-8")), KINDS[kind])
