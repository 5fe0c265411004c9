"""What goes with the tensors: the map (``rename.json``), the request in words, files that stay as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drupe.convert.plan import Output, Plan, Source
from drupe.document import version
from drupe.errors import LimitError
from drupe.messages import Language, Message, msg
from drupe.name_groups import template_of
from drupe.readers.interface import TensorInfo
from drupe.readers.strict_json import Json
from drupe.signals import names
from drupe.sources.interface import Tree

SCHEMA = "drupe/rename/1.0"
MAX_KEPT = 64 << 20
"""Bytes of one file that is copied as it is; the largest tokenizers have 35 MB."""
KEPT = (
    *(
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json", "preprocessor_config.json"),
    "README.md",
)
KEPT_STARTS = ("license", "licence", "notice", "copying", "use_policy")
SHOWN = 64
"""Renames that the request lists."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was converted to what. ``modules``: old part of the names -> new one."""

    model: str
    like: str
    plan: Plan
    modules: Mapping[str, str]
    decoded: int = 0
    """Tensors that were packed and are written as float32."""

    @property
    def assembled(self) -> tuple[Output, ...]:
        """Outputs that are no stored tensor under another name."""
        return tuple(output for output in self.plan.outputs if not output.is_copy)

    @property
    def renamed(self) -> int:
        """Tensors that lie as they lay, under another name."""
        return sum(output.is_copy and output.name != output.tensors[0] for output in self.plan.outputs)


def conversion(model: str, like: str, made: Plan, tensors: Mapping[str, TensorInfo]) -> Conversion:
    """The plan with its renames in the fewest words."""
    modules = names.modules_of(
        (output.tensors[0], output.name) for output in made.outputs if len(output.tensors) == 1
    )
    decoded = sum(tensors[output.tensors[0]].is_quantised for output in made.outputs)
    return Conversion(model, like, made, modules, decoded)


def rename_json(made: Conversion, digests: Mapping[str, str]) -> bytes:
    """The map, tensor by tensor, so that anyone can repeat or undo it; SHA-256 of the bytes as stored."""
    tensors: list[Json] = []
    for output in made.plan.outputs:
        entry: dict[str, Json] = {"name": output.name, "from": list(output.tensors)}
        if not output.is_copy:
            entry["rows"] = [_rows(source) for source in output.sources]
            entry["transposed"] = output.transposed
        if output.name in digests:
            entry["sha256"] = digests[output.name]
        tensors.append(entry)
    table: dict[str, Json] = {
        "schema": SCHEMA,
        "tool": {"name": "drupe", "version": version()},
        "model": made.model,
        "like": made.like,
        "modules": dict(made.modules),
        "tensors": tensors,
        "dropped": list(made.plan.dropped),
    }
    return (json.dumps(table, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def _rows(source: Source) -> dict[str, Json]:
    piece = source.piece
    taken, put = piece.part, source.rows
    return {
        "role": piece.key[0],
        "tensor": piece.tensor,
        "transposed": piece.transposed,
        "expert": piece.expert,
        "rows": {"start": taken.start, "count": taken.rows, "run": taken.run, "stride": taken.stride},
        "to": {"start": put.start, "run": put.run, "stride": put.stride, "expert": source.expert},
    }


def pull_request(made: Conversion, command: str) -> bytes:
    """The request to the model's authors, English then Chinese, in Markdown."""
    return "\n---\n\n".join(_request(made, command, language) for language in ("en", "zh")).encode("utf-8")


def _request(made: Conversion, command: str, language: Language) -> str:
    def say(key: str, **values: object) -> str:
        return msg(f"convert.request.{key}", **{k: str(v) for k, v in values.items()}).text(language)

    like = _quoted(made.like)
    lines = [f"# {say('title', like=like)}", "", say("why", like=like), "", f"## {say('what')}", ""]
    lines.append(say("copied", count=made.renamed, total=len(made.plan.outputs)))
    if made.modules:
        lines += ["", f"| {say('old')} | {say('new')} |", "|---|---|"]
    lines += [f"| {_quoted(old)} | {_quoted(new)} |" for old, new in list(made.modules.items())[:SHOWN]]
    for message in (*_assembled(made), *_dropped(made)):
        lines += ["", message.text(language)]
    if made.decoded:
        lines += ["", say("decoded", count=made.decoded)]
    lines += ["", f"## {say('same')}", "", say("values"), "", say("licence", like=like), ""]
    fence = "`" * (3 + max((len(run) for run in re.findall(r"`+", command)), default=0))
    lines += [f"## {say('check')}", "", fence, command, fence, "", say("map"), ""]
    return "\n".join(lines)


def _assembled(made: Conversion) -> Sequence[Message]:
    found = dict.fromkeys(
        (template_of(output.name)[0], ", ".join(dict.fromkeys(template_of(t)[0] for t in output.tensors)))
        for output in made.assembled
    )
    return [
        msg("convert.request.assembled", new=_quoted(new), old=_quoted(old))
        for new, old in list(found)[:SHOWN]
    ]


def _dropped(made: Conversion) -> Sequence[Message]:
    found = dict.fromkeys(template_of(name)[0] for name in made.plan.dropped)
    return [msg("convert.request.dropped", name=_quoted(name)) for name in list(found)[:SHOWN]]


def _quoted(text: str) -> str:
    """A stranger's text as code in Markdown: no control characters, no way out of the quotes or the table."""
    clean = "".join(char if char.isprintable() and char not in "`|" else "?" for char in text[:200])
    return f"`{clean}`"


def kept_files(tree: Tree) -> dict[str, bytes]:
    """Tokenizer, card and licence files of the model, unchanged. Raises LimitError."""
    found = {}
    for file, size in tree.files().items():
        if "/" in file or not (file in KEPT or file.lower().startswith(KEPT_STARTS)):
            continue
        if size > MAX_KEPT:
            raise LimitError("bytes of a file that is copied", limit=MAX_KEPT, actual=size, where=file)
        found[file] = tree.open(file).read(0, size)
    return found
