"""Reads JSON line by line: a line that is not quite JSON is repaired, one beyond that is set aside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ollama_tune.core.data.files import lenient
from ollama_tune.core.data.files.encodings import LEGACY
from ollama_tune.core.data.files.items import Item
from ollama_tune.core.data.files.source import Decoder, Source, byte_lines, text_lines
from ollama_tune.core.data.problems import ProblemLog

REPAIRABLE = 2**22
"""Characters of a line that repairs are tried on; they are a hundred times slower than plain JSON."""

_REASONS = {
    "Expecting ',' delimiter": "a comma is missing, or a quote inside a text is not escaped",
    "Expecting ':' delimiter": "a colon is missing after a key",
    "Expecting value": "a value is missing, or a text without quotes",
    "Expecting property name": "a key is missing, or has no quotes",
    "Unterminated string": "a text is opened and never closed",
    "Invalid control character": "a text holds a raw control character",
    "Invalid \\": "a backslash is followed by something it cannot escape",
    "Extra data": "something stands after its end",
}


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


_STRICT = json.JSONDecoder(parse_constant=_no_number)


def strict_json(text: str) -> Any:
    """The value of a text that is JSON as its standard has it. Raises `ValueError` or `RecursionError`."""
    return _STRICT.decode(text)


def json_lines(source: Source, log: ProblemLog) -> Iterator[Item]:
    """One item for every value; several on a line share its number. Blank lines and comments are skipped."""
    reader = LineReader(source, log)
    for number, line in enumerate(_utf8_lines(source, log), 1):
        try:
            value = strict_json(line.decode())
        except (ValueError, RecursionError):
            for value in reader.values(line, number):
                yield Item(number, value)
        else:
            plain = is_plain(line.count(b'":'), value)
            yield Item(number, value if plain else reader.exact(line, value, number))


def _utf8_lines(source: Source, log: ProblemLog) -> Iterator[bytes]:
    """The lines as parsers want them; those of a UTF-8 file untouched, whatever is in them."""
    if source.newlines and source.encoding not in LEGACY:
        return byte_lines(source, log)
    return (line.encode("utf-8", "surrogatepass") for line in text_lines(source, log))


def is_plain(colons: int, value: Any) -> bool:
    """False where a key may have come twice, of which a parser keeps one.

    `colons` counts `":` in the text: that many keys it may have had at most.
    """
    try:
        return colons <= _keys(value)
    except RecursionError:
        return False


def _keys(value: Any) -> int:
    """How many keys a value has, all the way down."""
    if isinstance(value, dict):
        return len(value) + sum(
            _keys(cell) for cell in value.values() if not isinstance(cell, (str, int)) and cell is not None
        )
    if isinstance(value, list):
        return sum(_keys(cell) for cell in value if not isinstance(cell, (str, int)) and cell is not None)
    return 0


class LineReader:
    """The careful way to read a line, taken where the fast one fails."""

    def __init__(self, source: Source, log: ProblemLog) -> None:
        utf8 = replace(source, encoding="utf-8")
        self._decode = Decoder(utf8, log)
        self._log = log

    def exact(self, line: bytes, value: Any, number: int) -> Any:
        """The value again, with a note where a key came twice."""
        try:
            return json.loads(self._decode(line, number), object_pairs_hook=Pairs(self._log, number))
        except (ValueError, RecursionError):
            return value

    def values(self, line: bytes, number: int) -> Iterator[Any]:
        """The values of a line, repaired where that is needed and possible; each repair has a note."""
        text = self._decode(line, number).strip()
        if not text or text.startswith(("#", "//")):
            return
        try:
            values = several(text, self._log, number)
        except (ValueError, RecursionError) as error:
            self._log.set_aside("bad-line", f"A line is not valid JSON: {reason(error)}.", number)
            return
        yield from values


def several(text: str, log: ProblemLog, number: int) -> list[Any]:
    """The values that stand on a line one after another. Raises `ValueError` or `RecursionError`."""
    values, at = [], 0
    while at < len(text):
        value, at = one(text, at, log, number)
        values.append(value)
        at = len(text) - len(text[at:].lstrip(" \t\r\n"))
        if text[at : at + 1] == ",":
            log.warn("json-repaired", lenient.REPAIRS["comma"], number)
            at = len(text) - len(text[at + 1 :].lstrip(" \t\r\n"))
        if at < len(text) and (text[at] not in "[{" or not isinstance(value, (dict, list))):
            raise lenient.Broken("something stands after its end", at)
    if len(values) > 1 and "\r" not in text:
        log.warn("several-on-a-line", "A line holds more than one object; each was taken as a row.", number)
    return values


def one(text: str, at: int, log: ProblemLog, number: int) -> tuple[Any, int]:
    """The value at a place and its end: as JSON, else as what was meant to be."""
    try:
        return _decoder(log, number).raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        if len(text) > REPAIRABLE or isinstance(error, RecursionError):
            raise
        first = error
    try:
        value, end, repairs = lenient.parse(text, at)
    except lenient.Broken as error:
        raise error from first
    for repair in sorted(repairs):
        log.warn("json-repaired", lenient.REPAIRS[repair], number)
    return value, end


def _decoder(log: ProblemLog, number: int) -> json.JSONDecoder:
    def no_number(_: str) -> None:
        log.warn("json-repaired", lenient.REPAIRS["number"], number)

    return json.JSONDecoder(object_pairs_hook=Pairs(log, number), parse_constant=no_number)


class Pairs:
    """Builds objects like `dict` and notes a key that comes twice, of which the last counts."""

    def __init__(self, log: ProblemLog, number: int) -> None:
        self._log, self._number = log, number

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """The object of these pairs."""
        found = dict(pairs)
        if len(found) < len(pairs):
            text = "An object has the same key twice; the last one counts."
            self._log.warn("duplicate-key", text, self._number)
        return found


def reason(error: Exception) -> str:
    """Why a text is not JSON, in words without a place, so that equal reasons count together."""
    if isinstance(error, RecursionError):
        return "brackets are nested too deep"
    said = getattr(error, "reason", "") or str(error)
    if isinstance(error, lenient.Broken):
        return str(said)
    if "digits" in said:
        return "a number has thousands of digits"
    return next((words for start, words in _REASONS.items() if said.startswith(start)), "it cannot be read")
