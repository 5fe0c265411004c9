"""A blob of the tests that lives in memory and remembers what was asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from drupe.errors import FormatError
from drupe.sources.interface import Span


@dataclass
class MemoryBlob:
    """Bytes as a file."""

    name: str
    data: bytes
    spans: list[Span] = field(default_factory=list)
    """Every span delivered so far."""
    batches: int = 0
    """Calls of ``read_many``."""

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, start: int, length: int) -> bytes:
        if start < 0 or length < 0 or start + length > len(self.data):
            raise FormatError(f"bytes {start}+{length} of {len(self.data)}", where=self.name)
        self.spans.append((start, length))
        return self.data[start : start + length]

    def read_many(self, spans: Sequence[Span]) -> list[bytes]:
        self.batches += 1
        return [self.read(start, length) for start, length in spans]
