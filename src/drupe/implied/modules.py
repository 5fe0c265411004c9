"""Modules: what the constructors and methods of ``torch.nn`` do to an object."""

from __future__ import annotations

from drupe.implied.core import Core
from drupe.implied.library import CONFIG_BASES, HARMLESS_BASES, MODEL_BASES, MODULE_BASES
from drupe.implied.limits import names
from drupe.implied.tensors import as_parameter
from drupe.implied.torch_modules import CONTAINERS, KINDS, PLAIN
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
    Tensor,
    Unknown,
    describe,
    either,
    truth,
)

_SELF = names(
    "to half float bfloat16 double cuda cpu eval train requires_grad_ share_memory type to_empty "
    "compile gradient_checkpointing_enable"
)
_NOTHING = names(
    "post_init tie_weights init_weights _init_weights _initialize_weights initialize_weights zero_grad "
    "register_forward_hook register_forward_pre_hook register_load_state_dict_post_hook "
    "register_full_backward_hook "
    "_backward_compatibility_gradient_checkpointing _tie_or_clone_weights _tie_weights "
    "resize_token_embeddings set_input_embeddings set_output_embeddings load_state_dict "
    "warn_if_padding_and_no_attention_mask enable_input_require_grads add_model_tags reset_parameters "
    "_reset_parameters"
)


def is_torch_module(external: External) -> bool:
    """A class of ``torch.nn`` or one of transformers' own modules."""
    if external.last in MODULE_BASES:
        return True
    return is_known_kind(external) or (external.name.startswith("torch.nn.") and external.last in PLAIN)


def is_known_kind(external: External) -> bool:
    """Its parameters stand in the table."""
    if external.last == "Conv1D":
        return external.name.startswith("transformers")
    listed = external.last in KINDS or external.last in CONTAINERS
    return listed and external.name.startswith(("torch.nn.", "torch.nn.modules."))


def is_harmless(external: External) -> bool:
    """A base class that registers nothing."""
    if external.last in HARMLESS_BASES | CONFIG_BASES or external.last.endswith(("Error", "Exception")):
        return True
    return external.name.startswith("transformers") and external.last.endswith(("Mixin", "Output", "Kwargs"))


