"""CTranslate2 models (``model.bin``): the list of variables, walked without reading their contents.

Format facts: ``python/ctranslate2/specs/model_spec.py`` (``_serialize``, ``_quantize``) and ``src/models/model.cc``
of github.com/OpenNMT/CTranslate2: binary versions 2 to 6, little-endian; a string is a uint16 length that counts
its final zero byte. int8 and int16 variables have a factor per row (or one) in ``NAME_scale``: value = stored /
factor. Single numbers are settings. A linear layer's rows are output units. Names are given with dots, a number of
a layer for itself: ``decoder/layer_3/ffn/linear_0/weight`` is ``decoder.layer.3.ffn.linear_0.weight`` here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from drupe.errors import FormatError, LimitError, UnsupportedError
from drupe.readers.dense import DenseFile, Place, check_density
from drupe.readers.forward import Forward
from drupe.readers.interface import (
    MAX_NAME,
    FloatArray,
    Layout,
    StoredArray,
    TensorInfo,
    Window,
    check_shape,
    check_tensor_count,
)
from drupe.readers.packed import decode_stored
from drupe.sources.interface import Blob

VERSIONS = range(2, 7)
"""Binary versions that are read; 1 (before 2020) says nothing about itself."""
_U8, _U16, _U32 = struct.Struct("<B"), struct.Struct("<H"), struct.Struct("<I")
_DTYPES = (("F32", 4), ("I8", 1), ("I16", 2), ("I32", 4), ("F16", 2), ("BF16", 2))
"""Type number -> ours and bytes of a value, from version 4."""
_BY_SIZE = {4: ("F32", 4), 2: ("I16", 2), 1: ("I8", 1)}
"""Bytes of a value -> type, before version 4."""
_LAYER = re.compile(r"\blayer_(\d{1,5})(?=/)")
_SCALE, _ZERO = "_scale", "_zero"


def is_ctranslate2(blob: Blob) -> bool:
    """Whether a file begins as a CTranslate2 model does: a version, then the name of a specification."""
    head = blob.read(0, min(blob.size, 64))
    if len(head) < 8 or _U32.unpack_from(head)[0] not in VERSIONS:
        return False
    length = _U16.unpack_from(head, 4)[0]
    name = head[6 : 5 + length]
    return 1 < length < 58 and len(head) > 5 + length and head[5 + length] == 0 and name.isalnum()


@dataclass(frozen=True, slots=True)
class Ctranslate2File:
    """The variables of one model; quantised ones are decoded when read."""

    dense: DenseFile
    tensors: Mapping[str, TensorInfo]
    """Without the factors of quantised variables."""
    factors: Mapping[str, str]
    """Quantised variable -> its factors."""
    format: str = "ctranslate2"

    @property
    def metadata(self) -> Mapping[str, str]:
        """The specification, the settings, and names that stand for another variable."""
        return self.dense.metadata

    @property
    def headers(self) -> Mapping[str, bytes]:
        """File name -> everything but the contents of the variables."""
        return self.dense.headers

    def read(self, windows: Sequence[Window]) -> list[FloatArray]:
        """The values of each window as float32."""
        for window in windows:
            if self.tensors[window.tensor].dtype == "I32" and self.tensors[window.tensor].is_quantised:
                raise UnsupportedError(
                    "a variable in AWQ's packing",
                    where=f"{self.tensors[window.tensor].file}: {window.tensor[:80]}",
                    hint="compare the AWQ checkpoint that it was converted from",
                )
        scaled = [window for window in windows if window.tensor in self.factors]
        values = self.dense.read([*windows, *map(self._factor_window, scaled)])
        factors = iter(values[len(windows) :])
        with np.errstate(all="ignore"):  # a factor of 0 or NaN is a fact about the file
            return [
                array / next(factors).reshape(-1, 1) if window.tensor in self.factors else array
                for window, array in zip(windows, values, strict=False)
            ]

    def read_stored(self, windows: Sequence[Window]) -> list[StoredArray]:
        """As :meth:`read`: nothing here is packed in a way that another reader would undo."""
        return [np.asarray(array) for array in self.read(windows)]

    def _factor_window(self, window: Window) -> Window:
        factor = self.factors[window.tensor]
        if self.dense.tensors[factor].size == 1:
            return Window(factor, 0, 1, 0, 1)
        return Window(factor, 0, 1, window.row_start, window.row_stop)


def open_ctranslate2(blob: Blob) -> Ctranslate2File:
    """Open a ``model.bin``: its list of variables is read, their contents are not.

    Raises FormatError or LimitError on any lie, UnsupportedError on other versions.
    """
    cursor = Forward(blob)
    version = cursor.number(_U32)
    if version not in VERSIONS:
        raise UnsupportedError(f"version {version} of a CTranslate2 model", where=blob.name)
    metadata = {"specification": _text(cursor), "revision": str(cursor.number(_U32))}
    count = cursor.number(_U32)
    check_tensor_count(count, blob.name)
    check_density(count, blob.size, blob.name)
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, Place] = {}
    for _ in range(count):
        info, start = _variable(cursor, version, blob.name)
        if info.name in tensors or info.name in metadata:
            raise FormatError(f"duplicate variable {info.name[:80]!r}", where=cursor.where)
        if not info.shape and not info.name.endswith(_SCALE):
            metadata[info.name] = _setting(cursor, info, start)
            continue
        tensors[info.name] = info
        places[info.name] = Place(blob, start, int(info.stored_bits) // 8)
        cursor.skip(info.size * int(info.stored_bits) // 8)
    if version >= 3:
        metadata |= _aliases(cursor, tensors.keys() | metadata.keys())
    if cursor.left:
        raise FormatError(f"{cursor.left} bytes follow the last variable", where=cursor.where)
    dense = DenseFile("ctranslate2", tensors, metadata, places, {blob.name: bytes(cursor.header)})
    return _with_factors(dense)


def _text(cursor: Forward) -> str:
    length = cursor.number(_U16)
    if length > MAX_NAME:
        raise LimitError("bytes of a name", limit=MAX_NAME, actual=length, where=cursor.where)
    raw = cursor.take(length)
    if not raw or raw[-1]:
        raise FormatError("a name does not end with a zero byte", where=cursor.where)
    try:
        return raw[:-1].decode()
    except UnicodeDecodeError:
        raise FormatError("a name is not UTF-8", where=cursor.where) from None


def _dotted(name: str) -> str:
    """Components as in other formats: schemes of names and the search for repeated layers go by them.

    >>> _dotted("decoder/layer_3/ffn/linear_0/weight")
    'decoder.layer.3.ffn.linear_0.weight'
    """
    return _LAYER.sub(r"layer.\1", name).replace("/", ".")


def _variable(cursor: Forward, version: int, file: str) -> tuple[TensorInfo, int]:
    """The description of a variable, and where its content starts."""
    name = _dotted(_text(cursor))
    where = f"{cursor.where}: {name[:80]!r}"
    rank = cursor.number(_U8)
    extents = struct.unpack(f"<{rank}I", cursor.take(4 * rank))
    shape = check_shape(extents, where)
    kind, announced = cursor.number(_U8), cursor.number(_U32)
    if version >= 4 and kind < len(_DTYPES):
        dtype, size = _DTYPES[kind]
    elif version < 4 and kind in _BY_SIZE:
        dtype, size = _BY_SIZE[kind]
        announced *= size
    else:
        raise FormatError(f"unknown type {kind} of a variable", where=where)
    layout = Layout.OUT_IN if len(shape) == 2 else Layout.UNKNOWN
    info = TensorInfo(name, shape, dtype, file, layout, 8.0 * size)
    if announced != info.size * size:
        raise FormatError(
            f"{announced} bytes announced; {dtype} {shape} needs {info.size * size}", where=where
        )
    return info, cursor.position


def _setting(cursor: Forward, info: TensorInfo, start: int) -> str:
    """A single number."""
    raw = cursor.take(int(info.stored_bits) // 8)
    return str(decode_stored(raw, info.dtype, 1)[0])


def _aliases(cursor: Forward, known: set[str]) -> dict[str, str]:
    """Further names -> the variable that they stand for (tied embeddings, shared settings)."""
    count = cursor.number(_U32)
    limit = cursor.left // 6
    if count > limit:
        raise LimitError("number of aliases", limit=limit, actual=count, where=cursor.where)
    aliases: dict[str, str] = {}
    for _ in range(count):
        alias, name = _dotted(_text(cursor)), _dotted(_text(cursor))
        if name not in known or alias in known or alias in aliases:
            raise FormatError(f"alias {alias[:80]!r} of {name[:80]!r} names nothing", where=cursor.where)
        aliases[alias] = name
    return aliases


def _with_factors(dense: DenseFile) -> Ctranslate2File:
    """Mark what is quantised, and take its factors out of the list."""
    factors: dict[str, str] = {}
    hidden: set[str] = set()
    for name, info in dense.tensors.items():
        factor = dense.tensors.get(name + _SCALE)
        if factor is None or info.dtype not in ("I8", "I16", "I32"):
            continue
        hidden |= {factor.name, name + _ZERO}
        if info.dtype == "I32":
            continue
        if factor.size not in (1, info.matrix_shape[0]) or factor.dtype[0] not in "BF":
            what = f"{factor.size} factors ({factor.dtype}) for {info.shape} of {name[:80]!r}"
            raise FormatError(what, where=info.file)
        factors[name] = factor.name
    tensors = {
        name: replace(info, is_quantised=f"{name}{_SCALE}" in hidden)
        for name, info in dense.tensors.items()
        if name not in hidden
    }
    return Ctranslate2File(dense, tensors, factors)
