"""Two subjects -> Comparison: runs what applies and keeps every skip and failure. Judges nothing.

A subject is a fingerprint and, when the files are at hand, the lazy model. From two fingerprints the deep steps
are skipped ("needs weights").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drupe import threads
from drupe.fingerprint import Fingerprint
from drupe.messages import msg
from drupe.model import Model
from drupe.readers.interface import Absent
from drupe.recover.adapt import adapt
from drupe.recover.adapters import Declared, Deltas, adapter_findings, against_base, compare_deltas
from drupe.recover.findings import Lineage
from drupe.recover.lineage import investigate
from drupe.recover.quoted import quoted
from drupe.signals import declared, genome, names, structure
from drupe.signals.interface import Component, Effect, Finding, Measured, Skipped
from drupe.signals.sketch import compare as sketch
from drupe.signals.tokenizer import TokenizerResult
from drupe.signals.tokenizer import compare as compare_tokenizers
from drupe.stats import wilson
from drupe.subject import Subject


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be read: sides below ``full_below`` bytes of weights in full, larger ones as a sample.

    ``escalate``: when the sample leaves a doubt, the few whole layers that settle it may be read too.
    """

    full_below: int = 1 << 30
    escalate: bool = True


AUTO = Budget()
SAMPLE = Budget(0, escalate=False)
FULL = Budget(1 << 62)


@dataclass(frozen=True, slots=True)
class CodeResult:
    """Code files by digest. ``same_bytes``, ``same_text``: how many of the suspect's stand in the source."""

    suspect_files: int
    source_files: int
    same_bytes: int
    same_text: int
    finding: Finding


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that was measured. An optional part is None when it does not apply; a finding says why."""

    suspect: Fingerprint
    source: Fingerprint
    names: names.NamesResult | None
    structure: structure.StructureResult
    tokenizer: TokenizerResult | None
    code: CodeResult
    declared: declared.DeclaredResult
    same_values: float | None
    """Share of the suspect's matrices whose sampled values stand in the source bit for bit."""
    sketch: sketch.SketchResult
    lineage: Lineage | None
    level: str
    findings: tuple[Finding, ...]
    declared_base: Declared | None = None
    """When exactly one side is an adapter: whether it fits the other and names it."""
    deltas: Deltas | None = None
    """When both sides are opened adapters: what they add to their bases, compared."""
    genome: genome.GenomeResult | None = None
    """The graphs in words and how usual they are; None when a side is an adapter. Moves no verdict."""


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # damage of a model is a state, not a warning
def compare(suspect: Subject, source: Subject, budget: Budget = AUTO, *, deep: bool = True) -> Comparison:
    """Run every signal that applies to two subjects; not ``deep``: nothing that needs the tensors of both."""
    suspect, source = adapt(suspect, source), adapt(source, suspect)
    a, b = suspect.fingerprint, source.fingerprint
    level = coverage_level(suspect, source, budget)
    structures = structure.compare(a.structure, b.structure)
    named = _names(suspect, source)
    genes = _genomes(suspect, source, named)
    vocabularies, vocabulary_findings = _tokenizer(suspect, source)
    code = _code(a, b)
    said = declared.compare(a.declared, b.declared, suspect.texts)
    same, identity = _identity(a, b)
    sketches = sketch.compare(a.weights, b.weights)
    against, deltas = against_base(suspect, source), _deltas(suspect, source)
    lineage: Lineage | None = None
    weights = sketches.findings
    if a.adapter is not None or b.adapter is not None:
        weights = adapter_findings(deltas)
    elif deep:
        lineage, more = _deep(suspect, source, sketches, level, budget)
        weights += more
    findings = (
        identity,
        *weights,
        *(named.findings if named else ()),
        *structures.findings,
        *(genes.findings if genes else ()),
        *vocabulary_findings,
        code.finding,
        *([fit] if (fit := _code_fit(suspect, source)) is not None else []),
        *said.findings,
    )
    return Comparison(
        a,
        b,
        named,
        structures,
        vocabularies,
        code,
        said,
        same,
        sketches,
        lineage,
        level,
        findings,
        against,
        deltas,
        genes,
    )


def _deltas(suspect: Subject, source: Subject) -> Deltas | None:
    a, b = suspect.model, source.model
    if a is None or b is None or a.adapter is None or b.adapter is None:
        return None
    return compare_deltas(a, b)


def coverage_level(suspect: Subject, source: Subject, budget: Budget) -> str:
    """``full``, ``sample`` or ``headers``: the least of both sides."""
    if not len(suspect.fingerprint.weights.matrices) or not len(source.fingerprint.weights.matrices):
        return "headers"
    models = [side.model for side in (suspect, source)]
    small = all(model is not None and weight_bytes(model) < budget.full_below for model in models)
    return "full" if small else "sample"


