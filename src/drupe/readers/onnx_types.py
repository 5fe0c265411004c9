"""Storage types of ONNX tensors: TensorProto.DataType of github.com/onnx/onnx, onnx/onnx.proto."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

RAW_DATA, FLOAT_DATA, INT32_DATA, INT64_DATA, DOUBLE_DATA, UINT64_DATA = 9, 4, 5, 7, 10, 11
"""Field numbers of the places where a TensorProto may keep its values."""


class DataType(NamedTuple):
    """Name in the package's spelling, bits of one value, and the typed field that may hold it."""

    name: str
    bits: int
    typed_field: int

    @property
    def has_varints(self) -> bool:
        """The typed field holds numbers of variable length."""
        return self.typed_field in (INT32_DATA, INT64_DATA, UINT64_DATA)

    @property
    def is_narrow(self) -> bool:
        """An integer type that weights are quantised to."""
        return self.name in ("I8", "U8", "I4", "U4")

    @property
    def can_be_quantised(self) -> bool:
        """A type that DequantizeLinear takes."""
        return self.is_narrow or self.name in ("I16", "U16", "I32", "F8_E4M3", "F8_E5M2")


DATA_TYPES: Mapping[int, DataType] = {
    1: DataType("F32", 32, FLOAT_DATA),
    2: DataType("U8", 8, INT32_DATA),
    3: DataType("I8", 8, INT32_DATA),
    4: DataType("U16", 16, INT32_DATA),
    5: DataType("I16", 16, INT32_DATA),
    6: DataType("I32", 32, INT32_DATA),
    7: DataType("I64", 64, INT64_DATA),
    9: DataType("BOOL", 8, INT32_DATA),
    10: DataType("F16", 16, INT32_DATA),
    11: DataType("F64", 64, DOUBLE_DATA),
    12: DataType("U32", 32, UINT64_DATA),
    13: DataType("U64", 64, UINT64_DATA),
    16: DataType("BF16", 16, INT32_DATA),
    17: DataType("F8_E4M3", 8, INT32_DATA),
    19: DataType("F8_E5M2", 8, INT32_DATA),
    21: DataType("U4", 4, INT32_DATA),
    22: DataType("I4", 4, INT32_DATA),
}
UNREAD_TYPES: Mapping[int, str] = {
    0: "UNDEFINED",
    8: "STRING",
    14: "COMPLEX64",
    15: "COMPLEX128",
    18: "FLOAT8E4M3FNUZ",
    20: "FLOAT8E5M2FNUZ",
    23: "FLOAT4E2M1",
    24: "FLOAT8E8M0",
    25: "UINT2",
    26: "INT2",
}
