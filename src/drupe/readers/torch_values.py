"""The tensors that a pickle of PyTorch describes: views of storages, rebuilt from symbols, and their names.

Facts: ``torch/_utils.py`` (``_rebuild_*``: argument orders) and ``torch/serialization.py`` (persistent ids) of
https://github.com/pytorch/pytorch. A tensor is ``storage, offset, size, stride``; offsets and strides count values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from drupe.errors import FormatError, LimitError
from drupe.readers.interface import MAX_NAME, MAX_TENSORS, check_shape
from drupe.readers.pickle_values import Call, Global, Pairs, Persistent, Value

DTYPES: Mapping[str, tuple[str, int]] = {
    "float64": ("F64", 8), "float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1), "float8_e5m2": ("F8_E5M2", 1), "float8_e8m0fnu": ("F8_E8M0", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1), "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1), "float4_e2m1fn_x2": ("F4_X2", 1),
    "int64": ("I64", 8), "int32": ("I32", 4), "int16": ("I16", 2), "int8": ("I8", 1),
    "uint64": ("U64", 8), "uint32": ("U32", 4), "uint16": ("U16", 2), "uint8": ("U8", 1), "bool": ("BOOL", 1),
    "complex32": ("C32", 4), "complex64": ("C64", 8), "complex128": ("C128", 16),
}  # fmt: skip
"""Type of PyTorch -> name and bytes; those that :func:`drupe.readers.packed.decode` lacks are listed, not read."""
_STORAGES: Mapping[str, str] = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16",
    "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8", "_UntypedStorage": "uint8",
    "QInt8Storage": "int8", "QUInt8Storage": "uint8", "QInt32Storage": "int32", "QUInt4x2Storage": "uint8",
    "QUInt2x4Storage": "uint8",
}  # fmt: skip
_STORAGE_MODULES = frozenset({"torch", "torch.cuda", "torch.storage"})
_WRAPPED = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_TYPED = ("torch._tensor._rebuild_from_type_v2", "torch.tensor._rebuild_from_type_v2")
_TAG = "torch.jit._pickle.restore_type_tag"
_DICTIONARIES = frozenset(
    {"collections.OrderedDict", "collections.defaultdict", "builtins.dict", "__builtin__.dict"}
)
_WRAPPERS = (
    *(
        "state_dict",
        "model_state_dict",
        "model",
        "module",
        "net",
        "network",
        "weights",
        "params",
        "params_ema",
    ),
    *("ema", "model_ema", "generator"),
)
"""Keys under which training programs keep the weights."""
_ASIDE = frozenset(
    {
        *("optimizer", "optimizers", "optimizer_state_dict", "optimizer_states", "optimizer_state", "optim"),
        *(
            "lr_scheduler",
            "lr_schedulers",
            "scheduler",
            "scheduler_state_dict",
            "scaler",
            "grad_scaler",
            "amp",
        ),
        *(
            "rng_state",
            "cuda_rng_state",
            "torch_rng_state",
            "random_states",
            "rng_states",
            "callbacks",
            "loops",
        ),
        *("args", "hparams", "hyper_parameters", "last_optimizer_state", "optimizer_history"),
    }
)
_DEPTH = 16
"""Dictionaries within dictionaries (modules within modules)."""
_MAX_STEPS = 300_000


@dataclass(frozen=True, slots=True)
class Storage:
    """A stretch of numbers: ``start`` and ``length`` in bytes, within the storage saved as ``key``."""

    key: str
    dtype: str
    start: int
    length: int
    total: int
    """Bytes of the whole storage."""


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: name of its type, bytes of a value, offset in bytes within a storage, shape, strides in values."""

    storage: Storage
    dtype: str
    item: int
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    """None when the values lie without gaps, row after row."""


@dataclass(slots=True)
class Tensors:
    """The tensors of the chosen dictionary by name, and why others are not among them."""

    views: dict[str, View] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


class _RefusedError(Exception):
    """A tensor that is well-formed and not read; the text says why."""


def storage_of(value: Value, where: str) -> Storage:
    """The storage behind a persistent id: ``("storage", type, key, device, count, view)``."""
    key = value.key if isinstance(value, Persistent) else None
    if not isinstance(key, tuple) or len(key) not in (5, 6) or key[0] != "storage":
        raise FormatError("a tensor without a storage", where=where)
    kind, name, count, view = key[1], key[2], key[4], key[5] if len(key) == 6 else None
    if not isinstance(kind, Global) or kind.module not in _STORAGE_MODULES or kind.name not in _STORAGES:
        raise FormatError("a storage of an unknown type", where=where)
    dtype = _STORAGES[kind.name]
    item = DTYPES[dtype][1]
    if not isinstance(name, str) or type(count) is not int or not 0 <= count <= 1 << 48:
        raise FormatError(f"a storage of {str(count)[:40]} values", where=where)
    start, length = 0, count
    if view is not None:
        start, length = _integers(view[1:] if isinstance(view, tuple) else None, where, 2)
        if start + length > count:
            raise LimitError("end of a view of a storage", limit=count, actual=start + length, where=where)
    return Storage(name, dtype, start * item, length * item, count * item)


