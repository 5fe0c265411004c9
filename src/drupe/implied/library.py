"""What is known of the libraries that modelling code imports, by name: bases, activations, own classes.

Names are those of transformers 4 and 5 and of torch 2; a name that is not here is reported, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping

from drupe.implied.limits import names

PRELUDE = """
import torch
from torch import nn
from transformers import AutoModel

class GenericForSequenceClassification:
    base_model_prefix = "model"
    def __init__(self, config):
        super().__init__(config)
        setattr(self, self.base_model_prefix, AutoModel.from_config(config))
        self.score = nn.Linear(config.get_text_config().hidden_size, config.num_labels, bias=False)

class GenericForQuestionAnswering:
    base_model_prefix = "model"
    def __init__(self, config):
        super().__init__(config)
        setattr(self, self.base_model_prefix, AutoModel.from_config(config))
        self.qa_outputs = nn.Linear(config.hidden_size, 2)

class GenericForTokenClassification:
    base_model_prefix = "model"
    def __init__(self, config):
        super().__init__(config)
        setattr(self, self.base_model_prefix, AutoModel.from_config(config))
        self.score = nn.Linear(config.get_text_config().hidden_size, config.num_labels,
                               bias=getattr(config, "token_classification_bias", True))

class TransformerEncoderLayer(nn.Module):
    def __init__(self, d_model, nhead, dim_feedforward=2048, dropout=0.1, activation=None,
                 layer_norm_eps=1e-5, batch_first=False, norm_first=False, bias=True, device=None, dtype=None):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, nhead, bias=bias)
        self.linear1 = nn.Linear(d_model, dim_feedforward, bias=bias)
        self.linear2 = nn.Linear(dim_feedforward, d_model, bias=bias)
        self.norm1 = nn.LayerNorm(d_model, bias=bias)
        self.norm2 = nn.LayerNorm(d_model, bias=bias)

class TransformerDecoderLayer(nn.Module):
    def __init__(self, d_model, nhead, dim_feedforward=2048, dropout=0.1, activation=None,
                 layer_norm_eps=1e-5, batch_first=False, norm_first=False, bias=True, device=None, dtype=None):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, nhead, bias=bias)
        self.multihead_attn = nn.MultiheadAttention(d_model, nhead, bias=bias)
        self.linear1 = nn.Linear(d_model, dim_feedforward, bias=bias)
        self.linear2 = nn.Linear(dim_feedforward, d_model, bias=bias)
        self.norm1 = nn.LayerNorm(d_model, bias=bias)
        self.norm2 = nn.LayerNorm(d_model, bias=bias)
        self.norm3 = nn.LayerNorm(d_model, bias=bias)

class _Stack(nn.Module):
    def __init__(self, layer, num_layers, norm=None, enable_nested_tensor=True, mask_check=True):
        super().__init__()
        import copy
        self.layers = nn.ModuleList([copy.deepcopy(layer) for _ in range(num_layers)])
        self.norm = norm

class XIELUActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.alpha_p = nn.Parameter(torch.empty(1))
        self.alpha_n = nn.Parameter(torch.empty(1))
        self.beta = nn.Buffer(torch.empty(()))
        self.eps = nn.Buffer(torch.empty(()))

def remap_legacy_layer_types(layer_types=None, config=None):
    names = {"mamba": "linear_attention", "attention": "full_attention",
             "deepseek_sparse_attention": "indexed_attention", "qwen_sparse_attention": "indexed_attention"}
    return None if layer_types is None else [names.get(one, one) for one in layer_types]

class TransformerEncoder(_Stack):
    pass

class TransformerDecoder(_Stack):
    pass
"""
"""Composite modules of the libraries, in our words, for the interpreter to follow like any code."""

PRELUDE_FILE = "<library>"
PRELUDE_NAMES = frozenset(
    [
        "GenericForSequenceClassification",
        "GenericForQuestionAnswering",
        "GenericForTokenClassification",
        "TransformerEncoderLayer",
        "TransformerDecoderLayer",
        "TransformerEncoder",
        "TransformerDecoder",
        "XIELUActivation",
        "remap_legacy_layer_types",
    ]
)

MODEL_BASES = frozenset({"PreTrainedModel", "PretrainedModel", "PreTrainedAudioTokenizerBase"})
CONFIG_BASES = frozenset({"PretrainedConfig", "PreTrainedConfig"})
MODULE_BASES = MODEL_BASES | {"GradientCheckpointingLayer", "Module"}
"""Library classes that are modules without parameters of their own."""
HARMLESS_BASES = names(
    "object ABC Generic Protocol Enum IntEnum StrEnum str int dict list tuple float Exception NamedTuple "
    "TypedDict OrderedDict ModelOutput GenerationMixin PushToHubMixin ModuleUtilsMixin PeftAdapterMixin "
    "EmbeddingAccessMixin Cache DynamicCache Function Sequence Mapping Dataset BackboneMixin "
    "BackboneConfigMixin RotaryEmbeddingConfigMixin"
)
"""Bases that register nothing."""

ACTIVATIONS = names(
    "gelu gelu_10 gelu_fast gelu_new gelu_python gelu_python_tanh gelu_pytorch_tanh gelu_accurate "
    "hardswish laplace leaky_relu linear mish quick_gelu relu relu2 relu6 sigmoid silu sqrtsoftplus "
    "swish tanh"
)
"""Keys of ``ACT2FN`` whose modules have no parameters (``prelu`` and ``xielu`` have)."""

LAYER_TYPES: Mapping[str, str] = {
    "mamba": "linear_attention",
    "attention": "full_attention",
    "deepseek_sparse_attention": "indexed_attention",
    "qwen_sparse_attention": "indexed_attention",
}
"""Older names of kinds of layers that ``PreTrainedConfig`` of transformers 5 replaces."""

CONFIG_DEFAULTS: Mapping[str, object] = {
    "tie_word_embeddings": True,
    "num_labels": 2,
    "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False,
    "is_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
    "use_return_dict": True,
    "torchscript": False,
    "use_bfloat16": False,
    "problem_type": None,
    "quantization_config": None,
    "name_or_path": "",
    "_name_or_path": "",
}
"""What ``PretrainedConfig`` sets when neither the file nor the class does."""

NO_MODULE_ROOTS = names(
    "abc collections contextlib copy dataclasses einops enum functools inspect itertools json logging "
    "math numpy os packaging random re string sys time types typing typing_extensions warnings "
    "huggingface_hub safetensors torch tqdm"
)
"""Libraries whose functions return no module (``torch.nn`` is looked up by class)."""
