"""All tables of benchmarks/README.md, one after the other (make bench). Each script also runs alone.

The peer is asked when DRUPE_PEER_PYTHON names a python that has it (see peer.py). Takes about 15 minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS: tuple[tuple[str, ...], ...] = (
    ("accuracy.py",),
    ("startup.py",),
    ("large.py",),
    ("calibration.py",),
)


def main() -> int:
    """Run every script; the exit code says whether one failed."""
    failed = 0
    for name, *arguments in SCRIPTS:
        if name == "accuracy.py" and os.environ.get("DRUPE_PEER_PYTHON"):
            arguments = ["--peer", "2"]
        print(f"\n## {name} {' '.join(arguments)}\n", flush=True)
        failed += subprocess.run([sys.executable, str(HERE / name), *arguments], check=False).returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
