"""Adapters: what is added to a base model's tensors, as a weight file of its own or applied to the base."""

from drupe.readers.adapters.applied import AppliedFile, apply
from drupe.readers.adapters.fit import Fit, fit
from drupe.readers.adapters.interface import AdapterFacts
from drupe.readers.adapters.select import AdapterFile, read_adapter

__all__ = ["AdapterFacts", "AdapterFile", "AppliedFile", "Fit", "apply", "fit", "read_adapter"]
