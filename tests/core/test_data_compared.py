"""Answers that somebody compared: the forms of well-known data sets, ties, and rows that tell nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.load import load_dataset
from ollama_tune.core.data.values import DatasetProfile, Reading

ASKED, GOOD, BAD = "Why is the sky blue?", "Because of the light.", "No idea."


def talk(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]


MODELS = {"model_a": "one", "model_b": "two"}
FORMS: dict[str, list[dict[str, Any]]] = {
    "winner by letter": [
        {"prompt": ASKED, "response_a": GOOD, "response_b": BAD, "winner": "a"},
        {"prompt": ASKED, "response_a": BAD, "response_b": GOOD, "winner": "B"},
    ],
    "winner by number": [
        {"prompt": ASKED, "response_a": GOOD, "response_b": BAD, "winner": 1},
        {"prompt": ASKED, "response_a": BAD, "response_b": GOOD, "winner": 2},
    ],
    "winner by word": [
        {"prompt": ASKED, "response_a": GOOD, "response_b": BAD, "winner": "first"},
        {"prompt": ASKED, "response_a": BAD, "response_b": GOOD, "winner": "Second"},
        {"prompt": ASKED, "response_a": GOOD, "response_b": BAD, "winner": "left"},
        {"prompt": ASKED, "response_a": BAD, "response_b": GOOD, "winner": "right"},
    ],
    "a verdict against scores": [
        {"prompt": ASKED, "response_a": GOOD, "response_b": BAD, "winner": "a", "score_a": 1, "score_b": 9},
    ],
    "winner by model": [
        MODELS | {"prompt": ASKED, "response_a": BAD, "response_b": GOOD, "winner": "model_b"},
    ],
    "arena": [
        MODELS
        | {
            "winner": "model_a",
            "conversation_a": talk(ASKED, GOOD),
            "conversation_b": talk(ASKED, BAD),
            "turn": 1,
        }
    ],
    "arena with flags": [
        MODELS
        | {
            "prompt": json.dumps([ASKED]),
            "response_a": json.dumps([BAD]),
            "response_b": json.dumps([GOOD]),
            "winner_model_a": 0,
            "winner_model_b": 1,
            "winner_tie": 0,
        }
    ],
    "better by number": [
        {"question": ASKED, "answer1": GOOD, "answer2": BAD, "better": 1},
        {"question": ASKED, "answer1": BAD, "answer2": GOOD, "better": "2"},
    ],
    "better by column": [{"question": ASKED, "answer1": BAD, "answer2": GOOD, "better": "answer2"}],
    "SHP": [
        {"history": ASKED, "human_ref_A": GOOD, "human_ref_B": BAD, "labels": 1, "score_A": 5, "score_B": 2},
        {"history": ASKED, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0, "score_A": 1, "score_B": 2},
    ],
    "SafeRLHF": [
        {
            "prompt": ASKED,
            "response_0": BAD,
            "response_1": GOOD,
            "better_response_id": 1,
            "safer_response_id": 0,
        }
    ],
    "HelpSteer2": [{"prompt": ASKED, "response_1": BAD, "response_2": GOOD, "preference_strength": 2}],
    "HelpSteer3": [
        {"context": talk(ASKED), "response1": GOOD, "response2": BAD, "overall_preference": -1},
    ],
    "AlpacaFarm": [
        {"instruction": ASKED, "input": "", "output_1": GOOD, "output_2": BAD, "preference": 1},
    ],
    "WebGPT": [
        {"question": {"full_text": ASKED}, "answer_0": BAD, "answer_1": GOOD, "score_0": -1, "score_1": 1}
    ],
    "UltraFeedback": [
        {
            "instruction": ASKED,
            "models": ["one", "two", "three"],
            "completions": [
                {"response": BAD, "overall_score": 2.0},
                {"response": GOOD, "overall_score": 8.5},
                {"response": "It is.", "overall_score": 5.0},
            ],
        }
    ],
    "Nectar": [
        {"prompt": ASKED, "answers": [{"answer": BAD, "rank": 7.0}, {"answer": GOOD, "rank": 1.0}]},
    ],
    "distilabel": [{"instruction": ASKED, "generations": [BAD, GOOD], "ratings": [2, 5]}],
    "an answer nobody rated": [
        {"instruction": ASKED, "generations": ["It is.", BAD, GOOD], "ratings": [float("nan"), 2, 5]},
    ],
    "ranks": [{"prompt": ASKED, "responses": [GOOD, BAD], "ranks": [1, 2]}],
    "Stack Exchange": [
        {"question": ASKED, "answers": [{"text": BAD, "pm_score": 0}, {"text": GOOD, "pm_score": 4}]}
    ],
}


def read(folder: Path, *records: Any, reading: Reading | None = None) -> DatasetProfile:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return load_dataset(str(path), reading)


def kinds(found: DatasetProfile) -> dict[str, tuple[int, ...]]:
    return {problem.kind: problem.lines for problem in found.problems}


@pytest.mark.parametrize("form", FORMS)
def test_the_better_answer_is_found_in_every_form(form: str, tmp_path: Path) -> None:
    found = read(tmp_path, *FORMS[form], reading=Reading(include=("duplicate",)))
    assert found.schema.startswith("compared answers: ") and len(found.rows) == len(FORMS[form])
    for row in found.rows:
        assert [turn.content for turn in row.messages] == [ASKED, GOOD]
        assert [turn.content for turn in row.rejected] == [ASKED, BAD] and row.shared == 1
    assert "preference-pairs" in kinds(found)


def test_several_questions_and_answers_in_lists_are_a_conversation(tmp_path: Path) -> None:
    form = FORMS["arena with flags"][0]
    lists = {"prompt": [ASKED, "Sure?"], "response_a": [BAD, "No."], "response_b": [GOOD, "Yes."]}
    (row,) = read(tmp_path, form | {name: json.dumps(cell) for name, cell in lists.items()}).rows
    assert [turn.content for turn in row.messages] == [ASKED, GOOD, "Sure?", "Yes."]
    assert [turn.content for turn in row.rejected] == [ASKED, BAD, "Sure?", "No."]


@pytest.mark.parametrize(
    ("record", "changed"),
    [
        (FORMS["winner by model"][0], {"winner": "tie"}),
        (FORMS["arena"][0], {"winner": "Tie"}),
        (FORMS["arena with flags"][0], {"winner_model_b": 0, "winner_tie": 1}),
        (FORMS["HelpSteer2"][0], {"preference_strength": 0}),
        (FORMS["WebGPT"][0], {"score_0": 1}),
        (FORMS["ranks"][0], {"ranks": [1, 1]}),
    ],
)
def test_a_tie_is_told_and_its_first_answer_can_be_learned(
    record: dict[str, Any], changed: dict[str, Any], tmp_path: Path
) -> None:
    found = read(tmp_path, record, record | changed, reading=Reading(include=("duplicate",)))
    first, tied = found.rows
    assert first.rejected and not tied.rejected and tied.answer in (GOOD, BAD)
    assert kinds(found)["tie"] == (2,)
    (problem,) = (problem for problem in found.problems if problem.kind == "tie")
    assert problem.switchable and "training.objective dpo" in problem.text


@pytest.mark.parametrize(
    ("kind", "record", "changed"),
    [
        ("both-bad", FORMS["arena"][0], {"winner": "tie (bothbad)"}),
        ("both-bad", FORMS["winner by model"][0], {"winner": "both_bad"}),
        ("no-verdict", FORMS["winner by model"][0], {"winner": None}),
        ("no-verdict", FORMS["winner by model"][0], {"winner": "someone else"}),
        ("no-verdict", FORMS["HelpSteer2"][0], {"preference_strength": None}),
        ("no-verdict", FORMS["distilabel"][0], {"ratings": [5]}),
    ],
)
def test_rows_that_tell_nothing_good_are_set_aside_and_counted(
    kind: str, record: dict[str, Any], changed: dict[str, Any], tmp_path: Path
) -> None:
    found = read(tmp_path, record, record | changed)
    assert len(found.rows) == 1 and found.total == 2
    assert [(problem.kind, problem.lines) for problem in found.problems if problem.severity == "error"] == [
        (kind, (2,))
    ]


def test_scores_that_contradict_the_columns_are_told(tmp_path: Path) -> None:
    pair = {"prompt": ASKED, "chosen": GOOD, "rejected": BAD}
    scores = [(8.0, 2.0), (2.0, 8.0), (5.0, 5.0), (float("nan"), 1.0)]
    rows = [
        pair | {"prompt": f"{n}?", "score_chosen": one, "score_rejected": other}
        for n, (one, other) in enumerate(scores)
    ]
    found = read(tmp_path, *rows)
    assert all(row.answer == GOOD and row.rejected for row in found.rows)
    told = kinds(found)
    assert told["score-order"] == (2,) and told["equal-scores"] == (3,) and "unused-columns" not in told


@pytest.mark.parametrize(
    "record",
    [
        {
            "question": ASKED,
            "answer_a": GOOD,
            "answer_b": BAD,
            "answer_c": "x",
            "winner": "a",
            "answer": GOOD,
        },
        {"question": ASKED, "answer_a": GOOD, "answer_b": BAD, "label": "a", "answer": GOOD},
        {"prompt": ASKED, "response_a": GOOD, "response_b": BAD, "completion": GOOD},
        {"question": ASKED, "answers": {"text": [GOOD], "answer_start": [0]}},
        {"question": ASKED, "answers": [{"text": GOOD}, {"text": BAD}], "answer": GOOD},
    ],
)
def test_what_nobody_compared_is_read_as_before(record: dict[str, Any], tmp_path: Path) -> None:
    found = read(tmp_path, record)
    assert not found.schema.startswith("compared") and not found.rows[0].rejected
