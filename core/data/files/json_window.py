"""A window that slides over a JSON text of any length: values are parsed where they stand, one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ollama_tune.core.data.files import lenient
from ollama_tune.core.data.files.json_lines import REPAIRABLE, Pairs, is_plain, reason
from ollama_tune.core.data.problems import ProblemLog

LONGEST = 2**27
"""Characters of one entry; a longer one is set aside."""

PATIENCE = 1000
"""Broken entries in a row before the rest of a file is given up."""

_NEAR = 16
"""Characters before the end of the window in which an error may only mean that a value goes on."""

_BLANK = re.compile(r"[ \t\r\n\ufeff]*")
_FIRST_KEY = re.compile(r"\{\s*(\"(?:[^\"\\]|\\.){1,80}\")\s*:")
_LINE_START = re.compile(r"\n([ \t]*)\Z")
_CLOSED = re.compile(r"\][\s\]}]*\Z")
_ANY_START = re.compile(r",\s*(?=[{\[])")


class CutOff(lenient.Broken):
    """The text ends in the middle of a value."""


class Window:
    """The part of the text that is in memory; `at` is where the next value or bracket is read."""

    def __init__(self, chunks: Iterator[str], log: ProblemLog) -> None:
        self._chunks = chunks
        self._log = log
        self.text = ""
        self.at = 0
        self._ended = False
        self._line, self._counted = 1, 0
        self._failures = 0
        self._decoder = json.JSONDecoder(parse_constant=self._no_number)

    def _no_number(self, _: str) -> None:
        self._log.warn("json-repaired", lenient.REPAIRS["number"], self.line())

    def line(self, at: int | None = None) -> int:
        """The line number of a place in the window, of the current one without."""
        at = self.at if at is None else at
        if at < self._counted:
            return self._line - self.text.count("\n", at, self._counted)
        self._line += self.text.count("\n", self._counted, at)
        self._counted = at
        return self._line

    def more(self) -> bool:
        """Forget what was read and take in as much again as is left, so that long values cost linear time."""
        self._line, self._counted = self.line(), 0
        parts = [self.text[self.at :]]
        wanted = len(parts[0])
        while wanted >= 0 and not self._ended:
            chunk = next(self._chunks, None)
            if chunk is None:
                self._ended = True
            else:
                parts.append(chunk)
                wanted -= max(len(chunk), 1)
        self.text, self.at = "".join(parts), 0
        return len(parts) > 1

    def peek(self) -> str:
        """The next character that is no blank or comment; empty at the end."""
        while True:
            self.at = _BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at >= len(self.text):
                if not self.more():
                    return ""
            elif self.text[self.at] in "/#" and (end := self._comment_end()) >= 0:
                self.at = end
            else:
                return self.text[self.at]

    def _comment_end(self) -> int:
        block = self.text.startswith("/*", self.at)
        end = self.text.find("*/" if block else "\n", self.at)
        return end + 2 if block and end >= 0 else end

    def take(self, character: str) -> bool:
        """Step over a character if it is the next one."""
        found = self.peek() == character
        self.at += found
        return found

    def value(self) -> Any:
        """The value here, repaired where it must be.

        Raises `lenient.Broken` with the reason, or `CutOff` where the text ends before the value does.
        """
        self.peek()
        while True:
            parsed = self._parsed()
            if parsed is not None and (parsed[1] < len(self.text) or self._ended):
                value, self.at = parsed
                self._failures = 0
                return value
            if len(self.text) - self.at > LONGEST:
                raise lenient.Broken("an entry is too long", self.at)
            self.more()

    def _parsed(self) -> tuple[Any, int] | None:
        """The value and its end; None where the window must grow first."""
        try:
            value, end = self._decoder.raw_decode(self.text, self.at)
        except RecursionError as error:
            raise lenient.Broken(reason(error), self.at) from error
        except ValueError as error:
            said = getattr(error, "msg", "")
            if self._may_go_on(getattr(error, "pos", 0), said.startswith("Unterminated")):
                return None
            return self._repaired(error)
        if not is_plain(self.text.count('":', self.at, end), value):
            hook = Pairs(self._log, self.line())
            value = json.loads(self.text[self.at : end], object_pairs_hook=hook)
        return value, end

    def _may_go_on(self, at: int, unclosed: bool) -> bool:
        return not self._ended and (unclosed or at > len(self.text) - _NEAR)

    def _repaired(self, first: ValueError) -> tuple[Any, int] | None:
        text = self.text[self.at : self.at + REPAIRABLE]
        try:
            value, end, repairs = lenient.parse(text)
        except lenient.Broken as error:
            place = error.at + self.at
            if len(text) == REPAIRABLE:
                raise lenient.Broken(reason(first), getattr(first, "pos", self.at)) from first
            if self._may_go_on(place, error.reason == lenient.UNCLOSED):
                return None
            kind = CutOff if error.reason == lenient.ENDS else lenient.Broken
            raise kind(error.reason, place) from first
        for repair in sorted(repairs):
            self._log.warn("json-repaired", lenient.REPAIRS[repair], self.line())
        return value, self.at + end

    def elements(self) -> Iterator[tuple[int, Any]]:
        """The values of a list whose bracket was just read, with their lines; a broken one costs itself."""
        start: re.Pattern[str] | None = None
        while (first := self.peek()) and first != "]":
            start = start or self._start()
            line = self.line()
            try:
                value = self.value()
            except lenient.Broken as error:
                if not self.recover(error, start):
                    break
                continue
            yield line, value
            if not self._separated() and not self.recover(
                lenient.Broken("a comma is missing between two entries", self.at), start
            ):
                break
        if not self.take("]"):
            self.cut_off()

    def members(self) -> Iterator[str]:
        """The keys of an object whose bracket was just read; after each the caller takes the value.

        Raises `lenient.Broken` where the object is none.
        """
        while (first := self.peek()) and first != "}":
            key = self.value()
            if not isinstance(key, str) or not self.take(":"):
                raise lenient.Broken("a colon is missing after a key", self.at)
            yield key
            self._separated()
        if not self.take("}"):
            self.cut_off()

    def cut_off(self) -> None:
        """Note that the file ends too early."""
        text = "The file is cut off, or a bracket in it is never closed; what stands before was read."
        self._log.warn("cut-off", text, self.line())

    def recover(self, error: lenient.Broken, start: re.Pattern[str]) -> bool:
        """Set aside the entry here and go on where the next one seems to start; False when there is none."""
        text = f"An entry is not valid JSON: {error.reason}."
        self._log.set_aside("bad-line", text, self.line(min(max(error.at, self.at), len(self.text))))
        self._failures += 1
        if self._failures > PATIENCE:
            text = "The rest of the file is not JSON; it was given up."
            self._log.warn("gave-up", text, self.line())
            return False
        self.at += 1
        while True:
            found = start.search(self.text, self.at)
            if found:
                self.at = found.end()
                return True
            self.at = max(self.at, len(self.text) - 256)
            if not self.more():
                closed = _CLOSED.search(self.text)
                self.at = closed.start() if closed else len(self.text)
                return False

    def _separated(self) -> bool:
        """Step over the comma after an entry; False where something foreign stands there instead."""
        if self.take(",") or self.peek() in ("", "]", "}"):
            return True
        if self.peek() not in ("{", "["):
            return False
        self._log.warn("json-repaired", lenient.REPAIRS["comma"], self.line())
        return True

    def _start(self) -> re.Pattern[str]:
        """How entries begin: on a line of their own and as far in as the first, else with its first key."""
        margin = _LINE_START.search(self.text[max(self.at - 80, 0) : self.at])
        if margin:
            return re.compile(rf"\n{margin.group(1)}(?=[{{\[])")
        key = _FIRST_KEY.match(self.text, self.at)
        return re.compile(rf"(?=\{{\s*{re.escape(key.group(1))}\s*:)") if key else _ANY_START
