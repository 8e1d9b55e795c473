"""Finds where a chat template puts each message's text, by rendering it with invisible marks around it.

The marked rendering is believed only if it is the plain one once the marks are taken out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from ollama_tune.core.data.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError

_PLANES = (0xF0000, 0x100000)
"""Private use planes 15 and 16: no text needs them, and no template treats them as anything."""
_MOST_MESSAGES = 0x7FFE
_TAG = re.compile(r"(</?[\w|:.-]{1,40}>|<\|[^<>|\s]{1,40}\|>|\[/?[A-Z_]{1,20}\])")
"""What templates look for inside a text (`</think>`, `[INST]`); marks are kept out of these."""


@dataclass(frozen=True)
class Extent:
    """A message's text in the rendering is [start, end); other texts end at `before` and begin at `after`.

    `mark` is where its first mark stood: after the blanks and tags at its start.
    """

    before: int
    start: int
    mark: int
    end: int
    after: int


def refusal(why: str, details: str = "") -> TuneError:
    """The error that sets a row aside."""
    return TuneError(
        f"In this row the answers cannot be told from the rest exactly. {why}",
        "The row is left out; choose another model if this happens often.",
        details=details,
    )


class _Marks:
    """Two characters a message from a private plane that the conversation itself does not use."""

    def __init__(self, messages: Sequence[Message]) -> None:
        text = "".join(message.content for message in messages)
        if len(messages) > _MOST_MESSAGES:
            raise refusal("It has too many messages.")
        for plane in _PLANES:
            self.plane = plane
            self.pattern = re.compile(f"[{chr(plane)}-{chr(plane + 2 * _MOST_MESSAGES + 1)}]")
            if text.isascii() or not self.pattern.search(text):
                return
        raise refusal("Its text holds characters of both private Unicode planes.")

    def around(self, text: str, number: int) -> str:
        """The text with marks inside its outer blanks; a blank text stays as it is."""
        core = text.strip()
        if not core:
            return text
        start = text.index(core)
        opening, closing = chr(self.plane + 2 * number), chr(self.plane + 2 * number + 1)
        return f"{text[:start]}{opening}{core}{closing}{text[start + len(core) :]}"

    def around_pieces(self, text: str, number: int) -> str:
        """Marks around every piece between tags, so that a template still finds the tags."""
        pieces = _TAG.split(text)
        return "".join(piece if i % 2 else self.around(piece, number) for i, piece in enumerate(pieces))

    def runs(self, marked: str) -> list[tuple[int, list[int]]]:
        """Message number and positions in the text without marks, of neighbouring marks of one message."""
        found = [
            ((ord(match[0]) - self.plane) // 2, match.start() - count)
            for count, match in enumerate(self.pattern.finditer(marked))
        ]
        return [(number, [at for _, at in run]) for number, run in groupby(found, key=lambda mark: mark[0])]


def find_extents(chat: ChatFormat, messages: Sequence[Message], plain: str) -> dict[int, Extent]:
    """Where each message's text stands in `plain`, the rendering of `messages`; by message number.

    Texts that the template leaves out are missing. Raises `TuneError` where that is true of an
    answer, or where no way of marking leaves the rendering unchanged.
    """
    marks = _Marks(messages)
    differences = []
    tagged = any(_TAG.search(message.content) for message in messages)
    for mark in (marks.around_pieces, marks.around) if tagged else (marks.around,):
        found, difference = _try(chat, messages, plain, marks, mark)
        if found is not None:
            return found
        differences.append(difference)
    raise refusal("The chat template changes, repeats or leaves out a text of it.", "\n".join(differences))


def _try(
    chat: ChatFormat,
    messages: Sequence[Message],
    plain: str,
    marks: _Marks,
    mark: Callable[[str, int], str],
) -> tuple[dict[int, Extent] | None, str]:
    contents = [mark(message.content, number) for number, message in enumerate(messages)]
    marked = chat.render([replace(m, content=content) for m, content in zip(messages, contents, strict=True)])
    if marks.pattern.sub("", marked) != plain:
        return None, f"{plain!r} became {marked!r}"
    runs = marks.runs(marked)
    extents: dict[int, Extent] = {}
    for index, (number, places) in enumerate(runs):
        if number in extents or len(places) > len(marks.pattern.findall(contents[number])):
            return None, f"message {number} stands twice in {marked!r}"
        before = runs[index - 1][1][-1] if index else 0
        after = runs[index + 1][1][0] if index + 1 < len(runs) else len(plain)
        head, tail = _outside(contents[number], marks.pattern)
        start = next(places[0] - len(p) for p in (head, head.lstrip(), "") if plain.endswith(p, 0, places[0]))
        end = next(places[-1] + len(p) for p in (tail, tail.rstrip(), "") if plain.startswith(p, places[-1]))
        extents[number] = Extent(before, start, places[0], end, after)
    missing = [i for i, m in enumerate(messages) if m.role == "assistant" and i not in extents]
    return (None, f"answer {missing[0]} is missing in {marked!r}") if missing else (extents, "")


def _outside(content: str, pattern: re.Pattern[str]) -> tuple[str, str]:
    """The unmarked beginning and end of a marked text: blanks and tags."""
    parts = pattern.split(content)
    return parts[0], parts[-1]
