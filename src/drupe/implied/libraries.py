"""Calls of libraries, by name."""

from __future__ import annotations

from drupe.implied import tensors
from drupe.implied.calls import Calls
from drupe.implied.comprehensions import Comprehensions
from drupe.implied.configs import Configs, is_config_class
from drupe.implied.expressions import Expressions
from drupe.implied.library import CONFIG_BASES, HARMLESS_BASES, NO_MODULE_ROOTS, PRELUDE_FILE
from drupe.implied.modules import is_harmless, is_known_kind, is_torch_module
from drupe.implied.python_text import mathematics
from drupe.implied.reparametrised import reparametrise
from drupe.implied.values import (
    MISSING,
    ClassValue,
    Either,
    External,
    Function,
    Instance,
    Partial,
    Place,
    Tensor,
    Unknown,
    describe,
    either,
    truth,
)

_OWN = (
    "__delattr__",
    "__getattr__",
    "__getattribute__",
    "from_pretrained",
    "_load_pretrained_model",
    "add_module",
    "register_module",
    "register_parameter",
    "register_buffer",
    "__getstate__",
    "__deepcopy__",
)
"""Methods with which a class keeps or loads tensors in its own way."""
_CALLED_LATER = ("_init_weights", "_initialize_weights")
_CALLED_WHEN_TIED = ("tie_weights", "_tie_weights")
_AUTO_KINDS = {
    "AutoModelForCausalLM": "ForCausalLM",
    "AutoModelForMaskedLM": "ForMaskedLM",
    "AutoModelForSeq2SeqLM": "ForConditionalGeneration",
    "AutoModelForConditionalGeneration": "ForConditionalGeneration",
    "AutoModelForImageTextToText": "ForConditionalGeneration",
    "AutoModelForVision2Seq": "ForConditionalGeneration",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoBackbone": "Backbone",
}
_LOADING = {"config", "trust_remote_code", "torch_dtype", "dtype", "attn_implementation", "_fast_init"}
_IDENTITY = frozenset(
    [
        "lru_cache",
        "cache",
        "wraps",
        "script",
        "compile",
        "checkpoint_wrapper",
        "cast",
        "deepcopy_config",
        "maybe_autocast",
    ]
)
_NO_MODULE_HINTS = (
    "is_",
    "flash_attn_supports",
    "get_logger",
    "require_",
    "log_",
    "warn",
    "check_",
    "validate_",
    "create_",
    "deprecate",
)


