"""Edits of vocabularies and unrelated vocabularies, whole and from the samples that fingerprints keep."""

from __future__ import annotations

import json
import random
import runpy
import string
import sysconfig
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from drupe.errors import FormatError, LimitError
from drupe.facts import from_json, to_json
from drupe.messages import LANGUAGES, catalogue
from drupe.readers.tokenizer import AddedToken, Kind, RawTable, Tokenizer, TokenizerFacts, seal
from drupe.signals.interface import Measured, Skipped
from drupe.signals.tokenizer import (
    Outcome,
    Sample,
    TokenizerResult,
    TokenizerSketch,
    VocabularyFacts,
    compare,
    extract,
)
from drupe.signals.tokenizer.decision import null_ceiling, related_bar
from drupe.signals.tokenizer.order import increasing_length, random_order
from vocabularies import (
    SPECIAL,
    Table,
    block_inserted,
    extended,
    half_shuffled,
    new_pieces,
    renumber,
    shifted,
    shuffled,
    shuffled_and_extended,
    shuffled_trimmed_and_extended,
    tail_cut,
    tokenizer,
    trimmed,
    trimmed_and_extended,
    vocabulary,
)

EDITS: list[tuple[Callable[[Table], Table], Outcome, str]] = [
    (dict, Outcome.IDENTICAL, "identical"),
    (extended, Outcome.DERIVED, "derived_kept"),
    (tail_cut, Outcome.DERIVED, "derived_kept"),
    (shifted, Outcome.EQUIVALENT, "offset"),
    (block_inserted, Outcome.DERIVED, "derived_offset"),
    (trimmed, Outcome.DERIVED, "derived_shifted"),
    (trimmed_and_extended, Outcome.INCONCLUSIVE, "common"),
    (half_shuffled, Outcome.EQUIVALENT, "order"),
    (shuffled, Outcome.EQUIVALENT, "order"),
    (shuffled_and_extended, Outcome.DERIVED, "reordered_derived"),
    (shuffled_trimmed_and_extended, Outcome.INCONCLUSIVE, "reordered_inconclusive"),
]


def both(a: Tokenizer, b: Tokenizer) -> tuple[TokenizerResult, TokenizerResult]:
    """The comparison of whole vocabularies, and the one from samples that went through bytes."""
    one, other = extract(a), extract(b)
    return compare(one, other, a, b), compare(stored(one), stored(other))


def stored(sketch: TokenizerSketch) -> TokenizerSketch:
    facts = json.loads(json.dumps(to_json(sketch.facts)))
    sample = Sample.from_bytes(sketch.sample.to_bytes())
    return TokenizerSketch(from_json(VocabularyFacts, facts, "test"), sample)


@pytest.mark.parametrize(("edit", "outcome", "reason"), EDITS, ids=[edit.__name__ for edit, _, _ in EDITS])
def test_edits_are_recognised_whole_and_from_samples(
    edit: Callable[[Table], Table], outcome: Outcome, reason: str
) -> None:
    table = vocabulary(1)
    for result in both(tokenizer(edit(table)), tokenizer(table)):
        assert result.outcome is outcome
        assert result.reason.key == f"tokenizer.reason.{reason}"
        assert result.reason.text("en") != result.reason.text("zh")


@pytest.mark.parametrize(("edit", "outcome", "reason"), EDITS, ids=[edit.__name__ for edit, _, _ in EDITS])
def test_the_outcome_has_no_direction(edit: Callable[[Table], Table], outcome: Outcome, reason: str) -> None:
    table = vocabulary(1)
    for result in both(tokenizer(table), tokenizer(edit(table))):
        assert result.outcome is outcome, reason


def test_the_offset_counts_from_source_to_suspect() -> None:
    table = vocabulary(1)
    for result in both(tokenizer(shifted(table)), tokenizer(table)):
        assert (result.offset, result.offset_mass, result.equal_ids) == (46, 1.0, 0.0)
        assert (result.only_suspect, result.only_source, result.n_shared) == (0, 0, 12_000)
    whole, sample = both(tokenizer(extended(table)), tokenizer(table))
    assert (whole.only_suspect, whole.only_source, whole.in_source) == (3000, 0, 1.0)
    assert abs(sample.only_suspect - 3000) < 400


