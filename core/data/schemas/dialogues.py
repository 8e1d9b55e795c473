"""Schemas of whole conversations: columns of turns, trained segments, texts with the marks of turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.schemas.cells import Unusable, cell_text, decoded
from ollama_tune.core.data.schemas.columns import ALIASES, normal
from ollama_tune.core.data.schemas.markup import Markup, find_markup, marked_turns
from ollama_tune.core.data.schemas.table import Base, Plan, Record, Table, make_plan
from ollama_tune.core.data.schemas.turns import is_turns, shape_of, turns, unfolded
from ollama_tune.core.data.values import Message
from ollama_tune.core.text import one_line

_NOT_WHOLE = (
    "question",
    "answer",
    "chosen",
    "rejected",
    "history",
    "tools",
    "choices",
    "context",
    "reasoning",
)


def conversation(table: Table) -> Plan | None:
    """A column of turns with an answer in it; a name that only sounds like one (an id) does not count."""
    found = [name for name in _candidates(table) if _answers(table, name)]
    if not found:
        return _by_name(table)
    column, others = found[0], found[1:]
    notes, questions = [], []
    if others:
        listed = ", ".join(repr(name) for name in found)
        text = f"Several columns hold a conversation: {listed}; {column!r} is learned."
        notes.append(("conversation-columns", text))
        options = [(f"The conversation in {name!r}", {"conversation": name}) for name in found]
        questions.append(table.ask("conversation-columns", "Which conversation is learned?", options))
    return make_plan(
        table, _kind(table, column), [("conversation", column)], conversation_base(column), notes, questions
    )


def _candidates(table: Table) -> list[str]:
    if table.given("conversation"):
        return table.all("conversation")
    if table.given("question") or table.given("answer") or table.given("text"):
        return []
    named = table.all("conversation")
    parts = {alias for part in _NOT_WHOLE for alias in ALIASES[part]}
    others = [name for key, name in table.names.items() if key not in parts and name not in named]
    return [*named, *(name for name in dict.fromkeys(others) if table.holds(name, is_turns))]


def _answers(table: Table, column: str) -> bool:
    """True when the first rows hold an answer, at the end where there is a column of answers beside it."""
    beside = table.find("answer", column) is not None or table.find("chosen") is not None
    for cell in table.cells(column)[:20]:
        try:
            roles = [message.role for message in turns(cell, 0, ProblemLog())]
        except Unusable as reason:
            if reason.kind in ("bad-tool-call", "not-text", "unknown-role") and is_turns(cell):
                return True
            continue
        except RecursionError:
            continue
        if "assistant" in roles:
            return not beside or roles[-1] == "assistant"
    return False


def _by_name(table: Table) -> Plan | None:
    """A column called a conversation whose first cells hold no answer, where nothing else could be meant."""
    column = table.find("conversation")
    if column is None or any(table.find(part, column) for part in ("answer", "summary", "chosen", "label")):
        return None
    if not table.given("conversation") and not all(map(_is_list, table.cells(column))):
        return None
    return make_plan(table, _kind(table, column), [("conversation", column)], conversation_base(column))


def _is_list(cell: Any) -> bool:
    return isinstance(unfolded(cell), (list, tuple))


def _kind(table: Table, column: str) -> str:
    cells = table.cells(column)
    first = unfolded(cells[0]) if cells else None
    turn = first[0] if isinstance(first, (list, tuple)) and first else None
    if isinstance(turn, Mapping):
        role = shape_of(tuple(turn)).role
        if role is not None:
            return "ShareGPT conversations" if normal(role) == "from" else "messages (OpenAI)"
    markup = find_markup(first) if isinstance(first, str) else None
    return (
        f"text with turns ({markup.name})"
        if markup
        else "messages (OpenAI)"
        if turn is None
        else "list of turns"
    )


def conversation_base(column: str) -> Base:
    """Reads one column of turns."""

    def base(record: Record, line: int, log: ProblemLog) -> list[Message]:
        found = turns(record[column], line, log)
        if len(found) == 1 and found[0].role == "assistant":
            raise Unusable("no-question", "There is no question.")
        return found

    return base


def only_prompts(table: Table) -> Plan | None:
    """A column called a question that holds whole conversations, with no column of answers beside it."""
    column = next((name for name in table.all("question") if table.holds(name, is_turns)), None)
    if column is None or table.find("answer", column) or not _answers(table, column):
        return None
    return make_plan(table, _kind(table, column), [("conversation", column)], conversation_base(column))


def segments(table: Table) -> Plan | None:
    """Segments of a text, each with a mark that says whether it is learned."""
    column = table.find("segments")
    if column is None or not table.holds(column, _is_segments):
        return None
    return make_plan(table, "segments", [("conversation", column)], _segments_base(column))


def _is_segments(cell: Any) -> bool:
    found = decoded(cell)
    return isinstance(found, list) and all(isinstance(part, Mapping) and "text" in part for part in found)


def _segments_base(column: str) -> Base:
    """With marks of a chat format the whole text tells the turns; else what is learned is the answer."""

    def base(record: Record, line: int, log: ProblemLog) -> list[Message]:
        parts = decoded(record[column])
        if not _is_segments(parts):
            raise Unusable("not-a-conversation", "A row holds no segments with a text.")
        marked = marked_turns("".join(cell_text(part["text"]) for part in parts))
        if marked is not None:
            return turns(marked, line, log)
        roles = [("assistant" if part.get("label") else "user", cell_text(part["text"])) for part in parts]
        return [Message(role, text.removeprefix("<s>").removesuffix("</s>")) for role, text in roles]

    return base


def text(table: Table) -> Plan | None:
    """A column of text: its turns where it carries the marks of a chat format, else plain text."""
    column = table.given("text") or _text_column(table)
    if column is None:
        return None
    parts = [("text", column)]
    markup = next((found for cell in table.cells(column)[:20] if (found := _markup_of(cell))), None)
    if markup is not None and table.reading.form != "text" and table.holds(column, _is_marked):
        note = ("turns-in-text", f"The turns were taken out of the text by its marks: {markup.name}.")
        return make_plan(table, f"text with turns ({markup.name})", parts, _marked_base(column), [note])
    note = (
        "plain-text",
        "The rows are plain text without questions: the model will learn to go on like them, not to answer.",
    )
    return make_plan(table, "plain text", parts, _text_base(column), [note])


def _text_column(table: Table) -> str | None:
    names = [*table.all("text"), *table.all("context")]
    if table.reading.form == "text":
        names += [*table.all("answer"), *table.all("question"), *table.record]
    else:
        names += [name for name in table.all("question") if table.holds(name, _is_marked)]
    texts = [name for name in names if table.holds(name, _is_text)]
    marked = [name for name in (*texts, *table.record) if table.holds(name, _is_marked)]
    return next(iter([*marked, *texts]), None)


def _is_text(cell: Any) -> bool:
    return isinstance(cell, str)


def _markup_of(cell: Any) -> Markup | None:
    return find_markup(cell) if isinstance(cell, str) else None


def _is_marked(cell: Any) -> bool:
    return _markup_of(cell) is not None


def _marked_base(column: str) -> Base:
    def base(record: Record, line: int, log: ProblemLog) -> list[Message]:
        found = marked_turns(cell_text(record[column]))
        if found is None:
            raise Unusable("no-turns", "A text has no marks of turns, unlike the others.")
        return turns(found, line, log)

    return base


def _text_base(column: str) -> Base:
    return lambda record, line, log: [Message("assistant", cell_text(record[column]))]


def shown(cell: Any) -> str:
    """A piece of a cell for the words of an option."""
    return one_line(cell_text(cell), 40)
