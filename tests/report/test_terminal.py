from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from drupe import document, workflows
from drupe.document import Report
from drupe.errors import FormatError
from drupe.messages import LANGUAGES, Language, catalogue
from drupe.report.interface import Options
from drupe.report.terminal import render
from golden_reports import CASES, load, rendered, text_file
from test_document import changed, golden, places
from test_messages import ACCUSING

BUSY = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])  # shared cores
HOSTILE = "\x1b[31m[red]Evil\u202e[/red]\x07\x9b\r\n\ud800:smile: 核果" + "x" * 200


def squashed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def widest(text: str) -> int:
    return max(map(cell_len, text.splitlines()))


def with_change(case: str, *path: Any, value: Any) -> Report:
    return document.loads(json.dumps(changed(golden(case), path, value)).encode(), "report.json")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_golden(case: str, language: Language) -> None:
    """Update with ``python tests/golden_reports.py`` after a wanted change."""
    assert rendered(case, language) == text_file(case, language).read_text("utf-8")


@pytest.mark.parametrize("width", [40, 57, 80, 100])
@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_line_is_wider_than_the_terminal(case: str, language: Language, verbose: bool, width: int) -> None:
    assert widest(render(load(case), language, Options(width, verbose))) <= width


@pytest.mark.parametrize("case", CASES)
def test_chinese_is_chinese_and_english_is_english(case: str) -> None:
    chinese, english = (render(load(case), language, Options(verbose=True)) for language in ("zh", "en"))
    assert not re.search(r"[一-鿿]", english)
    for sentence in load(case)["translations"]["zh"]:  # type: ignore[index, call-overload, union-attr]
        if len(sentence) > 12:
            assert squashed(sentence) not in squashed(chinese)


def test_a_sentence_without_a_translation_stays_english() -> None:
    report = with_change("derivative", "translations", "zh", value={})
    text = squashed(render(report, "zh", Options()))
    assert squashed("no probe report was given") in text
    assert "衍生权重" in text


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("case", CASES)
def test_every_finding_stands_with_all_that_belongs_to_it(case: str, language: Language) -> None:
    report: Any = load(case)
    chinese = report["translations"]["zh"] if language == "zh" else {}
    text = squashed(render(report, language, Options(verbose=True)))
    for finding in report["findings"]:
        sentences = [finding.get("null"), finding.get("reason"), *finding.get("caveats", [])]
        sentences += [row[key] for row in finding.get("evidence", []) for key in ("where", "what")]
        if finding.get("baseline"):
            sentences.append(finding["baseline"]["what"])
        for sentence in filter(None, sentences):
            assert squashed(chinese.get(sentence, sentence)) in text


def test_the_numbers_of_a_finding_are_shown() -> None:
    text = rendered("derivative", "en")
    sketch = text[text.index("(weights.sketch)") :].split("\n\n")[0]
    for number in (
        "15.88",
        "n = 8,448",
        "log10 p = -1423.5",
        "effect 0.999813",
        "0.999679 to 0.999891",
        "median 0.875",
    ):
        assert squashed(number) in squashed(sketch)


def test_the_order_is_verdict_parts_change_evidence_coverage() -> None:
    text = rendered("copy", "en")
    titles = [
        "[copy]",
        "Disclosure",
        "Suspect",
        "Components",
        "What was done",
        "Evidence",
        "Not measured",
        "Coverage",
        "Next",
    ]
    found = [text.index(f"\n{title}" if title != "[copy]" else title) for title in titles]
    assert found == sorted(found)


def test_transformations_are_named_with_their_parameters() -> None:
    text = rendered("copy", "en")
    assert "- quantised (bits 4, group size 32, scheme symmetric)" in text
    assert "input_layernorm -> ln1" in text
    assert "- 量化（位数 4，分组大小 32，" in rendered("copy", "zh")


def test_a_long_map_is_cut_to_five_rows_unless_all_is_asked_for() -> None:
    names = {f"old_{i:02}": f"new_{i:02}" for i in range(12)}
    changes = [{"kind": "renamed", "parameters": {"count": 12, "map": names}}]
    report = with_change("copy", "components", "weights", "transformations", value=changes)
    short, full = (render(report, "en", Options(verbose=verbose)) for verbose in (False, True))
    assert short.count(" -> new_") == 5
    assert "... and 7 more (-v shows them)" in short
    assert full.count(" -> new_") == 12
    assert "7 more" not in full


@pytest.mark.parametrize(
    ("kind", "parameters", "shown"),
    [
        ("layers_dropped", {"map": {"0": 0, "1": 3}}, "1 in the suspect = 3 in the source"),
        ("rescaled", {"factors": {"model.embed": 0.5}}, "model.embed: 0.5"),
        ("merged", {"parents": [{"name": "a/b", "share": 0.4}], "method": "slerp"}, "a/b, 0.4"),
        ("permuted", {"what": "units"}, "permuted (of feed-forward units)"),
        ("rotated", {}, "- rotated\n"),
        ("unknown_change", {"relative_change": None}, "- changed in a way that fits no known kind\n"),
        ("moe_upcycled", {"experts": 8, "map": {"0": [0, 1]}}, "0 in the suspect = 0, 1 in the source"),
        ("resharded", {"from": 1, "to": 3}, "split into other files (from 1, to 3)"),
    ],
)
def test_every_shape_of_parameters(kind: str, parameters: dict[str, Any], shown: str) -> None:
    changes = [{"kind": kind, "parameters": parameters}]
    report = with_change("copy", "components", "weights", "transformations", value=changes)
    assert shown in render(report, "en", Options())


