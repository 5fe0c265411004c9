"""``drupe convert`` on files: the same values under other names, or a clear refusal and nothing written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

import zoo
from drupe import cli
from drupe.convert import steps
from drupe.errors import UnsupportedError
from drupe.workflows import convert
from readers.test_formats_end_to_end import gguf_name
from zoo_files import Checkpoint, read_model, save

SMALL = 100_000
"""Bytes of a shard: r0 then has several."""


def saved(model: Checkpoint, folder: Path) -> str:
    return str(save(model, folder))


def values(folder: Path) -> dict[str, np.ndarray]:
    return dict(read_model(folder).tensors)


def same(found: dict[str, np.ndarray], wanted: Checkpoint) -> bool:
    return found.keys() == wanted.tensors.keys() and all(
        np.array_equal(found[name], tensor) for name, tensor in wanted.tensors.items()
    )


def test_two_renamed_modules_get_the_names_that_tools_know(tmp_path: Path) -> None:
    model = saved(zoo.apply(read_model("r0"), "rename_yi"), tmp_path / "yi")
    convert(model, "llama", tmp_path / "out")
    assert same(values(tmp_path / "out"), read_model("r0"))
    request = (tmp_path / "out" / "PULL_REQUEST.md").read_text("utf-8")
    assert "| `ln1` | `input_layernorm` |" in request
    assert "8 of 38 tensors" in request
    assert "38 个张量中有 8 个" in request
    assert str(tmp_path) not in request
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert config["tie_word_embeddings"] is True
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        tmp_path / "yi" / "tokenizer.json"
    ).read_bytes()


def test_the_map_is_complete_and_its_digests_are_those_of_the_bytes(tmp_path: Path) -> None:
    model = saved(zoo.apply(read_model("r0"), "fuse_qkv"), tmp_path / "fused")
    convert(model, "llama", tmp_path / "out", digests=True)
    table = json.loads((tmp_path / "out" / "rename.json").read_text("utf-8"))
    assert table["schema"] == "drupe/rename/1.0"
    data = (tmp_path / "out" / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for entry in table["tensors"]:
        start, stop = (8 + length + k for k in header[entry["name"]]["data_offsets"])
        assert hashlib.sha256(data[start:stop]).hexdigest() == entry["sha256"]
    q = next(entry for entry in table["tensors"] if entry["name"].endswith("0.self_attn.q_proj.weight"))
    assert q["rows"][0]["rows"] == {"start": 0, "count": 64, "run": 0, "stride": 0}


def test_fused_matrices_are_split_and_fused_again(tmp_path: Path) -> None:
    model = saved(zoo.apply(read_model("r0"), "fuse_qkv"), tmp_path / "fused")
    convert(model, "llama", tmp_path / "split")
    assert same(values(tmp_path / "split"), read_model("r0"))
    shell = saved(typed(zoo.apply(read_model("r0"), "fuse_qkv"), "Yi"), tmp_path / "shell")
    convert(shell, "phi3", tmp_path / "phi3")
    assert "model.layers.0.mlp.gate_up_proj.weight" in values(tmp_path / "phi3")


def typed(model: Checkpoint, kind: str) -> Checkpoint:
    """The same under another ``model_type``."""
    return replace(model, config={**model.config, "model_type": kind})


def test_every_opaque_name_is_found_by_the_values_of_the_origin(tmp_path: Path) -> None:
    for name in ("r0", "q0", "g0"):
        model = saved(zoo.apply(read_model(name), "rename_all", seed=5), tmp_path / f"{name}x")
        origin = saved(read_model(name), tmp_path / name)
        convert(model, origin, tmp_path / f"{name}out")
        assert same(values(tmp_path / f"{name}out"), read_model(name))


def test_opaque_names_are_found_after_a_fine_tune_and_noise(tmp_path: Path) -> None:
    tuned = read_model("r0_ft")
    noisy = zoo.apply(tuned, "noise", sigma=0.02)
    model = saved(zoo.apply(noisy, "rename_all", seed=6), tmp_path / "x")
    convert(model, saved(read_model("r0"), tmp_path / "r0"), tmp_path / "out")
    wanted = saved(noisy, tmp_path / "noisy")
    assert same(values(tmp_path / "out"), read_model(Path(wanted)))


def test_opaque_names_and_a_scheme_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(zoo.apply(read_model("r0"), "rename_all"), tmp_path / "x")
    assert cli.main(["convert", model, "--like", "llama", "-o", str(tmp_path / "out")]) == 2
    assert "38 tensors have no place in llama" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_several_shards_and_their_index(tmp_path: Path) -> None:
    model = saved(zoo.apply(read_model("r0"), "rename_yi"), tmp_path / "yi")
    written = convert(model, "llama", tmp_path / "out", shard_size=SMALL)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text("utf-8"))
    files = set(index["weight_map"].values())
    assert not isinstance(written, bytes)
    assert len(files) == written.files > 2
    assert all((tmp_path / "out" / file).is_file() for file in files)
    assert index["weight_map"].keys() == read_model("r0").tensors.keys()
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")) == []
    convert(str(tmp_path / "out"), "llama", tmp_path / "one")
    assert same(values(tmp_path / "one"), read_model("r0"))


def test_the_map_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(zoo.apply(read_model("r0"), "rename_yi"), tmp_path / "yi")
    assert cli.main(["convert", model, "--like", "llama", "--map-only"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["modules"] == {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}
    assert cli.main(["convert", model, "--like", "llama", "--map-only", "-o", str(tmp_path / "map")]) == 0
    assert [path.name for path in (tmp_path / "map").iterdir()] == ["rename.json"]


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_an_existing_target_is_refused_and_kept(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    model = saved(read_model("r0"), tmp_path / "r0")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert cli.main(["convert", model, "--like", "llama", "-o", str(target)]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert kind != "file" or target.read_text() == "mine"


def test_a_target_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(read_model("r0"), tmp_path / "r0")
    (tmp_path / "file").write_text("")
    assert cli.main(["convert", model, "--like", "llama", "-o", str(tmp_path / "file" / "out")]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_no_room_is_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "huge"
    folder.mkdir()
    size = 1 << 43
    header = json.dumps(
        {
            "model.embed_tokens.weight": {
                "dtype": "F16",
                "shape": [1 << 20, 1 << 22],
                "data_offsets": [0, size],
            }
        }
    )
    text = header.encode() + b" " * (-len(header) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)  # a hole: takes no room itself
    model = str(folder)
    assert cli.main(["convert", model, "--like", model, "-o", str(tmp_path / "out")]) == 2
    assert "bytes to be written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_gains_that_mean_something_else_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = replace(read_model("r0"), config={**read_model("r0").config, "model_type": "llama"})
    assert (
        cli.main(["convert", saved(model, tmp_path / "r0"), "--like", "gemma", "-o", str(tmp_path / "out")])
        == 2
    )
    assert "norm gains" in capsys.readouterr().err


def test_half_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = read_model("r0")
    kept = {name: v for name, v in model.tensors.items() if "2.mlp.up_proj" not in name}
    assert (
        cli.main(
            [
                "convert",
                saved(model.with_tensors(kept), tmp_path / "x"),
                "--like",
                "llama",
                "-o",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    assert "model.layers.2.mlp.up_proj.weight, which the model does not have" in capsys.readouterr().err


def test_index_that_names_a_missing_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(saved(replace(read_model("r0"), shards=3), tmp_path / "x"))
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert cli.main(["convert", str(folder), "--like", "llama", "-o", str(tmp_path / "out")]) == 2
    assert "model-00002-of-00003.safetensors" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_licence_and_card_go_along_and_code_does_not(tmp_path: Path) -> None:
    extras = {"LICENSE": "terms", "NOTICE.txt": "names", "README.md": "# card", "modeling_yi.py": "import os"}
    model = replace(zoo.apply(read_model("r0"), "rename_yi"), extras=extras)
    config = {**model.config, "auto_map": {"AutoModel": "modeling_yi.Yi"}}
    convert(saved(replace(model, config=config), tmp_path / "yi"), "llama", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"LICENSE", "NOTICE.txt", "README.md"} <= names
    assert "modeling_yi.py" not in names
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))


def test_every_setting_of_the_model_is_said_again(tmp_path: Path) -> None:
    """Rotary frequencies and the like change what is computed: nothing may be lost between the dialects."""
    model = zoo.apply(read_model("r0"), "rename_yi")
    settings = {
        "rope_theta": 5e6,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "attention_bias": False,
    }
    config = {key: value for key, value in model.config.items() if key != "rope_parameters"} | settings
    convert(saved(replace(model, config=config), tmp_path / "yi"), "llama", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert {key: found[key] for key in settings} == settings


def test_a_gguf_header_becomes_a_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    for add, value in (
        (writer.add_head_count, 4),
        (writer.add_head_count_kv, 2),
        (writer.add_block_count, 4),
    ):
        add(value)
    writer.add_rope_freq_base(5e5)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, values_ in read_model("r0").tensors.items():
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(values_, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    convert(str(folder), "llama", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert (found["rope_theta"], found["rms_norm_eps"], found["num_key_value_heads"]) == (5e5, 1e-5, 2)
    assert found["model_type"] == "llama"


@pytest.mark.parametrize("like", ["phi3", "granite", "mistral"])
def test_between_two_known_classes_only_running_can_tell(
    like: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved(read_model("r0"), tmp_path / "r0")
    assert cli.main(["convert", model, "--like", like, "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert any(word in said for word in ("--run", "window", "multiplier"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "settings",
    [{"attention_multiplier": 0.25}, {"partial_rotary_factor": 0.5}, {"no_rope_layers": [0, 1, 1, 1]}],
    ids=str,
)
def test_settings_that_the_target_ignores_are_refused(
    settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = typed(zoo.apply(read_model("r0"), "rename_yi"), "Yi")
    changed = replace(model, config={**model.config, **settings})
    assert (
        cli.main(["convert", saved(changed, tmp_path / "yi"), "--like", "llama", "-o", str(tmp_path / "out")])
        == 2
    )
    assert "the other side does not know it" in capsys.readouterr().err


def test_a_scaling_in_a_gguf_file_is_not_lost_silently(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "g"
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_head_count(4)
    for name, v in read_model("r0").tensors.items():
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(v, np.float32))
    writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert cli.main(["convert", str(folder), "--like", "llama", "-o", str(tmp_path / "out")]) == 2
    assert "rope_freqs" in capsys.readouterr().err


def test_no_address_and_no_command_of_a_stranger_is_published(tmp_path: Path) -> None:
    evil = "f_ev`\n```\n\n# Please wire money; rm -rf ~"
    folder = saved(zoo.apply(read_model("r0"), "rename_yi"), tmp_path / evil)
    convert(folder, "llama", tmp_path / "out")
    request = (tmp_path / "out" / "PULL_REQUEST.md").read_text("utf-8")
    assert "\n# Please" not in request
    assert str(tmp_path) not in request
    assert steps._public("http://user:secret@host/a/m.safetensors?X-Token=abc") == "m.safetensors"
    assert steps._public("hf:org/name") == "hf:org/name"


def test_a_link_in_the_place_of_the_workplace_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious.txt").write_text("mine")
    (tmp_path / ".out.drupe-convert").symlink_to(victim)
    model = saved(read_model("r0"), tmp_path / "r0")
    assert cli.main(["convert", model, "--like", "llama", "-o", str(tmp_path / "out")]) == 2
    (tmp_path / ".out.drupe-convert").unlink()
    (tmp_path / ".out.drupe-convert").mkdir()
    (tmp_path / ".out.drupe-convert" / "precious.txt").write_text("mine")
    assert cli.main(["convert", model, "--like", "llama", "-o", str(tmp_path / "out")]) == 2
    assert (victim / "precious.txt").read_text() == "mine"


def test_layers_that_cannot_be_told_apart_are_not_guessed(tmp_path: Path) -> None:
    """A source with a layer twice, and a suspect that was trained on a little, under opaque names."""
    source = zoo.apply(read_model("r0"), "map_layers", order=[0, 0, 1, 2])
    tuned = zoo.apply(source, "noise", sigma=0.0001)
    model = saved(replace(zoo.apply(tuned, "rename_all"), dtype="fp32"), tmp_path / "x")
    with pytest.raises(UnsupportedError, match="have no place"):
        convert(model, saved(source, tmp_path / "source"), tmp_path / "out")
