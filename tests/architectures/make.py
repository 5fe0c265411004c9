"""Pico models of every family, made by transformers: the facts that the tests of roles rest on.

    PYTHONPATH=tests python tests/architectures/make.py        # needs torch and transformers; writes families.json

Only names, shapes and the small configurations are kept. Names are those that ``save_pretrained`` writes, which is
what people publish: in memory transformers 5 fuses experts, in files it does not.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

FACTS = Path(__file__).with_name("families.json")

TEXT = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FULL = {**TEXT, "num_key_value_heads": 4}
FALCON = {key: value for key, value in FULL.items() if key != "head_dim"}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
AUDIO = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "conv_dim": [32, 32],
    "conv_stride": [2, 2],
    "conv_kernel": [3, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
PAIR = {
    "vocab_size": 160,
    "d_model": 64,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
MIXTURE = {
    **TEXT,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 80,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
LATENT = {
    **FULL,
    "moe_intermediate_size": 48,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 40,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
LATENT.pop("head_dim")
GPT = {
    "vocab_size": 160,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "n_inner": 96,
    "rotary_dim": 8,
}
MASKED = {**FULL, "type_vocab_size": 2}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
KEPT = ("model_type", "num_attention_heads", "n_head", "n_heads", "num_heads")

# family -> (model class, configuration; "Config" inside = a nested configuration's class and fields)
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("LlamaForCausalLM", TEXT),
    "mistral": ("MistralForCausalLM", TEXT),
    "qwen2": ("Qwen2ForCausalLM", TEXT),
    "qwen3": ("Qwen3ForCausalLM", TEXT),
    "gemma": ("GemmaForCausalLM", TEXT),
    "gemma2": ("Gemma2ForCausalLM", TEXT),
    "gemma3_text": ("Gemma3ForCausalLM", TEXT),
    "phi": ("PhiForCausalLM", TEXT),
    "phi3": ("Phi3ForCausalLM", TEXT),
    "gpt2": ("GPT2LMHeadModel", GPT),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {
            **FULL,
            "num_layers": 3,
            "num_heads": 4,
            "attention_types": [[["global", "local", "global"], 1]],
        },
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", FULL),
    "gptj": ("GPTJForCausalLM", GPT),
    "codegen": ("CodeGenForCausalLM", GPT),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", {**GPT, "multi_query": True}),
    "gpt_bigcode_heads": ("GPTBigCodeForCausalLM", {**GPT, "multi_query": False}),
    "starcoder2": ("Starcoder2ForCausalLM", TEXT),
    "bloom": ("BloomForCausalLM", {"vocab_size": 160, "hidden_size": 64, "n_layer": 3, "n_head": 4}),
    "falcon_7b": ("FalconForCausalLM", {**FALCON, "multi_query": True, "new_decoder_architecture": False}),
    "falcon_40b": (
        "FalconForCausalLM",
        {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True},
    ),
    "falcon_rw": (
        "FalconForCausalLM",
        {
            **FALCON,
            "multi_query": False,
            "new_decoder_architecture": False,
            "alibi": True,
            "parallel_attn": False,
        },
    ),
    "opt": ("OPTForCausalLM", {**FULL, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "mpt": (
        "MptForCausalLM",
        {
            "vocab_size": 160,
            "d_model": 64,
            "n_layers": 3,
            "n_heads": 4,
            "max_seq_len": 64,
            "expansion_ratio": 2,
        },
    ),
    "xglm": (
        "XGLMForCausalLM",
        {"vocab_size": 160, "d_model": 64, "ffn_dim": 96, "num_layers": 3, "attention_heads": 4},
    ),
    "persimmon": ("PersimmonForCausalLM", FULL),
    "glm": ("GlmForCausalLM", TEXT),
    "glm4": ("Glm4ForCausalLM", TEXT),
    "cohere": ("CohereForCausalLM", TEXT),
    "cohere2": ("Cohere2ForCausalLM", TEXT),
    "olmo": ("OlmoForCausalLM", TEXT),
    "olmo2": ("Olmo2ForCausalLM", TEXT),
    "stablelm": ("StableLmForCausalLM", TEXT),
    "nemotron": ("NemotronForCausalLM", TEXT),
    "granite": ("GraniteForCausalLM", TEXT),
    "smollm3": ("SmolLM3ForCausalLM", TEXT),
    "exaone4": ("Exaone4ForCausalLM", TEXT),
    "mixtral": ("MixtralForCausalLM", {**TEXT, "num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", MIXTURE),
    "qwen3_moe": ("Qwen3MoeForCausalLM", MIXTURE),
    "olmoe": ("OlmoeForCausalLM", {**MIXTURE, "num_key_value_heads": 4}),
    "phimoe": ("PhimoeForCausalLM", {**TEXT, "num_local_experts": 4}),
    "deepseek_v2": ("DeepseekV2ForCausalLM", LATENT),
    "deepseek_v3": ("DeepseekV3ForCausalLM", LATENT),
    "minicpm3": ("MiniCPM3ForCausalLM", LATENT),
    "gpt_oss": ("GptOssForCausalLM", {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe": ("GraniteMoeForCausalLM", {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "granitemoeshared": (
        "GraniteMoeSharedForCausalLM",
        {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 80},
    ),
    "llama4": (
        "Llama4ForCausalLM",
        {**TEXT, "intermediate_size_mlp": 96, "num_local_experts": 4, "interleave_moe_layer_step": 1},
    ),
    "glm4_moe": (
        "Glm4MoeForCausalLM",
        {
            **TEXT,
            **{
                k: LATENT[k]
                for k in (
                    "moe_intermediate_size",
                    "n_routed_experts",
                    "num_experts_per_tok",
                    "n_shared_experts",
                    "first_k_dense_replace",
                    "n_group",
                    "topk_group",
                )
            },
        },
    ),
    "mamba": (
        "MambaForCausalLM",
        {"vocab_size": 160, "hidden_size": 64, "state_size": 8, "num_hidden_layers": 3},
    ),
    "mamba2": (
        "Mamba2ForCausalLM",
        {
            "vocab_size": 160,
            "hidden_size": 64,
            "state_size": 8,
            "num_hidden_layers": 3,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 2,
            "expand": 2,
        },
    ),
    "falcon_mamba": (
        "FalconMambaForCausalLM",
        {"vocab_size": 160, "hidden_size": 64, "state_size": 8, "num_hidden_layers": 3},
    ),
    "rwkv": (
        "RwkvForCausalLM",
        {
            "vocab_size": 160,
            "hidden_size": 64,
            "attention_hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
        },
    ),
    "bert": ("BertForMaskedLM", MASKED),
    "roberta": ("RobertaForMaskedLM", MASKED),
    "xlm_roberta": ("XLMRobertaForMaskedLM", MASKED),
    "distilbert": (
        "DistilBertForMaskedLM",
        {"vocab_size": 160, "dim": 64, "n_heads": 4, "n_layers": 3, "hidden_dim": 96},
    ),
    "albert": ("AlbertForMaskedLM", {**MASKED, "embedding_size": 32}),
    "deberta": ("DebertaForMaskedLM", {**MASKED, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "deberta_v2": (
        "DebertaV2ForMaskedLM",
        {**MASKED, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    ),
    "electra": ("ElectraForPreTraining", {**MASKED, "embedding_size": 32}),
    "modernbert": ("ModernBertForMaskedLM", FULL),
    "mpnet": ("MPNetForMaskedLM", MASKED),
    "nomic_bert": ("NomicBertForMaskedLM", MASKED),
    "esm": ("EsmForMaskedLM", {**MASKED, "mask_token_id": 3}),
    "bart": ("BartForConditionalGeneration", PAIR),
    "mbart": ("MBartForConditionalGeneration", PAIR),
    "pegasus": ("PegasusForConditionalGeneration", PAIR),
    "marian": ("MarianMTModel", {**PAIR, "decoder_vocab_size": 160}),
    "m2m_100": ("M2M100ForConditionalGeneration", PAIR),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 160, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_heads": 4},
    ),
    "t5_gated": (
        "T5ForConditionalGeneration",
        {
            "vocab_size": 160,
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 96,
            "num_layers": 3,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        {**PAIR, "num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": 32},
    ),
    "wav2vec2": ("Wav2Vec2ForCTC", AUDIO),
    "hubert": ("HubertForCTC", AUDIO),
    "wavlm": ("WavLMForCTC", AUDIO),
    "clip": (
        "CLIPModel",
        {"text_config": FULL, "vision_config": VISION, "projection_dim": 48},
    ),
    "siglip": ("SiglipModel", {"text_config": FULL, "vision_config": VISION}),
    "vit": ("ViTForImageClassification", VISION),
    "deit": ("DeiTForImageClassification", VISION),
    "dinov2": ("Dinov2ForImageClassification", {**VISION, "mlp_ratio": 2}),
    "dinov3_vit": ("DINOv3ViTModel", VISION),
    "beit": ("BeitForImageClassification", {**VISION, "out_indices": [2]}),
    "vit_mae": (
        "ViTMAEForPreTraining",
        {
            **VISION,
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 48,
        },
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {"model_type": "clip_vision_model", **VISION},
            "image_token_index": 5,
        },
    ),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": {**TEXT, "rope_parameters": MROPE},
            "vision_config": {
                "embed_dim": 64,
                "hidden_size": 64,
                "depth": 4,
                "num_heads": 4,
                "mlp_ratio": 2,
                "patch_size": 4,
            },
        },
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {**TEXT, "rope_parameters": MROPE},
            "vision_config": {
                "hidden_size": 64,
                "out_hidden_size": 64,
                "intermediate_size": 96,
                "depth": 4,
                "num_heads": 4,
                "patch_size": 4,
                "fullatt_block_indexes": [3],
            },
        },
    ),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": {**TEXT, "rope_parameters": MROPE},
            "vision_config": {
                "hidden_size": 64,
                "out_hidden_size": 64,
                "intermediate_size": 96,
                "depth": 4,
                "num_heads": 4,
                "patch_size": 4,
                "deepstack_visual_indexes": [1],
                "num_position_embeddings": 16,
            },
        },
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {"text_config": TEXT, "vision_config": VISION, "mm_tokens_per_image": 1},
    ),
    "internvl": (
        "InternVLForConditionalGeneration",
        {
            "text_config": {"model_type": "qwen2", **TEXT},
            "vision_config": {**VISION, "image_size": [16, 16], "patch_size": [8, 8]},
        },
    ),
    "paligemma": (
        "PaliGemmaForConditionalGeneration",
        {
            "text_config": {"model_type": "gemma", **TEXT},
            "vision_config": {"model_type": "siglip_vision_model", **VISION},
        },
    ),
}


def build(family: str) -> Any:
    """A model of random weights."""
    import torch
    import transformers

    name, settings = FAMILIES[family]
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    return kind(kind.config_class(**settings))


def facts_of(family: str) -> dict[str, Any]:
    """Configuration, tensors as ``save_pretrained`` writes them, and the rows of what is fused."""
    from architectures.probe import PROBES

    with tempfile.TemporaryDirectory() as folder:
        build(family).save_pretrained(folder)
        raw = (Path(folder) / "model.safetensors").read_bytes()
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    inner = config.get("text_config", {}).get("model_type")
    kept: dict[str, Any] = {key: config[key] for key in KEPT if isinstance(config.get(key), int | str)}
    fused = PROBES[family](build(family)) if family in PROBES else {}
    return {
        "config": {**kept, **({"text_config": {"model_type": inner}} if inner else {})},
        "tensors": grouped(shapes),
        "rows": {role: {part: runs(rows) for part, rows in parts.items()} for role, parts in fused.items()},
    }


def grouped(shapes: Mapping[str, list[int]]) -> list[str]:
    """``h.{0-2}.mlp.weight 96x64``: numbers that count without a gap are a range, in every combination."""
    groups: dict[tuple[str, str], list[list[int]]] = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        pattern = ".".join("{}" if part.isdecimal() else part for part in parts)
        numbers = [int(part) for part in parts if part.isdecimal()]
        groups.setdefault((pattern, "x".join(map(str, shape))), []).append(numbers)
    found = []
    for (pattern, size), numbers in sorted(groups.items()):
        places = [sorted(set(column)) for column in zip(*numbers, strict=True)]
        spans = [(place[0], place[-1]) for place in places]
        if prod(last - first + 1 for first, last in spans) == len(numbers):
            found.append(f"{filled(pattern, spans)} {size}")
        else:
            found += [f"{filled(pattern, [(n, n) for n in each])} {size}" for each in sorted(numbers)]
    return found


def filled(pattern: str, spans: Sequence[tuple[int, int]]) -> str:
    """The pattern with its numbers."""
    for first, last in spans:
        pattern = pattern.replace("{}", str(first) if first == last else f"{{{first}-{last}}}", 1)
    return pattern


def runs(rows: list[int]) -> list[list[int]]:
    """[first, count] of consecutive rows."""
    found: list[list[int]] = []
    for row in rows:
        if found and row == sum(found[-1]):
            found[-1][1] += 1
        else:
            found.append([row, 1])
    return found


def main(chosen: list[str]) -> None:
    """Write the facts of the chosen families, or of all."""
    facts: dict[str, Any] = json.loads(FACTS.read_text()) if chosen else {}
    facts.update({family: facts_of(family) for family in chosen or FAMILIES})
    for place, family in enumerate(FAMILIES):  # many families share one list of tensors
        for other in list(FAMILIES)[:place]:
            if facts[family]["tensors"] == facts[other]["tensors"]:
                facts[family]["tensors"] = other
                break
    lines = (f"{json.dumps(key)}: {json.dumps(facts[key], separators=(',', ':'))}" for key in FAMILIES)
    FACTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
