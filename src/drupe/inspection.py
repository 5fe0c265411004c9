"""What is in one model, as a document (``kind: inspection``). Facts only, nothing judged."""

from __future__ import annotations

from collections import Counter

import numpy as np

from drupe.document import SCHEMA, Report, Translations, version
from drupe.fingerprint import Fingerprint
from drupe.opening import describe
from drupe.readers.interface import TensorInfo
from drupe.readers.strict_json import Json
from drupe.schemes import schemes
from drupe.shape_kinds import kinds_of_shapes
from drupe.signals import genome
from drupe.subject import Subject
from drupe.uninformative import State

MAX_ROWS = 200


def inspection(locator: str, subject: Subject) -> Report:
    """The document of one opened subject."""
    fingerprint = subject.fingerprint
    say = Translations()
    for reason in fingerprint.absent.values():
        say(reason)
    return {
        "schema": SCHEMA,
        "kind": "inspection",
        "tool": {"name": "drupe", "version": version()},
        "model": describe(locator, subject),
        "architecture": _architecture(fingerprint, subject, say),
        "storage": {
            "format": fingerprint.storage.format or None,
            "files": fingerprint.storage.files,
            "values_by_dtype": dict(fingerprint.storage.dtypes),
        },
        "matrices": _matrices(fingerprint, subject),
        "tokenizer": _tokenizer(fingerprint),
        "declared": _declared(fingerprint),
        "code": [file for file, *_ in fingerprint.code.files[:MAX_ROWS]],
        "translations": {"zh": say.chinese},
    }


def _architecture(f: Fingerprint, subject: Subject, say: Translations) -> dict[str, Json]:
    roles = subject.model.roles if subject.model else None
    scheme = roles.scheme if roles else None
    genes = None if f.adapter is not None else genome.extract(f.structure, subject.listed, roles)
    design = genome.describe(genes) if genes is not None else ()
    titles = {entry.name: entry.title for entry in schemes()}
    return {
        "model_type": f.structure.model_type,
        "classes": list(f.structure.architectures),
        "names_follow": titles[scheme.name] if scheme else None,
        "design": [say(sentence) for sentence in design],
        "layers": f.structure.depth,
        "hidden_size": f.structure.hidden,
        "hyper_parameters": dict(f.structure.canonical),
    }


def _matrices(f: Fingerprint, subject: Subject) -> dict[str, Json]:
    """How many matrices of each role, what shapes tell where names tell none, and which cannot speak for lineage."""
    roles = Counter(matrix.role or "unknown" for matrix in f.weights.matrices)
    states: dict[str, Json] = {}
    for state in State:
        count = int(np.count_nonzero(f.weights.states == state))
        if count:
            states[state.name.lower()] = count
    found: dict[str, Json] = {"by_role": dict(sorted(roles.items())), "by_state": states}
    if 2 * roles["unknown"] > roles.total():
        tensors = [TensorInfo(tensor.name, tensor.shape, tensor.dtype, "") for tensor in subject.listed]
        kinds = Counter(kind.value for kind in kinds_of_shapes(tensors).values())
        found["by_shape"] = dict(sorted(kinds.items()))
    return found


def _tokenizer(f: Fingerprint) -> Json:
    if f.tokenizer is None:
        return None
    facts = f.tokenizer.facts
    return {
        "kind": facts.kind,
        "format": facts.format,
        "pieces": facts.pieces,
        "added_tokens": facts.added,
        "digest": facts.digest,
    }


def _declared(f: Fingerprint) -> dict[str, Json]:
    said = f.declared
    return {
        "names": list(said.names),
        "base_models": [place.text for place in said.base_models],
        "licences": list(said.licences),
        "copyright": [place.text for place in said.holders],
    }
