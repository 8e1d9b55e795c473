"""Recognises how a file's records hold a conversation and turns each into messages."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.values import Message

CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
QUESTIONS = ("instruction", "prompt", "question", "query", "user", "human", "input")
ANSWERS = ("output", "response", "completion", "answer", "assistant", "reply", "solution", "gpt", "bot")
SYSTEMS = ("system", "system_prompt")
CONTEXTS = ("context", "input")
KNOWN = frozenset((*CONVERSATIONS, *QUESTIONS, *ANSWERS, *SYSTEMS, *CONTEXTS, "history"))
"""Every column name that means something here."""

ACCEPTED = (
    "messages (role, content), conversations (from, value), instruction + input + output, "
    "prompt + completion or response, question + answer, input + output"
)

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "customer": "user",
    "question": "user",
    "instruction": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "agent": "assistant",
    "answer": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
_ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
_TEXT_KEYS = ("content", "value", "text", "message", "utterance")
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_NOTHING = frozenset(
    ("", "-", "none", "null", "nan", "n/a", "na", "no input", "noinput", "<noinput>", "<no input>", "nil")
)


class Unusable(Exception):
    """Why a record is set aside: a stable `kind` and a sentence."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text


Convert = Callable[[Mapping[str, Any], int, ProblemLog], list[Message]]


class Detector:
    """Decides once for every set of column names how records with it are read."""

    def __init__(self) -> None:
        self._converters: dict[tuple[str, ...], tuple[str, Convert] | None] = {}
        self.schemas: Counter[str] = Counter()
        self.unknown: Counter[tuple[str, ...]] = Counter()

    def convert(self, value: Any, line: int, log: ProblemLog) -> list[Message]:
        """The messages of a record; raises `Unusable` with the reason otherwise."""
        if isinstance(value, list):
            value = {"messages": value}
        if not isinstance(value, dict):
            raise Unusable("not-a-record", "An entry is neither an object nor a list of messages.")
        names = tuple(value)
        if names not in self._converters:
            self._converters[names] = choose(value)
        found = self._converters[names]
        if found is None:
            self.unknown[names] += 1
            raise Unusable("unknown-columns", f"The columns are not known; accepted: {ACCEPTED}.")
        record = {normal(name): cell for name, cell in value.items()}
        messages = found[1](record, line, log)
        self.schemas[found[0]] += 1
        return messages

    @property
    def schema(self) -> str:
        """The schemas found, in words, the most frequent first."""
        if len(self.schemas) < 2:
            return next(iter(self.schemas), "")
        return "; ".join(f"{name} ({count:,} rows)" for name, count in self.schemas.most_common())


def normal(name: str) -> str:
    """A column name in the form it is compared in."""
    return str(name).strip().lower().replace(" ", "_").replace("-", "_")


def choose(record: Mapping[str, Any]) -> tuple[str, Convert] | None:
    """The schema in words and its reader for records like this one; None when nothing fits.

    A conversation column comes first, but one that holds no conversation (an id, a count) only when
    there is no question and answer beside it.
    """
    known = {normal(name): cell for name, cell in record.items()}
    named = [name for name in CONVERSATIONS if name in known]
    conversation = next((name for name in named if isinstance(decoded(known[name]), (list, dict))), None)
    question = next((name for name in QUESTIONS if name in known), None)
    answer = next((name for name in ANSWERS if name in known), None)
    if conversation is None and named and (question is None or answer is None):
        conversation = named[0]
    if conversation is not None:
        return f"conversations in column {conversation!r}", _conversation(conversation)
    if question is None or answer is None:
        return None
    context = next((name for name in CONTEXTS if name in known and name != question), None)
    used = [question, *([context] if context else []), answer]
    return f"{', '.join(used[:-1])} and {answer}", _pair(question, context, answer)


def _conversation(column: str) -> Convert:
    def convert(record: Mapping[str, Any], line: int, log: ProblemLog) -> list[Message]:
        messages = turns(record.get(column), line, log)
        if record.get("tools"):
            log.warn("tools", "Tool descriptions are not used by this version.", line)
        return _with_system(record, messages)

    return convert


