"""Packs a matrix in the layouts of quantised checkpoints: numpy only, so that tests of models need no library.

The layouts themselves are proven against their libraries (``quantised_files``); these packers are proven by
reading back what they wrote.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_files import Checkpoint, encode, write_model

Array = NDArray[Any]
SIZES = {
    "float32": "F32",
    "float16": "F16",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
    "uint32": "U32",
    "int64": "I64",
}
NF4 = np.float32(
    [
        *(-1.0, -0.6961928, -0.5250731, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
    ]
)  # Dettmers et al. 2023, appendix E


@dataclass(frozen=True, slots=True)
class Raw:
    """A tensor of a dtype that numpy does not know, by its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


Parts = dict[str, "Array | Raw"]


def write(path: Path, tensors: Mapping[str, Array | Raw]) -> Path:
    """A safetensors file."""
    header: dict[str, Any] = {}
    blobs, at = [], 0
    for name, values in tensors.items():
        if not isinstance(values, Raw):
            values = Raw(SIZES[values.dtype.name], values.shape, np.ascontiguousarray(values).tobytes())
        offsets = [at, at + len(values.data)]
        header[name] = {"dtype": values.dtype, "shape": list(values.shape), "data_offsets": offsets}
        blobs.append(values.data)
        at += len(values.data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))
    return path


def _grid(W: Array, size: int, bits: int) -> tuple[Array, Array, Array]:
    """Codes (out, in), scales and zeros (out, groups) of an asymmetric grid."""
    parts = W.reshape(len(W), -1, size)
    low, high = np.minimum(parts.min(2), 0), np.maximum(parts.max(2), 0)
    top = (1 << bits) - 1
    scale = ((high - low) / top + 1e-9).astype(np.float16).astype(np.float32)
    zero = np.clip(np.round(-low / scale), 1, top)
    codes = np.clip(np.round(parts / scale[..., None]) + zero[..., None], 0, top)
    return codes.reshape(W.shape).astype(np.uint32), scale, zero.astype(np.uint32)


def _words(codes: Array, bits: int, order: tuple[int, ...] = ()) -> Array:
    """Packed along the last axis."""
    per = 32 // bits
    fields = codes.astype(np.uint32).reshape(*codes.shape[:-1], -1, per)[..., list(order or range(per))]
    return np.bitwise_or.reduce(fields << (np.arange(per, dtype=np.uint32) * bits), axis=-1)


def gptq(W: Array, stem: str, bits: int = 4, size: int = 32) -> Parts:
    codes, scale, zero = _grid(W, size, bits)
    return {
        f"{stem}.g_idx": (np.arange(W.shape[1]) // size).astype(np.int32),
        f"{stem}.qweight": _words(codes, bits).T.view(np.int32),
        f"{stem}.qzeros": _words((zero - 1).T, bits).view(np.int32),
        f"{stem}.scales": scale.T.astype(np.float16),
    }


def awq(W: Array, stem: str, size: int = 32) -> Parts:
    codes, scale, zero = _grid(W, size, 4)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        f"{stem}.qweight": _words(codes.T, 4, order).view(np.int32),
        f"{stem}.qzeros": _words(zero.T, 4, order).view(np.int32),
        f"{stem}.scales": scale.T.astype(np.float16),
    }


def nf4(W: Array, stem: str, block: int = 64) -> Parts:
    blocks = W.reshape(-1, block)
    top = np.abs(blocks).max(1)
    codes = np.abs(blocks[..., None] / top[:, None, None] - NF4).argmin(-1).ravel()
    state = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": list(W.shape)}
    return {
        f"{stem}.weight": (codes[::2] << 4 | codes[1::2]).astype(np.uint8)[:, None],
        f"{stem}.weight.absmax": top.astype(np.float32),
        f"{stem}.weight.quant_map": NF4,
        f"{stem}.weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8),
    }


def mlx(W: Array, stem: str, bits: int = 4, size: int = 32) -> Parts:
    codes, scale, zero = _grid(W, size, bits)
    return {
        f"{stem}.weight": _words(codes, bits),
        f"{stem}.scales": scale.astype(np.float16),
        f"{stem}.biases": (-scale * zero).astype(np.float32),
    }


def hqq(W: Array, stem: str, size: int = 32) -> Parts:
    codes, scale, zero = _grid(W, size, 4)
    groups = codes.reshape(-1, size).astype(np.uint8)
    half = len(groups) // 2
    return {
        f"{stem}.W_q": groups[:half] << np.uint8(4) | groups[half:],
        f"{stem}.scale": scale.reshape(-1, 1).astype(np.float16),
        f"{stem}.zero": zero.reshape(-1, 1).astype(np.float16),
        f"{stem}.shape": np.int64(W.shape),
    }


def e4m3() -> Array:
    """The values of bytes 0 to 126, which is all that are not negative."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    return np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10.0), mantissa * 2.0**-9)


def fp8(W: Array, stem: str, block: int = 128) -> Parts:
    shape = [-(-extent // block) for extent in W.shape]
    scale = np.zeros(shape, np.float32)
    codes = np.zeros(W.shape, np.uint8)
    table = e4m3()
    for i, j in np.ndindex(*shape):
        at = np.s_[i * block : (i + 1) * block, j * block : (j + 1) * block]
        scale[i, j] = np.abs(W[at]).max() / 448
        nearest = np.abs(np.abs(W[at])[..., None] / scale[i, j] - table).argmin(-1)
        codes[at] = nearest | (W[at] < 0) << 7
    return {f"{stem}.weight": Raw("F8_E4M3", W.shape, codes.tobytes()), f"{stem}.weight_scale_inv": scale}


PACKERS: dict[str, Callable[[Array, str], Parts]] = {
    "gptq": gptq, "awq": awq, "nf4": nf4, "mlx": mlx, "hqq": hqq, "fp8": fp8,
}  # fmt: skip


def quantised(model: Checkpoint, scheme: str, folder: Path, config: Mapping[str, Any] | None = None) -> Path:
    """A model folder whose linear layers are packed; token table and gains stay bf16."""
    write_model(folder, {}, {**model.config, **(config or {})}, tokenizer=model.tokenizer)
    tensors: Parts = {}
    for name, values in model.tensors.items():
        if name.endswith("_proj.weight"):
            tensors |= PACKERS[scheme](values.astype(np.float32), name.removesuffix(".weight"))
        else:
            tensors[name] = Raw("BF16", values.shape, encode(values, "bf16"))
    write(folder / "model.safetensors", tensors)
    return folder
