"""The verbs end to end: the one file that knows all stages.

``compare``: locator -> Subject (sources, readers, Model, Fingerprint) -> Comparison -> Diagnosis (part by part where
a model has parts) -> Verdict -> Report. The command line and any service call these functions and print what
they return.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from drupe import document, evidence, files, maps
from drupe import fingerprint as fingerprints
from drupe.assembly import examine
from drupe.comparison import AUTO, Budget
from drupe.convert import steps
from drupe.convert.request import rename_json
from drupe.convert.steps import Written
from drupe.convert.writer import Done, refuse_existing
from drupe.document import Report
from drupe.errors import UsageError
from drupe.inspection import inspection
from drupe.messages import Message, msg
from drupe.opening import Document, describe, is_stored, open_subject
from drupe.readers.strict_json import Json
from drupe.subject import Subject
from drupe.verdict import judge

Notify = Callable[[Message], None]
"""Told what is being done, for a progress display."""


def _silent(message: Message) -> None:
    """Nobody watches."""


def _uncounted(done: int, total: int) -> None:
    """Nobody counts."""


SHARD_SIZE = 5 * 10**9
"""Bytes of one file of a converted model, as the hub advises."""


def compare(
    suspect: str,
    source: str,
    *further: str,
    budget: Budget = AUTO,
    offline: bool = False,
    documents: Sequence[Document] = (),
    adapter: str | None = None,
    keep_maps: Path | None = None,
    notify: Notify = _silent,
) -> Report:
    """The evidence and the verdict on one suspect. Raises DrupeError when a side cannot be analysed.

    ``further``: more sources, from which some part of the suspect may come. ``documents``: further texts of the
    suspect that may name a source (file name, content). ``adapter``: applied to the suspect before it is compared.
    ``keep_maps``: the recovered maps are written to this file (maps.py).
    """
    locators = (source, *further)
    notify(msg("progress.reading", locator=suspect))
    spread_above = 0 if all(map(is_stored, locators)) else budget.full_below
    left = open_subject(
        suspect, offline=offline, documents=documents, spread_above=spread_above, adapter=adapter
    )
    rights = []
    for locator in locators:
        notify(msg("progress.reading", locator=locator))
        rights.append(open_subject(locator, offline=offline))
    notify(msg("progress.comparing"))
    diagnosis = examine(left, rights, budget)
    if keep_maps is not None:
        files.write_atomically(keep_maps, maps.to_bytes(diagnosis))
    return document.build(
        judge(diagnosis),
        diagnosis,
        suspect=describe(suspect, left),
        sources=[describe(locator, side) for locator, side in zip(locators, rights, strict=True)],
        coverage=_coverage((left, *rights), diagnosis.comparison.level),
    )


def _coverage(sides: Sequence[Subject], level: str) -> dict[str, Json]:
    """Bytes and requests of all sides; share of the weight values of all sides that were used."""
    models = [side.model for side in sides if side.model is not None]
    models += [model.applied for model in models if model.applied is not None]
    total = sum(side.fingerprint.structure.parameters for side in sides)
    used = sum(sum(model.used.values()) for model in models)
    return {
        "bytes_read": sum(model.tree.meter.bytes_read for model in models),
        "share": round(used / total, 6) if total else 0.0,
        "level": level,
        "requests": sum(model.tree.meter.requests for model in models),
    }


def sketch(
    models: Sequence[str],
    output: Path,
    *,
    keep_evidence: Path | None = None,
    adapter: str | None = None,
    offline: bool = False,
    notify: Notify = _silent,
) -> list[Path]:
    """Write the fingerprint of one model to a file, of several into a folder; returns what was written.

    ``keep_evidence``: also preserve headers, configuration, code, card and digests in a new folder. ``adapter``:
    applied to the one model.
    """
    if len(models) > 1 and adapter is not None:
        raise UsageError("--adapter is applied to one model", hint="run drupe sketch once per model")
    if len(models) > 1 and keep_evidence is not None:
        raise UsageError("--evidence keeps one model at a time", hint="run drupe sketch once per model")
    written: list[Path] = []
    for locator in models:
        notify(msg("progress.reading", locator=locator))
        subject = open_subject(locator, offline=offline, adapter=adapter)
        target = output if len(models) == 1 else _unused(output, _stem(locator), written)
        files.write_atomically(target, fingerprints.to_bytes(subject.fingerprint))
        written.append(target)
        if keep_evidence is not None:
            written.append(evidence.preserve(subject, keep_evidence))
    return written


def _unused(folder: Path, stem: str, written: Sequence[Path]) -> Path:
    """A name in the folder that this run has not written yet: two models may share their last component."""
    names = (f"{stem}.drupe", *(f"{stem}-{number}.drupe" for number in range(2, len(written) + 3)))
    return next(folder / name for name in names if folder / name not in written)


def _stem(locator: str) -> str:
    """A file name from a locator: its last component, harmless characters only."""
    last = locator.rstrip("/").replace("\\", "/").rpartition("/")[2].split("@")[0]
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in last).strip(".") or "model"


def inspect(
    model: str, *, adapter: str | None = None, offline: bool = False, notify: Notify = _silent
) -> Report:
    """What is in one model, with an adapter applied to it or without; nothing is judged."""
    notify(msg("progress.reading", locator=model))
    return inspection(model, open_subject(model, offline=offline, adapter=adapter))


def convert(
    model: str,
    like: str,
    target: Path | None,
    *,
    map_only: bool = False,
    shard_size: int = SHARD_SIZE,
    digests: bool = False,
    run: bool = False,
    offline: bool = False,
    notify: Notify = _silent,
    amount: Done = _uncounted,
) -> Written | bytes:
    """The weights of a model under the names and in the layout of another, in a new folder.

    ``like``: a locator, or the name of a shipped scheme. ``map_only``: only the map, without ``target`` as bytes.
    ``digests``: with the SHA-256 of every tensor. ``run``: load the result with transformers and compare its
    logits with the original's; nothing is left when they differ.
    Raises LocatorError when the target exists and UnsupportedError when the names of the other do not fit.
    """
    if target is not None:
        refuse_existing(target)
    notify(msg("progress.reading", locator=model))
    opened = steps.open_weights_of(model, offline=offline)
    notify(msg("progress.reading", locator=like))
    names, source = steps.target_of(like, offline=offline)
    made = steps.describe(opened, model, names, steps.plan_for(opened, names, source, run=run))
    if target is None:
        return rename_json(made, {})
    notify(msg("convert.progress", target=str(target)))
    if map_only:
        steps.write_map(made, target)
        return Written(target, len(made.plan.outputs), 0, 0)
    return steps.write_all(
        opened, made, names, target, amount, shard_size=shard_size, digests=digests, run=run
    )


def load_report(path: Path) -> Report:
    """A saved report. Raises LocatorError when there is none and FormatError when it is damaged."""
    return document.loads(files.read_bounded(path, document.MAX_BYTES), str(path))
