"""``config.json`` in any dialect -> canonical fields. A value that cannot be true is dropped and named.

Dialects are data (``data/architectures/config_dialects.toml``). **Nested configurations**: a multimodal model
keeps its language model's fields in an object such as ``text_config``; those win over the same key at the
top level, because the top level then describes the assembly and not the language model. In ``raw`` the
object stays where it is; :func:`flatten` gives one flat view with the same precedence.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cache
from importlib import resources

from drupe.errors import LimitError
from drupe.messages import msg
from drupe.readers.interface import Absent
from drupe.readers.strict_json import Json, read_json_object
from drupe.sources.interface import Tree

Scalar = int | float | str | bool

MAX_BYTES = 8 << 20
"""Of a configuration; the largest published ones (with label maps of 21,000 classes) are about 2 MB."""
MAX_TEXT = 200
"""Characters kept of a name in a configuration."""
_FILES = ("config.json", "params.json")
_KINDS = {"int", "float", "bool", "text", "activation", "count"}


@dataclass(frozen=True, slots=True)
class Field:
    """One canonical field: its spellings, its kind and the range in which a value can be true."""

    name: str
    kind: str
    keys: tuple[str, ...]
    meta: tuple[str, ...]
    gguf: tuple[str, ...]
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Dialects:
    """The table of fields, the names of nested configurations and the activations' aliases."""

    fields: tuple[Field, ...]
    nested: tuple[str, ...]
    activations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Config:
    """A model's configuration.

    ``canonical`` maps canonical field names to checked values, ``spelled`` the same names to the keys under
    which they were found, and ``ignored`` lists keys whose values cannot be true.
    """

    file: str
    raw: Mapping[str, Json]
    model_type: str | None
    architectures: tuple[str, ...]
    name_or_path: str | None
    canonical: Mapping[str, Scalar]
    spelled: Mapping[str, str]
    ignored: tuple[str, ...]


@cache
def dialects() -> Dialects:
    """The shipped table. Raises ValueError when the data file is malformed."""
    file = resources.files("drupe") / "data" / "architectures" / "config_dialects.toml"
    return load_dialects(tomllib.loads(file.read_text(encoding="utf-8")))


def load_dialects(table: Mapping[str, object]) -> Dialects:
    """Check a parsed dialect table: closed keys, known kinds, no spelling claimed by two fields."""
    _only(table, {"schema", "nested", "field", "activation"}, "config_dialects")
    if table.get("schema") != 1:
        raise ValueError(f"config_dialects: schema {table.get('schema')!r} is not 1")
    fields = tuple(_field(name, _mapping(entry)) for name, entry in _mapping(table["field"]).items())
    for dialect in ("keys", "gguf"):
        spellings = [key for field in fields for key in getattr(field, dialect)]
        twice = {key for key in spellings if spellings.count(key) > 1}
        if twice:
            raise ValueError(f"config_dialects: {dialect} claimed by two fields: {sorted(twice)}")
    activations = {
        alias: name for name, aliases in _mapping(table["activation"]).items() for alias in _texts(aliases)
    }
    return Dialects(fields, _texts(table["nested"]), activations)


def _field(name: str, entry: Mapping[str, object]) -> Field:
    _only(entry, {"kind", "keys", "meta", "gguf", "low", "high"}, name)
    kind = entry["kind"]
    if kind not in _KINDS:
        raise ValueError(f"config_dialects: {name}: unknown kind {kind!r}")
    low, high = entry.get("low", 0 if kind == "count" else 1), entry.get("high", math.inf)
    if not isinstance(low, int | float) or not isinstance(high, int | float) or low > high:
        raise ValueError(f"config_dialects: {name}: bad range")
    meta = _texts(entry.get("meta", []))
    return Field(name, str(kind), _texts(entry["keys"]), meta, _texts(entry["gguf"]), low, high)


def _only(table: Mapping[str, object], allowed: set[str], where: str) -> None:
    unknown = set(table) - allowed
    if unknown:
        raise ValueError(f"{where}: unknown keys {sorted(unknown)}")


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ValueError("config_dialects: expected a table")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("config_dialects: expected a list of strings")
    return tuple(value)


def read_config(tree: Tree) -> Config | Absent:
    """The configuration of a model: ``config.json`` (or Meta's ``params.json``) nearest to the root.

    Raises FormatError when the file is not a JSON object, LimitError when it is too large.
    """
    file = _find(tree.files())
    if file is None:
        return Absent(msg("parts.config.absent"))
    blob = tree.open(file)
    if blob.size > MAX_BYTES:
        raise LimitError("size of a configuration in bytes", limit=MAX_BYTES, actual=blob.size, where=file)
    return config_of(file, read_json_object(blob))


