"""Counts what a chat template costs while it renders: a program from the internet must end, and stay small.

Loops, calls, and the size of all they make are charged to a budget, the size before it is made where it may
be large. What takes no argument of size and makes nothing larger than it was given costs a step.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

MOST_TEXT = 2**27
"""Characters that one rendering may make in all, each intermediate text counted."""
TEXT_A_CHARACTER = 64
"""So many more for each character of the conversation."""
MOST_STEPS = 10_000_000
MOST_LOOPS = 1_000_000
"""Values that `range` may give out in one rendering."""
LONGEST_PRODUCT = 1_000_000
"""Length of a text or list made by repeating, and the bits of a number."""
PATIENCE = 3.0
"""Seconds of CPU for one rendering; a quarter of it after each one that took too long."""
LEAST_PATIENCE = 0.05
_LOOK_EVERY = 256
_PERCENT = re.compile(r"%[-+ #0-9.]*(\*|\d{5})")
_BRACES = re.compile(r"\{[^{}]*(\{|\d{5})")
"""Places of a format with a width of five digits or more, or one that is only known while formatting."""


class ExhaustedError(Exception):
    """A template used up what one rendering may use."""


class Budget:
    """What is left of one rendering's time and memory."""

    def __init__(self) -> None:
        self._patience = PATIENCE
        self.begin(0)

    def begin(self, characters: int) -> None:
        """A new rendering, of a conversation of so many characters."""
        self._steps = self._looked = self._loops = 0
        self._text = MOST_TEXT + TEXT_A_CHARACTER * characters
        self._end = time.thread_time() + self._patience

    def step(self, cost: int = 1) -> None:
        """One operation, or as many as `cost` tells."""
        self._steps += cost
        if self._steps > self._looked + _LOOK_EVERY:
            self._looked = self._steps
            if self._steps > MOST_STEPS or time.thread_time() > self._end:
                self._patience = max(self._patience / 4, LEAST_PATIENCE)
                raise ExhaustedError("the template loops too often or takes too long")

    def make(self, characters: int) -> None:
        """A text or list of that length, before it is made where it may be large."""
        self._text -= characters
        if self._text < 0:
            raise ExhaustedError("the template prints without end, or repeats a text too often")
        self.step(1 + (characters >> 10))

    def loop(self, count: int) -> None:
        """So many values of a range."""
        self._loops += count
        if self._loops > MOST_LOOPS:
            raise ExhaustedError("the template loops too often")

    def each(self, values: Iterable[Any]) -> Iterator[Any]:
        """The values, each of them a step."""
        for value in values:
            self.step()
            yield value

    def made(self, value: Any) -> Any:
        """The value, its size charged."""
        if isinstance(value, str):
            self.make(len(value))
        elif isinstance(value, (list, tuple)):
            self.make(8 * len(value))
        return value

    def weighed(self, value: Any) -> Any:
        """The value, unless all that is in it is too much to print; what is in it twice counts twice."""
        if isinstance(value, str):
            self.make(len(value))
        elif value.__class__ not in (int, bool, float, type(None)):
            if self._weight(value, {}) > self._text:
                raise ExhaustedError("the template repeats a text too often")
            self.step()
        return value

    def _weight(self, value: Any, known: dict[int, int]) -> int:
        if isinstance(value, str):
            return len(value) + 8
        inner = _inner(value)
        if inner is None:
            return 8
        if id(value) not in known:
            known[id(value)] = 8
            known[id(value)] = 8 + sum(self._weight(item, known) for item in inner)
        return known[id(value)]


def _inner(value: Any) -> Iterable[Any] | None:
    from jinja2.utils import Namespace

    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, Namespace):
        attributes: dict[str, Any] = object.__getattribute__(value, "_Namespace__attrs")
        return attributes.values()
    return value if isinstance(value, (list, tuple, set, frozenset)) else None


def listed(arguments: Iterable[Any]) -> tuple[Any, ...]:
    """The arguments, those that can be read only once as lists: they are looked at before they are used."""
    return tuple(list(value) if isinstance(value, Iterator) else value for value in arguments)


