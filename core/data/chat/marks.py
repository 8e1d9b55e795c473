"""Finds where a chat template puts each message's texts, by rendering it with marks around them.

The marked rendering is believed only if it is the plain one once the marks are taken out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message, ToolCall
from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import common_prefix

REASONING, CONTENT, CALLS = range(3)
"""The kinds of texts of a message, in the order in which templates print them."""
_PLANES = (0xF0000, 0x100000)
"""Private use planes 15 and 16: no text needs them, and no template treats them as anything."""
_MOST_UNITS = 0x7FFE
_TAG = re.compile(r"(</?[\w|:.-]{1,40}>|<\|[^<>|\s]{1,40}\|>|\[/?[A-Z_]{1,20}\])")
"""What templates look for inside a text (`</think>`, `[INST]`); marks are kept out of these."""
_DIFFERENCE = 60
"""Characters shown on either side of the first difference of two renderings."""


@dataclass(frozen=True)
class Extent:
    """Texts of one message in the rendering: [start, end); other messages' end at `before`, begin at `after`.

    `mark` is where its first mark stood: after the blanks and tags at its start.
    """

    before: int
    start: int
    mark: int
    end: int
    after: int


@dataclass(frozen=True)
class Places:
    """The extents of each message, several where other messages stand between its texts.

    `lost` has (message number, kind of text) for every text that is left out, wholly or in part.
    """

    extents: dict[int, tuple[Extent, ...]]
    lost: frozenset[tuple[int, int]]


def refusal(why: str, details: str = "") -> TuneError:
    """The error that sets a row aside."""
    return TuneError(
        f"In this row the answers cannot be told from the rest exactly. {why}",
        "The row is left out; choose another model if this happens often.",
        details=details,
    )


@dataclass(frozen=True)
class _Alphabet:
    """How a mark is written: `pattern` finds any; `written` makes the opening or closing one of a unit.

    A unit is one text: message number * 3 + kind.
    """

    pattern: re.Pattern[str]
    written: Callable[[int, bool], str]
    read: Callable[[str], int]


def _private(texts: str) -> _Alphabet | None:
    """Two characters a unit from a private plane that the conversation itself does not use."""
    for plane in _PLANES:
        pattern = re.compile(f"[{chr(plane)}-{chr(plane + 2 * _MOST_UNITS + 1)}]")
        if texts.isascii() or not pattern.search(texts):
            return _Alphabet(
                pattern,
                lambda unit, closing, plane=plane: chr(plane + 2 * unit + closing),  # type: ignore[misc]
                lambda mark, plane=plane: (ord(mark) - plane) // 2,  # type: ignore[misc]
            )
    return None


def _ascii(texts: str) -> _Alphabet:
    """A word with the unit's number, which comes through `tojson` and the like unchanged."""
    key = next(key for key in (f"Zq{number}k" for number in range(len(texts) + 1)) if key not in texts)
    return _Alphabet(
        re.compile(f"{key}_([0-9]+)[ab]z"),
        lambda unit, closing: f"{key}_{unit}{'ab'[closing]}z",
        lambda mark: int(mark[len(key) + 1 : -2]),
    )


@dataclass(frozen=True)
class _Mode:
    """A way of marking: around every piece between tags or the whole, calls' names too, or only the ends."""

    pieces: bool = False
    names: bool = False
    opening: bool = True


_MODES = (_Mode(pieces=True, names=True), _Mode(pieces=True), _Mode(), _Mode(opening=False))
"""Full, tags, outer, end."""


class _Marker:
    """Writes the marks of one mode into messages."""

    def __init__(self, alphabet: _Alphabet, mode: _Mode) -> None:
        self.alphabet, self.mode = alphabet, mode

    def message(self, message: Message, number: int) -> Message:
        """The message with marks in all its texts but those that name something."""
        unit = 3 * number
        return replace(
            message,
            content=self._text(message.content, unit + CONTENT),
            reasoning=self._text(message.reasoning, unit + REASONING),
            tool_calls=tuple(self._call(call, unit + CALLS) for call in message.tool_calls),
        )

    def _call(self, call: ToolCall, unit: int) -> ToolCall:
        name = self._around(call.name, unit) if self.mode.names else call.name
        return replace(call, name=name, arguments=json.dumps(self._tree(json.loads(call.arguments), unit)))

    def _tree(self, value: Any, unit: int) -> Any:
        if isinstance(value, str):
            return self._around(value, unit)
        if isinstance(value, list):
            return [self._tree(item, unit) for item in value]
        if isinstance(value, dict):
            names = self.mode.names
            return {self._around(k, unit) if names else k: self._tree(v, unit) for k, v in value.items()}
        return value

    def _text(self, text: str, unit: int) -> str:
        """Marks around every piece between tags, so that a template still finds the tags."""
        if not self.mode.pieces or ("<" not in text and "[" not in text):
            return self._around(text, unit)
        pieces = _TAG.split(text)
        return "".join(piece if i % 2 else self._around(piece, unit) for i, piece in enumerate(pieces))

    def _around(self, text: str, unit: int) -> str:
        """The text with marks inside its outer blanks; a blank text stays as it is."""
        core = text.strip()
        if not core:
            return text
        start = text.index(core)
        opening = self.alphabet.written(unit, False) if self.mode.opening else ""
        return f"{text[:start]}{opening}{core}{self.alphabet.written(unit, True)}{text[start + len(core) :]}"


