"""PyTorch: what the library wrote is read bit for bit, in all its layouts; views, nesting, ranges and lies."""

from __future__ import annotations

import functools
import io
import json
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobs import MemoryBlob
from drupe.errors import DrupeError, FormatError, LimitError, UnsupportedError, UsageError
from drupe.readers.dense import DenseFile
from drupe.readers.interface import Absent, FlagKind, Window
from drupe.readers.torch_file import open_torch
from drupe.readers.torch_names import weight_files
from drupe.readers.weights import open_weights
from drupe.sources.local import LocalTree
from drupe.sources.locator import open_tree
from pickle_corpus import SYSTEM, archive, call, dictionary, items, legacy, name, pickled, tensor, text, whole

FILES = Path(__file__).parent / "torch_files"
EXPECTED: dict[str, dict[str, dict[str, object]]] = json.loads((FILES / "expected.json").read_text())
OURS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0", "int64": "I64", "int32": "I32", "int16": "I16",
    "int8": "I8", "uint8": "U8", "uint16": "U16", "bool": "BOOL",
}  # fmt: skip
VALUES = np.arange(6, dtype=np.float32)


def opened(data: bytes, file: str = "model.pt") -> DenseFile:
    return open_torch([MemoryBlob(file, data)])


def values(file: DenseFile, tensor_name: str) -> np.ndarray:
    rows, columns = file.tensors[tensor_name].matrix_shape
    return file.read([Window(tensor_name, 0, rows, 0, columns)])[0]


def state(**entries: bytes) -> bytes:
    return archive(pickled(dictionary(**entries)))


@pytest.mark.parametrize("file", sorted(EXPECTED))
def test_what_torch_wrote_is_read_bit_for_bit(file: str) -> None:
    found = opened((FILES / file).read_bytes(), file)
    assert EXPECTED[file].keys() <= found.tensors.keys()
    for tensor_name, truth in EXPECTED[file].items():
        info = found.tensors[tensor_name]
        assert (list(info.shape), info.dtype) == (truth["shape"], OURS[str(truth["dtype"])])
        assert values(found, tensor_name).tobytes().hex() == truth["values"]
    assert not [flag for flag in found.flags if flag.kind is not FlagKind.NOT_READ]


def test_nothing_but_the_weights_is_taken_from_a_training_checkpoint() -> None:
    for file in ("zip_training.ckpt", "legacy_training.ckpt", "zip_module.pt", "torchscript.pt"):
        assert opened((FILES / file).read_bytes(), file).tensors.keys() == EXPECTED[file].keys()


def test_what_is_not_read_says_why() -> None:
    found = opened((FILES / "zip_refused.pt").read_bytes())
    assert {flag.what: flag.reason for flag in found.flags} == {
        "sparse": "a sparse tensor",
        "quantised": "a quantised tensor of PyTorch",
        "expanded": "20 values expanded from a storage of 4",
        "negative": "its values are to be negated or conjugated",
    }
    assert set(found.tensors) == {"plain"}


