"""Streams the items of a data file, whatever its format, each with its line number."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.source import (
    FORMATS,
    LARGEST,
    Source,
    damaged,
    empty,
    open_source,
    read_all,
    read_lines,
    too_large,
)
from ollama_tune.core.errors import TuneError

WRAPPERS = ("data", "rows", "train", "examples", "items", "records", "dataset")
"""Keys of a JSON object under which files keep their list of rows."""

LONGEST_CELL = 2**26
"""Characters of a CSV cell; Python's own limit of 131,072 is too small for long documents."""

_DELIMITERS = ",\t;|"
_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n]*")
_JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Item:
    """One record as it stands in the file, and its line (Parquet: its number), counted from 1."""

    line: int
    value: Any


@dataclass(frozen=True)
class Items:
    """A file's records; the iterator can be used once and fills the log as it goes."""

    format: str
    encoding: str
    stream: Iterator[Item]


def read_items(path: Path, log: ProblemLog, columns: Iterable[str] = ()) -> Items:
    """Open a file and tell its format by its content.

    A line that cannot be read is logged and left out. `columns` are known column names, which help to
    tell a CSV's delimiter. Raises `TuneError` when the file as a whole cannot be read.
    """
    source = open_source(path)
    if source.head.startswith(b"PAR1"):
        return Items("Parquet", "binary", _parquet(source))
    packed = ", gzip" if source.packed else ""
    first = _first_line(source)
    name, stream = _family(source, first, log, frozenset(columns))
    return Items(name + packed, _spoken(source.encoding), stream)


def _spoken(encoding: str) -> str:
    return {"cp1252": "Windows-1252", "utf-8-sig": "UTF-8 with BOM"}.get(encoding, encoding.upper())


def _first_line(source: Source) -> str:
    text = source.head.decode(source.encoding, "replace")
    first = next((line for line in re.split(r"\r\n|\n|\r", text) if line.strip()), "")
    if not first:
        raise empty(source.path)
    return first.strip()


def _family(
    source: Source, first: str, log: ProblemLog, columns: frozenset[str]
) -> tuple[str, Iterator[Item]]:
    if first[0] in "[{":
        if _is_json_lines(source, first):
            return "JSONL", _json_lines(source, log)
        return "JSON", _json(source, log)
    if source.suffix in _JSON_LINES:
        return "JSONL", _json_lines(source, log)
    delimiter, names = _delimiter(source, columns)
    if delimiter is None or not (names or source.suffix in (".csv", ".tsv")):
        raise TuneError(
            f"{source.path} is plain text, which does not say what is a question and what an answer.",
            f"Put them into a {FORMATS} file, for instance in columns called question and answer.",
        )
    return {"\t": "TSV", ",": "CSV"}.get(delimiter, f"CSV with {delimiter!r}"), _csv(source, delimiter, log)


def _is_json_lines(source: Source, first: str) -> bool:
    """True when the first line is a whole object, unless that is all there is and wraps a list of rows."""
    if source.suffix in _JSON_LINES and first[0] == "{":
        return True
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not (len(value) < 8 and _wrapped(value))


