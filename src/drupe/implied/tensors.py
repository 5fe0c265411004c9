"""Shapes of tensors that modelling code makes before it registers them; no values.

Follows https://docs.pytorch.org/docs/stable/torch.html for creation, elementwise and reshaping operations.
What is not listed gives a tensor of unknown shape, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from drupe.implied.limits import names
from drupe.implied.values import Dims, Either, Parameter, Place, Tensor, Unknown

_CREATE = {"empty", "zeros", "ones", "rand", "randn", "full"}
_LIKE = {
    "empty_like",
    "zeros_like",
    "ones_like",
    "rand_like",
    "randn_like",
    "full_like",
    "clone",
    "as_tensor",
}
_RANGES = {"linspace", "logspace"}
_SQUARES = {"eye"}
_WINDOWS = {"hann_window", "hamming_window", "blackman_window", "kaiser_window"}
ELEMENTWISE = names(
    "abs add bool clamp clip clone contiguous copy_ cos cpu cuda detach div div_ double exp expm1 fill_ "
    "float floor half int log log1p long mul mul_ neg normal_ pow reciprocal requires_grad_ round rsqrt "
    "sigmoid sin sqrt softplus sub tanh to tril tril_ triu triu_ type uniform_ zero_ sign bfloat16 "
    "type_as masked_fill cumsum trunc_normal_ log_ exp_ uniform square float_power flip add_ sub_ "
    "erfinv_ clamp_ fill"
)
MAX_AXES = 12


def function(name: str, arguments: Sequence[object], keywords: dict[str, object], place: Place) -> Tensor:
    """The result of ``torch.NAME(...)``."""
    return Tensor(_shape_of_call(name, arguments, keywords), place)


def _shape_of_call(name: str, arguments: Sequence[object], keywords: dict[str, object]) -> Dims | None:
    first = arguments[0] if arguments else keywords.get("size", keywords.get("data"))
    if name in _CREATE:
        return _size(arguments[:1] if name == "full" else arguments, keywords)
    if name in _LIKE and isinstance(first, Tensor):
        return first.shape
    if name in {"tensor", "as_tensor", "from_numpy"}:
        return _literal(first)
    if name in {"Tensor", "FloatTensor", "HalfTensor", "LongTensor", "IntTensor", "BoolTensor"}:
        sizes = all(isinstance(one, int | Unknown | Either) for one in arguments)
        return tuple(map(extent, arguments)) if sizes and len(arguments) <= MAX_AXES else _literal(first)
    if name == "arange":
        return (_arange(arguments, keywords),)
    if name in _RANGES:
        steps = arguments[2] if len(arguments) > 2 else keywords.get("steps", 100)
        return (extent(steps),)
    if name in _SQUARES:
        columns = arguments[1] if len(arguments) > 1 else first
        return (extent(first), extent(columns))
    if name in _WINDOWS:
        return (extent(first if arguments else keywords.get("window_length")),)
    if name in {"cat", "concat"} and isinstance(first, list | tuple):
        axis = arguments[1] if len(arguments) > 1 else keywords.get("dim", 0)
        return _joined(first, axis)
    if name == "normal" and ("size" in keywords or len(arguments) > 2):
        return _size(arguments[2:3], keywords)
    if name == "outer" and len(arguments) > 1:
        return tuple(extent(_length(one)) for one in arguments[:2])
    if isinstance(first, Tensor):
        return method_shape(first, name, arguments[1:], keywords)
    return None


def extent(value: object) -> int | None:
    """A dimension, when it is known."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _size(arguments: Sequence[object], keywords: dict[str, object]) -> Dims | None:
    values = list(arguments) or [keywords.get("size")]
    if len(values) == 1 and isinstance(values[0], list | tuple):
        values = list(values[0])
    return tuple(map(extent, values)) if len(values) <= MAX_AXES else None


def _literal(value: object) -> Dims | None:
    if isinstance(value, Tensor):
        return value.shape
    shape: list[int] = []
    while isinstance(value, list | tuple) and len(shape) < MAX_AXES:
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape) if isinstance(value, int | float | type(None)) else None


def _arange(arguments: Sequence[object], keywords: dict[str, object]) -> int | None:
    bounds = [*arguments[:3]]
    start: object = 0 if len(bounds) < 2 else bounds[0]
    end = bounds[0] if len(bounds) == 1 else bounds[1] if len(bounds) > 1 else keywords.get("end")
    start = keywords.get("start", start)
    step = bounds[2] if len(bounds) > 2 else keywords.get("step", 1)
    numbers = [start, end, step]
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in numbers) or not step:
        return None
    low, high, by = (float(one) for one in numbers if isinstance(one, int | float))
    count = (high - low) / by
    return max(math.ceil(count), 0) if count < 1 << 40 else None


def _length(value: object) -> object:
    return value.shape[0] if isinstance(value, Tensor) and value.shape else None


