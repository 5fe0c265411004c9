"""Names of models: which name a model goes by, and where a text mentions it.

A name matches ignoring case, hyphens, underscores, dots and spaces, and only as whole words of the text:
"llama" is not in "llamafile", "Qwen2" is not in "Qwen2.5" nor "Llama-2-7b" in "Llama-2-70b"; "SmolLM2-135M"
**is** in "SmolLM2 135M-Instruct", because the name ends at a word boundary there: a text that names a variant
of the source has named it. Generic names ("model", "checkpoint-100", a hash, "v2") are no names.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from importlib import resources

MAX_NAME = 96
"""Characters of a name that are considered."""
MIN_LETTERS = 4
"""Letters and digits of a distinctive name; a CJK character counts twice."""
_SEPARATORS = r"[\s\-_.\u2010-\u2015]"
_WORD = re.compile(r"[^\W\d_]+|\d+")
_HASH = re.compile(r"^(?=.*\d)[0-9a-f]{7,64}$")
_HUB_CACHE = re.compile(r"(?:^|/)models--([^/]+?)--([^/]+)(?:/|$)")
_HUB_URL = re.compile(r"^https?://[^/]+/([\w.-]+/[\w.-]+)/?(?:(?:resolve|tree|blob)/.*)?$")
_HUB_TOKEN = re.compile(
    r"(?<![\w/.-])(?:[\w-]+\.(?:co|com|cn)/)?([a-z0-9][\w.-]{1,60}/[a-z0-9][\w.-]{2,60})(?![\w/])"
)
_DIGIT_WORD = r"(?=[a-z._-]{0,64}\d)[a-z0-9][a-z0-9._-]*"
_RUN = re.compile(rf"(?<![a-z0-9._-])(?:[a-z][a-z._-]{{0,64}}\s)?{_DIGIT_WORD}(?:\s{_DIGIT_WORD}){{0,3}}")
_INVISIBLE = re.compile(r"[\u200b-\u200d\u2060\ufeff\u00ad]")
_LOOKALIKES = re.compile(r"[\uff01-\uffef\U0001d400-\U0001d7ff]+")
"""Full-width and mathematical letters; folding all of a text would let 3 bytes become 18 characters."""
MAX_CANDIDATE = 64
"""Characters of a candidate name in a text."""
_FORMATS = re.compile(r"\.(safetensors|gguf|onnx|bin|pt|pth|json|zip)$", re.IGNORECASE)
_SUFFIXES = re.compile(
    rf"{_FORMATS.pattern}|[-._](i?q\d(_[0-9a-z]+)*|[bf]?f(p)?(16|32)|bf16|int[48]|\d{{5}}-of-\d{{5}})$",
    re.IGNORECASE,
)


@cache
def generic_words() -> frozenset[str]:
    """Words that name no model, from ``data/generic_names.toml``."""
    file = resources.files("drupe") / "data" / "generic_names.toml"
    return frozenset(tomllib.loads(file.read_text(encoding="utf-8"))["words"])


def normalise(name: str) -> str:
    """Letters and digits alone, compatibility forms folded, lower case.

    >>> normalise("SmolLM2 135M-Instruct")
    'smollm2135minstruct'
    """
    folded = unicodedata.normalize("NFKC", name[:MAX_NAME]).lower()
    return "".join(char for char in folded if char.isalnum())


def is_distinctive(name: str) -> bool:
    """Whether finding this name in a text means anything.

    >>> [is_distinctive(name) for name in ("SmolLM2-135M", "llama", "checkpoint-100", "3f2a9c1d", "Yi")]
    [True, True, False, False, False]
    """
    plain = normalise(name)
    width = sum(2 if char >= "\u2e80" else 1 for char in plain)
    if width < MIN_LETTERS or _HASH.match(plain):
        return False
    words = _WORD.findall(unicodedata.normalize("NFKC", name[:MAX_NAME]).lower())
    return any(not word.isdigit() and word not in generic_words() and len(word) > 1 for word in words)


def names_in_locator(locator: str) -> tuple[str, ...]:
    """The distinctive names in a locator, hub id first, else the folder or file name without its suffixes.

    >>> names_in_locator("hf:HuggingFaceTB/SmolLM2-135M@main")
    ('HuggingFaceTB/SmolLM2-135M', 'SmolLM2-135M')
    >>> names_in_locator("/tmp/x/SmolLM2-135M-Instruct.Q4_1.gguf"), names_in_locator("./model")
    (('SmolLM2-135M-Instruct',), ())
    """
    plain = locator.replace("\\", "/").rstrip("/")
    hub = _HUB_CACHE.search(plain)
    url = _HUB_URL.match(plain)
    if hub:
        return expand([f"{hub[1]}/{hub[2]}"])
    if url:
        return expand([url[1]])
    scheme = re.match(r"^(hf|ms|ollama):(.*)$", plain)
    if scheme:
        return expand([scheme[2].split("@")[0].split(":")[0]])
    parts = plain.split("#")[-1].split("/")
    own = expand([strip_suffixes(parts[-1])])
    is_file = bool(_FORMATS.search(parts[-1]))
    return own if own or not is_file else expand(parts[-2:-1])  # .../SmolLM2-135M/model.safetensors


def strip_suffixes(name: str) -> str:
    """A file name without format, quantisation and shard suffixes."""
    while (shorter := _SUFFIXES.sub("", name)) != name:
        name = shorter
    return name


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """The distinctive ones of the names, a hub id also by its second half; no two alike, order kept."""
    kept: dict[str, str] = {}
    for name in names:
        short = name.strip().rstrip("/")[:MAX_NAME]
        last = short.rsplit("/", 1)[-1]
        for form in (short, last) if is_hub_id(short) else (last,):
            whole = (
                is_hub_id(form) and len(normalise(form)) > MIN_LETTERS and not _HASH.match(normalise(last))
            )
            if whole or is_distinctive(form):
                kept.setdefault(("/" if "/" in form else "") + normalise(form), form)
    return tuple(kept.values())


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ORG/NAME of a hub (and is no path)."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name))


def prepare(text: str) -> str:
    """A text in the form that :func:`mentions` searches: forms folded, lower case, same lines."""
    folded = _LOOKALIKES.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text).lower()
    return _INVISIBLE.sub("", folded)


@lru_cache(256)
def pattern(name: str) -> re.Pattern[str]:
    """The search pattern of a name (a hub id keeps its slash)."""
    parts = [
        rf"{_SEPARATORS}{{0,3}}".join(re.escape(char) for char in normalise(part))
        for part in name.split("/")[-2:]
    ]
    return re.compile(r"(?<![a-z0-9])(?<!\d\.)" + r"\s?/\s?".join(parts) + r"(?![a-z0-9]|\.\d)")


def mentions(prepared: str, name: str) -> Iterator[int]:
    """Line numbers (from 1) of the prepared text on which a name is mentioned, ascending, each once."""
    line, position = 1, 0
    last = 0
    for match in pattern(name).finditer(prepared):
        line += prepared.count("\n", position, match.start())
        position = match.start()
        if line != last:
            yield line
        last = line


def candidates(line: str) -> Iterator[str]:
    """Possible names of models in a prepared line: hub ids, runs of words with digits and the word before.

    >>> list(candidates("we start from smollm2 135m-instruct of huggingfacetb/smollm2 and llama 2 7b"))
    ['huggingfacetb/smollm2', 'from smollm2 135m-instruct', 'smollm2', 'llama 2 7b']
    """
    for match in _HUB_TOKEN.finditer(line):
        yield match[1]
    for match in _RUN.finditer(line):
        token = match[0].rstrip("._-")[:MAX_CANDIDATE]
        if len(normalise(token)) >= MIN_LETTERS and re.search("[a-z]{2}", token):
            yield token
