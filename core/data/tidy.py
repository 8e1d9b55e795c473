"""Brings messages into an order that chat templates accept, and says what it did."""

from __future__ import annotations

from ollama_tune.core.data.detect import Unusable
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.values import Message

FEW = 10
"""Below this many rows nothing can be learned reliably."""
THIN = 100
"""Below this many rows expect a style to be learned, not knowledge."""


def tidy(messages: list[Message], line: int, log: ProblemLog) -> tuple[Message, ...]:
    """Drop empty turns, merge neighbours of one role, cut what follows the last answer.

    Raises `Unusable` when no answer or no question is left.
    """
    kept = [_clean(message, line, log) for message in messages if message.content.strip()]
    if len(kept) < len(messages) and any(message.role == "assistant" for message in kept):
        log.warn("empty-turn", "Empty messages were left out.", line)
    merged = _merge(kept, line, log)
    last = max((i for i, message in enumerate(merged) if message.role == "assistant"), default=-1)
    if last < 0:
        raise Unusable("no-answer", "There is no answer.")
    if last + 1 < len(merged):
        log.warn("trailing-turns", "Messages after the last answer were left out.", line)
    merged = merged[: last + 1]
    if all(message.role != "user" for message in merged):
        raise Unusable("no-question", "There is no question.")
    if next(message.role for message in merged if message.role != "system") == "assistant":
        log.warn(
            "answer-first", "A conversation begins with an answer; some chat templates refuse that.", line
        )
    return tuple(merged)


def _clean(message: Message, line: int, log: ProblemLog) -> Message:
    """Half characters (lone surrogates) cannot be tokenised; they become the replacement character."""
    if message.content.isascii():
        return message
    try:
        message.content.encode()
        return message
    except UnicodeEncodeError:
        log.warn("half-characters", "Half Unicode characters were replaced by �.", line)
        return Message(
            message.role, message.content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        )


def _merge(messages: list[Message], line: int, log: ProblemLog) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1].role == message.role != "tool":
            log.warn("merged-turns", "Two messages of the same role in a row were joined.", line)
            merged[-1] = Message(message.role, f"{merged[-1].content}\n\n{message.content}")
        else:
            merged.append(message)
    return merged


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
