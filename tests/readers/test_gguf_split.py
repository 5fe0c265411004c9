"""Split GGUF: parts written by the reference are one model, whichever is named; every lie is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from drupe.errors import DrupeError, FormatError, LimitError, UsageError
from drupe.readers.gguf import GgufFile
from drupe.readers.gguf_split import open_gguf_model
from drupe.readers.interface import Absent, WeightFile, Window
from drupe.readers.weights import open_weights
from drupe.sources.local import LocalTree

RANDOM = np.random.default_rng(0)
TENSORS = {
    f"blk.{layer}.{name}.weight": RANDOM.normal(0, 0.02, (32, 64)).astype(np.float32)
    for layer in range(6)
    for name in ("attn_q", "ffn_up")
}


def write(path: Path, *, split: bool, first_without_tensors: bool = False) -> None:
    """A llama whose q are interleaved; the reference splits it into files of four tensors."""
    options = {"split_max_tensors": 4, "small_first_shard": first_without_tensors} if split else {}
    writer = gguf.GGUFWriter(path, "llama", **options)
    writer.add_name("Pico")
    writer.add_head_count(2)
    writer.add_token_list(["a", "b", "c"])
    for name, values in TENSORS.items():
        stored = values.reshape(2, 2, 8, 64).swapaxes(1, 2).reshape(32, 64) if "attn_q" in name else values
        writer.add_tensor(name, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def names(count: int = 3, stem: str = "model") -> list[str]:
    return [f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "model.gguf", split=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == names()
    return tmp_path


def opened(path: Path) -> WeightFile:
    weights = open_weights(LocalTree(path))
    assert not isinstance(weights, Absent)
    return weights


def check(weights: WeightFile) -> None:
    windows = [Window(name, 0, 32, 0, 64) for name in TENSORS]
    for name, values in zip(TENSORS, weights.read(windows), strict=True):
        np.testing.assert_array_equal(values, TENSORS[name])
    crop = weights.read(
        [Window("blk.5.attn_q.weight", 9, 20, 5, 40), Window("blk.0.ffn_up.weight", 1, 2, 0, 9)]
    )
    np.testing.assert_array_equal(crop[0], TENSORS["blk.5.attn_q.weight"][9:20, 5:40])
    np.testing.assert_array_equal(crop[1], TENSORS["blk.0.ffn_up.weight"][1:2, :9])


def test_the_folder_is_one_model(folder: Path) -> None:
    weights = opened(folder)
    assert isinstance(weights, GgufFile)
    assert set(weights.tensors) == set(TENSORS)
    assert weights.metadata["general.name"] == "Pico"
    assert weights.array("tokenizer.ggml.tokens") == ["a", "b", "c"]
    assert sorted(weights.headers) == names()
    assert {info.file for info in weights.tensors.values()} == set(names())
    check(weights)


@pytest.mark.parametrize("number", range(3))
def test_any_part_opens_the_model(folder: Path, number: int) -> None:
    check(opened(folder / names()[number]))


def test_the_first_part_may_hold_the_metadata_alone(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", split=True, first_without_tensors=True)
    assert len(list(tmp_path.iterdir())) == 4
    weights = opened(tmp_path)
    check(weights)
    assert names(4)[0] not in {info.file for info in weights.tensors.values()}


def test_parts_in_a_subfolder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "Q8").mkdir()
    for name in names():
        shutil.move(tmp_path / name, tmp_path / "Q8" / name)
    check(opened(tmp_path))


def test_several_models_in_one_folder_are_the_users_choice(folder: Path) -> None:
    for name, other in zip(names(), names(stem="model-Q8_0"), strict=True):
        shutil.copy(folder / name, folder / other)
    with pytest.raises(UsageError, match=r"model-00001-of-00003\.gguf, model-Q8_0-00001-of-00003\.gguf"):
        open_weights(LocalTree(folder))
    check(opened(folder / names(stem="model-Q8_0")[1]))


def _exchanged(folder: Path) -> None:
    first, second, _ = names()
    (folder / second).write_bytes((folder / first).read_bytes())


def _other_count(folder: Path) -> None:
    for number, name in enumerate(names()):
        shutil.move(folder / name, folder / names(4)[number])
    shutil.copy(folder / names(4)[2], folder / names(4)[3])


def _edited(key: bytes, value: int, part: int = 0) -> Callable[[Path], None]:
    """Another value of a field: key, type number (uint16 or int32), value."""

    def edit(folder: Path) -> None:
        path = folder / names()[part]
        data = bytearray(path.read_bytes())
        start = data.index(key) + len(key) + 4
        width = 4 if key == b"split.tensors.count" else 2
        data[start : start + width] = value.to_bytes(width, "little")
        path.write_bytes(data)

    return edit


def _as_text(folder: Path) -> None:
    path = folder / names()[0]
    data = path.read_bytes()
    start = data.index(b"split.count") + len(b"split.count")
    path.write_bytes(data[:start] + b"\x07\0\0\0" + data[start + 4 :])


def _repeated(folder: Path) -> None:
    """The third part holds the second's tensors."""
    _, second, third = names()
    (folder / third).write_bytes((folder / second).read_bytes())
    _edited(b"split.no", 2, 2)(folder)


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing part": (
        lambda folder: (folder / names()[1]).unlink(),
        "part 'model-00002-of-00003.gguf' is missing",
    ),
    "the first part twice": (_exchanged, "split.no and split.count are .0, 3., its name says .1, 3."),
    "another count in the names": (_other_count, "split.count is 3, its name says 4"),
    "another count in one part": (_edited(b"split.count", 2, 1), "are .1, 2., its name says .1, 3."),
    "a count beyond all models": (_edited(b"split.count", 60_000), "60000 exceeds the limit of 512"),
    "too few tensors": (_edited(b"split.tensors.count", 13), "count is 13, the parts hold 12"),
    "a tensor in two parts": (_repeated, "is also in model-00002-of-00003.gguf"),
    "a count that is no number": (_as_text, "."),
    "a part that is something else": (
        lambda folder: (folder / names()[2]).write_bytes(b"PK\3\4" * 20),
        "magic",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_lie_is_a_typed_error(folder: Path, what: str) -> None:
    spoil, says = WRONG[what]
    spoil(folder)
    with pytest.raises(FormatError, match=says) as caught:
        open_weights(LocalTree(folder))
    assert ".gguf" in caught.value.where


def test_a_part_under_another_name_says_so(folder: Path) -> None:
    shutil.move(folder / names()[1], folder / "other.gguf")
    with pytest.raises(FormatError, match="one of 3 parts"):
        open_gguf_model(LocalTree(folder), "other.gguf")


def test_every_byte_of_the_split_fields_gives_a_model_or_a_typed_error(folder: Path) -> None:
    path = folder / names()[0]
    whole = path.read_bytes()
    start = whole.index(b"split.no")
    refused = 0
    for place in range(start - 8, whole.index(b"split.tensors.count") + 30):
        for value in (0, 255):
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                opened(folder)
            except DrupeError as error:
                refused += isinstance(error, FormatError | LimitError)
    assert refused > 30
