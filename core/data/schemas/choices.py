"""Multiple choice: a question with its choices, answered by letter and text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.schemas.cells import Unusable, cell_text, content_text, decoded, is_nothing
from ollama_tune.core.data.schemas.table import Note, Plan, Record, Table, make_plan
from ollama_tune.core.data.values import Message

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_COLUMN = re.compile(r"(?P<stem>option|choice|opt|op|sol|ending|distractor|)_?(?P<key>[a-j]|[0-9])")
_LETTERED = re.compile(r"\s*\(?([A-Za-z])\s*[).:、．]\s*")
_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")


def multiple_choice(table: Table) -> Plan | None:
    """A question, choices in a list or in columns, and the right one as index, letter or text."""
    if table.given("answer") or table.given("conversation") or table.given("text"):
        return None
    columns = _choice_columns(table)
    if not columns:
        return None
    question = table.find("question", *columns) or table.find("text", *columns)
    context = table.find("context", question, *columns)
    answer = _answer_column(table, question, columns)
    if question is None or answer is None:
        return None
    first, doubt = _first_index(table, columns, answer)
    asked = [name for name in (context, question) if name]

    def base(record: Record, line: int, log: ProblemLog) -> list[Message]:
        labels, texts = choices_of([record[name] for name in columns])
        parts = [content_text(record[name]) for name in asked if not is_nothing(record[name])]
        listed = "\n".join(f"{LETTERS[i]}. {text}" for i, text in enumerate(texts))
        at = chosen_index(record[answer], labels, texts, first)
        if at is None:
            return [Message("user", "\n\n".join([*parts, listed])), _free_answer(record[answer], line, log)]
        return [
            Message("user", "\n\n".join([*parts, listed])),
            Message("assistant", f"{LETTERS[at]}. {texts[at]}"),
        ]

    used = [("context", context), ("question", question), *(("choices", name) for name in columns)]
    return make_plan(table, "multiple choice", [*used, ("answer", answer)], base, doubt)


def _free_answer(cell: Any, line: int, log: ProblemLog) -> Message:
    """An answer that is none of the choices is kept as it stands when it is a text with words."""
    if is_nothing(cell):
        return Message("assistant", "")
    if not isinstance(cell, str) or len(cell.strip()) < 3:
        raise Unusable("bad-choice", "The answer names none of the choices.")
    log.warn("free-choice", "An answer is none of the choices; it is learned as it stands.", line)
    return Message("assistant", cell)


def _choice_columns(table: Table) -> list[str]:
    """The column that lists the choices, or one column for each of at least two."""
    listed = next((name for name in table.all("choices") if table.holds(name, _is_choices)), None)
    if listed is not None:
        return [listed]
    stems: dict[str, list[tuple[str, str]]] = {}
    for key, name in table.names.items():
        match = _COLUMN.fullmatch(key)
        if match and (match["stem"] or match["key"].isalpha()) and match["stem"] != "distractor":
            stems.setdefault(match["stem"], []).append((match["key"], name))
    for stem, found in stems.items():
        keys = sorted(found)
        start = keys[0][0]
        if (
            len(keys) > 1
            and start in ("a", "0", "1")
            and (stem or [key for key, _ in keys[:2]] == ["a", "b"])
        ):
            return [name for _, name in keys]
    return []


def _is_choices(cell: Any) -> bool:
    return len(choices_of([cell])[1]) > 1


def choices_of(cells: Sequence[Any]) -> tuple[list[str], list[str]]:
    """The label that the data gives to each choice, and its text, without a letter before it."""
    if len(cells) > 1:
        labels, texts = _lettered([content_text(cell).strip() for cell in cells if not is_nothing(cell)])
    else:
        labels, texts = _listed(decoded(cells[0]))
    return (labels, texts) if len(labels) == len(texts) <= len(LETTERS) else _lettered(texts[: len(LETTERS)])


def _listed(found: Any) -> tuple[list[str], list[str]]:
    """The labels and texts of one cell: a list of texts or objects, an object, or lines of text."""
    if isinstance(found, Mapping):
        lists = {str(key).lower(): cell for key, cell in found.items() if isinstance(cell, (list, tuple))}
        if "text" in lists:
            labels = lists.get("label") or lists.get("labels") or ()
            return [cell_text(label) for label in labels], [cell_text(text) for text in lists["text"]]
        return [cell_text(key) for key in found], [cell_text(text) for text in found.values()]
    if isinstance(found, str):
        found = [text for text in re.split(r"\n|(?<=\S)[ \t]*[;|]", found) if text.strip()]
    if not isinstance(found, (list, tuple)):
        return [], []
    if found and all(isinstance(choice, Mapping) for choice in found):
        return _of_objects(found)
    return _lettered([cell_text(choice).strip() for choice in found])


def _lettered(texts: list[str]) -> tuple[list[str], list[str]]:
    return list(LETTERS[: len(texts)]), _unlettered(texts)


def _of_objects(found: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    labels, texts = [], []
    for i, choice in enumerate(found):
        keys = {str(key).lower(): cell for key, cell in choice.items()}
        label = next(
            (keys[key] for key in ("label", "key", "id", "letter") if key in keys), LETTERS[i % len(LETTERS)]
        )
        text = next((keys[key] for key in ("text", "content", "value", "option") if key in keys), None)
        labels.append(cell_text(label))
        texts.append(content_text(text))
    return labels, texts


def _unlettered(texts: list[str]) -> list[str]:
    """Choices without their own `A)`, where every one has the right letter."""
    matches = [_LETTERED.match(text) for text in texts]
    if len(texts) <= len(LETTERS) and all(
        match and match[1].upper() == LETTERS[i] for i, match in enumerate(matches)
    ):
        return [text[match.end() :] for text, match in zip(texts, matches, strict=True) if match]
    return texts


def _seen(table: Table, columns: Sequence[str], answer: str) -> list[tuple[Any, list[str], list[str]]]:
    """The first answers, each with the labels and texts of its choices."""
    rows = table.rows(answer, *columns)
    return [(row[answer], *choices_of([row[at] for at in columns])) for row in rows]


def _answer_column(table: Table, question: str | None, columns: Sequence[str]) -> str | None:
    """The first column by name in which most of the first rows name one of the choices."""
    names = [name for name in table.all("choice") if name != question and name not in columns]
    for name in names:
        seen = _seen(table, columns, name)[:20]
        fits = [
            chosen_index(cell, labels, texts, 0) is not None or _number(cell) == len(texts)
            for cell, labels, texts in seen
        ]
        if seen and 2 * sum(fits) >= len(seen):
            return name
    return names[0] if names else None


def _first_index(table: Table, columns: Sequence[str], answer: str) -> tuple[int, list[Note]]:
    """Whether the numbers of the choices begin at 0 or at 1, told by the numbers that occur."""
    numbers = [
        (number, len(texts))
        for cell, labels, texts in _seen(table, columns, answer)
        if (number := _number(cell)) is not None and str(number) not in labels
    ]
    if not numbers or any(number == 0 for number, _ in numbers):
        return 0, []
    if any(number == count for number, count in numbers):
        return 1, []
    text = f"The numbers in column {answer!r} may count the choices from 0 or from 1; they are taken from 0."
    return 0, [("choice-numbers", text)]


def _number(cell: Any) -> int | None:
    cell = _single(cell)
    if isinstance(cell, bool):
        return None
    if isinstance(cell, float) and cell.is_integer():
        return int(cell)
    if isinstance(cell, str) and cell.strip().isdecimal():
        return int(cell)
    return cell if isinstance(cell, int) else None


def _single(cell: Any) -> Any:
    found = decoded(cell)
    return found[0] if isinstance(found, (list, tuple)) and len(found) == 1 else found


def chosen_index(cell: Any, labels: Sequence[str], texts: Sequence[str], first: int) -> int | None:
    """Which choice an answer names: by label, letter, text, or number counted from `first`; None for none."""
    text = cell_text(_single(cell)).strip()
    plain = [choice.strip().casefold() for choice in texts]
    number = _number(cell)
    if text in labels:
        return labels.index(text)
    if text.casefold() in plain and (number is None or isinstance(_single(cell), str)):
        return plain.index(text.casefold())
    if number is not None:
        return number - first if 0 <= number - first < len(texts) else None
    letter = _LETTER.fullmatch(text) or _LETTERED.match(text)
    at = LETTERS.find(letter[1].upper()) if letter else -1
    rest = text[letter.end() :].strip().casefold() if letter else ""
    return at if 0 <= at < len(texts) and rest in ("", plain[at]) else None
