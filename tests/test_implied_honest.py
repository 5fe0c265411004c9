"""Code that is not followed exactly leads to ``unknown``, never to an accusation and never to an acquittal.

The outcomes that the tests call torch's were observed with torch 2.13.0 and transformers 5.23.0: the class was made
and its ``state_dict()`` compared. Nothing of the code here is run.
"""

from __future__ import annotations

import pytest

from drupe.implied import Implied, Outcome, fits, implied

HEAD = """
import torch, os, sys
from torch import nn
from transformers import PreTrainedModel, PretrainedConfig
class MConfig(PretrainedConfig):
    model_type = "m"
    def __init__(self, d=8, n=2, flag=True, **kw):
        self.d = d; self.n = n; self.flag = flag
        super().__init__(**kw)
"""
MODEL = """class Model(PreTrainedModel):
    config_class = MConfig
    def __init__(self, c):
        super().__init__(c)
"""
A = {"a.weight": (8, 8), "a.bias": (8,)}
WEIGHT = {"a.weight": (8, 8)}
LINEAR = "self.a = nn.Linear(c.d, c.d)"


def of(body: str, before: str = "", after: str = "", model: str = MODEL) -> Implied:
    """The model whose constructor has the lines of ``body``."""
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    text = f"{HEAD}{before}\n{model}{lines}{after}\n"
    return implied({"modeling_m.py": text}, {"model_type": "m", "architectures": ["Model"]}, "Model")


EXACT = {
    "a missing key in try": (
        "try:\n    self.b = nn.Linear(c.gone, 4)\nexcept AttributeError:\n    pass\n" + LINEAR,
        A,
    ),
    "the handler": (
        "try:\n    self.b = nn.Linear(c.gone, 4)\nexcept (KeyError, AttributeError):\n    " + LINEAR,
        A,
    ),
    "what came before the error stays": (
        f"try:\n    {LINEAR}\n    self.b = nn.Linear(c.gone, 4)\nexcept Exception:\n    pass",
        A,
    ),
    "the second handler": (
        f"try:\n    raise ValueError('x')\nexcept KeyError:\n    pass\nexcept ValueError:\n    {LINEAR}",
        A,
    ),
    "an inner try lets an error pass": (
        "try:\n    try:\n        c.gone\n    except KeyError:\n        self.b = nn.Linear(1, 1)\n"
        f"except AttributeError:\n    {LINEAR}",
        A,
    ),
    "suppress": (
        f"import contextlib\nwith contextlib.suppress(AttributeError):\n    self.b = nn.Linear(c.gone, 2)\n{LINEAR}",
        A,
    ),
    "a buffer that was None": (
        "self.register_buffer('b', None)\nself.b = torch.ones(4)\n" + LINEAR,
        {**A, "b": (4,)},
    ),
    "a buffer that was None and is not saved": (
        "self.register_buffer('b', None, persistent=False)\nself.b = torch.ones(4)\n" + LINEAR,
        A,
    ),
    "the last of a list": (
        "self.m = nn.ModuleList([nn.Linear(1, 1, False), nn.Linear(1, 1, False)])\nself.m[-1] = nn.Linear(2, 2)",
        {"m.0.weight": (1, 1), "m.1.weight": (2, 2), "m.1.bias": (2,)},
    ),
    "a private name": ("self.__a = nn.Linear(2, 2)", {"_Model__a.weight": (2, 2), "_Model__a.bias": (2,)}),
    "an assertion that holds": (f"assert c.d == 8\n{LINEAR}", A),
    "an error under a false condition": (f"if c.d != 8: raise ValueError\n{LINEAR}", A),
}


@pytest.mark.parametrize("name", EXACT)
def test_what_is_followed_exactly_fits_and_nothing_else_does(name: str) -> None:
    body, tensors = EXACT[name]
    found = of(body)
    assert fits(found, tensors).outcome is Outcome.FITS
    assert not found.unknown
    more = {**tensors, "other.weight": (3, 3)}
    assert fits(found, more).outcome is Outcome.DOES_NOT_FIT


