"""The canonical form of training data and what was found in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class ToolCall:
    """A tool that an answer calls: its name and its arguments, the JSON text of an object."""

    name: str
    arguments: str = "{}"
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One turn; role is `system`, `user`, `assistant` or `tool`.

    `reasoning` is what the model thinks before it answers, where the data has that apart from the answer.
    `name` and `tool_call_id` belong to the result of a tool. An answer with `train` off is read, not learned.
    """

    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    tool_call_id: str = ""
    train: bool = True

    def as_dict(self) -> dict[str, Any]:
        """What a chat template is given, in the names of transformers; nothing that is empty but the text."""
        turn: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning:
            turn["reasoning_content"] = self.reasoning
        if self.tool_calls:
            turn["tool_calls"] = [_call(call) for call in self.tool_calls]
        named = {"name": self.name, "tool_call_id": self.tool_call_id}
        return turn | {key: text for key, text in named.items() if text}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.loads(call.arguments)}
    return {"type": "function", "function": function} | ({"id": call.id} if call.id else {})


@dataclass(frozen=True)
class Row:
    """One conversation, and where it came from: its line (or item) in the file, counted from 1.

    `tools` is the JSON text of the list of tools that the conversation may call, empty without any. `file`
    names the file where the data set is a folder; `held_out` marks a row of a validation split. Of a pair of
    answers `messages` end with the better one, and `rejected` is the conversation with the worse one instead.
    """

    messages: tuple[Message, ...]
    line: int
    tools: str = ""
    file: str = ""
    held_out: bool = False
    rejected: tuple[Message, ...] = ()

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last assistant answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last assistant answer."""
        return self.messages[-1].content

    @property
    def shared(self) -> int:
        """How many messages both conversations of a pair begin with."""
        both = zip(self.messages, self.rejected, strict=False)
        return next((at for at, (one, other) in enumerate(both) if one != other), len(self.rejected))


@dataclass(frozen=True)
class Problem:
    """A kind of problem with how often it occurred and the first few line numbers.

    `kind` is a short stable name, `text` one sentence for a person, `severity` is `error` for rows
    set aside and `warning` for rows kept. Where `switchable`, the person may decide otherwise: keep the
    rows set aside, or set aside the rows kept (`Reading.include`, `Reading.exclude`).
    """

    kind: str
    text: str
    count: int
    lines: tuple[int, ...]
    severity: str = "warning"
    switchable: bool = False


OTHER_VERSION = "other-version"
"""The kind of problem that data of the hub has where the hub has another version by now."""


@dataclass(frozen=True)
class Reading:
    """How a person wants a file to be read, where its content leaves a choice; empty means: tell by content.

    `columns` gives a column a part: `question`, `answer`, `system`, `context`, `text`, `label`,
    `conversation`, `chosen` or `rejected` -> the column's name. `form` is the kind of task (`chat`,
    `classification`, `text`).
    `labels` gives values of the label column, as they stand in the file, a name: value -> name.
    `split` and `validation` name splits or files of a data set that has several; `subset` and `revision` are
    those of the hub. `include` and `exclude` are kinds of problems whose rows are used, or not used, other
    than the usual way.
    """

    columns: tuple[tuple[str, str], ...] = ()
    form: str = ""
    split: str = ""
    validation: str = ""
    subset: str = ""
    revision: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Reading:
        """The reading of such an object (`asdict`) that went through JSON, which turns tuples into lists."""
        return cls(**{name: _tuples(value) for name, value in fields.items()})

    def settings(self) -> dict[str, Any]:
        """The fields of a run.yaml that say the same, by dotted path; nothing that is empty."""
        return {f"data.{name}": _as_set(name, value) for name, value in vars(self).items() if value}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _as_set(name: str, value: Any) -> Any:
    """A field of a reading as the setting is: pairs are a table, other tuples a list."""
    if name in ("columns", "labels"):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Option:
    """One answer to a question: its words, and the reading that it stands for."""

    label: str
    reading: Reading

    @property
    def assignments(self) -> list[str]:
        """The settings that say so, as `--set` takes them."""
        said = self.reading.settings().items()
        return [f"{path}={_written(value)}" for path, value in said]


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Question:
    """What a file leaves open. The first option is the likeliest, taken until a person says otherwise."""

    kind: str
    text: str
    options: tuple[Option, ...]

    @property
    def told(self) -> str:
        """What is taken until a person says otherwise, by its settings: a log holds no text of a row."""
        taken = ", ".join(self.options[0].assignments)
        return f"{self.text} Taken: {taken or 'what the content tells'}; `ollama-tune data` shows the others."


@dataclass(frozen=True)
class Column:
    """A column of a table: its name, a few of its cells as text, and the part it seems to play, or none."""

    name: str
    samples: tuple[str, ...]
    part: str = ""


RowKind = Literal["", "chat", "classification", "text"]
"""What rows are, in the words of `data.form`; empty where nobody looked."""

KIND_BY = 50
"""Rows that tell whether all are texts that nobody asks for."""


@dataclass(frozen=True)
class DatasetProfile:
    """What a file holds: its format and schema in words, the usable rows, and the problems found.

    Where `exact` is off only the beginning was read: `rows` are the first ones and `total` is estimated.
    `scripts` are the scripts of the texts with their shares of the letters, the most frequent first.
    """

    source: str
    format: str
    schema: str
    encoding: str
    rows: Sequence[Row]
    total: int
    problems: tuple[Problem, ...]
    questions: tuple[Question, ...] = ()
    columns: tuple[Column, ...] = ()
    labels: tuple[str, ...] = ()
    exact: bool = True
    scripts: tuple[tuple[str, float], ...] = ()

    @property
    def usable(self) -> int:
        """How many rows can be trained on."""
        return len(self.rows)

    @property
    def kind(self) -> RowKind:
        """What the rows are, by their labels and the first of them."""
        if self.labels:
            return "classification"
        first = self.rows[:KIND_BY]
        return "text" if first and all(len(row.messages) == 1 for row in first) else "chat"


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
    """Token lengths of the rendered rows; where `exact` is off they are estimated from some of the rows.

    `longest_answer` is the most trained tokens of a row, 0 where it was not counted. `histogram` counts the
    rows of 1 to 64 tokens, 65 to 128, and so on to the longest; empty where they were not counted.

    Rows that hold a better and a worse answer have `pairs` too: there a row is a pair and has the tokens of
    both, and `sides` are the lengths of the two rows that it is made of, each counted by itself. `kind` is
    what the rows are, where that is known.
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
    exact: bool = True
    pairs: Lengths | None = None
    sides: Lengths | None = None
    kind: RowKind = ""

    @property
    def of_rows(self) -> Lengths:
        """The lengths of single rows, which a sequence length bounds: of pairs, those of their two sides."""
        return self.sides or self

    def learned(self, objective: str) -> Lengths:
        """The lengths of what is learned from: of the pairs for `dpo`, else of the rows."""
        return (self.pairs or self) if objective == "dpo" else self

    def most(self, sequence_length: int) -> int:
        """The most tokens of a row with that sequence length; a pair may have twice as many."""
        return sequence_length * (2 if self.sides else 1)

    def mean(self, sequence_length: int) -> float:
        """Tokens of a row on average, with that sequence length."""
        return min(self.tokens / max(self.rows, 1), self.most(sequence_length))
