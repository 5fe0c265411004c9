"""Writes the files of this folder with the libraries that own their formats.

Usage: pip install flax==0.12.8 ctranslate2==4.8.5 'mlx[cpu]==0.32.4' numpy==2.4.6 torch (torch: bf16 of CTranslate2
alone), then PYTHONPATH=tests python tests/readers/format_files/make.py. The values are ``format_writers.grid``; the
writers of the tests are compared with the libraries' bytes on the way, and CTranslate2 must run its model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ctranslate2
import jax.numpy as jnp
import mlx.core as mx
import numpy as np
from ctranslate2.specs import common_spec, transformer_spec
from flax import serialization

import format_writers
from format_writers import grid, nested

FOLDER = Path(__file__).parent
WIDTH, INNER, PIECES = 16, 32, 24
FLAX = {
    "params.layers.0.mlp.kernel": grid(12, 40),
    "params.layers.0.mlp.bias": grid(40, start=5),
    "params.layers.0.norm.scale": grid(12, start=9),
    "params.embed.embedding": grid(30, 12, start=3),
    "params.conv.kernel": grid(3, 2, 4, start=1),
    "params.empty": np.zeros((0, 4), np.float32),
}


def by_key(tree: Any) -> Any:
    """Flax writes its maps in the order of their keys."""
    return {key: by_key(tree[key]) for key in sorted(tree)} if isinstance(tree, dict) else tree


def flax_files() -> None:
    tree = nested(FLAX)
    tree["step"] = 70_000
    tree["opt_state"] = {"0": {"mu": nested(FLAX)["params"]}}
    tree["params"]["scalar"] = np.float32(0.5)
    assert serialization.msgpack_serialize(tree) == format_writers.pack(by_key(tree))
    (FOLDER / "flax.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    half = nested({name: np.asarray(values, np.float16) for name, values in FLAX.items()})
    half["params"]["layers"]["0"]["mlp"]["kernel"] = jnp.asarray(grid(12, 40), jnp.bfloat16)
    serialization.MAX_CHUNK_SIZE = (
        100  # Flax's own constant (1 GiB): arrays in several chunks without the gigabytes
    )
    (FOLDER / "flax_half_chunked.msgpack").write_bytes(serialization.msgpack_serialize(half))


def mlx_files() -> None:
    arrays = {
        "layers.0.mlp.weight": mx.array(grid(40, 12)).astype(mx.bfloat16),
        "layers.0.norm.weight": mx.array(grid(12, start=9)).astype(mx.float16),
        "embed.weight": mx.array(grid(30, 12, start=3)),
        "codes": mx.array(np.arange(6, dtype=np.uint32).reshape(2, 3)),
    }
    mx.savez(str(FOLDER / "mlx.npz"), **arrays)
    mx.savez_compressed(str(FOLDER / "mlx_compressed.npz"), **arrays)
    names = list(arrays)
    mx.save_safetensors(str(FOLDER / "mlx.00.safetensors"), {name: arrays[name] for name in names[:2]})
    mx.save_safetensors(str(FOLDER / "mlx.01.safetensors"), {name: arrays[name] for name in names[2:]})


def ctranslate2_spec() -> transformer_spec.TransformerDecoderModelSpec:
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        num_layers=2, num_heads=2, activation=common_spec.Activation.SWISH, ffn_glu=True, rms_norm=True,
        rotary_dim=0, rotary_interleave=False,
    )  # fmt: skip
    decoder: Any = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = grid(PIECES, WIDTH)
    decoder.projection.weight = decoder.embeddings.weight
    decoder.layer_norm.gamma = grid(WIDTH, start=2)
    for number, layer in enumerate(decoder.layer):
        layer.self_attention.layer_norm.gamma = grid(WIDTH, start=number)
        layer.self_attention.linear[0].weight = grid(3 * WIDTH, WIDTH, start=10 + number)
        layer.self_attention.linear[1].weight = grid(WIDTH, WIDTH, start=20 + number)
        layer.ffn.layer_norm.gamma = grid(WIDTH, start=30 + number)
        layer.ffn.linear_0.weight = grid(INNER, WIDTH, start=40 + number)
        layer.ffn.linear_0_noact.weight = grid(INNER, WIDTH, start=50 + number)
        layer.ffn.linear_1.weight = grid(WIDTH, INNER, start=60 + number)
    spec.register_vocabulary([f"piece{number}" for number in range(PIECES)])
    spec.config.unk_token = spec.config.bos_token = spec.config.eos_token = "piece0"
    return spec


def ctranslate2_files() -> None:
    for kind in ("float32", "float16", "bfloat16", "int8", "int16"):
        spec = ctranslate2_spec()
        spec.validate()
        spec.optimize(quantization=kind)
        with tempfile.TemporaryDirectory() as folder:
            spec.save(folder)
            data = (Path(folder) / "model.bin").read_bytes()
            ctranslate2.Generator(folder).forward_batch([["piece1", "piece2"]])  # the library reads it itself
            (FOLDER / f"ctranslate2_{kind}.bin").write_bytes(data)
        if kind == "bfloat16":
            continue
        pairs = list(spec.variables(ordered=True))
        arrays = {name: value.numpy() for name, value in pairs if not isinstance(value, str)}
        aliases = {name: value for name, value in pairs if isinstance(value, str)}
        own = format_writers.ctranslate2(arrays, aliases, name=spec.name)
        at = 4 + len(format_writers.text(spec.name))
        assert own[:at] + spec.revision.to_bytes(4, "little") + own[at + 4 :] == data


if __name__ == "__main__":
    flax_files()
    mlx_files()
    ctranslate2_files()
