"""Reads tables of text: which sign divides the cells, which line names the columns, and the rows."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ollama_tune.core.data.files.items import Item
from ollama_tune.core.data.files.source import Source, text_lines
from ollama_tune.core.data.problems import ProblemLog

LONGEST_CELL = 2**24
"""Characters of a cell; also how far a quote that is never closed is followed before it is given up."""

_DELIMITERS = (",", "\t", ";", "|", "^", "~", "\x01", "\x1f")
_SUFFIXES = (".csv", ".tsv", ".tab", ".psv")
_ROWS_SEEN = 200
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n?\Z")
_SENTENCE = re.compile(r"(\s.*[.?!]|[。？！])[\"'”」]?\Z")
_FIGURES = re.compile(r"[+-]?\d[\d.,:/\- ]*\Z")
"""A number, a date or a time of day."""
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?\Z")
_LONGEST_NAME = 60
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")


@dataclass(frozen=True)
class Table:
    """How a table is written. Without a `header` its first line is a row, and its columns get numbers."""

    delimiter: str
    header: bool
    known: int
    skip_space: bool = False
    backslash: bool = False
    lines_before: int = 0

    @property
    def format(self) -> str:
        """The name of the format."""
        names = {",": "CSV", "\t": "TSV"}
        return names.get(self.delimiter, f"CSV with {self.delimiter!r}")

    def reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        """The records of some lines, quotes taken strictly."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            strict=True,
            skipinitialspace=self.skip_space,
            escapechar="\\" if self.backslash else None,
        )


def table_of(source: Source, known: Collection[str]) -> Table | None:
    """How the table is written; None when the text is none. `known` are names that mean something."""
    csv.field_size_limit(LONGEST_CELL)
    text = source.text
    lines = [line for line in _LINE.findall(text) if line]
    skip = next((n for n, line in enumerate(lines) if not _is_comment(line)), 0)
    said = _SEPARATOR_LINE.match(lines[skip]) if lines else None
    skip += bool(said)
    del lines[:skip]
    if len(lines) > 1 and len(source.head) >= 2**16:
        lines.pop()
    if said:
        return _table(said.group(1), lines, known, skip)
    scored = [(_score(lines, delimiter, known), delimiter) for delimiter in _DELIMITERS]
    score, delimiter = max(scored, key=lambda entry: entry[0][0])
    if score[0] > 0 and _is_table(source, score, delimiter, lines):
        return _table(delimiter, lines, known, skip)
    if source.suffix in _SUFFIXES and lines:
        return _table(",", lines, known, skip)
    return None


def _is_comment(line: str) -> bool:
    """A line of words before the table, as some programs write them."""
    return line.startswith("#") and not any(delimiter in line for delimiter in _DELIMITERS)


@dataclass(frozen=True)
class _Counts:
    share: float
    width: int
    known: int
    rows: int


def _score(lines: list[str], delimiter: str, known: Collection[str]) -> tuple[float, _Counts]:
    """How well a delimiter fits: lines of equally many cells, and known names in the first one."""
    rows = _records(csv.reader(iter(lines), delimiter=delimiter))
    widths = Counter(len(row) for row in rows)
    width, count = widths.most_common(1)[0] if widths else (0, 0)
    if width < 2:
        return 0.0, _Counts(0.0, 0, 0, 0)
    named = sum(name.strip().lower() in known for name in rows[0])
    counts = _Counts(count / len(rows), width, named, len(rows))
    return 10 * counts.share + 5 * named, counts


def _records(reader: Iterator[list[str]]) -> list[list[str]]:
    found: list[list[str]] = []
    try:
        for row in itertools.islice(reader, _ROWS_SEEN):
            if any(cell.strip() for cell in row):
                found.append(row)  # noqa: PERF401 - what came before an error counts
    except csv.Error:
        pass
    return found


def _is_table(source: Source, score: tuple[float, _Counts], delimiter: str, lines: list[str]) -> bool:
    counts = score[1]
    if counts.known or source.suffix in _SUFFIXES:
        return True
    if counts.share < 1 or counts.rows < 3:
        return False
    first = next(iter(_records(csv.reader(iter(lines), delimiter=delimiter))))
    return delimiter == "\t" or not any(_is_data(cell) or cell.count(" ") > 2 for cell in first)


def _table(delimiter: str, lines: list[str], known: Collection[str], before: int) -> Table:
    text = "".join(lines)
    space = text.count(f'{delimiter} "') > text.count(f'{delimiter}"')
    table = Table(delimiter, True, 0, skip_space=space, lines_before=before)
    escaped = replace(table, backslash=True)
    if '\\"' in text and len(_records(escaped.reader(iter(lines)))) > len(
        _records(table.reader(iter(lines)))
    ):
        table = escaped
    rows = _records(table.reader(iter(lines)))
    named = sum(name.strip().lower() in known for name in rows[0]) if rows else 0
    header = named > 0 or not rows or _is_header(rows[0], rows[1:])
    return replace(table, header=header, known=named)


