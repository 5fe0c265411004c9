"""Checks a document against its published JSON Schema: the part of the 2020-12 vocabulary that is used there.

A damaged or hostile report becomes a FormatError that names the place; the tests hold this subset against the
``jsonschema`` package, which is not needed at run time.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from drupe.errors import FormatError
from drupe.readers.strict_json import Json, as_object

Schema = Mapping[str, Json]

_SCALARS = frozenset({"type", "const", "enum", "pattern", "minimum", "maximum"})
_KEYS = frozenset({"required", "properties", "additionalProperties"})
_APPLICATORS = _KEYS | {"$ref", "items", "if", "then", "else"}
KEYWORDS = _SCALARS | _APPLICATORS
"""The assertions that are checked."""
ANNOTATIONS = frozenset({"$schema", "$id", "$defs", "title", "description"})
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "number": (int, float),
    "integer": (int, float),
}


@dataclass(frozen=True, slots=True)
class Checker:
    """Checks values against ``root``; ``lenient`` = written by a newer minor version, unknown keys pass."""

    root: Schema
    where: str
    lenient: bool = False

    def check(self, value: Json, schema: Json, path: str = "report") -> None:
        """Raise FormatError at the first place that does not conform."""
        if isinstance(schema, bool):
            if not schema:
                self._refuse(path, "this key is not allowed here")
            return
        rules = as_object(schema, "schema")
        if "$ref" in rules:
            self.check(value, self._definition(str(rules["$ref"])), path)
        self._scalar(value, rules, path)
        if isinstance(value, dict):
            self._object(value, rules, path)
        if isinstance(value, list) and "items" in rules:
            for index, item in enumerate(value):
                self.check(item, rules["items"], f"{path}[{index}]")
        if "if" in rules:
            branch = rules.get("then" if self._passes(value, rules["if"]) else "else", True)
            self.check(value, branch, path)

    def _definition(self, reference: str) -> Json:
        return as_object(self.root["$defs"], "schema")[reference.removeprefix("#/$defs/")]

    def _passes(self, value: Json, schema: Json) -> bool:
        try:
            self.check(value, schema)
        except FormatError:
            return False
        return True

    def _scalar(self, value: Json, rules: Schema, path: str) -> None:
        kinds = rules.get("type")
        if kinds is not None:
            wanted = [str(kind) for kind in kinds] if isinstance(kinds, list) else [str(kinds)]
            if not any(_is(value, kind) for kind in wanted):
                self._refuse(path, f"expected {' or '.join(wanted)}, found {_show(value)}")
        if "const" in rules and value != rules["const"]:
            self._refuse(path, f"expected {rules['const']!r}, found {_show(value)}")
        choices = rules.get("enum")
        if isinstance(choices, list) and value not in choices:
            self._refuse(path, f"{_show(value)} is not one of {', '.join(map(str, choices))}")
        if isinstance(value, str) and not re.search(str(rules.get("pattern", "")), value):
            self._refuse(path, f"{_show(value)} does not match {rules['pattern']}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            self._range(value, rules, path)

    def _range(self, value: float, rules: Schema, path: str) -> None:
        for keyword, sign in (("minimum", 1), ("maximum", -1)):
            limit = rules.get(keyword)
            if isinstance(limit, int | float) and sign * value < sign * limit:
                self._refuse(path, f"{_show(value)} is beyond the {keyword} of {limit}")

    def _object(self, value: Mapping[str, Json], rules: Schema, path: str) -> None:
        required = rules.get("required", [])
        for key in required if isinstance(required, list) else []:
            if str(key) not in value:
                self._refuse(path, f"missing key {key!r}")
        known = as_object(rules.get("properties", {}), "schema")
        others = rules.get("additionalProperties", True)
        for key, item in value.items():
            if key in known:
                self.check(item, known[key], f"{path}.{key}")
            elif others is False and not self.lenient:
                self._refuse(path, f"unknown key {key[:40]!r}")
            elif not isinstance(others, bool):
                self.check(item, others, f"{path}[{key[:40]!r}]")

    def _refuse(self, path: str, what: str) -> None:
        raise FormatError(f"{path}: {what}", where=self.where)


def _is(value: Json, kind: str) -> bool:
    """Whether a value has a JSON type; numbers are finite, and true is no number."""
    if not isinstance(value, _TYPES[kind]) or isinstance(value, bool) != (kind == "boolean"):
        return False
    if isinstance(value, int | float) and kind in ("number", "integer"):
        finite = -sys.float_info.max <= value <= sys.float_info.max
        return finite and (kind == "number" or isinstance(value, int) or value.is_integer())
    return True


def _show(value: Json) -> str:
    """A short, harmless picture of a value for an error text."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > sys.float_info.max:
        return "a number beyond all limits"
    return json.dumps(value)[:60]
