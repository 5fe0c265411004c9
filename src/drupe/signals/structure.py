"""The module graph and its sizes: which matrices a layer holds, how many layers, how wide.

The graph is judged from the tensors, never from ``model_type``, which may lie. With roles: the set of roles
of each kind of layer (fused matrices taken apart, orientation ignored). Without: how many matrices of each
kind, relative to the hidden size, a layer holds. From configurations alone only an agreeing ``model_type``
can stand for the graph, and the finding says so. ``identical``: same graph and sizes; ``equivalent``: same
graph, other sizes, or other parts around the same layers (a missing pooler). Most decoders share one graph.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from drupe.messages import Message, msg
from drupe.readers.config import Config, Scalar, flatten, text
from drupe.readers.interface import TensorInfo
from drupe.signals.interface import Component, Evidence, Finding, Measured, Skipped

RelationHint = Literal["identical", "equivalent", "independent", "inconclusive"]
RoleOf = Mapping[str, tuple[str, int | None]]
NO_ROLES: RoleOf = MappingProxyType({})

MIN_EXTENT = 8
"""Smaller matrices (token types, scales, tables of an exporter) do not shape a graph."""
MIN_ROLE_SHARE = 0.9
"""Share of the values in matrices that must have known roles before roles decide."""
MIN_COMMON_FIELDS = 5
"""Canonical fields that two configurations must share before they are compared without tensors."""
MAX_SETTINGS, MAX_KINDS, MAX_DEPTH = 96, 512, 4096
"""Plain entries of a configuration, sizes of matrices, and layers that are considered."""
MAX_EXTRA = 2
"""Matrices of one size outside of the layers (embedding, position, head, pooler)."""
_OPTIONAL = ("head", "pooler", "position_ids", "mask", "rotary", "lm_head")
"""Roles around the layers that come and go with the export (tied head, pooler) or hold no parameters."""
_SIZE_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_decoder_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "intermediate_size", "moe_intermediate_size", "num_experts", "vocab_size"),
)


@dataclass(frozen=True, slots=True)
class Matrices:
    """``count`` matrices of one size; the smaller extent first (1-D and tiny tensors left out)."""

    low: int
    high: int
    count: int


@dataclass(frozen=True, slots=True)
class StructureFacts:
    """Portable: configuration, roles by kind of layer, matrices by size.

    ``layer_kinds``: "role role ..." -> number of layers; ``outer``: roles outside of them; ``hidden``: the
    extent that most matrices share; ``depth``: number of layers (0: not known).
    """

    canonical: Mapping[str, int | float | str | bool]
    spelled: Mapping[str, str]
    settings: Mapping[str, int | float | str | bool]
    model_type: str | None
    architectures: tuple[str, ...]
    parameters: int
    tensors: int
    hidden: int
    depth: int
    matrices: tuple[Matrices, ...]
    layer_kinds: Mapping[str, int]
    outer: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StructureResult:
    """How the two graphs relate, as far as they can be read."""

    relation_hint: RelationHint
    findings: tuple[Finding, ...]


def extract(config: Config | None, tensors: Sequence[TensorInfo], roles: RoleOf = NO_ROLES) -> StructureFacts:
    """The facts of one model. ``roles``: tensor name -> (role, layer), unknown names left out or unsure."""
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1 and min(_extents(tensor)) >= MIN_EXTENT]
    kinds, outer = _graph(matrices, tensors, roles)
    sizes = Counter(_extents(tensor) for tensor in matrices)
    hidden = _hidden(sizes)
    canonical = dict(config.canonical) if config else {}
    return StructureFacts(
        canonical=canonical,
        spelled=dict(config.spelled) if config else {},
        settings=_settings(config) if config else {},
        model_type=config.model_type if config else None,
        architectures=config.architectures if config else (),
        parameters=sum(tensor.size for tensor in tensors),
        tensors=len(tensors),
        hidden=hidden,
        depth=_depth(canonical, sizes, hidden),
        matrices=tuple(Matrices(*size, count) for size, count in sorted(sizes.items())[:MAX_KINDS]),
        layer_kinds=kinds,
        outer=outer,
    )


def _extents(tensor: TensorInfo) -> tuple[int, int]:
    """The two largest extents, smaller first: orientation and leading expert axes do not matter."""
    low, high = sorted(tensor.shape)[-2:]
    return low, high


def _hidden(sizes: Mapping[tuple[int, int], int]) -> int:
    """The extent that most matrices share."""
    votes: Counter[int] = Counter()
    for size, count in sizes.items():
        for extent in set(size):
            votes[extent] += count
    return max(votes, key=lambda extent: (votes[extent], -extent)) if votes else 0


def _depth(canonical: Mapping[str, Scalar], sizes: Mapping[tuple[int, int], int], hidden: int) -> int:
    """Number of layers: as stated when the matrices repeat that often, else their period."""
    counts = [count for size, count in sizes.items() if hidden in size]
    stated = canonical.get("num_hidden_layers", 0)
    if (
        isinstance(stated, int)
        and stated
        and any(count >= stated and count % stated == 0 for count in counts)
    ):
        return stated
    return _period(counts)


def _period(counts: Sequence[int]) -> int:
    """The largest number of repeats that leaves at most MAX_EXTRA matrices of each size over; 0 if none."""
    top = min(max(counts, default=0), MAX_DEPTH)
    return next((n for n in range(top, 1, -1) if all(count % n <= MAX_EXTRA for count in counts)), 0)


def _settings(config: Config) -> dict[str, Scalar]:
    """The plain entries of a configuration, without texts and numbers that no real one holds."""
    plain = {
        key: value
        for key, value in flatten(config.raw).items()
        if (isinstance(value, str) and len(value) <= 64 and text(value) == value)
        or (isinstance(value, int | float) and abs(value) < 1e18)  # False for NaN
    }
    return {
        key: plain[key]
        for key in sorted(plain, key=lambda key: (len(key), key))[:MAX_SETTINGS]
        if text(key) == key
    }


def _graph(
    matrices: Sequence[TensorInfo], tensors: Sequence[TensorInfo], roles: RoleOf
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Kinds of layers with their numbers and the roles outside; empty when too few roles are known."""
    known = {name: role for name, role in roles.items() if "." not in role[0] and "{" not in role[0]}
    total = sum(tensor.size for tensor in matrices)
    if sum(tensor.size for tensor in matrices if tensor.name in known) < MIN_ROLE_SHARE * total or not total:
        return {}, ()
    layers: dict[int, set[str]] = defaultdict(set)
    outer: set[str] = set()
    for tensor in tensors:
        role, layer = known.get(tensor.name, ("", None))
        (outer if layer is None else layers[layer]).update(
            part for part in _parts(role) if part not in _OPTIONAL
        )
    counted = Counter(" ".join(sorted(parts)) for parts in layers.values() if parts)
    return dict(counted.most_common(MAX_KINDS)), tuple(
        sorted(part for part in outer if part.split("_")[0] not in _OPTIONAL)
    )


