"""How the data is read, asked in plain lines: what each column is, then what concerns the whole data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ollama_tune.core.text import one_line
from ollama_tune.tui.plain.talk import Back

if TYPE_CHECKING:
    from ollama_tune.core.data.values import Column
    from ollama_tune.tui.plain.wizard import Wizard

PARTS = ("", "question", "answer", "system", "context", "text", "label", "conversation", "chosen", "rejected")
WORDS = {"": "not used", "question": "the question", "answer": "the answer, which is learned"} | {
    "system": "the system prompt",
    "context": "context of the question",
    "text": "a whole text, which is learned",
    "label": "the label of a text",
    "conversation": "a whole conversation",
    "chosen": "the better of two answers",
    "rejected": "the worse of two answers",
}
FORMS = ("", "chat", "classification", "text")
FORM_WORDS = ("told by the content", "conversations", "texts with a label", "plain text")
LEARNED = {"answer", "text", "label", "conversation", "chosen"}
MOST_LABELS = 20
WHOLE = (
    ("split", "Part of the data to train on, where it has several", False),
    ("validation", "Part of the data to measure on; empty: a share of the rows", False),
    ("subset", "Configuration of the hub data set", True),
    ("revision", "Revision of the hub data set; empty: the newest", True),
)
NEEDED = "✗ Say which column is the answer, or which holds a text or a whole conversation. Once more:"


def ask_reading(wizard: Wizard, columns: Sequence[Column]) -> bool:
    """Ask it, and read the data so from now on; False where the person went back instead."""
    rooms = wizard.rooms
    values = dict(rooms.answers.reading_values())
    try:
        if columns:
            values["data.columns"] = _ask_columns(wizard, columns)
            values["data.labels"] = dict(_ask_labels(wizard))
        more = "Say more, such as which part to train on"
        if not columns or wizard.talk.agrees(more, False, _help("form")):
            values |= dict(_ask_whole(wizard))
    except Back:
        return False
    rooms.read_as(values)
    return True


def _help(name: str) -> tuple[str, str]:
    return "data", name


def _ask_columns(wizard: Wizard, columns: Sequence[Column]) -> dict[str, str]:
    """The part of each column, until something can be learned: part -> the column's name."""
    said = wizard.rooms.answers.reading_values().get("data.columns", {})
    given = {name: part for part, name in said.items()}
    while True:
        found: dict[str, str] = {}
        for number, column in enumerate(columns, 1):
            cells = "; ".join(one_line(sample, 60) for sample in column.samples[:2]) or "empty"
            wizard.talk.say(
                f"Column {number} of {len(columns)}, {one_line(column.name, 60)}. It holds: {cells}"
            )
            part = _ask_part(wizard, given.get(column.name, column.part), found)
            if part:
                found[part] = column.name
        if found.keys() & LEARNED:
            return found
        wizard.talk.say(NEEDED)


def _ask_part(wizard: Wizard, now: str, taken: dict[str, str]) -> str:
    """The part that one column plays; no part is played by two."""
    parts = [part for part in dict.fromkeys((*PARTS, now)) if part not in taken]
    options = [WORDS.get(part, part.replace("_", " ")) for part in parts]
    default = parts.index(now) if now in parts else 0
    return parts[wizard.talk.choose("This column is", options, default, _help("columns"))]


def _ask_labels(wizard: Wizard) -> Iterator[tuple[str, str]]:
    """Names for labels that are numbers, where there are not too many."""
    from ollama_tune.core.data.schemas.labels import values_to_name
    from ollama_tune.core.errors import TuneError

    named = wizard.rooms.answers.reading_values().get("data.labels", {})
    try:
        labels = values_to_name(wizard.rooms.profile().labels, named)
    except TuneError:
        return
    for value in labels[:MOST_LABELS]:
        now = named.get(value, "")
        question = f"Name of the label {one_line(value, 40)}"
        name = wizard.talk.ask(question, one_line(now or value, 40), _help("labels")) or now
        if name:
            yield value, name


def _ask_whole(wizard: Wizard) -> Iterator[tuple[str, Any]]:
    """Kind of task and parts of the data set; a minus sign empties what was said before."""
    values, talk = wizard.rooms.answers.reading_values(), wizard.talk
    form = values.get("data.form", "")
    talk.say("What is a row?")
    default = FORMS.index(form) if form in FORMS else 0
    yield "data.form", FORMS[talk.choose("Kind of task", FORM_WORDS, default, _help("form"))]
    for name, question, hub in WHOLE:
        if hub and not wizard.rooms.remote:
            continue
        now = str(values.get(f"data.{name}", ""))
        answer = talk.ask(f"{question}; - for none" if now else question, one_line(now, 60), _help(name))
        yield f"data.{name}", "" if answer == "-" else answer or now
