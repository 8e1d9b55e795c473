"""Recognises how a file's records hold a conversation and turns each into messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.schemas.cells import Unusable, cell_text, decoded
from ollama_tune.core.data.schemas.choices import multiple_choice
from ollama_tune.core.data.schemas.columns import KNOWN, normal
from ollama_tune.core.data.schemas.compared import compared, ranked
from ollama_tune.core.data.schemas.dialogues import conversation, only_prompts, segments, text
from ollama_tune.core.data.schemas.guess import (
    likely_question,
    nested,
    text_columns,
    translation,
    two_columns,
)
from ollama_tune.core.data.schemas.labels import classification, label_findings, sorted_labels, unused_names
from ollama_tune.core.data.schemas.pairs import pair, steps
from ollama_tune.core.data.schemas.preferences import preference
from ollama_tune.core.data.schemas.roles import role_of
from ollama_tune.core.data.schemas.table import Plan, Record, Table
from ollama_tune.core.data.schemas.turns import Conversation
from ollama_tune.core.data.values import Column, Question, Reading
from ollama_tune.core.text import one_line

__all__ = ["ACCEPTED", "KNOWN", "Conversation", "Detector", "Unusable"]

ACCEPTED = (
    "messages (role, content), conversations (from, value), instruction + input + output, "
    "prompt + completion or response, question + answer, input + output, question + choices + answer, "
    "chosen + rejected, text + label, text"
)

MOST_PLANS = 300
"""Different sets of column names that are remembered; a file with more has names that are data."""
MOST_ANSWERS = 1_000
"""Different answers counted to tell a fixed set; far more than such a set may have."""
MOST_NAMED = 100
"""Columns that are named as not used; a file with more has names that are data."""
SAMPLES = 3
"""Cells of a column shown beside its name."""

Schema = Callable[[Table], Plan | None]

SCHEMAS: tuple[Schema, ...] = (
    segments,
    preference,
    compared,
    ranked,
    conversation,
    steps,
    only_prompts,
    multiple_choice,
    pair,
    classification,
    translation,
    text,
    two_columns,
)
"""The ways to read a record, the first that fits is taken."""

_FORMS: dict[str, tuple[Schema, ...]] = {"text": (text,), "classification": (classification,)}


class Detector:
    """Decides once for every set of column names how records with it are read.

    `sample` holds the first records, for what a single one cannot tell: labels that repeat, an instruction
    that never changes. `reading` is a person's choice and comes before every rule.
    """

    def __init__(
        self,
        reading: Reading | None = None,
        sample: Sequence[Any] = (),
        labels: Counter[str] | None = None,
    ) -> None:
        self._reading = reading or Reading()
        self._sample = [record for value in sample if (record := as_record(value)) is not None]
        self._bare_texts = all(isinstance(value, str) for value in sample)
        self._known_labels = labels
        self._plans: dict[tuple[Any, ...], Plan | Unusable] = {}
        self._answers: Counter[str] = Counter()
        self._counted: Plan | None = None
        self._named: set[str] = set()
        self._first: Record = {}
        self._rows: Counter[Plan] = Counter()
        self.unknown: Counter[tuple[str, ...]] = Counter()

    def convert(self, value: Any, line: int, log: ProblemLog) -> Conversation:
        """The messages of a record; raises `Unusable` with the reason otherwise."""
        record: Mapping[str, Any] | None = value if type(value) is dict else as_record(value)
        if record is None or (isinstance(value, str) and not self._bare_texts):
            raise Unusable("not-a-record", "An entry is neither an object nor a list of messages.")
        names = tuple(record)
        plan = self._plans.get(names)
        if plan is None:
            record = self._narrowed(record)
            plan = self._plans.get(names := tuple(record)) or self._decide(names, record, log)
        if isinstance(plan, Unusable):
            if plan.kind == "unknown-columns" and (len(self.unknown) < MOST_PLANS or names in self.unknown):
                self.unknown[names] += 1
            raise Unusable(plan.kind, plan.text)
        try:
            found = plan.convert(record, line, log)
        except RecursionError as error:
            raise Unusable("too-deep", "A record is nested too deeply to be read.") from error
        self._rows[plan] += 1
        if plan.fixed and len(self._answers) <= MOST_ANSWERS:
            self._answers[found.messages[-1].content] += 1
        return found

    def _narrowed(self, record: Record) -> Record:
        """In a file with names that are data themselves, only the columns that mean something."""
        if len(self._plans) < MOST_PLANS:
            return record
        kept = KNOWN | {normal(name) for _, name in self._reading.columns}
        return {name: cell for name, cell in record.items() if normal(str(name)) in kept}

    def _decide(self, names: tuple[Any, ...], record: Record, log: ProblemLog) -> Plan | Unusable:
        table = Table(record, self._sample, self._reading, self._known_labels)
        try:
            plan = _never(table) or choose(table) or _refusal(table)
        except RecursionError:
            plan = Unusable("too-deep", "A record is nested too deeply to be read.")
        self._first = self._first or record
        if isinstance(plan, Plan):
            if plan.fixed and self._counted is None:
                self._counted = plan
            self._tell(plan, record, log)
        if len(self._plans) < MOST_PLANS:
            self._plans[names] = plan
        return plan

    def _tell(self, plan: Plan, record: Record, log: ProblemLog) -> None:
        """Say once what was decided, and which columns are not used."""
        for kind, sentence in plan.notes:
            if sentence not in self._named:
                self._named.add(sentence)
                log.warn(kind, sentence)
        used = {name.split(".")[0] for _, name in plan.parts} | {name for _, name in plan.parts}
        unused = [str(name) for name in record if str(name).strip() and name not in used | self._named]
        if unused and len(self._named) < MOST_NAMED:
            self._named.update(unused)
            listed = one_line(", ".join(map(repr, unused)), 200)
            log.warn("unused-columns", f"Columns that are not used: {listed}.")

    @property
    def schemas(self) -> Counter[str]:
        """How many records were read by each schema, in words with the columns used."""
        columns: dict[str, dict[str, None]] = {}
        counts: Counter[str] = Counter()
        for plan, count in self._rows.most_common():
            columns.setdefault(plan.kind, {}).update(dict.fromkeys(name for _, name in plan.parts))
            counts[plan.kind] += count
        named = {kind: one_line(", ".join(names), 120) for kind, names in columns.items()}
        return Counter({f"{kind}: {named[kind]}": count for kind, count in counts.items()})

    @property
    def schema(self) -> str:
        """The schemas found, the most frequent first."""
        found = self.schemas.most_common()
        if len(found) < 2:
            return next((name for name, _ in found), "")
        return "; ".join(f"{name} ({count:,} row{'s' if count > 1 else ''})" for name, count in found)

    @property
    def questions(self) -> tuple[Question, ...]:
        """What the file leaves open, each kind once; the first option of each is the one taken."""
        found: dict[str, Question] = {}
        for plan, _ in self._rows.most_common():
            for question in plan.questions:
                found.setdefault(question.kind, question)
        return tuple(found.values())

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the most frequent schema, or of the first records where none is known."""
        names = next((names for plan, _ in self._rows.most_common(1) for names in self._names_of(plan)), None)
        rows = [row for row in self._sample or (self._first,) if names is None or tuple(row) == names]
        shown = rows or [row for row in (self._first,) if row]
        if not shown:
            return ()
        plan = self._plans.get(tuple(shown[0]))
        parts = (
            {name: part for part, name in plan.parts}
            if isinstance(plan, Plan)
            else _likely(shown, self._reading)
        )
        return tuple(Column(str(name), _cells(shown, name), parts.get(name, "")) for name in shown[0])

    def _names_of(self, plan: Plan) -> list[tuple[Any, ...]]:
        return [names for names, found in self._plans.items() if found is plan]

    @property
    def labels(self) -> tuple[str, ...]:
        """The fixed set of labels of a classification; empty for anything else."""
        if self._counted is None or not self._counted.labels:
            return ()
        return sorted_labels({*self._counted.labels, *(label for label in self._answers if label.strip())})

    def revised(self) -> Detector | None:
        """A detector for reading the file once more, where all rows tell other labels than the first did.

        None when the labels were told rightly, which is the rule. The second reading is right for certain.
        """
        if self._counted is None or self._known_labels is not None:
            return None
        answers = Counter({answer: count for answer, count in self._answers.items() if answer.strip()})
        fixed = self._counted.fixed is not None and self._counted.fixed(answers)
        if (sorted_labels(answers) if fixed else ()) == self._counted.labels:
            return None
        return Detector(self._reading, self._sample, answers)

    def again(self) -> Detector:
        """A detector for reading the same file once more, to count its rows anew."""
        return Detector(self._reading, self._sample, self._known_labels)

    def finish(self, log: ProblemLog) -> None:
        """Say what only the whole file tells: labels that are nearly equal, rare, or nearly always right,
        and named ones that no row has."""
        if len(self._answers) <= MOST_ANSWERS:
            for kind, sentence in unused_names(self._answers, dict(self._reading.labels)):
                log.warn(kind, sentence)
        if self.labels and self._answers:
            answers = Counter({label: count for label, count in self._answers.items() if label.strip()})
            for kind, sentence in label_findings(answers) if answers else []:
                log.warn(kind, sentence)


