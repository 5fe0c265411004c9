"""ONNX: tensors wherever they live, quantised weights as the numbers that they stand for.

Format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto and docs/ExternalData.md there. Opening reads
the graph and skips all values; the onnx package is not needed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from drupe.errors import FormatError, LocatorError, UnsafePathError
from drupe.messages import Message, msg
from drupe.readers.interface import (
    FloatArray,
    Layout,
    TensorInfo,
    Window,
    check_shape,
    check_tensor_count,
)
from drupe.readers.onnx_graph import External, Model, StoredTensor, parse_model
from drupe.readers.onnx_types import DATA_TYPES, RAW_DATA, UNREAD_TYPES, DataType
from drupe.readers.onnx_usage import Quantisation, Usage, analyse
from drupe.readers.onnx_values import (
    check_window,
    full_window,
    grid_shape,
    scaled,
    unpack,
    unpack_typed,
    window_spans,
)
from drupe.sources.interface import Blob, Span, Tree


@dataclass(frozen=True, slots=True)
class Place:
    """Where the values of a tensor lie: bytes ``[start, stop)`` of the file called ``file``."""

    file: str
    start: int
    stop: int
    type: DataType
    is_typed: bool
    """Written as varints of int32_data or int64_data."""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """The tensors of an ONNX model in the order in which the graph first uses them as weights.

    Matrices are delivered as stored: ``layout`` says whether rows are outputs or inputs. Integer weights come
    dequantised; those whose scale was not found (``scale_unknown``) come as ``integer - zero point``.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    auxiliary: frozenset[str]
    """Names of scales and zero points: tensors of the file, but no weights of their own."""
    consumers: Mapping[str, str]
    """Tensor -> ``operator:node name`` of its first use; exporters often keep module names there."""
    scale_unknown: frozenset[str]
    skipped: Mapping[str, Message]
    """Tensors that are there and not read, and why."""
    places: Mapping[str, Place]
    quantisations: Mapping[str, Quantisation]
    blob: Blob
    tree: Tree
    format: str = field(default="onnx", init=False)

    def read(self, windows: Sequence[Window]) -> list[FloatArray]:
        """The values of each window, float32, in storage order; one ``read_many`` for each file."""
        helpers = [full_window(self.tensors[name]) for name in self._helpers(windows)]
        values = self._stored([*windows, *helpers])
        numbers = {w.tensor: v for w, v in zip(helpers, values[len(windows) :], strict=True)}
        return [self._meaning(w, v, numbers) for w, v in zip(windows, values, strict=False)]

    def _helpers(self, windows: Iterable[Window]) -> list[str]:
        """Scales and zero points that the windows need."""
        names: dict[str, None] = {}
        for window in windows:
            quantisation = self.quantisations.get(window.tensor)
            if quantisation is not None:
                for name in (quantisation.scale, quantisation.zero_point):
                    if isinstance(name, str):
                        names[name] = None
        return list(names)

    def _stored(self, windows: Sequence[Window]) -> list[FloatArray]:
        """The numbers in the file, before any scale."""
        spans: dict[str, list[Span]] = defaultdict(list)
        slices = []
        for window in windows:
            place = self.places[window.tensor]
            mine = spans[place.file]
            first = len(mine)
            check_window(window, self.tensors[window.tensor])
            if place.is_typed:
                mine.append((place.start, place.stop - place.start))
            else:
                mine.extend(window_spans(window, self.tensors[window.tensor], place.start, place.type.bits))
            slices.append(slice(first, len(mine)))
        data = {name: self._open(name).read_many(wanted) for name, wanted in spans.items() if wanted}
        return [
            self._decode(window, data.get(self.places[window.tensor].file, [])[part])
            for window, part in zip(windows, slices, strict=True)
        ]

    def _open(self, name: str) -> Blob:
        return self.blob if name == self.blob.name else self.tree.open(name)

    def _decode(self, window: Window, pieces: Sequence[bytes]) -> FloatArray:
        place, info = self.places[window.tensor], self.tensors[window.tensor]
        if place.is_typed:
            rows = unpack_typed(pieces[0], place.type, info).reshape(info.matrix_shape)
            return rows[window.row_start : window.row_stop, window.column_start : window.column_stop].copy()
        return unpack(pieces, place.type, window, info)

    def _meaning(self, window: Window, values: FloatArray, numbers: Mapping[str, FloatArray]) -> FloatArray:
        quantisation = self.quantisations.get(window.tensor)
        if quantisation is None:
            return values
        return scaled(values, window, self.tensors, quantisation, numbers)


def open_onnx(blob: Blob, tree: Tree) -> OnnxFile:
    """Open an ONNX model; ``tree`` holds the external data, if any.

    Raises FormatError, LimitError or UnsafePathError; reads the graph, no values.
    """
    return _Opening(blob, tree).result(parse_model(blob))