class Modules(Core):
    """Constructors and methods of library modules."""

    def library_init(
        self,
        instance: Instance,
        cls: External,
        arguments: list[object],
        keywords: dict[str, object],
        place: Place,
    ) -> None:
        """``cls.__init__(instance, ...)``."""
        if cls.last in MODEL_BASES:
            config = arguments[0] if arguments else keywords.get("config")
            self.touch(instance)
            instance.attrs.setdefault("config", config)
        elif is_known_kind(cls) and cls.last in CONTAINERS:
            self._fill(instance, cls.last, arguments, keywords, place)
        elif is_known_kind(cls):
            self._leaves(instance, cls, arguments, keywords, place)
        elif not is_torch_module(cls) and not is_harmless(cls):
            self.touch(instance)
            instance.open.append(self.note(f"what {describe(cls)} registers is not known", place))

    def _leaves(
        self,
        instance: Instance,
        cls: External,
        arguments: list[object],
        keywords: dict[str, object],
        place: Place,
    ) -> None:
        kind = KINDS[cls.last]
        missing = Unknown(f"an argument of {cls.last} is not given", place)
        given = {name: kind.defaults.get(name, missing) for name in kind.arguments}
        given.update(zip(kind.arguments, arguments, strict=False))
        given.update({name: value for name, value in keywords.items() if name in given})
        self.touch(instance)
        instance.attrs.update(given)
        instance.attrs.pop("bias", None)
        if "Conv" in cls.last and cls.last[-2:-1].isdigit():
            _as_tuples(instance.attrs, int(cls.last[-2]))
        for leaf in kind.tensors(given):
            tensor: object = (
                Buffer(leaf.shape, instance.place) if leaf.buffer else Parameter(leaf.shape, instance.place)
            )
            instance.attrs[leaf.name] = tensor if leaf.certain else either(tensor, None)

    def _fill(
        self,
        instance: Instance,
        kind: str,
        arguments: list[object],
        keywords: dict[str, object],
        place: Place,
    ) -> None:
        if kind == "Sequential" and not (len(arguments) == 1 and isinstance(arguments[0], dict)):
            items: list[object] | Unknown = list(arguments)
        elif not arguments:
            given = keywords.get("modules", keywords.get("parameters", keywords.get("values", [])))
            items = self._container_items(instance, given, place)
        else:
            items = self._container_items(instance, arguments[0], place)
        self.extend(instance, items, place)

    def _container_items(self, instance: Instance, value: object, place: Place) -> list[object] | Unknown:
        if isinstance(value, Either):
            value = either(*(one for one in value.options if one is not None))
        if isinstance(value, dict):
            for name, item in value.items():
                if isinstance(name, str):
                    self.set_attribute(instance, name, item, place)
                else:
                    self.touch(instance)
                    instance.open.append(self.note("a module under a name that is not known", place))
            return []
        items = [] if value is None else self.items(value, place)
        if isinstance(items, list) and any(
            one.last in _DICTS for one in instance.mro if isinstance(one, External)
        ):
            return self._container_items(instance, self.pairs_of(items, place), place)
        return items

    def extend(self, instance: Instance, items: list[object] | Unknown, place: Place) -> None:
        """Add modules under the next numbers."""
        self.touch(instance)
        if isinstance(items, Unknown):
            instance.open.append(self.note(items.reason, place))
            return
        is_parameters = any(isinstance(one, External) and one.last == "ParameterList" for one in instance.mro)
        at = len(instance.attrs)
        if isinstance(instance.cls, ClassValue):  # a class of its own may have other attributes
            at = sum(name.isdigit() for name in instance.attrs)
            self.budget.charge(len(instance.attrs))
        self.budget.charge(len(items))
        shifted = False
        if instance.open:
            return  # under which numbers these come is not known; the names are open already
        for item in items:
            if not shifted and isinstance(item, Either) and MISSING in item.options:
                shifted = True  # from here on the numbers depend on a condition
                instance.open.append(self.note("a list whose length depends on a condition", place))
            if is_parameters and isinstance(item, Tensor):
                item = as_parameter(item, item.place)
            if isinstance(item, Unknown) and item.tail:
                instance.open.append(self.note(item.reason, item.place if item.place.file else place))
                return
            instance.attrs[str(at)] = either(item, MISSING) if shifted else item
            at += 1

    def numbered(self, instance: Instance) -> list[object]:
        """The modules of a list, in order."""
        found = [(int(name), value) for name, value in instance.attrs.items() if name.isdigit()]
        if len(found) == 0 and any(isinstance(o, External) and o.last == "Sequential" for o in instance.mro):
            return [one for one in instance.attrs.values() if isinstance(one, Instance)]
        return [value for _, value in sorted(found, key=lambda pair: pair[0])]

    def native_method(self, instance: Instance, cls: External, name: str) -> object:
        """A method that a library class gives to its objects, or MISSING."""
        if name == "__init__":
            known = is_harmless(cls) and cls.last not in CONFIG_BASES
            if known or cls.last == "object":
                return MISSING

            def init(arguments: list[object], keywords: dict[str, object], place: Place) -> object:
                self.library_init(instance, cls, arguments, keywords, place)
                return None

            return Native("__init__", init)
        if not is_torch_module(cls) and not cls.name.startswith("torch.nn"):
            return MISSING
        if name == "apply":
            return Native(name, lambda a, k, p: self._apply(instance, a, p))
        if name in _HOOKS:
            return Native(name, lambda a, k, p: self.doubt(f"{name} may change names of tensors", p))
        if cls.last in CONTAINERS and name in _CONTAINER_METHODS:
            return Native(name, lambda a, k, p: self._container_method(instance, name, a, p))
        if name in _SELF:
            return Native(name, lambda a, k, p: instance)
        if name in _NOTHING:
            return Native(name, lambda a, k, p: None)
        if name == "__setattr__":
            return Native(name, lambda a, k, p: self.python_function("setattr", [instance, *a], k, p))
        if name in _REGISTER:
            return Native(name, lambda a, k, p: self._register(instance, name, a, k, p))
        if name in _LISTING:
            return Native(name, lambda a, k, p: self._listing(instance, name, p))
        if name in {"training", "supports_gradient_checkpointing"}:
            return True
        if name in {"_modules", "_parameters", "_buffers"}:
            return instance.attrs
        if name == "__dict__":
            self.doubt("the __dict__ of a module is used", instance.place)
            return dict(instance.attrs)
        return MISSING

    def _apply(self, instance: Instance, arguments: list[object], place: Place) -> Instance:
        """``apply``: most functions set values only; one that may register is not followed."""
        function = arguments[0] if arguments else None
        while isinstance(function, Bound | Partial):
            function = function.function
        if isinstance(function, Function):
            if self.may_register(function.node):
                self.doubt(f"{function.name} may change what modules register", place)
        elif not isinstance(function, External | Native):
            self.doubt("what is applied to the modules is not known", place)
        return instance

    def _container_method(
        self, instance: Instance, name: str, arguments: list[object], place: Place
    ) -> object:
        first = arguments[0] if arguments else None
        if name == "append":
            self.extend(instance, [first], place)
            return instance
        if name in {"extend", "update"}:
            self.extend(instance, self._container_items(instance, first, place), place)
            return instance
        if name in {"insert", "pop"}:
            return self._moved(instance, name, arguments, place)
        pairs = {key: value for key, value in instance.attrs.items() if value is not None}
        views: dict[str, object] = {"keys": list(pairs), "values": list(pairs.values())}
        return views.get(name, list(pairs.items()))

    def _moved(self, instance: Instance, name: str, arguments: list[object], place: Place) -> object:
        self.touch(instance)
        at = arguments[0] if arguments else -1
        if isinstance(at, str):
            return instance.attrs.pop(at, Unknown("there is no such module", place, True))
        items = self.numbered(instance)
        if not isinstance(at, int):
            instance.open.append(self.note("a module at a place that is not known", place))
            return None
        moved: object = None
        if name == "insert":
            items.insert(at, arguments[1] if len(arguments) > 1 else None)
        elif -len(items) <= at < len(items):
            moved = items.pop(at)
        for key in [key for key in instance.attrs if key.isdigit()]:
            del instance.attrs[key]
        self.extend(instance, items, place)
        return moved

    def _register(
        self,
        instance: Instance,
        name: str,
        arguments: list[object],
        keywords: dict[str, object],
        place: Place,
    ) -> object:
        key = arguments[0] if arguments else keywords.get("name")
        value = arguments[1] if len(arguments) > 1 else _first(keywords, "tensor", "param", "module")
        if not isinstance(key, str):
            self.touch(instance)
            instance.open.append(self.note(f"{name} with a name that is not known", place))
            return None
        if name == "register_buffer":
            persistent = truth(arguments[2] if len(arguments) > 2 else keywords.get("persistent", True))
            if value is None and self.journal.level[1]:
                self.doubt(f"whether the buffer {key} is registered is not known", place)
            if value is None and persistent is not None:
                instance.left_empty[key] = persistent
            value = self._buffer(value, persistent, place)
        elif name == "register_parameter" and isinstance(value, Tensor) and not isinstance(value, Parameter):
            value = as_parameter(value, place)
        self.touch(instance)
        instance.attrs[key] = value
        return None

    def _buffer(self, value: object, persistent: bool | None, place: Place) -> object:
        if isinstance(value, Either):
            return either(*(self._buffer(one, persistent, place) for one in value.options))
        if value is None:
            return None
        shape = value.shape if isinstance(value, Tensor) else None
        kept = Buffer(shape, place, True)
        return (
            either(kept, Buffer(shape, place, False))
            if persistent is None
            else Buffer(shape, place, persistent)
        )

    def _listing(self, instance: Instance, name: str, place: Place) -> object:
        children = [
            (key, one) for key, one in instance.attrs.items() if isinstance(one, Instance) and one.is_module
        ]
        if name == "named_children":
            return list(children)
        if name == "children":
            return [one for _, one in children]
        if name in {"modules", "named_modules"}:
            return self._descend(instance, "", name == "named_modules", 0)
        if name == "get_submodule":
            return Native(name, lambda a, k, p: self._submodule(instance, a, p))
        return Unknown(f"the list of {name}", place)

    def _descend(self, instance: Instance, prefix: str, named: bool, depth: int) -> list[object]:
        self.budget.charge()
        found: list[object] = [(prefix, instance) if named else instance]
        for key, one in list(instance.attrs.items()):
            if isinstance(one, Instance) and one.is_module and depth < 24:
                found += self._descend(one, f"{prefix}.{key}".lstrip("."), named, depth + 1)
        return found

    def _submodule(self, instance: Instance, arguments: list[object], place: Place) -> object:
        path = arguments[0] if arguments else ""
        inner: object = instance
        for part in path.split(".")[:32] if isinstance(path, str) else []:
            inner = inner.attrs.get(part) if isinstance(inner, Instance) else None
        return inner if inner is not None else Unknown(f"there is no module {describe(path)}", place, True)


def _as_tuples(attributes: dict[str, object], axes: int) -> None:
    """A convolution keeps one number for all axes as a tuple."""
    for name in ("kernel_size", "stride", "padding", "dilation"):
        default = 0 if name == "padding" else 1
        value = attributes.get(name)
        value = default if isinstance(value, Unknown) else value
        attributes[name] = (value,) * axes if isinstance(value, int) else value


def _first(keywords: dict[str, object], *names: str) -> object:
    return next((keywords[name] for name in names if name in keywords), None)


def is_list(instance: Instance) -> bool:
    """Its items are counted."""
    return any(isinstance(one, External) and one.last in _LISTS for one in instance.mro)


_LISTS = {"ModuleList", "Sequential", "ParameterList"}
_HOOKS = {
    "_register_load_state_dict_pre_hook",
    "register_load_state_dict_pre_hook",
    "_register_state_dict_hook",
    "register_state_dict_pre_hook",
}
_DICTS = {"ModuleDict", "ParameterDict"}
_CONTAINER_METHODS = {"append", "extend", "insert", "pop", "keys", "values", "items", "update"}
_REGISTER = {"register_buffer", "register_parameter", "register_module", "add_module"}
_LISTING = {"named_children", "children", "modules", "named_modules"}
