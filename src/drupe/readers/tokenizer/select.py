"""Which file of a model folder is its tokenizer, and reading it.

Order: tokenizer.json, tekken.json, SentencePiece or tiktoken ``tokenizer.model`` and its usual names,
vocab.json, vocab.txt, any ``*.tiktoken``, the vocabularies of CTranslate2. The root first, else the one folder
that has any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

from drupe.errors import UnsupportedError
from drupe.messages import msg
from drupe.readers.interface import Absent
from drupe.readers.tokenizer.canonical import seal
from drupe.readers.tokenizer.huggingface import (
    read_settings,
    read_tokenizer_json,
    read_vocab_json,
    read_vocab_txt,
    with_settings,
)
from drupe.readers.tokenizer.interface import RawTable, Tokenizer
from drupe.readers.tokenizer.listed import read_vocabulary_list
from drupe.readers.tokenizer.sentencepiece import is_sentencepiece, read_sentencepiece
from drupe.readers.tokenizer.tiktoken import is_tiktoken, read_tekken, read_tiktoken
from drupe.sources.interface import Blob, Tree

_HEAD = 4096


def read_model_file(blob: Blob) -> RawTable:
    """A ``*.model`` file, SentencePiece or tiktoken, told apart by its first bytes."""
    head = blob.read(0, min(_HEAD, blob.size))
    if is_sentencepiece(head):
        return read_sentencepiece(blob)
    if is_tiktoken(head):
        return read_tiktoken(blob)
    raise UnsupportedError("neither a SentencePiece model nor tiktoken ranks", where=blob.name)


Reader = Callable[[Blob], RawTable]
READERS: tuple[tuple[str, Reader], ...] = (
    ("tokenizer.json", read_tokenizer_json),
    ("*.tokenizer.json", read_tokenizer_json),
    ("tekken*.json", read_tekken),
    ("tokenizer.model", read_model_file),
    ("spiece.model", read_model_file),
    ("sentencepiece.bpe.model", read_model_file),
    ("tokenizer*.model*", read_model_file),
    ("*.spm", read_model_file),
    ("*tokenizer*.model*", read_model_file),
    ("vocab.json", read_vocab_json),
    ("vocab.txt", read_vocab_txt),
    ("*.tiktoken", read_tiktoken),
    ("vocabulary.json", read_vocabulary_list),
    ("shared_vocabulary.json", read_vocabulary_list),
    ("vocabulary.txt", read_vocab_txt),
    ("shared_vocabulary.txt", read_vocab_txt),
)
"""File name patterns in order of preference."""


def read_tokenizer(tree: Tree) -> Tokenizer | Absent:
    """The tokenizer of a model folder; Absent with the reason when it has none or several.

    A file that is broken raises its typed error; what to do about it is the caller's decision.
    """
    choice = _choose(tree.files())
    if isinstance(choice, Absent):
        return choice
    path, reader = choice
    folder = PurePosixPath(path).parent
    beside = {
        name: tree.open(str(folder / name)) if str(folder / name) in tree.files() else None
        for name in ("tokenizer_config.json", "added_tokens.json", "chat_template.jinja")
    }
    table = reader(tree.open(path))
    return seal(with_settings(table, read_settings(*beside.values())))


def _choose(paths: Iterable[str]) -> tuple[str, Reader] | Absent:
    """The best file of the root, else of the only folder that has one."""
    best: dict[PurePosixPath, tuple[int, str]] = {}
    for path in sorted(paths):
        pure = PurePosixPath(path)
        for rank, (pattern, _) in enumerate(READERS):
            if PurePosixPath(pure.name).match(pattern):
                best[pure.parent] = min(best.get(pure.parent, (rank, path)), (rank, path))
                break
    root = best.get(PurePosixPath("."))
    if root is None and len(best) > 1:
        shown = ", ".join(sorted(str(folder) for folder in best)[:3])
        return Absent(msg("tokenizer.absent.several", count=len(best), folders=shown))
    if root is None and not best:
        return Absent(msg("tokenizer.absent.none"))
    rank, path = root or next(iter(best.values()))
    return path, READERS[rank][1]
