"""Makes token ids of rows, those of the model's own answers marked as trained."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ollama_tune.core.data.chat.answers import Answers, Span, find_answers
from ollama_tune.core.data.chat.marks import refusal
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.chat.samples import samples
from ollama_tune.core.data.values import Example, Message, Row
from ollama_tune.core.errors import TuneError

_FORGETS = frozenset({"drops-thinking:history", "drops-text-of-tool-call-turn", "drops-tool-calls"})
"""Notes on what is lost of an answer once another turn follows."""


@dataclass(frozen=True)
class Made:
    """The examples of a row, in order, and the kinds of notes on how its template treats it."""

    examples: tuple[Example, ...]
    notes: frozenset[str]


def make(chat: ChatFormat, row: Row) -> Made:
    """All that is trained on of a row: one example, or several where its template rewrites what was said.

    Raises `TuneError` when the template refuses the row or the answers cannot be found exactly.
    """
    parts, notes = parts_of(chat, row)
    return Made(tuple(example_of(chat, part, answers) for part, answers in parts), notes)


def parts_of(chat: ChatFormat, row: Row) -> tuple[list[tuple[Row, Answers]], frozenset[str]]:
    """What `make` makes examples of, with the notes: for whoever turns many texts into tokens at once."""
    parts = _parts(chat, row)
    notes = frozenset[str]().union(*(answers.notes for _, answers in parts))
    return parts, notes | ({"history-rewritten"} if len(parts) > 1 else set())


def _parts(chat: ChatFormat, row: Row) -> list[tuple[Row, Answers]]:
    """The rows to train on with their answers; most rows are their own only part, which takes one search."""
    try:
        whole = find_answers(chat, row.messages, row.tools)
    except TuneError:
        parts = samples(chat, row)
        if parts == [row]:
            raise
    else:
        if whole.exact and not whole.notes & _FORGETS:
            return [(row, whole)]
        parts = samples(chat, row)
        if len(parts) == 1:
            return [(row, whole)]
    return [(part, find_answers(chat, part.messages, part.tools)) for part in parts]


def make_examples(chat: ChatFormat, row: Row) -> list[Example]:
    """The examples of a row; `make` tells the notes too."""
    return list(make(chat, row).examples)


@dataclass(frozen=True)
class Cut:
    """Where a sequence length ends in an example's text, by character, and what is lost behind it.

    `trained` of the tokens behind would have been learned. What becomes of the row is for `shorten` to say.
    """

    at: int
    tokens: int
    trained: int


def cut(example: Example, sequence_length: int) -> Cut | None:
    """What of an example does not fit into a sequence length in tokens; None where all of it does."""
    if len(example.ids) <= sequence_length:
        return None
    behind = example.trained[sequence_length:]
    return Cut(example.offsets[sequence_length][0], len(behind), sum(behind))


def make_example(chat: ChatFormat, row: Row) -> Example:
    """A row's token ids with those of its answers marked as trained, all in one example.

    Raises `TuneError` when the template refuses the row or the answers cannot be found exactly.
    """
    return example_of(chat, row, find_answers(chat, row.messages, row.tools))


def example_of(chat: ChatFormat, row: Row, answers: Answers) -> Example:
    """Tokenise a rendered row so that each answer follows the very tokens of its prompt."""
    ids, offsets = _tokens(chat, answers.text, answers.spans)
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


Tokens = tuple[tuple[int, ...], tuple[Span, ...]]


def _tokens(chat: ChatFormat, text: str, spans: Sequence[Span]) -> Tokens:
    """Ids and offsets of a text, encoded in parts where a token would reach over the edge of an answer."""
    if _joins(chat):
        parts = _encode_parts(chat, text, [start for start, _ in spans], "")
        if chat.decode(parts[0]) == text and not any(_straddled(parts[1], end) for _, end in spans):
            return parts
    ids, offsets = chat.encode_rendered(text)
    cuts = [start for start, _ in spans if not _clean_start(chat, text, start, ids, offsets)]
    cuts += [end for _, end in spans if _straddled(offsets, end)]
    if not cuts:
        return ids, offsets
    for guard in ("", "\n"):
        parts = _encode_parts(chat, text, sorted(cuts), guard)
        if chat.decode(parts[0]) == chat.decode(ids):
            return parts
    raise refusal("Its tokenizer joins the end of the prompt and the start of the answer.")


@lru_cache(maxsize=8)
def _joins(chat: ChatFormat) -> bool:
    """Whether the tokenizer joins or regroups the blanks between this template's prompts and answers."""
    question, answer = Message("user", "q"), Message("assistant", "a")
    try:
        prompt, ids = chat.prompt_ids([question]), chat.encode(chat.render([question, answer]))[0]
    except TuneError:
        return False
    return ids[: len(prompt)] != prompt


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


def _encode_parts(chat: ChatFormat, text: str, cuts: list[int], guard: str) -> Tokens:
    """Encode the text cut at `cuts`.

    Some tokenizers put a blank before whatever they encode; a line break as `guard` prevents it.
    """
    ids: list[int] = []
    offsets: list[Span] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        part, places = _encode_after(chat, guard if start else "", text[start:end])
        ids += part
        offsets += [(start + first, start + last) for first, last in places] if start else places
    return tuple(ids), tuple(offsets)


def _encode_after(chat: ChatFormat, guard: str, part: str) -> tuple[Sequence[int], Sequence[Span]]:
    if not guard:
        return chat.encode_rendered(part)
    ids, offsets = chat.encode(guard + part)
    skip = len(chat.encode(guard)[0])
    return ids[skip:], [(max(first - len(guard), 0), last - len(guard)) for first, last in offsets[skip:]]
