"""Modelling files that were made to cost time or memory: name -> (text, configuration)."""

from __future__ import annotations

HEAD = "import torch\nfrom torch import nn\nfrom transformers import PreTrainedModel\n"


def model(body: str, before: str = "") -> str:
    """A model whose constructor is ``body``."""
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    start = "class M(PreTrainedModel):\n    def __init__(self, config):\n        super().__init__(config)\n"
    return HEAD + before + start + lines


BILLION = 10**9
HOSTILE: dict[str, str] = {
    "module list of a billion": model(f"self.x = nn.ModuleList([nn.Linear(2, 2) for i in range({BILLION})])"),
    "number of modules from the configuration": model(
        "self.x = nn.ModuleList([nn.Linear(2, 2) for i in range(config.n)])"
    ),
    "list times a billion": model(f"self.x = [0] * {BILLION}"),
    "text times a billion": model(f"self.x = 'a' * {BILLION}"),
    "doubling text": model("x = 'a'\nfor i in range(200):\n    x = x + x\nsetattr(self, x, nn.Linear(2, 2))"),
    "doubling list": model("x = [0]\nfor i in range(200):\n    x = x + x"),
    "doubling list in place": model("x = [0]\nfor i in range(200):\n    x += x"),
    "extending itself": model("x = [0]\nfor i in range(200):\n    x.extend(x)"),
    "tower of powers": model("x = 9 ** 9 ** 9 ** 9"),
    "squaring": model("x = 3\nfor i in range(100):\n    x = x * x"),
    "shifting": model(f"x = 1 << {BILLION}"),
    "format of a billion": model(
        f"x = '%{BILLION}d' % 1\ny = f'{{1:{BILLION}}}'\nz = '{{:{BILLION}}}'.format(1)"
    ),
    "endless loop": model("while True:\n    pass"),
    "endless loop of modules": model(
        "self.x = nn.ModuleList()\nwhile True:\n    self.x.append(nn.Linear(2, 2))"
    ),
    "nested loops": model(
        "".join(f"{' ' * i}for i{i} in range(1000):\n" for i in range(6))
        + " " * 6
        + "self.x = nn.Linear(2, 2)"
    ),
    "class that contains itself": HEAD
    + "class M(nn.Module):\n    def __init__(self, config):\n        super().__init__()\n"
    + "        self.a = M(config)\n        self.b = M(config)\n        self.c = M(config)\n",
    "classes that double": HEAD
    + "".join(
        f"class C{i}(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        self.a = {f'C{i + 1}()' if i < 30 else 'nn.Linear(2, 2)'}\n"
        f"        self.b = {f'C{i + 1}()' if i < 30 else 'nn.Linear(2, 2)'}\n"
        for i in range(31)
    )
    + model("self.x = C0()")[len(HEAD) :],
    "one module under exponentially many names": model(
        "x = nn.Linear(2, 2)\nfor i in range(30):\n    x = nn.ModuleList([x, x])\nself.x = x"
    ),
    "module within itself": model("self.x = nn.ModuleList([self])\nself.y = self"),
    "function that calls itself": model(
        "self.x = f(config)", "def f(c):\n    return [f(c), f(c), f(c), f(c)]\n"
    ),
    "lambdas that call themselves": model("f = lambda f: f(f)\nself.x = f(f)"),
    "properties that read themselves": HEAD
    + "class M(nn.Module):\n    @property\n    def p(self):\n        return self.p + self.p\n"
    + "    def __init__(self, config):\n        super().__init__()\n        self.x = self.p\n",
    "bases in a circle": HEAD
    + "class A(B):\n    pass\nclass B(A):\n    pass\nclass M(A, nn.Module):\n    pass\n",
    "names in a circle": HEAD + "a = b\nb = a\n" + model("self.x = nn.Linear(a, b)")[len(HEAD) :],
    "many unknown conditions": model(
        "".join(f"if torch.cuda.is_available():\n    self.x{i} = nn.Linear(2, 2)\n" for i in range(3000))
    ),
    "nested unknown conditions": model(
        "".join(f"{' ' * i}if torch.cuda.is_available():\n" for i in range(60)) + " " * 60 + "self.x = 1"
    ),
    "unknown loops within unknown loops": model(
        "".join(f"{' ' * i}for i{i} in unknown():\n" for i in range(18))
        + " " * 18
        + "self.x = nn.Linear(2, 2)"
    ),
    "doubling by conditions": model(
        "x = [0]\n" + "for i in range(300):\n    x = x + x if torch.cuda.is_available() else x"
    ),
    "choice that calls choices": model(
        "f = A if unknown() else B\nfor i in range(50):\n    f = f() if unknown() else f",
        "class A(nn.Module):\n    pass\nclass B(nn.Module):\n    pass\n",
    ),
    "deep brackets": model("x = " + "[" * 190 + "]" * 190),
    "deeper brackets": "x = " + "(" * 100_000,
    "long sum": model("x = " + "1 + " * 30_000 + "1"),
    "long sum that parses": model("x = " + "1 + " * 900 + "1"),
    "many signs": "x = " + "-" * 100_000 + "1\n",
    "attribute chain": model("x = a" + ".b" * 20_000),
    "many words": "x\n" * 500_000,
    "zero byte": "x = 1\0\n",
    "no Python": "<html>404</html>",
    "table of numbers": model(
        f"x = [[i * j for i in range({BILLION})] for j in range({BILLION})]\nself.p = nn.Parameter(torch.tensor(x))"
    ),
    "number table as a shape": model(f"self.p = nn.Parameter(torch.zeros(*range({BILLION})))"),
    "huge axes": model("x = torch.zeros(1)\nfor i in range(100000):\n    x = x.unsqueeze(0)"),
    "deep copies": model(
        "import copy\nx = [nn.Linear(2, 2)]\nfor i in range(60):\n    x = [copy.deepcopy(x), copy.deepcopy(x)]"
    ),
    "layers of a recurrent module": model(f"self.x = nn.LSTM(2, 2, num_layers={BILLION})"),
    "stack of a transformer": model(
        f"self.x = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), {BILLION})"
    ),
    "names that grow": model(
        "x = self\nfor i in range(1000):\n    x.a = nn.ModuleList()\n    x = x.a\nx.w = nn.Linear(2, 2)"
    ),
    "iterating over a tensor": model(f"for x in torch.zeros({BILLION}):\n    self.y = nn.Linear(2, 2)"),
    "zip of ranges": model(f"for a, b in zip(range({BILLION}), range({BILLION})):\n    pass"),
    "sum of ranges": model(f"x = sum(range({BILLION})) + max(range({BILLION}))"),
    "replace": model("x = 'a' * 4000\ny = x.replace('a', x).replace('a', x)"),
    "join": model("x = ','.join([str(i) for i in range(500)] * 500)"),
    "pattern that backtracks": HEAD
    + "class M(PreTrainedModel):\n    _keys_to_ignore_on_load_missing = ['(a+)+$', 'a.*a.*a.*a.*a.*a.*b']\n"
    + "    def __init__(self, config):\n        super().__init__(config)\n"
    + "        setattr(self, 'a' * 4000, nn.Linear(2, 2))\n",
    "many bases": HEAD
    + "".join(
        f"class C{i}({', '.join(f'C{j}' for j in range(max(0, i - 40), i)) or 'nn.Module'}):\n    pass\n"
        for i in range(200)
    )
    + "class M(C199):\n    pass\n",
    "stars that import each other": "from .modeling_b import *\n" + model("self.x = nn.Linear(n, n)"),
}
CONFIG = {"architectures": ["M"], "model_type": "m", "n": BILLION}