def _length(value: Any) -> int:
    """The length of a text, or of what is counted by number; 0 for anything else."""
    if isinstance(value, str):
        return len(value)
    return abs(value) if isinstance(value, int) else 0


def _replaced(text: Any, old: Any = "", new: Any = "", *_: Any) -> int:
    text, old = str(text), str(old)
    return len(text) + (text.count(old) if old else len(text) + 1) * len(str(new))


def _indented(text: Any, width: Any = 4, *_: Any) -> int:
    return len(str(text)) + (str(text).count("\n") + 1) * _length(width)


def joined(values: Any, between: Any = "", *_: Any) -> int:
    """The size of texts put together; those that are read from a stream have to be `listed` before."""
    if not isinstance(values, Sequence):
        return 0
    return len(values) * len(str(between)) + sum(_length(value) for value in values if isinstance(value, str))


def _joined_by(between: Any, values: Any = (), *_: Any) -> int:
    return joined(values, between)


def _padded(text: Any, width: Any = 80, *_: Any) -> int:
    return len(str(text)) + _length(width)


def _counted(_values: Any, count: Any = 0, *_: Any) -> int:
    return 8 * _length(count)


def formatted(text: Any, *arguments: Any, **named: Any) -> int:
    """The most that formatting by `%` or by `format` can make; refused with a width that may be any."""
    form = str(text)
    if _PERCENT.search(form) or _BRACES.search(form.replace("{{", "").replace("}}", "")):
        raise ExhaustedError("the template repeats a text too often")
    longest = max((_printed(value) for value in [*arguments, *named.values()]), default=0)
    return len(form) + (form.count("%") + form.count("{")) * (64 + longest)


def _printed(value: Any) -> int:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return sum(map(_printed, value))
    return len(value) if isinstance(value, str) else 0


def _tabbed(text: Any, size: Any = 8) -> int:
    return len(str(text)) + str(text).count("\t") * _length(size)


def _as_json(_value: Any, _ascii: Any = False, indent: Any = None, *_: Any, **named: Any) -> int:
    return 1000 * _length(named.get("indent", indent))


FILTER_SIZES: Mapping[str, Callable[..., int]] = {
    "replace": _replaced,
    "indent": _indented,
    "join": joined,
    "center": _padded,
    "truncate": _padded,
    "batch": _counted,
    "slice": _counted,
    "format": formatted,
    "tojson": _as_json,
}
"""How large the result of a filter may be, told from its arguments; the others make nothing larger."""
METHOD_SIZES: Mapping[str, Callable[..., int]] = {
    "replace": _replaced,
    "join": _joined_by,
    "center": _padded,
    "ljust": _padded,
    "rjust": _padded,
    "zfill": _padded,
    "expandtabs": _tabbed,
}
"""The same for methods of texts; those are given no named arguments, but `replace` its count."""


def binop_size(operator: str, left: Any, right: Any) -> int:
    """The size of the result of `*`, `**`, `+` or `%`, 0 for that of mere numbers."""
    if operator == "+":
        return (
            len(left) + len(right)
            if isinstance(left, (str, list, tuple)) and hasattr(right, "__len__")
            else 0
        )
    if operator == "%":
        arguments = right if isinstance(right, tuple) else (right,)
        return formatted(left, *arguments) if isinstance(left, str) else 0
    for text, times in ((left, right), (right, left)):
        if operator == "*" and isinstance(text, (str, list, tuple)) and isinstance(times, int):
            return _limited(len(text) * max(times, 0))
    if operator == "**" and isinstance(right, int):
        _limited((left.bit_length() if isinstance(left, int) else 64) * abs(right))
    elif operator == "*" and isinstance(left, int) and isinstance(right, int):
        _limited(left.bit_length() + right.bit_length())
    return 0


def _limited(size: int) -> int:
    if size > LONGEST_PRODUCT:
        raise ExhaustedError("the template repeats a text too often")
    return size
