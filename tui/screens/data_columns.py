"""A window to say how a file is read: which column is what, the kind of task, and the splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from ollama_tune.core.text import one_line
from ollama_tune.tui.fields import FormField
from ollama_tune.tui.review_words import FORMS
from ollama_tune.tui.widgets.form import LABEL, FieldRow, Form
from ollama_tune.tui.widgets.modal import BoxScreen, paragraph
from ollama_tune.tui.wrapping import fitted

if TYPE_CHECKING:
    from ollama_tune.core.data.values import Column

PARTS = (
    ("", "not used"),
    ("question", "question"),
    ("answer", "answer"),
    ("system", "system prompt"),
    ("context", "context"),
    ("text", "text"),
    ("label", "label"),
    ("conversation", "conversation"),
    ("chosen", "better answer"),
    ("rejected", "worse answer"),
)
_FORMS = (("", "told by content"), *FORMS.items())
WHOLE = (
    (FormField("data.form", "Kind of task", "", _FORMS, 24), "what a row is: a conversation, a text, …"),
    (FormField("data.split", "Train on", width=24, wordy=True), "split or file, where there are several"),
    (FormField("data.validation", "Measure on", width=24, wordy=True), "split or file; empty: a share"),
)
REMOTE = (
    (FormField("data.subset", "Configuration", width=24, wordy=True), "of a hub data set that has several"),
    (FormField("data.revision", "Revision", width=24, wordy=True), "of a hub data set; empty: the newest"),
)
MOST_LABELS = 20
TOO_MANY = "The {} labels are too many to name here: write `labels` below `data` in a run.yaml."
ASKED = "What is each column? ← and → change it."
NOTHING = "There is nothing that has to be said; this is for data of several kinds or parts."
NEEDED = "Say which column is the answer, or which holds a text or a whole conversation."


class ReadingScreen(BoxScreen[dict[str, Any]]):
    """Columns with samples beside their names, then what concerns the whole data set.

    `values` are the person's settings so far, by dotted path; returns all of them, changed. What only a data
    set of the hub has is asked where it is `remote`; `why` is what is wrong with it as it is. `labels` are
    the values of the label column that may be given a name.
    """

    DEFAULT_CSS = """
    ReadingScreen #form { height: auto; max-height: 100%; margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", "Read it so", priority=True),
        Binding("escape", "refuse", "Leave it as it is"),
        Binding("f1,question_mark", "explain", "Help"),
    ]

    def __init__(
        self,
        columns: Sequence[Column],
        values: Mapping[str, Any],
        remote: bool,
        why: str = "",
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__("How the data is read")
        self._why = why
        self._columns = columns
        self._values = dict(values)
        self._edited: dict[str, Any] = {}
        self._whole = WHOLE + REMOTE if remote else WHOLE
        self._labels = labels if len(labels) <= MOST_LABELS else ()
        self._too_many = len(labels) - len(self._labels)

    def content(self) -> ComposeResult:
        """A row for each column and each setting."""
        if self._why:
            yield paragraph(f"✗ {self._why}")
        yield paragraph(ASKED if self._columns else NOTHING)
        with Form(id="form"):
            for index, column in enumerate(self._columns):
                yield FieldRow(_field(index, column))
            if self._too_many:
                yield paragraph(TOO_MANY.format(self._too_many))
            for index, value in enumerate(self._labels):
                yield FieldRow(FormField(f"label.{index}", _label("label " + value), "", (), 24, True))
            for field, _ in self._whole:
                yield FieldRow(field)

    def on_mount(self) -> None:
        """What is taken now stands in the fields."""
        given = {name: part for part, name in dict(self._values.get("data.columns", {})).items()}
        for row, column in zip(self._rows(), self._columns, strict=False):
            part = given.get(column.name, column.part)
            row.show_value(part)
            self._edited[row.field.path] = part
            row.tell(" · ".join(one_line(sample, 40) for sample in column.samples[:2]) or "(empty)")
        names = dict(self._values.get("data.labels", {}))
        for index, value in enumerate(self._labels):
            row = self._row(f"label.{index}")
            row.show_value(names.get(value, ""))
            row.tell(f"the name of this class; empty: it stays {one_line(value, 20)}")
        for field, words in self._whole:
            row = self._row(field.path)
            row.show_value(self._values.get(field.path, ""))
            row.tell(words)
        next(self._rows()).editor.focus()

    def _row(self, path: str) -> FieldRow:
        return self.query_one("#field-" + path.replace(".", "-"), FieldRow)

    def _rows(self) -> Iterator[FieldRow]:
        yield from self.query(FieldRow)

    @on(FieldRow.Edited)
    def _changed(self, event: FieldRow.Edited) -> None:
        event.row.complain("")
        self._edited[event.row.field.path] = event.value

    def action_take(self) -> None:
        """Return what was said, unless two columns play one part or none can be learned."""
        parts = [(self._edited.get(f"column.{i}", ""), column) for i, column in enumerate(self._columns)]
        chosen = {part: column.name for part, column in reversed(parts) if part}
        for index, (part, column) in enumerate(parts):
            if part and chosen[part] != column.name:
                self._complain(index, f"The column {one_line(chosen[part], 30)} is the {part} already.")
                return
        if self._columns and not chosen.keys() & {"answer", "text", "label", "conversation", "chosen"}:
            self._complain(0, NEEDED)
            return
        self.dismiss(self._result(chosen))

    def _complain(self, index: int, text: str) -> None:
        row = self._row(f"column.{index}")
        row.complain(text)
        row.editor.focus()

    def _result(self, chosen: dict[str, str]) -> dict[str, Any]:
        """The settings; columns only where they are other than what the file itself says."""
        told = {column.part: column.name for column in self._columns if column.part}
        said = self._why or chosen != told or "data.columns" in self._values
        whole = {
            field.path: str(self._edited.get(field.path, self._values.get(field.path, ""))).strip()
            for field, _ in self._whole
        }
        named = {"data.columns": chosen if said else {}, "data.labels": self._names()}
        values = self._values | whole | named
        return {path: value for path, value in values.items() if value}

    def _names(self) -> dict[str, str]:
        """The names of the labels: those of before, changed."""
        typed = {
            value: str(self._edited[path]).strip()
            for index, value in enumerate(self._labels)
            if (path := f"label.{index}") in self._edited
        }
        names = dict(self._values.get("data.labels", {})) | typed
        return {value: name for value, name in names.items() if name}

    def action_explain(self) -> None:
        """The help of the focused field."""
        from ollama_tune.tui.widgets.help import show_help

        row = next((row for row in self._rows() if row.editor.has_focus), None)
        kind, _, name = (row.field.path if row else "column.").partition(".")
        show_help(self.app, "data", name if kind == "data" else f"{kind}s")


def _field(index: int, column: Column) -> FormField:
    known = {part for part, _ in PARTS}
    special = () if column.part in known else ((column.part, column.part.replace("_", " ")),)
    return FormField(f"column.{index}", _label(column.name), "", (*PARTS, *special), 20)


def _label(name: str) -> str:
    return fitted(name, LABEL - 1)
