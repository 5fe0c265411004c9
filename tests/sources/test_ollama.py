"""Ollama's store, made as Ollama makes it, and its registry over a real connection."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drupe import workflows
from drupe.errors import (
    DrupeError,
    FormatError,
    LimitError,
    LocatorError,
    OfflineError,
    SourceError,
    UnsafePathError,
    UnsupportedError,
)
from drupe.sources.ollama import OllamaTree, parse_name
from drupe.sources.transfer import Limits
from range_server import OllamaModel, RangeServer
from zoo_files import read_safetensors

WEIGHTS = random.Random(4).randbytes(1 << 20)
LICENCE = b"Apache License\nCopyright 2024 Example Org\n"
MODEL = OllamaModel(
    [
        ("model", WEIGHTS, {"from": "qwen2.5:0.5b"}),
        ("license", LICENCE, {}),
        ("license", b"second", {}),
        ("template", b"{{ .Prompt }}", {}),
        ("system", b"You are Mario.", {}),
        ("params", b'{"stop": ["<|im_end|>"]}', {}),
        ("adapter", b"GGUF adapter", {}),
        ("projector", b"GGUF projector", {}),
        ("strange; name=x", b"?", {}),
    ]
)
QUICK = Limits(backoff_s=0.0)
NAMES = [
    *("LICENSE", "LICENSE-2", "Modelfile", "Modelfile.PARAMETER", "Modelfile.SYSTEM", "Modelfile.TEMPLATE"),
    *("adapter/adapter.gguf", "layers/strange", "model.gguf", "projector/mmproj.gguf"),
]


def store(folder: Path, path: str, model: OllamaModel) -> Path:
    """``manifests/HOST/NAMESPACE/NAME/TAG`` and ``blobs/sha256-HEX``."""
    manifest = folder / "manifests" / path
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_bytes(model.manifest)
    (folder / "blobs").mkdir(exist_ok=True)
    for digest, content in model.blobs.items():
        (folder / "blobs" / f"sha256-{digest}").write_bytes(content)
    return folder


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    return store(tmp_path / "models", "registry.ollama.ai/library/tiny/latest", MODEL)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "empty"))
    with RangeServer() as running:
        monkeypatch.setenv("DRUPE_OLLAMA_REGISTRY", running.url)
        running.ollama["library/tiny:latest"] = MODEL
        yield running


def _check(tree: OllamaTree) -> None:
    assert tree.revision == f"sha256:{hashlib.sha256(MODEL.manifest).hexdigest()}"
    assert list(tree.files()) == NAMES
    assert tree.files()["model.gguf"] == len(WEIGHTS)
    assert tree.open("LICENSE").read(0, len(LICENCE)) == LICENCE
    assert tree.open("Modelfile.SYSTEM").read(0, 14) == b"You are Mario."
    assert tree.open("model.gguf").read_many([(900_000, 9), (0, 4)]) == [
        WEIGHTS[900_000:900_009],
        WEIGHTS[:4],
    ]
    assert tree.known_digests["model.gguf"] == hashlib.sha256(WEIGHTS).hexdigest()


def test_the_local_store_is_read_in_place(models: Path) -> None:
    tree = OllamaTree("ollama:tiny", offline=True)
    _check(tree)
    assert tree.is_local


def test_the_modelfile_says_what_the_manifest_says(models: Path) -> None:
    blob = OllamaTree("ollama:tiny", offline=True).open("Modelfile")
    lines = blob.read(0, blob.size).decode().splitlines()
    assert "FROM qwen2.5:0.5b" in lines
    assert f"ADAPTER sha256:{hashlib.sha256(b'GGUF adapter').hexdigest()}" in lines
    assert [line for line in lines if line.startswith("# adapter/") and "not applied" in line]
    assert [line for line in lines if line.startswith("# projector/") and "not compared" in line]


def test_the_registry_is_read_by_ranges_and_nothing_is_pulled(server: RangeServer) -> None:
    tree = OllamaTree("ollama:tiny", limits=QUICK)
    _check(tree)
    assert not tree.is_local
    assert "docker.distribution.manifest.v2+json" in server.log[0].headers["accept"]
    ranges = [request.range for request in server.log if "/cdn/" in request.path and request.range]
    assert (900_000, 900_008) in ranges
    assert sum(stop - start for start, stop in ranges) < len(WEIGHTS)


def test_offline_the_registry_is_what_was_read_of_it(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRUPE_CACHE", str(tmp_path / "drupe"))
    monkeypatch.delenv("DRUPE_CACHE_LIMIT")
    with pytest.raises(OfflineError, match=r"neither in Ollama's store nor in the cache"):
        OllamaTree("ollama:tiny", offline=True)
    _check(OllamaTree("ollama:tiny", limits=QUICK))
    server.log.clear()
    _check(OllamaTree("ollama:tiny", offline=True))
    with pytest.raises(OfflineError, match=r"not in the cache"):
        OllamaTree("ollama:tiny", offline=True).open("adapter/adapter.gguf").read(0, 1)
    assert server.log == []
    _check(OllamaTree("ollama:tiny", limits=QUICK))
    assert server.paths() == ["/v2/library/tiny/manifests/latest"]


@pytest.mark.parametrize(
    ("locator", "path"),
    [
        ("ollama:tiny:1b", "registry.ollama.ai/library/tiny/1b"),
        ("ollama:me/tiny", "registry.ollama.ai/me/tiny/latest"),
        ("ollama:hf.co/org/tiny:Q4_K_M", "hf.co/org/tiny/Q4_K_M"),
        ("ollama:localhost:5000/org/tiny", "localhost:5000/org/tiny/latest"),
    ],
)
def test_names_lead_to_manifests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locator: str, path: str
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(store(tmp_path, path, MODEL)))
    _check(OllamaTree(locator, offline=True))


@given(st.text(max_size=30))
def test_no_name_leads_out_of_the_store(text: str) -> None:
    try:
        name = parse_name(f"ollama:{text}")
    except LocatorError:
        return
    for part in (name.host, name.namespace, name.model, name.tag):
        assert part
        assert "/" not in part
        assert part not in (".", "..")


def test_a_missing_or_partial_layer_says_to_pull(models: Path) -> None:
    blob = models / "blobs" / f"sha256-{hashlib.sha256(WEIGHTS).hexdigest()}"
    blob.write_bytes(WEIGHTS[:1000])
    with pytest.raises(
        SourceError, match=r"has 1000 of 1048576 bytes in the store \(run: ollama pull tiny\)"
    ):
        OllamaTree("ollama:tiny").open("model.gguf")
    blob.unlink()
    with pytest.raises(SourceError, match=r"is missing from the store"):
        OllamaTree("ollama:tiny").open("model.gguf")


def test_a_link_out_of_the_store_is_refused(models: Path, tmp_path: Path) -> None:
    blob = models / "blobs" / f"sha256-{hashlib.sha256(WEIGHTS).hexdigest()}"
    shutil.move(blob, tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePathError):
        OllamaTree("ollama:tiny").open("model.gguf")


def test_a_text_that_is_not_what_its_digest_says_is_a_format_error(models: Path, server: RangeServer) -> None:
    digest = hashlib.sha256(LICENCE).hexdigest()
    (models / "blobs" / f"sha256-{digest}").write_bytes(LICENCE.replace(b"Example", b"Another"))
    server.redirects[f"/v2/library/tiny/blobs/sha256:{digest}"] = "/lie"
    server.files["/lie"] = LICENCE.replace(b"Example", b"Another")
    with pytest.raises(FormatError, match=r"LICENSE: the layer has the digest .*, not"):
        OllamaTree("ollama:tiny", limits=QUICK).open("LICENSE")


def _manifest(*layers: object) -> bytes:
    return json.dumps({"layers": list(layers)}).encode()


DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"no JSON", FormatError, r"no JSON"),
        (b"[" * 100_000, FormatError, r"no JSON"),
        (b"{}", FormatError, r"lists no layers"),
        (
            _manifest({"mediaType": "x", "digest": "sha256:../../etc/passwd", "size": 1}),
            FormatError,
            r"a layer",
        ),
        (_manifest({"mediaType": "x", "digest": DIGEST, "size": -1}), FormatError, r"a layer without"),
        (_manifest({"mediaType": "x", "digest": DIGEST, "size": "1"}), FormatError, r"a layer without"),
        (_manifest(*[0] * 5000), LimitError, r"layers of a model: 5000 exceeds the limit of 4096"),
        (
            _manifest(
                {"mediaType": "application/vnd.ollama.image.tensor; name=a", "digest": DIGEST, "size": 1}
            ),
            UnsupportedError,
            r"tensor by tensor, not as GGUF",
        ),
        (b" " * (5 << 20), DrupeError, r"size of a manifest: 5242880 exceeds|more than 4194304"),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_a_bad_manifest_is_a_typed_error(
    models: Path,
    server: RangeServer,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    kind: type[DrupeError],
    message: str,
    remote: bool,
) -> None:
    if not remote:
        monkeypatch.setenv("OLLAMA_MODELS", str(models))
    (models / "manifests/registry.ollama.ai/library/tiny/latest").write_bytes(content)
    server.redirects["/v2/library/tiny/manifests/latest"] = "/manifest"
    server.files["/manifest"] = content
    with pytest.raises(kind, match=message):
        OllamaTree("ollama:tiny", limits=QUICK)


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (404, LocatorError, r"neither in Ollama's store nor in the registry .*ollama list"),
        (401, SourceError, r"refuses access \(HTTP 401\)"),
        (403, SourceError, r"refuses access \(HTTP 403\)"),
        (500, SourceError, r"HTTP 500, 4 attempts"),
        (429, SourceError, r"HTTP 429, 4 attempts .*try again later"),
    ],
)
def test_a_refusal_of_the_registry_is_said(
    server: RangeServer, status: int, kind: type[DrupeError], message: str
) -> None:
    server.failures["/v2/library/tiny/manifests/latest"] = [status] * 9
    with pytest.raises(kind, match=message):
        OllamaTree("ollama:tiny", limits=QUICK)


def test_plain_http_is_refused_but_from_the_configured_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    monkeypatch.setenv("DRUPE_OLLAMA_REGISTRY", "http://192.0.2.1")
    with pytest.raises(OfflineError):
        OllamaTree("ollama:tiny", offline=True)


def test_several_model_layers_are_the_parts_of_a_split_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = OllamaModel([("model", b"GGUF1", {}), ("model", b"GGUF2", {})])
    monkeypatch.setenv("OLLAMA_MODELS", str(store(tmp_path, "registry.ollama.ai/library/big/latest", parts)))
    names = [name for name in OllamaTree("ollama:big").files() if name != "Modelfile"]
    assert names == ["model-00001-of-00002.gguf", "model-00002-of-00002.gguf"]


# -- end to end ------------------------------------------------------------------------------------------------

R0 = Path(__file__).parents[1] / "models" / "r0"
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
}


def as_gguf(path: Path) -> bytes:
    """``r0`` as llama.cpp's converter writes it: other names, interleaved rows of q and k."""
    tensors, _ = read_safetensors(R0 / "model.safetensors")
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (("block_count", 4), ("embedding_length", 64), ("feed_forward_length", 128)):
        writer.add_uint32(f"llama.{key}", value)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    for name, values in tensors.items():
        layer = re.match(r"model\.layers\.(\d+)\.(.+)\.weight", name)
        short = GGUF_NAMES[layer[2] if layer else name.removesuffix(".weight")]
        if short in ("attn_q", "attn_k"):
            values = values.reshape(-1, 2, 8, 64).swapaxes(1, 2).reshape(values.shape)
        prefix = f"blk.{layer[1]}." if layer else ""
        writer.add_tensor(f"{prefix}{short}.weight", np.ascontiguousarray(values, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize(
    ("further", "disclosure"),
    [
        ([], "unknown"),
        ([("template", b"{{ .System }} {{ .Prompt }}", {}), ("license", LICENCE, {})], "unknown"),
        ([("system", b"You are a shop assistant, built on Quokka-7B.", {})], "disclosed"),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_a_model_of_ollama_is_compared_and_its_texts_are_evidence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server: RangeServer,
    further: list[tuple[str, bytes, dict[str, object]]],
    disclosure: str,
    remote: bool,
) -> None:
    source = shutil.copytree(R0, tmp_path / "Quokka-7B")
    model = OllamaModel([("model", as_gguf(tmp_path / "r0.gguf"), {}), *further])
    server.ollama["library/shop:latest"] = model
    if not remote:
        folder = store(tmp_path / "models", "registry.ollama.ai/library/shop/latest", model)
        monkeypatch.setenv("OLLAMA_MODELS", str(folder))
    report: Any = workflows.compare("ollama:shop", str(source), offline=not remote)
    assert report["verdict"]["label"] == "copy"
    assert report["verdict"]["disclosure"] == disclosure
    assert report["suspect"]["revision"] == f"sha256:{hashlib.sha256(model.manifest).hexdigest()}"
    if ("license", LICENCE, {}) in further:
        said: Any = workflows.inspect("ollama:shop", offline=not remote)
        assert said["declared"]["copyright"] == ["Example Org"]


def test_the_parent_that_ollama_notes_discloses_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(R0, tmp_path / "Quokka-7B")
    model = OllamaModel([("model", as_gguf(tmp_path / "r0.gguf"), {"from": "quokka-7b:latest"})])
    monkeypatch.setenv("OLLAMA_MODELS", str(store(tmp_path, "registry.ollama.ai/library/shop/latest", model)))
    report: Any = workflows.compare("ollama:shop", str(source), offline=True)
    assert report["verdict"]["disclosure"] == "disclosed"
