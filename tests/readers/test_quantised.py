"""Quantised checkpoints: each scheme reads to what its own library unpacks; parts are hidden, reads are lazy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobs import MemoryBlob
from drupe.errors import FormatError
from drupe.readers.interface import Absent, FlagKind, Layout, WeightFile, Window
from drupe.readers.quantised import QuantisedFile, settings_of, unpack
from drupe.readers.quantised.bits import unpack as unpack_bits
from drupe.readers.safetensors import open_safetensors
from drupe.sources.local import LocalTree
from hostile_files import entry
from hostile_files import safetensors as crafted
from readers.quantised_packers import PACKERS, SIZES, Raw, write

FILES = Path(__file__).parent / "quantised_files"
SCHEMES: Mapping[str, dict[str, Any]] = json.loads((FILES / "schemes.json").read_text("utf-8"))
EXPECTED = np.load(FILES / "expected.npz")
AMBIGUOUS = {"mlx2_128", "mlx8_32"}  # bits * group = 256 has more usual readings


def opened(data: bytes | MemoryBlob, config: Mapping[str, Any] | None = None) -> QuantisedFile:
    blob = data if isinstance(data, MemoryBlob) else MemoryBlob("model.safetensors", data)
    file = unpack(open_safetensors([blob]), config or {})
    assert isinstance(file, QuantisedFile)
    return file


def scheme(name: str, config: Mapping[str, Any] | None = None) -> QuantisedFile:
    settings = SCHEMES[name]["config"] if config is None else config
    return opened((FILES / f"{name}.safetensors").read_bytes(), settings)


def whole(file: WeightFile, name: str) -> np.ndarray:
    rows, columns = file.tensors[name].matrix_shape
    return file.read([Window(name, 0, rows, 0, columns)])[0]


def sample(values: np.ndarray) -> np.ndarray:
    return values.ravel()[np.arange(512) * 10007 % values.size]


def test_every_file_is_in_the_table() -> None:
    assert {path.stem for path in FILES.glob("*.safetensors")} == set(SCHEMES) == set(EXPECTED)


@pytest.mark.parametrize("name", SCHEMES)
def test_values_are_what_the_library_unpacks(name: str) -> None:
    file, truth = scheme(name), SCHEMES[name]
    info = file.tensors[truth["tensor"]]
    assert (list(info.shape), info.dtype, info.is_quantised) == (truth["shape"], truth["dtype"], True)
    assert info.layout is (Layout.OUT_IN if len(info.shape) == 2 else Layout.UNKNOWN)
    values = whole(file, info.name)
    assert values.dtype == np.float32
    np.testing.assert_allclose(sample(values), EXPECTED[name], rtol=0, atol=truth["tolerance"])


@pytest.mark.parametrize("name", sorted(set(SCHEMES) - AMBIGUOUS))
def test_a_stripped_configuration_changes_nothing(name: str) -> None:
    values = whole(scheme(name, {}), SCHEMES[name]["tensor"])
    np.testing.assert_allclose(sample(values), EXPECTED[name], rtol=0, atol=SCHEMES[name]["tolerance"])


LIES = (
    {"quantization_config": {"bits": 8, "group_size": 0, "quant_method": "awq", "weight_block_size": [7, 0]}},
    {
        "quantization_config": {
            "bits": -1,
            "group_size": "x",
            "config_groups": {"a": {"weights": {"num_bits": 5}}},
        }
    },
    {"quantization": {"bits": 7, "group_size": 1 << 70}, "quantization_config": []},
)


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("name", sorted(set(SCHEMES) - AMBIGUOUS - {"gptq4_v2", "fp8_block", "fp8_experts"}))
def test_shapes_overrule_a_lying_configuration(name: str, lie: Mapping[str, Any]) -> None:
    values = whole(scheme(name, lie), SCHEMES[name]["tensor"])
    np.testing.assert_allclose(sample(values), EXPECTED[name], rtol=0, atol=SCHEMES[name]["tolerance"])


@pytest.mark.parametrize("name", SCHEMES)
def test_the_parts_are_hidden_and_their_bits_counted(name: str) -> None:
    file, weight = scheme(name), SCHEMES[name]["tensor"]
    stored = file.stored.tensors
    assert list(file.tensors) in ([weight, "layer.bias"], ["layer.bias", weight])
    assert file.skipped == {}
    parts = [info for other, info in stored.items() if other != "layer.bias"]
    bits = sum(info.size * info.stored_bits for info in parts) / file.tensors[weight].size
    assert file.tensors[weight].stored_bits == pytest.approx(bits)
    assert (file.format, file.metadata, file.headers) == ("safetensors", {}, file.stored.headers)  # type: ignore[attr-defined]
    assert whole(file, "layer.bias").tolist() == [[0.0, 1.0, 2.0]]


CONTENT = {name: (scheme(name), whole(scheme(name), SCHEMES[name]["tensor"])) for name in SCHEMES}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_window_is_a_crop(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(CONTENT)))
    file, values = CONTENT[name]
    rows, columns = values.shape
    top, left = data.draw(st.integers(0, rows)), data.draw(st.integers(0, columns))
    bottom, right = data.draw(st.integers(top, rows)), data.draw(st.integers(left, columns))
    (found,) = file.read([Window(SCHEMES[name]["tensor"], top, bottom, left, right)])
    np.testing.assert_array_equal(found, values[top:bottom, left:right])


@pytest.mark.parametrize("window", [(0, 65, 0, 2), (-1, 1, 0, 2), (0, 2, 1, 999), (2, 1, 0, 2)])
def test_a_window_outside_of_its_tensor(window: tuple[int, int, int, int]) -> None:
    with pytest.raises(FormatError, match="outside"):
        scheme("awq4").read([Window("layer.weight", *window)])


def test_many_windows_are_read_in_one_pass_and_keep_their_order() -> None:
    blob = MemoryBlob("model.safetensors", (FILES / "gptq4_order.safetensors").read_bytes())
    file, values = opened(blob), CONTENT["gptq4_order"][1]
    blob.batches = 0
    windows = [Window("layer.weight", k, k + 2, k, k + 40) for k in (7, 2, 21, 0)]
    found = file.read([*windows, Window("layer.bias", 0, 1, 1, 3)])
    assert blob.batches == 1
    for window, array in zip(windows, found, strict=False):
        assert np.array_equal(array, values[window.row_start :][:2, window.column_start :][:, :40])
    assert found[-1].tolist() == [[1.0, 2.0]]


STATE = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [1024, 4096]}
LARGE: Mapping[str, dict[str, tuple[tuple[int, ...], str]]] = {
    "gptq": {
        "a.qweight": ((512, 1024), "I32"),
        "a.qzeros": ((32, 128), "I32"),
        "a.scales": ((32, 1024), "F16"),
        "a.g_idx": ((4096,), "I32"),
    },
    "awq": {"a.qweight": ((4096, 128), "I32"), "a.qzeros": ((32, 128), "I32"), "a.scales": ((32, 1024), "F16")},
    "mlx": {"a.weight": ((1024, 512), "U32"), "a.scales": ((1024, 64), "F16"), "a.biases": ((1024, 64), "F16")},
    "fp8": {"a.weight": ((1024, 4096), "F8_E4M3"), "a.weight_scale_inv": ((8, 32), "F32")},
    "int8": {"a.weight": ((1024, 4096), "I8"), "a.SCB": ((1024,), "F32")},
    "compressed": {"a.weight_packed": ((1024, 512), "I32"), "a.weight_scale": ((1024, 32), "BF16")},
    "nvfp4": {
        "a.weight": ((1024, 2048), "U8"),
        "a.weight_scale": ((1024, 256), "F8_E4M3"),
        "a.weight_scale_2": ((), "F32"),
    },
    "nf4": {
        "a.weight": ((1 << 21, 1), "U8"),
        "a.weight.absmax": ((1 << 16,), "F32"),
        "a.weight.quant_map": ((16,), "F32"),
        "a.weight.quant_state.bitsandbytes__nf4": ((len(json.dumps(STATE)),), "U8"),
    },
    "mxfp4": {"a_blocks": ((16, 512, 16, 16), "U8"), "a_scales": ((16, 512, 16), "U8")},
}  # fmt: skip
WIDTHS = {"F16": 2, "BF16": 2, "F32": 4, "I32": 4, "U32": 4, "I64": 8, "I16": 2}
CONFIGS = {"compressed": {"quantization_config": {"config_groups": {"g": {"weights": {"num_bits": 4}}}}}}


def zeros(name: str) -> MemoryBlob:
    """A large weight of that scheme, all bytes 0 but for texts."""
    header, at, texts = {}, 0, []
    for tensor, (shape, dtype) in LARGE[name].items():
        size = int(np.prod(shape)) * WIDTHS.get(dtype, 1)
        header[tensor] = entry(shape, (at, at + size), dtype)
        if "quant_state" in tensor:
            texts.append((at, json.dumps(STATE).encode()))
        at += size
    data = bytearray(crafted(header, at))
    for start, text in texts:
        data[len(data) - at + start : len(data) - at + start + len(text)] = text
    return MemoryBlob("model.safetensors", bytes(data))


@pytest.mark.parametrize("name", LARGE)
def test_a_few_rows_are_not_the_whole(name: str) -> None:
    """2 MiB or more per weight; eight rows by 64 columns read less than a fiftieth, opening less than 12 KB."""
    blob = zeros(name)
    file = opened(blob, CONFIGS.get(name))
    assert sum(length for _, length in blob.spans) < 12_000
    (weight,) = file.tensors.values()
    assert weight.size == 1 << 22
    blob.spans.clear()
    (values,) = file.read([Window(weight.name, 8, 16, 128, 192)])
    assert values.shape == (8, 64)
    assert sum(length for _, length in blob.spans) < blob.size / 50


@pytest.mark.parametrize("packer", PACKERS)
def test_the_packers_of_the_tests_pack_what_is_read(packer: str, tmp_path: Path) -> None:
    W = np.random.default_rng(1).standard_normal((64, 128)).astype(np.float32) * 0.1
    file = unpack(
        open_safetensors(
            [LocalTree(write(tmp_path / "a.safetensors", PACKERS[packer](W, "a"))).open("a.safetensors")]
        ),
        {},
    )
    assert isinstance(file, QuantisedFile)
    error = np.abs(whole(file, "a.weight") - W).max()
    assert 0.001 < error < {"fp8": 0.03, "nf4": 0.06}.get(packer, 0.03)


@given(st.integers(1, 8), st.integers(0, 50), st.integers(1, 60), st.integers(0, 2**32))
def test_streams_of_bits(bits: int, first: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (3, first + count))
    stream = sum(
        (codes[:, k].astype(object) << (k * bits) for k in range(first + count)), np.zeros(3, object)
    )
    size = -(-(first + count) * bits // 32)
    words = np.array(
        [[(int(row) >> (32 * w)) & 0xFFFFFFFF for w in range(size)] for row in stream], np.uint32
    )
    start = first * bits // 32
    found = unpack_bits(words[:, start:], bits, first * bits - start * 32, count)
    assert np.array_equal(found, codes[:, first:])


def test_a_file_of_plain_numbers_stays_as_it_is() -> None:
    file = open_safetensors([MemoryBlob("model.safetensors", crafted({"a.weight": entry()}, 32))])
    assert unpack(file, {"quantization_config": {"quant_method": "gptq", "bits": 4}}) is file


def test_the_order_is_the_file_s_own_and_layers_may_differ(tmp_path: Path) -> None:
    W = np.random.default_rng(2).standard_normal((64, 64)).astype(np.float32)
    tensors = {"first": W, **PACKERS["nf4"](W, "b"), "middle": W, **PACKERS["gptq"](W, "a"), "last": W}
    file = opened(write(tmp_path / "m.safetensors", tensors).read_bytes())
    assert list(file.tensors) == ["first", "b.weight", "middle", "a.weight", "last"]
    assert [info.dtype for info in file.tensors.values()] == ["F32", "BNB_NF4", "F32", "GPTQ4", "F32"]


def test_a_width_of_the_model_decides_between_group_sizes() -> None:
    """MLX: 8 bits in groups of 32 has the shapes of 4 bits in groups of 64, at twice the width."""
    shapes = {"a.weight": ((16, 32), "U32"), "a.scales": ((16, 4), "F32"), "a.biases": ((16, 4), "F32")}
    for width, dtype in ((128, "MLX8"), (256, "MLX4"), (99, "MLX4")):
        file = opened(filled({**shapes, "norm.weight": ((width,), "F32")}))
        assert file.tensors["a.weight"].dtype == dtype
    said = {"quantization": {"bits": 4, "group_size": 64, "a": {"bits": 8, "group_size": 32}}}
    assert opened(filled(shapes), said).tensors["a.weight"].shape == (16, 128)


def test_constant_zeros_tell_the_formats_of_gptq_apart_whatever_is_said(tmp_path: Path) -> None:
    W = np.random.default_rng(3).standard_normal((32, 64)).astype(np.float32)
    tensors = PACKERS["gptq"](W, "a")
    for stored, other in ((0x77777777, "gptq_v2"), (0x88888888, "gptq")):
        tensors["a.qzeros"] = np.full((2, 4), stored, np.uint32).view(np.int32)
        data = write(tmp_path / "m.safetensors", tensors).read_bytes()
        lied = {"quantization_config": {"checkpoint_format": other}}
        tensors["a.qweight"] = np.asarray(tensors["a.qweight"])
        values = whole(opened(data, lied), "a.weight")
        code = (np.asarray(tensors["a.qweight"]).view(np.uint32)[0, 0] & 15).astype(np.float32)
        assert values[0, 0] == (code - 8) * np.asarray(tensors["a.scales"])[0, 0].astype(np.float32)


def test_no_order_is_an_order_of_minus_ones(tmp_path: Path) -> None:
    W = np.random.default_rng(4).standard_normal((32, 64)).astype(np.float32)
    tensors = PACKERS["gptq"](W, "a")
    plain = whole(opened(write(tmp_path / "a.safetensors", tensors).read_bytes()), "a.weight")
    tensors["a.g_idx"] = np.full(64, -1, np.int32)
    assert np.array_equal(
        whole(opened(write(tmp_path / "b.safetensors", tensors).read_bytes()), "a.weight"), plain
    )


def filled(shapes: Mapping[str, tuple[tuple[int, ...], str]], seed: int = 0) -> bytes:
    """A file of those tensors with random bytes; floats are small numbers."""
    dice = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for name, (shape, dtype) in shapes.items():
        size = int(np.prod(shape))
        numpy_name = next((long for long, short in SIZES.items() if short == dtype), None)
        if dtype in ("F16", "F32"):
            data = dice.random(size).astype(numpy_name).tobytes()
        else:
            data = dice.integers(0, 256, size * WIDTHS.get(dtype, 1), np.uint8).tobytes()
        tensors[name] = Raw(dtype, shape, data)
    header, blobs, at = {}, [], 0
    for name, raw in tensors.items():
        header[name] = entry(list(raw.shape), [at, at + len(raw.data)], raw.dtype)
        blobs.append(raw.data)
        at += len(raw.data)
    return crafted(header) + b"".join(blobs)


UNREAD: Mapping[str, dict[str, tuple[tuple[int, ...], str]]] = {
    "Marlin": {"a.B": ((4, 128), "I32"), "a.s": ((2, 64), "F16"), "a.workspace": ((16,), "I32")},
    "gemv_fast": {"a.qweight": ((16, 64), "I16"), "a.scales": ((8, 64), "F16"), "a.qzeros": ((8, 64), "F16")},
    "AWQ gemv": {"a.qweight": ((64, 16), "I32"), "a.scales": ((64, 8), "F16"), "a.qzeros": ((64, 1), "I32")},
    "SqueezeLLM": {"a.qweight": ((8, 64), "I32"), "a.lookup_table": ((64, 16), "F16")},
    "EETQ": {"a.weight": ((64, 32), "I8"), "a.weight_scales": ((32,), "F16")},
    "BitNet": {"a.weight": ((16, 64), "U8"), "a.weight_scale": ((1,), "F32")},
    "quanto": {
        "a.weight._data._data": ((32, 64), "U8"),
        "a.weight._scale": ((64, 1), "F32"),
        "a.weight._shift": ((64, 1), "F32"),
        "a.input_scale": ((), "F32"),
    },
    "MXFP6": {"a.weight_packed": ((64, 48), "U8"), "a.weight_scale": ((64, 2), "U8")},
    "planar": {
        "a.qweight": ((12, 64), "I32"),
        "a.qzeros": ((1, 12), "I32"),
        "a.scales": ((1, 64), "F16"),
        "a.g_idx": ((64,), "I32"),
    },
    "torchao below": {"a._weight_qdata": ((64, 16), "I32"), "a._weight_scale": ((2, 64), "BF16")},
    "HQQ with packed scales": {"a.W_q": ((32, 64), "U8"), "a.shape": ((2,), "I64")},
    "does not say the shape": {"a.weight_packed": ((64, 8), "I32"), "a.weight_scale": ((64, 1), "F16")},
    "2:4": {"a.weight_packed": ((64, 8), "I32"), "a.scale_packed": ((64, 1), "F16"), "a.meta": ((64, 8), "I16")},
}  # fmt: skip


@pytest.mark.parametrize("says", UNREAD)
def test_a_scheme_that_is_not_decoded_says_so(says: str) -> None:
    data = filled({**UNREAD[says], "norm": ((64,), "F32")})
    found = unpack(open_safetensors([MemoryBlob("model.safetensors", data)]), {})
    assert isinstance(found, Absent)
    assert says in found.reason.text("en")
    assert "1 weights" in found.reason.text("en")
    assert found.reason.text("zh") != found.reason.text("en")


def test_beside_weights_that_are_decoded_it_is_skipped_with_its_reason() -> None:
    mixed = {"b.weight": ((16, 64), "I8"), "b.SCB": ((16,), "F32"), "norm": ((64,), "F32")}
    for says, tensors in UNREAD.items():
        file = opened(filled({**tensors, **mixed}))
        assert list(file.tensors) == ["b.weight", "norm"], says
        ((name, reason),) = file.skipped.items()
        assert name == "a.weight"
        assert says in reason.text()
        ((kind, where, what),) = ((flag.kind, flag.file, flag.what) for flag in file.flags)
        assert (kind, where, what) == (FlagKind.NOT_READ, "model.safetensors", "a.weight")


def test_old_configuration_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": 32}')
    tree = LocalTree(tmp_path)
    assert settings_of(tree, {"a": 1}) == {"a": 1, "quantize_config": {"bits": 4, "group_size": 32}}
    assert settings_of(tree, {"quantization_config": {}}) == {"quantization_config": {}}
