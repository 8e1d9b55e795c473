"""Turns the many forms of a conversation into messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.schemas.calls import calls_of, written_calls
from ollama_tune.core.data.schemas.cells import Unusable, cell_text, content_text, decoded, part_text
from ollama_tune.core.data.schemas.columns import ALIASES, normal
from ollama_tune.core.data.schemas.markup import marked_turns
from ollama_tune.core.data.schemas.roles import ROLES, role_of
from ollama_tune.core.data.values import Message

ROLE_KEYS = ("role", "from", "speaker", "author", "sender", "user_type")
TEXT_KEYS = ("content", "value", "text", "message", "utterance", "parts")
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning", "thought")
CALL_KEYS = ("tool_calls", "function_call", "tool_call")
FLAG_KEYS = ("train", "training", "weight", "loss", "loss_weight", "trainable", "mask")
_OTHER_KEYS = ("name", "tool_call_id", "channel", "recipient", "train_detail", "training_detail")
_SPECIAL = frozenset((*REASONING_KEYS, *CALL_KEYS, *FLAG_KEYS, *_OTHER_KEYS))
_PLAIN = ("user", "assistant", "system")
_OFF = ("false", "0", "no", "off", "0.0")


class Conversation(NamedTuple):
    """A record as messages; `tools` is the JSON text of what it may call, `label` the class of its text.

    Of a record that is to hold a pair, `rejected` is the same with the worse answer, empty where that lacks.
    `good` tells what somebody thought of the answer, where a column says that.
    """

    messages: tuple[Message, ...]
    tools: str = ""
    label: str | None = None
    rejected: tuple[Message, ...] | None = None
    good: bool | None = None


class Shape(NamedTuple):
    """Where an object of a turn keeps its role and its texts; `special` holds what few turns have."""

    role: str | None
    texts: tuple[str, ...]
    special: Mapping[str, str]
    speakers: tuple[tuple[str, str], ...]


def turns(value: Any, line: int, log: ProblemLog) -> list[Message]:
    """The messages of a conversation cell.

    It is a list of turns (objects, texts in turn, or pairs), an object of equally long lists, JSON or Python
    text of these, or a text with the marks of a chat format. Raises `Unusable` with the reason otherwise.
    """
    if type(value) is not list:
        value = unfolded(value)
    if isinstance(value, str):
        value = marked_turns(value)
    if not isinstance(value, (list, tuple)):
        raise Unusable("not-a-conversation", "A conversation is not a list of messages.")
    try:
        return [_plain(turn) for turn in value]
    except (KeyError, TypeError):
        pass
    messages: list[Message] = []
    for turn in _objects(value):
        messages += _turn(turn, line, log)
    if any(message.role == "tool" for message in messages):
        messages = _with_calls(messages, line, log)
    return _with_thoughts(messages) if any(_is_thought(message) for message in messages) else messages


def unfolded(value: Any) -> Any:
    """A cell that holds a conversation in text, in an object of lists, or below one more key, as that."""
    value = decoded(value)
    for _ in range(3):
        if not isinstance(value, Mapping):
            break
        lists = {key: cells for key, cells in value.items() if isinstance(cells, (list, tuple))}
        named = next((key for key in lists if normal(str(key)) in ALIASES["conversation"]), None)
        if named is not None:
            return lists[named]
        if len(lists) > 1 and len({len(cells) for cells in lists.values()}) == 1:
            return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
        if len(value) != 1:
            shape = shape_of(tuple(value))
            return [value] if shape.role is not None and shape.texts else value
        value = decoded(next(iter(value.values())))
    return value


def _plain(turn: Any) -> Message:
    """The usual turn, `{"role": ..., "content": ...}` of texts, in a few steps; `KeyError` for any other."""
    if len(turn) != 2:
        raise KeyError
    if "role" in turn:
        role, text = turn["role"], turn["content"]
    else:
        role, text = turn["from"], turn["value"]
    role = ROLES[role]
    if role not in _PLAIN or type(text) is not str:
        raise KeyError
    return Message(role, text)


def _objects(value: Sequence[Any]) -> list[dict[str, Any]]:
    """Turns in every form as objects; texts alternate, the question first."""
    entries = [decoded(entry) for entry in value]
    if all(isinstance(entry, str) for entry in entries):
        return marked_turns("\n".join(entries)) or _alternating(entries)
    if all(isinstance(entry, (list, tuple)) and len(entry) == 2 for entry in entries):
        if all(role_of(entry[0]) for entry in entries):
            return [{"role": role, "content": text} for role, text in entries]
        return _alternating([text for entry in entries for text in entry])
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise Unusable("not-a-conversation", "A message is not an object with a role and a text.")
    return entries


def _alternating(texts: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@lru_cache(maxsize=1024)
def shape_of(keys: tuple[Any, ...]) -> Shape:
    """Where turns with these keys keep their parts."""
    known = {normal(str(key)): key for key in reversed(keys)}
    role = next((known[key] for key in ROLE_KEYS if key in known), None)
    texts = tuple(known[key] for key in TEXT_KEYS if key in known)
    special = {name: key for name, key in known.items() if name in _SPECIAL}
    speakers = tuple((found, key) for key in keys if (found := role_of(str(key))) in _PLAIN)
    return Shape(role, texts, special, () if role is not None else speakers)


def _turn(turn: Mapping[str, Any], line: int, log: ProblemLog) -> list[Message]:
    shape = shape_of(tuple(turn))
    if shape.role is None and shape.speakers:
        spoken = [(role, turn[key]) for role, key in shape.speakers if turn[key] is not None]
        return [Message(role, content_text(text)) for role, text in spoken]
    name = _role_name(turn.get(shape.role)) if shape.role is not None else None
    role = role_of(name)
    if role is None:
        raise Unusable("unknown-role", "A message has no role, or one that is not known.")
    content = next((turn[key] for key in shape.texts if turn[key] is not None), None)
    special = {key: turn[at] for key, at in shape.special.items() if turn[at] is not None}
    if role == "call":
        return [Message("assistant", "", tool_calls=calls_of(content))]
    if isinstance(content, list) and any(isinstance(part, Mapping) for part in content):
        return _of_parts(role, content, special, line, log)
    text = content_text(content)
    return [_full(role, text, special, line, log) if special else Message(role, text)]


def _role_name(value: Any) -> Any:
    """`author` may be an object with a role; anything else is the name itself."""
    return value.get("role") if isinstance(value, Mapping) else value


def _full(role: str, text: str, special: Mapping[str, Any], line: int, log: ProblemLog) -> Message:
    """A turn with anything beside its role and its text."""
    recipient = special.get("recipient")
    if role == "assistant" and isinstance(recipient, str) and recipient.startswith("functions."):
        special = {**special, "function_call": {"name": recipient.partition(".")[2], "arguments": text}}
        text = ""
    calls = next((calls_of(special[key]) for key in CALL_KEYS if special.get(key)), ())
    if calls and role != "assistant":
        raise Unusable("bad-tool-call", "A message other than an answer calls a tool.")
    thought = next((special[key] for key in REASONING_KEYS if special.get(key)), "")
    reasoning = content_text(thought) if role == "assistant" else ""
    if special.get("channel") == "analysis" and role == "assistant":
        text, reasoning = "", "\n\n".join(part for part in (reasoning, text) if part)
    return Message(
        role,
        text,
        reasoning,
        calls,
        cell_text(special.get("name")) if role == "tool" else "",
        cell_text(special.get("tool_call_id")) if role == "tool" else "",
        _trained(role, special, line, log),
    )


def _trained(role: str, special: Mapping[str, Any], line: int, log: ProblemLog) -> bool:
    """Whether an answer is to be learned by the mark beside it; `mask` means the opposite of the others."""
    if "train_detail" in special or "training_detail" in special:
        log.warn(
            "train-parts",
            "Marks that learn only a part of an answer are not used: it is learned whole.",
            line,
        )
    flags = [(key, special[key]) for key in FLAG_KEYS if key in special]
    if not flags:
        return True
    key, value = flags[0]
    on = (str(value).strip().lower() not in _OFF) != (key == "mask")
    if role != "assistant":
        if on and role == "user" and key not in ("weight", "mask", "loss_weight"):
            log.warn(
                "train-questions", "Marks that learn a question are not used: only answers are learned.", line
            )
        return True
    if isinstance(value, (int, float)) and value not in (0, 1):
        log.warn(
            "train-weights", "Weights of answers other than 0 and 1 are not used: they count as 1.", line
        )
    return on


def _of_parts(
    role: str, parts: list[Any], special: Mapping[str, Any], line: int, log: ProblemLog
) -> list[Message]:
    """A message of parts: texts, thoughts, calls and results of tools, as some programs keep them."""
    texts, thoughts, calls, results = [], [], [], []
    for part in parts:
        kind = str(part.get("type") or "text") if isinstance(part, Mapping) else "text"
        if kind == "tool_use":
            calls.append(part)
        elif kind == "tool_result":
            text, called = content_text(part.get("content")), cell_text(part.get("tool_use_id"))
            results.append(Message("tool", text, tool_call_id=called))
        elif kind in ("thinking", "reasoning") and isinstance(part, Mapping):
            thoughts.append(next((cell_text(part[key]) for key in (kind, "text") if part.get(key)), ""))
        else:
            texts.append(part_text(dict(part)) if isinstance(part, Mapping) else cell_text(part))
    more = dict(special)
    if calls:
        more["tool_calls"] = calls
    if thoughts:
        more["thinking"] = "\n\n".join(thoughts)
    message = _full(role, "".join(texts), more, line, log)
    return [*results, message] if message.content or message.tool_calls or not results else list(results)


def _with_calls(messages: list[Message], line: int, log: ProblemLog) -> list[Message]:
    """Calls that are written into the text of an answer, where the result of a tool follows."""
    found = list(messages)
    for i, (message, after) in enumerate(pairwise(messages)):
        if message.role == "assistant" and after.role == "tool" and not message.tool_calls:
            text, calls = written_calls(message.content)
            if calls:
                log.warn("written-calls", "Calls of tools were taken out of the text of an answer.", line)
                found[i] = replace(message, content=text, tool_calls=calls)
    return found


def _is_thought(message: Message) -> bool:
    return bool(message.reasoning) and not message.content and not message.tool_calls


def _with_thoughts(messages: list[Message]) -> list[Message]:
    """A thought that stands in a turn of its own (Harmony's `analysis`) goes to the answer after it."""
    joined: list[Message] = []
    for message in messages:
        before = joined[-1] if joined and _is_thought(joined[-1]) else None
        if before is not None and message.role == "assistant":
            parts = [part for part in (before.reasoning, message.reasoning) if part]
            joined[-1] = replace(message, reasoning="\n\n".join(parts))
        else:
            joined.append(message)
    return joined


def is_turns(value: Any) -> bool:
    """True for a list of objects that each have a role, a speaker's name as key, or JSON text of one."""
    found = unfolded(value)
    return (
        isinstance(found, (list, tuple))
        and bool(found)
        and all(isinstance(turn, Mapping) and _speaks(shape_of(tuple(turn))) for turn in found)
    )


def _speaks(shape: Shape) -> bool:
    if shape.role is not None:
        return bool(shape.texts or shape.special)
    return bool(shape.speakers)
