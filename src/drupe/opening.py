"""Locator -> Subject: a model folder or repository, a fingerprint file, or an evidence folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drupe import fingerprint as fingerprints
from drupe.errors import LocatorError, SourceError, UnsafePathError, UnsupportedError, UsageError
from drupe.facts import to_json
from drupe.files import read_bounded
from drupe.fingerprint import Fingerprint
from drupe.model import Model, open_model, with_adapter
from drupe.readers.card import read_documents
from drupe.readers.code import read_code
from drupe.readers.interface import Absent
from drupe.readers.strict_json import Json
from drupe.signals.declared import SearchText, search_texts
from drupe.signals.sketch.spread import spread_matrices
from drupe.sources.interface import Tree
from drupe.sources.local import LocalTree
from drupe.sources.locator import open_tree
from drupe.subject import Subject

FINGERPRINT = "fingerprint.drupe"
EVIDENCE_FILES = "files"
Document = tuple[str, bytes]


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # damage is a state of a matrix, not a warning
def open_subject(
    locator: str,
    *,
    offline: bool,
    documents: Sequence[Document] = (),
    spread_above: int | None = None,
    adapter: str | None = None,
) -> Subject:
    """Open whatever a locator names. Raises LocatorError and the errors of the readers.

    ``spread_above``: of remote weights of at least so many bytes, only a few layers are sketched. ``adapter``: the
    locator of an adapter that is applied to the weights; raises UsageError when it does not fit.
    """
    path = Path(locator)
    if adapter is not None and is_stored(locator):
        raise UsageError("an adapter needs the weights of its base, not a fingerprint", where=locator)
    if os.path.isfile(path) and _is_fingerprint(path):  # Path.is_file raises on a name that is too long
        return _from_fingerprint(path, None, documents)
    if os.path.isfile(path / FINGERPRINT):
        return _from_evidence(path, documents)
    model = open_model(open_tree(locator, offline=offline), documents)
    check_analysable(model)
    if adapter is not None:
        model = with_adapter(model, open_model(open_tree(adapter, offline=offline)))
    thrifty = spread_above is not None and is_remote(model.tree) and model.stored_bytes >= spread_above
    matrices = spread_matrices(model.matrices) if thrifty else None
    return Subject(fingerprints.extract(model, matrices), model, _texts(model))


def is_stored(locator: str) -> bool:
    """Whether a locator names a fingerprint file or an evidence folder."""
    path = Path(locator)
    return (os.path.isfile(path) and _is_fingerprint(path)) or os.path.isfile(path / FINGERPRINT)


def is_remote(tree: Tree) -> bool:
    """Whether each read of a tree may cost a request."""
    return not (isinstance(tree, LocalTree) or getattr(tree, "is_local", False))


def check_analysable(model: Model) -> None:
    """Raise LocatorError when a folder holds no part of a model at all."""
    parts = (model.weights, model.config, model.tokenizer, model.code)
    unread = isinstance(model.weights, Absent) and model.weights.reason.key == "adapters.none_read"
    if unread and all(isinstance(part, Absent) for part in parts):
        raise UnsupportedError(
            str(getattr(model.weights, "reason", "")),
            where=model.tree.locator,
            hint="merge it into its base with its own library, then compare the merged model",
        )
    if all(isinstance(part, Absent) for part in parts):
        raise LocatorError(
            "no part of a model was found here (weights, config, tokenizer or code)",
            where=model.tree.locator,
            hint="give the folder that holds config.json and the weight files",
        )


def _is_fingerprint(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(fingerprints.MAGIC)) == fingerprints.MAGIC
    except OSError as error:
        raise SourceError(error.strerror or "cannot be read", where=str(path)) from None


def _from_evidence(folder: Path, documents: Sequence[Document]) -> Subject:
    """An evidence folder may come from a stranger: its links lead nowhere."""
    for part in (folder / FINGERPRINT, folder / EVIDENCE_FILES):
        if part.is_symlink():
            raise UnsafePathError("a link in an evidence folder", where=str(part))
    return _from_fingerprint(folder / FINGERPRINT, folder / EVIDENCE_FILES, documents)


def _from_fingerprint(path: Path, files: Path | None, documents: Sequence[Document]) -> Subject:
    fingerprint = fingerprints.from_bytes(read_bounded(path, fingerprints.MAX_BYTES), str(path))
    texts = _kept_texts(LocalTree(files), documents) if files is not None and files.is_dir() else None
    return Subject(fingerprint, None, texts)


def _kept_texts(tree: Tree, documents: Sequence[Document]) -> tuple[SearchText, ...]:
    kept, code = read_documents(tree, documents), read_code(tree)
    return search_texts(
        None if isinstance(kept, Absent) else kept, None if isinstance(code, Absent) else code
    )


def _texts(model: Model) -> tuple[SearchText, ...]:
    return search_texts(
        None if isinstance(model.documents, Absent) else model.documents,
        None if isinstance(model.code, Absent) else model.code,
    )


def describe(locator: str, subject: Subject) -> dict[str, Json]:
    """The table of one side in a report."""
    fingerprint, model = subject.fingerprint, subject.model
    parts: dict[str, Json] = {
        part: f"absent: {fingerprint.absent[part]}" if part in fingerprint.absent else "present"
        for part in fingerprints.PARTS
    }
    side: dict[str, Json] = {
        "locator": model.tree.locator if model else locator,
        "digest": f"header-sha256:{header_digest(fingerprint)}",
        "revision": model.tree.revision if model else None,
        "format": fingerprint.storage.format or None,
        "parameters": fingerprint.structure.parameters,
        "parts": parts,
    }
    if adapter := _adapter(subject):
        side["adapter"] = adapter
    if flags := _flags(fingerprint):
        side["flags"] = flags
    if fingerprint.flags.omitted:
        side["flags_omitted"] = fingerprint.flags.omitted
    return side


def _adapter(subject: Subject) -> dict[str, Json] | None:
    """What an adapter is: the side itself, or what is applied to it."""
    model = subject.model
    applied = model.applied if model is not None else None
    facts = applied.adapter if applied is not None else subject.fingerprint.adapter
    if facts is None:
        return None
    return {
        "applied": None if applied is None else applied.tree.locator,
        "layout": facts.layout,
        "methods": list(facts.methods),
        "rank": facts.rank,
        "ranks": list(facts.ranks),
        "stated_rank": facts.stated_rank,
        "alpha": facts.alpha,
        "changed_tensors": facts.changed,
        "saved_tensors": facts.saved,
        "unread_modules": facts.unread,
        "stored_values": facts.stored_values,
        "base": facts.base,
        "base_digest": facts.base_digest,
    }


def _flags(fingerprint: Fingerprint) -> list[Json]:
    """Remarks on the files, the gravest first: code that loading them would call for."""
    return [
        {
            "kind": flag.kind.value,
            "file": flag.file,
            "position": flag.position,
            "what": flag.what,
            "reason": flag.reason,
            "beside": flag.beside,
        }
        for flag in fingerprint.flags.kept
    ]


def header_digest(fingerprint: Fingerprint) -> str:
    """sha256 of the headers and metadata: names, shapes, dtypes, configuration, vocabulary, code. No values."""
    vocabulary = fingerprint.tokenizer
    facts = [
        to_json(fingerprint.names),
        to_json(fingerprint.structure),
        to_json(fingerprint.storage),
        to_json(fingerprint.code),
        None if vocabulary is None else to_json(vocabulary.facts),
    ]
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