SETTER = """
    @property
    def p(self): return 1
    @p.setter
    def p(self, v):
        self.q = nn.Linear(v, v)
"""


def test_a_setter_is_called() -> None:
    found = of(f"{LINEAR}\nself.p = 3", after=SETTER)
    assert fits(found, {**A, "q.weight": (3, 3), "q.bias": (3,)}).outcome is Outcome.FITS


@pytest.mark.parametrize("start", ["if True:", "if 1:", "try:\n    pass\nfinally:"])
def test_the_last_definition_of_a_class_wins(start: str) -> None:
    again = "".join(f"    {line}\n" for line in MODEL.splitlines()) + "            self.q = nn.Linear(2, 2)\n"
    found = of(LINEAR, after=f"{start}\n{again}")
    assert fits(found, {"q.weight": (2, 2), "q.bias": (2,)}).outcome is Outcome.FITS
    assert fits(found, A).outcome is not Outcome.FITS


def test_a_class_that_may_be_defined_again_is_unknown() -> None:
    again = "".join(f"    {line}\n" for line in MODEL.splitlines()) + "            self.q = nn.Linear(2, 2)\n"
    found = of(LINEAR, after=f"if torch.cuda.is_available():\n{again}")
    for tensors in (A, {"q.weight": (2, 2), "q.bias": (2,)}):
        assert fits(found, tensors).outcome is Outcome.UNKNOWN


