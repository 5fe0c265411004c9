"""Models of Ollama: from its store on this machine, else read by ranges from the registry, nothing pulled.

The store (OLLAMA_MODELS, else ``~/.ollama/models``) holds ``manifests/HOST/NAMESPACE/NAME/TAG``, JSON that lists
layers by media type, size and digest, and ``blobs/sha256-HEX`` (https://github.com/ollama/ollama,
``types/model/name.go``, ``manifest/``, ``server/images.go``). The registry answers the same manifest at
``/v2/NAMESPACE/NAME/manifests/TAG`` and the layers at ``/v2/NAMESPACE/NAME/blobs/sha256:HEX``.

The layers become files with plain names: the weights ``model.gguf``, the texts ``LICENSE``, ``Modelfile.SYSTEM``,
``Modelfile.TEMPLATE``, ``Modelfile.PARAMETER`` and ``Modelfile.MESSAGE``; adapters and projectors lie in folders of
their own. ``Modelfile`` is written here: it says what the manifest says of each layer.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drupe.errors import (
    DrupeError,
    FormatError,
    LimitError,
    LocatorError,
    OfflineError,
    SourceError,
    UnsupportedError,
)
from drupe.sources.cache import open_cache
from drupe.sources.interface import Blob, Meter, Span
from drupe.sources.local import LocalTree
from drupe.sources.paths import check_name
from drupe.sources.ranged import HttpBlob
from drupe.sources.spans import check_span
from drupe.sources.transfer import Limits, RefusedError, Session
from drupe.sources.urls import OLLAMA, check_scheme, ollama_registry

MAX_MANIFEST = 4 << 20
MAX_LAYERS = 4096
MAX_TEXT = 1 << 20
"""Layers of text up to here are verified against their digest when they are read."""
_NAME = re.compile(
    r"ollama:(?:(?P<host>[\w.-]+(?::\d{1,5})?)/(?=[^/]+/))?(?:(?P<namespace>[\w-]+)/)?"
    r"(?P<model>[\w.-]+)(?::(?P<tag>[\w.-]+))?",
    re.ASCII,
)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
_LAYER_TYPE = "application/vnd.ollama.image."
_FILES = {
    "model": "model.gguf",
    "adapter": "adapter/adapter.gguf",
    "projector": "projector/mmproj.gguf",
    "license": "LICENSE",
    "system": "Modelfile.SYSTEM",
    "template": "Modelfile.TEMPLATE",
    "prompt": "Modelfile.TEMPLATE",
    "params": "Modelfile.PARAMETER",
    "messages": "Modelfile.MESSAGE",
}
_REASONS = {
    "model": "the weights",
    "adapter": "listed, not applied: the weights are compared without it",
    "projector": "listed, not compared: it belongs to an encoder of images or sound, not to the language model",
}


@dataclass(frozen=True, slots=True)
class Name:
    """``HOST/NAMESPACE/MODEL:TAG``; what is not written is that of Ollama's own library."""

    host: str
    namespace: str
    model: str
    tag: str


@dataclass(frozen=True, slots=True)
class Layer:
    """One blob; ``parent`` is the model that Ollama notes as its origin."""

    kind: str
    size: int
    sha256: str
    parent: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The layers by file name, and the SHA-256 of the manifest itself: what Ollama shows as ID."""

    sha256: str
    layers: Mapping[str, Layer]


def parse_name(locator: str) -> Name:
    """The parts of ``ollama:[[HOST/]NAMESPACE/]NAME[:TAG]``.

    >>> parse_name("ollama:llama3.2:1b")
    Name(host='registry.ollama.ai', namespace='library', model='llama3.2', tag='1b')
    """
    match = _NAME.fullmatch(locator)
    parts = match.groupdict() if match else {}
    if match is None or any(part and (".." in part or part == ".") for part in parts.values()):
        raise LocatorError("not of the form ollama:[NAMESPACE/]NAME[:TAG]", where=locator)
    library = OLLAMA.partition("://")[2]
    host, namespace = parts["host"] or library, parts["namespace"] or "library"
    return Name(host, namespace, str(parts["model"]), parts["tag"] or "latest")


def stores() -> list[Path]:
    """Where Ollama keeps models: OLLAMA_MODELS, else the user's folder and that of the system service."""
    given = os.environ.get("OLLAMA_MODELS")
    if given:
        return [Path(given).expanduser()]
    try:
        own = [Path.home() / ".ollama" / "models"]
    except RuntimeError:  # this user has no home
        own = []
    return [*own, Path("/usr/share/ollama/.ollama/models")]


