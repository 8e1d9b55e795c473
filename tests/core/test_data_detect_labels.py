"""Classification as chat: which tables are one, what the model is told, and what is unhealthy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.files.class_names import class_names, with_names
from ollama_tune.core.data.files.read import read_items
from ollama_tune.core.data.load import load_dataset
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.schemas.detect import KNOWN, Detector
from ollama_tune.core.data.schemas.labels import (
    is_fixed_set,
    label_findings,
    sorted_labels,
    system_text,
    values_to_name,
)
from ollama_tune.core.data.values import Message, Reading


def table(labels: Sequence[Any], name: str = "label", **more: Any) -> list[dict[str, Any]]:
    return [{"text": f"t{i}", name: label, **more} for i, label in enumerate(labels)]


def read(
    rows: Sequence[Any], detector: Detector | None = None, sample: int = 50, reading: Reading | None = None
) -> tuple[Detector, list[tuple[Message, ...]], dict[str, str]]:
    """The detector after all rows, the messages, and the sentences said by kind."""
    log = ProblemLog()
    detector = detector or Detector(reading, rows[:sample])
    messages = [detector.convert(row, line, log).messages for line, row in enumerate(rows, 1)]
    detector.finish(log)
    return detector, messages, {problem.kind: problem.text for problem in log.problems()}


def test_a_text_and_its_label_become_a_question_and_an_answer_from_a_fixed_set() -> None:
    detector, rows, said = read(table(["good", "bad"] * 40))
    assert rows[0] == (
        Message("system", "Classify the text. Answer with exactly one of: bad, good."),
        Message("user", "t0"),
        Message("assistant", "good"),
    )
    assert (detector.labels, detector.questions, detector.revised()) == (("bad", "good"), (), None)
    assert detector.convert(table(["bad"])[0], 1, ProblemLog()).label == "bad"
    assert said == {"labels": "Column 'label' is taken as the class of each text, one of 2: bad, good."}


def test_a_system_column_takes_the_place_of_the_usual_words() -> None:
    _, rows, _ = read(table(["good", "bad"] * 40, system="Judge."))
    assert rows[0][0] == Message("system", "Judge.")


def test_an_instruction_belongs_to_the_text() -> None:
    rows = [{"instruction": "Judge.", "input": f"t{i}", "label": ("good", "bad")[i % 2]} for i in range(60)]
    assert read(rows)[1][0][1].content == "Judge.\n\nt0"


def test_numbers_ask_for_their_meaning_unless_names_stand_beside_them() -> None:
    detector, rows, said = read(table([0, 1] * 40))
    assert (rows[0][2].content, detector.labels) == ("0", ("0", "1"))
    assert "meaning is not known" in said["number-labels"]
    assert [question.kind for question in detector.questions] == ["labels"]
    named = [{**row, "label_text": ("good", "bad")[row["label"]]} for row in table([0, 1] * 40)]
    detector, rows, said = read(named)
    assert (rows[0][2].content, "number-labels" in said) == ("good", False)


NAMES = (("0", "negative"), ("1", "positive"))


@pytest.mark.parametrize("labels", [[0, 1], ["0", "1 "], [0.0, 1.0]], ids=["numbers", "texts", "floats"])
def test_named_numbers_are_learned_by_their_names(labels: list[Any]) -> None:
    detector, rows, said = read(table(labels * 40), reading=Reading(labels=NAMES))
    assert rows[1] == (
        Message("system", system_text(["negative", "positive"])),
        Message("user", "t1"),
        Message("assistant", "positive"),
    )
    assert (detector.labels, detector.questions) == (("negative", "positive"), ())
    assert set(said) == {"labels"}
    few = read(table([0, 1, 1, 0]), reading=Reading(labels=NAMES))[0]
    assert (few.labels, few.questions) == (("negative", "positive"), ())


def test_numbers_without_a_name_stay_and_are_told_with_the_option_that_names_them() -> None:
    for form in ("", "classification"):
        _, _, said = read(table([0, 1] * 40), reading=Reading(form=form))
        assert "(0, 1). Name them with --labels 0=…, or on the step Data with F2." in said["number-labels"]
    detector, rows, said = read(table([0, 1, 2] * 40), reading=Reading(labels=NAMES))
    assert [messages[2].content for messages in rows[:3]] == ["negative", "positive", "2"]
    assert detector.labels == ("2", "negative", "positive")
    assert "(2). Name them with --labels 2=…" in said["number-labels"]


def test_minus_one_is_a_class_where_it_has_a_name() -> None:
    rows = read(table([-1, 1] * 40), reading=Reading(labels=(("-1", "bad"), ("1", "good"))))[1]
    assert [messages[2].content for messages in rows[:2]] == ["bad", "good"]
    assert read(table([-1, 1] * 40), reading=Reading(labels=NAMES))[1][0][2].content == ""


def test_every_class_of_a_list_is_named() -> None:
    _, rows, said = read(table([[0, 1], [0], [1]] * 20), reading=Reading(labels=NAMES))
    assert rows[0][2].content == "negative, positive"
    assert "unused-names" not in said


@pytest.mark.parametrize("names", [{"0": "good", "1": "good", "2": "bad"}, {"0": "1", "2": "bad"}])
def test_values_with_one_name_are_one_class_and_that_is_said(names: dict[str, str]) -> None:
    detector, rows, said = read(table([0, 1, 2] * 40), reading=Reading(labels=tuple(names.items())))
    assert rows[0][2] == rows[1][2]
    assert detector.labels == tuple(sorted_labels({names["0"], "bad"}))
    assert f"one class: {names['0']}." in said["merged-labels"]
    swapped = Reading(labels=(("0", "1"), ("1", "0")))
    assert "merged-labels" not in read(table([0, 1] * 40), reading=swapped)[2]


def test_names_that_no_row_has_use_for_are_told() -> None:
    reading = Reading(labels=(*NAMES, ("7", "mixed")))
    assert "label 7," in read(table([0, 1] * 40), reading=reading)[2]["unused-names"]
    pairs = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(4)]
    assert "label 0, 1, 7," in read(pairs, reading=reading)[2]["unused-names"]


def test_names_hold_where_only_all_rows_tell_the_labels() -> None:
    reading = Reading(labels=(*NAMES, ("2", "mixed")))
    rows = table([0, 1] * 100 + [2] * 6)
    better = read(rows, reading=reading)[0].revised()
    assert better is not None
    detector, found, _ = read(rows, better)
    assert detector.labels == ("mixed", "negative", "positive")
    assert {messages[0].content for messages in found} == {system_text(detector.labels)}


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["1", "0", "10", "2"], {}, ("0", "1", "2", "10")),
        (["good", "bad"], {}, ()),
        (["negative", "positive"], {"0": "negative", "1": "positive"}, ("0", "1")),
        (["2", "negative"], {"0": "negative"}, ("0", "2")),
        (["none", "negative"], {"0": "negative"}, ("0",)),
        ([], {}, ()),
    ],
)
def test_which_values_may_be_named(labels: list[str], names: dict[str, str], expected: tuple[str]) -> None:
    assert values_to_name(labels, names) == expected


def test_other_names_read_the_file_anew_and_options_keep_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "home"))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"phrase": f"t {i}", "label": i % 2}) + "\n" for i in range(80)))
    assert load_dataset(str(path)).rows[1].answer == "1"
    found = load_dataset(str(path), Reading(labels=NAMES))
    assert (found.rows[1].answer, found.labels) == ("positive", ("negative", "positive"))
    assert load_dataset(str(path), Reading(labels=(("0", "no"), ("1", "yes")))).rows[1].answer == "yes"
    reading = Reading(columns=(("label", "a"),), labels=NAMES, include=("duplicate",))
    assert Reading.of(json.loads(json.dumps(asdict(reading)))) == reading


@pytest.mark.parametrize(
    ("labels", "named", "fixed"),
    [
        (["a", "b"] * 100, True, True),
        ([str(i) for i in range(60)], True, False),
        ([str(i % 51) for i in range(1000)], True, False),
        ([str(i % 50) for i in range(1000)], True, True),
        ([str(i % 20) for i in range(100)], True, False),
        (["a" * 41, "b" * 41] * 100, True, False),
        (["a", "b", "a"], True, True),
        (["a", "b"], True, True),
        (["a"], False, False),
        (["a", "b", "a"], False, False),
        (["a", "b", "a"] * 3, False, True),
        ([str(i) for i in range(8)], True, False),
        ([], True, False),
    ],
)
def test_what_is_a_fixed_set(labels: list[str], named: bool, fixed: bool) -> None:
    assert is_fixed_set(Counter(labels), named) is fixed


def test_answers_that_do_not_repeat_are_learned_as_they_stand() -> None:
    detector, rows, said = read(table([f"answer {i}" for i in range(60)], "target"))
    assert rows[0] == (Message("user", "t0"), Message("assistant", "answer 0"))
    assert (detector.labels, "free-labels" in said) == ((), True)
    options = detector.questions[0].options
    assert [option.reading.form for option in options] == ["chat", "classification"]
    assert read(table([f"answer {i}" for i in range(60)], "target"), reading=options[1].reading)[0].labels


def test_a_label_that_the_first_rows_lack_needs_a_second_reading() -> None:
    rows = table(["good", "bad"] * 100 + ["new"] * 6)
    detector, found, _ = read(rows)
    assert found[0][0].content == system_text(["bad", "good"])
    assert detector.labels == ("bad", "good", "new")
    better = detector.revised()
    assert better is not None
    _, found, _ = read(rows, better)
    assert {messages[0].content for messages in found} == {system_text(["bad", "good", "new"])}
    assert better.revised() is None


def test_a_second_reading_decides_anew_what_the_first_rows_told_wrongly() -> None:
    sorted_rows = table(["a"] * 50 + [f"answer {i}" for i in range(100)])
    better = read(sorted_rows)[0].revised()
    assert better is not None
    assert read(sorted_rows, better)[0].schema == "text and answer: text, label"
    many = table([f"label {i % 40}" for i in range(600)])
    detector = read(many)[0]
    assert detector.labels == ()
    better = detector.revised()
    assert better is not None
    assert len(read(many, better)[0].labels) == 40


@pytest.mark.parametrize(
    ("labels", "kinds"),
    [
        ({"a": 10, "b": 10}, set()),
        ({"Good": 10, "good ": 10}, {"labels-alike"}),
        ({"a": 10, "b": 10, "c": 4}, {"rare-labels"}),
        ({"a": 90, "b": 10}, {"majority"}),
        ({"a": 55, "b": 45}, set()),
        ({"a": 60, "b": 20, "c": 20}, {"majority"}),
        ({"a": 10}, {"one-label"}),
    ],
)
def test_unhealthy_labels_are_named(labels: dict[str, int], kinds: set[str]) -> None:
    notes = label_findings(Counter(labels))
    assert {kind for kind, _ in notes} == kinds
    assert all(text.endswith(".") for _, text in notes)


def test_labels_are_sorted_without_regard_to_the_rows() -> None:
    assert sorted_labels(["b", "10", "9", "A", "-1"]) == ("-1", "9", "10", "A", "b")


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}, [["bad"], ["good"], ["-1"]]),
        ({"label": {"names": "no list", "_type": "ClassLabel"}}, [["0"], ["1"], ["-1"]]),
        (7, [["0"], ["1"], ["-1"]]),
    ],
)
def test_parquet_files_of_the_hub_name_their_classes(
    tmp_path: Path, features: Any, expected: list[list[str]]
) -> None:
    import pyarrow
    from pyarrow import parquet

    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    columns = pyarrow.table({"label": [0, 1, -1], "text": ["t", "t", "t"]})
    parquet.write_table(columns.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    items = read_items(tmp_path / "a.parquet", ProblemLog(), KNOWN)
    assert [[str(item.value["label"])] for item in items.stream] == expected


def test_lists_of_classes_are_named_too() -> None:
    feature = {"feature": {"names": ["a", "b"], "_type": "ClassLabel"}, "_type": "List"}
    text = json.dumps({"info": {"features": {"labels": feature}}}).encode()
    assert class_names({b"huggingface": text}) == {"labels": ("a", "b")}
    assert with_names([[1, 0], [], None, True, 2], ("a", "b")) == [["b", "a"], [], None, True, 2]
