"""``torch.nn.utils``: weight and spectral normalisation replace one parameter by several.

Names and shapes: https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.parametrizations.weight_norm.html
and the older ``torch.nn.utils.weight_norm``.
"""

from __future__ import annotations

from drupe.implied.core import Core
from drupe.implied.values import Buffer, Dims, External, Instance, Parameter, Place


def reparametrise(
    machine: Core,
    function: str,
    path: str,
    arguments: list[object],
    keywords: dict[str, object],
    place: Place,
) -> object:
    """``torch.nn.utils...FUNCTION(module, name="weight", dim=0)``; returns the module."""
    module = arguments[0] if arguments else keywords.get("module")
    name = arguments[1] if len(arguments) > 1 else keywords.get("name", "weight")
    dim = arguments[2] if len(arguments) > 2 else keywords.get("dim", 0)
    if function not in {"weight_norm", "spectral_norm", "orthogonal"} or not isinstance(module, Instance):
        return module
    old = module.attrs.get(name) if isinstance(name, str) else None
    if not isinstance(old, Parameter) or not isinstance(name, str):
        module.open.append(machine.note(f"{function} of a parameter that is not known", place))
        return module
    machine.touch(module)
    del module.attrs[name]
    gain = _gain(old.shape, dim) if function == "weight_norm" else None
    if "parametrizations" in path:
        module.attrs.update(_parametrised(module, name, old, gain, function))
    elif function == "weight_norm":
        module.attrs[f"{name}_g"] = Parameter(gain, old.place)
        module.attrs[f"{name}_v"] = Parameter(old.shape, old.place)
    else:
        rows, columns = _flat(old.shape)
        module.attrs[f"{name}_orig"] = Parameter(old.shape, old.place)
        module.attrs[f"{name}_u"] = Buffer((rows,), old.place)
        module.attrs[f"{name}_v"] = Buffer((columns,), old.place)
    return module


def _parametrised(
    module: Instance, name: str, old: Parameter, gain: Dims | None, function: str
) -> dict[str, object]:
    prefix = f"parametrizations.{name}"
    if function == "weight_norm":
        return {
            f"{prefix}.original0": Parameter(gain, old.place),
            f"{prefix}.original1": Parameter(old.shape, old.place),
            "parametrizations": _list_of(module, name),
        }
    rows, columns = _flat(old.shape)
    found: dict[str, object] = {f"{prefix}.original": Parameter(old.shape, old.place)}
    if function == "spectral_norm":
        found[f"{prefix}.0._u"] = Buffer((rows,), old.place)
        found[f"{prefix}.0._v"] = Buffer((columns,), old.place)
    return found


def _list_of(module: Instance, name: str) -> Instance:
    """What code finds under ``module.parametrizations``; its tensors are listed with the module itself."""
    listed = Instance(External("torch.nn.ModuleDict"), module.place)
    inner = Instance(External("torch.nn.ModuleList"), module.place)
    inner.attrs = {"original0": None, "original1": None}
    listed.attrs = {name: inner}
    return listed


def _gain(shape: Dims | None, dim: object) -> Dims | None:
    if shape is None or (dim is not None and not isinstance(dim, int)):
        return None
    if dim is None or dim == -1:
        return ()
    return tuple(extent if axis == dim % len(shape) else 1 for axis, extent in enumerate(shape))


def _flat(shape: Dims | None) -> tuple[int | None, int | None]:
    if not shape:
        return None, None
    rest = 1
    for extent in shape[1:]:
        if extent is None:
            return shape[0], None
        rest *= extent
    return shape[0], rest