def _json_lines(source: Source, log: ProblemLog) -> Iterator[Item]:
    for number, line in enumerate(read_lines(source, log), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            log.set_aside("bad-line", "A line is not valid JSON.", number)
            continue
        yield Item(number, value)


def _json(source: Source, log: ProblemLog) -> Iterator[Item]:
    """A list of rows, an object that holds one, several objects in a row, or a single row."""
    text = read_all(source, log)
    start = _skip(text, 0)
    if text[start] == "[":
        yield from _elements(source.path, text, start)
        return
    value, end = _value(source.path, text, start)
    rows = _wrapped(value) if _skip(text, end) == len(text) else None
    if rows is not None:
        yield from (Item(number, row) for number, row in enumerate(rows, 1))
        return
    yield Item(1, value)
    end = _skip(text, end)
    while end < len(text):
        line = 1 + text.count("\n", 0, end)
        value, end = _value(source.path, text, end)
        yield Item(line, value)
        end = _skip(text, end)


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _elements(path: Path, text: str, start: int) -> Iterator[Item]:
    line, counted = 1, 0
    at = _skip(text, start + 1)
    while at < len(text) and text[at] != "]":
        line, counted = line + text.count("\n", counted, at), at
        value, at = _value(path, text, at)
        yield Item(line, value)
        at = _skip(text, at)
        if at < len(text) and text[at] == ",":
            at = _skip(text, at + 1)
        elif at < len(text) and text[at] != "]":
            _broken(path, text, at)
    if at >= len(text):
        _broken(path, text, len(text))


def _value(path: Path, text: str, at: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        _broken(path, text, getattr(error, "pos", at))


def _broken(path: Path, text: str, at: int) -> NoReturn:
    line = 1 + text.count("\n", 0, at)
    column = at - text.rfind("\n", 0, at)
    raise TuneError(
        f"{path} is not valid JSON: it breaks at line {line}, column {column}.",
        "Correct it there, or save one object a line as JSONL, where a bad line costs only itself.",
    )


def _wrapped(value: Any) -> list[Any] | None:
    """The list of rows inside an object: under a known key, or columns of equal length."""
    if not isinstance(value, dict):
        return None
    for key in WRAPPERS:
        if isinstance(value.get(key), list):
            return list(value[key])
    lists = [column for column in value.values() if isinstance(column, list)]
    if len(lists) < 2 or len(lists) < len(value) or len({len(column) for column in lists}) != 1:
        return None
    return [dict(zip(value, cells, strict=True)) for cells in zip(*lists, strict=True)]


def _delimiter(source: Source, columns: frozenset[str]) -> tuple[str | None, int]:
    """The one that cuts most lines into equally many cells and the header into known names, and how many."""
    text = source.head.decode(source.encoding, "replace")
    scored = [(*_score(text, delimiter, columns), delimiter) for delimiter in _DELIMITERS]
    score, known, delimiter = max(scored, key=lambda entry: entry[0])
    return (delimiter, known) if score > 0 else (None, 0)


def _score(text: str, delimiter: str, columns: frozenset[str]) -> tuple[float, int]:
    try:
        rows = list(itertools.islice(csv.reader(re.split("(?<=\n)", text), delimiter=delimiter), 200))
    except csv.Error:
        return 0.0, 0
    widths = Counter(len(row) for row in rows if row)
    width, count = widths.most_common(1)[0] if widths else (0, 0)
    if width < 2:
        return 0.0, 0
    known = sum(1 for name in rows[0] if name.strip().lower() in columns)
    return 10 * count / sum(widths.values()) + 5 * known, known


def _csv(source: Source, delimiter: str, log: ProblemLog) -> Iterator[Item]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(read_lines(source, log), delimiter=delimiter, strict=True)
    header = _csv_header(source.path, reader)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            kind = "open-quote" if "end of data" in str(error) else "bad-line"
            text = "A quote is opened and never closed, so all lines after it are lost."
            log.set_aside(kind, text if kind == "open-quote" else "A line is not valid CSV.", line)
            continue
        if len(cells) > len(header):
            log.set_aside("bad-line", "A line has more cells than the header.", line)
        elif any(cell.strip() for cell in cells):
            yield Item(line, dict(itertools.zip_longest(header, cells, fillvalue="")))


def _csv_header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = next((row for row in reader if any(cell.strip() for cell in row)), [])
    except csv.Error as error:
        raise damaged(path, error) from error
    names = [name.strip() for name in header]
    if len(set(names)) < len(names):
        raise TuneError(
            f"The first line of {path} names a column twice: {', '.join(names)}.",
            "Give every column its own name in the first line.",
        )
    return names


def _parquet(source: Source) -> Iterator[Item]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(source.path) as file:
            groups = range(file.metadata.num_row_groups)
            if sum(file.metadata.row_group(i).total_byte_size for i in groups) > LARGEST:
                raise too_large(source.path)
            number = 0
            for batch in file.iter_batches(batch_size=256):
                for value in batch.to_pylist():
                    number += 1
                    yield Item(number, value)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise damaged(source.path, error) from error
