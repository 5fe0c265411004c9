"""The golden reports: fixed documents, and their renderings at 80 columns in both languages.

After a wanted change of the wording or the layout::

    .venv/bin/python tests/golden_reports.py

writes the texts again from the documents; read the difference before committing it. ``--documents`` also
makes the documents anew from tests/models, which is needed only when the schema changes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from drupe import document
from drupe.document import Report
from drupe.messages import LANGUAGES, Language
from drupe.report.interface import Options, renderer

FOLDER = Path(__file__).parent / "golden"
CASES = ("derivative", "same_design", "copy")


def load(case: str) -> Report:
    name = f"{case}.json"
    return document.loads((FOLDER / name).read_bytes(), name)


def rendered(case: str, language: Language) -> str:
    return renderer("terminal")(load(case), language, Options(width=80))


def text_file(case: str, language: Language) -> Path:
    return FOLDER / f"{case}.{language}.txt"


def make_documents() -> None:
    """A disclosed fine-tune, an independent twin, and an undisclosed quantised copy under other names."""
    from zoo import apply, read_model, save
    from zoo_files import Checkpoint

    def write(folder: str, model: Checkpoint, card: str) -> None:
        save(model, Path(folder))
        (Path(folder) / "README.md").write_text(card, "utf-8")

    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, model, card in (
            ("pebble-base", read_model("r0"), "# Pebble Base\n"),
            (
                "gravel-chat",
                read_model("r0_ft"),
                "---\nbase_model: example/pebble-base\n---\n# Gravel Chat\n",
            ),
            ("boulder", read_model("r1"), "# Boulder\nTrained from scratch.\n"),
            (
                "cobble",
                apply(apply(read_model("r0"), "quantise", bits=4), "rename_yi"),
                "# Cobble\nOur own model.\n",
            ),
        ):
            write(name, model, card)
        for case, suspect in zip(CASES, ("gravel-chat", "boulder", "cobble"), strict=True):
            report = _compare(suspect, "pebble-base")
            (FOLDER / f"{case}.json").write_text(document.dumps(report), "utf-8")
        os.chdir(home)


def _compare(suspect: str, source: str) -> Report:
    from drupe import workflows

    report = workflows.compare(suspect, source, offline=True)
    return json.loads(document.dumps(report))  # as it would be read back


def main(arguments: list[str]) -> None:
    if "--documents" in arguments:
        make_documents()
    for case in CASES:
        for language in LANGUAGES:
            text_file(case, language).write_text(rendered(case, language), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