def weight_bytes(model: Model) -> int:
    """Size of all tensors as stored, in bytes."""
    if isinstance(model.weights, Absent):
        return 0
    return int(sum(info.size * info.stored_bits for info in model.weights.tensors.values()) / 8)


def _identity(a: Fingerprint, b: Fingerprint) -> tuple[float | None, Finding]:
    """Sampled values, bit for bit, whatever the names: a digest of 64 bits per matrix."""
    mine = a.weights.digests[a.weights.informative]
    theirs = {digest.tobytes() for digest in b.weights.digests[b.weights.informative]}
    if not len(mine) or not theirs:
        return None, Skipped("weights.identity", Component.WEIGHTS, msg("identity.nothing"))
    hits = sum(digest.tobytes() in theirs for digest in mine)
    share = hits / len(mine)
    low, high = wilson(hits, len(mine))
    # A digest of independent values collides with probability 2^-64 per pair.
    log10_p = hits * (np.log10(max(len(theirs), 1)) - 64 * np.log10(2.0)) if hits else 0.0
    return share, Measured(
        "weights.identity",
        Component.WEIGHTS,
        float(hits),
        msg("identity.null"),
        len(mine),
        float(log10_p),
        Effect(share, low, high),
    )


def _names(suspect: Subject, source: Subject) -> names.NamesResult | None:
    sides = [suspect.listed, source.listed]
    if not sides[0] or not sides[1]:
        return None
    in_order = suspect.model is not None and source.model is not None
    return names.compare(sides[0], sides[1], in_file_order=in_order)


def _genomes(
    suspect: Subject, source: Subject, named: names.NamesResult | None
) -> genome.GenomeResult | None:
    if suspect.fingerprint.adapter is not None or source.fingerprint.adapter is not None:
        return None
    mine, theirs = (
        genome.extract(side.fingerprint.structure, side.listed, side.model.roles if side.model else None)
        for side in (suspect, source)
    )
    return genome.compare(mine, theirs, named.renamed_modules if named else genome.NO_RENAMES)


def _tokenizer(suspect: Subject, source: Subject) -> tuple[TokenizerResult | None, tuple[Finding, ...]]:
    a, b = suspect.fingerprint.tokenizer, source.fingerprint.tokenizer
    if a is None or b is None:
        return None, (Skipped("tokenizer.order", Component.TOKENIZER, msg("compare.no_tokenizer")),)
    wholes = [
        None if side.model is None or isinstance(side.model.tokenizer, Absent) else side.model.tokenizer
        for side in (suspect, source)
    ]
    result = compare_tokenizers(a, b, *wholes)
    return result, result.findings


def _code(a: Fingerprint, b: Fingerprint) -> CodeResult:
    mine, theirs = a.code.files, b.code.files
    if not mine or not theirs:
        finding: Finding = Skipped("code.identity", Component.CODE, msg("compare.no_code"))
        return CodeResult(len(mine), len(theirs), 0, 0, finding)
    same_bytes = sum(sha in {other for _, other, _ in theirs} for _, sha, _ in mine)
    same_text = sum(sha in {other for *_, other in theirs} for *_, sha in mine)
    low, high = wilson(same_text, len(mine))
    finding = Measured(
        "code.identity",
        Component.CODE,
        float(same_text),
        msg("compare.code_null"),
        len(mine),
        effect=Effect(same_text / len(mine), low, high),
    )
    return CodeResult(len(mine), len(theirs), same_bytes, same_text, finding)


def _code_fit(suspect: Subject, source: Subject) -> Finding | None:
    """Imported where there is code: most models have none, and the interpreter of it is large."""
    if not suspect.fingerprint.code.files and not source.fingerprint.code.files:
        return None
    from drupe import code_fit

    return code_fit.compare(suspect, source)


def _deep(
    suspect: Subject, source: Subject, result: sketch.SketchResult, level: str, budget: Budget
) -> tuple[Lineage | None, tuple[Finding, ...]]:
    a, b = suspect.model, source.model
    if a is None or b is None or level == "headers":
        reason = msg("compare.no_weights" if level == "headers" else "compare.needs_weights")
        return None, (Skipped("weights.profile", Component.WEIGHTS, reason),)
    facts = (suspect.fingerprint.weights, source.fingerprint.weights)
    side = max((min(m.rows, m.columns) for m in a.matrices), default=0)
    with threads.for_side(side):
        lineage = investigate(a, b, result, facts, full=level == "full", escalate=budget.escalate)
    return lineage, (*lineage.findings, *(quoted(a, b, facts) if level == "full" else ()))
