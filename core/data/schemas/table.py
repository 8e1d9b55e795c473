"""The columns of records of one kind, seen through their names and the first rows; and how they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.schemas.calls import tools_of
from ollama_tune.core.data.schemas.cells import Unusable, content_text, is_nothing
from ollama_tune.core.data.schemas.columns import ALIASES, normal
from ollama_tune.core.data.schemas.turns import Conversation
from ollama_tune.core.data.values import Message, Option, Question, Reading

LOOKED_AT = 200
"""Rows of the sample that a decision looks at."""

NOT_RATED = "It is not told whether an answer is good or bad, so it is not learned."

Record = Mapping[str, Any]
Base = Callable[[Record, int, ProblemLog], list[Message]]
Convert = Callable[[Record, int, ProblemLog], Conversation]
Parts = tuple[tuple[str, str], ...]
Note = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Plan:
    """How records with the same columns are read.

    `kind` is the schema in a few stable words, `parts` the columns used with the part each plays, `notes`
    what is said once about the file (kind and sentence), `labels` the fixed set of a classification.
    `fixed` tells by the counted answers of all rows whether they are a fixed set, where that is in question.
    """

    kind: str
    parts: Parts
    convert: Convert
    notes: tuple[Note, ...] = ()
    questions: tuple[Question, ...] = ()
    labels: tuple[str, ...] = ()
    fixed: Callable[[Counter[str]], bool] | None = None


class Table:
    """Columns by name and by the part they play, and the cells of the first rows.

    A person's `reading` comes before every name: a column given to one part plays no other.
    """

    def __init__(
        self,
        record: Record,
        sample: Sequence[Record],
        reading: Reading,
        labels: Counter[str] | None = None,
        depth: int = 0,
    ) -> None:
        self.record = record
        self.reading = reading
        self.labels = labels
        self.depth = depth
        self.names: dict[str, str] = {}
        for key in record:
            self.names.setdefault(normal(str(key)), key)
        for key in record:
            self.names.setdefault(normal(str(key).rpartition(".")[2]), key)
        seen = any(tuple(row) == tuple(record) for row in sample)
        self._rows = list(sample if seen else (record, *sample))[:LOOKED_AT]
        self._given = {part: name for part, asked in reading.columns if (name := self._column(asked))}

    def _column(self, asked: str) -> str | None:
        return asked if asked in self.record else self.names.get(normal(asked))

    def given(self, part: str) -> str | None:
        """The column that a person gave to a part."""
        return self._given.get(part)

    def all(self, part: str) -> list[str]:
        """Columns that may play a part, the likeliest first; only the given one where a person chose."""
        if part in self._given:
            return [self._given[part]]
        taken = set(self._given.values())
        found = (self.names[alias] for alias in ALIASES[part] if alias in self.names)
        return [name for name in dict.fromkeys(found) if name not in taken]

    def find(self, part: str, *but: str | None) -> str | None:
        """The likeliest column for a part, other than those."""
        return next((name for name in self.all(part) if name not in but), None)

    def cells(self, column: str) -> list[Any]:
        """What stands in a column in the first rows, without the empty cells."""
        return [row[column] for row in self._rows if column in row and not is_nothing(row[column])]

    def rows(self, *columns: str) -> list[Record]:
        """The first rows that have all these columns, filled or not."""
        return [row for row in self._rows if all(name in row for name in columns)]

    def holds(self, column: str, test: Callable[[Any], bool]) -> bool:
        """True when at least half of a column's first cells pass a test."""
        cells = self.cells(column)[:20]
        return bool(cells) and 2 * sum(map(test, cells)) >= len(cells)

    def ask(self, kind: str, text: str, options: Iterable[tuple[str, Mapping[str, str]]]) -> Question:
        """A question whose options each give columns to parts."""
        return Question(
            kind, text, tuple(Option(label, self.reading_with(parts)) for label, parts in options)
        )

    def reading_with(self, parts: Mapping[str, str], form: str = "") -> Reading:
        """The reading of now with these columns given as well."""
        columns = tuple(sorted({**dict(self.reading.columns), **parts}.items()))
        return replace(self.reading, columns=columns, form=form or self.reading.form)


def make_plan(
    table: Table,
    kind: str,
    parts: Iterable[tuple[str, str | None]],
    base: Base,
    notes: Iterable[Note] = (),
    questions: Iterable[Question] = (),
) -> Plan:
    """A plan of a base that makes the messages, with the system text, tools and marks beside it."""
    used = tuple((part, name) for part, name in parts if name is not None)
    columns = {name for _, name in used}
    beside = {part: table.find(part, *columns) for part in ("system", "tools", "media")}
    rated = _rating(table, columns)
    parts_used = (*used, *((part, name) for part, name in beside.items() if name and part != "media"))
    if rated:
        parts_used = (*parts_used, ("rated", rated))
        kind = f"rated answers, {kind}"
    readers = [_reader(part, name) for part, name in beside.items() if name]
    convert = _finished(base, readers, rated)
    return Plan(kind, parts_used, convert, tuple(notes), tuple(questions))


def _rating(table: Table, used: set[str]) -> str | None:
    """The column of an unpaired preference: true for answers that are good."""
    name = table.find("rated", *used)
    cells = table.cells(name) if name else []
    return name if cells and all(_truth(cell) is not None for cell in cells) else None


def _truth(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(value.strip().lower()) if isinstance(value, str) else None


Reader = Callable[[Record, list[Message]], tuple[list[Message], str]]


def _reader(part: str, column: str) -> Reader:
    """What a column beside the conversation adds to it: a system text, tools, or a reason to leave it."""

    def system(record: Record, messages: list[Message]) -> tuple[list[Message], str]:
        cell = record[column]
        text = "" if cell is None else content_text(cell)
        if not text.strip() or any(turn.role == "system" and turn.content == text for turn in messages):
            return messages, ""
        return [Message("system", text), *messages], ""

    def tools(record: Record, messages: list[Message]) -> tuple[list[Message], str]:
        return messages, tools_of(record[column])

    def media(record: Record, messages: list[Message]) -> tuple[list[Message], str]:
        if not is_nothing(record[column]):
            raise Unusable("not-text", "A row holds something other than text, such as an image.")
        return messages, ""

    return {"system": system, "tools": tools, "media": media}[part]


def _finished(base: Base, readers: Sequence[Reader], rated: str | None) -> Convert:
    if not readers and not rated:
        return lambda record, line, log: Conversation(tuple(base(record, line, log)))

    def convert(record: Record, line: int, log: ProblemLog) -> Conversation:
        good = _truth(record[rated]) if rated else None
        if rated and good is None:
            raise Unusable("no-verdict", NOT_RATED)
        messages, tools = base(record, line, log), ""
        for reader in readers:
            messages, found = reader(record, messages)
            tools = tools or found
        return Conversation(tuple(messages), tools, good=good)

    return convert
