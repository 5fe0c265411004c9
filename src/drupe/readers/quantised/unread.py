"""Schemes that are recognised and not decoded: their order of numbers belongs to a kernel, or lies in code.

What is listed here is left out of a model with a reason, so that nobody compares its packed numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from drupe.messages import msg
from drupe.readers.quantised.interface import Inventory, Settings, Unread


@dataclass(frozen=True, slots=True)
class _Scheme:
    """``NAME.ending`` of one of the types, with every one of the siblings beside it."""

    name: str
    ending: str
    dtypes: tuple[str, ...]
    siblings: tuple[str, ...]
    others: tuple[str, ...] = ()


_SCHEMES = (
    _Scheme("GPTQ for Marlin", "B", ("I32",), ("s",), ("workspace",)),
    _Scheme("Marlin 2:4", "weight_packed", ("I32",), ("meta", "scale_packed")),
    _Scheme("AWQ gemv_fast", "qweight", ("I16",), ("scales", "qzeros")),
    _Scheme("SqueezeLLM", "qweight", ("I32",), ("lookup_table",), ("rows", "cols", "vals")),
    _Scheme("AQLM", "codes", ("I8", "I16", "U8"), ("codebooks",), ("scales",)),
    _Scheme("QuIP#", "Qidxs", ("I64", "I32", "I16"), ("SU", "SV"), ("Wscale", "codebook_id")),
    _Scheme("VPTQ", "indices", ("I32", "I64", "U16", "I16"), ("centroids",), ("weight_scale", "weight_bias")),
    _Scheme("EETQ", "weight", ("I8", "U8"), ("weight_scales",)),
    _Scheme(
        "sparse-bitmask", "compressed", ("F16", "BF16", "F32", "I8"), ("bitmask",), ("shape", "row_offsets")
    ),
)


def claims(inventory: Inventory, settings: Settings) -> Iterator[Unread]:
    """Every tensor whose siblings give a scheme away."""
    for scheme in _SCHEMES:
        for stem in inventory.stems(scheme.ending):
            name = f"{stem}.{scheme.ending}"
            siblings = inventory.present(stem, scheme.siblings)
            if inventory.tensors[name].dtype not in scheme.dtypes or len(siblings) < len(scheme.siblings):
                continue
            parts = [name, *siblings, *inventory.present(stem, scheme.others)]
            yield Unread(f"{stem}.weight", parts, msg("quantised.unread", scheme=scheme.name))
    yield from _grouped(inventory)
    yield from _torchao(inventory)
    yield from _ternary(inventory)
    yield from _rowwise(inventory)


def _grouped(inventory: Inventory) -> Iterator[Unread]:
    """Quanto below 8 bits: packed groups, whose file does not say the shape of the weight."""
    for stem in inventory.stems("_data"):
        packed, name = f"{stem}._data", stem.removesuffix("._data")
        if stem.endswith("._data") and inventory.tensors[packed].dtype == "U8":
            parts = [packed, *inventory.present(name, ("_scale", "_shift"))]
            layer = name.rpartition(".")[0]
            parts += inventory.present(layer, ("input_scale", "output_scale"))
            yield Unread(name, parts, msg("quantised.unread", scheme="quanto below 8 bits"))


def _torchao(inventory: Inventory) -> Iterator[Unread]:
    """Torchao's packed types: ``_weight_qdata`` that is not one number per value."""
    for stem in inventory.stems("_weight_qdata"):
        packed = f"{stem}._weight_qdata"
        if inventory.tensors[packed].dtype not in ("I8", "F8_E4M3", "F8_E5M2"):
            endings = (
                "_weight_scale",
                "_weight_zero_point",
                "_weight_scale_and_zero",
                "_weight_act_pre_scale",
            )
            parts = [packed, *inventory.present(stem, endings)]
            yield Unread(f"{stem}.weight", parts, msg("quantised.unread", scheme="torchao below 8 bits"))


def _ternary(inventory: Inventory) -> Iterator[Unread]:
    """BitNet: bytes of four ternary numbers and one scale."""
    for stem in inventory.stems("weight_scale"):
        weight, scale = inventory.tensors.get(f"{stem}.weight"), inventory.tensors[f"{stem}.weight_scale"]
        if weight is not None and weight.dtype == "U8" and scale.size == 1:
            yield Unread(weight.name, [weight.name, scale.name], msg("quantised.unread", scheme="BitNet"))


def _rowwise(inventory: Inventory) -> Iterator[Unread]:
    """AWQ gemv: packed along the inputs like its own scales, both rows of outputs."""
    for stem in inventory.stems("qweight"):
        weight, scales = inventory.tensors[f"{stem}.qweight"], inventory.tensors.get(f"{stem}.scales")
        if weight.dtype != "I32" or scales is None or len(weight.shape) != 2 or len(scales.shape) != 2:
            continue
        rows, columns = weight.shape
        if rows == scales.shape[0] and scales.shape[1] not in (columns, columns * 8):
            parts = [weight.name, *inventory.present(stem, ("scales", "qzeros"))]
            yield Unread(f"{stem}.weight", parts, msg("quantised.unread", scheme="AWQ gemv"))
