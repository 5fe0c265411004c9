"""AWQ: ``qweight`` int32 (in, out / 8) and ``qzeros`` int32 (groups, out / 8), fields in the order 0 2 4 6 1 3 5 7.

Facts: Lin et al. 2024, arXiv:2306.00978; layout "gemm" of github.com/casper-hansen/AutoAWQ. Value =
scale * (code - zero), the zero as stored. AWQ also moves factors between a norm's gains and the columns behind
it: that is a rescaling of the model, and undone where rescalings are, not here.
"""

from __future__ import annotations

from collections.abc import Iterator

from drupe.readers.quantised.affine import Affine, Spread, TableCodes
from drupe.readers.quantised.interface import Inventory, Settings, contradiction, logical
from drupe.readers.quantised.settings import number, quantisation
from drupe.readers.quantised.table import Table, step

BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def claims(inventory: Inventory, settings: Settings) -> Iterator[Affine]:
    """Every ``NAME.qweight`` with an eighth of the columns of its scales; GPTQ has taken its own.

    Raises FormatError on one that fits neither.
    """
    tensors = inventory.tensors
    for stem in inventory.stems("qweight"):
        weight = tensors[f"{stem}.qweight"]
        if weight.dtype not in ("I32", "U32"):
            continue
        scales = inventory.need(f"{stem}.scales", weight.name)
        if len(weight.shape) != 2 or len(scales.shape) != 2 or weight.shape[1] * 8 != scales.shape[1]:
            raise contradiction(weight, scales)
        groups, out = scales.shape
        columns = weight.shape[0]
        size = step(columns, groups, number(quantisation(settings), "group_size", "q_group_size"), scales)
        codes = Table(weight.name, out, columns, turned=True, bits=BITS, down=True, order=ORDER)
        scale = Spread(Table(scales.name, out, groups, turned=True), 1, size)
        parts = [weight.name, *inventory.present(stem, ("qzeros", "scales"))]
        zero: Spread | float = float(1 << BITS - 1)
        if f"{stem}.qzeros" in parts:
            table = Table(f"{stem}.qzeros", out, groups, turned=True, bits=BITS, down=True, order=ORDER)
            zero = Spread(table.checked(tensors), 1, size)
        info = logical(f"{stem}.weight", (out, columns), f"AWQ{BITS}", inventory, parts)
        yield Affine(info, tuple(parts), TableCodes(codes.checked(tensors)), (("-", zero), ("*", scale)))
