"""Classification as chat: a text is the question, the name of its class the answer, from a fixed set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.schemas.cells import cell_text, content_text, is_nothing
from ollama_tune.core.data.schemas.columns import ALIASES, INSTRUCTIONS, normal
from ollama_tune.core.data.schemas.dialogues import shown
from ollama_tune.core.data.schemas.table import Note, Plan, Record, Table, make_plan
from ollama_tune.core.data.schemas.turns import Conversation
from ollama_tune.core.data.values import Message, Option, Question
from ollama_tune.core.text import one_line

MOST_LABELS = 50
"""More different answers than this are no fixed set."""
LARGEST_SHARE = 0.2
"""A fixed set has fewer different answers than this share of the rows."""
LONGEST_LABEL = 40
"""Characters of the median answer of a fixed set."""
FEW_ROWS = 50
"""Below this many rows the share says little: up to 10 answers that repeat are a fixed set."""
RARE = 5
"""A label with fewer rows can hardly be learned."""
_PLAIN_NAMES = frozenset(ALIASES["label"]) - {"topic", "target", "category", "polarity"}


def system_text(labels: Iterable[str]) -> str:
    """What the model is told before every text."""
    return f"Classify the text. Answer with exactly one of: {', '.join(labels)}."


def label_of(cell: Any, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """The class of a cell, by its name where `names` has one for the value.

    Whole numbers are without a fraction; -1 without a name means no class and is nothing.
    """
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if isinstance(cell, list) and cell:
        return ", ".join(label_of(part, names) for part in cell)
    value = cell_text(cell)
    none = cell == -1 and not isinstance(cell, bool)
    return names.get(value.strip(), "" if none else value)


def values_to_name(labels: Iterable[str], names: Mapping[str, str]) -> tuple[str, ...]:
    """The values that a person may give a name: labels that are numbers, and all that have a name now.

    `labels` are those found with the `names` of now. Empty where other texts tell what a class is.
    """
    unnamed = _unnamed(labels, names)
    numbers = [label for label in unnamed if _is_number(label)]
    return sorted_labels({*names, *numbers}) if names or len(numbers) == len(unnamed) else ()


def _unnamed(labels: Iterable[str], names: Mapping[str, str]) -> list[str]:
    given = set(names.values())
    return [label for label in labels if label not in given]


def sorted_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels in an order that does not depend on the rows: numbers by size, then texts."""
    return tuple(
        sorted(labels, key=lambda label: (not _is_number(label), _size(label), label.casefold(), label))
    )


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal()


def _size(label: str) -> int:
    return int(label) if _is_number(label) and len(label) < 20 else 0