def find_places(chat: ChatFormat, messages: Sequence[Message], plain: str, tools: str = "") -> Places:
    """Where the texts of each message stand in `plain`, the rendering of `messages` with `tools`.

    Raises `TuneError` where no way of marking leaves the rendering unchanged, or where an answer that is
    to be learned is left out or printed twice.
    """
    if 3 * len(messages) > _MOST_UNITS:
        raise refusal("It has too many messages.")
    differences = []
    for marker, marked in _markings(chat, messages):
        try:
            rendered = chat.render(marked, tools=tools)
        except TuneError as error:
            differences.append(error.what)
            continue
        bare = marker.alphabet.pattern.sub("", rendered)
        if bare != plain:
            differences.append(first_difference(plain, bare))
            continue
        found, wrong = _read(marker, messages, marked, rendered)
        if found is not None:
            return found
        differences.append(wrong)
    why = f" {differences[0]}" if differences else ""
    raise refusal(
        f"The chat template changes, repeats or leaves out a text of it.{why}", "\n".join(differences)
    )


def first_difference(plain: str, other: str) -> str:
    """Where a text and the same one with marks part, in words."""
    at = common_prefix(plain, other)
    wanted, got = (text[max(at - 10, 0) : at + _DIFFERENCE] for text in (plain, other))
    return f"At character {at:,} it prints {wanted!r}, and {got!r} once the texts are marked."


def _markings(chat: ChatFormat, messages: Sequence[Message]) -> Iterator[tuple[_Marker, list[Message]]]:
    """Every different way of marking, the most telling first."""
    texts = "".join(_texts(messages))
    tried: list[list[Message]] = []
    for make in (_private, _ascii):
        alphabet = make(texts if make is _private else texts + chat.template)
        if alphabet is None:
            continue
        for mode in _MODES:
            marker = _Marker(alphabet, mode)
            marked = [marker.message(message, number) for number, message in enumerate(messages)]
            if marked not in tried:
                tried.append(marked)
                yield marker, marked


def _texts(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        yield message.content
        yield message.reasoning
        for call in message.tool_calls:
            yield call.name
            yield json.dumps(json.loads(call.arguments), ensure_ascii=False)


def _read(
    marker: _Marker, messages: Sequence[Message], marked: Sequence[Message], rendered: str
) -> tuple[Places | None, str]:
    """What the marks of a rendering say; with a reason where they cannot be used."""
    alphabet = marker.alphabet
    found, gone = [], 0
    for match in alphabet.pattern.finditer(rendered):
        found.append((alphabet.read(match[0]), match.start() - gone))
        gone += len(match[0])
    printed = Counter(unit for unit, _ in found)
    written = Counter(unit for message in marked for unit in _units(alphabet, message))
    extents = _extents(marker, messages, marked, alphabet.pattern.sub("", rendered), found)
    for number, message in enumerate(messages):
        units = range(3 * number, 3 * number + 3)
        if message.role != "assistant":
            continue
        if any(printed[unit] > written[unit] for unit in units):
            return None, f"Message {number + 1}, an answer, stands twice in it."
        if number not in extents and message.train:
            calls = " with its calls of tools" if message.tool_calls else ""
            return None, f"Message {number + 1}, an answer, is left out{calls}."
        if not marker.mode.opening and any(extent.start == extent.end for extent in extents.get(number, ())):
            return None, f"The beginning of message {number + 1} is not to be found in it."
    lost = frozenset(divmod(unit, 3) for unit, count in written.items() if printed[unit] < count)
    return Places(extents, lost), ""


def _extents(
    marker: _Marker,
    messages: Sequence[Message],
    marked: Sequence[Message],
    plain: str,
    found: Sequence[tuple[int, int]],
) -> dict[int, tuple[Extent, ...]]:
    """From (unit, place) of each mark, in order: a run of one message's marks is one extent."""
    runs = [(number, list(run)) for number, run in groupby(found, key=lambda mark: mark[0] // 3)]
    extents: dict[int, tuple[Extent, ...]] = {}
    for index, (number, run) in enumerate(runs):
        before = runs[index - 1][1][-1][1] if index else 0
        after = runs[index + 1][1][0][1] if index + 1 < len(runs) else len(plain)
        (first, at), (last, to) = run[0], run[-1]
        heads: tuple[str, ...] = _heads(_outside(marker.alphabet, marked[number], first)[0])
        if not marker.mode.opening:
            heads = _unmarked(messages[number], first)
        tail = _outside(marker.alphabet, marked[number], last)[1]
        start = next(at - len(p) for p in (*heads, "") if plain.endswith(p, before, at))
        end = next(to + len(p) for p in (tail, tail.rstrip(), "") if plain.startswith(p, to, after))
        mark = at if marker.mode.opening else start
        extents[number] = (*extents.get(number, ()), Extent(before, start, mark, end, after))
    return extents


def _heads(head: str) -> tuple[str, str]:
    return head, head.lstrip()


def _units(alphabet: _Alphabet, message: Message) -> Iterator[int]:
    """The unit of each mark in a marked message."""
    texts = [message.content, message.reasoning]
    texts += [
        f"{call.name} {json.dumps(json.loads(call.arguments), ensure_ascii=False)}"
        for call in message.tool_calls
    ]
    for text in texts:
        for match in alphabet.pattern.finditer(text):
            yield alphabet.read(match[0])


def _outside(alphabet: _Alphabet, message: Message, unit: int) -> tuple[str, str]:
    """The unmarked beginning and end of the marked text of a unit: blanks and tags."""
    text = _unit_text(message, unit)
    marks = list(alphabet.pattern.finditer(text))
    return (text[: marks[0].start()], text[marks[-1].end() :]) if marks else ("", "")


def _unit_text(message: Message, unit: int) -> str:
    return (message.reasoning, message.content, "")[unit % 3]


def _unmarked(message: Message, unit: int) -> tuple[str, ...]:
    """The forms in which a text may stand before the mark at its end."""
    text = _unit_text(message, unit)
    return text.rstrip(), text.strip()
