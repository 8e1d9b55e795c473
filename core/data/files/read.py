"""Streams the records of a data set, whatever its format, each with its place."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from ollama_tune.core.data.files.columnar import columnar_items
from ollama_tune.core.data.files.csv_items import csv_items, table_of
from ollama_tune.core.data.files.folder import Part, parts_of
from ollama_tune.core.data.files.items import Item, Items
from ollama_tune.core.data.files.json_items import is_json_lines, json_items
from ollama_tune.core.data.files.json_lines import json_lines
from ollama_tune.core.data.files.source import FORMATS, Source, empty, open_source
from ollama_tune.core.data.files.splits import pick
from ollama_tune.core.data.files.text_items import text_items
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.errors import TuneError

__all__ = ["FORMATS", "Item", "Items", "open_items", "read_items", "used_parts"]

_COMMENTS = re.compile(r"(?:\s|(?:#|//)[^\n]*\n|/\*.*?\*/)*", re.DOTALL)
_SUFFIXES = {
    "JSONL": (".jsonl", ".ndjson", ".json", ".txt"),
    "JSON": (".json", ".txt"),
    "SV": (".csv", ".tsv", ".tab", ".psv", ".txt"),
    "text": (".txt", ".text", ".md"),
    "Parquet": (".parquet", ".pq"),
    "Arrow": (".arrow", ".feather", ".ipc"),
}


def read_items(
    path: Path, log: ProblemLog, columns: Iterable[str] = (), *, split: str = "", validation: str = ""
) -> Items:
    """Open a file or folder and tell its format by its content.

    A line that cannot be read is logged and left out. `columns` are known column names, which help to
    tell tables and rows. `split` and `validation` name the parts to train and to measure on where there are
    several. Raises `TuneError` when the data set as a whole cannot be read.
    """
    known = frozenset(name.strip().lower() for name in columns)
    if path.is_dir():
        return _folder(path, log, known, split, validation)
    return open_items(open_source(path), log, known, split, validation)


def open_items(
    source: Source, log: ProblemLog, known: frozenset[str], split: str = "", validation: str = ""
) -> Items:
    """The records of one opened file."""
    splits: tuple[str, ...] = ()
    if source.table:
        name, stream = source.table, columnar_items(source, log)
    elif not (first := source.text.lstrip(" \t\r\n\ufeff")[:1]):
        raise empty(source.path)
    elif first in "[{" or (first in "#/" and _after_comments(source) in ("[", "{")):
        if is_json_lines(source, known):
            name, stream = "JSONL", json_lines(source, log)
        else:
            name = "JSON"
            stream, splits = json_items(source, log, known, split, validation)
    elif source.suffix in (".jsonl", ".ndjson", ".json"):
        name, stream = "JSONL", json_lines(source, log)
    elif table := table_of(source, known):
        name, stream = table.format, csv_items(source, table, log)
    else:
        name, stream = "plain text", text_items(source, log)
    _note_suffix(source, name, log)
    packed = f", {source.packed}" if source.packed else ""
    return Items(name + packed, source.spoken, stream, splits)


def _after_comments(source: Source) -> str:
    text = source.text
    return text[_COMMENTS.match(text).end() :][:1]  # type: ignore[union-attr]


def _note_suffix(source: Source, name: str, log: ProblemLog) -> None:
    """An extension that says something else than the content is no harm, but worth a word."""
    expected = next((words for start, words in _SUFFIXES.items() if start in name), ())
    said = {suffix for words in _SUFFIXES.values() for suffix in words}
    if source.suffix in said and source.suffix not in expected:
        text = f"The file is called {source.suffix} but holds {name}; it was read as what it holds."
        log.warn("extension", text)


def used_parts(
    path: Path, log: ProblemLog, split: str, validation: str
) -> tuple[list[tuple[Part, bool]], tuple[str, ...]]:
    """The files of a folder that are used and whether they are held out, training first; the splits."""
    parts = parts_of(path, log)
    names = _names(parts)
    splits = tuple(dict.fromkeys(names))
    if len(splits) == 1 and not split and not validation:
        return [(part, False) for part in parts], ()
    picked = pick(splits, split, validation, log)
    marked = [(part, picked.of(name)) for part, name in zip(parts, names, strict=True)]
    used = [(part, held_out) for part, held_out in marked if held_out is not None]
    return sorted(used, key=lambda entry: entry[1]), splits


def _folder(path: Path, log: ProblemLog, known: frozenset[str], split: str, validation: str) -> Items:
    used, splits = used_parts(path, log, split, validation)
    opened = _Opened(used, log, known)
    first = opened.following()
    count = f" ({len(used)} files)" if len(used) > 1 else ""
    return Items(first.format + count, first.encoding, opened.stream(first), splits)


def _names(parts: list[Part]) -> list[str]:
    """The split of every file. Files whose names speak of none belong to training."""
    if not any(part.split for part in parts):
        return ["train"] * len(parts)
    return [part.split or "train" for part in parts]


class _Opened:
    """The files of a folder one after another; one that cannot be read costs itself."""

    def __init__(self, parts: list[tuple[Part, bool]], log: ProblemLog, known: frozenset[str]) -> None:
        self._parts, self._log, self._known = parts, log, known
        self._next = 0

    def following(self) -> Items:
        """The next file that can be read. Raises `TuneError` when there is none."""
        failure = TuneError("The folder holds no other file of examples.", "Choose another one.")
        while self._next < len(self._parts):
            try:
                return self._open()
            except TuneError as error:
                failure = error
        raise failure

    def _open(self) -> Items:
        part = self._parts[self._next][0]
        self._next += 1
        try:
            return open_items(open_source(part.path), self._log, self._known)
        except TuneError as error:
            self._log.set_aside("bad-file", f"A file of the folder cannot be read. {error.what}", None)
            raise

    def stream(self, opened: Items) -> Iterator[Item]:
        """All records, the first file's from what is open already."""
        formats = Counter([opened.format])
        while True:
            part, held_out = self._parts[self._next - 1]
            try:
                for item in opened.stream:
                    yield Item(item.line, item.value, part.name, held_out or item.held_out)
            except TuneError as error:
                self._log.set_aside("bad-file", f"A file of the folder cannot be read on. {error.what}", None)
            try:
                opened = self.following()
            except TuneError:
                break
            formats[opened.format] += 1
        if len(formats) > 1:
            listed = ", ".join(f"{count} x {name}" for name, count in formats.most_common())
            self._log.warn("formats", f"The files have several formats: {listed}.")
