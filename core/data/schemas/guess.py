"""Schemas told by the cells rather than the names: translations, nested records, and unknown columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.schemas.cells import Unusable, cell_text, decoded
from ollama_tune.core.data.schemas.columns import ALIASES, normal
from ollama_tune.core.data.schemas.dialogues import shown
from ollama_tune.core.data.schemas.pairs import answer_turns, asked_turns
from ollama_tune.core.data.schemas.table import Plan, Record, Table, make_plan
from ollama_tune.core.data.values import Message

_LANGUAGES = frozenset(
    [
        "ar",
        "bg",
        "bn",
        "ca",
        "cs",
        "da",
        "de",
        "el",
        "en",
        "es",
        "et",
        "fa",
        "fi",
        "fr",
        "he",
        "hi",
        "hr",
        "hu",
        "id",
        "is",
        "it",
        "ja",
        "ko",
        "lt",
        "lv",
        "ms",
        "nb",
        "nl",
        "no",
        "pl",
        "pt",
        "ro",
        "ru",
        "sk",
        "sl",
        "sr",
        "sv",
        "sw",
        "ta",
        "te",
        "th",
        "tr",
        "uk",
        "ur",
        "vi",
        "zh",
    ]
)
_WORD = re.compile(r"[^\W_]{2,}")
DEEPEST = 2
"""Keys that a record may lie below."""
_WORDS = 2
"""Words that most cells of a column must have to be a text."""


def translation(table: Table) -> Plan | None:
    """A text in two languages, in one object or in two columns called like languages."""
    column = next((name for name in table.all("translation") if table.holds(name, _is_object)), None)
    objects = (
        [decoded(cell) for cell in table.cells(column) if _is_object(cell)] if column else [table.record]
    )
    first: Mapping[str, Any] = objects[0]
    found = [str(key) for key in first if column is not None or normal(str(key)) in _LANGUAGES]
    given = [table.given("question"), table.given("answer")]
    if column is None and (len(found) != 2 or any(given)):
        return None
    asked = [
        str(name) for part, name in table.reading.columns if part in ("question", "answer") and name in found
    ]
    source, target = asked[::-1] if len(asked) == 2 else found[:2] if len(found) > 1 else ("", "")
    if not source:
        return None
    text = f"{source!r} is the question and {target!r} the answer: the model learns that direction."
    pairs = [(a, b) for a, b in ((source, target), (target, source))]
    options = [(f"From {a} to {b}", {"question": a, "answer": b}) for a, b in pairs]
    question = table.ask("direction", "From which language into which?", options)
    parts = [("translation", column)] if column else [("question", source), ("answer", target)]
    base = _translation_base(column, source, target)
    return make_plan(table, "translation", parts, base, [("direction", text)], [question])


def _is_object(cell: Any) -> bool:
    found = decoded(cell)
    return (
        isinstance(found, Mapping)
        and len(found) > 1
        and all(isinstance(text, str) for text in found.values())
    )


def _translation_base(column: str | None, source: str, target: str) -> Any:
    def base(record: Record, line: int, log: ProblemLog) -> list[Message]:
        texts = decoded(record[column]) if column else record
        if not isinstance(texts, Mapping) or source not in texts or target not in texts:
            raise Unusable("no-answer", "There is no answer.")
        return [Message("user", cell_text(texts[source])), Message("assistant", cell_text(texts[target]))]

    return base


def nested(table: Table, choose: Callable[[Table], Plan | None]) -> Plan | None:
    """A record below one key of another: the inner columns are read as if they stood outside."""
    if table.depth >= DEEPEST:
        return None
    for name, cell in table.record.items():
        inner = decoded(cell)
        if not isinstance(inner, Mapping) or not inner:
            continue
        rows = [found for row in table.cells(name) if isinstance(found := decoded(row), Mapping)]
        record = {str(key): value for key, value in inner.items()}
        plan = choose(Table(record, rows, table.reading, table.labels, table.depth + 1))
        if plan is not None and plan.kind not in ("plain text", "two columns"):
            return _inside(plan, name)
    return None


def _inside(plan: Plan, column: str) -> Plan:
    def convert(record: Record, line: int, log: ProblemLog) -> Any:
        inner = decoded(record[column])
        if not isinstance(inner, Mapping):
            raise Unusable("not-a-record", "An entry is neither an object nor a list of messages.")
        missing = {name: None for _, name in plan.parts if name not in inner}
        return plan.convert({**inner, **missing}, line, log)

    parts = tuple((part, f"{column}.{name}") for part, name in plan.parts)
    return Plan(plan.kind, parts, convert, plan.notes, plan.questions, plan.labels, plan.fixed)


def two_columns(table: Table) -> Plan | None:
    """Exactly two columns of text whose names say nothing, or one beside a known question or answer.

    The question is the likelier one (`likely_question`); that choice is always said.
    """
    known = {part: table.find(part) for part in ("question", "answer")}
    texts = [name for name in text_columns(table) if name not in known.values()]
    if known["question"] and known["answer"]:
        return None
    if len(texts) != (1 if any(known.values()) else 2):
        return None
    likely = likely_question(table, texts[0], texts[-1])
    question = known["question"] or (texts[0] if known["answer"] else likely)
    answer = known["answer"] or next(name for name in texts if name != question)
    text = f"The columns are not known: {question!r} is taken as the question and {answer!r} as the answer."
    options = [_option(table, a, b) for a, b in ((question, answer), (answer, question))]
    asked = table.ask("unknown-columns", "Which column is the question, and which the answer?", options)

    def base(record: Record, line: int, log: ProblemLog) -> list[Message]:
        return [*asked_turns([record[question]], line, log), *answer_turns(record[answer], line, log)]

    parts = [("question", question), ("answer", answer)]
    return make_plan(table, "two columns", parts, base, [("unknown-columns", text)], [asked])


def _option(table: Table, question: str, answer: str) -> tuple[str, dict[str, str]]:
    cells = [shown(next(iter(table.cells(name)), "")) for name in (question, answer)]
    return f"Question “{cells[0]}” ({question}), answer “{cells[1]}” ({answer})", {
        "question": question,
        "answer": answer,
    }


def text_columns(table: Table) -> list[str]:
    """Columns that hold words; not numbers, ids, addresses, or the same value in all rows."""
    return [
        name
        for name in table.record
        if normal(str(name)) not in ALIASES["unlike_text"]
        and table.holds(name, _is_words)
        and not _is_same(table, name)
    ]


def _is_words(cell: Any) -> bool:
    if (
        not isinstance(cell, str)
        or cell.lstrip()[:1] in ("{", "[")
        or cell.startswith(("http://", "https://"))
    ):
        return False
    if not any(letter.isalpha() for letter in cell):
        return False
    wide = any(ord(letter) > 0x2E7F for letter in cell)
    return wide or len(cell.split()) >= _WORDS or not any(letter.isdigit() for letter in cell)


def _is_same(table: Table, name: str) -> bool:
    cells = table.cells(name)
    return len(cells) >= 5 and len({cell_text(cell) for cell in cells}) == 1


def likely_question(table: Table, one: str, other: str) -> str:
    """Of two columns the one that asks: by a word of its name, by more question marks, else shorter texts."""
    named = {name: _says(name, "question") - _says(name, "answer") for name in (one, other)}
    if named[one] != named[other]:
        return max(named, key=lambda name: named[name])
    asking = {name: _asking(table, name) for name in (one, other)}
    if abs(asking[one] - asking[other]) > 0.2:
        return max(asking, key=lambda name: asking[name])
    lengths = {name: _mean_length(table, name) for name in (one, other)}
    return one if lengths[one] <= lengths[other] else other


def _says(name: str, part: str) -> bool:
    """True where a word of a column's name means that part: `Our answer (checked)`."""
    return any(word in ALIASES[part] for word in _WORD.findall(normal(str(name))))


def _asking(table: Table, name: str) -> float:
    cells = table.cells(name)
    return sum(cell_text(cell).rstrip()[-1:] in "?？؟" for cell in cells) / max(len(cells), 1)


def _mean_length(table: Table, name: str) -> float:
    cells = table.cells(name)
    return sum(len(cell_text(cell)) for cell in cells) / max(len(cells), 1)
