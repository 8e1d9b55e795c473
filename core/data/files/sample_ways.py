"""How the rows in a piece cut out of the middle of a file are found and counted, for every format of text."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_tune.core.data.files.csv_items import Table, table_of
from ollama_tune.core.data.files.items import Item
from ollama_tune.core.data.files.json_items import is_json_lines
from ollama_tune.core.data.files.json_lines import LineReader, strict_json
from ollama_tune.core.data.files.source import Decoder, Source
from ollama_tune.core.data.files.text_items import COLUMN
from ollama_tune.core.data.problems import ProblemLog

_TRIED = 40
"""Lines tried as the beginning of a record before a longer piece is asked for."""
_PARAGRAPH = re.compile(rb"\n[ \t\r]*\n\s*")


class Longer(Exception):
    """The piece is too short to hold a whole row."""


@dataclass(frozen=True)
class Way:
    """`count` gives the rows that a piece holds and the bytes they were counted in; `find` the value of the
    first row that begins in it and is whole. It raises `Longer` where there is none.
    """

    count: Callable[[bytes], tuple[int, int]]
    find: Callable[[bytes], Any]


def way_for(source: Source, first: Sequence[Item], known: Collection[str]) -> Way:
    """The way for a file of text, whose `first` items are known already."""
    start = source.text.lstrip(" \t\r\n\ufeff")[:1]
    decode = Decoder(source, ProblemLog())
    if start in "[{" and is_json_lines(source, known):
        return Way(_newlines, lambda block: _json_line(block, source, decode))
    if start in "[{":
        pattern = _json_start(source.head, first)
        return Way(
            lambda block: (sum(1 for _ in pattern.finditer(block)), len(block)),
            lambda block: _json_value(block, pattern, decode),
        )
    if table := table_of(source, known):
        width = len(first[0].value) if first else 1
        names = list(first[0].value) if first else []
        return Way(
            lambda block: _csv_rows(block, table, width, decode),
            lambda block: _csv_record(block, table, names, decode)[1],
        )
    if first and isinstance(first[0].value, dict) and COLUMN in first[0].value:
        return Way(_paragraphs(first), _no_row)
    return Way(_newlines, lambda block: _json_line(block, source, decode))


def _no_row(_: bytes) -> Any:
    raise Longer


def _newlines(block: bytes) -> tuple[int, int]:
    return block.count(b"\n"), len(block)


def _json_line(block: bytes, source: Source, decode: Decoder) -> Any:
    """The first whole line that is JSON."""
    lines = block.split(b"\n")[1:-1]
    for line in lines:
        text = decode(line, 0)
        try:
            return strict_json(text)
        except (ValueError, RecursionError):
            reader = LineReader(source, ProblemLog())
            for value in reader.values(text.encode("utf-8", "surrogatepass"), 0):
                return value
    raise Longer


def _json_start(head: bytes, first: Sequence[Item]) -> re.Pattern[bytes]:
    """How a row begins: with the first key of the first row, on a line as far in as that."""
    row = next((item.value for item in first if isinstance(item.value, dict) and item.value), {})
    key = re.escape(json.dumps(next(iter(row), ""), ensure_ascii=False).encode())
    begun = re.search(rb"(\n[ \t]*)?\{\s*" + key + rb"\s*:", head) if row else None
    if not begun:
        return re.compile(rb"[\[,]\s*(?=[{\[])")
    return re.compile((re.escape(begun.group(1)) if begun.group(1) else b"") + rb"(?=\{\s*" + key + rb"\s*:)")


def _json_value(block: bytes, pattern: re.Pattern[bytes], decode: Decoder) -> Any:
    found = pattern.search(block)
    if not found:
        raise Longer
    try:
        return json.JSONDecoder().raw_decode(decode(block[found.end() :], 0))[0]
    except (ValueError, RecursionError) as error:
        raise Longer from error


def _csv_record(block: bytes, table: Table, names: list[str], decode: Decoder) -> tuple[int, dict[str, str]]:
    """Where the first record begins that is followed by another one, and the record.

    A line in the middle of a quoted cell hardly ever gives as many cells as there are columns, twice.
    """
    lines = block.splitlines(True)
    texts = [decode(line, 0) for line in lines[1 : _TRIED * 8]]
    at = len(lines[0]) if lines else 0
    for number in range(min(len(texts), _TRIED)):
        try:
            records = list(itertools.islice(table.reader(iter(texts[number:])), 2))
        except csv.Error:
            records = []
        if len(records) == 2 and all(len(record) == len(names) for record in records):
            return at, dict(zip(names, records[0], strict=True))
        at += len(lines[number + 1])
    raise Longer


def _csv_rows(block: bytes, table: Table, width: int, decode: Decoder) -> tuple[int, int]:
    """The line ends outside of quotes, counted from where a record begins for sure."""
    if b'"' not in block:
        return _newlines(block)
    try:
        at, _ = _csv_record(block, table, [str(i) for i in range(width)], decode)
    except Longer:
        return 0, 0
    rest = block[at:]
    return sum(part.count(b"\n") for part in rest.split(b'"')[::2]), len(rest)


def _paragraphs(first: Sequence[Item]) -> Callable[[bytes], tuple[int, int]]:
    """By the mean size of the first rows, where blank lines do not tell."""
    size = sum(len(item.value[COLUMN].encode("utf-8", "replace")) + 1 for item in first) / len(first)

    def count(block: bytes) -> tuple[int, int]:
        parted = sum(1 for _ in _PARAGRAPH.finditer(block))
        return parted or round(len(block) / size), len(block)

    return count
