"""Files beside the weights that a loader would run: pickles (optimizer states, arguments), and code.

Pickles are followed as those of weights are, and never loaded. Code is listed as what it is, without a judgement.
Which settings name code: ``auto_map`` and ``custom_pipelines``
(https://huggingface.co/docs/transformers/custom_models), ``modules.json`` of sentence-transformers and
``model_index.json`` of diffusers where they name a file that is there; and three files by convention.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from drupe.errors import DrupeError, FormatError, LimitError, SourceError
from drupe.readers.interface import Flag, FlagKind
from drupe.readers.pickle_stream import MAX_OPERATIONS, Budget
from drupe.readers.strict_json import Json, parse_json
from drupe.readers.torch_names import is_torch_name, is_training_leftover
from drupe.readers.torch_pickles import HEAD, PICKLES, ZIP_HEAD, is_pickle, is_tar
from drupe.readers.torch_scan import scan_pickles
from drupe.sources.interface import Blob, Span, Tree

MAX_FILES = 32
"""Pickles beside the weights that are looked at."""
MAX_BYTES = 64 << 20
"""Read of all of them together."""
MAX_SETTINGS, MAX_SETTINGS_BYTES = 16, 8 << 20
"""Settings files in which names of code are looked for, and their bytes, in all."""
MAX_CODE = 64
"""Classes that one settings file names."""
_SUFFIXES = (".pt", ".pth", ".ckpt", ".jit", *PICKLES)
_TEXT_OPCODES = tuple(bytes([code]) for code in b"(]})IVSNFLcilpg")
"""First bytes of the pickles of protocol 0 and 1, which have no mark of their own."""
_AUTO_MAP = frozenset(
    {
        *("config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json"),
        *("preprocessor_config.json", "image_processor_config.json", "video_preprocessor_config.json"),
    }
)
_MARKS = (b"auto_map", b"custom_pipelines", b"\\u")
"""One of these is in every text that names code: keys can be written with escapes."""
_LISTS = frozenset({"modules.json", "model_index.json"})
_CONVENTIONS: Mapping[str, str] = {
    "handler.py": "custom handler of an inference server",
    "pipeline.py": "custom pipeline of diffusers",
    "custom_generate/generate.py": "custom generation of transformers",
}


def read_beside(tree: Tree, weights: Collection[str]) -> tuple[Flag, ...]:
    """What must be said of the files of a tree that are none of its ``weights``.

    Bounded in files, bytes and instructions; a file that cannot be read is a flag.
    """
    return (*_scan(tree, [name for name in tree.files() if name not in weights]), *_code(tree))


# pickles
@dataclass(slots=True)
class _Room:
    """What all files together may still cost."""

    bytes: int = MAX_BYTES
    operations: int = MAX_OPERATIONS


class _SpentError(LimitError):
    """The bytes are spent that all files may take."""


@dataclass(slots=True)
class _CountedBlob:
    """A blob whose reads are taken from the room of all files."""

    blob: Blob
    room: _Room

    @property
    def name(self) -> str:
        return self.blob.name

    @property
    def size(self) -> int:
        return self.blob.size

    def read(self, start: int, length: int) -> bytes:
        self._spend(length)
        return self.blob.read(start, length)

    def read_many(self, spans: Sequence[Span]) -> list[bytes]:
        self._spend(sum(length for _, length in spans))
        return self.blob.read_many(spans)

    def _spend(self, length: int) -> None:
        if length > self.room.bytes:
            spent = f"more than {MAX_BYTES}"
            raise _SpentError("bytes of all files beside the weights", limit=MAX_BYTES, actual=spent)
        self.room.bytes -= length


def _scan(tree: Tree, names: Iterable[str]) -> Iterator[Flag]:
    candidates = [name for name in names if name.lower().endswith((*_SUFFIXES, ".bin"))]
    candidates.sort(key=lambda name: (_is_vague(name), name.count("/")))
    room = _Room()
    reason = f"more than {MAX_FILES} such files"
    tried = 0
    for name in candidates[:MAX_FILES]:
        tried += 1
        found: list[Flag] = []
        error = _followed(tree, name, room, found)
        yield from (replace(flag, beside=True) for flag in found)
        if error is not None:
            yield _unread(name, error.what)
        if room.operations < 0:
            reason = f"more than {MAX_OPERATIONS} instructions in all such files"
            break
        if isinstance(error, SourceError):  # each further one may take as long to fail
            reason = "not tried after a file could not be had"
            break
    yield from _rest(candidates[tried:], reason)


def _followed(tree: Tree, name: str, room: _Room, found: list[Flag]) -> DrupeError | None:
    """What a file would import is added; why it could not be followed to its end, where it should be a pickle."""
    certain = not _is_vague(name)
    try:
        blob = _CountedBlob(tree.open(name), room)
        head = blob.read(0, min(blob.size, HEAD))
        certain = certain or head.startswith(ZIP_HEAD) or is_pickle(head) or is_tar(head)
        if certain or head.startswith(_TEXT_OPCODES):
            budget = replace(Budget.of_file(blob.size), operations=room.operations)
            try:
                scan_pickles(blob, budget, found)
            finally:
                room.operations = budget.operations
    except DrupeError as error:
        dangerous = any(flag.kind is FlagKind.DANGEROUS_CODE for flag in found)
        cut_short = isinstance(error, _SpentError) or room.operations < 0
        if certain or dangerous or cut_short or not isinstance(error, FormatError):
            return error
        found.clear()  # numbers that began like a pickle
    return None


def _is_vague(name: str) -> bool:
    """Whether a name leaves open what the file is: many programs call theirs ``.bin``."""
    return name.lower().endswith(".bin") and not is_torch_name(name) and not is_training_leftover(name)


def _unread(name: str, reason: str, what: str = "") -> Flag:
    return Flag(FlagKind.NOT_READ, name, what, reason=reason, beside=True)


def _rest(names: Sequence[str], reason: str) -> Iterator[Flag]:
    """One flag for all files that were not looked at."""
    if names:
        yield _unread(names[0], reason, f"{len(names)} files from here on" if len(names) > 1 else "")


# code
def _code(tree: Tree) -> Iterator[Flag]:
    files = tree.files()
    for name, purpose in _CONVENTIONS.items():
        if name in files:
            yield Flag(FlagKind.LOADER_CODE, name, purpose, beside=True)
    settings = [name for name in files if name.rpartition("/")[2] in _AUTO_MAP | _LISTS]
    settings.sort(key=lambda name: name.count("/"))
    room = MAX_SETTINGS_BYTES
    for name in settings[:MAX_SETTINGS]:
        room -= files[name]
        if room < 0:
            yield _unread(name, f"more than {MAX_SETTINGS_BYTES} bytes of settings")
            return
        try:
            yield from _named_in(tree, name)
        except DrupeError as error:
            yield _unread(name, error.what)
    yield from _rest(settings[MAX_SETTINGS:], f"more than {MAX_SETTINGS} such files")


def _named_in(tree: Tree, name: str) -> Iterator[Flag]:
    """The code that one settings file names."""
    blob = tree.open(name)
    data = blob.read(0, blob.size)
    folder, slash, file = name.rpartition("/")
    if file in _AUTO_MAP and not any(mark in data for mark in _MARKS):
        return
    value = parse_json(data, name)
    named = _listed(value, tree, folder + slash) if file in _LISTS else _mapped(value)
    for place, reference in enumerate(named):
        if place == MAX_CODE:
            raise LimitError(
                "classes in settings", limit=MAX_CODE, actual=f"more than {MAX_CODE}", where=name
            )
        repository, dashes, path = reference.rpartition("--")
        module, _, kind = path.rpartition(".")
        code = f"{module.replace('.', '/')}.py"
        if not dashes:
            code = folder + slash + code
        yield Flag(
            FlagKind.LOADER_CODE, f"{repository}--{code}" if dashes else code, kind, reason=name, beside=True
        )


def _mapped(value: Json) -> Iterator[str]:
    """``auto_map``: class or classes by the name of the loader; ``custom_pipelines``: ``impl`` by task."""
    table = value if isinstance(value, dict) else {}
    classes, pipelines = table.get("auto_map"), table.get("custom_pipelines")
    entries: list[Json] = []
    for entry in classes.values() if isinstance(classes, dict) else [classes]:
        entries += entry if isinstance(entry, list) else [entry]
    for task in pipelines.values() if isinstance(pipelines, dict) else ():
        entries.append(task.get("impl") if isinstance(task, dict) else None)
    yield from dict.fromkeys(entry for entry in entries if isinstance(entry, str) and "." in entry)


def _listed(value: Json, tree: Tree, folder: str) -> Iterator[str]:
    """Modules of a folder's index that are files here: those of installed libraries are none."""
    files = tree.files()
    if isinstance(value, dict):  # diffusers: part -> [library or module, class]
        for part, entry in value.items():
            if isinstance(entry, list) and len(entry) == 2 and all(isinstance(text, str) for text in entry):
                places = (f"{part.lstrip('_')}/{entry[0]}", str(entry[0]))
                yield from (f"{p.replace('/', '.')}.{entry[1]}" for p in places if f"{folder}{p}.py" in files)
    for entry in value if isinstance(value, list) else ():  # sentence-transformers: {"type": "module.Class"}
        kind = entry.get("type") if isinstance(entry, dict) else None
        if isinstance(kind, str) and f"{folder}{kind.rpartition('.')[0].replace('.', '/')}.py" in files:
            yield kind