def is_fixed_set(labels: Counter[str], named: bool = True) -> bool:
    """Whether answers are few, short and repeated enough to be the classes of a classification.

    In a small file they must repeat more where the column is not `named` like a label.
    """
    rows, distinct = sum(labels.values()), len(labels)
    if not distinct or distinct > MOST_LABELS:
        return False
    if sorted(map(len, labels.elements()))[rows // 2] > LONGEST_LABEL:
        return False
    if rows >= FEW_ROWS:
        return distinct / rows < LARGEST_SHARE
    return distinct <= 10 and (distinct < rows or rows < 4 if named else 3 * distinct <= rows)


def classification(table: Table) -> Plan | None:
    """A text and its label, or a text and a free answer where the labels are no fixed set."""
    if table.given("answer") or table.given("conversation"):
        return None
    label = _label_column(table)
    texts = _text_columns(table, label)
    if label is None or not texts:
        return None
    names = dict(table.reading.labels)
    seen = {(cell_text(row[texts[0]]), label_of(row[label], names)) for row in table.rows(texts[0], label)}
    counted = table.labels or Counter(name for _, name in seen if name)
    test = _test(table.reading.form, bool(names) or normal(label) in _PLAIN_NAMES)
    fixed = test(counted)
    labels = sorted_labels(counted) if fixed else ()
    notes, questions = _doubts(table, label, sorted_labels(counted), fixed)
    notes += _name_notes(table, label, labels, names)
    parts = [*(("text", name) for name in texts), ("label", label)]
    plan = make_plan(
        table, "text and label" if fixed else "text and answer", parts, _base(texts, label, names), notes
    )
    return replace(plan, convert=_with_labels(plan, labels), questions=questions, labels=labels, fixed=test)


def _test(form: str, named: bool) -> Callable[[Counter[str]], bool]:
    """Whether labels are a fixed set: as a person says, else by their count."""
    return lambda labels: form == "classification" or (form != "chat" and is_fixed_set(labels, named))


def _label_column(table: Table) -> str | None:
    """A column of names before one of numbers; not one whose cells are objects or long texts."""
    if table.given("label"):
        return table.given("label")
    names = [*table.all("label_name"), *table.all("label")]
    return next((name for name in names if table.holds(name, _is_label)), None)


def _is_label(cell: Any) -> bool:
    return not isinstance(cell, dict) and len(cell_text(cell)) <= 2_000


def _text_columns(table: Table, label: str | None) -> list[str]:
    """The column of the text, and that of a second text which is judged together with it."""
    found = table.given("text") or table.find("text", label) or table.find("question", label)
    found = found or table.find("context", label)
    if found is None:
        others = [name for name in table.record if name != label and table.holds(name, _is_long)]
        found = others[0] if len(others) == 1 else None
    asks = found is not None and normal(found) in INSTRUCTIONS
    second = table.find("input" if asks else "second_text", label, found)
    return [name for name in (found, second) if name]


def _is_long(cell: Any) -> bool:
    return isinstance(cell, str) and " " in cell.strip()


def _base(texts: Sequence[str], label: str, names: Mapping[str, str]) -> Any:
    def base(record: Record, line: int, log: ProblemLog) -> list[Message]:
        parts = [content_text(record[name]) for name in texts if not is_nothing(record[name])]
        return [Message("user", "\n\n".join(parts)), Message("assistant", label_of(record[label], names))]

    return base


def _with_labels(plan: Plan, labels: tuple[str, ...]) -> Any:
    """Adds the system text, unless a column has one, and the label by itself."""
    if not labels:
        return plan.convert
    system = Message("system", system_text(labels))

    def convert(record: Record, line: int, log: ProblemLog) -> Conversation:
        found = plan.convert(record, line, log)
        messages = found.messages
        before = () if messages[0].role == "system" else (system,)
        return found._replace(messages=(*before, *messages), label=messages[-1].content)

    return convert


def _doubts(
    table: Table, label: str, labels: Sequence[str], fixed: bool
) -> tuple[list[Note], tuple[Question, ...]]:
    if table.reading.form in ("classification", "chat"):
        return [], ()
    questions = []
    if fixed:
        said = one_line(", ".join(labels[:5]), 120) + (", …" if len(labels) > 5 else "")
        text = f"Column {label!r} is taken as the class of each text, one of {len(labels)}: {said}."
    else:
        text = (
            f"Column {label!r} has too many or too long values for fixed labels; they are learned as answers."
        )
    plain = normal(label) in _PLAIN_NAMES and len(table.cells(label)) >= FEW_ROWS
    certain = fixed and bool(table.reading.labels or (plain and not all(map(_is_number, labels))))
    if not certain:
        options = [
            Option(
                f"A class, one of {', '.join(map(shown, labels[:5]))}",
                table.reading_with({}, "classification"),
            ),
            Option("A free answer to the text", table.reading_with({}, "chat")),
        ]
        asked = f"What is column {label!r}?"
        questions.append(Question("labels", asked, tuple(options if fixed else reversed(options))))
    return [("labels" if fixed else "free-labels", text)], tuple(questions)


def _name_notes(table: Table, label: str, labels: Sequence[str], names: Mapping[str, str]) -> Iterator[Note]:
    """Classes that are still numbers, and values that became one class by their names."""
    unnamed = _unnamed(labels, names)
    if unnamed and all(map(_is_number, unnamed)):
        some = "Some labels" if names else "The labels"
        text = f"{some} in column {label!r} are numbers, whose meaning is not known ({_listed(unnamed)})."
        how = f"Name them with --labels {unnamed[0]}=…, or on the step Data with F2."
        yield "number-labels", f"{text} {how}"
    values = {*names, *map(label_of, table.cells(label))} if names else set()
    counts = Counter(names.get(value, value) for value in values)
    merged = [name for name, count in counts.items() if count > 1]
    if merged:
        text = f"Several values of column {label!r} have one name and are one class: {_listed(merged)}."
        yield "merged-labels", text


def _listed(labels: Iterable[str]) -> str:
    return one_line(", ".join(sorted_labels(labels)), 120)


def unused_names(labels: Iterable[str], names: Mapping[str, str]) -> list[Note]:
    """What to say of values that were given a name but that no row has; `labels` are those of all rows."""
    found = {part for label in labels for part in (label, *label.split(", "))}
    missing = [value for value, name in names.items() if name not in found]
    text = f"No row has the label {_listed(missing)}, which was given a name."
    return [("unused-names", text)] if missing else []


def label_findings(labels: Counter[str]) -> list[Note]:
    """What is unhealthy about the labels of a whole file: nearly equal names, rare ones, one that rules."""
    notes: list[Note] = []
    alike = Counter(" ".join(label.casefold().split()) for label in labels)
    doubled = [label for label in labels if alike[" ".join(label.casefold().split())] > 1]
    if doubled:
        listed = one_line(", ".join(map(repr, sorted(doubled))), 120)
        notes.append(("labels-alike", f"Some labels differ only in case or blanks: {listed}."))
    rare = [label for label, count in labels.items() if count < RARE]
    if rare:
        listed = one_line(", ".join(sorted(rare)), 120)
        notes.append(("rare-labels", f"Labels with fewer than {RARE} rows can hardly be learned: {listed}."))
    label, count = labels.most_common(1)[0]
    share = count / sum(labels.values())
    if len(labels) > 1 and share > max(0.5, 1.5 / len(labels)):
        name = one_line(label, 40)
        notes.append(
            (
                "majority",
                f"{share:.0%} of the rows have the label {name}: always saying it is right as often.",
            )
        )
    if len(labels) == 1:
        notes.append(("one-label", "All rows have the same label, so there is nothing to learn."))
    return notes