def _pair(question: str, context: str | None, answer: str) -> Convert:
    def convert(record: Mapping[str, Any], line: int, log: ProblemLog) -> list[Message]:
        asked, answered = decoded(record.get(question)), decoded(record.get(answer))
        if _is_turns(asked) or _is_turns(answered):
            before = turns(asked, line, log) if _is_turns(asked) else [Message("user", text_of(asked))]
            after = (
                turns(answered, line, log)
                if _is_turns(answered)
                else [Message("assistant", text_of(answered))]
            )
            return _with_system(record, [*before, *after])
        parts = [text_of(asked)]
        extra = text_of(record.get(context)) if context else ""
        if extra.strip().lower() not in _NOTHING:
            parts.insert(0 if context == "context" else 1, extra)
        asking = Message("user", "\n\n".join(part for part in parts if part.strip()))
        messages = [*_history(record.get("history")), asking, Message("assistant", text_of(answered))]
        return _with_system(record, messages)

    return convert


def _history(value: Any) -> list[Message]:
    """Alpaca's `history`: a list of (question, answer) pairs before this one."""
    pairs = decoded(value)
    if not isinstance(pairs, list):
        return []
    found = []
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Unusable("bad-history", "A history is not a list of (question, answer) pairs.")
        found += [Message("user", text_of(pair[0])), Message("assistant", text_of(pair[1]))]
    return found


def _with_system(record: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    system = next((text_of(record[name]) for name in SYSTEMS if record.get(name)), "")
    if not system.strip() or any(message.role == "system" for message in messages):
        return messages
    return [Message("system", system), *messages]


def decoded(value: Any) -> Any:
    """A cell of a CSV or Parquet file that holds a JSON list, as that list."""
    if isinstance(value, str) and value.lstrip()[:2] in ("[{", "[["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _is_turns(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and any(key in turn for key in _ROLE_KEYS) for turn in value)
    )


def turns(value: Any, line: int, log: ProblemLog) -> list[Message]:
    """The messages of a conversation column: a list of turns, JSON text of one, or an object of columns."""
    value = decoded(value)
    if isinstance(value, dict):
        lists = {key: cells for key, cells in value.items() if isinstance(cells, list)}
        if len({len(cells) for cells in lists.values()}) == 1:
            value = [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
    if not isinstance(value, list):
        raise Unusable("not-a-conversation", "A conversation is not a list of messages.")
    return [_turn(turn, line, log) for turn in value]


def _turn(turn: Any, line: int, log: ProblemLog) -> Message:
    if not isinstance(turn, dict):
        raise Unusable("not-a-conversation", "A message is not an object with a role and a text.")
    turn = {normal(key): cell for key, cell in turn.items()}
    name = next((turn[key] for key in _ROLE_KEYS if isinstance(turn.get(key), str)), None)
    role = _ROLES.get(normal(name)) if name is not None else None
    if turn.get("tool_calls") or turn.get("function_call") or (name and normal(name) == "function_call"):
        raise Unusable("tool-calls", "A conversation calls tools, which this version does not train.")
    if role is None:
        raise Unusable("unknown-role", "A message has no role, or one that is not known.")
    if any(turn.get(key) for key in _REASONING_KEYS):
        log.warn("reasoning", "Reasoning beside the text of a message is not used by this version.", line)
    if role == "assistant" and (turn.get("weight") in (0, 0.0) or turn.get("train") is False):
        log.warn("train-flags", "Marks that exclude an answer from training are not used.", line)
    return Message(role, text_of(next((turn[key] for key in _TEXT_KEYS if key in turn), None)))


def text_of(value: Any) -> str:
    """A cell as text: parts joined, numbers and objects as JSON writes them, nothing as an empty text."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, list) and all(isinstance(part, dict) and "type" in part for part in value):
        if any(part["type"] != "text" for part in value):
            raise Unusable("not-text", "A message holds something other than text, such as an image.")
        return "".join(str(part.get("text") or "") for part in value)
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)