BARE = "    def strip(self, m):\n        if isinstance(m, nn.Linear): m.bias = None\n"
MORE = "    def {}(self, m):\n        if isinstance(m, nn.Linear): m.extra = nn.Parameter(torch.ones(2))\n"
EXTRA = {**A, "a.extra": (2,)}
OLD = {"old.weight": (8, 8), "old.bias": (8,)}
Z = {**A, "z.weight": (1, 1), "z.bias": (1,)}
_LATER = """
old = Model.__init__
def new(self, c):
    old(self, c)
    self.z = nn.Linear(1, 1)
"""
_INIT = "_i = nn.Linear.__init__\ndef ini(self, a, b, *k, **w): _i(self, a, 2 * b, *k, **w)\n"
_SUBCLASS = """
class Base(PreTrainedModel):
    def __init_subclass__(cls, **k):
        super().__init_subclass__(**k)
        o = cls.__init__
        def n(self, c):
            o(self, c); self.z = nn.Linear(1, 1)
        cls.__init__ = n
"""
_META = """
class Meta(type(PreTrainedModel)):
    def __call__(cls, *a, **k):
        o = super().__call__(*a, **k); o.z = nn.Linear(1, 1); return o
"""
_FROM = """
    @classmethod
    def from_pretrained(cls, p, **k):
        return super().from_pretrained(p, key_mapping={"^old": "a"}, **k)
"""
_SET = "    def __setattr__(self, n, v):\n        super().__setattr__('z' if n == 'a' else n, v)\n"
_GET = "    def __getattr__(self, n):\n        return super().__getattr__(n)\n"
_GLOBAL = "K = 7\ndef bump():\n    global K\n    K += 1\n    return K\n"
_HOOK = "    def h(self, sd, prefix, *a):\n        sd['a.weight'] = sd.pop('old.weight')\n"
# name -> (constructor, before the class, after it, tensors that torch's state_dict() has or that torch loads)
LOADED: dict[str, tuple[str, str, str, dict[str, tuple[int, ...]]]] = {
    "apply a method": (f"{LINEAR}\nself.apply(self.strip)", "", BARE, WEIGHT),
    "apply a lambda": (f"{LINEAR}\nself.apply(lambda m: setattr(m, 'bias', None))", "", "", WEIGHT),
    "init_weights": (f"{LINEAR}\nself.post_init()", "", MORE.format("_init_weights"), EXTRA),
    "init_weights calls on": (
        f"{LINEAR}\nself.post_init()",
        "",
        "    def _init_weights(self, m): self.other(m)\n" + MORE.format("other"),
        EXTRA,
    ),
    "exec": (f"{LINEAR}\nexec('self.z = nn.Linear(1, 1)')", "", "", Z),
    "exec takes away": (f"{LINEAR}\nexec('self.a.bias = None')", "", "", WEIGHT),
    "eval": ("self.a = eval('nn.Linear')(8, 8)", "", "", A),
    "builtins": (f"import builtins\n{LINEAR}\nbuiltins.exec('self.a.bias = None')", "", "", WEIGHT),
    "nn.Linear for all": (
        f"nn.Linear = lambda a, b: _i(a, b, bias=False)\n{LINEAR}",
        "_i = nn.Linear",
        "",
        WEIGHT,
    ),
    "nn.Linear by setattr": (
        f"setattr(nn, 'Linear', lambda a, b: _i(a, b, bias=False))\n{LINEAR}",
        "_i = nn.Linear",
        "",
        WEIGHT,
    ),
    "the constructor of nn.Linear": (
        LINEAR,
        _INIT + "nn.Linear.__init__ = ini",
        "",
        {"a.weight": (16, 8), "a.bias": (16,)},
    ),
    "by setattr at the top": (
        LINEAR,
        _INIT + "setattr(nn.Linear, '__init__', ini)",
        "",
        {"a.weight": (16, 8), "a.bias": (16,)},
    ),
    "in a function that is called at the top": (
        LINEAR,
        _INIT + "def patch():\n    nn.Linear.__init__ = ini\npatch()",
        "",
        {"a.weight": (16, 8), "a.bias": (16,)},
    ),
    "in a function whose result is kept": (
        LINEAR,
        _INIT + "def patch():\n    nn.Linear.__init__ = ini\ndef more(): return patch()\nX = more()",
        "",
        {"a.weight": (16, 8), "a.bias": (16,)},
    ),
    "in the body of another class": (
        LINEAR,
        _INIT + "class Other:\n    nn.Linear.__init__ = ini",
        "",
        {"a.weight": (16, 8), "a.bias": (16,)},
    ),
    "the constructor of the model": (LINEAR, "", _LATER + "Model.__init__ = new", Z),
    "__setattr__": (LINEAR, "", _SET, {"z.weight": (8, 8), "z.bias": (8,)}),
    "__getattr__": (LINEAR, "", _GET, A),
    "__dict__": (f"{LINEAR}\nself.__dict__['zz'] = nn.Linear(2, 2)", "", "", A),
    "vars": (f"{LINEAR}\nvars(self)['_modules']['z'] = nn.Linear(1, 1)", "", "", Z),
    "setattr under a name that is not known": (
        f"{LINEAR}\nself.b = nn.Linear(1, 1)\nsetattr(self, os.environ.get('X', 'b'), None)",
        "",
        "",
        A,
    ),
    "a global counter": ("self.a = nn.Linear(bump(), K)", _GLOBAL, "", A),
    "from_pretrained": (LINEAR, "", _FROM, OLD),
    "a hook": (f"{LINEAR}\nself._register_load_state_dict_pre_hook(self.h)", "", _HOOK, OLD),
    "sys.modules": (LINEAR, "sys.modules['torch.nn'] = None", "", A),
}


@pytest.mark.parametrize("name", LOADED)
def test_code_that_torch_loads_is_never_accused(name: str) -> None:
    body, before, after, tensors = LOADED[name]
    found = of(body, before, after)
    assert fits(found, tensors).outcome is Outcome.UNKNOWN
    assert fits(found, {"none.of.them": (9,)}).outcome is Outcome.UNKNOWN
    doubts = [gap for gap in found.unknown if gap.doubt or gap.prefix is not None]
    assert doubts
    assert all(gap.place.file == "modeling_m.py" and gap.place.line > 0 for gap in doubts)


