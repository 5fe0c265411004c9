from __future__ import annotations

import os
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drupe.readers.code import MAX_FILE_BYTES, CodeFiles, parse, read_code
from drupe.readers.interface import Absent
from drupe.sources.locator import open_tree

BUSY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])  # shared cores

SOURCE = b'''# coding=utf-8
# Copyright 2022 EleutherAI and the HuggingFace Inc. team. All rights reserved.
#
"""PyTorch model.

Adapted from the implementation of Name-7b.
"""
licensed = "Copyright 1999 not a comment"
class Model:  # based on nothing
    # Copied from transformers.models.llama.modeling_llama.LlamaMLP
    pass
'''


def test_headers() -> None:
    assert [(head.line, head.text) for head in parse("m.py", SOURCE).headers] == [
        (2, "Copyright 2022 EleutherAI and the HuggingFace Inc. team. All rights reserved."),
        (6, "Adapted from the implementation of Name-7b."),
        (10, "Copied from transformers.models.llama.modeling_llama.LlamaMLP"),
    ]


def test_text_digest_ignores_line_ends() -> None:
    unix, windows = parse("m.py", SOURCE), parse("m.py", b"\xef\xbb\xbf" + SOURCE.replace(b"\n", b" \r\n"))
    assert unix.text_sha256 == windows.text_sha256
    assert unix.sha256 != windows.sha256
    assert unix.text_sha256 != parse("m.py", SOURCE.replace(b"Model", b"Other")).text_sha256


def test_files_are_listed_and_never_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "m.py").write_bytes(SOURCE)
    found = read_code(open_tree(str(tmp_path), offline=True))
    assert isinstance(found, CodeFiles)
    assert [file.file for file in found.files] == ["evil.py", "sub/m.py"]
    assert not (tmp_path / "ran").exists()


def test_large_files_are_omitted(tmp_path: Path) -> None:
    os.truncate(os.open(tmp_path / "big.py", os.O_CREAT | os.O_WRONLY), MAX_FILE_BYTES + 1)
    (tmp_path / "m.py").write_bytes(SOURCE)
    found = read_code(open_tree(str(tmp_path), offline=True))
    assert isinstance(found, CodeFiles)
    assert found.omitted == ("big.py",)
    assert len(found.files) == 1


def test_no_code_is_absent(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert isinstance(read_code(open_tree(str(tmp_path), offline=True)), Absent)


def test_headers_are_bounded() -> None:
    assert len(parse("m.py", b"# Copyright 2020 x\n" * 1000).headers) == 20


@BUSY
@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    parse("m.py", b'"""' + data)
    parse("m.py", data)
