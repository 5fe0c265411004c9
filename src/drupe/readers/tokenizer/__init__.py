"""Tokenizers of every common format, read into one canonical table. Nothing is executed or rendered."""

from drupe.readers.tokenizer.canonical import encode, seal
from drupe.readers.tokenizer.embedded import from_gguf
from drupe.readers.tokenizer.interface import AddedToken, Kind, RawTable, Tokenizer, TokenizerFacts
from drupe.readers.tokenizer.pieces import Pieces
from drupe.readers.tokenizer.select import read_tokenizer
from drupe.readers.tokenizer.strings import Strings

__all__ = [
    "AddedToken",
    "Kind",
    "Pieces",
    "RawTable",
    "Strings",
    "Tokenizer",
    "TokenizerFacts",
    "encode",
    "from_gguf",
    "read_tokenizer",
    "seal",
]
