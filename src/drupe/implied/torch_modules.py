"""Parameters and buffers that the modules of ``torch.nn`` (and few of transformers) register.

Facts of https://docs.pytorch.org/docs/stable/nn.html: the constructor's arguments, and the name and shape of
each tensor in ``state_dict()``. A module of ``torch.nn`` that stands in neither table is reported as unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from drupe.implied.limits import names
from drupe.implied.tensors import extent
from drupe.implied.values import Dims, truth

Arguments = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One tensor of a module. ``certain`` is False where an argument that decides it is not known."""

    name: str
    shape: Dims | None
    buffer: bool = False
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Kind:
    """A module: argument names in order, those with defaults, and the tensors it registers."""

    arguments: tuple[str, ...]
    defaults: Mapping[str, object]
    tensors: Callable[[Arguments], Iterator[Leaf]]


def product(*values: object) -> int | None:
    """Of extents; None when one is not known."""
    result = 1
    for value in values:
        known = extent(value)
        if known is None:
            return None
        result *= known
    return result


def _ratio(a: object, b: object) -> int | None:
    known, by = extent(a), extent(b)
    return known // by if known is not None and by else None


def _if(argument: object, *leaves: Leaf) -> Iterator[Leaf]:
    """The leaves when the argument is true; uncertain when it is not known."""
    decided = truth(argument)
    if decided is not False:
        yield from (Leaf(one.name, one.shape, one.buffer, decided is True) for one in leaves)


def _linear(a: Arguments) -> Iterator[Leaf]:
    rows, columns = extent(a["out_features"]), extent(a["in_features"])
    yield Leaf("weight", (rows, columns))
    yield from _if(a["bias"], Leaf("bias", (rows,)))


def _bilinear(a: Arguments) -> Iterator[Leaf]:
    rows = extent(a["out_features"])
    yield Leaf("weight", (rows, extent(a["in1_features"]), extent(a["in2_features"])))
    yield from _if(a["bias"], Leaf("bias", (rows,)))


def _conv1d_transformers(a: Arguments) -> Iterator[Leaf]:
    yield Leaf("weight", (extent(a["nx"]), extent(a["nf"])))
    yield Leaf("bias", (extent(a["nf"]),))


def _embedding(a: Arguments) -> Iterator[Leaf]:
    yield Leaf("weight", (extent(a["num_embeddings"]), extent(a["embedding_dim"])))


def _normalized(value: object) -> Dims | None:
    if isinstance(value, list | tuple):
        return tuple(map(extent, value)) if len(value) < 8 else None
    return (extent(value),)


def _layer_norm(a: Arguments) -> Iterator[Leaf]:
    shape = _normalized(a["normalized_shape"])
    weight, bias = Leaf("weight", shape), Leaf("bias", shape)
    affine = truth(a["elementwise_affine"])
    if affine is not False:
        yield Leaf("weight", shape, certain=weight.certain and affine is True)
        for one in _if(a["bias"], bias):
            yield Leaf("bias", shape, certain=one.certain and affine is True)


def _rms_norm(a: Arguments) -> Iterator[Leaf]:
    yield from _if(a["elementwise_affine"], Leaf("weight", _normalized(a["normalized_shape"])))


def _group_norm(a: Arguments) -> Iterator[Leaf]:
    shape = (extent(a["num_channels"]),)
    yield from _if(a["affine"], Leaf("weight", shape), Leaf("bias", shape))


def _batch_norm(a: Arguments) -> Iterator[Leaf]:
    shape = (extent(a["num_features"]),)
    yield from _if(a["affine"], Leaf("weight", shape), Leaf("bias", shape))
    yield from _if(
        a["track_running_stats"],
        Leaf("running_mean", shape, True),
        Leaf("running_var", shape, True),
        Leaf("num_batches_tracked", (), True),
    )


def _kernel(value: object, axes: int) -> Dims:
    if isinstance(value, list | tuple):
        return tuple(map(extent, value)) if len(value) == axes else (None,) * axes
    return (extent(value),) * axes


