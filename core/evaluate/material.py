"""What an evaluation measures on: rows, the labels they may have, and what each model is given of them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ollama_tune.core.data.chat.mask import make_example
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.load import load_dataset
from ollama_tune.core.data.rows.keys import keys_of
from ollama_tune.core.data.rows.store import StoredRows
from ollama_tune.core.data.schemas.labels import sorted_labels, system_text
from ollama_tune.core.data.split import split_rows
from ollama_tune.core.data.tokens.lengths import encode_rows
from ollama_tune.core.data.tokens.shorten import fit_rows
from ollama_tune.core.data.values import Example, Message, Problem, Reading, Row
from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.evaluate.asking import GREEDY
from ollama_tune.core.evaluate.figures import Kind
from ollama_tune.core.evaluate.window import fit_prompt
from ollama_tune.core.plan.settings import Settings


@dataclass(frozen=True)
class Rows:
    """Rows to measure on, of `total` in `source`; with `labels` where each answer is one of a fixed set.

    `learned` counts those that stand in the rows that the run was trained on, `set_aside` tells what rows of
    other data cannot be used.
    """

    rows: tuple[Row, ...]
    total: int
    source: str
    labels: tuple[str, ...] = ()
    learned: int = 0
    set_aside: tuple[Problem, ...] = ()

    @property
    def references(self) -> list[str]:
        """The wanted answers."""
        return [row.answer for row in self.rows]

    def asked(self, number: int) -> bool:
        """Whether a row has a question and a written answer; mere texts have neither."""
        row = self.rows[number]
        return bool(row.prompt) and row.messages[-1].role == "assistant" and bool(row.answer.strip())


@dataclass(frozen=True)
class Task:
    """What is measured of one row: an answer to the prompt `ids`, or how likely each of the `examples` is."""

    row: int
    kind: Kind
    ids: tuple[int, ...] = ()
    longest: int = 0
    examples: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    """Of each the token ids and the places of the supervised ones."""

    def content(self) -> list[Any]:
        """All that decides what comes out, beside the model."""
        if self.kind == "answers":
            return [self.ids, self.longest, asdict(GREEDY)]
        return [self.kind, self.examples]

    def request(self, key: str) -> dict[str, Any]:
        """As the process that measures takes it; records come back under the key."""
        size = len(self.ids) + sum(len(ids) for ids, _ in self.examples)
        head = {"key": key, "size": size, "longest": self.longest}
        return head | {"ids": self.ids, "examples": self.examples}

    @property
    def tokens(self) -> int:
        """Supervised tokens, over all examples."""
        return sum(len(places) for _, places in self.examples)


@dataclass
class Tasks:
    """The tasks of one model, and what could not be asked: a sentence, and with how many rows it is so."""

    tasks: list[Task] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, why: str, rows: int = 1) -> None:
        """Count rows that are not measured."""
        if rows:
            self.left_out[why] = self.left_out.get(why, 0) + rows


def read_rows(settings: Settings, data: str | None, limit: int) -> Rows:
    """The rows that the run kept apart, split as its worker splits them, or all rows of other data.

    At most `limit` of them (0: all), drawn with the seed of the run. Labels are those of the run's data and
    of the other; where a system text names the labels, it is the one that the model learned with.
    Raises `UsageError` where nothing was kept apart.
    """
    own = settings.data
    if data is None:
        profile = load_dataset(own.path, own.reading())
        _, held = split_rows(profile.rows, own.validation_split, own.seed)
        if not held:
            what = "This run kept no rows apart to measure on."
            raise UsageError(what, "Name a file of other rows with --data.")
        return Rows(_some(held, limit, own.seed), len(held), own.path, profile.labels)
    labels, learned = tuple[str, ...](), set[int]()
    with contextlib.suppress(TuneError):  # the run's own data may be gone
        mine = load_dataset(own.path, own.reading())
        labels = mine.labels
        learned = _conversations(split_rows(mine.rows, own.validation_split, own.seed)[0])
    profile = load_dataset(data, _reading(own.reading(), bool(labels)))
    rows = _some(profile.rows, limit, own.seed)
    if labels and profile.labels:
        rows = _told(rows, profile.labels, labels)
        labels = sorted_labels({*labels, *profile.labels})
    known = sum(keys_of(row.messages, row.tools).conversation in learned for row in rows)
    aside = tuple(problem for problem in profile.problems if problem.severity == "error")
    return Rows(rows, len(profile.rows), data, labels if profile.labels else (), known, aside)


def _conversations(rows: Sequence[Row]) -> set[int]:
    """The numbers by which equal conversations are found; stored rows know theirs."""
    if isinstance(rows, StoredRows):
        column = rows.store.column("conversation")
        return {column[at] for at in rows.places}
    return {keys_of(row.messages, row.tools).conversation for row in rows}


def _reading(own: Reading, labels: bool) -> Reading:
    """Other data is read as the run's was, but for the names of splits."""
    form = own.form or ("classification" if labels else "")
    return replace(own, form=form, split="", validation="", subset="", revision="")