def test_complex_numbers_are_listed_and_not_read() -> None:
    found = opened((FILES / "zip_complex.pt").read_bytes())
    assert found.tensors["complex"].dtype == "C64"
    with pytest.raises(UnsupportedError, match="C64"):
        values(found, "complex")


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    for file in FILES.glob("pytorch_model*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    found = open_weights(LocalTree(tmp_path))
    assert not isinstance(found, Absent)
    assert {n: i.file for n, i in found.tensors.items()} == {
        "a": "pytorch_model-00001-of-00002.bin",
        "b": "pytorch_model-00001-of-00002.bin",
        "c": "pytorch_model-00002-of-00002.bin",
    }
    by_index = open_weights(open_tree(str(tmp_path / "pytorch_model.bin.index.json"), offline=True))
    assert not isinstance(by_index, Absent)
    assert by_index.tensors == found.tensors
    (tmp_path / "pytorch_model.bin.index.json").unlink()
    without = open_weights(LocalTree(tmp_path))
    assert not isinstance(without, Absent)
    assert without.tensors == found.tensors


def test_an_index_that_lies(tmp_path: Path) -> None:
    shard = (FILES / "pytorch_model-00002-of-00002.bin").read_bytes()
    (tmp_path / "x.bin").write_bytes(shard)
    for tensor_name, says in (("c", ""), ("d", "which no shard holds")):
        index = {"weight_map": {tensor_name: "x.bin"}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        if says:
            with pytest.raises(FormatError, match=says):
                open_weights(LocalTree(tmp_path))
        else:
            assert not isinstance(open_weights(LocalTree(tmp_path)), Absent)


def test_the_format_is_pinned_by_bytes() -> None:
    """The layout before the zip, written out: shape (2, 3), 0 to 5."""
    data = legacy(pickled(dictionary(w=tensor())))
    assert data.startswith(bytes.fromhex("80028a0a6cfc9c46f9206aa850192e"))
    found = opened(data)
    assert found.format == "torch"
    assert values(found, "w").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert values(opened(state(w=tensor())), "w").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_view_of_a_legacy_storage() -> None:
    """Before 0.4, a storage could be a stretch of another: values 2 to 5 of six."""
    view = items(text("v"), whole(2), whole(4))
    storage = (
        items(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), whole(6), view) + b"Q"
    )
    shape, strides = items(whole(2), whole(2)), items(whole(2), whole(1))
    body = call("torch._utils", "_rebuild_tensor", storage, whole(0), shape, strides)
    assert values(opened(legacy(pickled(dictionary(w=body)))), "w").tolist() == [[2, 3], [4, 5]]
    outside = call("torch._utils", "_rebuild_tensor", storage, whole(1), shape, strides)
    with pytest.raises(LimitError, match="end of a tensor"):
        opened(legacy(pickled(dictionary(w=outside))))


def test_a_compressed_storage_is_unpacked() -> None:
    data = archive(pickled(dictionary(w=tensor())), method=zipfile.ZIP_DEFLATED)
    assert values(opened(data), "w").tolist() == [[0, 1, 2], [3, 4, 5]]


@given(st.data())
def test_any_view_is_the_view_that_numpy_makes(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 3), max_size=4)))
    strides = tuple(data.draw(st.lists(st.integers(0, 3), min_size=len(shape), max_size=len(shape))))
    reach = 1 + sum((e - 1) * s for e, s in zip(shape, strides, strict=True))
    file = state(w=tensor(shape=shape, strides=strides), plain=tensor())
    if reach > 6:
        with pytest.raises(LimitError, match="end of a tensor"):
            opened(file)
        return
    found = opened(file)
    if np.prod(shape, dtype=int) > 6:
        assert [flag.kind for flag in found.flags] == [FlagKind.NOT_READ]
        return
    truth = np.lib.stride_tricks.as_strided(VALUES, shape, [4 * s for s in strides])
    assert np.array_equal(values(found, "w").ravel(), truth.ravel())


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        ({"state_dict": {"a": 1}, "optimizer": {"a": 1, "b": 1}}, ["a"]),
        ({"model": {"a": 1}, "epoch_loss": 0}, ["a"]),
        ({"module": {"a": 1, "b": 1}, "ema": {"a": 1}}, ["a", "b"]),
        ({"encoder": {"a": 1}, "decoder": {"a": 1}}, ["encoder.a", "decoder.a"]),
        ({"only": {"x": {"a": 1}, "y": {"a": 1}}}, ["x.a", "y.a"]),
        ({"a": 1, "model": {"b": 1}, "c": 1}, ["a", "model.b", "c"]),
        ({"net": {"params": {"a": 1}}}, ["a"]),
    ],
)
def test_the_weights_are_found_where_training_programs_put_them(
    entries: dict[str, object], names: list[str]
) -> None:
    def body(value: object) -> bytes:
        if isinstance(value, dict):
            return dictionary(**{key: body(item) for key, item in value.items()})
        return tensor() if value else b"K\x00"

    assert list(opened(archive(pickled(body(entries)))).tensors) == names


