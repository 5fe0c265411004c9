"""Quantised checkpoints that contradict themselves: a typed error that names the tensor, and no other."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobs import MemoryBlob
from drupe.errors import DrupeError, FormatError, LimitError
from drupe.readers.interface import Absent, Window
from drupe.readers.quantised import QuantisedFile, settings_of, unpack
from drupe.readers.safetensors import open_safetensors
from drupe.sources.local import LocalTree
from readers.quantised_packers import PACKERS, Parts, write
from readers.test_quantised import LARGE, UNREAD, filled

FILES = Path(__file__).parent / "quantised_files"
W = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
STATE = "a.weight.quant_state.bitsandbytes__nf4"
GOOD_STATE = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [64, 128]}


def text(value: object) -> np.ndarray:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return np.frombuffer(data, np.uint8)


def opened(tensors: Parts, folder: Path) -> QuantisedFile:
    blob = MemoryBlob("model.safetensors", write(folder / "m.safetensors", tensors).read_bytes())
    file = unpack(open_safetensors([blob]), {})
    assert isinstance(file, QuantisedFile)
    return file


def whole(file: QuantisedFile, name: str = "a.weight") -> np.ndarray:
    rows, columns = file.tensors[name].matrix_shape
    return file.read([Window(name, 0, rows, 0, columns)])[0]


def state(**changes: object) -> dict[str, np.ndarray]:
    return {STATE: text({**GOOD_STATE, **changes})}


# scheme, changed parts (None = left out), what the error says
CONTRADICTIONS: Mapping[str, tuple[str, Mapping[str, np.ndarray | None], str]] = {
    "no scales": ("gptq", {"a.scales": None}, "'a.scales' is missing"),
    "scales of another width": ("gptq", {"a.scales": np.ones((4, 48), np.float16)}, "do not fit together"),
    "zeros of another width": ("gptq", {"a.qzeros": np.ones((4, 5), np.int32)}, "do not fit together"),
    "zeros of other groups": ("gptq", {"a.qzeros": np.ones((3, 8), np.int32)}, "'a.qzeros' is I32"),
    "a short order": ("gptq", {"a.g_idx": np.ones(9, np.int32)}, "do not fit together"),
    "groups that do not divide": (
        "gptq",
        {"a.g_idx": None, "a.scales": np.ones((77, 64), np.float16), "a.qzeros": np.ones((77, 8), np.int32)},
        "77 scales cannot serve 128",
    ),
    "no groups": (
        "gptq",
        {"a.g_idx": None, "a.scales": np.ones((0, 64), np.float16), "a.qzeros": np.ones((0, 8), np.int32)},
        "0 scales cannot serve",
    ),
    "awq without scales": ("awq", {"a.scales": None}, "'a.scales' is missing"),
    "awq zeros": ("awq", {"a.qzeros": np.ones((4, 9), np.int32)}, "'a.qzeros' is I32"),
    "mlx without biases": ("mlx", {"a.biases": None}, "'a.biases' is missing"),
    "mlx biases": ("mlx", {"a.biases": np.ones((64, 2), np.float32)}, "do not fit together"),
    "mlx scales": ("mlx", {"a.scales": np.ones((64, 5), np.float16)}, "do not fit together"),
    "mlx one scale for a vector": (
        "mlx",
        {"a.weight": np.ones(8, np.uint32), "a.scales": np.float16(1)},
        "do not fit together",
    ),
    "mlx no scale at all": ("mlx", {"a.scales": np.ones((64, 0), np.float16)}, "do not fit together"),
    "fp8 scales": (
        "fp8",
        {"a.weight_scale_inv": np.ones((1, 200), np.float32)},
        "200 scales cannot serve 128",
    ),
    "hqq scales": ("hqq", {"a.scale": np.ones((9, 1), np.float16)}, "do not fit together"),
    "hqq groups": (
        "hqq",
        {"a.scale": np.ones((9, 1), np.float16), "a.zero": np.ones((9, 1), np.float16)},
        "do not fit together",
    ),
    "hqq shape": ("hqq", {"a.shape": np.int64([64, 127])}, "do not fit together"),
    "hqq huge shape": ("hqq", {"a.shape": np.int64([1 << 40, 1 << 40])}, "exceeds the limit"),
    "hqq negative shape": ("hqq", {"a.shape": np.int64([-64, -128])}, "negative extent"),
    "no absmax": ("nf4", {"a.weight.absmax": None}, "'a.weight.absmax' is missing"),
    "few absmax": ("nf4", {"a.weight.absmax": np.ones(127, np.float32)}, "should hold 128 numbers"),
    "a long table of values": ("nf4", {"a.weight.quant_map": np.ones(17, np.float32)}, "should hold 16"),
    "block size 0": ("nf4", state(blocksize=0), "blocksize is '0', no positive"),
    "block size of text": ("nf4", state(blocksize="64"), "no positive whole number"),
    "another shape": ("nf4", state(shape=[64, 127]), "should hold 4064 numbers"),
    "a huge shape": ("nf4", state(shape=[1 << 40, 1 << 40]), "exceeds the limit"),
    "a negative shape": ("nf4", state(shape=[-64, -128]), "negative extent"),
    "a shape of truths": ("nf4", state(shape=[True, True]), "no list of whole numbers"),
    "no shape": ("nf4", state(shape=None), "has no shape"),
    "codes of scales without scales": (
        "nf4",
        {"a.weight.absmax": np.ones(128, np.uint8)},
        "nested_absmax' is missing",
    ),
    "nested offset": (
        "nf4",
        {
            "a.weight.absmax": np.ones(128, np.uint8),
            "a.weight.nested_absmax": np.ones(1, np.float32),
            "a.weight.nested_quant_map": np.ones(256, np.float32),
            **state(nested_blocksize=256, nested_offset=float("inf")),
        },
        "nested_offset is",
    ),
    "nested block size": (
        "nf4",
        {
            "a.weight.absmax": np.ones(128, np.uint8),
            "a.weight.nested_absmax": np.ones(1, np.float32),
            "a.weight.nested_quant_map": np.ones(256, np.float32),
            **state(nested_blocksize=0, nested_offset=0.1),
        },
        "nested_blocksize is",
    ),
    "a state that is no object": ("nf4", {STATE: text([1])}, "expected a JSON object"),
    "a state that is no JSON": ("nf4", {STATE: text(b"\xff\xfe{")}, "not valid JSON"),
    "a deep state": ("nf4", {STATE: text(b"[" * 60_000)}, "nesting depth"),
    "a long state": ("nf4", {STATE: text(b" " * 70_000)}, "70000 exceeds the limit of 65536"),
    "a state of a huge number": (
        "nf4",
        {STATE: text(b'{"blocksize": 1' + b"0" * 6000 + b"}")},
        "not valid JSON",
    ),
    "a key twice": ("nf4", {STATE: text(b'{"shape": [1], "shape": [2]}')}, "duplicate JSON key"),
    "a weight twice": ("gptq", {"a.weight": np.ones((64, 128), np.float32)}, "there twice"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_parts_that_contradict_each_other_are_a_typed_error(name: str, tmp_path: Path) -> None:
    scheme, changes, says = CONTRADICTIONS[name]
    tensors = {**PACKERS[scheme](W, "a"), **changes}
    with pytest.raises(FormatError, match=says) as caught:
        opened({key: value for key, value in tensors.items() if value is not None}, tmp_path)
    assert caught.value.where.startswith("model.safetensors")


@pytest.mark.parametrize("group", [4, -2, 1 << 30])
def test_an_order_that_names_no_group(group: int, tmp_path: Path) -> None:
    """Found when the column is read: other columns of the same weight can still be."""
    tensors = PACKERS["gptq"](W, "a")
    order = np.array(tensors["a.g_idx"])
    order[100] = group
    file = opened({**tensors, "a.g_idx": order}, tmp_path)
    assert np.isfinite(file.read([Window("a.weight", 0, 64, 0, 100)])[0]).all()
    with pytest.raises(FormatError, match=f"'a.g_idx' names group {group} of 4"):
        whole(file)


@pytest.mark.parametrize(
    ("scheme", "part"), [("gptq", "a.scales"), ("nf4", "a.weight.absmax"), ("mlx", "a.biases")]
)
def test_scales_that_are_no_numbers_spoil_their_own_values_only(
    scheme: str, part: str, tmp_path: Path
) -> None:
    tensors = PACKERS[scheme](W, "a")
    scales = np.array(tensors[part])
    scales.flat[0] = np.nan
    values = whole(opened({**tensors, part: scales}, tmp_path))
    assert 0 < np.isnan(values).sum() <= 64
    assert np.isnan(values[0, 0])


def test_an_empty_weight_is_no_accident(tmp_path: Path) -> None:
    empty = {"a.qweight": np.ones((0, 64), np.int32), "a.qzeros": np.ones((1, 8), np.int32)}
    file = opened({**empty, "a.scales": np.ones((1, 64), np.float16)}, tmp_path)
    assert whole(file).shape == (64, 0)


KEYS = (
    *("quantization_config", "quantization", "bits", "group_size", "config_groups", "weights", "a", "layer"),
    *("num_bits", "weight_block_size", "checkpoint_format", "text_config", "format"),
)
CONFIGURATIONS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(config=CONFIGURATIONS, name=st.sampled_from(sorted(path.stem for path in FILES.glob("*.safetensors"))))
def test_any_configuration_is_a_hint_at_most(config: Any, name: str) -> None:
    blob = MemoryBlob("model.safetensors", (FILES / f"{name}.safetensors").read_bytes())
    found = unpack(
        open_safetensors([blob]), config if isinstance(config, dict) else {"quantization_config": config}
    )
    assert isinstance(found, QuantisedFile | Absent)
    if isinstance(found, QuantisedFile):
        (weight,) = (info.name for info in found.tensors.values() if info.is_quantised)
        assert np.isfinite(whole(found, weight)).all()


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damage_is_a_typed_error_or_other_values(data: st.DataObject) -> None:
    """Flipped bytes anywhere behind the length, headers included."""
    path = data.draw(st.sampled_from(sorted(FILES.glob("*.safetensors"))))
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        limit = 8 + header if data.draw(st.booleans()) else len(content)
        content[data.draw(st.integers(8, limit - 1))] = data.draw(st.integers(0, 255))
    try:
        file = unpack(open_safetensors([MemoryBlob("model.safetensors", bytes(content))]), {})
        if not isinstance(file, Absent):
            for info in file.tensors.values():
                rows, columns = info.matrix_shape
                file.read([Window(info.name, 0, rows, 0, columns)])
    except DrupeError:
        pass


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_shapes_and_types_are_decoded_or_refused(data: st.DataObject) -> None:
    """The parts of a scheme with other shapes and dtypes: never anything but a typed error."""
    source = data.draw(st.sampled_from([*LARGE.values(), *UNREAD.values()]))
    extents = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 31, 32, 64, 128])
    dtypes = st.sampled_from(["I32", "U8", "F16", "F32", "I8", "U32", "F8_E4M3", "I64", "BF16", "I16"])
    tensors = {}
    for name, (shape, dtype) in source.items():
        rank = len(shape) if data.draw(st.integers(0, 5)) else data.draw(st.integers(0, 4))
        size = tuple(data.draw(extents) for _ in range(rank))
        tensors[name] = (size, dtype if data.draw(st.integers(0, 3)) else data.draw(dtypes))
    try:
        file = unpack(open_safetensors([MemoryBlob("model.safetensors", filled(tensors))]), {})
        if not isinstance(file, Absent):
            for info in file.tensors.values():
                rows, columns = info.matrix_shape
                values = file.read([Window(info.name, 0, rows, 0, columns)])[0]
                assert values.shape == (rows, columns)
                assert values.dtype == np.float32
    except DrupeError:
        pass


def test_a_whole_weight_costs_little_more_than_its_values(tmp_path: Path) -> None:
    """Peak of reading: the values as float32, the packed bytes, and less than one copy more."""
    large = np.random.default_rng(5).standard_normal((1024, 2048)).astype(np.float32)
    for scheme in ("gptq", "awq", "mlx", "hqq"):
        file = opened(PACKERS[scheme](large, "a"), tmp_path)
        tracemalloc.start()
        whole(file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3.2 * large.nbytes, scheme


def test_a_million_bracket_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "quantize_config.json").write_bytes(b"[" * 1_000_000)
    with pytest.raises(DrupeError, match=r"quantize_config\.json"):
        settings_of(LocalTree(tmp_path), {})
    (tmp_path / "quantize_config.json").write_bytes(b" " * (5 << 20))
    with pytest.raises(LimitError, match="5242880 exceeds the limit"):
        settings_of(LocalTree(tmp_path), {})


@pytest.mark.parametrize("ending", ["weight", "codes", "qweight", "scales", "W_q", "absmax", "weight_packed"])
def test_a_tensor_without_a_module_is_a_tensor(ending: str, tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {ending: np.ones((64, 64), np.float32)})
    file = open_safetensors([LocalTree(tmp_path).open("model.safetensors")])
    weights = unpack(file, {})
    assert not isinstance(weights, Absent)
    assert list(weights.tensors) == [ending]
