"""Flags as facts: bounded, the gravest first, the same of a model and of its fingerprint."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drupe import workflows
from drupe.cli import main
from drupe.flags import MAX_BYTES, MAX_FLAGS, MAX_TEXT, NOTHING, Flags, decode, encode, keep
from drupe.readers.interface import Flag, FlagKind
from drupe.readers.strict_json import Json, as_object
from hostile_files import save_small
from pickle_corpus import GADGETS, archive, checkpoint, dictionary, pickled, tensor

FLAGS = st.builds(
    Flag,
    st.sampled_from(FlagKind),
    st.text(max_size=9),
    st.text(st.characters(), max_size=300),
    st.none() | st.integers(0, 1 << 50),
    st.text(max_size=9),
    st.booleans(),
)


def side(locator: Path) -> dict[str, Json]:
    return as_object(workflows.inspect(str(locator), offline=True)["model"], "model")


@given(st.lists(FLAGS, max_size=60))
def test_what_is_kept_is_bounded_ordered_and_read_back(found: list[Flag]) -> None:
    flags = keep(found)
    assert decode(encode(flags), "x") == flags
    assert keep(flags.kept).kept == flags.kept
    assert flags.omitted + len(flags.kept) <= len(found)
    ranks = [(list(FlagKind).index(flag.kind), flag.beside) for flag in flags.kept]
    assert ranks == sorted(ranks)
    assert not found or flags.kept


@given(st.lists(FLAGS, min_size=1, max_size=5))
def test_the_worst_texts_still_leave_room_for_one(found: list[Flag]) -> None:
    worst = [Flag(f.kind, "\x01" * 999, "\x01" * 999, 1 << 62, "\x01" * 999, f.beside) for f in found]
    assert len(keep(worst).kept) == 1
    assert len(keep(worst).kept[0].what) == MAX_TEXT


def test_half_a_surrogate_pair_does_not_matter() -> None:
    flags = keep([Flag(FlagKind.UNKNOWN_CODE, "f", "a\ud800b")])
    assert flags.kept[0].what == "a?b"


def test_the_gravest_stay_when_there_are_too_many() -> None:
    many = [Flag(FlagKind.UNKNOWN_CODE, "f", f"my.module.Name{number}", number) for number in range(9999)]
    flags = keep([*many, Flag(FlagKind.DANGEROUS_CODE, "g", "os.system", 1)])
    assert flags.kept[0].what == "os.system"
    assert flags.omitted == 10_000 - len(flags.kept)
    assert 50 < len(flags.kept) <= MAX_FLAGS
    assert keep([]) == NOTHING == Flags()


@pytest.mark.parametrize("gadget", GADGETS)
def test_a_fingerprint_says_what_its_files_say(gadget: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(archive(checkpoint(GADGETS[gadget][1])))
    kept = tmp_path / "model.drupe"
    workflows.sketch([str(folder)], kept, offline=True)
    first, again = side(folder), side(kept)
    assert first["flags"]
    assert again["flags"] == first["flags"]
    assert again["digest"] == first["digest"]


@pytest.fixture
def suspect(tmp_path: Path) -> Path:
    """Weights with a dangerous call, nine hundred unknown names, and an optimizer's state with both."""
    folder = save_small(tmp_path / "suspect")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    names = b"".join(b"cmy.package\nThing%d\n0" % k for k in range(900))
    body = dictionary(**{"up.weight": tensor(), "extra": GADGETS["os.system"][1] + b"0" + names + b"N"})
    (folder / "pytorch_model.bin").write_bytes(archive(pickled(body)))
    (folder / "optimizer.pt").write_bytes(archive(pickled(body)))
    return folder


def test_a_flood_of_names_makes_a_fingerprint_little_larger(suspect: Path, tmp_path: Path) -> None:
    kept = tmp_path / "suspect.drupe"
    workflows.sketch([str(suspect)], kept, offline=True)
    assert side(kept)["flags"] == side(suspect)["flags"]
    assert side(kept)["flags_omitted"] == side(suspect)["flags_omitted"]
    flooded = kept.stat().st_size
    (suspect / "optimizer.pt").unlink()
    (suspect / "pytorch_model.bin").write_bytes(archive(checkpoint(b"N")))
    workflows.sketch([str(suspect)], kept, offline=True)
    assert flooded - kept.stat().st_size < MAX_BYTES + 64


def test_a_comparison_of_fingerprints_warns_as_one_of_files_does(
    suspect: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    kept = tmp_path / "suspect.drupe"
    workflows.sketch([str(suspect)], kept, offline=True)
    main(["compare", str(suspect), str(suspect)])
    files = [
        line for line in capsys.readouterr().out.splitlines() if "os.system" in line or "my.package" in line
    ]
    main(["compare", str(kept), str(kept)])
    shown = capsys.readouterr().out.splitlines()
    assert len(files) >= 4
    assert [line for line in shown if "os.system" in line or "my.package" in line] == files
    assert any("further remarks" in line for line in shown)
