"""Tokenizers of every common format, read into one canonical table. Nothing is executed or rendered."""

from drupe.readers.tokenizer.canonical import encode, seal
from drupe.readers.tokenizer.embedded import from_gguf
from drupe.readers.tokenizer.interface import AddedToken, Kind, RawTable, Tokenizer, TokenizerFacts
from drupe.readers.tokenizer.select import read_tokenizer

__all__ = [
    "AddedToken",
    "Kind",
    "RawTable",
    "Tokenizer",
    "TokenizerFacts",
    "encode",
    "from_gguf",
    "read_tokenizer",
    "seal",
]
