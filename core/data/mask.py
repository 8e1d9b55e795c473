"""Decides, for any chat template, which characters and tokens of a row are trained: the model's own."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from ollama_tune.core.data.marks import Extent, find_extents, refusal
from ollama_tune.core.data.render import ChatFormat
from ollama_tune.core.data.values import Example, Message, Row
from ollama_tune.core.errors import TuneError

Span = tuple[int, int]


@dataclass(frozen=True)
class Answers:
    """A rendered row: the (start, end) of each answer in `text`, and notes on the template's ways.

    Notes: `eot-appended` (the template does not end the last answer, so an end token was added),
    `no-eot` (some answer has no end), `prompt-differs` (in use the prompt is not what stands here
    before the last answer).
    """

    text: str
    spans: tuple[Span, ...]
    notes: frozenset[str]


def find_answers(chat: ChatFormat, messages: Sequence[Message]) -> Answers:
    """Where each answer starts and ends, its end token included; `TuneError` when that is not certain."""
    plain = chat.render(messages)
    extents = find_extents(chat, messages, plain)
    numbers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    if not numbers:
        raise refusal("It has no answer.")
    notes: set[str] = set()
    spans = []
    for number in numbers:
        start, note = _start(chat, messages, plain, number, extents[number])
        notes |= note
        end = _end(chat, plain, extents[number])
        spans.append((start, extents[number].end if end is None else end))
        if end is None and number == len(messages) - 1:
            plain, spans[-1] = _append_end(chat, plain, spans[-1], notes)
        elif end is None:
            notes.add("no-eot")
    return Answers(plain, tuple(spans), frozenset(notes))


def _start(
    chat: ChatFormat, messages: Sequence[Message], plain: str, number: int, extent: Extent
) -> tuple[int, set[str]]:
    """Where the model begins to write: after the prompt it gets in use, if the text begins with that."""
    try:
        prompt = chat.render(messages[:number], add_generation_prompt=True)
    except TuneError:
        return _after_header(chat, plain, extent), set()
    if number > 0 and plain.startswith(prompt) and extent.before <= len(prompt) <= extent.mark:
        return len(prompt), set()
    last = number == len(messages) - 1
    return _after_header(chat, plain, extent), {"prompt-differs"} if last else set()


def _after_header(chat: ChatFormat, plain: str, extent: Extent) -> int:
    """The end of the header before an answer, or of its longest part that ends with a special token.

    Without a header the answer starts with the blanks before its text.
    """
    gap = plain[extent.before : extent.start]
    header = _header(chat)
    ends = [end for i, (_, end) in zip(*chat.encode(header), strict=True) if i in chat.special_tokens]
    for end in [len(header), *reversed(ends)]:
        at = gap.rfind(header[:end]) if end else -1
        if at >= 0:
            return extent.before + at + end
    return extent.before + len(gap.rstrip())


def _header(chat: ChatFormat) -> str:
    """What the template adds to a question to ask for an answer."""
    question = [Message("user", "q")]
    asked, bare = chat.render(question, add_generation_prompt=True), chat.render(question)
    return asked[len(bare) :] if asked.startswith(bare) else ""


def _end(chat: ChatFormat, plain: str, extent: Extent) -> int | None:
    """The end of the first end token between the answer's text and the next text, or None."""
    found = _stop_pattern(chat.stop_texts).search(plain, extent.end, extent.after)
    return found.end() if found else None


def _stop_pattern(texts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")


def _append_end(chat: ChatFormat, plain: str, span: Span, notes: set[str]) -> tuple[str, Span]:
    """End the row with an end token that the template does not print: eos, else any stop token."""
    end_text = chat.eos_token or next(iter(chat.stop_texts), None)
    if end_text is None:
        notes.add("no-eot")
        return plain, span
    notes.add("eot-appended")
    return plain[: span[1]] + end_text, (span[0], span[1] + len(end_text))


def make_example(chat: ChatFormat, row: Row) -> Example:
    """A row's token ids with those of its answers marked as trained.

    Raises `TuneError` when the template refuses the row or the answers cannot be found exactly.
    """
    return example_of(chat, row, find_answers(chat, row.messages))


def example_of(chat: ChatFormat, row: Row, answers: Answers) -> Example:
    """Tokenise a rendered row so that each answer follows the very tokens of its prompt."""
    ids, offsets = chat.encode(answers.text)
    cuts = [start for start, _ in answers.spans if not _clean_start(chat, answers.text, start, ids, offsets)]
    cuts += [end for _, end in answers.spans if _straddled(offsets, end)]
    if cuts:
        ids, offsets = _encode_parts(chat, answers.text, sorted(cuts), chat.decode(ids))
    starts = [start for start, _ in offsets]
    if starts != sorted(starts):
        raise refusal("Its tokens do not stand in the order of its text.")
    trained = [False] * len(ids)
    for start, end in answers.spans:
        first, last = bisect_left(starts, start), bisect_left(starts, end)
        trained[first:last] = [True] * (last - first)
    if not any(trained):
        raise refusal("Its answers have no token.")
    return Example(answers.text, ids, tuple(trained), offsets, row.line)


def _straddled(offsets: Sequence[Span], edge: int) -> bool:
    """True when a token begins before `edge` and ends after it."""
    index = bisect_left(offsets, edge, key=_first)
    return index > 0 and offsets[index - 1][1] > edge


def _first(span: Span) -> int:
    return span[0]


def _clean_start(
    chat: ChatFormat, text: str, start: int, ids: Sequence[int], offsets: Sequence[Span]
) -> bool:
    """True when the tokens before `start` are those of the prompt alone.

    A tokenizer may join or regroup blanks at the edge. Tokens never reach over a special token, so
    looking back to the last one is enough.
    """
    if _straddled(offsets, start):
        return False
    index = bisect_left(offsets, start, key=_first)
    back = next((i for i in range(index - 1, -1, -1) if ids[i] in chat.special_tokens), 0)
    return tuple(ids[back:index]) == chat.encode(text[offsets[back][0] : start])[0]


def _encode_parts(
    chat: ChatFormat, text: str, cuts: list[int], decoded: str
) -> tuple[tuple[int, ...], tuple[Span, ...]]:
    """Encode the text cut at `cuts`; refused where the parts no longer make the same text.

    Some tokenizers put a blank before whatever they encode; a line break before a part prevents it.
    """
    for guard in ("", "\n"):
        ids: list[int] = []
        offsets: list[Span] = []
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            part, places = _encode_after(chat, guard if start else "", text[start:end])
            ids += part
            offsets += [(start + first, start + last) for first, last in places]
        if chat.decode(ids) == decoded:
            return tuple(ids), tuple(offsets)
    raise refusal("Its tokenizer joins the end of the prompt and the start of the answer.")


def _encode_after(chat: ChatFormat, guard: str, part: str) -> tuple[Sequence[int], Sequence[Span]]:
    ids, offsets = chat.encode(guard + part)
    skip = len(chat.encode(guard)[0]) if guard else 0
    return ids[skip:], [(max(first - len(guard), 0), last - len(guard)) for first, last in offsets[skip:]]
