"""Makes the checkpoints beside it with PyTorch (2.13), and expected.json with their values.

Run with a Python that has torch: ``python tests/readers/torch_files/make.py``. The tests need none.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).parent
EXPECTED: dict[str, dict[str, object]] = {}
Named = dict[str, torch.Tensor]


def values_of(tensor: torch.Tensor) -> dict[str, object]:
    """Shape, type and values as float32, row after row, in hexadecimal."""
    plain = tensor.detach().to(torch.float32).contiguous()
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "values": plain.numpy().tobytes().hex(),
    }


def save(name: str, value: object, tensors: Named, **options: object) -> None:
    torch.save(value, HERE / name, **options)
    EXPECTED[name] = {key: values_of(tensor) for key, tensor in tensors.items()}


def every_type() -> Named:
    torch.manual_seed(1)
    base = torch.randn(6, 5)
    typed = {
        str(dtype).removeprefix("torch."): base.to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    }
    whole = (base * 50).to(torch.int64)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool):
        typed[str(dtype).removeprefix("torch.")] = (
            whole.abs().to(dtype) if dtype is torch.uint8 else whole.to(dtype)
        )
    return typed | {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "vector": base[0].clone()}


def small_types() -> Named:
    torch.manual_seed(2)
    base = torch.randn(4, 8)
    kinds = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu)
    small = {str(dtype).removeprefix("torch."): base.abs().to(dtype) for dtype in kinds}
    return small | {"uint16": (base.abs() * 100).to(torch.uint16), "plain": base}


def views() -> Named:
    torch.manual_seed(3)
    base = torch.randn(8, 12)
    cube = torch.randn(3, 4, 5)
    return {
        "whole": base,
        "transposed": base.t(),
        "rows": base[2:5],
        "columns": base[:, 3:7],
        "every_second": base[::2, ::3],
        "column": base[:, 4],
        "gaps": base.view(-1)[3:50:5],
        "permuted": cube.permute(2, 0, 1),
        "turned_inside": cube.transpose(1, 2),
        "element": base[7, 11],
    }


def network() -> nn.Sequential:
    torch.manual_seed(4)
    inner = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6))
    return nn.Sequential(OrderedDict(up=nn.Linear(3, 4), inner=inner, norm=nn.BatchNorm1d(6)))


class Product(nn.Module):
    """Small, and none of PyTorch's own source text is saved with it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.register_buffer("offset", torch.tensor([1.0, -1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.t() + self.offset


def training(model: nn.Module) -> dict[str, object]:
    """As training programs save: weights beside an optimiser that is twice as large."""
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimiser.step()
    return {
        "epoch": 3,
        "state_dict": model.state_dict(),
        "optimizer_states": [optimiser.state_dict()],
        "hyper_parameters": argparse.Namespace(rate=0.1, name="tiny"),
        "rng_state": torch.get_rng_state()[:16].clone(),
    }


def make_plain() -> None:
    for protocol in (2, 3, 4, 5):
        save(f"zip_protocol_{protocol}.pt", every_type(), every_type(), pickle_protocol=protocol)
    old = {"_use_new_zipfile_serialization": False}
    for protocol in (2, 4):
        save(f"legacy_protocol_{protocol}.pt", every_type(), every_type(), pickle_protocol=protocol, **old)
    save("zip_small_types.pt", small_types(), small_types())
    shown = views()
    save("zip_views.pt", shown, shown)
    save("legacy_views.pt", shown, shown, **old)
    parameters = {
        name: nn.Parameter(tensor) for name, tensor in (("a", torch.ones(2, 3)), ("b", torch.zeros(4)))
    }
    save("zip_parameters.pt", parameters, parameters)


def make_programs() -> None:
    old = {"_use_new_zipfile_serialization": False}
    model = network()
    checkpoint = training(model)
    state = dict(model.state_dict())
    save("zip_training.ckpt", checkpoint, state)
    save("legacy_training.ckpt", checkpoint, state, **old)
    save("zip_state_dict.bin", model.state_dict(), state)
    save("zip_module.pt", model, state)
    nested = {"model": {"encoder": {"w": torch.ones(2, 2)}, "heads": [torch.zeros(3), torch.full((2,), 7.0)]}}
    parts = nested["model"]
    save(
        "zip_nested.pt",
        nested,
        {"encoder.w": parts["encoder"]["w"], "heads.0": parts["heads"][0], "heads.1": parts["heads"][1]},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.jit.script(Product())
        compiled.save(str(HERE / "torchscript.pt"))
    EXPECTED["torchscript.pt"] = {key: values_of(tensor) for key, tensor in compiled.state_dict().items()}


def make_refused() -> None:
    """One plain tensor beside some that are not read."""
    plain = torch.arange(6.0).reshape(2, 3)
    others = {
        "sparse": torch.eye(3).to_sparse(),
        "quantised": torch.quantize_per_tensor(plain, 0.1, 3, torch.quint8),
        "expanded": torch.ones(1, 4).expand(5, 4),
        "negative": torch.randn(3, dtype=torch.complex64).conj().imag,
    }
    save("zip_refused.pt", {"plain": plain, **others}, {"plain": plain})
    save(
        "zip_complex.pt", {"plain": plain, "complex": torch.ones(2, dtype=torch.complex64)}, {"plain": plain}
    )


def make_shards() -> None:
    torch.manual_seed(5)
    tensors = {"a": torch.randn(2, 3), "b": torch.randn(4), "c": torch.randn(1, 2)}
    files = {"pytorch_model-00001-of-00002.bin": ("a", "b"), "pytorch_model-00002-of-00002.bin": ("c",)}
    for file, names in files.items():
        shard = {name: tensors[name] for name in names}
        save(file, shard, shard)
    where = {name: file for file, names in files.items() for name in names}
    text = json.dumps({"metadata": {"total_size": 48}, "weight_map": where}, indent=1)
    (HERE / "pytorch_model.bin.index.json").write_text(text + "\n")


if __name__ == "__main__":
    make_plain()
    make_programs()
    make_refused()
    make_shards()
    (HERE / "expected.json").write_text(json.dumps(EXPECTED, indent=1, sort_keys=True) + "\n")