@pytest.mark.parametrize("seeds", [(1, 2), (3, 4), (5, 6)])
def test_unrelated_vocabularies_are_independent_even_after_edits(seeds: tuple[int, int]) -> None:
    a, b = (vocabulary(seed) for seed in seeds)
    for table in (a, extended(a), trimmed(a), shuffled(a), shifted(a)):
        for result in both(tokenizer(table), tokenizer(b)):
            assert result.outcome is Outcome.INDEPENDENT
            order = result.findings[0]
            assert isinstance(order, Measured)
            assert order.log10_p is None


def test_samples_estimate_what_whole_vocabularies_say() -> None:
    """The 95 % intervals hold the truth in enough of 30 pairs (95 % of 30; 1 % bound: 25)."""
    hits = 0
    for seed in range(30):
        size = 6000 + 250 * seed
        a, b = tokenizer(vocabulary(seed, size)), tokenizer(vocabulary(1000 + seed, 10_000))
        whole, sample = both(a, b)
        assert sample.is_sample
        assert not whole.is_sample
        finding = sample.findings[1]
        assert isinstance(finding, Measured)
        assert finding.effect is not None
        hits += finding.effect.low <= whole.jaccard <= finding.effect.high
        assert abs(sample.n_shared - whole.n_shared) < 0.1 * whole.n_shared
    assert hits >= 25


def test_a_small_vocabulary_lies_whole_in_its_sample() -> None:
    a, b = tokenizer(vocabulary(1, 3000)), tokenizer(vocabulary(2, 4000))
    whole, sample = both(a, b)
    assert not sample.is_sample
    assert (sample.n_shared, sample.lis, sample.jaccard) == (whole.n_shared, whole.lis, whole.jaccard)


def test_renamed_special_tokens_are_equivalent_and_shown() -> None:
    table = vocabulary(1)
    renamed = (AddedToken("<bos>", 0, True), AddedToken("</s>", 1, True))
    for result in both(tokenizer(table, renamed), tokenizer(table)):
        assert result.outcome is Outcome.EQUIVALENT
        assert result.reason.key == "tokenizer.reason.specials"
        finding = result.findings[2]
        assert isinstance(finding, Measured)
        assert finding.statistic == pytest.approx(1 / 3)
        assert finding.evidence[0].where == "id 0"
        assert finding.evidence[0].what.parameters == {"suspect": "<bos>", "source": "<s>"}


def test_added_words_extend_the_vocabulary_and_added_markup_does_not() -> None:
    table = vocabulary(1)
    for text, outcome in (("核果", Outcome.DERIVED), ("<|img|>", Outcome.EQUIVALENT)):
        more = (*SPECIAL, AddedToken(text, 20_000, False))
        for result in both(tokenizer(table, more), tokenizer(table)):
            assert result.outcome is outcome


def test_a_special_token_listed_by_one_side_only_is_no_difference_of_pieces() -> None:
    table = {**vocabulary(1), b"<unk>": 15_000}
    listed = (*SPECIAL, AddedToken("<unk>", 15_000, True))
    assert all(
        result.outcome is Outcome.IDENTICAL for result in both(tokenizer(table, listed), tokenizer(table))
    )
    more = (*listed, AddedToken("<pad>", 15_001, True))
    whole, _ = both(tokenizer(table, more), tokenizer(table))
    assert whole.outcome is Outcome.EQUIVALENT


def test_a_format_without_special_tokens_is_never_called_identical() -> None:
    table = vocabulary(1)
    for result in both(tokenizer(table, (), lists_added=False), tokenizer(table)):
        assert result.outcome is Outcome.EQUIVALENT
        assert result.reason.key == "tokenizer.reason.unlisted"
        assert isinstance(result.findings[2], Skipped)


def test_vocabularies_numbered_by_a_rule_prove_nothing() -> None:
    """Two strangers who sort their words agree in order perfectly."""
    a = renumber(sorted(vocabulary(1)))
    b = renumber(sorted(vocabulary(2)))
    for result in both(tokenizer(a), tokenizer(b)):
        assert result.lis == 1.0
        assert result.outcome is Outcome.INCONCLUSIVE
        assert result.reason.key == "tokenizer.reason.rule"
    subset = renumber(sorted(list(a)[:9000]))
    assert both(tokenizer(subset), tokenizer(a))[0].outcome is Outcome.INCONCLUSIVE
    assert both(tokenizer(a), tokenizer(dict(a)))[0].outcome is Outcome.IDENTICAL
    by_length = [renumber(sorted(table, key=lambda piece: (len(piece), piece))) for table in (a, b)]
    assert both(tokenizer(by_length[0]), tokenizer(by_length[1]))[1].outcome is Outcome.INCONCLUSIVE