class _Opening:
    """Turns the parsed graph into the contract of all readers."""

    def __init__(self, blob: Blob, tree: Tree) -> None:
        self.blob = blob
        self.tree = tree
        self.sizes: dict[str, int] = {}
        self.infos: dict[str, TensorInfo] = {}
        self.places: dict[str, Place] = {}
        self.skipped: dict[str, Message] = {}
        self.consumers: dict[str, str] = {}

    def result(self, model: Model) -> OnnxFile:
        usages = analyse(model, self.blob.name)
        check_tensor_count(len(usages.tensors), self.blob.name)
        for tensor in usages.tensors:
            self.add(tensor, usages.by_name[tensor.name])
        quantisations, unknown = self.quantisations(usages.by_name)
        return OnnxFile(
            tensors=self.infos,
            metadata=dict(model.metadata),
            auxiliary=usages.auxiliary & self.infos.keys(),
            consumers=self.consumers,
            scale_unknown=unknown,
            skipped=self.skipped,
            places=self.places,
            quantisations=quantisations,
            blob=self.blob,
            tree=self.tree,
        )

    def add(self, tensor: StoredTensor, usage: Usage) -> None:
        """List a tensor, or say why it is not read. Duplicate names were refused by the parser."""
        kind = DATA_TYPES.get(tensor.data_type)
        if tensor.is_sparse:
            self.skipped[tensor.name] = msg("onnx.sparse")
        elif kind is None:
            name = UNREAD_TYPES.get(tensor.data_type, str(tensor.data_type))
            self.skipped[tensor.name] = msg("onnx.unread_type", type=name)
        elif tensor.is_split:
            self.skipped[tensor.name] = msg("onnx.split")
        elif usage.own_packing:
            self.skipped[tensor.name] = msg("onnx.own_packing", operator=usage.own_packing)
        else:
            self.list(tensor, kind, usage)

    def list(self, tensor: StoredTensor, kind: DataType, usage: Usage) -> None:
        shape = check_shape(tensor.dims, f"{self.blob.name}: {tensor.name[:80]}")
        is_quantised = usage.is_integer_weight and (kind.is_narrow or kind.name.startswith("F8"))
        place = self.place(tensor, kind, math.prod(shape))
        info = TensorInfo(
            name=tensor.name,
            shape=shape,
            dtype=kind.name,
            file=place.file,
            layout=usage.layout if len(shape) > 1 else Layout.UNKNOWN,
            stored_bits=float(kind.bits),
            is_quantised=is_quantised,
        )
        self.places[tensor.name] = place
        self.infos[tensor.name] = info
        if usage.consumer:
            self.consumers[tensor.name] = usage.consumer

    def place(self, tensor: StoredTensor, kind: DataType, count: int) -> Place:
        needed = (count * kind.bits + 7) // 8
        if tensor.external is not None:
            return self.external(tensor.name, tensor.external, kind, needed)
        length = tensor.stop - tensor.start
        place = Place(self.blob.name, tensor.start, tensor.stop, kind, False)
        if tensor.payload == kind.typed_field != RAW_DATA and kind.has_varints:
            entries = (count + 1) // 2 if kind.bits == 4 else count
            if not entries <= length <= 10 * entries:
                self.refuse(tensor.name, f"{length} bytes of typed data cannot hold {entries} numbers")
            return Place(self.blob.name, tensor.start, tensor.stop, kind, True)
        if count and tensor.payload not in (RAW_DATA, kind.typed_field):
            self.refuse(tensor.name, f"its {count} values of type {kind.name} are missing")
        if length != needed:
            self.refuse(tensor.name, f"{length} bytes of values, {needed} expected")
        return place

    def refuse(self, name: str, what: str) -> None:
        raise FormatError(f"tensor {name[:80]!r}: {what}", where=self.blob.name)

    def external(self, name: str, external: External, kind: DataType, needed: int) -> Place:
        file = external_path(self.blob.name, external.location)
        size = self.size_of(file, name)
        if external.length is not None and external.length != needed:
            self.refuse(name, f"{external.length} bytes of external data, {needed} expected")
        if external.offset + needed > size:
            end = external.offset + needed
            self.refuse(name, f"its external data ends at byte {end} of {file!r}, which has {size}")
        return Place(file, external.offset, external.offset + needed, kind, False)

    def size_of(self, file: str, name: str) -> int:
        if not self.sizes:
            self.sizes = dict(self.tree.files())
        size = self.sizes.get(file)
        if size is None:  # a link that leaves the tree is not listed; opening says so
            try:
                size = self.tree.open(file).size
            except LocatorError:
                raise FormatError(
                    f"tensor {name[:80]!r}: its external data file {file!r} is missing",
                    where=self.blob.name,
                    hint="put the file next to the model, or give the folder that holds both",
                ) from None
            self.sizes[file] = size
        return size

    def quantisations(self, usages: Mapping[str, Usage]) -> tuple[dict[str, Quantisation], frozenset[str]]:
        """What is needed to dequantise each integer weight, and those for which it was not found."""
        found: dict[str, Quantisation] = {}
        unknown = set()
        for name, info in self.infos.items():
            wanted = usages[name].quantisation
            if wanted is not None:
                found[name] = self.fitting(info, wanted)
            if info.is_quantised and (wanted is None or found[name].scale is None):
                unknown.add(name)
        return found, frozenset(unknown)

    def fitting(self, info: TensorInfo, wanted: Quantisation) -> Quantisation:
        """The same without a scale or zero point that does not fit the shape of the tensor."""
        fits = {
            name: name in self.infos and grid_shape(info, self.infos[name], wanted) is not None
            for name in (wanted.scale, wanted.zero_point)
            if isinstance(name, str)
        }
        scale = wanted.scale if fits.get(wanted.scale, True) else None  # type: ignore[arg-type]
        zero_point = wanted.zero_point if wanted.zero_point and fits[wanted.zero_point] else None
        return Quantisation(scale, zero_point, wanted.axis, wanted.block)


def external_path(model: str, location: str) -> str:
    """The path in the tree of a location relative to the model's folder; only downwards.

    >>> external_path("onnx/model.onnx", "weights/model.data")
    'onnx/weights/model.data'
    """
    path = PurePosixPath(location)
    is_odd = not location or "\\" in location or ":" in location or "\0" in location
    if is_odd or path.is_absolute() or ".." in path.parts:
        raise UnsafePathError(f"external data at {location[:200]!r}", where=model)
    return str(PurePosixPath(model).parent / path)
