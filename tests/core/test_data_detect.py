"""Every form of data that people have becomes the same messages, with all that was decided said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.rows.rated import BadAnswer
from ollama_tune.core.data.schemas.detect import KNOWN, Detector, Unusable
from ollama_tune.core.data.schemas.tidy import tidy
from ollama_tune.core.data.values import Message, Reading, Row

S, U, A = "system", "user", "assistant"
Turns = list[tuple[str, str]]
QA: Turns = [(U, "q"), (A, "a")]
CHAT = [{"role": U, "content": "q"}, {"role": A, "content": "a"}]
MESSAGES = "messages (OpenAI): messages"
FORMS_FILE = Path(__file__).with_name("data_forms.jsonl")
FORMS = [json.loads(line) for line in FORMS_FILE.read_text(encoding="utf-8").split("\n") if line]
"""Small files as the manuals of many programs define them: rows, schema, first usable row, warnings."""


CELLS: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    float("nan"),
    10**400,
    "",
    "x",
    "[",
    "[]",
    [],
    {},
    [None],
    [[]],
    [{}],
]
CELLS += [
    "[{'role': 'user'}]",
    ["a", "b"],
    [["a", "b"]],
    {"a": 1},
    "<|im_start|>user\nq",
    b"\xff",
    "\ud800",
    (1, 2),
]


class Found(NamedTuple):
    detector: Detector
    rows: list[tuple[Message, ...]]
    kinds: dict[str, str]

    def texts(self, row: int = 0) -> Turns:
        return [(message.role, message.content) for message in self.rows[row]]


def read(*records: Any, reading: Reading | None = None) -> Found:
    """The usable rows of a file and what was said about it, sentences by kind."""
    log, detector = ProblemLog(), Detector(reading, records[:50])
    rows = []
    for line, record in enumerate(records, 1):
        try:
            converted = detector.convert(record, line, log)
            if converted.good is False:
                raise BadAnswer(Row(converted.messages, line))
            rows.append(tidy(converted.messages, line, log))
        except Unusable as reason:
            log.set_aside(reason.kind, reason.text, line)
    detector.finish(log)
    assert all(problem.text.endswith(".") for problem in log.problems())
    return Found(detector, rows, {problem.kind: problem.text for problem in log.problems()})


@pytest.mark.parametrize("form", FORMS, ids=[form["name"] for form in FORMS])
def test_forms(form: dict[str, Any]) -> None:
    reading = Reading(tuple(sorted(form.get("columns", {}).items())), form.get("form", ""))
    found = read(*form["rows"], reading=reading)
    assert found.texts() == [tuple(turn) for turn in form["first"]]
    assert found.detector.schema == form["schema"]
    assert sorted(found.kinds) == form.get("warned", [])
    used = {column.name: column.part for column in found.detector.columns}
    if ": messages" not in form["schema"] and "." not in form["schema"]:
        assert set(form["schema"].split(": ")[1].split(", ")) == {name for name, part in used.items() if part}


def test_the_names_of_columns_that_tell_a_table_are_known_as_people_write_them() -> None:
    assert {"system prompt", "system_prompt", "问题", "réponse", "reponse", "вопрос", "질문"} <= KNOWN


def chat(*turns: tuple[str, Any], **extra: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text, **extra} for role, text in turns]}


ROLES = [
    "Assistant",
    "gpt",
    "BOT",
    "model",
    "chatbot",
    "ai",
    "助手",
    "アシスタント",
    "asistente",
    "Ассистент",
]


@pytest.mark.parametrize("role", ROLES)
def test_roles_go_by_many_names(role: str) -> None:
    assert read(chat(("Human", "q"), (role, "a"))).texts() == QA


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (chat((U, "q")), "no-answer"),
        (chat((U, "q"), (A, " \n")), "no-answer"),
        (chat((A, "a")), "no-question"),
        (chat((S, "s"), (A, "a")), "no-question"),
        (chat(("wizard", "q"), (A, "a")), "unknown-role"),
        ({"messages": [{"content": "q"}, {"role": A, "content": "a"}]}, "unknown-role"),
        ({"messages": [{"role": 1, "content": "q"}, {"role": A, "content": "a"}]}, "unknown-role"),
        ({"messages": [["q", "a", "b"]]}, "not-a-conversation"),
        ({"messages": [1, 2]}, "not-a-conversation"),
        ({"messages": None}, "not-a-conversation"),
        ({"messages": []}, "no-answer"),
        ([], "no-answer"),
        (chat((U, [{"type": "image", "url": "x"}]), (A, "a")), "not-text"),
        (chat((U, [{"type": "text"}]), (A, "a")), "not-text"),
        ({"instruction": "i", "output": "a", "history": ["x"]}, "bad-history"),
        ({"instruction": "i", "output": "a", "history": "x"}, "bad-history"),
        ({"question": "q", "answer": float("nan")}, "no-answer"),
        ({"question": None, "answer": "a"}, "no-question"),
        ({"question": "q"}, "no-answer-column"),
        ({"foo": 1}, "unknown-columns"),
        ({}, "unknown-columns"),
        ({"input_ids": [1, 2], "labels": [-100, 2], "attention_mask": [1, 1]}, "pre-tokenised"),
        ({"conversation_id": 1, "role": "user", "content": "q"}, "one-message-a-row"),
        (" ", "not-a-record"),
        (None, "not-a-record"),
        (7, "not-a-record"),
    ],
)
def test_what_cannot_be_used_is_set_aside_with_the_reason(record: Any, kind: str) -> None:
    found = read(record)
    assert not found.rows
    assert kind in found.kinds


def test_several_schemas_in_one_file_are_counted() -> None:
    found = read(
        {"question": "q", "answer": "a"},
        {"prompt": "q", "completion": "a"},
        {"answer": "a", "question": "q", "id": 1},
        chat((U, "q"), (A, "a")),
        {"foo": 1},
    )
    assert [[text for _, text in found.texts(i)] for i in range(4)] == [["q", "a"]] * 4
    assert found.detector.schema == (
        "question and answer: question, answer (2 rows); prompt and completion: prompt, completion (1 row); "
        "messages (OpenAI): messages (1 row)"
    )
    assert found.detector.unknown == {("foo",): 1}


def test_bare_texts_are_rows_only_in_a_file_of_them() -> None:
    assert [found[0].content for found in read("one", "two").rows] == ["one", "two"]
    found = read("one", {"question": "q", "answer": "a"})
    assert (found.texts(), "not-a-record" in found.kinds) == (QA, True)


def test_columns_that_are_not_used_are_named_once() -> None:
    found = read(*({"id": i, "question": "q", "answer": "a", "URL\x1b": "u"} for i in range(3)))
    assert found.kinds == {"unused-columns": "Columns that are not used: 'id', 'URL\\x1b'."}


def test_the_first_record_may_lack_what_the_others_have() -> None:
    found = read({"messages": None, "id": 1}, {"messages": CHAT, "id": 2})
    assert (found.texts(), found.detector.schema) == (QA, MESSAGES)


def test_a_system_column_does_not_replace_the_system_text_of_the_conversation() -> None:
    record = {**chat((S, "s"), (U, "q"), (A, "a")), "system": "t"}
    assert read(record).texts() == [(S, "t\n\ns"), *QA]
    assert read({**record, "system": "s"}).texts() == [(S, "s"), *QA]


def test_the_instruction_that_never_changes_is_offered_as_the_system_text() -> None:
    rows = [{"instruction": "Be kind.", "input": f"x{i}", "output": "a"} for i in range(6)]
    found = read(*rows)
    assert found.texts() == [(U, "Be kind.\n\nx0"), (A, "a")]
    assert "'instruction' says the same in every row" in found.kinds["same-instruction"]
    (question,) = found.detector.questions
    stay, system = (option.reading for option in question.options)
    assert read(*rows, reading=stay).texts() == found.texts()
    assert read(*rows, reading=system).texts() == [(S, "Be kind."), (U, "x0"), (A, "a")]
    assert read(*rows, reading=system).detector.questions == ()


@pytest.mark.parametrize(
    ("record", "kind", "likely", "other"),
    [
        ({"question": "q", "response": "a", "solution": "b"}, "answer-columns", QA, [(U, "q"), (A, "b")]),
        (
            {
                "messages": CHAT,
                "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}],
            },
            "conversation-columns",
            QA,
            [(U, "x"), (A, "y")],
        ),
        ({"translation": {"en": "q", "de": "a"}}, "direction", QA, [(U, "a"), (A, "q")]),
        ({"en": "q", "de": "a"}, "direction", QA, [(U, "a"), (A, "q")]),
        (
            {"foo": "What is it?", "bar": "It is that."},
            "unknown-columns",
            [(U, "What is it?"), (A, "It is that.")],
            [(U, "It is that."), (A, "What is it?")],
        ),
        (
            {"Unsere Antwort (geprüft)": "Two teas", "Kunde sagt …": "Two teas, please, for us."},
            "unknown-columns",
            [(U, "Two teas, please, for us."), (A, "Two teas")],
            [(U, "Two teas"), (A, "Two teas, please, for us.")],
        ),
    ],
)
def test_what_is_open_is_asked_and_the_likeliest_answer_taken_and_said(
    record: Any, kind: str, likely: Turns, other: Turns
) -> None:
    found = read(record)
    assert found.texts() == likely
    assert kind in found.kinds
    (question,) = found.detector.questions
    assert question.kind == kind
    assert [read(record, reading=option.reading).texts() for option in question.options] == [likely, other]


def test_of_many_unknown_columns_none_is_taken_but_parts_are_proposed() -> None:
    rows = [
        {"aa": f"Some words {i}?", "bb": f"A far longer text {i} is it.", "cc": f"note {i} b"}
        for i in range(6)
    ]
    found = read(*rows)
    assert not found.rows
    parts = {column.name: column.part for column in found.detector.columns}
    assert parts == {"aa": "question", "bb": "answer", "cc": ""}
    assert found.detector.columns[0].samples[0] == "Some words 0?"
    chosen = Reading((("answer", "bb"), ("question", "aa")))
    assert read(*rows, reading=chosen).texts() == [(U, "Some words 0?"), (A, "A far longer text 0 is it.")]


def test_a_choice_of_columns_that_a_record_lacks_leaves_it_to_the_names() -> None:
    assert read({"question": "q", "answer": "a"}, reading=Reading((("answer", "reply"),))).texts() == QA


def test_names_that_are_data_cost_neither_time_nor_memory() -> None:
    found = read(*({f"key {i}": "Some words.", "question": "q", "answer": "a"} for i in range(2_000)))
    assert len(found.rows) == 2_000
    assert sum(len(sentence) for sentence in found.kinds.values()) < 300
    assert found.detector.schema == "question and answer: question, answer"


@pytest.mark.parametrize(
    ("choices", "answer", "expected"),
    [
        (["3", "4"], 1, "B. 4"),
        (["3", "4"], "4", "B. 4"),
        (["3", "4"], "B) 4", "B. 4"),
        (["3", "4"], 1.0, "B. 4"),
        ([{"label": "X", "text": "3"}, {"label": "Y", "text": "4"}], "Y", "B. 4"),
        ({"A": "3", "B": "4"}, "B", "B. 4"),
        ("A. 3\nB. 4", "b", "B. 4"),
        ({"text": ["3", "4"], "label": ["A", "B"]}, ["B"], "B. 4"),
    ],
)
def test_choices_are_named_by_letter_and_text(choices: Any, answer: Any, expected: str) -> None:
    assert read({"question": "2+2?", "choices": choices, "answer": answer}).texts() == [
        (U, "2+2?\n\nA. 3\nB. 4"),
        (A, expected),
    ]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything inside a record."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, cell in inner:
        yield from places(cell, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], cell: Any) -> Any:
    """The same record with another cell at a path."""
    if not path:
        return cell
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = replaced(changed[path[0]], path[1:], cell)
    return changed


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False))
def test_no_record_whatever_it_holds_breaks_the_reading(random: Random) -> None:
    records = list(random.choice(FORMS)["rows"]) * 2
    for _ in range(random.randint(1, 4)):
        at, other = random.randrange(len(records)), random.choice(FORMS)["rows"][0]
        path = random.choice(list(places(records[at])))
        records[at] = replaced(
            records[at], path, random.choice([*CELLS, other, json.dumps(other), str(other)])
        )
    found = read(*records)
    assert all(isinstance(turn.content + turn.reasoning, str) for row in found.rows for turn in row)
    assert all(row[-1].role == A for row in found.rows)
    assert len(found.detector.questions) <= len(found.kinds)
    better = found.detector.revised()
    assert better is None or better.revised() is None


def test_what_is_nested_without_end_costs_only_its_row() -> None:
    inner: Any = "q"
    for _ in range(900):
        inner = {"content": [inner]}
    found = read({"messages": [{"role": U, **inner}, {"role": A, "content": "a"}]}, chat((U, "q"), (A, "a")))
    assert (len(found.rows), "too-deep" in found.kinds) == (1, True)
    wide: Any = {"x": 1}
    for _ in range(12):
        wide = dict.fromkeys("abc", wide)
    assert "unknown-columns" in read(wide).kinds