def _parts(role: str) -> Iterable[str]:
    """A fused role is its parts: q+k+v holds the same modules as q, k and v."""
    return ("q_bias", "k_bias", "v_bias") if role == "qkv_bias" else filter(None, role.split("+"))


def compare(suspect: StructureFacts, source: StructureFacts) -> StructureResult:
    """Whether both have one module graph, and what their configurations share."""
    config = _config_finding(suspect, source)
    if not suspect.matrices or not source.matrices:
        hint, reason = _from_configs(suspect, source)
        return StructureResult(hint, (Skipped("structure.graph", Component.ARCHITECTURE, reason), *config))
    if suspect.layer_kinds and source.layer_kinds:
        judge, basis = _roles_agree, msg("structure.by_roles")
    else:
        judge, basis = _shapes_agree, msg("structure.by_shapes")
    same, differences = judge(suspect, source)
    hint = _hint(same, suspect, source, differences)
    return StructureResult(hint, (_graph_finding(suspect, source, differences, basis), *config))


def _roles_agree(a: StructureFacts, b: StructureFacts) -> tuple[bool | None, list[Message]]:
    ours, theirs = set(" ".join(a.layer_kinds).split()), set(" ".join(b.layer_kinds).split())
    differences = [msg("structure.only_suspect", what=role) for role in sorted(ours - theirs)]
    differences += [msg("structure.only_source", what=role) for role in sorted(theirs - ours)]
    outer = set(a.outer) ^ set(b.outer)
    differences += [msg("structure.outside", what=role) for role in sorted(outer)]
    return set(a.layer_kinds) == set(b.layer_kinds) and not outer & {
        "position",
        "embed_norm",
        "token_type",
    }, differences


