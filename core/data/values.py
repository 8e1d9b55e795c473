"""The canonical form of training data and what was found in a file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One turn; role is `system`, `user`, `assistant` or `tool`."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One conversation, and where it came from: its line (or item) in the file, counted from 1."""

    messages: tuple[Message, ...]
    line: int

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last assistant answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last assistant answer."""
        return self.messages[-1].content


@dataclass(frozen=True)
class Problem:
    """A kind of problem with how often it occurred and the first few line numbers.

    `kind` is a short stable name, `text` one sentence for a person, `severity` is `error` for rows
    set aside and `warning` for rows kept.
    """

    kind: str
    text: str
    count: int
    lines: tuple[int, ...]
    severity: str = "warning"


@dataclass(frozen=True)
class DatasetProfile:
    """What a file holds: its format and schema in words, the usable rows, and the problems found."""

    source: str
    format: str
    schema: str
    encoding: str
    rows: tuple[Row, ...]
    total: int
    problems: tuple[Problem, ...]

    @property
    def usable(self) -> int:
        """How many rows can be trained on."""
        return len(self.rows)


@dataclass(frozen=True)
class Example:
    """A row as the model sees it: the rendered text, token ids and which tokens are trained.

    `ids`, `trained` and `offsets` have one entry a token; an offset is (start, end) in `text` by
    character. `trained[i]` means that the loss is taken on predicting token i. `line` is its row's.
    """

    text: str
    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    offsets: tuple[tuple[int, int], ...]
    line: int = 0


LENGTH_STEP = 64
"""Tokens between two entries of a histogram of lengths."""


@dataclass(frozen=True)
class Lengths:
    """Token lengths of the rendered rows (all rows counted, no estimate).

    `longest_answer` is the most trained tokens of a row, 0 where it was not counted. `histogram` counts the
    rows of 1 to 64 tokens, 65 to 128, and so on to the longest; empty where they were not counted.
    """

    rows: int
    tokens: int
    trained_tokens: int
    median: int
    percentile_95: int
    percentile_99: int
    longest: int
    longest_answer: int = 0
    histogram: tuple[int, ...] = ()
