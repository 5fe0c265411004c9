"""Fingerprint: what a comparison needs of a model, without its weights. Versioned, canonical, reproducible.

Layout, little-endian: magic ``DRUPEFP1`` | header length (u32) | tokenizer sample length (u32) | canonical JSON
header | tokenizer sample | per matrix, in the order of the header: 8 sketch words (u64), bits (u16), state (u8),
value digest (8 bytes), rms (f32). Neither a time nor a locator is inside: the same files give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drupe import flags as flag_facts
from drupe.errors import FormatError, LimitError
from drupe.facts import from_json, to_json
from drupe.flags import Flags
from drupe.messages import Message, msg
from drupe.model import Matrix, Model
from drupe.name_groups import Named, NameGroup, expand, group_names, template_of
from drupe.readers.adapters import AdapterFacts
from drupe.readers.code import CodeFiles
from drupe.readers.interface import Absent
from drupe.readers.strict_json import Json, as_object, parse_json
from drupe.signals import declared, names, structure
from drupe.signals.sketch.bits import DIGEST_BYTES, WORDS
from drupe.signals.sketch.bits import VERSION as SKETCH_VERSION
from drupe.signals.sketch.facts import WeightFacts
from drupe.signals.sketch.facts import extract as extract_weights
from drupe.signals.sketch.spread import sample_changes
from drupe.signals.tokenizer import sketch as tokenizer

MAGIC = b"DRUPEFP1"
MAX_BYTES = 64 << 20
MAX_MATRICES = 100_000
MAX_TENSORS = 200_000
MAX_NAME_CHARACTERS = 16 << 20
"""Of all names together; 100,000 tensors of the largest published mixtures take about 6 million."""
_RECORD = np.dtype(
    [
        ("words", "<u8", (WORDS,)),
        ("count", "<u2"),
        ("state", "u1"),
        ("digest", "u1", (DIGEST_BYTES,)),
        ("rms", "<f4"),
    ]
)
_KEYS = frozenset(
    {
        *("sketch_version", "structure", "names", "declared", "code"),
        *("storage", "tokenizer", "matrices", "absent"),
    }
)
_ADAPTER = "adapter"
"""Key of a header that only adapters have."""
_FLAGS = "flags"
"""Key of a header that only models have of which something must be said."""
PARTS = ("weights", "config", "tokenizer", "code", "documents")


@dataclass(frozen=True, slots=True)
class CodeFacts:
    """Digests of the code files: (path, sha256 of the bytes, sha256 of the text with LF line ends)."""

    files: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Storage:
    """How the weights are stored: format, number of files, values by dtype, mean bits where quantised."""

    format: str
    files: int
    dtypes: Mapping[str, int]
    quantised_bits: float


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The portable facts of every part. An absent part is in ``absent`` with the key of its reason."""

    structure: structure.StructureFacts
    names: names.NamesFacts
    declared: declared.DeclaredFacts
    code: CodeFacts
    storage: Storage
    tokenizer: tokenizer.TokenizerSketch | None
    weights: WeightFacts
    absent: Mapping[str, Message]
    adapter: AdapterFacts | None = None
    """When the weights are an adapter's alone. Its key is left out of the file for all other models."""
    flags: Flags = flag_facts.NOTHING
    """Remarks on the files. The key is left out when there is none."""


def extract(model: Model, matrices: Sequence[Matrix] | None = None) -> Fingerprint:
    """The fingerprint of an opened model; reads a few rows of every matrix, or of the given ones only."""
    tensors = [] if isinstance(model.weights, Absent) else list(model.weights.tensors.values())
    if model.adapter is not None and matrices is None:
        matrices = sample_changes(model.matrices)
    config = None if isinstance(model.config, Absent) else model.config
    documents = None if isinstance(model.documents, Absent) else model.documents
    code = None if isinstance(model.code, Absent) else model.code
    metadata = {} if isinstance(model.weights, Absent) else model.weights.metadata
    roles = {name: (role.name, role.layer) for name, role in model.roles.by_tensor.items()}
    return Fingerprint(
        structure=structure.extract(config, tensors, roles),
        names=names.extract(tensors),
        declared=declared.extract(
            model.tree.locator, documents, code, config, metadata, _adapter_base(model.adapter)
        ),
        code=_code(code),
        storage=_storage(model),
        tokenizer=None if isinstance(model.tokenizer, Absent) else tokenizer.extract(model.tokenizer),
        weights=extract_weights(model, matrices),
        absent={part: value.reason for part in PARTS if isinstance(value := getattr(model, part), Absent)},
        adapter=model.adapter,
        flags=flag_facts.keep(model.flags),
    )