@pytest.mark.parametrize(
    ("before", "model"),
    [
        (_SUBCLASS, MODEL.replace("(PreTrainedModel)", "(Base)")),
        (_META, MODEL.replace("(PreTrainedModel)", "(PreTrainedModel, metaclass=Meta)")),
    ],
)
def test_a_class_that_is_made_otherwise_is_unknown(before: str, model: str) -> None:
    found = of(LINEAR, before, model=model)
    assert fits(found, Z).outcome is Outcome.UNKNOWN
    assert fits(found, A).outcome is Outcome.UNKNOWN


RAISES = {
    "a check of the configuration": (f"{LINEAR}\nif c.d != 999: raise ValueError('x')", ""),
    "an assertion": (f"{LINEAR}\nassert c.d == 9", ""),
    "an error without a condition": (f"{LINEAR}\nraise ValueError('x')", ""),
    "an error in a function": (f"{LINEAR}\ncheck(c)", "def check(c):\n    raise ValueError"),
    "a handler for something else": (f"{LINEAR}\ntry:\n    c.gone\nexcept KeyError:\n    pass", ""),
    "a key that the configuration lacks": (f"{LINEAR}\nself.scale = c.gone", ""),
    "the file raises": (LINEAR, "raise SystemError('x')"),
    "the file raises under True": (LINEAR, "if True:\n    raise SystemError('x')"),
    "the file asserts": (LINEAR, "assert 1 == 2"),
    "the file leaves": (LINEAR, "sys.exit()"),
    "a package that is not there": (LINEAR, "import flash_attn_not_there"),
    "a package that is not there, in the constructor": (f"import not_there\n{LINEAR}", ""),
    "no such item": ("self.m = nn.ModuleList([nn.Identity()])\nself.m[3] = nn.Identity()\n" + LINEAR, ""),
}


@pytest.mark.parametrize("name", RAISES)
def test_code_that_raises_does_not_fit_anything(name: str) -> None:
    body, before = RAISES[name]
    found = of(body, before)
    assert fits(found, A).outcome is Outcome.UNKNOWN
    assert any(gap.doubt == "all" and gap.place.line > 0 for gap in found.unknown)


@pytest.mark.parametrize(
    "before",
    [
        "import einops, packaging.version, json",
        "try:\n    import flash_attn_not_there\nexcept ImportError:\n    pass",
        "try:\n    from not_there import x\n    HAS = True\nexcept ImportError:\n    HAS = False",
        "if torch.__version__ < '1':\n    raise ImportError('old')",
        "torch.backends.cudnn.enabled = True\nos.environ['A'] = '1'",
        "def helper(x):\n    global K\n    K = 1",
    ],
)
def test_what_is_common_and_harmless_raises_no_doubt(before: str) -> None:
    after = "    def _init_weights(self, m):\n        m.weight.data.normal_(); m.bias.data[0].zero_()\n"
    found = of(f"{LINEAR}\nself.apply(self._init_weights)\nself.post_init()", before, after)
    assert fits(found, A).outcome is Outcome.FITS
    assert not found.unknown


def test_a_file_that_is_imported_for_what_it_does_is_looked_at() -> None:
    text = f"{HEAD}from . import patches\n{MODEL}        {LINEAR}\n"
    patches = "from torch import nn\nnn.Linear.__init__ = None\n"
    files = {"modeling_m.py": text, "patches.py": patches}
    found = implied(files, {"model_type": "m", "architectures": ["Model"]}, "Model")
    assert fits(found, A).outcome is Outcome.UNKNOWN
    assert ("patches.py", 2) in {(gap.place.file, gap.place.line) for gap in found.unknown}


def test_an_error_that_may_be_raised_makes_names_optional_not_required() -> None:
    found = of(f"try:\n    self.b = nn.Linear(int(os.environ['B']), 4)\nexcept KeyError:\n    pass\n{LINEAR}")
    assert fits(found, A).outcome is Outcome.FITS
    assert fits(found, {**A, "b.weight": (4, 7), "b.bias": (4,)}).outcome is Outcome.FITS