def _shapes_agree(a: StructureFacts, b: StructureFacts) -> tuple[bool | None, list[Message]]:
    """The same matrices per layer? None when they cannot be counted or only their kinds differ."""
    if a.matrices == b.matrices:
        return True, []
    ours, theirs = _per_layer(a), _per_layer(b)
    if not ours or not theirs:
        return None, [msg("structure.no_layers")]
    differences = [
        msg("structure.per_layer", what=kind, suspect=ours[kind], source=theirs[kind])
        for kind in sorted(ours | theirs)
        if ours[kind] != theirs[kind]
    ]
    if differences and ours.total() == theirs.total():
        return None, differences
    return not differences, differences


def _per_layer(facts: StructureFacts) -> Counter[str]:
    """Matrices in a period: ``inner`` (attention; a fused one counts three), ``wide`` (FFN), ``apart``."""
    counts: Counter[str] = Counter()
    period = _period([m.count for m in facts.matrices if facts.hidden in (m.low, m.high)])
    for m in facts.matrices if period else ():
        kind, weight = "inner", 1
        if facts.hidden not in (m.low, m.high):
            kind = "apart"
        elif m.high > facts.hidden:
            fused = m.count == period and (m.high <= 2 * facts.hidden or m.high == 3 * facts.hidden)
            kind, weight = ("inner", 3) if fused else ("wide", 1)
        counts[kind] += weight * (m.count // period)
    return +counts


def _hint(
    same: bool | None, a: StructureFacts, b: StructureFacts, differences: Sequence[Message]
) -> RelationHint:
    if same is None:
        return "inconclusive"
    if not same:
        return "independent"
    return "identical" if a.matrices == b.matrices and not differences else "equivalent"


def _from_configs(a: StructureFacts, b: StructureFacts) -> tuple[RelationHint, Message]:
    shared = [field for field in _SIZE_FIELDS if field in a.canonical and field in b.canonical]
    if len(shared) < MIN_COMMON_FIELDS or a.model_type is None:
        return "inconclusive", msg("structure.no_tensors")
    if a.model_type != b.model_type:
        return "inconclusive", msg("structure.other_type", suspect=a.model_type, source=b.model_type)
    same = all(a.canonical[field] == b.canonical[field] for field in shared)
    return ("identical" if same else "equivalent"), msg("structure.config_only", count=len(shared))


def _graph_finding(a: StructureFacts, b: StructureFacts, told: Sequence[Message], basis: Message) -> Measured:
    ours, theirs = (Counter({(m.low, m.high): m.count for m in facts.matrices}) for facts in (a, b))
    shared, total = sum((ours & theirs).values()), sum((ours | theirs).values())
    return Measured(
        signal="structure.graph",
        component=Component.ARCHITECTURE,
        statistic=shared / total,
        null=msg("structure.null"),
        sample_size=total,
        evidence=tuple(Evidence("tensors", difference) for difference in (basis, *told[:64])),
        caveats=(msg("structure.normal_practice"),),
    )


def _config_finding(a: StructureFacts, b: StructureFacts) -> tuple[Finding, ...]:
    keys = sorted(set(a.settings) | set(b.settings))
    if not a.settings or not b.settings:
        return (Skipped("structure.config", Component.ARCHITECTURE, msg("structure.no_config")),)
    equal = [key for key in keys if a.settings.get(key) == b.settings.get(key)]
    evidence = [
        Evidence(
            a.spelled.get(field, field),
            msg("structure.respelled", old=b.spelled.get(field, field), value=a.canonical[field]),
        )
        for field in sorted(set(a.canonical) & set(b.canonical))
        if a.spelled.get(field, field) != b.spelled.get(field, field)
        and a.canonical[field] == b.canonical[field]
    ]
    for key in keys:
        if key not in equal:
            there = msg("structure.value", suspect=a.settings.get(key), source=b.settings.get(key))
            evidence.append(Evidence(key, there))
    return (
        Measured(
            signal="structure.config",
            component=Component.ARCHITECTURE,
            statistic=len(equal) / len(keys),
            null=msg("structure.config_null"),
            sample_size=len(keys),
            evidence=tuple(evidence[:64]),
            caveats=(msg("structure.normal_practice"),),
        ),
    )
