"""Vocabularies that tests make: drawn from one pool of words, and edited as re-publishers edit them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache

from drupe.readers.tokenizer import AddedToken, Kind, RawTable, Tokenizer, TokenizerFacts, seal

Table = dict[bytes, int]
SPECIAL = (AddedToken("<s>", 0, True), AddedToken("</s>", 1, True))


def tokenizer(
    table: Mapping[bytes, int],
    added: tuple[AddedToken, ...] = SPECIAL,
    *,
    lists_added: bool = True,
    facts: TokenizerFacts | None = None,
) -> Tokenizer:
    raw = RawTable(
        "tokenizer.json",
        "tokenizer.json",
        Kind.TIKTOKEN,
        list(table),
        list(table.values()),
        added,
        lists_added,
        facts or TokenizerFacts(),
    )
    return seal(raw)


@cache
def common_words(pool: int) -> list[bytes]:
    words = random.Random(0)
    found = sorted({bytes(words.choices(b"abcdefghijkl", k=words.randint(2, 9))) for _ in range(2 * pool)})
    words.shuffle(found)
    return found[:pool]


def vocabulary(seed: int, size: int = 12_000, start: int = 2, pool: int = 20_000) -> Table:
    """``size`` pieces drawn from one pool of common words, numbered in a random order."""
    source = random.Random(seed)
    return {piece: start + k for k, piece in enumerate(source.sample(common_words(pool), size))}


def renumber(pieces: list[bytes], start: int = 2) -> Table:
    return {piece: start + k for k, piece in enumerate(pieces)}


def new_pieces(count: int, seed: int = 99) -> list[bytes]:
    source = random.Random(seed)
    return sorted({b"Z" + bytes(source.choices(b"mnopqrs", k=12)) for _ in range(count)})


def extended(table: Table) -> Table:
    return {
        **table,
        **{piece: max(table.values()) + 1 + k for k, piece in enumerate(new_pieces(len(table) // 4))},
    }


def tail_cut(table: Table) -> Table:
    return dict(list(table.items())[: int(0.8 * len(table))])


def shifted(table: Table) -> Table:
    return {piece: id_ + 46 for piece, id_ in table.items()}


def block_inserted(table: Table) -> Table:
    pieces = list(table)
    return renumber(pieces[:3000] + new_pieces(500) + pieces[3000:])


def trimmed(table: Table) -> Table:
    source = random.Random(5)
    return renumber([piece for piece in table if source.random() > 0.3])


def trimmed_and_extended(table: Table) -> Table:
    return renumber([*trimmed(table), *new_pieces(len(table) // 4)])


def half_shuffled(table: Table) -> Table:
    pieces, source = list(table), random.Random(6)
    places = source.sample(range(len(pieces)), len(pieces) // 2)
    targets = source.sample(places, len(places))
    moved = pieces[:]
    for place, target in zip(places, targets, strict=True):
        moved[target] = pieces[place]
    return renumber(moved)


def shuffled(table: Table) -> Table:
    return renumber(random.Random(7).sample(list(table), len(table)))


def shuffled_and_extended(table: Table) -> Table:
    return renumber([*shuffled(table), *new_pieces(600)])


def shuffled_trimmed_and_extended(table: Table) -> Table:
    return renumber([*list(shuffled(table))[600:], *new_pieces(600)])
