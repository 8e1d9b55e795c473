"""Encodes rows and measures how long they are in tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from ollama_tune.core.data.mask import example_of, find_answers
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.render import ChatFormat
from ollama_tune.core.data.values import LENGTH_STEP, Example, Lengths, Problem, Row
from ollama_tune.core.errors import TuneError

_NOTES = {
    "eot-appended": "The chat template does not end the last answer, so an end token was added.",
    "no-eot": "An answer has no end token, so the model does not learn to stop there.",
    "prompt-differs": "In use the chat template prompts otherwise than in training, which may cost quality.",
}
_PROGRESS_EVERY = 32
BYTES_A_TOKEN = 3.5
MESSAGE_TOKENS = 5


def encode_rows(
    chat: ChatFormat, rows: Sequence[Row], progress: Callable[[int, int], None] | None = None
) -> tuple[list[Example], list[Problem]]:
    """The examples of the rows that can be masked exactly, in order, and the problems met.

    `progress` is called with (rows done, rows in all) every few rows and at the end.
    """
    log = ProblemLog()
    examples = []
    for done, row in enumerate(rows, 1):
        example = _encode(chat, row, log)
        if example is not None:
            examples.append(example)
        if progress is not None and (done % _PROGRESS_EVERY == 0 or done == len(rows)):
            progress(done, len(rows))
    return examples, list(log.problems())


def _encode(chat: ChatFormat, row: Row, log: ProblemLog) -> Example | None:
    try:
        answers = find_answers(chat, row.messages)
        example = example_of(chat, row, answers)
    except TuneError as error:
        log.set_aside("refused", error.what, row.line)
        return None
    for note in answers.notes:
        log.warn(note, _NOTES[note], row.line)
    if any(chat.holds_special_token(message.content) for message in row.messages):
        log.warn(
            "control-tokens", "A text holds the model's own control tokens; it may confuse turns.", row.line
        )
    if chat.merges_system and any(message.role == "system" for message in row.messages):
        log.warn(
            "system-merged", "The chat template drops system texts; they go before the question.", row.line
        )
    return example


def measure(examples: Sequence[Example]) -> Lengths:
    """Token lengths; percentiles by nearest rank. All zero without examples."""
    return _measured([(len(example.ids), sum(example.trained)) for example in examples])


def estimate_lengths(rows: Sequence[Row]) -> Lengths:
    """Token lengths where there is no tokenizer: 3.5 bytes a token and five tokens around each message.

    English takes about 4.5 bytes, code and most other languages 3 to 4; so the figure is rather high.
    """
    return _measured([_estimated(row) for row in rows])


def _estimated(row: Row) -> tuple[int, int]:
    """All tokens of a row, and those of its answers."""
    texts = [(message.role, message.content.encode("utf-8", "replace")) for message in row.messages]
    sizes = [(role, math.ceil(len(text) / BYTES_A_TOKEN)) for role, text in texts]
    answers = sum(size + 1 for role, size in sizes if role == "assistant")
    return sum(size + MESSAGE_TOKENS for _, size in sizes), answers


def _measured(rows: Sequence[tuple[int, int]]) -> Lengths:
    """From all and trained tokens of each row."""
    lengths = sorted(tokens for tokens, _ in rows)

    def percentile(share: float) -> int:
        return lengths[max(math.ceil(share * len(lengths)) - 1, 0)] if lengths else 0

    return Lengths(
        rows=len(lengths),
        tokens=sum(lengths),
        trained_tokens=sum(trained for _, trained in rows),
        median=percentile(0.5),
        percentile_95=percentile(0.95),
        percentile_99=percentile(0.99),
        longest=lengths[-1] if lengths else 0,
        longest_answer=max((trained for _, trained in rows), default=0),
        histogram=_histogram(lengths),
    )


def _histogram(lengths: Sequence[int]) -> tuple[int, ...]:
    counts = Counter((length - 1) // LENGTH_STEP for length in lengths if length)
    return tuple(counts[step] for step in range(max(counts, default=-1) + 1))
