"""Messages in an order that strict chat templates accept, with every change said and its line."""

from __future__ import annotations

import pytest

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.schemas.cells import Unusable
from ollama_tune.core.data.schemas.tidy import tidy
from ollama_tune.core.data.values import Message, ToolCall

S, U, A, T = "system", "user", "assistant", "tool"
CALL = (ToolCall("f"),)
Turns = list[tuple[str, str]]


def tidied(*messages: Message) -> tuple[tuple[Message, ...], list[tuple[str, tuple[int, ...]]]]:
    log = ProblemLog()
    found = tidy(messages, 7, log)
    return found, [(problem.kind, problem.lines) for problem in log.problems()]


@pytest.mark.parametrize(
    ("turns", "expected", "warned"),
    [
        ([(U, "q"), (A, "a")], [(U, "q"), (A, "a")], []),
        (
            [(S, "s"), (U, "q"), (A, "a"), (U, "r"), (A, "b")],
            [(S, "s"), (U, "q"), (A, "a"), (U, "r"), (A, "b")],
            [],
        ),
        ([(U, "q"), (U, "r"), (A, "a")], [(U, "q\n\nr"), (A, "a")], ["merged-turns"]),
        ([(U, "q"), (A, "a"), (A, "b")], [(U, "q"), (A, "a\n\nb")], ["merged-turns"]),
        ([(S, "s"), (S, "t"), (U, "q"), (A, "a")], [(S, "s\n\nt"), (U, "q"), (A, "a")], ["merged-turns"]),
        ([(U, "q"), (A, "a"), (U, "thanks")], [(U, "q"), (A, "a")], ["trailing-turns"]),
        ([(U, "q"), (A, ""), (U, "r"), (A, "a")], [(U, "q\n\nr"), (A, "a")], ["empty-turn", "merged-turns"]),
        ([(S, " "), (U, "q"), (A, "a")], [(U, "q"), (A, "a")], ["empty-turn"]),
        ([(A, "hi"), (U, "q"), (A, "a")], [(A, "hi"), (U, "q"), (A, "a")], ["answer-first"]),
        (
            [(S, "s"), (A, "hi"), (U, "q"), (A, "a")],
            [(S, "s"), (A, "hi"), (U, "q"), (A, "a")],
            ["answer-first"],
        ),
        ([(U, "q"), (S, "s"), (A, "a")], [(S, "s"), (U, "q"), (A, "a")], ["late-system"]),
        (
            [(S, "s"), (U, "q"), (A, "a"), (S, "t"), (U, "r"), (A, "b")],
            [(S, "s\n\nt"), (U, "q"), (A, "a"), (U, "r"), (A, "b")],
            ["late-system", "merged-turns"],
        ),
        ([(U, "q\ud800"), (A, "a\udfff")], [(U, "q�"), (A, "a�")], ["half-characters"]),
        ([(U, "\ud83e\udd9c"), (A, "a")], [(U, "🦜"), (A, "a")], ["half-characters"]),
        ([(U, "  q\n"), (A, "    code\n")], [(U, "  q\n"), (A, "    code\n")], []),
        ([(A, "Only text.")], [(A, "Only text.")], []),
    ],
)
def test_the_order_of_turns(turns: Turns, expected: Turns, warned: list[str]) -> None:
    found, said = tidied(*(Message(role, text) for role, text in turns))
    assert [(message.role, message.content) for message in found] == expected
    assert sorted({kind for kind, _ in said}) == warned
    assert all(set(lines) == {7} for _, lines in said)


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        ([], "no-answer"),
        ([Message(U, "q")], "no-answer"),
        ([Message(A, " ")], "no-answer"),
        ([Message(U, "q"), Message(A, "")], "no-answer"),
        ([Message(U, ""), Message(A, "a")], "no-question"),
        ([Message(S, "s"), Message(A, "a")], "no-question"),
        ([Message(U, "q"), Message(T, "r"), Message(A, "a")], "result-without-call"),
        ([Message(U, "q"), Message(A, "", tool_calls=CALL), Message(A, "a")], "call-without-result"),
        ([Message(U, "q"), Message(A, "a", train=False)], "nothing-learned"),
        ([Message(U, "q"), Message(A, "a", train=False), Message(A, "b")], "mixed-marks"),
    ],
)
def test_what_no_order_can_save_is_set_aside(messages: list[Message], kind: str) -> None:
    log = ProblemLog()
    with pytest.raises(Unusable) as caught:
        tidy(messages, 7, log)
    assert caught.value.kind == kind
    assert not [problem for problem in log.problems() if problem.kind == "empty-turn"], "told by its own name"


def test_results_of_tools_are_neither_merged_nor_dropped_when_empty() -> None:
    turns = (
        Message(U, "q"),
        Message(A, "", tool_calls=CALL * 2),
        Message(T, "1"),
        Message(T, ""),
        Message(A, "a"),
    )
    assert tidied(*turns) == (turns, [])


def test_calls_in_two_answers_in_a_row_are_joined() -> None:
    calls = (Message(A, "wait", tool_calls=CALL), Message(A, "", "hm", tool_calls=CALL))
    found, _ = tidied(Message(U, "q"), *calls, Message(T, "1"), Message(T, "2"), Message(A, "a"))
    assert found[1] == Message(A, "wait", "hm", tool_calls=CALL * 2)


def test_reasoning_and_marks_survive() -> None:
    turns = (Message(U, "q"), Message(A, "a", train=False), Message(U, "r"), Message(A, "b", "hm"))
    assert tidied(*turns) == (turns, [])
    assert tidied(Message(U, "q"), Message(A, "a", "h\ud800"))[0][1].reasoning == "h�"