def _integers(value: Value, where: str, count: int | None = None) -> tuple[int, ...]:
    """A tuple of whole numbers that are not negative."""
    if isinstance(value, Call) and value.path in ("torch.Size", "torch.jit._pickle.build_intlist"):
        value = value.arguments[0] if value.arguments else None
    numbers = tuple(value) if isinstance(value, tuple | list) and len(value) <= 64 else None
    if numbers is None or not all(type(n) is int and n >= 0 for n in numbers):
        raise FormatError("a size, a stride or an offset that is no whole number", where=where)
    if count is not None and len(numbers) != count:
        raise FormatError(f"{len(numbers)} numbers instead of {count}", where=where)
    return numbers


def is_tensor(value: Value) -> bool:
    """Whether a value is a call that builds a tensor."""
    if isinstance(value, Call) and value.path == _TAG and value.arguments:
        value = value.arguments[0]
    return isinstance(value, Call) and ("._rebuild_" in value.path or value.path == "torch.Tensor")


def _view_of(value: Value, where: str) -> View:
    """The view that a call builds. Raises _RefusedError on a kind that is not read."""
    for _ in range(_DEPTH):
        if not isinstance(value, Call):
            break
        arguments = value.arguments
        if isinstance(value.state, tuple) and len(value.state) > 3:
            raise _RefusedError("its values are replaced by a later instruction (a form before PyTorch 0.4)")
        if value.path in (*_WRAPPED, _TAG) and arguments:
            value = arguments[0]
        elif value.path in _TYPED and len(arguments) >= 3 and isinstance(arguments[2], tuple):
            value = Call(arguments[0], arguments[2])
        elif value.path == "torch._utils._rebuild_tensor" and len(arguments) == 4:
            return _strided(arguments, None, where)
        elif value.path == "torch._utils._rebuild_tensor_v2" and len(arguments) in (6, 7):
            _check_plain(arguments[6] if len(arguments) == 7 else None)
            return _strided(arguments, None, where)
        elif value.path == "torch._utils._rebuild_tensor_v3" and len(arguments) in (7, 8):
            _check_plain(arguments[7] if len(arguments) == 8 else None)
            return _strided(arguments, arguments[6], where)
        else:
            break
    raise _RefusedError(_why(value))


def _why(value: Value) -> str:
    path = value.path if isinstance(value, Call) else ""
    if "sparse" in path:
        return "a sparse tensor"
    if "qtensor" in path:
        return "a quantised tensor of PyTorch"
    return f"a tensor built by {path[:80]!r}" if path else "a tensor built by no known function"


def _check_plain(notes: Value) -> None:
    """Tensor metadata may say that all values are to be negated or conjugated."""
    pairs = notes.pairs if isinstance(notes, Pairs | Call) else []
    if any(value not in (False, None) for _, value in pairs if not isinstance(value, Call | Pairs)):
        raise _RefusedError("its values are to be negated or conjugated")


def _strided(arguments: tuple[Value, ...], dtype: Value, where: str) -> View:
    storage = storage_of(arguments[0], where)
    name = storage.dtype
    if dtype is not None:
        if not isinstance(dtype, Global) or dtype.module != "torch" or dtype.name not in DTYPES:
            raise _RefusedError("a tensor of an unknown type")
        name = dtype.name
    label, item = DTYPES[name]
    (offset,) = _integers((arguments[1],), where)
    shape = check_shape(_integers(arguments[2], where), where)
    strides = _integers(arguments[3], where, len(shape))
    values = storage.length // item
    size = math.prod(shape)
    reach = offset + 1 + sum((extent - 1) * step for extent, step in zip(shape, strides, strict=True))
    if size and reach > values:
        raise LimitError("end of a tensor in its storage", limit=values, actual=reach, where=where)
    if size > values:
        raise _RefusedError(f"{size} values expanded from a storage of {values}")
    plain = size == 0 or _is_plain(shape, strides)
    return View(storage, label, item, storage.start + offset * item, shape, None if plain else strides)