def config_of(file: str, raw: Mapping[str, Json]) -> Config:
    """The configuration in a parsed object."""
    return _build(file, raw, lambda field: _spellings(raw, field))


def _find(files: Mapping[str, int]) -> str | None:
    for wanted in _FILES:
        found = [path for path in files if path.rsplit("/", 1)[-1] == wanted]
        if found:
            return min(found, key=lambda path: (path.count("/"), path))
    return None


def from_gguf(fields: Mapping[str, object]) -> Config | Absent:
    """The configuration in the key-value pairs of a GGUF header (``llama.block_count`` ...)."""
    architecture = text(fields.get("general.architecture"))
    if architecture is None:
        return Absent(msg("parts.config.absent_gguf"))
    tokens = fields.get("tokenizer.ggml.tokens")
    known: dict[str, object] = dict(fields)
    if isinstance(tokens, Sized) and not isinstance(tokens, str):
        known.setdefault(f"{architecture}.vocab_size", len(tokens))
    prefix = f"{architecture}."
    raw: dict[str, Json] = {
        key: value
        for key, value in fields.items()
        if isinstance(value, str | int | float | bool) and key.startswith((prefix, "general."))
    }

    def found(field: Field) -> list[tuple[str, object]]:
        return [(prefix + key, known[prefix + key]) for key in field.gguf if prefix + key in known]

    config = _build("GGUF header", raw, found)
    return Config(
        config.file,
        raw,
        architecture,
        (),
        text(fields.get("general.name")),
        config.canonical,
        config.spelled,
        config.ignored,
    )


def _build(
    file: str, raw: Mapping[str, Json], found: Callable[[Field], Sequence[tuple[str, object]]]
) -> Config:
    canonical: dict[str, Scalar] = {}
    spelled: dict[str, str] = {}
    ignored: list[str] = []
    for field in dialects().fields:
        for key, value in found(field):
            checked = check(field, value)
            if checked is None:
                if value is not None:
                    ignored.append(key)
            elif field.name not in canonical:
                canonical[field.name], spelled[field.name] = checked, key
    architectures = raw.get("architectures")
    listed = architectures if isinstance(architectures, list) else []
    return Config(
        file=file,
        raw=raw,
        model_type=text(raw.get("model_type")),
        architectures=tuple(name for item in listed[:16] if (name := text(item)) is not None),
        name_or_path=text(raw.get("_name_or_path")) or text(raw.get("name_or_path")),
        canonical=canonical,
        spelled=spelled,
        ignored=tuple(ignored),
    )


def _spellings(raw: Mapping[str, Json], field: Field) -> list[tuple[str, object]]:
    """Every place in which a field is spelled, the nested configurations first."""
    places = [f"{nested}.{key}" for nested in dialects().nested for key in field.keys]
    meta = field.meta if "dim" in raw else ()
    return [
        (path, value) for path in [*places, *field.keys, *meta] if (value := _walk(raw, path)) is not None
    ]


def _walk(raw: Mapping[str, Json], path: str) -> object:
    value: object = raw
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def flatten(raw: Mapping[str, Json]) -> dict[str, Json]:
    """The top level with the nested language model's fields laid over it; the nested objects left out."""
    flat = dict(raw)
    for nested in reversed(dialects().nested):
        inner = _walk(raw, nested)
        if isinstance(inner, dict):
            flat.pop(nested.split(".")[0], None)
            flat.update(
                {key: value for key, value in inner.items() if key not in ("model_type", "architectures")}
            )
    return flat


def check(field: Field, value: object) -> Scalar | None:
    """The value when it can be true for this field, normalised; None otherwise.

    >>> hidden = next(field for field in dialects().fields if field.name == "hidden_size")
    >>> check(hidden, 4096), check(hidden, "x"), check(hidden, -1), check(hidden, 10**30), check(hidden, True)
    (4096, None, None, None, None)
    """
    if field.kind == "bool":
        return value if isinstance(value, bool) else None
    if field.kind == "text":
        return text(value)
    if field.kind == "activation":
        name = text(value)
        return None if name is None else dialects().activations.get(name.lower(), name.lower())
    if isinstance(value, bool) or not isinstance(value, int | float) or not field.low <= value <= field.high:
        return None  # NaN fails both comparisons
    if field.kind == "float":
        return float(f"{value:.6g}")  # GGUF keeps float32: 1e-5 reads 9.99999975e-06 there
    return int(value) if value == int(value) else None


def text(value: object) -> str | None:
    """A name from a stranger: a non-empty string without control characters, at most MAX_TEXT long."""
    if not isinstance(value, str):
        return None
    clean = "".join(char if char.isprintable() else " " for char in value[:MAX_TEXT]).strip()
    return clean or None