def _joined(parts: Sequence[object], axis: object) -> Dims | None:
    shapes = [one.shape for one in parts if isinstance(one, Tensor)]
    first = shapes[0] if shapes else None
    if first is None or len(shapes) != len(parts) or not isinstance(axis, int):
        return None
    if any(shape is None or len(shape) != len(first) for shape in shapes) or not -len(first) <= axis < len(
        first
    ):
        return None
    extents = [shape[axis] for shape in shapes if shape]
    total = None if None in extents else sum(one for one in extents if one is not None)
    return tuple(total if i == axis % len(first) else one for i, one in enumerate(first))


def method_shape(
    tensor: Tensor, name: str, arguments: Sequence[object], keywords: dict[str, object]
) -> Dims | None:
    """The shape of ``tensor.NAME(...)``."""
    shape = tensor.shape
    if name in ELEMENTWISE or shape is None:
        return shape if name in ELEMENTWISE else None
    values = list(arguments[0]) if arguments and isinstance(arguments[0], list | tuple) else list(arguments)
    if name in {"view", "reshape"}:
        return _viewed(shape, values)
    if name in {"expand", "repeat", "broadcast_to"} and len(shape) <= len(values) <= MAX_AXES:
        padded = (1,) * (len(values) - len(shape)) + shape
        if name == "repeat":
            pairs = [(extent(times), old) for times, old in zip(values, padded, strict=True)]
            return tuple(None if t is None or old is None else t * old for t, old in pairs)
        return tuple(old if new == -1 else extent(new) for new, old in zip(values, padded, strict=True))
    if name in {"unsqueeze", "squeeze", "flatten", "transpose", "t", "permute"}:
        return _rearranged(shape, name, values or list(keywords.values()))
    return None


def _viewed(shape: Dims, values: Sequence[object]) -> Dims | None:
    if len(values) > MAX_AXES:
        return None
    sizes = [-1 if one == -1 else extent(one) for one in values]
    if sizes.count(-1) == 1 and None not in sizes and None not in shape:
        known = math.prod(one for one in sizes if one is not None and one != -1)
        total = math.prod(one for one in shape if one is not None)
        rest = total // known if known else None
        return tuple(rest if one == -1 else one for one in sizes)
    return tuple(None if one == -1 else one for one in sizes)


def _rearranged(shape: Dims, name: str, values: Sequence[object]) -> Dims | None:
    axes = [one for one in values if isinstance(one, int)]
    if name == "t" and len(shape) == 2:
        return shape[::-1]
    if name == "unsqueeze" and axes and len(shape) < MAX_AXES:
        at = axes[0] % (len(shape) + 1)
        return (*shape[:at], 1, *shape[at:])
    if name == "squeeze" and not values and None not in shape:
        return tuple(one for one in shape if one != 1)
    if name == "flatten" and not values:
        return (None if None in shape else math.prod(one for one in shape if one is not None),)
    if any(not -len(shape) <= axis < len(shape) for axis in axes):
        return None
    if name == "transpose" and len(axes) == 2:
        swapped = list(shape)
        swapped[axes[0]], swapped[axes[1]] = shape[axes[1]], shape[axes[0]]
        return tuple(swapped)
    if name == "permute" and len(axes) == len(shape):
        return tuple(shape[axis] for axis in axes)
    return None


def indexed(tensor: Tensor, index: object) -> Tensor:
    """``tensor[index]`` for None, ``...``, whole slices and numbers."""
    items = index if isinstance(index, tuple) else (index,)
    if tensor.shape is None or len(items) > MAX_AXES:
        return Tensor(None, tensor.place)
    rest = list(tensor.shape)
    after = len(rest) - sum(one is not None and one is not Ellipsis for one in items)
    result: list[int | None] = []
    for one in items:
        if one is None:
            result.append(1)
        elif one is Ellipsis:
            result += rest[: max(after, 0)]
            del rest[: max(after, 0)]
        elif not rest:
            return Tensor(None, tensor.place)
        elif isinstance(one, slice):
            result.append(_sliced(rest.pop(0), one))
        elif isinstance(one, int):
            rest.pop(0)
        else:
            return Tensor(None, tensor.place)
    return Tensor(tuple(result + rest), tensor.place)


def _sliced(length: int | None, part: slice) -> int | None:
    if part == slice(None):
        return length
    bounds = (part.start, part.stop, part.step)
    if (
        length is None
        or any(one is not None and not isinstance(one, int) for one in bounds)
        or part.step == 0
    ):
        return None
    return len(range(*part.indices(length)))


def broadcast(a: object, b: object, place: Place) -> Tensor:
    """The result of arithmetic with at least one tensor."""
    shapes = [one.shape if isinstance(one, Tensor) else () for one in (a, b)]
    left, right = shapes
    if left is None or right is None:
        return Tensor(None, place)
    size = max(len(left), len(right))
    padded = [(1,) * (size - len(one)) + one for one in (left, right)]
    return Tensor(tuple(y if x == 1 else x for x, y in zip(*padded, strict=True)), place)


def as_parameter(value: object, place: Place) -> Parameter:
    """``nn.Parameter(value)``."""
    return Parameter(value.shape if isinstance(value, Tensor) else None, place)
