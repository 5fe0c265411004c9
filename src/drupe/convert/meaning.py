"""Would the target's class compute the same? What names and shapes cannot say, refused where it cannot be known.

Three answers: yes, as far as both sides tell; no (UnsupportedError); and only by running, between two classes that
transformers knows, since names and settings that are equal do not make equal sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drupe import graph
from drupe.configurations import table
from drupe.convert.blueprint import Blueprint
from drupe.convert.plan import Plan
from drupe.errors import UnsupportedError
from drupe.graph_tensors import graph_of_tensors
from drupe.model import Model
from drupe.readers.config import Config
from drupe.readers.interface import Absent, TensorInfo
from drupe.readers.strict_json import Json
from drupe.roles import Roles, assign_roles
from drupe.signals import genome, structure

COMPUTED = frozenset({"norm", "placement", "residual", "ffn", "qk_norm", "positions", "window", "softcap"})
"""Questions of the graph whose answer neither the names nor the keys of a configuration carry over."""
SCALING: Mapping[str, Json] = {
    "attention_multiplier": None,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "logit_scale": None,
    "query_pre_attn_scalar": None,
    "partial_rotary_factor": 1.0,
    "rope_parameters.partial_rotary_factor": 1.0,
    "no_rope_layers": None,
    "multi_query": False,
    "scale_embedding": False,
    "clip_qkv": None,
    "use_scaled_rope": False,
}
"""Settings that change what is computed and that some classes read, others ignore: their neutral value, if any."""
_CARRIED = frozenset(
    {
        *("vocab_size", "attention.key_length", "attention.value_length", "rope.dimension_count"),
        *("tensor_data_layout", "attention.causal", "expert_gating_func"),
    }
)
"""Keys of a GGUF header, behind its architecture, that tensors show or that say nothing of the sums."""
_HINT = "choose a source or scheme that computes the same"


def check(model: Model, target: Blueprint, made: Plan, *, run: bool) -> None:
    """Raise UnsupportedError when the result would load and compute something else, or when only running can tell.

    ``run``: it will be loaded and compared with the original in a class of its own.
    """
    assert not isinstance(model.weights, Absent)
    own = None if isinstance(model.config, Absent) else model.config
    tensors = list(model.weights.tensors.values())
    _check_roles(model.roles, target.roles)
    renamed = [
        TensorInfo(output.name, output.shape, "F32", "") for output in made.outputs
    ]  # names that tell roles
    roles = assign_roles(
        renamed, {target.config.model_type} if target.config and target.config.model_type else ()
    )
    _check_graph(_graph(own, renamed, roles), target)
    if own is not None:
        _check_settings(own.raw, target)
        if model.weights.format.startswith("gguf"):
            _check_gguf(own, tensors)
    _check_classes(own, target, run=run)


def is_between_classes(own: Config | None, target: Blueprint) -> bool:
    """Whether both are classes that transformers knows, and not the same."""
    if own is None or target.config is None or own.model_type == target.config.model_type:
        return False
    known = table().by_type
    return own.model_type in known and target.config.model_type in known


def _check_classes(own: Config | None, target: Blueprint, *, run: bool) -> None:
    if is_between_classes(own, target) and not run:
        kind = own.model_type if own is not None else None
        problem = f"{kind} and {target.title} are classes of their own: the names may fit and the sums differ"
        raise UnsupportedError(
            problem, hint="add --run, which compares their logits (pip install 'drupe[run]')"
        )


def _check_roles(ours: Roles, theirs: Roles) -> None:
    """What a naming scheme says of the stored values."""
    first, second = ours.scheme, theirs.scheme
    if first is None or second is None:
        return
    if first.norm_offset != second.norm_offset:
        stored, wanted = f"{first.norm_offset:g}", f"{second.norm_offset:g}"
        problem = f"{first.title} stores norm gains less {stored}, {second.title} less {wanted}"
        raise UnsupportedError(problem, hint=_HINT)
    if first.norm_after != second.norm_after:
        before, after = ("after", "before") if first.norm_after else ("before", "after")
        problem = f"{first.title} has its norms {before} each sublayer, {second.title} {after}"
        raise UnsupportedError(problem, hint=_HINT)


def _check_graph(mine: graph.Graph, target: Blueprint) -> None:
    """What lies between the tensors, as far as both sides tell."""
    theirs = _graph(target.config, list(target.tensors.values()), target.roles)
    told = [name for name in graph.differences(mine, theirs) if name in COMPUTED]
    if told:
        ours = ", ".join(f"{name} {getattr(mine, name)}" for name in told)
        wanted = ", ".join(f"{name} {getattr(theirs, name)}" for name in told)
        problem = f"the names fit, but the model computes something else than {target.title}: {ours}; there {wanted}"
        raise UnsupportedError(problem, hint=_HINT)


def _graph(own: Config | None, tensors: Sequence[TensorInfo], roles: Roles) -> graph.Graph:
    """Tensors and configuration together; tensors alone where the class is not known, whose settings are guesses."""
    if own is None or own.model_type not in table().by_type:
        return graph_of_tensors(tensors, roles)
    places = {name: (role.name, role.layer) for name, role in roles.by_tensor.items()}
    return genome.extract(structure.extract(own, tensors, places), tensors, roles).graph


def _check_settings(raw: Mapping[str, Json], target: Blueprint) -> None:
    """Multipliers and the like that one side reads and the other does not mention."""
    theirs = {} if target.config is None else target.config.raw
    for key, neutral in SCALING.items():
        ours, wanted = _value(raw, key), _value(theirs, key)
        if (ours is None) == (wanted is None):
            continue
        stated = wanted if ours is None else ours
        if neutral is None or stated != neutral:
            where = "its class reads" if ours is None else "the model states"
            raise UnsupportedError(
                f"{where} {key} = {str(stated)[:40]}, the other side does not know it", hint=_HINT
            )


def _value(raw: Mapping[str, Json], path: str) -> Json:
    value: Json = dict(raw)
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _check_gguf(own: Config, tensors: Sequence[TensorInfo]) -> None:
    """A header may hold settings, and a tensor a scaling of the rotary frequencies, that no key of a target takes."""
    carried = set(own.spelled.values())
    prefix = f"{own.model_type}."
    lost = sorted(
        key
        for key in own.raw
        if key.startswith(prefix) and key not in carried and key.removeprefix(prefix) not in _CARRIED
    )
    if lost:
        raise UnsupportedError(f"the header says {', '.join(lost[:6])}, which would be lost", where=own.file)
    if any("rope_freqs" in tensor.name or "rope_factors" in tensor.name for tensor in tensors):
        problem = "rope_freqs holds a scaling of the rotary frequencies, which would be lost"
        raise UnsupportedError(problem, where=own.file, hint="convert the original checkpoint")
    heads, hidden = own.canonical.get("num_attention_heads"), own.canonical.get("hidden_size")
    turned = own.raw.get(f"{prefix}rope.dimension_count")
    size = own.raw.get(f"{prefix}attention.key_length")
    if isinstance(heads, int) and isinstance(hidden, int) and size is None:
        size = hidden // heads
    if turned is not None and size is not None and turned != size:
        raise UnsupportedError("only a part of each head is rotated, which would be lost", where=own.file)