def _is_plain(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    step = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True


def children(value: Value) -> Iterator[tuple[str, Value]]:
    """What a dictionary, a list or a saved module contains, by name."""
    if isinstance(value, Pairs):
        yield from _named(value.pairs)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if isinstance(item, Pairs | Call | list | tuple):
                yield str(index), item
    elif isinstance(value, Call) and value.path in _DICTIONARIES:
        for argument in value.arguments[-1:]:
            if isinstance(argument, list):
                pairs = [(p[0], p[1]) for p in argument if isinstance(p, list | tuple) and len(p) == 2]
                yield from _named(pairs)
            elif isinstance(argument, Pairs):
                yield from _named(argument.pairs)
        yield from _named(value.pairs)
    elif isinstance(value, Call):
        tagged = value.arguments[0] if value.path == _TAG and value.arguments else None
        yield from children(tagged) if isinstance(tagged, Pairs | list | tuple) else _attributes(value)


def _attributes(value: Call) -> Iterator[tuple[str, Value]]:
    """The parts of an object: of a module its parameters, buffers and modules, under their own names."""
    state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
    inner = dict(_named(state.pairs)) if isinstance(state, Pairs) else {}
    if "_parameters" in inner or "_modules" in inner:
        for key in ("_parameters", "_buffers", "_modules"):
            yield from children(inner.get(key)) if isinstance(inner.get(key), Pairs | Call) else ()
    else:
        yield from inner.items()
    yield from _named(value.pairs)


def _named(pairs: list[tuple[Value, Value]]) -> Iterator[tuple[str, Value]]:
    """Pairs whose key is text or a whole number; of equal keys the last counts, as in Python."""
    found = {str(key): value for key, value in pairs if type(key) is str or _is_small(key)}
    yield from found.items()


def _is_small(key: Value) -> bool:
    return type(key) is int and abs(key) < 1 << 63


@dataclass(slots=True)
class _Views:
    """The view of each tensor, or why it is not read; a tensor with many names is looked at once."""

    where: str
    known: dict[int, View | str] = field(default_factory=dict)

    def __call__(self, value: Value) -> View | str:
        if id(value) not in self.known:
            try:
                self.known[id(value)] = _view_of(value, self.where)
            except _RefusedError as reason:
                self.known[id(value)] = str(reason)
        return self.known[id(value)]


@dataclass(slots=True)
class _Weigher:
    """Bytes of tensors below a value; each value is looked at once."""

    views: _Views
    known: dict[int, int] = field(default_factory=dict)

    def __call__(self, value: Value, depth: int = 0) -> int:
        if not isinstance(value, Pairs | Call | list | tuple) or depth > _DEPTH:
            return 0
        if id(value) not in self.known:
            self.known[id(value)] = 0  # a value that contains itself weighs nothing there
            self.known[id(value)] = (
                self._bytes(value)
                if is_tensor(value)
                else sum(self(item, depth + 1) for _, item in children(value))
            )
        return self.known[id(value)]

    def _bytes(self, value: Value) -> int:
        """Of a tensor; 1 when it is not read."""
        try:
            view = self.views(value)
        except FormatError:
            return 1  # it may not be among those that are chosen
        return 1 if isinstance(view, str) else max(1, view.item * math.prod(view.shape))


def _chosen(root: Value, weigh: _Weigher) -> Value:
    """The dictionary of weights: training programs put it beside the state of the optimiser."""
    value = root
    for _ in range(_DEPTH):
        if not isinstance(value, Pairs) and not (isinstance(value, Call) and value.path in _DICTIONARIES):
            return value
        parts = [(key, part) for key, part in children(value) if key not in _ASIDE and not is_tensor(part)]
        heavy = [(key, part) for key, part in parts if weigh(part)]
        direct = sum(weigh(part) for _, part in children(value) if is_tensor(part))
        wrappers = sorted((p for p in heavy if p[0] in _WRAPPERS), key=lambda p: _WRAPPERS.index(p[0]))
        best = max(wrappers, key=lambda pair: weigh(pair[1]), default=None)
        if best is not None and weigh(best[1]) >= direct:
            value = best[1]
        elif len(heavy) == 1 and not direct:
            value = heavy[0][1]
        else:
            return value
    return value


def find_tensors(root: Value, where: str, most: int = MAX_TENSORS) -> Tensors:
    """The tensors of the dictionary in ``root`` that holds the weights; nested names are joined by dots.

    Raises FormatError on a tensor that lies about itself, LimitError on more than ``most`` of them.
    """
    found = Tensors()
    views = _Views(where)
    chosen = _chosen(root, _Weigher(views))
    steps = 0
    pending: list[tuple[str, Value, int]] = [("", chosen, 0)]
    while pending:
        prefix, value, depth = pending.pop()
        if is_tensor(value):
            _add(found, prefix, value, views)
            if len(found.views) + len(found.refused) > most:
                raise LimitError(
                    "tensors in a file of this size", limit=most, actual=f"more than {most}", where=where
                )
        elif depth <= _DEPTH and isinstance(value, Pairs | Call | list | tuple):
            parts = list(islice(children(value), _MAX_STEPS + 1))
            steps += len(parts)
            if steps > _MAX_STEPS:
                actual = f"more than {_MAX_STEPS}"
                raise LimitError("values in a checkpoint", limit=_MAX_STEPS, actual=actual, where=where)
            pending.extend(
                (f"{prefix}.{key}" if prefix else key, part, depth + 1)
                for key, part in reversed(parts)
                if isinstance(part, Pairs | Call | list | tuple) and (key not in _ASIDE or is_tensor(part))
            )
    return found


def _add(found: Tensors, name: str, value: Value, views: _Views) -> None:
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME:
        raise LimitError("length of a tensor name", limit=MAX_NAME, actual=len(name), where=views.where)
    if name in found.views or name in found.refused:
        raise FormatError(f"two tensors are named {name[:80]!r}", where=views.where)
    try:
        view = views(value)
    except FormatError as error:
        error.where = f"{views.where}: {name[:80]}"
        raise
    if isinstance(view, str):
        found.refused[name] = view
    else:
        found.views[name] = view
