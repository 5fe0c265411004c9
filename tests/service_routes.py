"""The endpoints of services that publish models, as their own clients know them: Hugging Face, ModelScope, Ollama."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from range_server import Content

LARGE = (".safetensors", ".gguf", ".onnx", ".bin")
"""Files that a hub keeps in LFS and serves from another address."""
CUT = 3000
"""Entries at which ModelScope ends a listing without a word."""


@dataclass(slots=True)
class Repository:
    files: Mapping[str, Content]
    commit: str
    token: str | None = None
    gated: bool = False
    sizes: bool = True
    listed: dict[str, int] = field(default_factory=dict)
    said: str = "full"
    """How ModelScope names the commit: full, short, or no."""
    branches: tuple[str, ...] = ("main", "master")
    commits: bool = True
    """Whether ModelScope knows commits as revisions."""


@dataclass(slots=True)
class OllamaModel:
    """``layers``: (kind, content, further fields of the manifest)."""

    layers: list[tuple[str, bytes, dict[str, object]]]

    @property
    def manifest(self) -> bytes:
        entries = [
            {
                "mediaType": f"application/vnd.ollama.image.{kind}",
                "digest": f"sha256:{hashlib.sha256(content).hexdigest()}",
                "size": len(content),
                **further,
            }
            for kind, content, further in self.layers
        ]
        kind = "application/vnd.docker.distribution.manifest.v2+json"
        config = {"mediaType": "application/vnd.docker.container.image.v1+json", "size": 2}
        document = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": entries}
        return json.dumps(document).encode()

    @property
    def blobs(self) -> dict[str, bytes]:
        return {hashlib.sha256(content).hexdigest(): content for _, content, _ in self.layers}


class ServiceRoutes:
    """Mixed into the handler of range_server.py."""

    server: Any
    headers: Any
    path: str

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        raise NotImplementedError

    def refuse(self, status: int, headers: dict[str, str]) -> None:
        raise NotImplementedError

    def serve_file(self, path: str, data: Content, extra: dict[str, str]) -> None:
        raise NotImplementedError

    def serve_service(self, path: str) -> bool:
        """Whether the path belongs to a service; then it was answered."""
        for pattern, serve in (
            (r"/api/models/(.+)", self._hub_listing),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._hub_file),
            (r"/api/v1/models/([^/]+/[^/]+)/repo/files", self._scope_listing),
            (r"/api/v1/models/([^/]+/[^/]+)/repo", self._scope_file),
            (r"/v2/([^/]+/[^/]+)/manifests/(.+)", self._ollama_manifest),
            (r"/v2/([^/]+/[^/]+)/blobs/sha256:(.+)", self._ollama_blob),
        ):
            if match := re.fullmatch(pattern, path):
                serve(*match.groups())
                return True
        return False

    def _authorised(self, repository: Repository) -> bool:
        wanted = f"Bearer {repository.token}"
        return repository.token is None or self.headers.get("Authorization") == wanted

    def _redirected(self, name: str, file: str, data: Content, headers: dict[str, str]) -> None:
        """A large file is served from another host by name, at a signed address."""
        owner = self.server.owner
        owner.files[f"/cdn/{name}/{file}"] = data
        location = f"{owner.cdn_url}/cdn/{name}/{file}?signature={len(owner.expired)}"
        self.refuse(302, {**headers, "Location": location})

    # -- Hugging Face ------------------------------------------------------------------------------------------

    def _hub_listing(self, rest: str) -> None:
        name, _, revision = rest.partition("/revision/")
        repository = self.server.owner.repositories.get(name)
        if repository is None or not self._authorised(repository):
            self.refuse(401, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("", "main", repository.commit):
            self.refuse(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = [_sibling(file, data, repository) for file, data in repository.files.items()]
            body = {"id": name, "sha": repository.commit, "siblings": siblings}
            self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _hub_file(self, name: str, revision: str, file: str) -> None:
        repository = self.server.owner.repositories.get(name)
        if repository is None or not self._authorised(repository):
            self.refuse(401, {"X-Error-Code": "RepoNotFound"})
        elif repository.gated:
            self.refuse(403, {"X-Error-Code": "GatedRepo"})
        elif revision not in ("main", repository.commit) or file not in repository.files:
            self.refuse(404, {"X-Error-Code": "EntryNotFound"})
        else:
            self._hub_bytes(name, file, repository)

    def _hub_bytes(self, name: str, file: str, repository: Repository) -> None:
        data = repository.files[file]
        headers = {"X-Repo-Commit": repository.commit}
        if not file.endswith(LARGE):
            digest = hashlib.sha1(data[:], usedforsecurity=False).hexdigest()
            self.serve_file(f"/{name}/{file}", data, {**headers, "ETag": f'"{digest}"'})
            return
        digest = _sha256(data)
        links = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{digest}"', "ETag": f'"{digest}"'}
        self._redirected(name, file, data, {**headers, **links})

    # -- ModelScope --------------------------------------------------------------------------------------------

    def _query(self) -> dict[str, str]:
        return {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}

    def _scope(self, name: str) -> Repository | None:
        """The repository, if it exists and may be seen; else the refusal is answered."""
        repository: Repository | None = self.server.owner.scopes.get(name)
        if repository is None or not self._authorised(repository):
            self.refuse(404, {})
            return None
        if repository.gated:
            self.refuse(403, {})
            return None
        return repository

    def _scope_listing(self, name: str) -> None:
        repository = self._scope(name)
        if repository is None:
            return
        query = self._query()
        revision, root = query.get("Revision", "master"), query.get("Root", "")
        known = revision in repository.branches or (repository.commits and revision == repository.commit)
        files = _scope_entries(repository, root, recursive=query.get("Recursive") == "True")[:CUT]
        committer = {
            "full": {"Id": repository.commit, "ShortId": repository.commit[:8]},
            "short": {"Id": "", "ShortId": repository.commit[:8]},
            "no": None,
        }[repository.said]
        data = {"Files": files if known else None, "LatestCommitter": committer if known else None}
        body = {"Code": 200, "Data": data, "Message": "success", "Success": True}
        self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _scope_file(self, name: str) -> None:
        repository = self._scope(name)
        if repository is None:
            return
        query = self._query()
        file = unquote(query.get("FilePath", ""))
        known = query.get("Revision") in (*repository.branches, repository.commit)
        if file not in repository.files or not known:
            self.refuse(404, {})
        elif file.endswith(LARGE):
            self._redirected(name, file, repository.files[file], {})
        else:
            self.serve_file(f"/{name}/{file}", repository.files[file], {})

    # -- Ollama ------------------------------------------------------------------------------------------------

    def _ollama_manifest(self, name: str, tag: str) -> None:
        model = self.server.owner.ollama.get(f"{name}:{tag}")
        if model is None:
            self.refuse(404, {})
        else:
            self.answer(200, model.manifest, {"Content-Type": "application/vnd.docker.distribution.manifest"})

    def _ollama_blob(self, name: str, digest: str) -> None:
        models = self.server.owner.ollama.items()
        found = [m.blobs[digest] for full, m in models if full.startswith(f"{name}:") and digest in m.blobs]
        if found:
            self._redirected(name, digest, found[0], {})
        else:
            self.refuse(404, {})


def _sha256(data: Content) -> str:
    return hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else f"{len(data):064x}"


def _sibling(file: str, data: Content, repository: Repository) -> dict[str, object]:
    entry: dict[str, object] = {"rfilename": file}
    if repository.sizes:
        entry["size"] = repository.listed.get(file, len(data))
        if file.endswith(LARGE):
            entry["lfs"] = {"sha256": _sha256(data), "size": len(data), "pointerSize": 130}
    return entry


def _scope_entries(repository: Repository, root: str, *, recursive: bool) -> list[dict[str, object]]:
    prefix = f"{root}/" if root else ""
    entries: dict[str, dict[str, object]] = {}
    for file, data in repository.files.items():
        if not file.startswith(prefix):
            continue
        parts = file.removeprefix(prefix).split("/")
        folders = [prefix + "/".join(parts[:depth]) for depth in range(1, len(parts))]
        for folder in folders if recursive else folders[:1]:
            entries.setdefault(folder, {"Path": folder, "Type": "tree", "Size": 0})
        if recursive or not folders:
            size = repository.listed.get(file, len(data))
            entries[file] = {
                "Path": file,
                "Type": "blob",
                "Size": size,
                "Sha256": _sha256(data),
                "Revision": repository.commit,
            }
    return list(entries.values())
