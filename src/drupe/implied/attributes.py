"""Attributes of objects, classes and libraries, and what can be iterated."""

from __future__ import annotations

from drupe.implied import tensors
from drupe.implied.modules import Modules
from drupe.implied.python_text import text_method
from drupe.implied.python_types import PythonTypes
from drupe.implied.tensors import method_shape
from drupe.implied.values import (
    MISSING,
    Bound,
    Buffer,
    ClassValue,
    Either,
    External,
    Function,
    Instance,
    Native,
    Parameter,
    Partial,
    Place,
    Super,
    Tensor,
    Unknown,
    describe,
    either,
)


class Attributes(PythonTypes, Modules):
    """Reads and writes attributes."""

    def get_attribute(self, owner: object, name: str, place: Place) -> object:
        """``owner.name``, or MISSING when there surely is none."""
        if isinstance(owner, Instance):
            return self._of_instance(owner, name, place)
        if isinstance(owner, External):
            return self._of_library(owner, name)
        if isinstance(owner, ClassValue):
            return self._of_class(owner, name, place)
        if isinstance(owner, Super):
            return self._of_super(owner, name, place)
        if isinstance(owner, Either):
            found = [self.get_attribute(one, name, place) for one in owner.options if one is not None]
            kept = [one for one in found if one is not MISSING]
            return either(*kept) if kept else MISSING
        if isinstance(owner, Tensor):
            return self._of_tensor(owner, name)
        if isinstance(owner, Unknown):
            return Unknown(owner.reason, place, owner.may_be_module)
        return self._of_python(owner, name, place)

    def _of_python(self, owner: object, name: str, place: Place) -> object:
        if isinstance(owner, str):
            return text_method(owner, name) if hasattr(str, name) else MISSING
        if isinstance(owner, list):
            return self.list_method(owner, name) if hasattr(list, name) else MISSING
        if isinstance(owner, dict):
            if hasattr(dict, name):
                return self.dict_method(owner, name)
            return owner.get(name, MISSING)
        if isinstance(owner, set):
            return self.set_method(owner, name) if hasattr(set, name) else MISSING
        if isinstance(owner, Partial) and name in {"func", "keywords"}:
            return owner.function if name == "func" else dict(owner.keywords)
        if isinstance(owner, Function) and name == "__name__":
            return owner.name
        if isinstance(owner, int | float | tuple | range | type(None)):
            return MISSING if name in {"keys", "items", "append", "copy"} else Unknown(f".{name}", place)
        return Unknown(f"the attribute {name} of {describe(owner)}", place)

    def _of_tensor(self, owner: Tensor, name: str) -> object:
        if name in {"data", "T", "mT"}:
            shape = owner.shape[::-1] if name == "T" and owner.shape is not None else owner.shape
            return Tensor(shape, owner.place)
        if name == "shape":
            return Unknown("a shape", owner.place) if owner.shape is None else owner.shape
        if name in {"device", "dtype", "requires_grad", "is_meta", "ndim"}:
            return Unknown(f"the {name} of a tensor", owner.place)

        def run(arguments: list[object], keywords: dict[str, object], place: Place) -> object:
            if name == "size":
                return self._size(owner, arguments, place)
            if name in {"item", "tolist", "numel", "dim"}:
                return Unknown("a value of a tensor", place)
            if name in {"chunk", "split", "unbind"}:
                parts = arguments[0] if arguments else None
                if name == "split" and isinstance(parts, list | tuple):
                    self.budget.charge(len(parts))
                    return [Tensor((tensors.extent(one),), place) for one in parts]
                return Unknown("parts of a tensor", place)
            return Tensor(method_shape(owner, name, arguments, keywords), place)

        return Native(name, run)

    def _size(self, owner: Tensor, arguments: list[object], place: Place) -> object:
        unknown = Unknown("a shape", place)
        if owner.shape is None:
            return unknown
        if not arguments:
            return owner.shape
        at = arguments[0]
        if not isinstance(at, int) or not -len(owner.shape) <= at < len(owner.shape):
            return unknown
        return unknown if owner.shape[at] is None else owner.shape[at]

    def _of_library(self, owner: External, name: str) -> object:
        if owner.name.startswith("file:"):
            return self.find_global(owner.name[5:], name)
        if name == "__name__":
            return owner.last
        return self.library(f"{owner.name}.{name}")

    def _of_class(self, owner: ClassValue, name: str, place: Place) -> object:
        if name in {"__name__", "__qualname__"}:
            return owner.name
        found = owner.find(name)
        if found is not None:
            value = found[0]
            is_method = isinstance(value, Function) and value.kind == "classmethod"
            return Bound(value, owner) if is_method else value
        if name in {"_from_config", "from_config"}:
            return Native(name, lambda a, k, p: self.call(owner, a, k, p))
        if name == "__mro__":
            return tuple(owner.mro)
        for external in owner.externals():
            if name == "__init__":
                return Native(name, lambda a, k, p, e=external: self._unbound_init(e, a, k, p))  # type: ignore[misc]
            if external.last in {"Enum", "StrEnum", "IntEnum"}:
                break
        return MISSING

    def _unbound_init(
        self, external: External, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        if arguments and isinstance(arguments[0], Instance):
            method = self.native_method(arguments[0], external, "__init__")
            if method is not MISSING:
                return self.call(method, arguments[1:], keywords, place)
        return None

    def _of_super(self, owner: Super, name: str, place: Place) -> object:
        receiver = owner.receiver
        if isinstance(receiver, Instance):
            found = self._along(receiver, name, place, owner.after)
            if found is MISSING and name in {"__init__", "__post_init__", "__init_subclass__", "__setattr__"}:
                return Native(name, lambda a, k, p: None)
            return found
        if isinstance(receiver, ClassValue):
            pair = receiver.find(name, owner.after)
            if pair is not None:
                return Bound(pair[0], receiver) if isinstance(pair[0], Function) else pair[0]
        return Unknown(f"super().{name}", place)

    def _of_instance(self, owner: Instance, name: str, place: Place) -> object:
        key = self.mapped_name(owner, name)
        if key in owner.attrs:
            value = owner.attrs[key]
            if owner.is_config and key == "per_layer_config":
                return self.layer_configs(owner, value)
            return value
        if name == "__class__":
            return owner.cls
        found = self._along(owner, key, place, None)
        if found is MISSING and owner.is_config:
            return self.config_default(owner, key, place)
        if found is MISSING and owner.open:
            return Unknown(owner.open[0].reason, place, True)
        if found is MISSING and isinstance(owner.cls, ClassValue) and owner.cls.find("__getattr__"):
            return Unknown(f"{owner.cls.name} computes its attributes", place, True)
        return found

    def _along(self, owner: Instance, name: str, place: Place, after: ClassValue | None) -> object:
        """An attribute of the classes, in order, those after one class only."""
        started = after is None
        for one in owner.mro:
            if started:
                if isinstance(one, External):
                    value = self.native_method(owner, one, name)
                    if value is not MISSING:
                        return value
                elif name in one.names:
                    return self._bound(one.names[name], owner, place)
            started = started or one is after
        return MISSING

    def _bound(self, value: object, owner: Instance, place: Place) -> object:
        if not isinstance(value, Function):
            return value
        if value.kind == "property":
            return self.call(value, [owner], {}, place)
        if value.kind == "staticmethod":
            return value
        return Bound(value, owner.cls if value.kind == "classmethod" else owner)

    def mapped_name(self, owner: Instance, name: str) -> str:
        """The attribute that a configuration keeps under another name."""
        if owner.is_config and isinstance(owner.cls, ClassValue) and name != "attribute_map":
            pair = owner.cls.find("attribute_map")
            mapped = pair[0].get(name, name) if pair is not None and isinstance(pair[0], dict) else name
            return mapped if isinstance(mapped, str) else name
        return name

    def set_attribute(self, owner: object, name: str, value: object, place: Place) -> None:
        """``owner.name = value``; tensors keep their role, an unknown module makes the names open."""
        if isinstance(owner, Either):
            for option in owner.options:
                if isinstance(option, Instance):
                    _, changes = self.journal.run(lambda o=option: self.set_attribute(o, name, value, place))  # type: ignore[misc]
                    self.journal.join(changes, {})
            return
        if isinstance(owner, External | Function | Bound) and not owner_is_harmless(owner, name):
            self.doubt(f"{describe(owner)}.{name} is changed", place)
        if isinstance(owner, ClassValue):
            if name.startswith("__"):
                self.doubt(f"{owner.name}.{name} is changed", place)
            self.touch(owner.names)  # type: ignore[arg-type]
            owner.names[name] = value
        if not isinstance(owner, Instance):
            return
        key = self.mapped_name(owner, name)
        setter = owner.cls.find(key) if owner.is_config and isinstance(owner.cls, ClassValue) else None
        if setter is not None and isinstance(setter[0], Function) and setter[0].kind == "property":
            return
        if owner.is_module and self._is_set_otherwise(owner, key, value, place):
            return
        self.touch(owner)
        old = owner.attrs.get(key)
        if owner.is_module and isinstance(value, Tensor) and not isinstance(value, Parameter | Buffer):
            if isinstance(old, Buffer):
                value = Buffer(value.shape, old.place, old.persistent)
            elif isinstance(old, Parameter):
                value = old
            elif old is None and key in owner.left_empty:
                value = Buffer(value.shape, place, owner.left_empty[key])
        if value is None and isinstance(old, Buffer):
            owner.left_empty[key] = old.persistent
        owner.attrs[key] = value

    def _is_set_otherwise(self, owner: Instance, name: str, value: object, place: Place) -> bool:
        """Assigning calls a property's setter; modules and parameters are registered before Python looks for one."""
        if name == "__class__":
            self.doubt("the class of an object is changed", place)
        pair = owner.cls.find(name) if isinstance(owner.cls, ClassValue) else None
        getter = pair[0] if pair is not None else None
        if not isinstance(getter, Function) or getter.kind != "property":
            return False
        if isinstance(value, Unknown | Either):
            self.doubt(f"what is assigned to the property {name} is not known", place)
        if isinstance(value, Parameter) or (isinstance(value, Instance) and value.is_module):
            return False
        if getter.setter is None:
            self.fail("AttributeError", f"the property {name} cannot be assigned", place)
        else:
            self.call(Bound(getter.setter, owner), [value], {}, place)
        return True

    def items(self, value: object, place: Place) -> list[object] | Unknown:
        """The items of an iterable."""
        if isinstance(value, list | tuple | set | range | dict | frozenset):
            self.budget.charge(len(value))
            return list(value)
        if isinstance(value, str):
            return list(value)
        if isinstance(value, Instance) and value.is_module:
            if value.open:
                return value.open[0]
            names = [one.last for one in value.mro if isinstance(one, External)]
            if {"ModuleDict", "ParameterDict"} & set(names):
                return list(value.attrs)
            if {"ModuleList", "Sequential", "ParameterList"} & set(names):
                self.budget.charge(len(value.attrs))
                return self.numbered(value)
        if isinstance(value, Either):
            return self._items_of_each(value, place)
        if isinstance(value, Unknown):
            return Unknown(value.reason, value.place, value.may_be_module, True)
        if isinstance(value, Tensor) and value.shape and value.shape[0] is not None:
            self.budget.charge(value.shape[0])
            return [Tensor(value.shape[1:], value.place)] * value.shape[0]
        return Unknown(f"the items of {describe(value)}", place)

    def _items_of_each(self, value: Either, place: Place) -> list[object] | Unknown:
        listed = [self.items(option, place) for option in value.options if option is not None]
        found = [one for one in listed if isinstance(one, list)]
        if not found or len(found) != len(listed) or len({len(one) for one in found}) != 1:
            return Unknown("one of several lists", place, True, True)
        return [either(*row) for row in zip(*found, strict=True)]


def owner_is_harmless(owner: object, name: str) -> bool:
    """An attribute of a library or a function that changes nothing about modules."""
    if isinstance(owner, External):
        return owner.name.startswith(("torch.backends", "torch._dynamo", "torch._inductor", "builtins."))
    return not name.startswith("__")