def test_nothing_done_is_said() -> None:
    report = with_change("copy", "components", "weights", "transformations", value=[])
    assert "nothing: the values are unchanged" in render(report, "en", Options())


def test_what_was_done_is_not_asked_of_independent_weights() -> None:
    assert "What was done" not in rendered("same_design", "en")


def test_the_parts_of_the_weights_are_listed() -> None:
    parts = [{"name": "vision_tower", "relation": "absent", "share": 0.05}]
    report = with_change("copy", "components", "weights", "parts", value=parts)
    assert re.search(r"vision_tower +absent +5%", render(report, "en", Options()))


@pytest.mark.parametrize(
    ("label", "disclosure", "shown"),
    [
        ("copy", "disclosed", "disclosed: the suspect's documents name"),
        ("copy", "undisclosed", "not disclosed"),
        ("derivative", "unknown", "unknown: the suspect has no card"),
        ("same_design", "undisclosed", "does not call for it"),
        ("unrelated", "unknown", "nothing to disclose"),
        ("inconclusive", "unknown", "nothing to disclose"),
    ],
)
def test_disclosure_is_put_fairly(label: str, disclosure: str, shown: str) -> None:
    verdict = {**golden("copy")["verdict"], "label": label, "disclosure": disclosure}
    text = render(with_change("copy", "verdict", value=verdict), "en", Options(100))
    assert shown in re.sub(r"\s+", " ", text)


def test_failures_and_skips_are_listed_with_their_reason() -> None:
    failed = {"signal": "new.signal", "component": "code", "status": "failed", "reason": "it broke"}
    report = with_change("copy", "findings", value=[failed])
    text = render(report, "en", Options())
    assert "new.signal: failed: it broke" in text
    assert "Evidence" not in text


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("case", CASES)
def test_the_wording_never_accuses_and_names_normal_practice(case: str, language: Language) -> None:
    text = rendered(case, language)
    assert not ACCUSING.search(text)
    assert squashed(catalogue(language)["report.note.practice"]) in squashed(text)


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("language", LANGUAGES)
def test_hostile_text_is_shown_harmlessly_everywhere(language: Language, color: bool) -> None:
    report: Any = golden("copy")
    report["suspect"]["locator"] = report["source"]["revision"] = report["suspect"]["format"] = HOSTILE
    report["suspect"]["parts"] = {HOSTILE: f"absent: {HOSTILE}", "weights": "present"}
    report["verdict"]["caveats"] = report["components"]["code"]["reasons"] = [HOSTILE]
    report["verdict"]["summary"] = {"en": HOSTILE, "zh": HOSTILE}
    report["components"]["weights"]["parts"] = [{"name": HOSTILE, "relation": "partial", "share": 0.5}]
    changes = [{"kind": "renamed", "parameters": {"count": 1, "map": {HOSTILE: HOSTILE}}}]
    changes += [{"kind": "quantised", "parameters": {"scheme": HOSTILE}}]
    report["components"]["weights"]["transformations"] = changes
    for finding in report["findings"]:
        finding["signal"] = HOSTILE
        finding["null" if finding["status"] == "measured" else "reason"] = HOSTILE
        finding["evidence" if finding["status"] == "measured" else "signal"] = (
            [{"where": HOSTILE, "what": HOSTILE}] if finding["status"] == "measured" else HOSTILE
        )
    report["translations"]["zh"] = {HOSTILE: HOSTILE}
    text = render(document.loads(json.dumps(report).encode(), "x"), language, Options(color=color))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text) if color else text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", plain)
    assert r"\x1b[31m[red]Evil\u202e[/red]\x07\x9b\x0d\x0a\ud800:smile:" in squashed(plain)
    assert widest(plain) <= 80
    if color:
        assert "\x1b[31m" not in text  # the only red would be theirs


def test_a_digest_is_short_unless_all_is_asked_for() -> None:
    digest = golden("copy")["suspect"]["digest"]
    assert f"{digest[:30]}..." in rendered("copy", "en")
    assert digest in squashed(render(load("copy"), "en", Options(verbose=True)))


ODD = st.sampled_from(
    [
        "",
        HOSTILE,
        0,
        10**300,
        1e308,
        -1e-300,
        None,
        [],
        {},
        [HOSTILE],
        {HOSTILE: HOSTILE},
        True,
        "absent: x",
        0.99999,
    ]
)


@BUSY
@given(st.data())
def test_a_damaged_report_is_refused_or_rendered(data: st.DataObject) -> None:
    """Never another error, never a line that is too wide; twice damaged, so that one may hide the other."""
    report: Any = golden(data.draw(st.sampled_from(CASES)))
    for _ in range(2):
        report = changed(report, data.draw(st.sampled_from(places(report)[1:])), data.draw(ODD))
    if data.draw(st.booleans()):
        report["schema"] = "drupe/report/1.9"
    try:
        read = document.loads(json.dumps(report).encode(), "report.json")
    except FormatError:
        return
    for language in LANGUAGES:
        assert widest(render(read, language, Options(verbose=True))) <= 80


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_inspection_is_a_list_of_facts(language: Language) -> None:
    report = workflows.inspect(str(Path(__file__).parents[1] / "models" / "r0"), offline=True)
    text = render(report, language, Options())
    assert widest(text) <= 80
    for fact in ("213,568", "LlamaForCausalLM", "hidden_size = 64", "BF16", "byte_bpe", "tokenizer.json"):
        assert fact in text
    assert catalogue(language)["report.inspection.nothing_judged"] in text
