"""Comparison -> Diagnosis: where the weights come from and what was done to them, ranked, with reasons. Pure."""

from drupe.diagnose.diagnosis import diagnose
from drupe.diagnose.kinds import SURFACE, Kind, Transformation
from drupe.diagnose.origin import Origin
from drupe.diagnose.result import Diagnosis, PartResult, layer_shares

__all__ = [
    "SURFACE",
    "Diagnosis",
    "Kind",
    "Origin",
    "PartResult",
    "Transformation",
    "diagnose",
    "layer_shares",
]
