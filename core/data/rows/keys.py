"""What makes two texts, two questions or two conversations the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ollama_tune.core.data.values import Message, Row

_MARKS = dict.fromkeys(map(ord, " \t\n\r\v\f\u00a0\u3000!?;:'\"`…‘’“”«»。！？、，；：「」『』"))
_STOPS = (". ", ".\n", ", ", ",\n")


def normalised(text: str) -> str:
    """The text in lower case without blanks and marks of speech; one of nothing else stays as it is.

    Signs that carry a meaning of their own stay: `2+2` is not `2*2`, `1.5` not `15`, `f(x)` not `fx`.
    """
    plain = text.lower()
    for stop in _STOPS:
        if stop in plain:
            plain = plain.replace(stop, " ")
    return plain.translate(_MARKS).rstrip(".,") or text


def question_key(row: Row) -> str:
    """Rows with the same first question are the same to the split; plain text is its own question."""
    if len(row.messages) == 1:
        return normalised(row.answer)
    return normalised(next((message.content for message in row.messages if message.role == "user"), ""))


def conversation_key(row: Row) -> str:
    """Rows with the same conversation are the same to the split."""
    return "\n".join(_turn(message, normalised(message.content)) for message in row.messages)


def _turn(message: Message, text: str) -> str:
    turn = f"{message.role}:{text}"
    if not (message.reasoning or message.tool_calls):
        return turn
    calls = [f"{call.name}({call.arguments})" for call in message.tool_calls]
    return "\x00".join((turn, normalised(message.reasoning), *calls))


def number(text: str) -> int:
    """A text as 64 bits, the same on every machine and in every run."""
    hashed = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(hashed.digest(), "little")


@dataclass(frozen=True)
class Keys:
    """A row in 64-bit numbers: its first question, all before its last answer, that answer, and the whole."""

    question: int
    prompt: int
    answer: int
    conversation: int


def keys_of(messages: Sequence[Message], tools: str = "", rejected: Sequence[Message] = ()) -> Keys:
    """The numbers by which equal questions, answers and conversations are found; pairs are equal where both
    of their answers are."""
    texts = [normalised(message.content) for message in messages]
    asked = (t for t, m in zip(texts, messages, strict=True) if m.role == "user")
    question = texts[0] if len(texts) == 1 else next(asked, "")
    turns = [_turn(message, text) for text, message in zip(texts, messages, strict=True)]
    before = turns[:-1] if len(turns) > 1 else turns
    prompt, answer = number("\n".join((tools, *before))), number(turns[-1])
    whole = [str(prompt), str(answer), *(_turn(turn, normalised(turn.content)) for turn in rejected)]
    return Keys(number(question), prompt, answer, number(" ".join(whole)))
