"""Brings messages into an order that chat templates accept, and says what it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.schemas.cells import Unusable
from ollama_tune.core.data.values import Message, ToolCall

FEW = 10
"""Below this many rows nothing can be learned reliably."""
THIN = 100
"""Below this many rows expect a style to be learned, not knowledge."""


def tidy(messages: Sequence[Message], line: int, log: ProblemLog) -> tuple[Message, ...]:
    """One system text in front, no empty turns, no role twice in a row, an answer at the end.

    A single answer and nothing else is a row of plain text and stays. Raises `Unusable` when no answer or no
    question is left, or when calls of tools and their results do not belong together.
    """
    if _is_tidy(messages):
        return tuple(messages)
    cleaned = [_clean(message, line, log) for message in messages]
    if len(cleaned) == 1 and cleaned[0].role == "assistant":
        return _plain_text(cleaned[0])
    kept = _system_first(_without_empty(cleaned, line, log), line, log)
    return _checked(_to_last_answer(_merge(kept, line, log), line, log), line, log)


def _is_tidy(messages: Sequence[Message]) -> bool:
    """True for the usual row: an optional system text, then questions and answers in turn, all with text."""
    start = 1 if messages and messages[0].role == "system" else 0
    if len(messages) < 2 or (len(messages) - start) % 2:
        return False
    expected = "user"
    for i, message in enumerate(messages):
        content = message.content
        if message.tool_calls or message.reasoning or not message.train or not content or content.isspace():
            return False
        if not content.isascii() and not _is_encodable(content):
            return False
        if i >= start:
            if message.role != expected:
                return False
            expected = "assistant" if expected == "user" else "user"
    return True


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _clean(message: Message, line: int, log: ProblemLog) -> Message:
    """Half characters (lone surrogates) cannot be tokenised; they become the replacement character."""
    if _is_encodable(message.content) and _is_encodable(message.reasoning):
        return message
    log.warn("half-characters", "Half Unicode characters were replaced by �.", line)
    return replace(message, content=_whole(message.content), reasoning=_whole(message.reasoning))


def _whole(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _plain_text(message: Message) -> tuple[Message, ...]:
    if not message.content.strip():
        raise Unusable("no-answer", "There is no text.")
    return (message,)


def _without_empty(messages: Sequence[Message], line: int, log: ProblemLog) -> list[Message]:
    """Turns without text go, except calls of tools and results, which may be empty."""
    kept = [turn for turn in messages if turn.content.strip() or turn.tool_calls or turn.role == "tool"]
    if len(kept) < len(messages) and {"user", "assistant"} <= {message.role for message in kept}:
        log.warn("empty-turn", "Empty messages were left out.", line)
    return kept


def _system_first(messages: list[Message], line: int, log: ProblemLog) -> list[Message]:
    """System texts between the turns go to the front, where every chat template expects them."""
    front = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    late = [message for message in messages[front:] if message.role == "system"]
    if not late:
        return messages
    log.warn("late-system", "A system text between the turns was moved to the front.", line)
    return [*messages[:front], *late, *(turn for turn in messages[front:] if turn.role != "system")]


def _merge(messages: list[Message], line: int, log: ProblemLog) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1].role == message.role != "tool":
            log.warn("merged-turns", "Two messages of the same role in a row were joined.", line)
            merged[-1] = _joined(merged[-1], message)
        else:
            merged.append(message)
    return merged


def _joined(first: Message, second: Message) -> Message:
    """Two turns of one role as one, a blank line between their texts."""
    if first.train != second.train:
        raise Unusable("mixed-marks", "Two answers in a row are marked differently, to be learned and not.")
    if first.tool_calls and not second.tool_calls:
        raise Unusable("call-without-result", "A tool is called, but its result is missing.")
    return replace(
        first,
        content="\n\n".join(text for text in (first.content, second.content) if text.strip()),
        reasoning="\n\n".join(text for text in (first.reasoning, second.reasoning) if text),
        tool_calls=(*first.tool_calls, *second.tool_calls),
    )


def _to_last_answer(messages: list[Message], line: int, log: ProblemLog) -> list[Message]:
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
    if last < 0:
        raise Unusable("no-answer", "There is no answer.")
    if last + 1 < len(messages):
        log.warn("trailing-turns", "Messages after the last answer were left out.", line)
    return messages[: last + 1]


def _checked(messages: list[Message], line: int, log: ProblemLog) -> tuple[Message, ...]:
    if all(message.role != "user" for message in messages):
        raise Unusable("no-question", "There is no question.")
    if not any(message.train for message in messages if message.role == "assistant"):
        raise Unusable("nothing-learned", "Every answer is marked as not to be learned.")
    _check_calls(messages)
    if next(message.role for message in messages if message.role != "system") == "assistant":
        log.warn(
            "answer-first", "A conversation begins with an answer; some chat templates refuse that.", line
        )
    return tuple(messages)


def _check_calls(messages: Sequence[Message]) -> None:
    """Every result follows a call, and every call but the last has a result."""
    open_calls: tuple[ToolCall, ...] = ()
    results = 0
    for message in messages:
        if message.role == "tool":
            results += 1
            if results > len(open_calls):
                raise Unusable("result-without-call", "A tool answers that was not called.")
            continue
        if open_calls and not results:
            raise Unusable("call-without-result", "A tool is called, but its result is missing.")
        open_calls, results = message.tool_calls, 0


def warn_if_few(count: int, log: ProblemLog) -> None:
    """Say plainly what so few rows can teach."""
    if count < FEW:
        log.warn(
            "few-rows", f"With fewer than {FEW} rows the model will hardly learn anything new.", None, count
        )
    elif count < THIN:
        log.warn(
            "few-rows", f"With fewer than {THIN} rows expect the style to be learned, not facts.", None, count
        )
