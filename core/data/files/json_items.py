"""Streams the rows of a JSON document: a list, objects in a row, or rows somewhere inside an object."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from ollama_tune.core.data.files import lenient
from ollama_tune.core.data.files.items import Item
from ollama_tune.core.data.files.json_lines import strict_json
from ollama_tune.core.data.files.json_shape import ROW, Shape, expanded, shape_of, transposed
from ollama_tune.core.data.files.json_window import Window
from ollama_tune.core.data.files.source import Source, text_chunks
from ollama_tune.core.data.files.splits import pick
from ollama_tune.core.data.problems import ProblemLog

_NEXT_OBJECT = re.compile(r"\n(?=[{\[])")
_LINES_SEEN = 50


def is_json_lines(source: Source, known: Collection[str]) -> bool:
    """True when the lines are rows by themselves: most begin an object and do not go on in the next line."""
    lines = [line for line in re.split(r"[\r\n]+", source.text) if _counts(line)][:_LINES_SEEN]
    if not lines or (lines[0][0] == "[" and not lines[0].rstrip(" \t,").endswith("]")):
        return False
    if len(lines) == 1:
        return (
            lines[0][0] == "{" and shape_of(_partial(lines[0]), known) == ROW and _is_whole(source, lines[0])
        )
    if len(lines) == 2 and lines[1].strip() in ("]", "}", ","):
        return False
    comma = lines[0].rstrip().endswith(",")
    rows = [line for line in lines if _is_row(line, comma)]
    return len(rows) >= 0.6 * len(lines)


def _counts(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith(("#", "//"))


def _is_row(line: str, comma: bool) -> bool:
    end = line.rstrip()
    if end.endswith(","):
        return comma and line[0] == "{" and end[-2:-1] == "}"
    return (line[0] == "{" and len(end) > 2) or (line[0] == "[" and end[-1] == "]")


def _is_whole(source: Source, line: str) -> bool:
    """True for an object on one line; of a line longer than the head it is taken for granted."""
    try:
        strict_json(line)
    except (ValueError, RecursionError):
        return not line.rstrip().endswith("}") or "\n" not in source.text.rstrip()
    return True


def _partial(text: str) -> Any:
    """What a text begins with, up to its end or to where it is broken."""
    try:
        return lenient.parse(text, cut_off=True)[0]
    except lenient.Broken as error:
        end = error.at
    try:
        return lenient.parse(text[:end], cut_off=True)[0]
    except lenient.Broken:
        return None


def json_items(
    source: Source, log: ProblemLog, known: Collection[str], split: str, validation: str
) -> tuple[Iterator[Item], tuple[str, ...]]:
    """The rows and the names of the splits, where the document holds several.

    Raises `TuneError` when a split that was asked for is not there.
    """
    window = Window(text_chunks(source, log), log)
    shape = ROW
    if window.peek() == "{" and not _goes_on(window):
        shape = shape_of(_partial(window.text[window.at :]), known)
    if shape.kind == "splits":
        picked = pick(shape.splits, split, validation, log)
        return _splits(window, {name: picked.of(name) for name in shape.splits}, log), shape.splits
    return _rows(window, shape, frozenset(known), log), ()


def _goes_on(window: Window) -> bool:
    """True when another object follows the first one: they are rows then, whatever is in them."""
    try:
        _, end, _ = lenient.parse(window.text, window.at)
    except lenient.Broken:
        return bool(re.search(r"\n\}\s*\{", window.text))
    return window.text[end:].lstrip(" \t\r\n,")[:1] == "{"


def _rows(window: Window, shape: Shape, known: frozenset[str], log: ProblemLog) -> Iterator[Item]:
    try:
        if shape.kind == "columns":
            _enter(window, shape.path)
            rows = transposed(window.value())
            yield from (Item(number, row) for number, row in enumerate(rows, 1))
        elif shape.kind == "rows":
            _enter(window, shape.path)
            yield from _named(_members(window, log), known)
        else:
            yield from _in_a_row(window, known)
    except lenient.Broken as error:
        window.recover(error, _NEXT_OBJECT)


def _enter(window: Window, path: tuple[str, ...]) -> None:
    """Go to the value under these keys. Raises `lenient.Broken` when a value before it is broken."""
    for key in path:
        window.take("{")
        for found in window.members():
            if found == key:
                break
            window.value()


def _members(window: Window, log: ProblemLog) -> Iterator[Item]:
    """The entries of a list, or the values of an object by id."""
    if window.take("["):
        for line, value in window.elements():
            yield from (Item(line, row) for row in expanded(value))
    elif window.take("{"):
        for _ in window.members():
            window.peek()
            line = window.line()
            yield from (Item(line, row) for row in expanded(window.value()))
    else:
        log.set_aside("bad-line", "An entry is neither a list nor an object.", window.line())
        window.value()


def _splits(window: Window, parts: dict[str, bool | None], log: ProblemLog) -> Iterator[Item]:
    try:
        window.take("{")
        for key in window.members():
            held_out = parts.get(key)
            if key not in parts or held_out is None:
                window.value()
                continue
            for item in _members(window, log):
                yield Item(item.line, item.value, "", held_out)
    except lenient.Broken as error:
        window.recover(error, _NEXT_OBJECT)


def _in_a_row(window: Window, known: frozenset[str]) -> Iterator[Item]:
    """Lists and objects one after another; each object is a row, and so is each entry of a list."""
    while first := window.peek():
        if first in ",;":
            window.at += 1
            continue
        line = window.line()
        if first == "[":
            window.at += 1
            entries = (Item(line, row) for line, value in window.elements() for row in expanded(value))
            yield from _named(entries, known)
            continue
        try:
            value = window.value()
        except lenient.Broken as error:
            if not window.recover(error, _NEXT_OBJECT):
                return
            continue
        yield Item(line, value)


def _named(items: Iterator[Item], known: frozenset[str]) -> Iterator[Item]:
    """Rows that are lists of cells under a first one that holds known names become objects."""
    header: list[str] = []
    for number, item in enumerate(items):
        if number == 0 and _is_header(item.value, known):
            header = [str(name) for name in item.value]
        elif header and isinstance(item.value, list):
            yield Item(item.line, dict(zip(header, item.value, strict=False)), item.file, item.held_out)
        else:
            yield item


def _is_header(value: Any, known: frozenset[str]) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(isinstance(name, str) for name in value)
        and sum(name.strip().lower() in known for name in value) >= 2
    )