def _is_header(first: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """False where the first line looks like those below it: sentences, figures, the same cells again.

    A word above a column of nothing but figures or dates is its name, with whatever sign it ends (`No.`).
    """
    if [cell.strip() for cell in first if cell.strip()] == [str(i) for i in range(sum(map(bool, first)))]:
        return True
    if any(_names_figures(cell, [row[i] for row in rows if i < len(row)]) for i, cell in enumerate(first)):
        return True
    if any(_is_data(cell) for cell in first):
        return False
    return not any(cell and cell == row[i] for row in rows for i, cell in enumerate(first) if i < len(row))


def _names_figures(name: str, cells: Sequence[str]) -> bool:
    known = [cell.strip() for cell in cells if cell.strip()]
    word = any(letter.isalpha() for letter in name) and len(name.strip()) <= _LONGEST_NAME
    return word and len(known) > 1 and all(_FIGURES.match(cell) for cell in known)


def _is_data(cell: str) -> bool:
    cell = cell.strip()
    return len(cell) > _LONGEST_NAME or bool(_SENTENCE.search(cell)) or bool(_NUMBER.match(cell))


class _Lines:
    """Hands out lines and remembers those of the record being read, so that they can be read again."""

    def __init__(self, stream: Iterator[str]) -> None:
        self._stream = stream
        self._again: deque[str] = deque()
        self.pending: list[str] = []
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._stream)
        self.pending.append(line)
        self.number += 1
        return line

    def start(self) -> int:
        """Forget what was read; the number of the next line."""
        self.pending.clear()
        return self.number + 1

    def back(self) -> None:
        """Read again all lines of this record but its first."""
        self._again.extendleft(reversed(self.pending[1:]))
        self.number -= len(self.pending) - 1
        self.pending.clear()


def csv_items(source: Source, table: Table, log: ProblemLog) -> Iterator[Item]:
    """One item for every record; one that does not fit is set aside with the line it begins in."""
    csv.field_size_limit(LONGEST_CELL)
    lines = _Lines(text_lines(source, log))
    for _ in range(table.lines_before):
        next(lines, None)
    header: list[str] = []
    for line, cells in _checked(table, lines, header, log):
        if header:
            yield Item(line, _record(header, cells))
        elif table.header:
            header += _names(cells, log)
        else:
            text = "The first line looks like a row, not like the names of columns; they were numbered."
            log.warn("no-header", text, line)
            header += [f"column {number}" for number in range(1, len(cells) + 1)]
            yield Item(line, _record(header, cells))


def _record(header: list[str], cells: list[str]) -> dict[str, Any]:
    return dict(itertools.zip_longest(header, cells[: len(header)], fillvalue=""))


def _checked(
    table: Table, lines: _Lines, header: list[str], log: ProblemLog
) -> Iterator[tuple[int, list[str]]]:
    """The records that fit, with the line each begins in. A lost quote costs the line that opened it."""
    reader = table.reader(lines)
    while True:
        line = lines.start()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            _set_aside(lines, line, _reason(error), log)
            continue
        if header and len(cells) > len(header) and any(cells[len(header) :]):
            _set_aside(lines, line, "it has more cells than the first line has names", log)
        elif any(cell.strip() for cell in cells):
            yield line, cells


def _set_aside(lines: _Lines, line: int, reason: str, log: ProblemLog) -> None:
    if len(lines.pending) > 1 or reason == _OPEN:
        text = "A quote is opened and not closed in its place; the lines after it were read by themselves."
        log.set_aside("open-quote", text, line)
        lines.back()
    else:
        log.set_aside("bad-line", f"A line does not fit the table: {reason}.", line)


_OPEN = "a quote is opened and never closed"


def _reason(error: csv.Error) -> str:
    said = str(error)
    if "expected after" in said:
        return "a quote inside a quoted cell is not doubled"
    if "field larger" in said:
        return "a cell is longer than 16 million characters"
    return _OPEN if "end of data" in said else "it holds characters that a table cannot hold"


def _names(cells: Sequence[str], log: ProblemLog) -> list[str]:
    """The names of the columns: one without a name gets its number, one that comes twice a second name."""
    found: dict[str, None] = {}
    for number, cell in enumerate(cells, 1):
        name = cell.strip() or f"column {number}"
        if name in found:
            log.warn("double-column", "The first line names a column twice; the second one got a number.")
            name = f"{name} ({number})"
        found[name] = None
    return list(found)
