"""A conversion, step by step: open both sides, plan, write, verify. ``workflows.convert`` calls these in order."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from drupe.convert import blueprint, config, meaning
from drupe.convert.blueprint import Blueprint, layers_of, tower_of
from drupe.convert.heads import with_copy, without_copy
from drupe.convert.pieces import Inventory, inventory
from drupe.convert.plan import Plan, check_dtypes, plan
from drupe.convert.request import Conversion, conversion, kept_files, pull_request, rename_json
from drupe.convert.row_order import reordered
from drupe.convert.running import Run
from drupe.convert.running import run as run_check
from drupe.convert.values import Values
from drupe.convert.writer import Done, clean, shards_of, workplace, write_shards
from drupe.errors import LocatorError, UnsupportedError
from drupe.files import write_atomically
from drupe.model import Model, open_model
from drupe.readers.interface import Absent
from drupe.readers.wrapping import headers_of
from drupe.recover.tensors import match_tensors
from drupe.signals import names
from drupe.sources.local import LocalBlob
from drupe.sources.locator import open_tree

RENAME, REQUEST = "rename.json", "PULL_REQUEST.md"


@dataclass(frozen=True, slots=True)
class Written:
    """What a conversion left behind."""

    target: Path
    tensors: int
    files: int
    size: int
    run: Run | None = None


def open_weights_of(locator: str, *, offline: bool) -> Model:
    """A model with weights. Raises LocatorError without them and UnsupportedError for an adapter alone."""
    model = open_model(open_tree(locator, offline=offline))
    if isinstance(model.weights, Absent):
        raise LocatorError("there are no weights to convert", where=locator)
    if model.adapter is not None:
        raise UnsupportedError("an adapter alone cannot be converted", where=locator, hint="convert its base")
    return model


def target_of(like: str, *, offline: bool) -> tuple[Blueprint, Model | None]:
    """A shipped scheme by its name, else a model whose names are taken."""
    here = os.path.exists(like)
    if not here and (like in blueprint.names() or (":" not in like and "/" not in like)):
        return blueprint.of_scheme(like), None
    model = open_weights_of(like, offline=offline)
    return blueprint.of_model(model, _public(like)), model


def plan_for(model: Model, target: Blueprint, source: Model | None, *, run: bool = False) -> Plan:
    """Every tensor of the model in its place: by its role, else by its name, else by its values."""
    assert not isinstance(model.weights, Absent)
    parts, dropped = without_copy(parts_of(model), target, Values(model))
    made = plan(parts, target, _heads(model), _named(model, parts, source))
    made = with_copy(replace(made, dropped=(*made.dropped, *dropped)), parts, target)
    if parts.pieces and target.parts.paired_rows != parts.paired_rows:
        made = reordered(made, parts, _heads(model), to_pairs=target.parts.paired_rows)
    check_dtypes(made, model.weights.tensors)
    meaning.check(model, target, made, run=run)
    return made


def _named(model: Model, parts: Inventory, source: Model | None) -> dict[str, str]:
    """What the source calls the tensors that have no role."""
    if source is None or not parts.unnamed:
        return {}
    assert not isinstance(model.weights, Absent)
    assert not isinstance(source.weights, Absent)
    ours = [model.weights.tensors[name] for name in parts.unnamed]
    free = [source.weights.tensors[name] for name in _free(parts, parts_of(source))]
    found = names.translate(ours, free)
    taken = set(found.values())
    rest = [info.name for info in ours if info.name not in found]
    return found | match_tensors(model, source, rest, [info.name for info in free if info.name not in taken])


def _free(ours: Inventory, theirs: Inventory) -> list[str]:
    """Tensors of the source, in its order, that no role of the model will fill."""
    first = {tower: min(layers) for tower, layers in layers_of(ours).items()}
    shift = {
        tower: first.get(tower, min(layers)) - min(layers) for tower, layers in layers_of(theirs).items()
    }
    filled = {
        piece.tensor
        for (role, layer), piece in theirs.pieces.items()
        if (role, None if layer is None else layer + shift[tower_of(role)]) in ours.pieces
    }
    return [name for name in theirs.shapes if name not in filled]


def parts_of(model: Model) -> Inventory:
    """The tensors of a model, taken apart."""
    assert not isinstance(model.weights, Absent)
    return inventory(list(model.weights.tensors.values()), model.roles, _heads(model))


def _heads(model: Model) -> int | None:
    heads = None if isinstance(model.config, Absent) else model.config.canonical.get("num_attention_heads")
    return heads if isinstance(heads, int) else None


def describe(model: Model, locator: str, target: Blueprint, made: Plan) -> Conversion:
    """The conversion in the fewest words."""
    assert not isinstance(model.weights, Absent)
    return conversion(_public(locator), target.title, made, model.weights.tensors)


def write_map(made: Conversion, target: Path) -> None:
    """The map alone, in a new folder."""
    with workplace(target, 0) as folder:
        clean(folder)
        write_atomically(folder / RENAME, rename_json(made, {}))


def write_all(
    model: Model,
    made: Conversion,
    target_names: Blueprint,
    target: Path,
    done: Done,
    *,
    shard_size: int,
    digests: bool,
    run: bool = False,
) -> Written:
    """Tensors, map, configuration, tokenizer, request: a folder that is complete or not there.

    ``run``: only when it loads in its class and computes what the original computes.
    """
    values = Values(model)
    shards = shards_of(made.plan.outputs, values, shard_size)
    with workplace(target, sum(shard.size for shard in shards)) as folder:
        identity = _identity(model, made, shard_size, digests)
        found = write_shards(folder, shards, values, identity, done, digests=digests)
        for name, content in _small_files(model, made, target_names, found).items():
            write_atomically(folder / name, content)
        own = None if isinstance(model.config, Absent) else model.config
        proof = (
            run_check(model, made.plan, folder, meaning.is_between_classes(own, target_names))
            if run
            else None
        )
    size = sum(shard.size for shard in shards)
    return Written(target, len(made.plan.outputs), len(shards), size, proof)


def _small_files(
    model: Model, made: Conversion, target: Blueprint, digests: Mapping[str, str]
) -> dict[str, bytes]:
    files = kept_files(model.tree)
    own = None if isinstance(model.config, Absent) else model.config
    settings = config.converted(own, target, made.plan, parts_of(model))
    if settings is not None:
        files[settings[0]] = settings[1]
    files[RENAME] = rename_json(made, digests)
    command = shlex.join(["drupe", "convert", made.model, "--like", made.like, "-o", "converted"])
    files[REQUEST] = pull_request(made, command)
    return files


def _identity(model: Model, made: Conversion, *settings: int) -> str:
    """What must be the same for a broken run to be gone on with: the files, the plan, the shards."""
    assert not isinstance(model.weights, Absent)
    digest = hashlib.sha256(rename_json(made, {}))
    for name, header in sorted(headers_of(model.weights).items()):
        digest.update(name.encode("utf-8", "replace") + header)
        blob = model.tree.open(name)
        digest.update(str(blob.modified if isinstance(blob, LocalBlob) else "").encode())
    digest.update(json.dumps([settings, sorted(model.tree.files().items()), model.tree.revision]).encode())
    return digest.hexdigest()


def _public(locator: str) -> str:
    """A locator as others may read it: no folder of this machine, no address with its credentials."""
    if not os.path.exists(locator) and locator.startswith(("hf:", "ms:", "ollama:")):
        return locator
    place = (
        str(Path(locator).resolve())
        if os.path.exists(locator)
        else locator.partition("?")[0].partition("#")[0]
    )
    name = place.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return "".join(char if char.isprintable() else "?" for char in name) or "model"
