"""A conversion, step by step: open both sides, plan, write, verify. ``workflows.convert`` calls these in order."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drupe import graph
from drupe.configurations import table
from drupe.convert import blueprint, config
from drupe.convert.blueprint import Blueprint
from drupe.convert.pieces import Inventory, inventory
from drupe.convert.plan import Plan, check_dtypes, plan
from drupe.convert.request import Conversion, conversion, kept_files, pull_request, rename_json
from drupe.convert.running import Run
from drupe.convert.values import Values
from drupe.convert.writer import Done, shards_of, workplace, write_shards
from drupe.errors import LocatorError, UnsupportedError
from drupe.files import write_atomically
from drupe.graph_tensors import graph_of_tensors
from drupe.model import Model, open_model
from drupe.readers.config import Config
from drupe.readers.interface import Absent, TensorInfo
from drupe.readers.wrapping import headers_of
from drupe.recover.tensors import match_tensors
from drupe.roles import Roles
from drupe.signals import genome, names, structure
from drupe.sources.local import LocalBlob
from drupe.sources.locator import open_tree

_COMPUTED = frozenset({"norm", "placement", "residual", "ffn", "qk_norm", "positions", "window", "softcap"})
"""Questions whose answer neither the names nor the keys of a configuration carry over."""
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


def plan_for(model: Model, target: Blueprint, source: Model | None) -> Plan:
    """Every tensor of the model in its place: by its role, else by its name, else by its values."""
    assert not isinstance(model.weights, Absent)
    parts = parts_of(model)
    _check_meaning(model.roles, target)
    _check_graph(model, target)
    made = plan(parts, target, _heads(model), _named(model, parts, source))
    check_dtypes(made, model.weights.tensors)
    return made


def _named(model: Model, parts: Inventory, source: Model | None) -> dict[str, str]:
    """What the source calls the tensors that have no role."""
    if source is None or not parts.unnamed:
        return {}
    assert not isinstance(model.weights, Absent)
    assert not isinstance(source.weights, Absent)
    theirs = parts_of(source)
    ours = [model.weights.tensors[name] for name in parts.unnamed]
    free = [source.weights.tensors[name] for name in (theirs.shapes if not parts.pieces else theirs.unnamed)]
    found = names.translate(ours, free)
    taken = set(found.values())
    rest = [info.name for info in ours if info.name not in found]
    return found | match_tensors(model, source, rest, [info.name for info in free if info.name not in taken])


def _check_meaning(roles: Roles, target: Blueprint) -> None:
    """Raise UnsupportedError where equal names stand for other sums: a new name would change what is computed."""
    ours, theirs = roles.scheme, target.roles.scheme
    if ours is None or theirs is None:
        return
    hint = "choose a source or scheme that computes the same"
    if ours.norm_offset != theirs.norm_offset:
        first, second = f"{ours.norm_offset:g}", f"{theirs.norm_offset:g}"
        problem = f"{ours.title} stores norm gains less {first}, {theirs.title} less {second}"
        raise UnsupportedError(problem, hint=hint)
    if ours.norm_after != theirs.norm_after:
        first, second = ("after", "before") if ours.norm_after else ("before", "after")
        problem = f"{ours.title} has its norms {first} each sublayer, {theirs.title} {second}"
        raise UnsupportedError(problem, hint=hint)


def _check_graph(model: Model, target: Blueprint) -> None:
    """Raise UnsupportedError where what lies between the tensors differs, as far as both sides tell."""
    assert not isinstance(model.weights, Absent)
    own = None if isinstance(model.config, Absent) else model.config
    mine = _graph(own, list(model.weights.tensors.values()), model.roles)
    theirs = _graph(target.config, list(target.tensors.values()), target.roles)
    told = [name for name in graph.differences(mine, theirs) if name in _COMPUTED]
    if told:
        ours = ", ".join(f"{name} {getattr(mine, name)}" for name in told)
        wanted = ", ".join(f"{name} {getattr(theirs, name)}" for name in told)
        raise UnsupportedError(
            f"the names fit, but the model computes something else than {target.title}: {ours}; there {wanted}",
            hint="choose a source or scheme that computes the same",
        )


def _graph(own: Config | None, tensors: Sequence[TensorInfo], roles: Roles) -> graph.Graph:
    """Tensors and configuration together; tensors alone where the class is not known, whose settings are guesses."""
    if own is None or own.model_type not in table().by_type:
        return graph_of_tensors(tensors, roles)
    places = {name: (role.name, role.layer) for name, role in roles.by_tensor.items()}
    return genome.extract(structure.extract(own, tensors, places), tensors, roles).graph


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
) -> Written:
    """Tensors, map, configuration, tokenizer, request: a folder that is complete or not there."""
    values = Values(model)
    shards = shards_of(made.plan.outputs, values, shard_size)
    with workplace(target, sum(shard.size for shard in shards)) as folder:
        identity = _identity(model, made, shard_size, digests)
        found = write_shards(folder, shards, values, identity, done, digests=digests)
        for name, content in _small_files(model, made, target_names, found).items():
            write_atomically(folder / name, content)
    return Written(target, len(made.plan.outputs), len(shards), sum(shard.size for shard in shards))


def _small_files(
    model: Model, made: Conversion, target: Blueprint, digests: Mapping[str, str]
) -> dict[str, bytes]:
    files = kept_files(model.tree)
    own = None if isinstance(model.config, Absent) else model.config
    settings = config.converted(own, target, made.plan)
    if settings is not None:
        files["config.json"] = settings
    files[RENAME] = rename_json(made, digests)
    command = f"drupe convert {made.model} --like {made.like} -o converted"
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
    """A locator as others may read it: no folder of this machine."""
    return Path(locator).resolve().name if os.path.exists(locator) else locator
