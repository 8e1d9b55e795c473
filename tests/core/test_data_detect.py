from __future__ import annotations

from typing import Any

import pytest

from ollama_tune.core.data.detect import Detector, Unusable
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.tidy import tidy
from ollama_tune.core.data.values import Message

S, U, A = "system", "user", "assistant"
MESSAGES = "conversations in column 'messages'"


def read(record: Any) -> tuple[list[tuple[str, str]], set[str], str]:
    """Roles and texts after tidying, the warnings, and the schema in words."""
    log, detector = ProblemLog(), Detector()
    messages = tidy(detector.convert(record, 1, log), 1, log)
    kinds = {problem.kind for problem in log.problems()}
    return [(message.role, message.content) for message in messages], kinds, detector.schema


@pytest.mark.parametrize(
    ("record", "expected", "schema"),
    [
        (
            {
                "messages": [
                    {"role": S, "content": "s"},
                    {"role": U, "content": "q"},
                    {"role": A, "content": "a"},
                ]
            },
            [(S, "s"), (U, "q"), (A, "a")],
            MESSAGES,
        ),
        (
            {
                "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
                "system": "s",
            },
            [(S, "s"), (U, "q"), (A, "a")],
            "conversations in column 'conversations'",
        ),
        (
            {"instruction": "i", "input": "x", "output": "a"},
            [(U, "i\n\nx"), (A, "a")],
            "instruction, input and output",
        ),
        (
            {"instruction": "i", "input": "N/A", "output": "a"},
            [(U, "i"), (A, "a")],
            "instruction, input and output",
        ),
        (
            {"instruction": "i", "output": "a", "history": [["q1", "a1"]], "system": "s"},
            [(S, "s"), (U, "q1"), (A, "a1"), (U, "i"), (A, "a")],
            "instruction and output",
        ),
        ({"prompt": "q", "completion": "a"}, [(U, "q"), (A, "a")], "prompt and completion"),
        ({"prompt": "q", "response": "a", "id": 3}, [(U, "q"), (A, "a")], "prompt and response"),
        (
            {"prompt": [{"role": U, "content": "q"}], "completion": [{"role": A, "content": "a"}]},
            [(U, "q"), (A, "a")],
            "prompt and completion",
        ),
        ({"Question ": "q", "ANSWER": "a"}, [(U, "q"), (A, "a")], "question and answer"),
        (
            {"question": "q", "context": "c", "answer": "a"},
            [(U, "c\n\nq"), (A, "a")],
            "question, context and answer",
        ),
        ({"input": "q", "output": "a"}, [(U, "q"), (A, "a")], "input and output"),
        (
            {"question": "q", "answer": {"b": [1, None]}},
            [(U, "q"), (A, '{"b": [1, null]}')],
            "question and answer",
        ),
        ({"question": "2+2?", "answer": 4}, [(U, "2+2?"), (A, "4")], "question and answer"),
        ({"messages": {"role": [U, A], "content": ["q", "a"]}}, [(U, "q"), (A, "a")], MESSAGES),
        ([{"role": U, "content": "q"}, {"role": A, "content": "a"}], [(U, "q"), (A, "a")], MESSAGES),
        (
            {
                "messages": [
                    {"role": U, "content": [{"type": "text", "text": "q"}]},
                    {"role": A, "content": "a"},
                ]
            },
            [(U, "q"), (A, "a")],
            MESSAGES,
        ),
    ],
)
def test_schemas(record: Any, expected: list[tuple[str, str]], schema: str) -> None:
    messages, warnings, named = read(record)
    assert (messages, named, warnings) == (expected, schema, set())


def chat(*turns: tuple[str, Any], **extra: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text, **extra} for role, text in turns]}


