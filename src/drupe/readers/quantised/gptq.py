"""GPTQ: ``qweight`` packed along the inputs, ``qzeros`` along the outputs, ``scales``, ``g_idx``.

Facts: Frantar et al. 2023, arXiv:2210.17323; layout of github.com/AutoGPTQ/AutoGPTQ and
github.com/ModelCloud/GPTQModel: ``qweight`` int32 (in * bits / 32, out), ``qzeros`` int32 (groups,
out * bits / 32), ``scales`` (groups, out), ``g_idx`` int32 (in): group of each input in its original order,
so that activation order ("act-order") moves no column. Value = scale * (code - zero). Format 1 stores zero - 1,
format 2 (``checkpoint_format: gptq_v2``) zero itself. Numbers of 3 bits run on over the ends of words; the planar
layout (``gptq_p``, and all of 5, 6 and 7 bits) is not decoded.

Bits and groups come from the shapes. Symmetric files hold one zero everywhere, 2^(bits-1), which tells the
formats apart whatever the configuration says; otherwise ``checkpoint_format`` does, and format 1 is the default.
Without any configuration the mean of code - zero tells: weights are centred.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from drupe.errors import FormatError
from drupe.messages import msg
from drupe.readers.interface import TensorInfo, Window
from drupe.readers.quantised.affine import Affine, Spread, TableCodes
from drupe.readers.quantised.interface import Claim, Inventory, Settings, Unread, contradiction, logical
from drupe.readers.quantised.settings import number, quantisation
from drupe.readers.quantised.table import Table, step
from drupe.readers.strict_json import Json

_BITS = (4, 8, 3, 2, 5, 6, 7)
_PLANAR = (5, 6, 7)


def claims(inventory: Inventory, settings: Settings) -> Iterator[Claim]:
    """Every ``NAME.qweight`` with as many columns as its scales."""
    second: bool | None = None
    for stem in inventory.stems("qweight"):
        weight = inventory.tensors[f"{stem}.qweight"]
        if weight.dtype not in ("I32", "U32") or len(weight.shape) != 2:
            continue
        scales = inventory.need(f"{stem}.scales", weight.name)
        if scales.shape[1:] != weight.shape[1:]:
            continue
        bits = _bits(inventory, stem, settings)
        if bits in _PLANAR or (bits == 3 and _format(settings) == "gptq_p"):
            reason = msg("quantised.unread", scheme=f"GPTQ, planar, {bits} bits")
            yield Unread(f"{stem}.weight", _parts(inventory, stem), reason)
            continue
        if second is None:
            second = _is_second_format(inventory, stem, bits, scales, settings)
        yield _claim(inventory, stem, bits, settings, is_second=second)


def _parts(inventory: Inventory, stem: str) -> tuple[str, ...]:
    return f"{stem}.qweight", *inventory.present(stem, ("qzeros", "scales", "g_idx"))


def _format(settings: Settings) -> Json:
    return quantisation(settings).get("checkpoint_format") or quantisation(settings).get("format")


def _bits(inventory: Inventory, stem: str, settings: Settings) -> int:
    """The number of bits for which the words hold the inputs and the zeros the outputs; the last may be padded."""
    tensors, said = inventory.tensors, number(quantisation(settings), "bits", "w_bit")
    weight, scales = tensors[f"{stem}.qweight"], tensors[f"{stem}.scales"]
    zeros, order = tensors.get(f"{stem}.qzeros"), tensors.get(f"{stem}.g_idx")
    for bits in (said or 0, *_BITS):
        if bits not in _BITS:
            continue
        fits = order is None or -(-order.size * bits // 32) == weight.shape[0]
        if fits and (zeros is None or zeros.shape[1:] == (-(-scales.shape[1] * bits // 32),)):
            return bits
    raise contradiction(weight, zeros or order or scales)


def _is_second_format(
    inventory: Inventory, stem: str, bits: int, scales: TensorInfo, settings: Settings
) -> bool:
    zeros = f"{stem}.qzeros"
    if zeros in inventory.tensors:
        table = Table(zeros, *scales.matrix_shape, bits=bits).checked(inventory.tensors)
        across = range(min(table.columns, 1024))
        first = table.needs(range(min(table.rows, 1)), across)
        found = set(table.take(range(1), across, inventory.file.read_stored([first])[0]).ravel().tolist())
        if found in ({(1 << bits - 1) - 1}, {1 << bits - 1}):
            return found == {1 << bits - 1}
        if not quantisation(settings):
            return _is_centred(inventory, stem, bits)
    return _format(settings) in ("gptq_v2", "gptq_p")


def _is_centred(inventory: Inventory, stem: str, bits: int) -> bool:
    """Whether codes lie around the zeros as stored (format 2), not around one more: the mean weight is about 0."""
    trial = _claim(inventory, stem, bits, {}, is_second=True)
    rows, columns = trial.info.matrix_shape
    window = Window(trial.info.name, 0, min(rows, 64), 0, min(columns, 256))
    bare = replace(trial, steps=trial.steps[:1])  # code - zero
    if not window.row_stop * window.column_stop:
        return False
    stored = inventory.file.read_stored(bare.needs(window))
    try:
        return float(bare.decode(window, stored).mean()) < 0.5
    except FormatError:  # a damaged order: said when the weight is read
        return False


def _claim(inventory: Inventory, stem: str, bits: int, settings: Settings, *, is_second: bool) -> Affine:
    tensors = inventory.tensors
    weight, scales = tensors[f"{stem}.qweight"], tensors[f"{stem}.scales"]
    order = tensors.get(f"{stem}.g_idx")
    groups, out = scales.shape
    columns = order.size if order else weight.shape[0] * 32 // bits
    if order and order.dtype not in ("I32", "I64"):
        raise contradiction(weight, order)
    codes = Table(weight.name, out, columns, turned=True, bits=bits).checked(tensors)
    if order is None or groups == 1:
        size, by = step(columns, groups, number(quantisation(settings), "group_size"), scales), None
    else:
        size, by = max(1, -(-columns // max(groups, 1))), order
    scale = Spread(Table(scales.name, out, groups, turned=True).checked(tensors), 1, size, by)
    parts = _parts(inventory, stem)
    zero: Spread | float = float(1 << bits - 1)
    if f"{stem}.qzeros" in parts:
        table = Table(f"{stem}.qzeros", out, groups, turned=True, bits=bits, down=True).checked(tensors)
        zero = Spread(table, 1, size, by, plus=int(not is_second), modulo=0 if is_second else 1 << bits)
    info = logical(f"{stem}.weight", (out, columns), f"GPTQ{bits}", inventory, parts)
    return Affine(info, parts, TableCodes(codes), (("-", zero), ("*", scale)))
