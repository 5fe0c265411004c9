"""Tensors and their roles -> the module graph, as far as tensors show it.

The tower that reads tokens speaks for the model; of an encoder and a decoder the decoder. Modules of its layers whose
role is not known are told by the module they belong to (a bias beside a matrix) or by words in their names.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from drupe.graph import UNKNOWN, Graph, joined
from drupe.readers.interface import TensorInfo
from drupe.roles import MAX_HINTED, Role, Roles, split_name
from drupe.schemes import bias_of

MIN_LAYERS_SHARE = 0.5
"""Share of the layers that must hold a norm or a bias before it belongs to the graph."""
_ATTENTION = frozenset({"q", "k", "v", "o"})
_LATENT = frozenset({"kv_a", "kv_b"})
_FFN = frozenset({"gate", "up", "down"})
_BUFFERS = frozenset({"rotary", "mask", "position_ids", "buffer", "scale"})
_TABLE_WORDS = ("token_type", "embed_norm", "embed_projection")
_LAYER_WORDS = (
    *("sinks", "indexer", "attention_gate", "sub_norm", "convolution", "differential", "layer_scale"),
    *("router_bias", "other"),
)
_VISION = re.compile(r"vision|visual|vpm|image|patch", re.IGNORECASE)
_AUDIO = re.compile(r"audio|speech|acoustic", re.IGNORECASE)


@dataclass(slots=True)
class _Parts:
    """What the main tower holds."""

    layers: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    norms: Counter[int] = field(default_factory=Counter)
    outer: set[str] = field(default_factory=set)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def union(self) -> set[str]:
        """Parts of any layer."""
        return set().union(*self.layers.values())

    def usual(self) -> set[str]:
        """Parts of most of the layers that hold attention, of all layers where none does."""
        holders = [parts for parts in self.layers.values() if parts & _ATTENTION] or list(
            self.layers.values()
        )
        counts = Counter(part for parts in holders for part in parts)
        return {part for part, count in counts.items() if count >= MIN_LAYERS_SHARE * len(holders)}


@cache
def _words() -> tuple[tuple[re.Pattern[str], str], ...]:
    text = (resources.files("drupe") / "data" / "graph_rules.toml").read_text(encoding="utf-8")
    return tuple((re.compile(pattern), part) for pattern, part in tomllib.loads(text)["words"])


def graph_of_tensors(tensors: Sequence[TensorInfo], roles: Roles) -> Graph:
    """The graph that the tensors show; all unknown when no layer with matrices is told."""
    stacks = {role.stack for role in roles.by_tensor.values()}
    main = "decoder" if "decoder" in stacks else ""
    parts = _collect(tensors, roles, main)
    union = parts.union()
    if _mixer(union) == "none":
        return Graph()
    scheme = roles.stacks.get("")
    return Graph(
        inputs=_inputs(tensors, roles),
        form="encoder_decoder" if any(role.startswith("cross_") for role in union) else UNKNOWN,
        mixer=_mixer(union),
        attention_bias="".join(
            letter for letter in "qkvo" if f"{letter}_bias" in parts.usual() | _latent_biases(union)
        )
        or "none",
        qk_norm=_qk_norm(parts),
        norm="layer" if {"norm1_bias", "norm_bias", "final_norm_bias"} & (union | parts.outer) else UNKNOWN,
        placement=_placement(parts, bool(scheme and scheme.norm_after), scheme is not None),
        residual=_residual(parts),
        ffn="gated" if "gate" in union or _doubled(parts) else "plain" if "up" in union else "none",
        ffn_bias="yes" if {"up_bias", "down_bias", "gate_up_bias"} & union else "no",
        experts=_experts(parts),
        shared_experts="yes" if "shared" in union else "no",
        positions=_positions(parts, roles),
        head="own" if _has_head(parts) else UNKNOWN,
        others=_others(parts),
    )


def _collect(tensors: Sequence[TensorInfo], roles: Roles, main: str) -> _Parts:
    parts = _Parts()
    prefixes = {
        split_name(name)[0].partition("{}")[0]
        for name, role in roles.by_tensor.items()
        if role.layer is not None and role.stack == main and "{" not in role.name
    }
    for tensor in filter(lambda tensor: tensor.size, tensors):
        role = roles.by_tensor.get(tensor.name)
        pattern, numbers = split_name(tensor.name)
        within = bool(numbers) and pattern.partition("{}")[0] in prefixes
        is_told = role is not None and "{" not in role.name
        if role is not None and is_told and not (within and role.stack.startswith("tower")):
            _add_known(parts, tensor, role, main)
        elif role is not None and is_told:  # what the scheme of the tower lacks, by the words of another one
            norms = ["norm" if part.startswith("norm") else part for part in role.parts]
            _add(parts, tensor, numbers[0], ["shared"] if "shared" in role.stack else norms)
        elif within:
            _add(parts, tensor, numbers[0], _guessed(tensor, roles))
    return parts


def _add_known(parts: _Parts, tensor: TensorInfo, role: Role, main: str) -> None:
    if role.stack in ("shared", f"{main}.shared".strip(".")):
        _add(parts, tensor, role.layer, ["shared"])
    elif role.stack == main:
        pieces = ["q_bias", "k_bias", "v_bias"] if role.parts == ("qkv_bias",) else list(role.parts)
        _add(parts, tensor, role.layer, [*pieces, *(["experts"] if role.expert is not None else [])])
    elif role.layer is None and main and role.stack in ("", "encoder"):  # a table that both share
        parts.outer.update({role.name.rpartition(".")[2]} & {"embed", "head"})


def _add(parts: _Parts, tensor: TensorInfo, layer: int | None, pieces: Iterable[str]) -> None:
    for piece in pieces:
        parts.shapes.setdefault(piece, tensor.shape)
        if layer is None:
            parts.outer.add(piece)
        elif piece not in _BUFFERS:
            parts.layers[layer].add(piece)
            parts.norms[layer] += piece in ("norm", "norm1", "norm2", "norm1_after", "norm2_after")


def _guessed(tensor: TensorInfo, roles: Roles) -> list[str]:
    """The part of a tensor without a role: the bias of a known matrix, or what words say."""
    module, _, leaf = tensor.name.rpartition(".")
    if leaf == "bias":
        matrix = roles.by_tensor.get(f"{module}.weight")
        if matrix is not None and "{" not in matrix.name:
            role = bias_of("+".join(matrix.parts))
            return ["q_bias", "k_bias", "v_bias"] if role == "qkv_bias" else [role]
    pattern = split_name(tensor.name)[0].rpartition("{}")[2][-MAX_HINTED:]
    part = next((part for words, part in _words() if words.search(pattern)), "other")
    return [f"{part}_bias"] if leaf == "bias" and part != "router_bias" else [part]


def _latent_biases(union: set[str]) -> set[str]:
    return {name for part, name in (("q_a_bias", "q_bias"), ("kv_a_bias", "k_bias")) if part in union}


def _inputs(tensors: Sequence[TensorInfo], roles: Roles) -> str:
    found = set()
    if any(role.name.rpartition(".")[2] == "embed" for role in roles.by_tensor.values()):
        found.add("tokens")
    for tensor in tensors:
        role = roles.by_tensor.get(tensor.name)
        name = tensor.name[:MAX_HINTED]
        if (role is not None and role.parts == ("patch",)) or len(tensor.shape) in (4, 5):
            found.add("samples" if _AUDIO.search(name) else "patches")
        elif role is None or role.stack or "{" in role.name:
            found.update(
                word for words, word in ((_VISION, "patches"), (_AUDIO, "samples")) if words.search(name)
            )
    return joined(found, UNKNOWN)


def _mixer(union: set[str]) -> str:
    found = set()
    if union & _LATENT:
        found.add("latent")
    elif union & {"q", "k", "v"}:
        found.add("attention")
    if "state_space" in union or any(part.startswith("ssm_") for part in union):
        found.add("state_space")
    if "rwkv_k" in union:
        found.add("rwkv")
    return joined(found)


def _qk_norm(parts: _Parts) -> str:
    """``full``: over all heads at once; ``head``: each head by itself."""
    if "q_norm" not in parts.usual():
        return "none"
    shape = parts.shapes["q_norm"]
    width = max(parts.shapes.get("o", (0,)))
    narrow = min(parts.shapes.get("o", (0,)))
    return "full" if len(shape) == 1 and shape[0] in (width, narrow) else "head"


def _placement(parts: _Parts, norm_after: bool, is_named: bool) -> str:
    usual = parts.usual()
    norms = Counter(parts.norms.values()).most_common(1)[0][0] if parts.norms else 0
    if norms >= 4:
        return "sandwich"
    if {"norm1_after", "norm2_after"} <= usual and "norm1" not in usual:
        return "post"
    if norms == 2 and "norm2" in usual and "norm1" not in usual:
        return "post"  # the only norm before a sublayer is missing
    if norms == 0:
        return "none"
    if norms == 3 and "norm1_after" in usual:
        return "sandwich"
    return UNKNOWN if not is_named else "post" if norm_after else "pre"


def _residual(parts: _Parts) -> str:
    """One norm for attention and FFN: both read the same state."""
    usual = parts.usual()
    if not usual & _FFN or not usual & _ATTENTION:
        return "sequential"
    single = "norm1" in usual and not usual & {"norm2", "norm", "norm2_after"}
    return "parallel" if single else UNKNOWN


def _doubled(parts: _Parts) -> bool:
    """A fused gate under the name of a plain matrix."""
    up, down = parts.shapes.get("up"), parts.shapes.get("down")
    return bool(
        up and down and len(up) == len(down) == 2 and max(up) == 2 * max(down) and min(up) == min(down)
    )


def _experts(parts: _Parts) -> str:
    mixed = sum(bool({"router", "experts"} & layer) for layer in parts.layers.values())
    with_ffn = sum(bool((_FFN | {"router", "experts"}) & layer) for layer in parts.layers.values())
    return "none" if not mixed else "all" if mixed >= with_ffn else "some"


def _has_head(parts: _Parts) -> bool:
    """A head reads the state and names a token, as large as the table of tokens."""
    head, embed = parts.shapes.get("head"), parts.shapes.get("embed")
    return head is not None and (embed is None or max(head) == max(embed))


def _positions(parts: _Parts, roles: Roles) -> str:
    names = {
        role.name.rpartition(".")[2]
        for role in roles.by_tensor.values()
        if not role.stack.startswith("tower")
    }
    if names & {"relative", "position_q", "position_k", "position_bias"}:
        return "relative"
    return "learned" if "position" in parts.outer else "rope" if "rotary" in names else UNKNOWN


def _others(parts: _Parts) -> str:
    union = parts.union()
    found = {word for word in _LAYER_WORDS if word in union} | {
        word for word in _TABLE_WORDS if word in parts.outer
    }
    if "scale1" in union:
        found.add("layer_scale")
    if "q_a" in union:
        found.add("query_compression")
    return joined(found)


def shown_sizes(tensors: Sequence[TensorInfo], roles: Roles) -> dict[str, float]:
    """Sizes that shapes of known matrices tell: tokens, width, inner width of the FFN, experts held in one tensor."""
    stacks = {role.stack for role in roles.by_tensor.values()}
    shapes = _collect(tensors, roles, "decoder" if "decoder" in stacks else "").shapes
    found: dict[str, float] = {}
    embed, down = shapes.get("embed"), shapes.get("down")
    if embed is not None and len(embed) == 2:
        found.update(vocab=max(embed), hidden=min(embed))
    if down is not None and len(down) in (2, 3):
        states = found.get("hidden", min(down[-2:]))
        inner = [extent for extent in down[-2:] if extent != states]
        found["ffn"] = inner[0] if inner else states
        found.update({"experts": down[0]} if len(down) == 3 else {})
    return found


def fused_modules(roles: Roles) -> Mapping[str, str]:
    """Modules of the main tower that hold several parts: name of the module -> its parts.

    >>> fused_modules(Roles({"h.0.attn.W_pack.weight": Role("q+k+v", 0)}, {}))
    {'W_pack': 'q+k+v'}
    """
    found: dict[str, str] = {}
    for name, role in roles.by_tensor.items():
        if len(role.parts) > 1 and role.layer is not None and not role.stack:
            module = [
                part for part in name.split(".") if not part.isdecimal() and part not in ("weight", "bias")
            ]
            found.setdefault(module[-1], "+".join(role.parts))
    return found