class Libraries(Configs, Calls, Comprehensions, Expressions):
    """Makes objects and follows calls of libraries."""

    def construct(
        self, cls: ClassValue, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        """``cls(...)``."""
        if is_config_class(cls):
            return self.construct_config(cls, keywords, place)
        instance = self.made(Instance(cls, place))
        unknown = [one for one in cls.externals() if not is_torch_module(one) and not is_harmless(one)]
        instance.is_module = bool(unknown) or any(is_torch_module(one) for one in cls.externals())
        if instance.is_module:
            self.budget.add_module()
        if instance.is_module:
            self._doubt_class(cls)
        for one in unknown:
            reason = f"{cls.name} derives from {describe(one)}, which is not among the files"
            instance.open.append(self.note(reason, cls.place))
        init = self.get_attribute(instance, "__init__", place)
        if init is not MISSING:
            self.call(init, arguments, keywords, place)
        elif cls.fields:
            names = dict(zip(cls.fields, arguments, strict=False))
            instance.attrs = {**cls.fields, **names, **keywords}
        return instance

    def _doubt_class(self, cls: ClassValue) -> None:
        """Methods of its own that change how modules are kept, or that loaders call."""
        if cls.name in self.examined and self.examined[cls.name] is cls:
            return
        self.examined[cls.name] = cls
        for name in (*_OWN, *_CALLED_LATER, *_CALLED_WHEN_TIED):
            pair = cls.find(name)
            function = pair[0] if pair is not None else None
            if not isinstance(function, Function):
                continue
            place = Place(function.frame.scope.file, getattr(function.node, "lineno", 0))
            if place.file == PRELUDE_FILE:
                continue
            if name in _OWN:
                self.doubt(f"{cls.name} has a {name} of its own", place)
            elif self.may_register(function.node):
                what = "misfit" if name in _CALLED_WHEN_TIED else "all"
                self.doubt(f"{name} may change what modules register", place, what)

    def call_library(
        self, function: External, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        """A call of a library."""
        root, _, rest = function.name.partition(".")
        if root == "builtins":
            if rest == "super":
                return self.bound_super(arguments, place)
            return self.python_function(rest, arguments, keywords, place)
        if is_torch_module(function):
            return self._library_module(function, arguments, keywords, place)
        if function.last == "__init__" and arguments and isinstance(arguments[0], Instance):
            base = External(function.name.removesuffix(".__init__"))
            self.library_init(arguments[0], base, arguments[1:], keywords, place)
            return None
        if root == "torch":
            return self._torch(function, arguments, keywords, place)
        if function.last in CONFIG_BASES:
            return self.make_config(keywords, None, place)
        if root in {"math", "numpy"}:
            one = arguments[0] if len(arguments) == 1 else None
            numbers = one if isinstance(one, list | tuple) else arguments
            return mathematics(root, rest, list(numbers), place)
        if root in {"copy", "functools", "collections", "itertools", "types"}:
            return self._standard(function, arguments, keywords, place)
        return self._transformers(function, arguments, keywords, place)

    def _library_module(
        self, cls: External, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> Instance:
        self.budget.add_module()
        instance = self.made(Instance(cls, place))
        instance.is_module = True
        if is_known_kind(cls) or cls.last not in HARMLESS_BASES:
            self.library_init(instance, cls, arguments, keywords, place)
        return instance

    def _torch(
        self, function: External, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        last, first = function.last, arguments[0] if arguments else next(iter(keywords.values()), None)
        if function.name.startswith("torch.nn.utils"):
            return reparametrise(self, last, function.name, arguments, keywords, place)
        if function.name.startswith("torch.nn.init") or last in _IDENTITY:
            return first
        if last in {"Parameter", "UninitializedParameter"}:
            return _parameter(first, place)
        if last == "Buffer":
            return self._buffer(first, truth(keywords.get("persistent", True)), place)
        if function.name.startswith("torch.nn.functional"):
            return Tensor(tensors.function(last, arguments, keywords, place).shape, place)
        if function.name.startswith("torch.nn.") and last[:1].isupper():
            return self.note(f"what {function.name} registers is not known", place)
        if last in {
            "is_available",
            "is_grad_enabled",
            "device_count",
            "is_tensor",
            "get_default_dtype",
            "device",
        }:
            return Unknown(f"{function.name} depends on the machine", place)
        if function.name.count(".") == 1:
            return tensors.function(last, arguments, keywords, place)
        return Unknown(function.name, place)

    def _standard(
        self, function: External, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        last, first = function.last, arguments[0] if arguments else None
        if last in {"deepcopy", "copy"}:
            if isinstance(first, Either):
                return either(*(self.deep_copy(one) for one in first.options))
            return self.deep_copy(first)
        if last in {"partial", "partialmethod"}:
            return Partial(first, tuple(arguments[1:]), keywords)
        if last in _IDENTITY and isinstance(first, Function):
            return first
        if last == "OrderedDict":
            return self.python_function("dict", arguments, keywords, place)
        if last in {"defaultdict", "Counter"}:
            return {}
        if last == "deque":
            return self.python_function("list", arguments, {}, place)
        if last == "chain":
            parts = [self.items(one, place) for one in arguments]
            return [one for part in parts for one in (part if isinstance(part, list) else [part])]
        if last == "repeat" and len(arguments) == 2 and isinstance(arguments[1], int):
            self.budget.charge(max(arguments[1], 0))
            return [first] * arguments[1]
        if last == "SimpleNamespace":
            made = Instance(External("types.SimpleNamespace"), place)
            made.attrs = dict(keywords)
            return made
        return Unknown(f"{function.name} is not followed", place)

    def _transformers(
        self, function: External, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        last = function.last
        owner, first = function.name.split(".")[-2:][0], arguments[0] if arguments else None
        if owner.startswith("AutoModel") or last.startswith("AutoModel"):
            return self._auto(owner if owner.startswith("Auto") else last, last, arguments, keywords, place)
        if owner in {"CONFIG_MAPPING", "AutoConfig"} or last == "AutoConfig":
            model_type = last if owner == "CONFIG_MAPPING" else first
            values = {"model_type": model_type, **keywords}
            return (
                self.make_config(values, None, place) if last != "from_pretrained" else Unknown(last, place)
            )
        if last == "load_backbone" or owner == "AutoBackbone":
            return self._backbone(first, keywords, place)
        if last in {"get_activation", "ClassInstantier"}:
            return self.item(External("transformers.activations.ACT2FN"), first, place)
        if last == "SubConfigSpec":
            names = ("config_class", "model_type", "init_kwargs", "optional")
            spec = Instance(External("transformers.SubConfigSpec"), place)
            spec.attrs = {**dict(zip(names, arguments, strict=False)), **keywords}
            return spec
        if last in {"apply_chunking_to_forward", "find_pruneable_heads_and_indices"}:
            return Unknown(last, place)
        root = function.name.partition(".")[0]
        may = root not in NO_MODULE_ROOTS and last not in HARMLESS_BASES
        may = (
            may and not last.startswith(_NO_MODULE_HINTS) and not last.endswith(("Cache", "Config", "Output"))
        )
        may = may and not last.isupper() and ".logging." not in function.name
        return Unknown(f"{function.name} is not among the files", place, may)

    def _backbone(self, config: object, keywords: dict[str, object], place: Place) -> object:
        if isinstance(config, Instance):
            inner = config.attrs.get("backbone_config")
            config = inner if isinstance(inner, Instance) else config
        return self._auto("AutoBackbone", "from_config", [config], keywords, place)

    def _auto(
        self, auto: str, last: str, arguments: list[object], keywords: dict[str, object], place: Place
    ) -> object:
        config = arguments[0] if arguments else keywords.get("config")
        if isinstance(config, Either):
            return either(*(self._auto(auto, last, [one], keywords, place) for one in config.options))
        if isinstance(config, Instance) and config.is_config:
            cls = self.model_class_for(config, _AUTO_KINDS.get(auto, "Model"))
            if cls is not None:
                rest = {key: value for key, value in keywords.items() if key not in _LOADING}
                return self.call(cls, [config], rest, place)
            named = config.attrs.get("model_type", describe(config.cls))
            return Unknown(f"the model of {named} is not among the files", place, True)
        return Unknown(f"{auto} chooses a model that is not among the files", place, True)


def _parameter(value: object, place: Place) -> object:
    if isinstance(value, Either):
        return either(*(_parameter(one, place) for one in value.options))
    return tensors.as_parameter(value, place)
