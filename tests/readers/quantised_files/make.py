"""Makes the files beside it: one small linear layer in every scheme, packed and unpacked by the scheme's own library.

Needs, in an environment of its own (nothing of it is needed to run the tests)::

    pip install torch==2.13.0 transformers==5.23.0 bitsandbytes==0.50.2 compressed-tensors==0.20.0 \
        optimum-quanto==0.2.7 "mlx[cpu]==0.32.4" torchao==0.18.0 accelerate einops termcolor
    pip install --no-deps hqq==0.2.8.post1 autoawq==0.2.9
    BUILD_CUDA_EXT=0 pip install --no-deps --no-build-isolation auto-gptq==0.7.1
    python make.py

Per scheme: ``NAME.safetensors`` (packed tensors), its entry in ``schemes.json`` (configuration, logical weight,
tolerance) and in ``expected.npz`` (what the library unpacks: value k * 10007 modulo the size, k < 512).
auto-gptq and autoawq no longer import as packages; their layers are loaded by their files.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
OUT, IN = 32, 96
SAMPLES, STRIDE = 512, 10007
EXPECTED: dict[str, np.ndarray] = {}
SCHEMES: dict[str, dict[str, object]] = {}


def weight(out: int = OUT, columns: int = IN, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def keep(name, tensors, expected, config=None, *, dtype, tensor="layer.weight", tolerance=0.0):
    """Write one scheme; ``expected`` is the library's own unpacked weight (of the tensor's shape)."""
    extra = {"layer.bias": torch.arange(3, dtype=torch.float32)}
    packed = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    save_file({**packed, **extra}, HERE / f"{name}.safetensors")
    values = expected.detach().float().numpy()
    EXPECTED[name] = values.ravel()[np.arange(SAMPLES) * STRIDE % values.size]
    SCHEMES[name] = {"config": config or {}, "dtype": dtype, "tensor": tensor, "tolerance": tolerance}
    SCHEMES[name]["shape"] = list(values.shape)


def bare(package: str) -> None:
    """Lets submodules of an installed package load without running its ``__init__``."""
    spec = importlib.util.find_spec(package)
    module = types.ModuleType(package)
    module.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = module


def gptq() -> None:
    for package in ("auto_gptq", "auto_gptq.nn_modules", "auto_gptq.nn_modules.qlinear"):
        bare(package)
    layer = importlib.import_module("auto_gptq.nn_modules.qlinear.qlinear_cuda").QuantLinear
    for bits, size, order, symmetric in (
        (4, 32, False, True),
        (4, 32, True, False),
        (3, 32, False, False),
        (2, 32, True, False),
        (8, -1, False, True),
    ):
        W = weight(seed=bits)
        groups = 1 if size < 0 else IN // size
        width = IN // groups
        index = torch.arange(IN, dtype=torch.int32) // width
        if order:
            index = index[torch.randperm(IN, generator=torch.Generator().manual_seed(1))]
        scales, zeros, top = torch.zeros(OUT, groups), torch.zeros(OUT, groups), 2**bits - 1
        for g in range(groups):
            part = W[:, index == g]
            if symmetric:
                scales[:, g] = 2 * part.abs().amax(1) / top
                zeros[:, g] = 2 ** (bits - 1)
            else:
                low, high = part.amin(1), part.amax(1)
                scales[:, g] = (high - low) / top
                zeros[:, g] = torch.round(-low / scales[:, g]).clamp(1, top)
        linear = torch.nn.Linear(IN, OUT, bias=False)
        codes = torch.clamp(torch.round(W / scales[:, index]) + zeros[:, index], 0, top)
        linear.weight.data = (codes - zeros[:, index]) * scales[:, index]
        packed = layer(bits, size, IN, OUT, False, weight_dtype=torch.float32)
        packed.pack(linear, scales.clone(), zeros.clone(), index.clone())
        name = f"gptq{bits}" + ("_sym" if symmetric else "") + ("_order" if order else "")
        tensors = {f"layer.{k}": v for k, v in packed.state_dict().items()}
        tensors["layer.scales"] = packed.scales.half()
        config = {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": order}
        packed.scales = packed.scales.half().float()
        keep(name, tensors, packed(torch.eye(IN)).T, {"quantization_config": config}, dtype=f"GPTQ{bits}")
        if name == "gptq4_order":  # format 2 differs in nothing but the stored zeros
            zeros32 = tensors["layer.qzeros"].view(torch.int32).numpy().view(np.uint32)
            second = torch.from_numpy((zeros32 + np.uint32(0x11111111)).view(np.int32))
            config = {**config, "checkpoint_format": "gptq_v2"}
            keep(
                "gptq4_v2",
                {**tensors, "layer.qzeros": second},
                packed(torch.eye(IN)).T,
                {"quantization_config": config},
                dtype="GPTQ4",
            )


def awq() -> None:
    for package in ("awq", "awq.utils", "awq.modules", "awq.modules.linear"):
        bare(package)
    layer = importlib.import_module("awq.modules.linear.gemm").WQLinear_GEMM
    unpack = importlib.import_module("awq.utils.packing_utils").dequantize_gemm
    W = weight(seed=7)
    parts = W.view(OUT, IN // 32, 32)
    low, high = parts.amin(2), parts.amax(2)
    scales = ((high - low) / 15).half()
    zeros = torch.round(-low / scales.float()).clamp(0, 15)
    codes = torch.clamp(torch.round(parts / scales.float()[..., None]) + zeros[..., None], 0, 15)
    linear = torch.nn.Linear(IN, OUT, bias=False)
    linear.weight.data = ((codes - zeros[..., None]) * scales.float()[..., None]).view(OUT, IN)
    packed = layer.from_linear(linear, 4, 32, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
    tensors = {f"layer.{k}": v for k, v in packed.state_dict().items() if k != "bias"}
    expected = unpack(packed.qweight, packed.qzeros, packed.scales.float(), 4, 32).T
    config = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}}
    keep("awq4", tensors, expected, config, dtype="AWQ4")


def bitsandbytes() -> None:
    import bitsandbytes as bnb
    from bitsandbytes.functional import dequantize_4bit

    for kind, nested, storage, out, columns in (  # its own CPU code is wrong at some widths, 96 for one
        ("nf4", False, torch.uint8, 32, 128),
        ("nf4", True, torch.uint8, 128, 136),  # blocks run over the ends of rows; two blocks of scales
        ("fp4", True, torch.uint8, 32, 120),
        ("nf4", False, torch.bfloat16, 32, 128),
        ("nf4", False, torch.float32, 32, 128),
    ):
        layer = bnb.nn.Linear4bit(
            columns, out, bias=False, quant_type=kind, compress_statistics=nested, quant_storage=storage
        )
        W = weight(out, columns, seed=8)
        layer.load_state_dict({"weight": W.clone()})
        layer = layer.to("cpu")
        expected = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert (expected - W).abs().max() < 0.05
        name = (
            f"bnb_{kind}" + ("_nested" if nested else "") + {1: "", 2: "_bf16", 4: "_fp32"}[storage.itemsize]
        )
        tensors = {f"layer.{k}": v for k, v in layer.state_dict().items()}
        keep(name, tensors, expected, dtype=f"BNB_{kind.upper()}", tolerance=1e-8)
    layer = bnb.nn.Linear8bitLt(IN, OUT, bias=False, has_fp16_weights=False)
    layer.load_state_dict({"weight": weight(seed=9)})
    layer = layer.to("cpu")
    tensors = {f"layer.{k}": v for k, v in layer.state_dict().items()}
    expected = bnb.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
    keep("bnb_int8", tensors, expected, dtype="BNB_INT8", tolerance=1e-8)


def compressed() -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    cases = {
        "ct_int4": (
            "pack-quantized",
            {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True},
        ),
        "ct_int4_asym": (
            "pack-quantized",
            {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
        ),
        "ct_int8": ("pack-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": True}),
        "ct_int3": (
            "pack-quantized",
            {"num_bits": 3, "strategy": "group", "group_size": 32, "symmetric": False},
        ),
        "ct_w8": ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}),
        "ct_fp8": (
            "float-quantized",
            {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True},
        ),
        "ct_fp8_channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
        "ct_nvfp4": (
            "nvfp4-pack-quantized",
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True},
        ),
        "ct_mxfp4": (
            "mxfp4-pack-quantized",
            {
                "num_bits": 4,
                "type": "float",
                "strategy": "group",
                "group_size": 32,
                "scale_dtype": torch.uint8,
            },
        ),
        "ct_mxfp8": (
            "mxfp8-quantized",
            {
                "num_bits": 8,
                "type": "float",
                "strategy": "group",
                "group_size": 32,
                "scale_dtype": torch.uint8,
            },
        ),
    }
    for name, (form, settings) in cases.items():
        args = QuantizationArgs(**settings)
        scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
        W = weight(seed=10)
        size = args.group_size or IN
        parts = W.view(OUT, IN // size, size) if args.strategy != "tensor" else W.view(1, 1, -1)
        low, high = parts.amin(-1), parts.amax(-1)
        state = {"weight": W}
        if args.strategy == "tensor_group":
            state["weight_global_scale"] = generate_gparam(W.min().view(1), W.max().view(1))
            scale, zero = calculate_qparams(low, high, args, global_scale=state["weight_global_scale"])
        else:
            ends = (low.view(1), high.view(1)) if len(parts) == 1 else (low, high)
            scale, zero = calculate_qparams(*ends, args)
        state |= {"weight_scale": scale, "weight_zero_point": zero}
        compressor = BaseCompressor.get_value_from_registry(form)
        packed = compressor.compress(state, scheme)
        expected = compressor.decompress(dict(packed), scheme)["weight"]
        if "4-pack" in form:  # decompress rounds to bf16
            codes = unpack_fp4_from_uint8(packed["weight_packed"], OUT, IN, dtype=torch.float32)
            scale = compressor._decompress_scale(packed["weight_scale"], torch.float32)
            whole = packed.get("weight_global_scale")
            expected = dequantize(codes, scale, args=args, dtype=torch.float32, global_scale=whole)
        tensors = {f"layer.{k}": v for k, v in packed.items()}
        said = {key: value for key, value in settings.items() if key != "scale_dtype"}
        group = {"group_0": {"targets": ["Linear"], "weights": said}}
        config = {"quant_method": "compressed-tensors", "format": form, "config_groups": group}
        kinds = {
            "pack": f"COMPRESSED_INT{args.num_bits}",
            "int-": "SCALED_INT8",
            "nvfp": "NVFP4",
            "mxfp": "MXFP4",
        }
        kind = "SCALED_F8_E4M3" if args.type == "float" and args.num_bits == 8 else kinds[form[:4]]
        keep(name, tensors, expected, {"quantization_config": config}, dtype=kind, tolerance=1e-8)


def hqq() -> None:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    for bits, axis, size in (
        (8, 1, None),
        (4, 1, 32),
        (4, 0, 32),
        (3, 1, 32),
        (3, 0, 32),
        (2, 0, 16),
        (1, 1, 32),
    ):
        linear = torch.nn.Linear(IN, OUT, bias=False)
        linear.weight.data = weight(seed=11)
        settings = BaseQuantizeConfig(nbits=bits, group_size=size, axis=axis)
        layer = HQQLinear(linear, settings, compute_dtype=torch.float32, device="cpu")
        tensors = {f"layer.{k}": v for k, v in layer.state_dict().items() if k != "bias"}
        keep(f"hqq{bits}_axis{axis}", tensors, layer.dequantize(), dtype=f"HQQ{bits}")


def mlx() -> None:
    import mlx.core as mx

    for bits, size in ((4, 64), (4, 32), (8, 32), (6, 64), (5, 32), (3, 64), (2, 128)):
        W = mx.array(weight(16, 128, seed=12).numpy())
        packed, scales, biases = mx.quantize(W, group_size=size, bits=bits)
        tensors = {
            "layer.weight": torch.from_numpy(np.array(packed)),
            "layer.scales": torch.from_numpy(np.array(scales)).half(),
            "layer.biases": torch.from_numpy(np.array(biases)).half(),
        }
        halves = (mx.array(tensors[f"layer.{k}"].float().numpy()) for k in ("scales", "biases"))
        expected = np.array(mx.dequantize(packed, *halves, group_size=size, bits=bits))
        config = {"quantization": {"group_size": size, "bits": bits}}
        keep(
            f"mlx{bits}_{size}",
            tensors,
            torch.from_numpy(expected),
            config,
            dtype=f"MLX{bits}",
            tolerance=1e-8,
        )
    for mode, size in (("mxfp4", 32), ("nvfp4", 16)):
        packed, scales = mx.quantize(
            mx.array(weight(16, 128, seed=13).numpy()), group_size=size, bits=4, mode=mode
        )
        expected = np.array(
            mx.dequantize(packed, scales, group_size=size, bits=4, mode=mode).astype(mx.float32)
        )
        tensors = {
            "layer.weight": torch.from_numpy(np.array(packed)),
            "layer.scales": torch.from_numpy(np.array(scales)),
        }
        keep(f"mlx_{mode}", tensors, torch.from_numpy(expected), dtype=f"MLX_{mode.upper()}")


def quanto() -> None:
    from optimum.quanto import freeze, qfloat8, qint8, quantize

    for kind, name in ((qint8, "INT8"), (qfloat8, "F8_E4M3")):
        model = torch.nn.ModuleDict({"layer": torch.nn.Linear(IN, OUT, bias=False)})
        model["layer"].weight.data = weight(seed=14)
        quantize(model, weights=kind)
        freeze(model)
        keep(
            f"quanto_{name.lower()}",
            model.state_dict(),
            model["layer"].weight.dequantize(),
            dtype=f"SCALED_{name}",
        )


def torchao() -> None:
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    for kind, name in ((Float8WeightOnlyConfig, "F8_E4M3"), (Int8WeightOnlyConfig, "INT8")):
        model = torch.nn.ModuleDict({"layer": torch.nn.Linear(IN, OUT, bias=False)})
        model["layer"].weight.data = weight(seed=16)
        quantize_(model, kind())
        tensors, _ = flatten_tensor_state_dict(model.state_dict())
        keep(f"torchao_{name.lower()}", tensors, model["layer"].weight.dequantize(), dtype=f"SCALED_{name}")


def transformers() -> None:
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    dice = torch.Generator().manual_seed(15)
    blocks = torch.randint(0, 256, (3, 24, 4, 16), dtype=torch.uint8, generator=dice)
    scales = torch.randint(110, 130, (3, 24, 4), dtype=torch.uint8, generator=dice)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    tensors = {"experts.up_proj_blocks": blocks, "experts.up_proj_scales": scales}
    keep("mxfp4", tensors, expected, dtype="MXFP4", tensor="experts.up_proj")
    for name, shape, block in (("fp8_block", (40, 72), 32), ("fp8_experts", (3, 40, 72), 32)):
        codes = torch.randn(*shape, generator=dice).to(torch.float8_e4m3fn)
        counts = (*shape[:-2], -(-shape[-2] // block), -(-shape[-1] // block))
        scale = torch.rand(*counts, generator=dice) * 0.01
        expected = _dequantize_fp8_weight(codes, scale, [block, block], torch.float32)
        config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [block, block]}}
        tensors = {"layer.weight": codes, "layer.weight_scale_inv": scale}
        keep(name, tensors, expected, config, dtype="SCALED_F8_E4M3")


if __name__ == "__main__":
    for maker in (gptq, awq, bitsandbytes, compressed, hqq, mlx, quanto, torchao, transformers):
        try:
            maker()
        except Exception as error:
            print(maker.__name__, "failed:", type(error).__name__, error, file=sys.stderr)
            if "--strict" in sys.argv:
                raise
    (HERE / "schemes.json").write_text(json.dumps(SCHEMES, indent=1, sort_keys=True) + "\n")
    np.savez_compressed(HERE / "expected.npz", **EXPECTED)
    print(len(SCHEMES), "schemes")
