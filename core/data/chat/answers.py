"""Decides, for any chat template, which characters of a rendered row are trained: what the model writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ollama_tune.core.data.chat.marks import (
    CALLS,
    CONTENT,
    REASONING,
    Extent,
    Places,
    find_places,
    refusal,
)
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import common_prefix

Span = tuple[int, int]

MOST_FORMS = 1000
_THOUGHT = re.compile(r"\s*<(think|thinking|reasoning|thought|seed:think)>(.*?)</\1>", re.DOTALL)
_OPENED = re.compile(r"<(think|thinking|reasoning|thought|seed:think)>\s*\Z")
"""A tag with which a prompt lets the model think first."""


_HALF = re.compile(r"[<\[][^<>\[\]\s]*\Z")
"""The beginning of a tag that does not end here."""


@dataclass(frozen=True)
class Answers:
    """A rendered row: the (start, end) of each stretch of `text` that is trained, and the kinds of `NOTES`.

    `exact` tells that every answer begins right after the very prompt that the model gets in use; where it
    is off, the beginning of some answer was found by the header before it.
    """

    text: str
    spans: tuple[Span, ...]
    notes: frozenset[str]
    exact: bool = True


def is_text(messages: Sequence[Message]) -> bool:
    """True for a row that is mere text: nothing is asked and nobody answers."""
    return len(messages) == 1 and messages[0].role in ("text", "assistant")


def find_answers(chat: ChatFormat, messages: Sequence[Message], tools: str = "") -> Answers:
    """Where each answer starts and ends, its end token included; `TuneError` when that is not certain.

    Answers with `train` off are context. `tools` is the JSON text of the tools, as in `Row`.
    """
    if is_text(messages):
        return _text(chat, messages[0].content)
    if not any(message.role == "assistant" for message in messages):
        raise refusal("It has no answer.")
    if not any(message.role == "assistant" and message.train for message in messages):
        raise refusal("None of its answers is to be learned.")
    return _Finder(chat, messages, tools).answers()


def _text(chat: ChatFormat, text: str) -> Answers:
    """Text as it is, between the marks of beginning and end that the model knows."""
    begin = chat.begin_text
    end = chat.eos_token or next(iter(chat.stop_texts), "")
    if not text.strip():
        raise refusal("It has no text.")
    notes = {"text-only"} if end else {"text-only", "no-eot"}
    whole = begin + text + end
    return Answers(whole, ((len(begin), len(whole)),), frozenset(notes))


@dataclass(frozen=True)
class _Quick:
    """Spans found without marks, and all that they rest on: what stands between the texts and the prompts."""

    spans: tuple[Span, ...]
    form: tuple[object, ...]


class _Finder:
    """One row's rendering, and the prompts before those of its answers that are to be learned."""

    def __init__(self, chat: ChatFormat, messages: Sequence[Message], tools: str) -> None:
        self.chat, self.messages, self.tools = chat, messages, tools
        self.plain = chat.render(messages, tools=tools)
        self.numbers = [i for i, m in enumerate(messages) if m.role == "assistant" and m.train]
        self.prompts = {number: self._prompt(number) for number in self.numbers}

    def _prompt(self, number: int) -> str | None:
        """What the model gets before it writes that answer, None where the template refuses to ask."""
        if number == 0:
            return None
        try:
            return self.chat.render(self.messages[:number], True, self.tools)
        except TuneError:
            return None

    def answers(self) -> Answers:
        """The quick way where the row has a form that was searched with marks before, else that search."""
        quick, known = self._quick(), self.chat.known_forms
        if quick is not None and quick.form in known:
            return Answers(self.plain, quick.spans, known[quick.form])
        found = _Search(self).answers()
        alike = quick is not None and (self.plain, quick.spans) == (found.text, found.spans)
        if quick is not None and alike and found.exact and len(known) < MOST_FORMS:
            known[quick.form] = found.notes
        return found

    def _quick(self) -> _Quick | None:
        """Answers of mere content that follow their prompts to the letter and end with an end token."""
        form: list[object] = [bool(self.tools)]
        spans, at = [], 0
        for number, message in enumerate(self.messages):
            core = message.content.strip()
            if number not in self.prompts:
                form.append((message.role, not core or core in self.plain))
                continue
            prompt = self.prompts[number] or ""
            if not core or not at <= len(prompt) or not self.plain.startswith(prompt) or not _mere(message):
                return None
            start = self.plain.find(core, len(prompt))
            end = self.chat.stop_pattern.search(self.plain, start + len(core)) if start >= 0 else None
            if end is None:
                return None
            outer = message.content.partition(core)
            lead = self.plain[len(prompt) : start].removesuffix(outer[0])
            gap = self.plain[start + len(core) : end.start()].removeprefix(outer[2])
            form.append((lead, gap, end[0]))
            at = end.end()
            spans.append((len(prompt), at))
        return _Quick(tuple(spans), (*form, self.plain[at:]))


def _mere(message: Message) -> bool:
    return not message.reasoning and not message.tool_calls


