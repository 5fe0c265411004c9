"""Configuration objects: defaults of ``configuration_*.py``, nested configurations, and the file's values.

Two styles are followed: ``__init__`` with keyword defaults (transformers 4) and annotated class attributes
with ``__post_init__`` (transformers 5, ``PreTrainedConfig`` is a dataclass).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from drupe.implied.attributes import Attributes
from drupe.implied.library import CONFIG_BASES, CONFIG_DEFAULTS, LAYER_TYPES
from drupe.implied.modules import is_harmless
from drupe.implied.values import (
    MISSING,
    Bound,
    ClassValue,
    External,
    Function,
    Instance,
    Native,
    Place,
    Unknown,
)

MAX_CONFIG_DEPTH = 8
MAX_LAYERS = 2048
"""Layers of one model; the deepest published ones have about 200."""
_UNNAMED = re.compile(r"[^a-z0-9]")


class Configs(Attributes):
    """Makes configuration objects."""

    def config_classes(self, model_type: str) -> list[ClassValue]:
        """Configuration classes of the files that carry a model type."""
        quoted = re.compile(rf"""model_type\b[^=\n]{{0,80}}=\s*["']{re.escape(model_type)}["']""")
        found = []
        for file, text in self.sources.files.items():
            if quoted.search(text):
                found += [cls for cls in self.classes_in(file) if is_config_class(cls)]
        return [cls for cls in found if cls.names.get("model_type") == model_type]

    def make_config(
        self, values: Mapping[str, object], cls: ClassValue | None, place: Place, depth: int = 0
    ) -> Instance:
        """The configuration object of a file's values; without a class only what the file says is known."""
        model_type = values.get("model_type")
        if cls is None and isinstance(model_type, str):
            cls = next(iter(self.config_classes(model_type)), None)
        if cls is not None:
            made = self.construct_config(cls, dict(values), place)
            return made
        instance = self.made(Instance(External("transformers.PretrainedConfig"), place))
        instance.is_config = True
        instance.attrs = dict(values)
        self._count_labels(instance)
        for key, value in values.items():
            if isinstance(value, dict) and key.endswith("config") and depth < MAX_CONFIG_DEPTH:
                instance.attrs[key] = self.make_config(value, None, place, depth + 1)
        return instance

    def construct_config(self, cls: ClassValue, keywords: dict[str, object], place: Place) -> Instance:
        """``cls(**keywords)`` of a configuration class."""
        instance = self.made(Instance(cls, place))
        instance.is_config = True
        init = cls.find("__init__")
        if init is not None and isinstance(init[0], Function):
            self.call(Bound(init[0], instance), [], keywords, place)
        else:
            self.base_config_init(instance, keywords, place)
        return instance

    def base_config_init(self, instance: Instance, keywords: dict[str, object], place: Place) -> None:
        """``PreTrainedConfig.__init__``: fields with their defaults, then ``__post_init__`` with the rest."""
        rest = dict(keywords)
        cls = instance.cls
        fields: dict[str, object] = {}
        for one in reversed(instance.mro):
            if isinstance(one, ClassValue):
                fields.update(one.fields)
                fields.update({name: one.names[name] for name in fields if name in one.names})
        self.budget.charge(len(fields) + len(rest))
        for name, default in fields.items():
            if name in rest:
                instance.attrs[name] = rest.pop(name)
            elif name not in instance.attrs:
                instance.attrs[name] = self.deep_copy(default)
        post = cls.find("__post_init__") if isinstance(cls, ClassValue) else None
        if post is not None:
            self.call(Bound(post[0], instance), [], rest, place)
        else:
            self.base_post_init(instance, rest, place)

    def base_post_init(self, instance: Instance, keywords: dict[str, object], place: Place) -> None:
        """``PreTrainedConfig.__post_init__``: nested configurations, labels, further attributes."""
        for key, spec in self._nested(instance).items():
            if isinstance(key, str):
                self._nest(instance, key, spec, keywords, place)
        for key, value in keywords.items():
            self.set_attribute(instance, key, value, place)
        if instance.attrs.get("rope_parameters", MISSING) is None:
            theta = keywords.get("rope_theta", self.get_attribute(instance, "default_theta", place))
            instance.attrs["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
        types = instance.attrs.get("layer_types")
        if isinstance(types, list) and self._is_dataclass(instance):
            instance.attrs["layer_types"] = [
                LAYER_TYPES.get(one, one) if isinstance(one, str) else one for one in types
            ]
        self._count_labels(instance)

    def _is_dataclass(self, instance: Instance) -> bool:
        return any(isinstance(one, ClassValue) and one.fields for one in instance.mro)

    def layer_configs(self, owner: Instance, value: object) -> object:
        """``config.per_layer_config``: the configuration itself, with what differs in a layer."""
        count = owner.attrs.get("num_hidden_layers")
        if not isinstance(value, dict) or not isinstance(count, int) or count > MAX_LAYERS:
            return value
        made: dict[object, object] = self.made({})
        numbered = {int(key): one for key, one in value.items() if str(key).isdecimal() and len(str(key)) < 9}
        for i in range(count):
            changes = numbered.get(i, {})
            self.budget.charge(8)
            layer = self.made(Instance(owner.cls, owner.place))
            layer.is_config = True
            layer.attrs = {**owner.attrs, **(changes if isinstance(changes, dict) else {})}
            layer.attrs.pop("per_layer_config", None)
            made[i] = layer
        return made

    def _nested(self, instance: Instance) -> dict[object, object]:
        cls = instance.cls
        pair = cls.find("sub_configs_defaults") if isinstance(cls, ClassValue) else None
        return dict(pair[0]) if pair is not None and isinstance(pair[0], dict) else {}

    def _nest(
        self, instance: Instance, key: str, spec: object, keywords: dict[str, object], place: Place
    ) -> None:
        given = instance.attrs.get(key, keywords.pop(key, None))
        cls: object = spec
        model_type: object = None
        defaults: object = {}
        if isinstance(spec, Instance):
            cls, model_type = spec.attrs.get("config_class"), spec.attrs.get("model_type")
            defaults = spec.attrs.get("init_kwargs") or {}
            if given is None and spec.attrs.get("optional") is True:
                return
        if given is None:
            given = defaults if isinstance(defaults, dict) else {}
        if not isinstance(given, dict):
            return
        values = {name: value for name, value in given.items() if isinstance(name, str)}
        if not isinstance(cls, ClassValue):
            values = {"model_type": model_type, **values}
        instance.attrs[key] = self.make_config(values, cls if isinstance(cls, ClassValue) else None, place)

    def _count_labels(self, instance: Instance) -> None:
        labels = instance.attrs.get("id2label")
        if isinstance(labels, dict):
            instance.attrs["num_labels"] = len(labels)

    def config_default(self, owner: Instance, name: str, place: Place) -> object:
        """What a configuration answers when neither it nor its class has the attribute."""
        if name in CONFIG_DEFAULTS:
            return CONFIG_DEFAULTS[name]
        if name in {"_attn_implementation", "_attn_implementation_internal", "attn_implementation", "dtype"}:
            return Unknown(f"{name} is chosen when the model is loaded", place)
        if name in {"id2label", "label2id"}:
            return Unknown(f"{name} follows from the number of labels", place)
        if name == "sub_configs":
            nested = self._nested(owner)
            return {
                key: one.attrs.get("config_class") if isinstance(one, Instance) else one
                for key, one in nested.items()
            }
        if isinstance(owner.cls, ClassValue) and all(map(is_harmless, owner.cls.externals())):
            return MISSING
        return Unknown(f"the configuration does not say {name}, and its class is not among the files", place)

    def native_config_method(self, instance: Instance, name: str) -> object:
        """Methods of ``PreTrainedConfig``."""
        if name == "__init__":
            return Native(name, lambda a, k, p: self.base_config_init(instance, k, p))
        if name == "__post_init__":
            return Native(name, lambda a, k, p: self.base_post_init(instance, k, p))
        if name == "get_text_config":
            return Native(name, lambda a, k, p: _text_config(instance))
        if name in {"to_dict", "to_diff_dict"}:
            return Native(name, lambda a, k, p: dict(instance.attrs))
        if name == "update":
            return Native(name, lambda a, k, p: self._update(instance, a, p))
        if name.startswith(("validate", "convert_rope", "standardize_rope", "_set_token", "save_")):
            return Native(name, lambda a, k, p: k)
        if name == "__setattr__":
            return Native(name, lambda a, k, p: _set(instance, a))
        return MISSING

    def native_method(self, instance: Instance, cls: External, name: str) -> object:
        """A method that a library class gives to its objects, or MISSING."""
        if cls.last in CONFIG_BASES:
            return self.native_config_method(instance, name)
        return super().native_method(instance, cls, name)

    def _update(self, instance: Instance, arguments: list[object], place: Place) -> None:
        for key, value in (arguments[0] if arguments and isinstance(arguments[0], dict) else {}).items():
            if isinstance(key, str):
                self.set_attribute(instance, key, value, place)

    def deep_copy(self, value: object, memo: dict[int, object] | None = None) -> object:
        """``copy.deepcopy``: containers and objects anew, everything else shared."""
        memo = {} if memo is None else memo
        if id(value) in memo:
            return memo[id(value)]
        self.budget.charge()
        if isinstance(value, list):
            copied: list[object] = self.made([])
            memo[id(value)] = copied
            copied.extend(self.deep_copy(one, memo) for one in value)
            return copied
        if isinstance(value, dict):
            result: dict[object, object] = self.made({})
            memo[id(value)] = result
            result.update({key: self.deep_copy(one, memo) for key, one in value.items()})
            return result
        if isinstance(value, Instance):
            if value.is_module:
                self.budget.add_module()
            made = self.made(Instance(value.cls, value.place))
            memo[id(value)] = made
            made.is_module, made.is_config, made.open = value.is_module, value.is_config, list(value.open)
            made.left_empty = dict(value.left_empty)
            made.attrs = {key: self.deep_copy(one, memo) for key, one in value.attrs.items()}
            return made
        return value

    def model_class_for(self, config: Instance, kind: str) -> ClassValue | None:
        """The class of the files that an ``Auto`` class would choose for a configuration."""
        name = config.cls.name if isinstance(config.cls, ClassValue) else ""
        model_type = config.attrs.get("model_type")
        stems = [name.removesuffix("Config")] if name.endswith("Config") else []
        if not stems and isinstance(model_type, str):
            wanted = _UNNAMED.sub("", model_type.lower())
            declared = self.sources.declared
            stems = [one.removesuffix("Model") for one in declared if one.lower() == f"{wanted}model"]
            stems += [one.removesuffix(kind) for one in declared if one.lower() == f"{wanted}{kind}".lower()]
        for stem in stems:
            for candidate in (f"{stem}{kind}", stem if kind == "Model" else f"{stem}LMHeadModel"):
                files = self.sources.declared.get(candidate, [])
                value = self.find_global(files[0], candidate) if files else MISSING
                if isinstance(value, ClassValue):
                    return value
        return None


def is_config_class(cls: ClassValue) -> bool:
    """It derives from ``PretrainedConfig``."""
    return any(one.last in CONFIG_BASES for one in cls.externals())


def _text_config(instance: Instance) -> Instance:
    for key in ("text_config", "decoder", "generator", "text_encoder", "llm_config"):
        nested = instance.attrs.get(key)
        if isinstance(nested, Instance):
            return nested
    return instance


def _set(instance: Instance, arguments: list[object]) -> None:
    if len(arguments) == 2 and isinstance(arguments[0], str):
        instance.attrs[arguments[0]] = arguments[1]