class OllamaTree:
    """One model of Ollama. ``is_local``: from the store, else from the registry or what the cache kept of it."""

    selected = None

    def __init__(self, locator: str, *, offline: bool = False, limits: Limits | None = None) -> None:
        self._locator = locator
        self._name = parse_name(locator)
        self._session = Session(
            Meter(), limits, explain=lambda status, _: _refusal(status, locator), offline=offline
        )
        self._store = self._find_store()
        self._cache = None if self._store else open_cache()
        self.is_local = self._store is not None
        self._manifest = _parse(self._read_manifest(), locator)
        generated = _modelfile(locator, self._manifest).encode()
        self._generated = _Generated("Modelfile", generated)
        self._sizes = {name: layer.size for name, layer in self._manifest.layers.items()}
        self._sizes = dict(sorted({**self._sizes, "Modelfile": len(generated)}.items()))
        self._opened: dict[str, Blob] = {}
        self.close = self._session.close

    @property
    def locator(self) -> str:
        """What the user wrote."""
        return self._locator

    @property
    def revision(self) -> str | None:
        """The digest of the manifest, which Ollama shows as ID."""
        return f"sha256:{self._manifest.sha256}"

    @property
    def meter(self) -> Meter:
        """What was fetched or read so far."""
        return self._session.meter

    @property
    def known_digests(self) -> Mapping[str, str]:
        """Name -> SHA-256 in hex, as the manifest states it; verified for texts only."""
        return {name: layer.sha256 for name, layer in self._manifest.layers.items()}

    def files(self) -> Mapping[str, int]:
        """The layers under plain names, and the Modelfile."""
        return self._sizes

    def open(self, name: str) -> Blob:
        """The layer of that name. Raises SourceError when the store has not all of it."""
        check_name(name, self._locator)
        if name == self._generated.name:
            return self._generated
        layer = self._manifest.layers.get(name)
        if layer is None:
            raise LocatorError("no such file in the model", where=f"{self._locator}: {name}")
        if name not in self._opened:
            blob = self._local_blob(name, layer) if self._store else self._remote_blob(name, layer)
            self._opened[name] = _verified(blob, layer) if _is_text(layer) else blob
        return self._opened[name]

    def _find_store(self) -> LocalTree | None:
        for folder in stores():
            if os.path.isfile(folder.joinpath(*self._manifest_path())):
                return LocalTree(folder, locator=self._locator, meter=self.meter)
        return None

    def _manifest_path(self) -> tuple[str, ...]:
        name = self._name
        return "manifests", name.host, name.namespace, name.model, name.tag

    def _read_manifest(self) -> bytes:
        if self._store is not None:
            blob = self._store.open("/".join(self._manifest_path()), "manifest")
            if blob.size > MAX_MANIFEST:
                raise LimitError(
                    "size of a manifest", limit=MAX_MANIFEST, actual=blob.size, where=self._locator
                )
            return blob.read(0, blob.size)
        url = self._registry(f"manifests/{self._name.tag}")
        check_scheme(url)
        record = self._cache.recall(url) if self._cache else None
        if self._session.offline:
            if record is None or not isinstance(record.get("manifest"), str):
                what = "the model is neither in Ollama's store nor in the cache"
                raise OfflineError(what, where=self._locator)
            return str(record["manifest"]).encode()
        content = self._session.fetch(url, MAX_MANIFEST, {"Accept": _MANIFEST_TYPE}).body
        if self._cache:
            self._cache.remember(url, {"manifest": content.decode("utf-8", "replace")})
        return content

    def _registry(self, path: str) -> str:
        name = self._name
        is_library = name.host == OLLAMA.partition("://")[2]
        base = ollama_registry() if is_library else f"https://{name.host}"
        return f"{base}/v2/{name.namespace}/{name.model}/{path}"

    def _remote_blob(self, name: str, layer: Layer) -> HttpBlob:
        url = self._registry(f"blobs/sha256:{layer.sha256}")
        return HttpBlob(self._session, url, name, layer.size, pinned=True, cache=self._cache)

    def _local_blob(self, name: str, layer: Layer) -> Blob:
        assert self._store is not None
        try:
            blob = self._store.open(f"blobs/sha256-{layer.sha256}", name)
        except LocatorError:
            blob = None
        if blob is None or blob.size != layer.size:
            there = "is missing from" if blob is None else f"has {blob.size} of {layer.size} bytes in"
            raise SourceError(
                f"the layer sha256:{layer.sha256[:12]} {there} the store",
                where=f"{self._locator}: {name}",
                hint=f"run: ollama pull {self._locator.removeprefix('ollama:')}",
            )
        return blob