def test_small_vocabularies_are_related_by_equality_only() -> None:
    table = vocabulary(1, 300, pool=400)
    assert both(tokenizer(table), tokenizer(dict(table)))[0].outcome is Outcome.IDENTICAL
    assert both(tokenizer(shifted(table)), tokenizer(table))[0].outcome is Outcome.EQUIVALENT
    for result in both(tokenizer(extended(table)), tokenizer(table)):
        assert result.lis == 1.0
        assert result.outcome is Outcome.INCONCLUSIVE
        assert result.reason.key == "tokenizer.reason.small_inconclusive"
        order = result.findings[0]
        assert isinstance(order, Measured)
        assert order.log10_p is None
    for result in both(tokenizer(vocabulary(2, 300, pool=400)), tokenizer(table)):
        assert result.outcome is Outcome.INDEPENDENT
    for result in both(tokenizer(vocabulary(2, 90, pool=100)), tokenizer(vocabulary(1, 90, pool=100))):
        assert result.outcome is Outcome.INCONCLUSIVE
        assert isinstance(result.findings[0], Skipped)
    tiny = vocabulary(1, 20, pool=400)
    assert both(tokenizer(shifted(tiny)), tokenizer(tiny))[0].outcome is Outcome.INCONCLUSIVE


def test_nothing_but_single_bytes_is_inconclusive_unless_identical() -> None:
    bytes_only = {bytes([k]): 3 + k for k in range(256)}
    assert both(tokenizer(bytes_only), tokenizer(dict(bytes_only)))[0].outcome is Outcome.IDENTICAL
    for result in both(tokenizer(bytes_only), tokenizer(shifted(bytes_only))):
        assert result.outcome is Outcome.INCONCLUSIVE
    for result in both(tokenizer(bytes_only), tokenizer(vocabulary(1))):
        assert result.outcome is Outcome.INCONCLUSIVE


def test_few_shared_pieces_of_large_vocabularies_mean_independence() -> None:
    a = vocabulary(1, 6000)
    b = renumber([*list(a)[:80], *new_pieces(6000)])
    for result in both(tokenizer(a), tokenizer(b)):
        assert result.outcome is Outcome.INDEPENDENT
        assert result.reason.key == "tokenizer.reason.few_independent"


def test_agreement_between_null_and_bar_is_inconclusive() -> None:
    """A quarter of the pieces kept in place, among foreign ones: LIS about .26 of the shared."""
    a = vocabulary(1, 12_000)
    pieces = list(a)
    mixed = [*pieces[:2000], *random.Random(8).sample(pieces[2000:], 6000), *new_pieces(5000)]
    result, _ = both(tokenizer(renumber(mixed)), tokenizer(a))
    assert null_ceiling(8000) < result.lis < related_bar(8000)
    assert result.outcome is Outcome.INCONCLUSIVE
    assert result.reason.key == "tokenizer.reason.between"


def test_templates_are_compared_by_digest() -> None:
    table = vocabulary(1)
    one, two = (TokenizerFacts(template_digest=letter * 64) for letter in "ab")
    same, _ = both(tokenizer(table, facts=one), tokenizer(table, facts=one))
    other, _ = both(tokenizer(table, facts=one), tokenizer(table, facts=two))
    none, _ = both(tokenizer(table, facts=one), tokenizer(table))
    assert [finding.statistic for finding in same.findings if finding.signal.endswith("template")] == [1.0]  # type: ignore[union-attr]
    assert [finding.statistic for finding in other.findings if finding.signal.endswith("template")] == [0.0]  # type: ignore[union-attr]
    assert not [finding for finding in none.findings if finding.signal.endswith("template")]
    assert other.outcome is Outcome.IDENTICAL, "a template is no piece"


def train(lines: list[str], size: int) -> Tokenizer:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    table = library.get_vocab()
    return seal(RawTable("trained", "trained", Kind.BYTE_BPE, list(table), list(table.values())))


