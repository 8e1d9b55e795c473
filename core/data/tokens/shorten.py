"""Makes rows fit into a sequence: a conversation loses its oldest turns, a plain text is learned in parts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ollama_tune.core.data.chat.answers import is_text
from ollama_tune.core.data.chat.mask import make_example
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.chat.samples import samples
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.tokens.encoded import Examples, Picked, hold, store
from ollama_tune.core.data.values import Example, Problem, Row
from ollama_tune.core.errors import TuneError

STORE_FROM = 256
"""So many rows that have to be shortened are kept in a file."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Shortened:
    """A row that fits: its messages `start` to `end` were left out. `example` is what is trained on."""

    row: Row
    example: Example
    start: int
    end: int


def shorten(chat: ChatFormat, row: Row, sequence_length: int) -> Shortened | None:
    """The row with as few of its oldest turns left out as fit into so many tokens; None where nothing helps.

    Turns go up to a question, so that a system text and the last question with its answer always stay. What
    is left is rendered and masked anew, so it is exactly what a conversation of these turns gives.
    """
    found = _cut(chat, [row], len(row.messages), sequence_length)
    if found is None:
        return None
    (example,), head, cut = found
    return Shortened(_without(row, head, cut), example, head, cut)


def shorten_pair(chat: ChatFormat, row: Row, sequence_length: int) -> tuple[Example, Example] | None:
    """Both rows of a pair without as few of the oldest turns that they share as make each of them fit; None
    where nothing helps. What they are the same in stays the same, the question above all."""
    other = replace(row, messages=row.rejected, rejected=())
    found = _cut(chat, [replace(row, rejected=()), other], row.shared, sequence_length)
    return found and (found[0][0], found[0][1])


def _cut(
    chat: ChatFormat, rows: Sequence[Row], shared: int, sequence_length: int
) -> tuple[list[Example], int, int] | None:
    """The rows as examples without the messages from the first returned number to the second, which are among
    the `shared` ones that all begin with."""
    row = rows[0]
    head = next((i for i, message in enumerate(row.messages) if message.role != "system"), 0)
    cuts = [i for i in range(head + 1, shared) if _opens(row, i)]

    def fits(cut: int) -> bool:
        return all(_tokens(chat, _without(row, head, cut)) <= sequence_length for row in rows)

    for cut in cuts[bisect_left(cuts, True, key=fits) :]:
        try:
            examples = [make_example(chat, _without(row, head, cut)) for row in rows]
        except TuneError:
            continue
        if all(len(example.ids) <= sequence_length for example in examples):
            return examples, head, cut
    return None


def _without(row: Row, head: int, cut: int) -> Row:
    return replace(row, messages=row.messages[:head] + row.messages[cut:])


def _tokens(chat: ChatFormat, row: Row) -> float:
    """Tokens of a row; endless where the template does not take it."""
    try:
        return len(chat.encode(chat.render(row.messages, tools=row.tools))[0])
    except TuneError:
        return float("inf")


def _opens(row: Row, number: int) -> bool:
    """Whether a new question begins there."""
    return row.messages[number].role == "user" and row.messages[number - 1].role != "user"


def fit_rows(
    chat: ChatFormat,
    rows: Sequence[Row],
    examples: Examples,
    sequence_length: int,
    progress: Progress | None = None,
) -> tuple[Examples, list[Problem]]:
    """The examples with those that are too long made to fit, or left out; and what was done, as problems.

    `examples` are those of `rows` as `encode_rows` gives them, in order. `progress` is called with (rows
    looked at, rows that are too long).
    """
    long = sorted({row for row, n in zip(examples.rows, examples.counts, strict=True) if n > sequence_length})
    if not long:
        return examples, []

    def write(add: Callable[[Example, int], None]) -> Sequence[Problem]:
        log = ProblemLog()
        for done, number in enumerate(long, 1):
            for example in _fitting(chat, rows[number], sequence_length, log):
                add(example, number)
            if progress is not None:
                progress(done, len(long))
        return log.problems()

    kept = examples.key and len(long) >= STORE_FROM
    shortened, problems = store(f"{examples.key}-{sequence_length}", write) if kept else hold(write)
    return Picked([examples, shortened], list(_merged(examples, shortened, set(long)))), problems


def _merged(examples: Examples, shortened: Examples, long: set[int]) -> Iterable[tuple[int, int]]:
    """Places of both in the order of the rows; of rows that are too long only the shortened ones."""
    whole = ((row, 0, at) for at, row in enumerate(examples.rows) if row not in long)
    fitted = ((row, 1, at) for at, row in enumerate(shortened.rows))
    return ((source, at) for _, source, at in sorted([*whole, *fitted]))


def _fitting(chat: ChatFormat, row: Row, length: int, log: ProblemLog) -> list[Example]:
    """What can be trained on of a row that is too long as a whole."""
    if is_text(row.messages):
        log.warn("divided", f"A text is longer than {length:,} tokens; it is learned in parts.", row.line)
        return _parts(make_example(chat, row), length)
    found = []
    lost, cut = 0, 0
    for part in samples(chat, row):
        example = make_example(chat, part)
        if len(example.ids) > length:
            shorter = shorten(chat, part, length)
            cut += shorter is not None
            lost += shorter is None
            if shorter is None:
                continue
            example = shorter.example
        found.append(example)
    if lost:
        text = f"A row is longer than {length:,} tokens, and its last question and answer do not fit."
        log.set_aside("too-long", text, row.line)
    elif cut:
        text = f"A row is longer than {length:,} tokens; its oldest turns are left out."
        log.warn("shortened", text, row.line)
    return found


def _parts(example: Example, length: int) -> list[Example]:
    """A text in as few parts as possible, of about the same length."""
    count = -(-len(example.ids) // length)
    edges = [len(example.ids) * number // count for number in range(count + 1)]
    return [
        Example("", example.ids[start:end], example.trained[start:end], (), example.line)
        for start, end in pairwise(edges)
    ]
