"""Writes ``pipeline`` (a tiny diffusers folder) and two adapters of it, with diffusers 0.42.1 and peft 0.21.2.

    python tests/adapters/make_pipeline.py

``pipeline_diffusers`` is what ``save_lora_weights`` wrote, ``pipeline_kohya`` the same under the names of sd-scripts
(github.com/kohya-ss/sd-scripts, networks/lora.py), with half the alpha and twice the upper factor; ``fused.rows``
holds every ``STEP``-th row of what fusing them made of the base, in float32.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

HERE = Path(__file__).parent
STEP = 31


def main() -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        mid_block_type=None,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
        )
    )
    folder = HERE / "pipeline"
    shutil.rmtree(folder, ignore_errors=True)
    for part in (unet, text):
        for p in part.parameters():
            p.data = p.data.to(torch.bfloat16).float()
    unet.to(torch.bfloat16).save_pretrained(folder / "unet")
    text.to(torch.bfloat16).save_pretrained(folder / "text_encoder")
    (folder / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "StableDiffusionPipeline",
                "unet": ["diffusers", "UNet2DConditionModel"],
                "text_encoder": ["transformers", "CLIPTextModel"],
            },
            indent=2,
        )
    )
    unet, text = unet.float(), text.float()
    before = {f"unet:{k}": v.clone() for k, v in unet.state_dict().items()}
    before |= {f"text_encoder:{k}": v.clone() for k, v in text.state_dict().items()}
    unet.add_adapter(LoraConfig(r=3, lora_alpha=3, target_modules=["to_q", "to_out.0", "conv1", "proj_in"]))
    text.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "fc1"]))
    with torch.no_grad():
        for part in (unet, text):
            for name, p in part.named_parameters():
                if "lora_" in name:
                    p.add_(0.05 * torch.randn_like(p))
    layers = [convert_state_dict_to_diffusers(get_peft_model_state_dict(part)) for part in (unet, text)]
    target = HERE / "pipeline_diffusers"
    shutil.rmtree(target, ignore_errors=True)
    StableDiffusionPipeline.save_lora_weights(
        target, unet_lora_layers=layers[0], text_encoder_lora_layers=layers[1]
    )
    saved = load_file(target / "pytorch_lora_weights.safetensors")
    kohya = {}
    for start, part in (("lora_unet", unet), ("lora_te", text)):
        for name, value in get_peft_model_state_dict(part).items():
            module, _, which = name.rpartition(".lora_")
            key = f"{start}_{module.replace('.', '_')}"
            down = which.startswith("A")
            kohya[f"{key}.lora_{'down' if down else 'up'}.weight"] = value if down else 2 * value
            if down:  # networks/lora.py of sd-scripts: scale = alpha / rank
                kohya[f"{key}.alpha"] = torch.tensor(value.shape[0] / 2)
    target = HERE / "pipeline_kohya"
    target.mkdir(exist_ok=True)
    meta = {
        "ss_network_dim": "3",
        "ss_network_alpha": "3",
        "ss_network_module": "networks.lora",
        "ss_sd_model_name": "pipeline",
    }
    save_file({k: v.contiguous() for k, v in kohya.items()}, target / "lora.safetensors", metadata=meta)
    rows = {}
    for part, model in (("unet", unet), ("text_encoder", text)):
        model.fuse_lora() if part == "unet" else None
        for name, module in model.named_modules():
            if hasattr(module, "base_layer"):
                if part == "text_encoder":
                    module.merge()
                rows[f"{part}:{name}.weight"] = module.base_layer.weight.detach()[::STEP].contiguous()
    assert all(k in before for k in rows)
    save_file(rows, HERE / "pipeline" / "fused.rows")
    print(len(saved), sorted(saved)[:4], sorted(kohya)[:4], len(rows))


main()