def test_small_vocabularies_trained_on_alike_text_are_not_related() -> None:
    """One trainer, 2,048 pieces, Python text each time: disjoint parts, then 50 % and 90 % in common."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = "".join(path.read_text("utf-8", "replace") for path in sorted(folder.glob("[a-t]*.py")))
    lines = text[:1_600_000].splitlines(keepends=True)
    half = len(lines) // 2
    whole, _ = both(train(lines[:half], 2048), train(lines[half:], 2048))
    assert whole.outcome is Outcome.INDEPENDENT
    random.Random(1).shuffle(lines)
    for share in (0.0, 0.5, 0.9):
        width = int(len(lines) / (2 - share))
        a, b = train(lines[:width], 2048), train(lines[len(lines) - width :], 2048)
        for result in both(a, b):
            assert result.outcome in (Outcome.INDEPENDENT, Outcome.INCONCLUSIVE)
            assert result.lis < 0.6


def test_the_sample_is_canonical_bounded_and_the_same_for_any_order_of_pieces() -> None:
    table = vocabulary(3)
    turned = dict(reversed(table.items()))
    sample = extract(tokenizer(table)).sample
    data = sample.to_bytes()
    assert len(data) == 9 * 4096 <= 40 << 10
    assert extract(tokenizer(turned)).sample.to_bytes() == data
    assert extract(tokenizer(turned)).facts == extract(tokenizer(table)).facts
    back = Sample.from_bytes(data)
    assert np.array_equal(back.hashes, sample.hashes)
    assert np.array_equal(back.ids, sample.ids)


def test_the_sample_format_is_pinned() -> None:
    """Leading 6 bytes of blake2b-64 of b"the" and b"of", byte-reversed and sorted; then 70,000 and 3."""
    sample = extract(tokenizer({b"the": 70_000, b"of": 3})).sample
    assert sample.to_bytes().hex() == "97906cabda5e60eed2437ebe701101030000"


def test_a_damaged_sample_is_a_typed_error() -> None:
    data = extract(tokenizer(vocabulary(1, 200))).sample.to_bytes()
    with pytest.raises(FormatError, match="whole number of rows"):
        Sample.from_bytes(data[:-1])
    with pytest.raises(FormatError, match="increasing"):
        Sample.from_bytes(data[6:12] + data[:6] + data[12:])
    with pytest.raises(LimitError):
        Sample.from_bytes(bytes(9 * 4097))
    sketch = extract(tokenizer(vocabulary(1, 200)))
    with pytest.raises(FormatError, match="does not fit"):
        TokenizerSketch(sketch.facts, extract(tokenizer(vocabulary(1, 100))).sample)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=12))
def test_increasing_length_is_that_of_the_definition(values: list[int]) -> None:
    best = [1] * len(values)
    for k, value in enumerate(values):
        best[k] = 1 + max((best[j] for j in range(k) if values[j] < value), default=0)
    assert increasing_length(values) == max(best, default=0)


def test_the_expected_length_of_a_random_order_is_an_upper_bound() -> None:
    source = random.Random(4)
    shares = [
        increasing_length(source.sample(range(n), n)) / n / random_order(n) for n in (500, 5000, 50_000)
    ]
    assert all(0.8 < share < 1.0 for share in shares)


def test_both_languages_have_the_same_sentences_with_the_same_parameters() -> None:
    def parameters(text: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    english, chinese = (
        {key: text for key, text in catalogue(language).items() if key.startswith("tokenizer.")}
        for language in LANGUAGES
    )
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        assert parameters(text) == parameters(chinese[key]), key


@pytest.mark.real
def test_real_vocabularies(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No pair of different families is anything but independent; the known relations of CASES are found."""
    root = Path(__file__).parents[2]
    script = runpy.run_path(str(root / "benchmarks" / "tokenizer_pairs.py"))
    found = script["distinct"](script["load"](script["fetch"](root / "build" / "tokenizers")))
    sketches = {name: extract(entry) for name, entry in found.items()}
    assert len(found) >= 15
    counts: Counter[tuple[bool, Outcome]] = Counter()
    for a, b in combinations(found, 2):
        for result in (
            compare(sketches[a], sketches[b], found[a], found[b]),
            compare(sketches[a], sketches[b]),
        ):
            is_related = script["family"](a) == script["family"](b)
            assert is_related or result.outcome is Outcome.INDEPENDENT, (a, b, result.reason)
            counts[is_related, result.outcome] += 1
    assert counts[True, Outcome.INDEPENDENT] == 0
    extension = compare(
        sketches["jiutian-139moe-chat"],
        sketches["llama-1"],
        found["jiutian-139moe-chat"],
        found["llama-1"],
    )
    assert (extension.outcome, extension.offset) == (Outcome.DERIVED, 46)
    siblings = compare(sketches["glm-4"], sketches["qwen-3.5"])
    assert siblings.outcome is Outcome.INCONCLUSIVE
    moved = compare(sketches["mistral-v1"], sketches["mistral-v2"])
    assert (moved.outcome, moved.offset) == (Outcome.EQUIVALENT, -768)
