"""Tools, reasoning, training marks and chat markup inside a conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.schemas.detect import Conversation, Detector, Unusable
from ollama_tune.core.data.schemas.markup import marked_turns
from ollama_tune.core.data.schemas.tidy import tidy
from ollama_tune.core.data.values import Message, ToolCall

S, U, A, T = "system", "user", "assistant", "tool"
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOLS = [{"type": "function", "function": WEATHER}]
FUNCTION = {"name": "weather", "arguments": '{"city": "Bonn"}'}
CALL = ToolCall("weather", '{"city": "Bonn"}', "c1")
NO_ID = ToolCall("weather", '{"city": "Bonn"}')


def read(record: Any) -> tuple[Conversation, set[str]]:
    """A record after tidying, and the kinds of warnings."""
    log, detector = ProblemLog(), Detector()
    found = detector.convert(record, 1, log)
    messages = tidy(found.messages, 1, log)
    return found._replace(messages=messages), {problem.kind for problem in log.problems()}


def calling(call: dict[str, Any], result: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": U, "content": "q"}, {"role": A, **call}, result, {"role": A, "content": "a"}]


@pytest.mark.parametrize(
    ("messages", "call", "result"),
    [
        (
            calling(
                {"content": None, "tool_calls": [{"id": "c1", "type": "function", "function": FUNCTION}]},
                {"role": T, "tool_call_id": "c1", "name": "weather", "content": "rain"},
            ),
            CALL,
            Message(T, "rain", name="weather", tool_call_id="c1"),
        ),
        (
            calling(
                {
                    "content": "",
                    "tool_calls": [{"name": "weather", "arguments": {"city": "Bonn", "day": None}}],
                },
                {"role": T, "content": "rain"},
            ),
            NO_ID,
            Message(T, "rain"),
        ),
        (
            calling(
                {"content": None, "function_call": FUNCTION},
                {"role": "function", "name": "weather", "content": "rain"},
            ),
            NO_ID,
            Message(T, "rain", name="weather"),
        ),
        (
            calling(
                {"tool_calls": json.dumps([{"function": FUNCTION}])}, {"role": T, "content": {"sky": "rain"}}
            ),
            NO_ID,
            Message(T, '{"sky": "rain"}'),
        ),
        (
            calling(
                {"channel": "commentary", "recipient": "functions.weather", "content": '{"city": "Bonn"}'},
                {"role": T, "content": "rain"},
            ),
            NO_ID,
            Message(T, "rain"),
        ),
        (
            calling(
                {"content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Bonn"}}]},
                {
                    "role": U,
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "c1",
                            "content": [{"type": "text", "text": "rain"}],
                        }
                    ],
                },
            ),
            CALL,
            Message(T, "rain", tool_call_id="c1"),
        ),
    ],
)
def test_calls_of_tools_in_every_form(messages: list[Any], call: ToolCall, result: Message) -> None:
    found, warned = read({"messages": messages, "tools": json.dumps([WEATHER])})
    assert found.messages == (
        Message(U, "q"),
        Message(A, "", tool_calls=(call,)),
        result,
        Message(A, "a"),
    )
    assert (json.loads(found.tools), warned) == (TOOLS, set())


def test_calls_in_sharegpt_stand_in_turns_of_their_own() -> None:
    turns = [("human", "q"), ("function_call", json.dumps(FUNCTION)), ("observation", "rain"), ("gpt", "a")]
    found, _ = read({"conversations": [{"from": role, "value": text} for role, text in turns]})
    assert [message.role for message in found.messages] == [U, A, T, A]
    assert found.messages[1].tool_calls == (NO_ID,)


GLAIVE = """USER: q


ASSISTANT: <functioncall> {"name": "weather", "arguments": '{"city": "Bonn"}'} <|endoftext|>


FUNCTION RESPONSE: rain