def test_two_tensors_of_one_name() -> None:
    with pytest.raises(FormatError, match=r"two tensors are named 'm\.a'"):
        opened(state(**{"m.a": tensor(), "m": dictionary(a=tensor()), "n": tensor()}))


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", FormatError, "ends in the middle"),
        (b"PK\x03\x04", FormatError, "no end of a zip directory"),
        (archive(pickled(b"}")), UnsupportedError, "no tensor"),
        (archive(b""), FormatError, "ends in the middle"),
        (archive(pickled(tensor()))[:-1], FormatError, "no end of a zip directory"),
        (legacy(pickled(b"}")), FormatError, "'0' is listed twice or never used"),
        (legacy(pickled(dictionary(w=tensor())))[:-1], LimitError, "end of the storage '0'"),
        (
            legacy(pickled(dictionary(w=tensor(count=5, shape=(5,), strides=(1,))))),
            FormatError,
            "another number",
        ),
        (legacy(pickled(dictionary(w=tensor("1")))), FormatError, "'0' is listed twice or never used"),
        (
            legacy(pickled(b"N"), system=pickled(dictionary(little_endian=b"\x89"))),
            UnsupportedError,
            "little-endian",
        ),
        (
            legacy(pickled(dictionary(a=tensor(), b=tensor(count=3, shape=(1,), strides=(1,))))),
            FormatError,
            "two sizes",
        ),
        (state(w=tensor(count=7)), LimitError, "a storage claims to hold: 28 exceeds the limit of 24"),
        (state(w=tensor(key="9")), FormatError, "no entry 'archive/data/9'"),
        (state(w=tensor(shape=(1,) * 9, strides=(1,) * 9)), LimitError, "rank: 9"),
        (state(w=tensor(shape=(1 << 30, 1 << 30), strides=(0, 0))), LimitError, "values of a tensor"),
        (state(w=tensor(count=-1)), FormatError, "a storage of -1 values"),
        (state(w=tensor(shape=(2,), strides=(1, 1))), FormatError, "2 numbers instead of 1"),
        (state(**{"n" * 5000: tensor()}), LimitError, "tensor name: 5000"),
        (SYSTEM, FormatError, "not a checkpoint of PyTorch"),
    ],
)
def test_a_lie_is_a_typed_error(data: bytes, error: type[DrupeError], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        opened(data)
    assert caught.value.where.startswith("model.pt")


def test_big_endian_archives_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="little-endian"):
        opened(archive(pickled(dictionary(w=tensor())), {"byteorder": b"big"}))


def test_only_weights_are_chosen_among_the_files_of_a_folder() -> None:
    assert weight_files(["a/optimizer.pt", "a/scheduler.pt", "a/rng_state.pth", "a/model.pt"]) == [
        "a/model.pt"
    ]
    assert weight_files(["pytorch_model.bin", "other.bin"]) == ["pytorch_model.bin"]
    assert weight_files(["optimizer.pt", "rng_state.pth"]) == []
    with pytest.raises(UsageError, match="several models"):
        weight_files(["x.pt", "y.pt"])


def test_the_arguments_of_a_training_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "training_args.bin").write_bytes(state(w=tensor()))
    assert isinstance(open_weights(LocalTree(tmp_path)), Absent)
    chosen = open_weights(open_tree(str(tmp_path / "training_args.bin"), offline=True))
    assert not isinstance(chosen, Absent)
    assert list(chosen.tensors) == ["w"]


def test_another_programs_bin_is_not_taken_for_weights(tmp_path: Path) -> None:
    (tmp_path / "noise.bin").write_bytes(b"\x01\x02\x03" * 100)
    assert isinstance(open_weights(LocalTree(tmp_path)), Absent)


def sparse_checkpoint(path: Path, rows: int, columns: int, tensors: int) -> None:
    """A checkpoint of zeros that takes no disk: the archive's entries lie in a hole of the file."""
    size = 4 * rows * columns
    bodies = {
        f"l.{k}.w": tensor(str(k), rows * columns, (rows, columns), (columns, 1)) for k in range(tensors)
    }
    entries = [("archive/data.pkl", pickled(dictionary(**bodies)), 0)]
    entries += [(f"archive/data/{k}", b"", size) for k in range(tensors)]
    central = io.BytesIO()
    with path.open("wb") as file:
        for entry, content, hole in entries:
            raw, length, at = entry.encode(), len(content) + hole, file.tell()
            crc = zlib.crc32(content)  # of the holes it is not asked for
            head = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 0, crc, length, length, len(raw), 0)
            file.write(b"PK\x03\x04" + head + raw + content)
            file.seek(hole, 1)
            head = struct.pack(
                "<HHHHHHIIIHHHHHII", 20, 20, 0, 0, 0, 0, crc, length, length, len(raw), 0, 0, 0, 0, 0, at
            )
            central.write(b"PK\x01\x02" + head + raw)
        start, directory = file.tell(), central.getvalue()
        count = len(entries)
        file.write(
            directory + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory), start, 0)
        )