def _conv(axes: int) -> Callable[[Arguments], Iterator[Leaf]]:
    def tensors(a: Arguments) -> Iterator[Leaf]:
        rows = extent(a["out_channels"])
        columns = _ratio(a["in_channels"], a["groups"])
        yield Leaf("weight", (rows, columns, *_kernel(a["kernel_size"], axes)))
        yield from _if(a["bias"], Leaf("bias", (rows,)))

    return tensors


def _conv_transposed(axes: int) -> Callable[[Arguments], Iterator[Leaf]]:
    def tensors(a: Arguments) -> Iterator[Leaf]:
        columns = _ratio(a["out_channels"], a["groups"])
        yield Leaf("weight", (extent(a["in_channels"]), columns, *_kernel(a["kernel_size"], axes)))
        yield from _if(a["bias"], Leaf("bias", (extent(a["out_channels"]),)))

    return tensors


def _attention(a: Arguments) -> Iterator[Leaf]:
    size = extent(a["embed_dim"])
    key = size if a["kdim"] is None else extent(a["kdim"])
    value = size if a["vdim"] is None else extent(a["vdim"])
    if key == size and value == size:
        yield Leaf("in_proj_weight", (product(3, size), size))
    else:
        yield Leaf("q_proj_weight", (size, size))
        yield Leaf("k_proj_weight", (size, key))
        yield Leaf("v_proj_weight", (size, value))
    yield from _if(a["bias"], Leaf("in_proj_bias", (product(3, size),)))
    yield from _if(a["add_bias_kv"], Leaf("bias_k", (1, 1, size)), Leaf("bias_v", (1, 1, size)))
    yield Leaf("out_proj.weight", (size, size))
    yield from _if(a["bias"], Leaf("out_proj.bias", (size,)))


def _recurrent(gates: int) -> Callable[[Arguments], Iterator[Leaf]]:
    def tensors(a: Arguments) -> Iterator[Leaf]:
        hidden, layers = extent(a["hidden_size"]), extent(a["num_layers"]) or 1
        projected = extent(a["proj_size"]) or hidden
        sides = ("", "_reverse") if truth(a["bidirectional"]) else ("",)
        size = extent(a["input_size"])
        rows = product(gates, hidden)
        for layer in range(min(layers, 1024)):
            for side in sides:
                end = f"l{layer}{side}"
                yield Leaf(f"weight_ih_{end}", (rows, size))
                yield Leaf(f"weight_hh_{end}", (rows, projected))
                biases = Leaf(f"bias_ih_{end}", (rows,)), Leaf(f"bias_hh_{end}", (rows,))
                yield from _if(a["bias"], *biases)
                if extent(a["proj_size"]):
                    yield Leaf(f"weight_hr_{end}", (projected, hidden))
            size = product(len(sides), projected)

    return tensors


def _cell(gates: int) -> Callable[[Arguments], Iterator[Leaf]]:
    def tensors(a: Arguments) -> Iterator[Leaf]:
        hidden = extent(a["hidden_size"])
        rows = product(gates, hidden)
        yield Leaf("weight_ih", (rows, extent(a["input_size"])))
        yield Leaf("weight_hh", (rows, hidden))
        yield from _if(a["bias"], Leaf("bias_ih", (rows,)), Leaf("bias_hh", (rows,)))

    return tensors


def _kind(signature: str, tensors: Callable[[Arguments], Iterator[Leaf]], **defaults: object) -> Kind:
    return Kind(tuple(signature.split()), defaults, tensors)


_CONV = "in_channels out_channels kernel_size stride padding dilation groups bias padding_mode"
_CONV_T = (
    "in_channels out_channels kernel_size stride padding output_padding groups bias dilation padding_mode"
)
_RNN = "input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size"
_PLAIN_RNN = "input_size hidden_size num_layers nonlinearity bias batch_first dropout bidirectional proj_size"
_BATCH = "num_features eps momentum affine track_running_stats"
_RNN_DEFAULTS: dict[str, object] = {"num_layers": 1, "bias": True, "bidirectional": False, "proj_size": 0}