@dataclass(frozen=True, slots=True)
class _Generated:
    """A small file in memory."""

    name: str
    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, start: int, length: int) -> bytes:
        check_span(start, length, self.size, self.name)
        return self.content[start : start + length]

    def read_many(self, spans: Sequence[Span]) -> list[bytes]:
        return [self.read(start, length) for start, length in spans]


def _is_text(layer: Layer) -> bool:
    return layer.kind not in ("model", "adapter", "projector") and layer.size <= MAX_TEXT


def _verified(blob: Blob, layer: Layer) -> Blob:
    """A text layer, whole. Raises FormatError when it is not what its digest says."""
    content = blob.read(0, blob.size)
    found = hashlib.sha256(content).hexdigest()
    if found != layer.sha256:
        raise FormatError(f"the layer has the digest {found[:12]}, not {layer.sha256[:12]}", where=blob.name)
    return _Generated(blob.name, content)


def _parse(content: bytes, where: str) -> Manifest:
    """The layers of a manifest. Raises FormatError, LimitError or UnsupportedError."""
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError):
        raise FormatError("the manifest is no JSON", where=where) from None
    entries = manifest.get("layers") if isinstance(manifest, dict) else None
    if not isinstance(entries, list):
        raise FormatError("the manifest lists no layers", where=where)
    if len(entries) > MAX_LAYERS:
        raise LimitError("layers of a model", limit=MAX_LAYERS, actual=len(entries), where=where)
    layers = [_layer(entry, where) for entry in entries]
    kinds = Counter(layer.kind for layer in layers)
    if kinds["tensor"] and not kinds["model"]:
        hint = "compare the safetensors files that it was made from"
        raise UnsupportedError("the model is stored tensor by tensor, not as GGUF", where=where, hint=hint)
    return Manifest(hashlib.sha256(content).hexdigest(), _named(layers, kinds))


def _layer(entry: object, where: str) -> Layer:
    match entry:
        case {"mediaType": str(media_type), "digest": str(digest), "size": int(size)} if size >= 0:
            known = _DIGEST.fullmatch(digest)
            if known is not None:
                kind = media_type.partition(";")[0].strip().removeprefix(_LAYER_TYPE)
                parent = entry.get("from", "") if isinstance(entry, dict) else ""
                return Layer(kind, size, known[1], parent if isinstance(parent, str) else "")
    raise FormatError("a layer without media type, digest and size", where=where)


def _named(layers: Sequence[Layer], kinds: Mapping[str, int]) -> dict[str, Layer]:
    """File names: one model is ``model.gguf``, several are the parts of a split one; others are numbered."""
    named: dict[str, Layer] = {}
    count: Counter[str] = Counter()
    for layer in layers:
        name = _FILES.get(layer.kind, f"layers/{re.sub(r'[^a-z0-9.-]', '_', layer.kind.lower())[:64]}")
        count[name] += 1
        number, total = count[name], kinds[layer.kind]
        stem, dot, suffix = name.partition(".gguf")
        if total > 1 and layer.kind == "model":
            name = f"model-{number:05}-of-{total:05}.gguf"
        elif number > 1:
            name = f"{stem}-{number}{dot}{suffix}"
        named.setdefault(name, layer)
    return named


def _modelfile(locator: str, manifest: Manifest) -> str:
    """What the manifest says, in the form in which Ollama writes it (docs/modelfile.md of its repository)."""
    lines = [f"# written from the manifest of {locator}"]
    for name, layer in manifest.layers.items():
        if layer.kind == "model" and layer.parent:
            lines.append(f"FROM {_plain(layer.parent)}")
        if layer.kind == "adapter":
            lines.append(f"ADAPTER sha256:{layer.sha256}")
        reason = _REASONS.get(layer.kind, "a text" if _is_text(layer) else "not read")
        lines.append(f"# {name}: layer {_plain(layer.kind)}, {layer.size} bytes; {reason}")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """One line of printable characters."""
    return "".join(char if char.isprintable() else " " for char in text[:200])


def _refusal(status: int, locator: str) -> DrupeError | None:
    if status in (404, 410):
        hint = "check the spelling and the tag; ollama list shows what this machine has"
        return LocatorError("neither in Ollama's store nor in the registry", where=locator, hint=hint)
    if status in (401, 403):
        hint = "if it is private, run: ollama pull, signed in, and try again"
        return RefusedError(f"the registry refuses access (HTTP {status})", where=locator, hint=hint)
    return None