@pytest.mark.parametrize("role", ["Assistant", "gpt", "BOT", "model", "chatbot", "ai"])
def test_roles_go_by_many_names(role: str) -> None:
    assert read(chat(("Human", "q"), (role, "a")))[0] == [(U, "q"), (A, "a")]


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (chat((U, "q")), "no-answer"),
        (chat((U, "q"), (A, " \n")), "no-answer"),
        (chat((A, "a")), "no-question"),
        (chat((S, "s"), (A, "a")), "no-question"),
        (chat(("wizard", "q"), (A, "a")), "unknown-role"),
        ({"messages": [{"content": "q"}, {"role": A, "content": "a"}]}, "unknown-role"),
        ({"messages": ["q", "a"]}, "not-a-conversation"),
        ({"messages": "q"}, "not-a-conversation"),
        ({"messages": None}, "not-a-conversation"),
        (chat((U, "q"), (A, None), tool_calls=[{"id": 1}]), "tool-calls"),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{}"}]},
            "tool-calls",
        ),
        (chat((U, [{"type": "image", "url": "x"}]), (A, "a")), "not-text"),
        ({"instruction": "i", "output": "a", "history": ["x"]} | {"history": [["x"]]}, "bad-history"),
        ({"text": "t"}, "unknown-columns"),
        ({"question": "q"}, "unknown-columns"),
        ({}, "unknown-columns"),
        ("text", "not-a-record"),
        (None, "not-a-record"),
    ],
)
def test_what_cannot_be_used_is_set_aside_with_the_reason(record: Any, kind: str) -> None:
    with pytest.raises(Unusable) as caught:
        read(record)
    assert caught.value.kind == kind
    assert caught.value.text.endswith(".")


@pytest.mark.parametrize(
    ("record", "expected", "warning"),
    [
        (chat((U, "q"), (U, "r"), (A, "a")), [(U, "q\n\nr"), (A, "a")], "merged-turns"),
        (chat((U, "q"), (A, "a"), (U, "thanks")), [(U, "q"), (A, "a")], "trailing-turns"),
        (chat((U, "q"), (A, ""), (U, "r"), (A, "a")), [(U, "q\n\nr"), (A, "a")], "empty-turn"),
        (chat((A, "hi"), (U, "q"), (A, "a")), [(A, "hi"), (U, "q"), (A, "a")], "answer-first"),
        (chat((U, "q\ud800"), (A, "a\udfff")), [(U, "q�"), (A, "a�")], "half-characters"),
        (chat((U, "q"), (A, "a"), weight=0), [(U, "q"), (A, "a")], "train-flags"),
        (chat((U, "q"), (A, "a"), reasoning_content="hm"), [(U, "q"), (A, "a")], "reasoning"),
        ({**chat((U, "q"), (A, "a")), "tools": [{"name": "f"}]}, [(U, "q"), (A, "a")], "tools"),
    ],
)
def test_tidying_and_its_warnings(record: Any, expected: list[tuple[str, str]], warning: str) -> None:
    messages, warnings, _ = read(record)
    assert messages == expected
    assert warning in warnings


def test_a_pair_of_surrogates_that_makes_a_character_is_joined() -> None:
    assert read(chat((U, "\ud83e\udd9c"), (A, "a")))[0][0] == (U, "🦜")


def test_texts_keep_their_own_blanks() -> None:
    assert read(chat((U, "  q\n"), (A, "    indented code\n")))[0] == [
        (U, "  q\n"),
        (A, "    indented code\n"),
    ]


def test_several_schemas_in_one_file_are_counted() -> None:
    log, detector = ProblemLog(), Detector()
    for record in (
        {"question": "q", "answer": "a"},
        {"prompt": "q", "completion": "a"},
        {"answer": "a", "question": "q"},
    ):
        detector.convert(record, 1, log)
    assert detector.schema == "question and answer (2 rows); prompt and completion (1 rows)"


def test_a_column_that_only_sounds_like_a_conversation_does_not_hide_the_pair() -> None:
    record = {"conversation": "id-7", "turns": 1, "question": "q", "answer": "a"}
    assert read(record) == ([(U, "q"), (A, "a")], set(), "question and answer")


def test_problems_keep_few_lines_and_errors_come_first() -> None:
    log = ProblemLog()
    for line in range(100):
        log.warn("often", "Often.", line)
    log.set_aside("once", "Once.", 7)
    first, second = log.problems()
    assert (first.kind, first.severity, second.count, second.lines) == ("once", "error", 100, (0, 1, 2, 3, 4))


def test_tool_results_are_not_merged() -> None:
    log = ProblemLog()
    turns = [Message(U, "q"), Message("tool", "1"), Message("tool", "2"), Message(A, "a")]
    assert [message.content for message in tidy(turns, 1, log)] == ["q", "1", "2", "a"]