class _Search:
    """Finds the answers of a row by marks."""

    def __init__(self, row: _Finder) -> None:
        self.row, self.chat, self.plain = row, row.chat, row.plain
        self.places = find_places(row.chat, row.messages, row.plain, row.tools)
        self.notes: set[str] = set()
        self.unlike: set[int] = set()

    def answers(self) -> Answers:
        """Every stretch of text that is trained, and the notes."""
        spans: list[Span] = []
        for number in self.row.numbers:
            extents = self.places.extents[number]
            start = self._start(number, extents[0])
            starts = [start, *(extent.start for extent in extents[1:])]
            spans += [(at, self._end(number, extent)) for at, extent in zip(starts, extents, strict=True)]
            if len(extents) > 1:
                self.notes.add("interleaved")
        last = self.row.numbers[-1]
        text = self.plain
        if last == len(self.row.messages) - 1:
            text, spans[-1] = self._closed(spans[-1], self.places.extents[last][-1])
            text, spans = self._as_asked(text, spans, last)
        self.notes |= notes_on(self.chat, self.row.messages, self.row.tools, self.places)
        return Answers(text, tuple(spans), frozenset(self.notes), not self.unlike)

    def _start(self, number: int, extent: Extent) -> int:
        """Where the model begins to write: after the prompt it gets in use, if the text begins with that."""
        prompt = self.row.prompts[number]
        if prompt and self.plain.startswith(prompt) and extent.before <= len(prompt) <= extent.mark:
            return len(prompt)
        self.unlike.add(number)
        return _after_header(self.chat, self.plain, extent)

    def _end(self, number: int, extent: Extent) -> int:
        """The end of the first end token between the texts and the next ones, else of what always follows."""
        found = self.chat.stop_pattern.search(self.plain, extent.end, extent.after)
        if found:
            return found.end()
        messages = self.row.messages
        if number < len(messages) - 1 and extent is self.places.extents[number][-1]:
            self.notes.add("no-eot")
        if not messages[number].tool_calls:
            return extent.end
        try:
            alone = self.chat.render(messages[: number + 1], tools=self.row.tools)
        except TuneError:
            return extent.end
        if not alone.startswith(self.plain[: extent.end]):
            return extent.end
        tail = self.plain[extent.end : extent.after]
        return extent.end + len(_HALF.sub("", tail[: common_prefix(tail, alone[extent.end :])]).rstrip())

    def _closed(self, span: Span, extent: Extent) -> tuple[str, Span]:
        """The row with an end token after its last answer, where the template prints none."""
        if self.chat.stop_pattern.search(self.plain, extent.end, extent.after):
            return self.plain, span
        end = self.chat.eos_token or next(iter(self.chat.stop_texts), None)
        if end is None:
            self.notes.add("no-eot")
            return self.plain, span
        self.notes.add("eot-appended")
        return self.plain[: span[1]] + end, (span[0], span[1] + len(end))

    def _as_asked(self, text: str, spans: list[Span], number: int) -> tuple[str, list[Span]]:
        """The row with the last answer after the very prompt of use, where the template prints another one.

        What the prompt has more is put in, to be read and not learned. Where it opens a thought, the model
        has to close that: the thought that the row has, or none, and the closing tag are learned.
        """
        prompt, extents = self.row.prompts[number], self.places.extents[number]
        extent = extents[0]
        if prompt is None or text[: spans[-len(extents)][0]] == prompt:
            return text, spans
        shared = min(common_prefix(prompt, text), extent.start)
        thought = thought_of(self.row.messages[number])
        kept = bool(thought) and not {(number, REASONING), (number, CONTENT)} & self.places.lost
        kept = kept and bool(prompt[shared:].strip())
        if len(extents) > 1 or kept or text.startswith(prompt) or not extent.before <= shared < len(prompt):
            self.notes.add("prompt-differs")
            return text, spans
        self.notes.add("prompt-longer")
        self.unlike.discard(number)
        rest, opened = text[shared : spans[-1][1]], _OPENED.search(prompt)
        if opened and f"</{opened[1]}>" not in rest:
            rest = f"{thought}\n</{opened[1]}>\n\n{rest.lstrip()}"
        tail = text[spans[-1][1] :]
        return prompt + rest + tail, [*spans[:-1], (len(prompt), len(prompt) + len(rest))]


def thought_of(message: Message) -> str:
    """What an answer's author thought before: apart, or between tags at the beginning of the answer."""
    inside = _THOUGHT.match(message.content)
    return (message.reasoning or (inside[2] if inside else "")).strip()


def notes_on(chat: ChatFormat, messages: Sequence[Message], tools: str, places: Places) -> set[str]:
    """What the template leaves out or rewrites of a row, as kinds of `NOTES`."""
    notes = {note for number, kind in places.lost for note in _loss(messages, number, kind)}
    if chat.merges_system and any(message.role == "system" for message in messages):
        notes.add("system-merged")
    if sum(message.role == "assistant" for message in messages) > 1 and chat.rewrites_history:
        notes.add("history-rewritten")
    if tools and not chat.shows_tools:
        notes.add("drops-tools")
    return notes


def _loss(messages: Sequence[Message], number: int, kind: int) -> set[str]:
    message = messages[number]
    if message.role != "assistant":
        return {f"drops-role:{message.role}"} if kind == CONTENT else set()
    if kind == CALLS:
        return {"drops-tool-calls"}
    if kind == CONTENT and message.tool_calls:
        return {"drops-text-of-tool-call-turn"}
    return {"drops-thinking:last" if number == len(messages) - 1 else "drops-thinking:history"}


def _after_header(chat: ChatFormat, plain: str, extent: Extent) -> int:
    """The end of the header before an answer, or of its longest part that ends with a special token.

    Without a header the answer starts with the blanks before its text.
    """
    gap = plain[extent.before : extent.start]
    for header in chat.answer_headers:
        at = gap.rfind(header)
        if at >= 0:
            return extent.before + at + len(header)
    return extent.before + len(gap.rstrip())