def as_record(value: Any) -> Record | None:
    """An entry as an object: a list is a conversation, a text a row of text; None for anything else."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list):
        return {"messages": value}
    return {"text": value} if isinstance(value, str) and value.strip() else None


def choose(table: Table) -> Plan | None:
    """How records like this one are read; None when nothing fits."""
    first = _FORMS.get(table.reading.form, ())
    if table.given("label"):
        first = (classification,)
    for schema in (*first, *SCHEMAS):
        plan = schema(table)
        if plan is not None:
            return plan
    return nested(table, choose)


def _never(table: Table) -> Unusable | None:
    """A table of single messages would pass for texts, but is no data to learn from."""
    role = next((table.names[key] for key in ("role", "from", "speaker") if key in table.names), None)
    if role is None or table.reading.columns or not table.holds(role, lambda cell: role_of(cell) is not None):
        return None
    if not any(name in table.names for name in ("content", "text", "value", "message")):
        return None
    return Unusable("one-message-a-row", "A row is one message of a conversation instead of a whole one.")


def _refusal(table: Table) -> Unusable:
    """Why no schema fits, as exactly as the columns tell."""
    if table.find("tokens"):
        return Unusable(
            "pre-tokenised",
            "The rows are token ids of some model (input_ids), not texts that can be shown and checked.",
        )
    if table.find("question"):
        return Unusable("no-answer-column", "There is a question, but no known column holds an answer.")
    return Unusable("unknown-columns", f"The columns are not known; accepted: {ACCEPTED}.")


def _likely(rows: Sequence[Record], reading: Reading) -> dict[str, str]:
    """Parts proposed for unknown columns: the longest texts answer, the most question marks ask."""
    table = Table(rows[0], rows, reading)
    texts = text_columns(table)
    if len(texts) < 2:
        return {}
    longest = max(texts, key=lambda name: sum(len(cell_text(cell)) for cell in table.cells(name)))
    others = [name for name in texts if name != longest]
    question = others[0]
    for name in others[1:]:
        question = likely_question(table, question, name)
    return {question: "question", longest: "answer"}


def _cells(rows: Sequence[Record], name: str) -> tuple[str, ...]:
    cells = (cell_text(decoded(row[name])) for row in rows if name in row)
    return tuple(islice((one_line(cell, 80) for cell in cells if cell.strip()), SAMPLES))