def _adapter_base(adapter: AdapterFacts | None) -> declared.Place | None:
    if adapter is None or adapter.base is None:
        return None
    where = "adapter_config.json" if adapter.layout == "peft" else "header: ss_sd_model_name"
    return declared.Place(adapter.base, where, 0)


def _code(code: CodeFiles | None) -> CodeFacts:
    files = code.files if code else ()
    return CodeFacts(tuple((file.file, file.sha256, file.text_sha256) for file in files))


def _storage(model: Model) -> Storage:
    if isinstance(model.weights, Absent):
        return Storage("", 0, {}, 0.0)
    tensors = model.weights.tensors.values()
    dtypes: dict[str, int] = {}
    for info in tensors:
        dtypes[info.dtype] = dtypes.get(info.dtype, 0) + info.size
    packed = [info for info in tensors if info.is_quantised]
    values = sum(info.size for info in packed)
    bits = sum(info.size * info.stored_bits for info in packed) / values if values else 0.0
    return Storage(model.weights.format, len({info.file for info in tensors}), dtypes, round(bits, 3))


def to_bytes(fingerprint: Fingerprint) -> bytes:
    """The canonical file content."""
    weights = fingerprint.weights
    named = [_named(matrix) for matrix in weights.matrices]
    groups = group_names(named)
    order = {name: place for place, name in enumerate(expand(groups))}
    if len(order) != len(named):
        raise LimitError("matrices with one name", limit=len(order), actual=len(named), where="fingerprint")
    places = np.array([order[name] for name in named], np.intp)
    records = np.zeros(len(named), _RECORD)
    for field, values in (
        ("words", weights.words),
        ("count", weights.counts),
        ("state", weights.states),
        ("digest", weights.digests),
        ("rms", weights.rms),
    ):
        records[field][places] = values
    sample = b"" if fingerprint.tokenizer is None else fingerprint.tokenizer.sample.to_bytes()
    text = json.dumps(_header(fingerprint, groups), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    header = text.encode("utf-8", "replace")
    lengths = len(header).to_bytes(4, "little") + len(sample).to_bytes(4, "little")
    return MAGIC + lengths + header + sample + records.tobytes()


def _header(fingerprint: Fingerprint, groups: tuple[NameGroup, ...]) -> dict[str, Json]:
    vocabulary = fingerprint.tokenizer
    further: dict[str, Json] = {}
    if fingerprint.adapter is not None:
        further[_ADAPTER] = to_json(fingerprint.adapter)
    if fingerprint.flags.kept:
        further[_FLAGS] = flag_facts.encode(fingerprint.flags)
    return {
        **further,
        "sketch_version": SKETCH_VERSION,
        "structure": to_json(fingerprint.structure),
        "names": to_json(fingerprint.names),
        "declared": to_json(fingerprint.declared),
        "code": to_json(fingerprint.code),
        "storage": to_json(fingerprint.storage),
        "tokenizer": None if vocabulary is None else to_json(vocabulary.facts),
        "matrices": [[group.template, group.runs, list(group.shape), group.dtype] for group in groups],
        "absent": {
            part: [reason.key, {k: v for k, v in reason.parameters.items() if not isinstance(v, Message)}]
            for part, reason in fingerprint.absent.items()
        },
    }


def _named(matrix: Matrix) -> Named:
    """A matrix as a name: its numbers in the shape, so that layers collapse into one group."""
    _, numbers = template_of(matrix.tensor)
    layer = matrix.layer
    place = 0 if layer is None else 1 + numbers.index(layer) if layer in numbers else -1
    shape: tuple[int, ...] = (matrix.rows, matrix.columns, matrix.row_start, int(matrix.transposed), place)
    if matrix.run or matrix.expert is not None:
        shape += (matrix.run, matrix.stride, -1 if matrix.expert is None else matrix.expert)
    return Named(matrix.tensor, shape, matrix.role or "")


def _matrix(named: Named) -> Matrix:
    rows, columns, row_start, transposed, place, *further = named.shape
    layer = template_of(named.name)[1][place - 1] if place > 0 else None
    run, stride, expert = further or (0, 0, -1)
    role = named.dtype or None
    inside = (run, stride, None if expert < 0 else expert)
    return Matrix(named.name, rows, columns, row_start, bool(transposed), role, layer, *inside)


def from_bytes(data: bytes, where: str) -> Fingerprint:
    """Read and validate a fingerprint, also one from a stranger. Raises FormatError or LimitError."""
    if not data.startswith(MAGIC):
        raise FormatError("not a Drupe fingerprint", where=where, hint="make one with drupe sketch")
    if len(data) > MAX_BYTES:
        raise LimitError("fingerprint size in bytes", limit=MAX_BYTES, actual=len(data), where=where)
    header_length, sample_length = (int.from_bytes(data[k : k + 4], "little") for k in (8, 12))
    body = 16 + header_length + sample_length
    if body > len(data):
        raise LimitError("header and sample length", limit=len(data) - 16, actual=body - 16, where=where)
    header = as_object(parse_json(data[16 : 16 + header_length], where), where)
    if header.get("sketch_version") != SKETCH_VERSION:
        raise FormatError(
            f"sketch version {str(header.get('sketch_version'))[:20]}; this version reads {SKETCH_VERSION}",
            where=where,
            hint="make the fingerprint again with this version",
        )
    try:
        return _parse(header, data[16 + header_length : body], data[body:], where)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise FormatError(f"the header is not canonical: {str(error)[:100]}", where=where) from None


def _parse(header: dict[str, Json], sample: bytes, records: bytes, where: str) -> Fingerprint:
    odd = (set(header) - {_ADAPTER, _FLAGS}) ^ _KEYS
    if odd:
        raise FormatError(f"unknown or missing keys {sorted(odd)[:5]}", where=where)
    vocabulary = None
    if header["tokenizer"] is None and sample:
        raise FormatError("a sample of no tokenizer", where=where)
    if header["tokenizer"] is not None:
        facts = from_json(tokenizer.VocabularyFacts, header["tokenizer"], where)
        vocabulary = tokenizer.TokenizerSketch(facts, tokenizer.Sample.from_bytes(sample, where))
    named = from_json(names.NamesFacts, header["names"], where)
    _check_groups("tensors", named.groups, MAX_TENSORS, where)
    return Fingerprint(
        structure=from_json(structure.StructureFacts, header["structure"], where),
        names=named,
        declared=from_json(declared.DeclaredFacts, header["declared"], where),
        code=from_json(CodeFacts, header["code"], where),
        storage=from_json(Storage, header["storage"], where),
        tokenizer=vocabulary,
        weights=_weights(header["matrices"], records, where),
        absent=_absent(header["absent"], where),
        adapter=from_json(AdapterFacts, header[_ADAPTER], where) if _ADAPTER in header else None,
        flags=flag_facts.decode(header[_FLAGS], where) if _FLAGS in header else flag_facts.NOTHING,
    )


def _weights(groups: Json, records: bytes, where: str) -> WeightFacts:
    if not isinstance(groups, list):
        raise FormatError("matrices is not a list", where=where)
    rows = [from_json(_Groups, {"group": row}, where).group for row in groups]
    _check_groups("matrices", rows, MAX_MATRICES, where)
    expected = sum(group.count for group in rows) * _RECORD.itemsize
    if len(records) != expected:
        raise FormatError(f"{len(records)} bytes of records; the header needs {expected}", where=where)
    matrices = tuple(_matrix(named) for named in expand(rows))
    if len(set(matrices)) != len(matrices):
        raise FormatError("a matrix is named twice", where=where)
    table = np.frombuffer(records, _RECORD)
    if (table["count"] > 64 * WORDS).any():
        raise FormatError("a sketch claims more bits than it has", where=where)
    return WeightFacts(
        matrices,
        table["words"].astype(np.uint64),
        table["count"].astype(np.uint16),
        table["digest"].copy(),
        table["rms"].astype(np.float32),
        table["state"].copy(),
    )


def _check_groups(what: str, groups: Sequence[NameGroup], limit: int, where: str) -> None:
    """A few bytes can name a million tensors: the names are counted before one is built."""
    count = sum(group.count for group in groups)
    if count > limit:
        raise LimitError(what, limit=limit, actual=count, where=where)
    length = sum(group.count * len(group.template) for group in groups)
    if length > MAX_NAME_CHARACTERS:
        raise LimitError(
            f"characters in names of {what}", limit=MAX_NAME_CHARACTERS, actual=length, where=where
        )


@dataclass(frozen=True, slots=True)
class _Groups:
    group: NameGroup


def _absent(table: Json, where: str) -> dict[str, Message]:
    """Reasons are keys of the catalogue; an unknown key is an error, not a crash later."""
    reasons = {}
    for part, row in as_object(table, where).items():
        if part not in PARTS or not isinstance(row, list) or len(row) != 2 or not isinstance(row[0], str):
            raise FormatError(f"absent part {part[:40]!r} is not canonical", where=where)
        parameters = {k: v for k, v in as_object(row[1], where).items() if isinstance(v, str | int | float)}
        reasons[part] = msg(row[0], **parameters)
        reasons[part].text("en")
    return reasons
