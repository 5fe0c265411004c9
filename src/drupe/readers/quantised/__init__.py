"""Quantised checkpoints: packed parts -> the weights that they make, decoded when read.

``interface`` is the contract; one module per scheme; ``select`` puts them together.
"""

from drupe.readers.quantised.select import QuantisedFile, unpack
from drupe.readers.quantised.settings import settings_of

__all__ = ["QuantisedFile", "settings_of", "unpack"]
