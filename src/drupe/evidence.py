"""Evidence folder: what of a model must survive when its repository is deleted. No weights.

``fingerprint.drupe``, ``manifest.json`` (locator, revision, time, every file with size and digest), ``files/``
(configuration, code, card, licences, tokenizer settings) and ``headers/`` (the raw headers of the weight files).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from drupe import fingerprint as fingerprints
from drupe.document import dumps, version
from drupe.errors import SourceError, UsageError
from drupe.model import Model
from drupe.opening import EVIDENCE_FILES, FINGERPRINT, describe
from drupe.readers.interface import Absent
from drupe.readers.strict_json import Json
from drupe.readers.wrapping import headers_of
from drupe.subject import Subject

MAX_FILE = 4 << 20
MAX_TOTAL = 64 << 20
_KEPT = (".json", ".md", ".txt", ".py", ".jinja", ".toml", ".yaml", ".yml", ".cff")
_KEPT_NAMES = ("license", "licence", "notice", "copying", "readme", "use_policy")


def preserve(subject: Subject, folder: Path) -> Path:
    """Write the evidence of an opened model into a new folder; all of it or nothing.

    Raises UsageError when the folder exists or the subject is itself only a fingerprint.
    """
    model = subject.model
    if model is None:
        raise UsageError("evidence can only be kept of a model, not of a fingerprint")
    if os.path.lexists(folder):
        raise UsageError(f"{folder} exists", hint="choose a new folder; evidence is never overwritten")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            _fill(draft, subject, model)
            draft.chmod(0o755)
            draft.rename(folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    except OSError as error:
        raise SourceError(error.strerror or "cannot be written", where=str(folder)) from None
    return folder


def _fill(draft: Path, subject: Subject, model: Model) -> None:
    (draft / FINGERPRINT).write_bytes(fingerprints.to_bytes(subject.fingerprint))
    kept = _copy_files(draft / EVIDENCE_FILES, model)
    headers = _copy_headers(draft / "headers", model)
    digests: dict[str, str] = getattr(model.tree, "known_digests", {})
    listing: dict[str, Json] = {
        name: {"size": size, "sha256": kept.get(name) or digests.get(name), "kept": name in kept}
        for name, size in model.tree.files().items()
    }
    manifest: dict[str, Json] = {
        "schema": "drupe/evidence/1.0",
        "tool": {"name": "drupe", "version": version()},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": describe(model.tree.locator, subject),
        "headers": dict(headers),
        "files": listing,
    }
    (draft / "manifest.json").write_text(dumps(manifest), "utf-8")


def _copy_files(target: Path, model: Model) -> dict[str, str]:
    """Small text files, by relative path; returns their digests."""
    digests: dict[str, str] = {}
    room = MAX_TOTAL
    for name, size in model.tree.files().items():
        if not _wanted(name) or size > min(MAX_FILE, room):
            continue
        data = model.tree.open(name).read(0, size)
        room -= size
        path = target / PurePosixPath(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        digests[name] = hashlib.sha256(data).hexdigest()
    return digests


def _wanted(name: str) -> bool:
    last = name.rpartition("/")[2].lower()
    safe = ".." not in name.split("/") and not name.startswith("/")
    return safe and (last.endswith(_KEPT) or last.startswith(_KEPT_NAMES))


def _copy_headers(target: Path, model: Model) -> dict[str, str]:
    """The raw headers of the weight files; returns their digests."""
    headers = {} if isinstance(model.weights, Absent) else headers_of(model.weights)
    if not headers:
        return {}
    digests = {}
    for name, data in headers.items():
        path = target / f"{PurePosixPath(name)}.header"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        digests[name] = hashlib.sha256(data).hexdigest()
    return digests
