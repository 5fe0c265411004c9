"""The peer, on the same two directories: its decision, scores and wall time as one line of JSON.

    python3 -m venv peerenv
    peerenv/bin/pip install torch==2.13.0 accelerate huggingface-hub numpy pandas protobuf pyarrow \
        pydantic-settings pydantic rich safetensors sentencepiece structlog tiktoken transformers==5.23.0
    peerenv/bin/pip install --ignore-requires-python --no-deps cisco-ai-provenance-kit==1.0.0
    DRUPE_PEER_PYTHON=peerenv/bin/python python benchmarks/peer.py SUSPECT SOURCE

The package asks for Python 3.12 and runs on 3.11; its requirements are named because that option would also
pick numpy releases that do not. Its command line runs as a process of its own, without cache and network.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

PEER = "cisco-ai-provenance-kit==1.0.0"
PYTHON_VARIABLE = "DRUPE_PEER_PYTHON"
TIMEOUT_SECONDS = 300


class PeerError(RuntimeError):
    """The peer is not installed where the variable says, or failed on this pair."""


@dataclass(frozen=True, slots=True)
class PeerResult:
    """What the peer says, and what that costs.

    ``seconds`` is the wall time of its whole process, start included; ``cpu_seconds`` what that process
    computed (less moved by other load); ``own_seconds`` what it reports itself, start excluded.
    """

    peer: str
    decision: str
    pipeline_score: float | None
    weight_score: float | None  # its "identity score", from weights alone
    tokenizer_score: float | None
    metadata_score: float | None
    signals: dict[str, float | None]
    seconds: float
    cpu_seconds: float
    own_seconds: float


def peer_python() -> Path:
    """The interpreter that has the peer installed."""
    path = os.environ.get(PYTHON_VARIABLE, "")
    if not path or not Path(path).is_file():
        raise PeerError(f"{PYTHON_VARIABLE} must name the python of an environment with {PEER}; is {path!r}")
    return Path(path)


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compare(suspect: Path, source: Path) -> PeerResult:
    """Runs the peer's ``compare --json --no-cache`` on two folders."""
    command = [str(peer_python()), "-c", "from provenancekit.cli import main; main()", "compare"]
    command += [str(suspect.resolve()), str(source.resolve()), "--json", "--no-cache"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    begin, used = time.perf_counter(), _cpu_of_children()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    seconds = time.perf_counter() - begin
    if done.returncode != 0 or not done.stdout.lstrip().startswith("{"):
        raise PeerError(f"{PEER} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    answer = json.loads(done.stdout)
    scores = answer["scores"]
    return PeerResult(
        peer=PEER,
        decision=scores["provenance_decision"],
        pipeline_score=scores["pipeline_score"],
        weight_score=scores["identity_score"],
        tokenizer_score=scores["tokenizer_score"],
        metadata_score=scores["mfi_score"],
        signals=answer["signals"],
        seconds=round(seconds, 2),
        cpu_seconds=round(_cpu_of_children() - used, 2),
        own_seconds=answer["time_seconds"],
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suspect", type=Path)
    parser.add_argument("source", type=Path)
    arguments = parser.parse_args()
    try:
        print(json.dumps(asdict(compare(arguments.suspect, arguments.source))))
    except PeerError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
