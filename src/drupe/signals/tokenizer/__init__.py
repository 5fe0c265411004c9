"""Do two vocabularies descend from each other? The order of ids over shared pieces decides (LIS)."""

from drupe.signals.tokenizer.compare import TokenizerResult, compare
from drupe.signals.tokenizer.decision import Outcome
from drupe.signals.tokenizer.sketch import Sample, TokenizerSketch, VocabularyFacts, extract

__all__ = ["Outcome", "Sample", "TokenizerResult", "TokenizerSketch", "VocabularyFacts", "compare", "extract"]
