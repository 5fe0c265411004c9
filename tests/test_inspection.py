"""What is in one model: facts only, for folders, fingerprints and damaged models, in both languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from drupe import document, workflows
from drupe.errors import FormatError
from drupe.fingerprint import to_bytes
from drupe.inspection import inspection
from drupe.opening import open_subject
from drupe.report import interface
from hostile_files import save_small, small
from zoo_files import MODELS, save


def inspected(folder: Path) -> dict[str, Any]:
    return workflows.inspect(str(folder), offline=True)


def test_the_facts_of_a_whole_folder(tmp_path: Path) -> None:
    found = inspected(save_small(tmp_path / "model"))
    assert (found["schema"], found["kind"]) == (document.SCHEMA, "inspection")
    assert found["model"]["locator"] == str(tmp_path / "model")
    assert set(found["model"]["parts"].values()) == {"present"}
    assert found["model"]["parameters"] == sum(values.size for values in small().tensors.values())
    assert found["architecture"]["layers"] == 1
    assert found["architecture"]["hidden_size"] == 32
    assert found["storage"]["files"] == 2
    assert set(found["storage"]["values_by_dtype"]) == {"BF16"}
    assert found["matrices"]["by_role"] == dict.fromkeys(
        ("down", "embed", "gate", "k", "o", "q", "up", "v"), 1
    )
    assert found["matrices"]["by_state"] == {"informative": 8}
    assert found["tokenizer"]["pieces"] == 24
    assert found["declared"]["base_models"] == ["org/other"]
    assert found["declared"]["licences"] == ["apache-2.0"]
    assert found["code"] == ["modeling_x.py"]


@pytest.mark.parametrize(
    ("name", "title"), [("r0", "Llama"), ("g0", "GPT-2"), ("b0", "BERT"), ("q0", "Qwen2")]
)
def test_the_naming_scheme_is_named(name: str, title: str) -> None:
    assert title.replace("-", "") in inspected(MODELS / name)["architecture"]["names_follow"].replace("-", "")


def test_a_missing_part_is_said_in_both_languages(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    found = inspected(tmp_path)
    assert found["tokenizer"] is None
    assert found["matrices"] == {"by_role": {}, "by_state": {}}
    for part in ("weights", "tokenizer", "code", "documents"):
        reason = found["model"]["parts"][part].removeprefix("absent: ")
        assert reason
        assert found["translations"]["zh"][reason] != reason
    assert found["model"]["parts"]["config"] == "present"


def test_damage_is_counted(tmp_path: Path) -> None:
    model = small()
    changes = {"q_proj": np.nan, "k_proj": 0.0, "v_proj": 0.5}
    tensors = {
        name: np.full_like(values, next((v for key, v in changes.items() if key in name), 0))
        if any(key in name for key in changes)
        else values
        for name, values in model.tensors.items()
    }
    found = inspected(save(model.with_tensors(tensors), tmp_path / "model"))
    assert found["matrices"]["by_state"] == {
        "informative": 5,
        "not_finite": 1,
        "all_zero": 1,
        "few_values": 1,
    }


def test_a_fingerprint_tells_the_same_of_itself(tmp_path: Path) -> None:
    folder = save_small(tmp_path / "model")
    subject = open_subject(str(folder), offline=True)
    stored = tmp_path / "model.drupe"
    stored.write_bytes(to_bytes(subject.fingerprint))
    first, again = inspected(folder), inspected(stored)
    assert again["model"].pop("locator") == str(stored)
    first["model"].pop("locator")
    assert first["architecture"].pop("names_follow") == "Llama"
    again["architecture"].pop("names_follow")  # the names are groups there; the scheme is not kept
    assert again == first


@pytest.mark.parametrize("language", ["en", "zh"])
def test_it_is_rendered_and_written(language: Any, tmp_path: Path) -> None:
    subject = open_subject(str(save_small(tmp_path / "model")), offline=True)
    report = inspection("model", subject)
    assert json.loads(document.dumps(report)) == report
    page = interface.render(report, "terminal", language=language, verbose=False, to_file=True)
    assert "modeling_x.py" in page
    assert "hidden_size = 32" in page


@pytest.mark.parametrize("name", ["r0", "g0", "b0", "nothing"])
def test_a_saved_inspection_conforms_and_is_read_back(name: str, tmp_path: Path) -> None:
    if name == "nothing":
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    found = inspected(tmp_path if name == "nothing" else MODELS / name)
    jsonschema.validate(found, document.json_schema("inspection"), jsonschema.Draft202012Validator)
    path = tmp_path / "saved.json"
    path.write_text(document.dumps(found), "utf-8")
    assert workflows.load_report(path) == found


def test_a_damaged_inspection_is_refused_by_its_own_schema() -> None:
    found = inspected(MODELS / "r0")
    found["matrices"]["by_role"]["up"] = "many"
    with pytest.raises(FormatError, match="by_role"):
        document.loads(document.dumps(found).encode(), "saved.json")
    found["kind"] = "prophecy"
    with pytest.raises(FormatError, match="prophecy"):
        document.loads(document.dumps(found).encode(), "saved.json")


def test_both_schemas_describe_a_model_alike() -> None:
    comparison, own = (document.json_schema(kind) for kind in ("comparison", "inspection"))
    assert comparison["$defs"]["side"] == own["$defs"]["side"]  # type: ignore[index,call-overload]