@pytest.mark.parametrize(("rows", "tensors"), [(1024, 4), (8192, 16)])
def test_a_few_rows_cost_a_few_kilobytes(tmp_path: Path, rows: int, tensors: int) -> None:
    """64 MB, and 2 GB: headers and the rows asked for, whatever the size; memory likewise."""
    sparse_checkpoint(tmp_path / "big.pt", rows, 4096, tensors)
    tree = LocalTree(tmp_path)
    tracemalloc.start()
    file = open_torch([tree.open("big.pt")])
    headers = tree.meter.bytes_read
    read = file.read([Window(f"l.{k}.w", 100, 108, 0, 4096) for k in range(tensors)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(array.size for array in read) == tensors * 8 * 4096
    assert headers < 20_000
    assert tree.meter.bytes_read - headers == tensors * 8 * 4096 * 4
    assert peak < 20 << 20


SAMPLES = ("zip_views.pt", "legacy_protocol_2.pt", "zip_training.ckpt", "zip_protocol_4.pt", "torchscript.pt")


@functools.cache
def sample(file: str) -> bytes:
    return (FILES / file).read_bytes()


def survives(data: bytes) -> None:
    """Opens and reads, or fails with an error of ours."""
    try:
        file = opened(data)
        for tensor_name in file.tensors:
            values(file, tensor_name)
    except DrupeError:
        pass


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_flipped_bytes(file: str, data: st.DataObject) -> None:
    raw = bytearray(sample(file))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    survives(bytes(raw))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_cut_and_spliced_files(file: str, data: st.DataObject) -> None:
    raw = sample(file)
    a, b = sorted(data.draw(st.lists(st.integers(0, len(raw)), min_size=2, max_size=2)))
    survives(raw[:a] + data.draw(st.binary(max_size=20)) + raw[b:])


OPCODES = st.one_of(
    st.sampled_from(list(b"(.012NRabdelostu])}Q\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94")).map(
        lambda code: bytes([code])
    ),
    st.integers(0, 5).map(lambda n: b"K" + bytes([n])),
    st.integers(0, 5).map(lambda n: b"q" + bytes([n])),
    st.integers(0, 5).map(lambda n: b"h" + bytes([n])),
    st.integers(-3, 1 << 30).map(whole),
    st.sampled_from(["storage", "0", "cpu", "state_dict", "model", "_modules", "_parameters"]).map(text),
    st.sampled_from([("torch", "FloatStorage"), ("torch._utils", "_rebuild_tensor_v2"), ("torch", "bfloat16"),
                     ("torch._utils", "_rebuild_parameter"), ("collections", "OrderedDict"), ("torch", "Size"),
                     ("torch._tensor", "_rebuild_from_type_v2"), ("torch.jit._pickle", "restore_type_tag")])
    .map(lambda pair: name(*pair)),
    st.just(tensor()),
    st.just(dictionary(a=tensor())),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(OPCODES, max_size=40), st.booleans())
def test_programs_of_opcodes(program: list[bytes], is_legacy: bool) -> None:
    """Structure-aware: valid instructions and the pieces of real checkpoints, in any order."""
    data = pickled(b"".join(program))
    survives(legacy(data) if is_legacy else archive(data))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["w", "b", "0", "model"]), st.integers(0, 9), st.integers(-2, 9)),
        max_size=6,
    )
)
def test_dictionaries_of_odd_tensors(entries: list[tuple[str, int, int]]) -> None:
    bodies = {
        key: tensor(str(count % 2), count, (count, extent % 4), (extent, 1)) for key, count, extent in entries
    }
    survives(state(**bodies))
