"""Hostile models as data: how to make each, the file that the message must name, and what it must say.

Everything is written from bytes, seeded, and small unless size is the attack. ``SMALL`` is a whole model folder in
12 KB for the byte flips.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hostile_formats import CASES as FORMATS
from pickle_corpus import bombs
from readers.test_gguf_hostile import DAMAGE, LIES
from readers.test_onnx_hostile import count, initialiser, many, nested, part, tensor
from readers.test_pickle_stream import EXPLOSIONS as PICKLES
from zoo_files import Checkpoint, Tensors, save

MODELS = Path(__file__).parent / "models"
Content = bytes | str
Make = Callable[[Path], None]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Hostile:
    """``make`` fills an empty folder; stderr must name ``file`` and match ``says``.

    ``locator`` is relative to the folder; ``costly`` = also measured in a process of its own.
    """

    make: Make
    file: str
    says: str
    locator: str = ""
    costly: bool = False


def files_of(content: Mapping[str, Content]) -> Make:
    """Writes files by their relative paths."""

    def make(folder: Path) -> None:
        for name, data in content.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)

    return make


# safetensors
def safetensors(header: object, data: int = 0, length: int | None = None) -> bytes:
    """A file with that header (bytes, text or an object) and so many zero bytes of data."""
    raw = (
        header
        if isinstance(header, bytes)
        else str(header if isinstance(header, str) else json.dumps(header))
    )
    text = raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass")
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data)


def entry(shape: object = (2, 4), offsets: object = (0, 32), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = safetensors({"a": entry()}, 32)
FILLER = b"[" * (100 << 20)
SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes are too few"),
    "nine bytes": (GOOD[:9], "9 bytes are too few"),
    "cut in the header": (GOOD[:30], r"header length: \d+ exceeds the limit of 22"),
    "cut in the data": (GOOD[:-1], "end of tensor 'a': 32 exceeds the limit of 31"),
    "length 2^63": (safetensors("{}", 8, 1 << 63), "9223372036854775808 exceeds the limit of 104857600"),
    "length 2^64-1": (safetensors("{}", 8, 2**64 - 1), "18446744073709551615 exceeds the limit"),
    "length beyond the end": (safetensors("{}", 8, 1000), "1000 exceeds the limit of 10"),
    "length 0": (safetensors("{}", 8, 0), "does not start with"),
    "not an object": (safetensors("[]", 8), "does not start with"),
    "not JSON": (safetensors("{" + "x" * 20), "not valid JSON"),
    "not UTF-8": (safetensors(b'{"\xff\xfe":1}'), "UTF-8|not valid JSON"),
    "two roots": (safetensors("{}{}", 8), "not valid JSON"),
    "NaN as an offset": (
        safetensors('{"a":{"dtype":"F32","shape":[2,4],"data_offsets":[NaN,32]}}', 32),
        "integers",
    ),
    "duplicate keys": (
        safetensors('{"a":' + json.dumps(entry()) + ',"a":' + json.dumps(entry()) + "}", 32),
        "duplicate",
    ),
    "duplicate inner keys": (safetensors('{"a":{"dtype":"F32","dtype":"F64"}}', 32), "duplicate"),
    "overlap": (safetensors({"a": entry(), "b": entry(offsets=(16, 48))}, 48), "overlap"),
    "same place": (safetensors({"a": entry(), "b": entry()}, 32), "overlap"),
    "out of range": (
        safetensors({"a": entry(offsets=(1 << 40, (1 << 40) + 32))}, 32),
        "exceeds the limit of 32",
    ),
    "offsets of 2^200": (
        safetensors({"a": entry(offsets=(1 << 200, (1 << 200) + 32))}, 32),
        "exceeds the limit of 32",
    ),
    "backwards": (safetensors({"a": entry(offsets=(32, 0))}, 32), "no range"),
    "negative offset": (safetensors({"a": entry(offsets=(-32, 0))}, 32), "no range"),
    "three offsets": (safetensors({"a": entry(offsets=(0, 16, 32))}, 32), "no range"),
    "no offsets": (safetensors({"a": {"dtype": "F32", "shape": [8]}}, 32), "integers"),
    "floats as offsets": (safetensors({"a": entry(offsets=(0.0, 32.0))}, 32), "integers"),
    "true as an offset": (safetensors({"a": entry((1, 1), (False, True), "U8")}, 32), "integers"),
    "shape overflow": (safetensors({"a": entry((1 << 32, 1 << 32))}, 32), r"values of a tensor: \d+ exceeds"),
    "shape of 2^64": (safetensors({"a": entry((1 << 64, 1), (0, 0))}, 32), "values of a tensor"),
    "shape hides behind zero": (safetensors({"a": entry((0, 1 << 60), (0, 0))}, 32), "values of a tensor"),
    "negative extent": (safetensors({"a": entry((-2, -4))}, 32), "negative extent: -2"),
    "rank of nine": (safetensors({"a": entry([1] * 9, (0, 4))}, 4), "tensor rank: 9 exceeds the limit of 8"),
    "rank of a million": (safetensors({"a": entry([1] * 1_000_000, (0, 4))}, 4), "exceeds the limit"),
    "a shape too large for its bytes": (safetensors({"a": entry((2, 5))}, 32), "claims 32 bytes"),
    "unknown dtype": (safetensors({"a": entry(dtype="F33")}, 32), "unknown dtype"),
    "dtype of a list": (safetensors({"a": entry(dtype=["F32"])}, 32), "unknown dtype"),
    "an entry that is no object": (safetensors({"a": 7}, 32), "expected a JSON object"),
    "metadata that is no object": (
        safetensors({"__metadata__": 7, "a": entry()}, 32),
        "expected a JSON object",
    ),
    "long name": (safetensors({"n" * 5000: entry()}, 32), "name: 5000 exceeds the limit of 4096"),
    "huge integer": (
        safetensors('{"a":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,4]}}', 4),
        "not valid JSON",
    ),
    "deep nesting": (safetensors('{"a":' * 30_000 + "1" + "}" * 30_000), "nesting depth"),
    "a terminal escape in a name": (safetensors({"\x1b]0;owned\x07": entry((2, 5))}, 32), "claims 32 bytes"),
    "a lone surrogate in a name": (safetensors('{"\\ud800":{"dtype":"F33"}}', 32), "unknown dtype"),
}
EXPLOSIONS: dict[str, tuple[Callable[[], bytes], str]] = {
    "100 MB of brackets": (lambda: safetensors(b"{" + FILLER[:-1]), "exceeds the limit"),
    "100 MB of objects": (lambda: safetensors((b'{"a":' * (20 << 20))[: 100 << 20]), "exceeds the limit"),
    "20 MB of empty lists": (
        lambda: safetensors(b'{"a":[' + b"[]," * 7_000_000 + b"[]]}"),
        "exceeds the limit",
    ),
    "20 MB of strings": (lambda: safetensors(b'{"a":[' + b'"",' * 7_000_000 + b'""]}'), "exceeds the limit"),
    "one string of 90 MB": (
        lambda: safetensors(b'{"a":"' + b"x" * (90 << 20) + b'"}'),
        "expected a JSON object",
    ),
    "one wide string of 40 MB": (
        lambda: safetensors(b'{"a":"' + "核".encode() * (10 << 20) + "\U0001f600".encode() + b'"}'),
        "expected a JSON object|exceeds the limit",
    ),
    "one emoji in 90 MB": (
        lambda: safetensors(b'{"a":"' + b"x" * (90 << 20) + "\U0001f600".encode() + b'"}'),
        "beyond U\\+FFFF: .* exceeds the limit",
    ),
    "one escaped emoji in 90 MB": (
        lambda: safetensors(b'{"a":"' + b"x" * (90 << 20) + b'\\ud83d\\ude00"}'),
        "beyond U\\+FFFF: .* exceeds the limit",
    ),
    "escapes of 60 MB": (
        lambda: safetensors(b'{"a":"' + b"\\u6838" * (10 << 20) + b'"}'),
        "expected a JSON object",
    ),
    "150,000 tensors without values": (lambda: safetensors(_tensors(150_000)), "exceeds the limit"),
    "a million tensors": (lambda: safetensors(_tensors(1_000_001)), "exceeds the limit"),
    "numbers of 4000 digits": (
        lambda: safetensors(b'{"a":[' + b"9" * 4000 + (b"," + b"9" * 4000) * 5000 + b"]}"),
        ".",
    ),
    "an ocean of blanks": (lambda: safetensors(b"{" + b" " * (90 << 20)), "not valid JSON"),
}


def _tensors(number: int) -> bytes:
    body = b",".join(b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(number))
    return b"{" + body + b"}"


# folders
CONFIG = '{"model_type": "llama", "hidden_size": 64}'


def weight_map(**places: str) -> str:
    """An index: tensor -> file."""
    return json.dumps({"weight_map": places})


INDEXES: dict[str, tuple[dict[str, Content], str]] = {
    "a shard outside": (
        {INDEX: weight_map(a="../../etc/passwd")},
        r"\.\./\.\./etc/passwd.*missing|leaves its folder",
    ),
    "an absolute shard": ({INDEX: weight_map(a="/etc/passwd")}, "/etc/passwd"),
    "a missing shard": ({INDEX: weight_map(a="x.safetensors")}, "shard 'x.safetensors' is missing"),
    "a tensor that no shard holds": (
        {INDEX: weight_map(a="x.safetensors", b="x.safetensors"), "x.safetensors": GOOD},
        "names tensor 'b'",
    ),
    "a tensor in two shards": (
        {
            INDEX: weight_map(a="x.safetensors", b="y.safetensors"),
            "x.safetensors": GOOD,
            "y.safetensors": safetensors({"a": entry(), "b": entry(offsets=(32, 64))}, 64),
        },
        "'a' is also in x.safetensors",
    ),
    "a tensor in the other shard": (
        {
            INDEX: weight_map(a="y.safetensors", b="x.safetensors"),
            "x.safetensors": GOOD,
            "y.safetensors": safetensors({"b": entry()}, 32),
        },
        "is in x.safetensors, not here",
    ),
    "no weight map": ({INDEX: "{}"}, "weight_map"),
    "a map of lists": ({INDEX: '{"weight_map": {"a": ["x.safetensors"]}}'}, "not a file name"),
    "duplicate names": ({INDEX: '{"weight_map": {"a": "x", "a": "y"}}'}, "duplicate"),
    "an index that is no JSON": ({INDEX: b"\x00\x01"}, "not valid JSON"),
    "a shard with terminal escapes": ({INDEX: weight_map(a="\x1b[2J.safetensors")}, r"missing|malformed"),
}
DOCUMENTS: dict[str, tuple[str, Content, str]] = {
    "config: list": ("config.json", "[]", "expected a JSON object"),
    "config: garbage": ("config.json", b"\xff\x00\xfe", "not valid JSON"),
    "config: empty": ("config.json", b"", "not valid JSON"),
    "config: duplicate key": ("config.json", '{"hidden_size":1,"hidden_size":2}', "duplicate"),
    "config: deep": ("config.json", '{"a":' * 50_000 + "1" + "}" * 50_000, "nesting depth"),
    "config: 9 MB": ("config.json", '{"a":"' + "x" * (9 << 20) + '"}', "exceeds the limit of 8388608"),
    "config: huge integer": ("config.json", '{"hidden_size":' + "9" * 5000 + "}", "not valid JSON"),
    "tokenizer: garbage": ("tokenizer.json", b"\x00" * 50, "not valid JSON"),
    "tokenizer: no model": ("tokenizer.json", "{}", "expected a JSON object"),
    "tokenizer: duplicate piece": (
        "tokenizer.json",
        '{"model":{"type":"BPE","vocab":{"a":1,"a":2}}}',
        "duplicate",
    ),
    "tokenizer: 3 million values": ("tokenizer.json", "[" + "0," * 3_000_000 + "0]", "exceeds the limit"),
    "vocabulary: no UTF-8": ("vocab.txt", b"\xff\xfe\x00", "UTF-8"),
    "vocabulary: a million lines": ("vocab.txt", b"a\n" * 1_100_000, "exceeds the limit"),
    "sentencepiece: length lies": ("tokenizer.model", b"\x0a\xff\xff\xff\xff\x0f", "tokenizer.model"),
    "sentencepiece: a million pieces": (
        "tokenizer.model",
        b"\x0a\x08\x0a\x01a\x15\0\0\0\0" * 1_060_000,
        "exceeds the limit",
    ),
    "sentencepiece: neither": ("tokenizer.model", b"\x89PNG", "neither"),
    "tiktoken: bad base64": ("x.tiktoken", b"!!!! 1\n", "x.tiktoken"),
    "tiktoken: huge rank": ("x.tiktoken", b"YWI= 99999999\n", "exceeds the limit"),
}
ONNX: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "garbage": (b"PK\x03\x04 not a model at all", "model.onnx"),
    "length lies": (bytes([7 << 3 | 2]) + b"\x80\x80\x80\x80\x80\x20", "claims 1099511627776 bytes"),
    "values missing": (initialiser(tensor(3, raw=b"1234")), "4 bytes of values, 12 expected"),
    "shape overflow": (initialiser(tensor(1 << 20, 1 << 20, 1 << 20)), "values of a tensor: .* exceeds"),
    "rank of nine": (initialiser(tensor(*[1] * 9)), "rank: 9 exceeds"),
    "a million graphs": (nested(1_000_000), "nesting depth of graphs: 33 exceeds"),
    "empty nodes": (part(7, part(1, b"") * 300_000), "exceeds the limit"),
    "many edges": (part(7, part(1, part(1, b"a") * 400_001)), "exceeds the limit"),
    "metadata": (part(14, part(1, b"k") + part(2, b"v")) * 200_000, "exceeds the limit"),
    "nameless": (initialiser(count(1, 4) + count(2, 1) + part(9, bytes(16))), "no name"),
    "two graphs": (many(lambda _: part(7, b""), 2), "more than one graph"),
}


def _folder_tricks() -> dict[str, Hostile]:
    nothing = "no part of a model"
    return {
        "an empty folder": Hostile(files_of({}), "", nothing),
        "a link out of the folder": Hostile(_link(WEIGHTS, "/etc/passwd"), "", nothing),
        "a link to a device": Hostile(_link("config.json", "/dev/zero"), "", nothing),
        "a link to itself": Hostile(_link("config.json", "config.json"), "", nothing),
        "a linked folder": Hostile(_link("weights", str(MODELS / "r0")), "", nothing),
        "a pipe": Hostile(_pipe(WEIGHTS), "", nothing),
        "a pipe by its own name": Hostile(
            _pipe(WEIGHTS), WEIGHTS, "neither a regular file nor a folder|no such file", WEIGHTS
        ),
        "a folder named as weights": Hostile(files_of({f"{WEIGHTS}/x": b""}), "", nothing),
        "a folder of that name as the model": Hostile(
            files_of({f"{WEIGHTS}/x": b""}), WEIGHTS, nothing, WEIGHTS
        ),
        "a name that is too long": Hostile(files_of({}), "nnnn", "no such file", "n" * 5000),
        "a name with a zero byte": Hostile(files_of({}), "a", "no such file", "a\0b"),
        "a name with terminal escapes": Hostile(
            files_of({"\x1b[31m.safetensors": b"x"}), "\\x1b[31m", "malformed", "\x1b[31m.safetensors"
        ),
        "weights of an unread kind": Hostile(files_of({"tf_model.h5": b"\x89HDF"}), "", nothing),
        "too many levels": Hostile(files_of({"d/" * 20 + "config.json": "{}"}), "", "depth of folders"),
        "several GGUF": Hostile(
            files_of({"a.gguf": b"GGUF", "b.gguf": b"GGUF"}), "", "several models in one folder"
        ),
        "a missing model": Hostile(files_of({}), "nowhere", "no such file", "nowhere"),
    }


def _link(name: str, target: str) -> Make:
    return lambda folder: os.symlink(target, folder / name)


def _pipe(name: str) -> Make:
    return lambda folder: os.mkfifo(folder / name)


def _registry() -> dict[str, Hostile]:
    """Every case under a unique name."""
    found: dict[str, Hostile] = {}
    for name, (data, says) in SAFETENSORS.items():
        found[f"safetensors: {name}"] = Hostile(files_of({WEIGHTS: data}), WEIGHTS, says)
    for name, (build, says) in EXPLOSIONS.items():
        found[f"safetensors: {name}"] = Hostile(_later(WEIGHTS, build), WEIGHTS, says, costly=True)
    for name, (content, says) in INDEXES.items():
        found[f"index: {name}"] = Hostile(files_of(content), "", says)
    for name, (file, text, says) in DOCUMENTS.items():
        found[name] = Hostile(files_of({file: text}), file, says, costly=len(text) > 1 << 20)
    for name, data in (LIES | DAMAGE).items():
        found[f"gguf: {name}"] = Hostile(
            files_of({"model.gguf": data}), "model.gguf", ".", costly=len(data) > 1 << 20
        )
    for name, (data, says) in ONNX.items():
        found[f"onnx: {name}"] = Hostile(
            files_of({"model.onnx": data}), "model.onnx", says, costly=len(data) > 1 << 20
        )
    for name, (file, build, says) in FORMATS.items():
        found[name] = Hostile(_later(file, build), file, says, costly=True)
    for name, build in PICKLES.items():
        file, says = "pytorch_model.bin", "exceeds the limit"
        found[f"torch: {name}"] = Hostile(_later(file, build), file, says, costly=True)
    for name, attack in bombs().items():
        found[f"torch: {name}"] = Hostile(files_of({attack.file: attack.data}), attack.file, ".", costly=True)
    return found | {f"folder: {name}": case for name, case in _folder_tricks().items()}


def _later(name: str, build: Callable[[], bytes]) -> Make:
    return lambda folder: files_of({name: build()})(folder)


HOSTILE = _registry()


def small(seed: int = 0) -> Checkpoint:
    """A complete model folder, as small as it can be analysed: every kind of file, two shards."""
    dice = np.random.default_rng(seed)
    shapes = {
        "model.embed_tokens.weight": (24, 32),
        "model.norm.weight": (32,),
        "model.layers.0.input_layernorm.weight": (32,),
        "model.layers.0.post_attention_layernorm.weight": (32,),
        **{f"model.layers.0.self_attn.{name}_proj.weight": (32, 32) for name in "qkvo"},
        "model.layers.0.mlp.gate_proj.weight": (48, 32),
        "model.layers.0.mlp.up_proj.weight": (48, 32),
        "model.layers.0.mlp.down_proj.weight": (32, 48),
    }
    tensors: Tensors = {
        name: (
            dice.standard_normal(shape, dtype=np.float32) if len(shape) == 2 else np.ones(shape, np.float32)
        )
        for name, shape in shapes.items()
    }
    pieces = {f"{chr(97 + i)}{chr(98 + j)}": 6 * i + j for i in range(4) for j in range(6)}
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    extras = {
        "README.md": "---\nlicense: apache-2.0\nbase_model: org/other\n---\n# Mine\nBased on org/other.\n",
        "LICENSE": "Apache License, Version 2.0",
        "modeling_x.py": "# Copyright 2023 Org\nclass A:\n    pass\n",
        "tokenizer_config.json": '{"bos_token": "ab", "tokenizer_class": "X", "chat_template": "{{ x }}"}',
    }
    tokenizer = {"model": {"type": "BPE", "vocab": pieces, "merges": []}, "added_tokens": []}
    return Checkpoint(tensors, config, tokenizer, shards=2, extras=extras)


def save_small(folder: Path, seed: int = 0) -> Path:
    """Writes :func:`small`; returns the folder."""
    return save(small(seed), folder)