ASSISTANT: a <|endoftext|>"""
HERMES = f"I look.\n<tool_call>\n{json.dumps(FUNCTION)}\n</tool_call>"


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"system": "s", "chat": GLAIVE}, ""),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "q"},
                    {"from": "gpt", "value": HERMES},
                    {"from": "tool", "value": "rain"},
                    {"from": "gpt", "value": "a"},
                ]
            },
            "I look.",
        ),
    ],
)
def test_calls_written_into_the_text_become_calls_where_a_result_follows(record: Any, text: str) -> None:
    found, warned = read(record)
    assert found.messages == (
        Message(S, "s"),
        Message(U, "q"),
        Message(A, text, tool_calls=(NO_ID,)),
        Message(T, "rain"),
        Message(A, "a"),
    )
    assert warned == {"written-calls"}


def test_answers_that_are_calls_and_calls_in_text_without_a_result() -> None:
    record = {"query": "q", "answers": json.dumps([FUNCTION]), "tools": json.dumps([WEATHER])}
    found, warned = read(record)
    assert (found.messages[1], warned) == (Message(A, "", tool_calls=(NO_ID,)), set())
    del record["tools"]
    assert read(record)[0].messages[1] == Message(A, json.dumps([FUNCTION]))
    found, _ = read({"question": "q", "answer": HERMES})
    assert found.messages[1] == Message(A, HERMES)


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ([WEATHER], TOOLS),
        (TOOLS, TOOLS),
        (json.dumps(TOOLS), TOOLS),
        (str(TOOLS), TOOLS),
        ([{**TOOLS[0], "strict": None, "function": {**WEATHER, "description": None}}], TOOLS),
        ([{"name": "weather", "input_schema": WEATHER["parameters"]}], TOOLS),
        (None, None),
        ([], None),
        ("", None),
        ("[]", None),
    ],
)
def test_tools_in_every_form(tools: Any, expected: Any) -> None:
    record = {"messages": [{"role": U, "content": "q"}, {"role": A, "content": "a"}], "tools": tools}
    found, _ = read(record)
    assert (json.loads(found.tools) if found.tools else None) == expected


@pytest.mark.parametrize(
    ("turns", "kind"),
    [
        ([{"role": A, "tool_calls": [{"function": {"name": "f", "arguments": "{bad"}}]}], "bad-tool-call"),
        ([{"role": A, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}], "bad-tool-call"),
        ([{"role": A, "tool_calls": [{"function": {"arguments": "{}"}}]}], "bad-tool-call"),
        ([{"role": A, "tool_calls": ["f"]}], "bad-tool-call"),
        ([{"role": U, "content": "q", "tool_calls": [{"function": FUNCTION}]}], "bad-tool-call"),
        ([{"role": T, "content": "r"}, {"role": A, "content": "a"}], "result-without-call"),
        (
            [{"role": A, "tool_calls": [{"function": FUNCTION}]}, {"role": A, "content": "a"}],
            "call-without-result",
        ),
        (
            [
                {"role": A, "tool_calls": [{"function": FUNCTION}]},
                {"role": U, "content": "and?"},
                {"role": A, "content": "a"},
            ],
            "call-without-result",
        ),
        (
            [
                {"role": A, "function_call": FUNCTION},
                *[{"role": T, "content": "r"}] * 2,
                {"role": A, "content": "a"},
            ],
            "result-without-call",
        ),
    ],
)
def test_broken_calls_set_the_row_aside(turns: list[Any], kind: str) -> None:
    with pytest.raises(Unusable) as caught:
        read({"messages": [{"role": U, "content": "q"}, *turns]})
    assert caught.value.kind == kind


@pytest.mark.parametrize("tools", ["nonsense", "{", 7, [7], [{"description": "x"}]])
def test_broken_tools_set_the_row_aside(tools: Any) -> None:
    record = {"messages": [{"role": U, "content": "q"}, {"role": A, "content": "a"}], "tools": tools}
    with pytest.raises(Unusable) as caught:
        read(record)
    assert caught.value.kind == "bad-tools"


def test_a_call_may_be_the_last_answer() -> None:
    found, _ = read(
        {"messages": [{"role": U, "content": "q"}, {"role": A, "tool_calls": [{"function": FUNCTION}]}]}
    )
    assert found.messages[-1] == Message(A, "", tool_calls=(NO_ID,))


@pytest.mark.parametrize(
    "answer",
    [
        [{"role": A, "content": "a", "reasoning_content": "hm"}],
        [{"role": A, "content": "a", "thinking": "hm"}],
        [{"role": A, "content": "a", "reasoning": "hm", "thinking": None}],
        [{"role": A, "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]}],
        [
            {"role": A, "channel": "analysis", "content": "hm"},
            {"role": A, "channel": "final", "content": "a"},
        ],
    ],
)
def test_reasoning_is_kept_beside_the_answer(answer: list[Any]) -> None:
    found, warned = read({"messages": [{"role": U, "content": "q"}, *answer]})
    assert (found.messages, warned) == ((Message(U, "q"), Message(A, "a", "hm")), set())


def test_reasoning_in_the_text_or_in_a_column() -> None:
    text = "<think>\nhm\n</think>\n\na"
    found, _ = read({"messages": [{"role": U, "content": "q"}, {"role": A, "content": text}]})
    assert found.messages[-1] == Message(A, text)
    found, warned = read({"Question": "q", "Complex_CoT": "hm", "Response": "a"})
    assert (found.messages[-1], warned) == (Message(A, "a", "hm"), {"reasoning-column"})


@pytest.mark.parametrize(
    ("mark", "trained", "warned"),
    [
        ({"weight": 0}, False, set()),
        ({"weight": 1}, True, set()),
        ({"weight": 0.5}, True, {"train-weights"}),
        ({"weight": None}, True, set()),
        ({"train": False}, False, set()),
        ({"training": "false"}, False, set()),
        ({"loss": True}, True, set()),
        ({"mask": True}, False, set()),
        ({"mask": 0}, True, set()),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}, True, {"train-parts"}),
    ],
)
def test_marks_that_exclude_an_answer_from_training(mark: Any, trained: bool, warned: set[str]) -> None:
    turns = [*({"role": role, "content": role} for role in (U, A, U)), {"role": A, "content": "a", **mark}]
    found, kinds = read({"messages": turns})
    assert [message.train for message in found.messages] == [True, True, True, trained]
    assert kinds == warned


def test_a_mark_to_learn_a_question_is_told_and_not_used() -> None:
    found, warned = read(
        {"messages": [{"role": U, "content": "q", "train": True}, {"role": A, "content": "a"}]}
    )
    assert (len(found.messages), warned) == (2, {"train-questions"})


def test_a_row_in_which_nothing_is_learned_is_set_aside() -> None:
    with pytest.raises(Unusable) as caught:
        read({"messages": [{"role": U, "content": "q"}, {"role": A, "content": "a", "train": False}]})
    assert caught.value.kind == "nothing-learned"


def test_a_row_without_marks_among_marked_texts_is_set_aside() -> None:
    marked = {"text": "Human: q\nAssistant: a"}
    log, detector = ProblemLog(), Detector(sample=[marked, marked, {"text": "Plain words."}])
    assert len(detector.convert(marked, 1, log).messages) == 2
    with pytest.raises(Unusable) as caught:
        detector.convert({"text": "Plain words."}, 3, log)
    assert caught.value.kind == "no-turns"


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time.",
        "User: only one speaks.",
        "# A heading\n### Answer\nfour",
        "[INST] no end",
        "",
        "a: b",
    ],
)
def test_plain_text_is_not_taken_for_a_conversation(text: str) -> None:
    assert marked_turns(text) is None


def test_blank_lines_without_end_do_not_hang() -> None:
    text = "\n" * 200_000 + "<bot> ASSISTANT: ### <|assistant|> Human:" + " " * 200_000
    assert marked_turns(text) is None