def _some(rows: Sequence[Row], limit: int, seed: int) -> tuple[Row, ...]:
    """The rows, or so many of them from all over, in order; the same ones each time."""
    if not limit or limit >= len(rows):
        return tuple(rows)
    chosen = random.Random(f"evaluate {seed}").sample(range(len(rows)), limit)
    return tuple(rows[at] for at in sorted(chosen))


def _told(rows: Sequence[Row], found: Sequence[str], learned: Sequence[str]) -> tuple[Row, ...]:
    """Rows whose system text names the labels of their own file, with the one of the training."""
    own, right = (Message("system", system_text(labels)) for labels in (found, learned))
    return tuple(
        replace(row, messages=(right, *row.messages[1:])) if row.messages[0] == own else row for row in rows
    )


@dataclass(frozen=True)
class Model:
    """How a run's model is asked: its chat form, how much it reads, and how long rows and answers may be."""

    chat: ChatFormat
    context: int | None
    sequence_length: int
    max_new_tokens: int

    def tasks(self, rows: Rows, kinds: set[Kind]) -> Tasks:
        """What to measure, in the order of kinds and rows."""
        made = Tasks()
        if "loss" in kinds:
            self._losses(rows, made)
        if "labels" in kinds:
            self._labels(rows, made)
        if "answers" in kinds:
            self._answers(rows, made)
        return made

    def _losses(self, rows: Rows, made: Tasks) -> None:
        """Each row as it is trained on: rendered, masked and shortened to the run's sequence length."""
        encoded, _ = encode_rows(self.chat, rows.rows)
        examples, _ = fit_rows(self.chat, rows.rows, encoded, self.sequence_length)
        of: dict[int, list[Example]] = {}
        for number, row in enumerate(examples.rows):
            if examples.supervised[number]:
                of.setdefault(row, []).append(examples[number])
        made.tasks += [Task(row, "loss", examples=tuple(map(_plain, of[row]))) for row in sorted(of)]
        why = f"too long for {self.sequence_length:,} tokens, or refused by the chat template"
        made.leave_out(f"The loss of a row is not measured: {why}.", len(rows.rows) - len(of))

    def _labels(self, rows: Rows, made: Tasks) -> None:
        """Each row with every label as its answer; the end mark is scored with the label."""
        for number, row in enumerate(rows.rows):
            if not rows.asked(number) or row.answer not in rows.labels:
                made.leave_out("A row has none of the labels.")
                continue
            prompt = tuple(replace(message, train=False) for message in row.prompt)
            try:
                examples = tuple(
                    make_example(self.chat, replace(row, messages=(*prompt, Message("assistant", label))))
                    for label in rows.labels
                )
            except TuneError:
                made.leave_out("The chat template refuses a row with one of the labels.")
                continue
            if self.context and max(len(example.ids) for example in examples) > self.context:
                made.leave_out(f"A row with its label is longer than the model's {self.context:,} tokens.")
                continue
            made.tasks.append(Task(number, "labels", examples=tuple(map(_plain, examples))))

    def _answers(self, rows: Rows, made: Tasks) -> None:
        for number, row in enumerate(rows.rows):
            if not rows.asked(number):
                made.leave_out("A row has no written answer to compare with.")
                continue
            try:
                fitted = fit_prompt(self.chat, row.prompt, row.tools, self.context, self.max_new_tokens)
            except TuneError:
                made.leave_out("A question is too long for the model, or refused by its chat template.")
                continue
            made.tasks.append(Task(number, "answers", fitted.ids, fitted.room))


def _plain(example: Example) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return example.ids, tuple(at for at, trained in enumerate(example.trained) if trained and at)