KINDS: Mapping[str, Kind] = {
    "Linear": _kind("in_features out_features bias", _linear, bias=True),
    "NonDynamicallyQuantizableLinear": _kind("in_features out_features bias", _linear, bias=True),
    "Bilinear": _kind("in1_features in2_features out_features bias", _bilinear, bias=True),
    "Conv1D": _kind("nf nx", _conv1d_transformers),
    "Embedding": _kind("num_embeddings embedding_dim padding_idx", _embedding),
    "EmbeddingBag": _kind("num_embeddings embedding_dim", _embedding),
    "LayerNorm": _kind(
        "normalized_shape eps elementwise_affine bias", _layer_norm, elementwise_affine=True, bias=True
    ),
    "RMSNorm": _kind("normalized_shape eps elementwise_affine", _rms_norm, elementwise_affine=True),
    "GroupNorm": _kind("num_groups num_channels eps affine", _group_norm, affine=True),
    "MultiheadAttention": _kind(
        "embed_dim num_heads dropout bias add_bias_kv add_zero_attn kdim vdim batch_first",
        _attention,
        bias=True,
        add_bias_kv=False,
        kdim=None,
        vdim=None,
    ),
    "RNN": _kind(_PLAIN_RNN, _recurrent(1), **_RNN_DEFAULTS),
    "GRU": _kind(_RNN, _recurrent(3), **_RNN_DEFAULTS),
    "LSTM": _kind(_RNN, _recurrent(4), **_RNN_DEFAULTS),
    "RNNCell": _kind("input_size hidden_size bias", _cell(1), bias=True),
    "GRUCell": _kind("input_size hidden_size bias", _cell(3), bias=True),
    "LSTMCell": _kind("input_size hidden_size bias", _cell(4), bias=True),
    "PReLU": _kind(
        "num_parameters init",
        lambda a: iter([Leaf("weight", (extent(a["num_parameters"]),))]),
        num_parameters=1,
    ),
    **{
        name: _kind(_BATCH, _batch_norm, affine=True, track_running_stats=True)
        for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")
    },
    **{
        f"InstanceNorm{axes}d": _kind(_BATCH, _batch_norm, affine=False, track_running_stats=False)
        for axes in (1, 2, 3)
    },
    **{f"Conv{axes}d": _kind(_CONV, _conv(axes), groups=1, bias=True) for axes in (1, 2, 3)},
    **{
        f"ConvTranspose{axes}d": _kind(_CONV_T, _conv_transposed(axes), groups=1, bias=True)
        for axes in (1, 2, 3)
    },
}
"""By the last part of the name; ``Conv1D`` is transformers' own (stored input first)."""

PLAIN = names(
    "Module Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout ReLU ReLU6 GELU SiLU Mish ELU "
    "SELU CELU GLU LeakyReLU Sigmoid Tanh Softmax LogSoftmax Softplus Softsign Hardswish Hardsigmoid "
    "Hardtanh LogSigmoid Threshold Flatten Unflatten Upsample UpsamplingBilinear2d UpsamplingNearest2d "
    "PixelShuffle PixelUnshuffle Unfold Fold MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d "
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d ZeroPad1d "
    "ZeroPad2d ConstantPad1d ConstantPad2d ReflectionPad1d ReflectionPad2d ReplicationPad1d "
    "ReplicationPad2d CrossEntropyLoss MSELoss L1Loss NLLLoss BCELoss BCEWithLogitsLoss SmoothL1Loss "
    "KLDivLoss HuberLoss CosineSimilarity CosineEmbeddingLoss MarginRankingLoss PairwiseDistance "
    "ChannelShuffle LocalResponseNorm Softmin Tanhshrink Hardshrink Softshrink RReLU MaxUnpool2d CTCLoss "
    "TripletMarginLoss FractionalMaxPool2d LPPool2d FeatureAlphaDropout Softmax2d"
)
"""Modules without parameters and buffers."""

CONTAINERS = frozenset({"ModuleList", "Sequential", "ModuleDict", "ParameterList", "ParameterDict"})
