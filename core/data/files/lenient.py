"""Reads what was meant to be JSON: Python's notation, trailing commas, comments, control characters."""

from __future__ import annotations

import re
from typing import Any

DEEPEST = 200
"""Brackets within brackets; a row that nests deeper is no row of a data set."""

_BLANK = re.compile(r"[ \t\r\n\ufeff]*")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/|#[^\n]*", re.DOTALL)
_STRINGS = {
    quote: re.compile(rf"[ubUB]?{quote}([^{quote}\\]*(?:\\.[^{quote}\\]*)*){quote}", re.DOTALL)
    for quote in "\"'"
}
_OPENED = re.compile(r"[ubUB]?([\"'])")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|U00[01][0-9a-fA-F]{5}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0", "\n": ""}
_CONTROL = re.compile(r"[\x00-\x1f]")
_NUMBER = re.compile(r"[+-]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_WORD = re.compile(r"[+-]?[A-Za-z_$][\w$]*")
_ARRAY = re.compile(r"array\(\s*")
_ARRAY_END = re.compile(r"\s*(?:,\s*dtype=[^)]*)?\)")
_JSON_WORDS: dict[str, Any] = {"null": None, "true": True, "false": False}
_PYTHON_WORDS: dict[str, Any] = {"None": None, "True": True, "False": False}
_NUMBER_WORDS: dict[str, Any] = dict.fromkeys(
    ("NaN", "nan", "undefined", *(sign + word for sign in ("", "+", "-") for word in ("Infinity", "inf")))
)
_WORDS = (("", _JSON_WORDS), ("python", _PYTHON_WORDS), ("number", _NUMBER_WORDS))

REPAIRS = {
    "python": "A line is written as Python writes it, not as JSON; it was read all the same.",
    "comma": "A line has a comma too many or too few for JSON; it was read all the same.",
    "comment": "A line holds a comment, which JSON does not know; it was left out.",
    "control": "A text holds raw control characters, which JSON forbids; they were kept.",
    "number": "NaN or Infinity stands where JSON has no such number; it was read as no value.",
}
"""What a repair means, in a sentence for the log."""


ENDS = "it ends in the middle"
UNCLOSED = "a text is opened and never closed"


class Broken(ValueError):
    """Why a text cannot be read even with good will: a reason in words, and where in the text."""

    def __init__(self, reason: str, at: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.at = at


def parse(text: str, at: int = 0, *, cut_off: bool = False) -> tuple[Any, int, frozenset[str]]:
    """The value that starts at `at`, where it ends, and the `REPAIRS` it took.

    With `cut_off` the text may end anywhere: what is open there is taken as closed. Raises `Broken`. The
    time is linear in the length of the text, and nothing in it is ever evaluated.
    """
    parser = _Parser(text, cut_off)
    value, end = parser.value(at, 0)
    return value, end, frozenset(parser.repairs)


class _Parser:
    def __init__(self, text: str, cut_off: bool) -> None:
        self.text = text
        self.cut_off = cut_off
        self.repairs: set[str] = set()

    def value(self, at: int, depth: int) -> tuple[Any, int]:
        if depth > DEEPEST:
            raise Broken(f"brackets are nested deeper than {DEEPEST}", at)
        at = self.skip(at)
        first = self.text[at : at + 1]
        if not first:
            return self.ended(at)
        if first == "{":
            return self.members(at + 1, depth)
        if first in "[(":
            return self.elements(at + 1, "]" if first == "[" else ")", depth)
        if _OPENED.match(self.text, at):
            return self.string(at)
        if found := _ARRAY.match(self.text, at):
            return self.array(found.end(), depth)
        return self.scalar(at)

    def skip(self, at: int) -> int:
        """Past blanks and comments."""
        while True:
            at = _BLANK.match(self.text, at).end()  # type: ignore[union-attr]
            found = _COMMENT.match(self.text, at)
            if not found:
                return at
            self.repairs.add("comment")
            at = found.end()

    def ended(self, at: int) -> tuple[Any, int]:
        if self.cut_off:
            return None, at
        raise Broken(ENDS, at)

    def members(self, at: int, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        while True:
            at = self.skip(at)
            if at >= len(self.text):
                self.ended(at)
                return found, at
            if self.text[at] == "}":
                return found, at + 1
            key, at = self.key(at)
            at = self.skip(at)
            if self.text[at : at + 1] == ":":
                found[key], at = self.value(at + 1, depth + 1)
            elif at < len(self.text):
                raise Broken("a colon is missing after a key", at)
            at = self.separator(at, "}")

    def key(self, at: int) -> tuple[str, int]:
        if _OPENED.match(self.text, at):
            return self.string(at)
        found = _NUMBER.match(self.text, at) or _WORD.match(self.text, at)
        if not found:
            raise Broken("a key is missing", at)
        self.repairs.add("python")
        return found.group(), found.end()

    def elements(self, at: int, closing: str, depth: int) -> tuple[list[Any], int]:
        found: list[Any] = []
        if closing == ")":
            self.repairs.add("python")
        while True:
            at = self.skip(at)
            if at >= len(self.text):
                self.ended(at)
                return found, at
            if self.text[at] == closing:
                return found, at + 1
            value, at = self.value(at, depth + 1)
            found.append(value)
            at = self.separator(at, closing)

    def separator(self, at: int, closing: str) -> int:
        """Past a comma; before the closing bracket one is too many, and after an object it may be missing."""
        before = self.text[at - 1 : at]
        at = self.skip(at)
        following = self.text[at : at + 1]
        if following == ",":
            at = self.skip(at + 1)
            if self.text[at : at + 1] == closing and closing != ")":
                self.repairs.add("comma")
        elif following and following != closing:
            if closing == "}" or before not in "}]":
                raise Broken("a comma is missing, or a quote inside a text is not escaped", at)
            self.repairs.add("comma")
        return at

    def string(self, at: int) -> tuple[str, int]:
        quote = _OPENED.match(self.text, at).group(1)  # type: ignore[union-attr]
        found = _STRINGS[quote].match(self.text, at)
        if not found:
            if not self.cut_off:
                raise Broken(UNCLOSED, at)
            return self.text[at + 1 :], len(self.text)
        if quote == "'" or self.text[at] != quote:
            self.repairs.add("python")
        inside = found.group(1)
        if _CONTROL.search(inside):
            self.repairs.add("control")
        return unescaped(inside), found.end()

    def array(self, at: int, depth: int) -> tuple[Any, int]:
        """What numpy writes: `array([...], dtype=object)`."""
        self.repairs.add("python")
        value, at = self.value(at, depth + 1)
        found = _ARRAY_END.match(self.text, at)
        if found:
            return value, found.end()
        if at >= len(self.text):
            return self.ended(at)[0] or value, at
        raise Broken("a bracket is opened and never closed", at)

    def scalar(self, at: int) -> tuple[Any, int]:
        if word := _WORD.match(self.text, at):
            for repair, words in _WORDS:
                if word.group() in words:
                    self.repairs.update([repair] if repair else [])
                    return words[word.group()], word.end()
            if self.cut_off and word.end() == len(self.text):
                return None, word.end()
        elif number := _NUMBER.match(self.text, at):
            return self.number(number.group(), at), number.end()
        raise Broken("a value is missing, or a text without quotes", at)

    def number(self, digits: str, at: int) -> int | float:
        try:
            return int(digits)
        except ValueError:
            pass
        if digits.lstrip("+-").replace("_", "").isdigit():
            raise Broken("a number has thousands of digits", at)
        return float(digits.replace("_", ""))


def unescaped(text: str) -> str:
    """The inside of a JSON or Python string with its escapes resolved."""
    if "\\" not in text:
        return text
    text = _ESCAPE.sub(_character, text)
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return text


def _character(found: re.Match[str]) -> str:
    code = found.group(1)
    if len(code) == 1:
        return _ESCAPES.get(code, code)
    value = int(code[1:], 16)
    return chr(value) if value < 0x110000 else "\ufffd"
