"""The hub's endpoints over folders on disk: the server of the tests, for files too large to be held in memory."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from range_server import OnDisk, RangeServer, Repository

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(RangeServer):
    """``with HubServer({"org/name": folder}) as server``."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        super().__init__()
        for name, folder in repositories.items():
            files = {path.name: OnDisk(path) for path in sorted(folder.iterdir())}
            self.repositories[name] = Repository(files, COMMIT)
