"""How the models are asked, in a box over Try it: system prompt, sampling, and the longest answer."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from ollama_tune.core.errors import UsageError
from ollama_tune.core.evaluate.asking import LIMITS, Asking
from ollama_tune.tui.fields import FormField
from ollama_tune.tui.widgets.form import FieldRow, Form, TextField
from ollama_tune.tui.widgets.modal import BoxScreen

HELP = "try_it"
FIELDS = (
    FormField("system", "System prompt", width=26, wordy=True),
    FormField("temperature", "Temperature", width=8),
    FormField("top_p", "Top-p", width=8),
    FormField("top_k", "Top-k", width=8),
    FormField("seed", "Seed", width=12),
    FormField("max_new_tokens", "Longest answer", "tokens", width=8),
)
REASONS = {
    "system": "empty: none; \\n is a new line",
    "temperature": "at 0 always the likeliest token",
    "top_p": "at 1 all tokens",
    "top_k": "at 0 all tokens",
    "seed": "for a temperature above 0",
    "max_new_tokens": "as long as the answers that the run measured",
}


class AskingScreen(BoxScreen[Asking | None]):
    """A form of what is said with every question. Enter takes it over, Esc leaves it as it was.

    `usual` is what is recommended, and `system` the system prompt where none was chosen.
    """

    HELP_TOPIC = (HELP, "Try it")
    DEFAULT_CSS = "AskingScreen #box KeyBar { dock: bottom; } AskingScreen Form { height: auto; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", "OK", priority=True),
        Binding("escape", "refuse", "Cancel"),
        Binding("ctrl+r", "restore", "Recommended"),
    ]

    def __init__(self, asking: Asking, usual: Asking, system: str) -> None:
        super().__init__("How to ask")
        self._asking, self._usual, self._system = asking, usual, system

    def content(self) -> ComposeResult:
        """The fields."""
        with Form():
            for field in FIELDS:
                yield FieldRow(field)

    def on_mount(self) -> None:
        """Show what is so now."""
        for row in self.query(FieldRow):
            row.put(self._text(row.field.path, self._asking))
            if isinstance(row.editor, TextField):
                row.editor.placeholder = "none" if row.field.wordy else ""
            self._explain(row)
        self.query(FieldRow).first().editor.focus()

    def _text(self, name: str, asking: Asking) -> str:
        if name == "system":
            return written(asking.system if asking.system is not None else self._system)
        value = asking.get(name)
        return f"{value:g}" if isinstance(value, float) else str(value)

    def _explain(self, row: FieldRow) -> None:
        recommended = self._text(row.field.path, self._usual)
        changed = self._typed(row) != recommended
        row.tell(REASONS[row.field.path], (recommended or "none") if changed else "")

    @staticmethod
    def _typed(row: FieldRow) -> str:
        assert isinstance(row.editor, TextField)
        return row.editor.value.strip()

    def _read(self, row: FieldRow, asking: Asking) -> Asking:
        """The values with that of a field; `UsageError` where it is none."""
        name, text = row.field.path, self._typed(row)
        if name != "system":
            return asking.with_value(name, LIMITS[name].read(text))
        usual = text == written(self._system)
        return asking.with_value(name, None if usual else meant(text))

    def _judge(self, row: FieldRow) -> bool:
        try:
            self._asking = self._read(row, self._asking)
        except UsageError as error:
            row.complain(error.what)
            return False
        row.complain("")
        self._explain(row)
        return True

    @on(FieldRow.Left)
    def _left(self, message: FieldRow.Left) -> None:
        self._judge(message.row)

    @on(FieldRow.Edited)
    def _edited(self, message: FieldRow.Edited) -> None:
        if message.row.error:
            self._judge(message.row)

    def action_restore(self) -> None:
        """Put what is recommended into the focused field."""
        for row in self.query(FieldRow):
            if row.editor.has_focus:
                row.put(self._text(row.field.path, self._usual))
                self._judge(row)

    def action_take(self) -> None:
        """Take everything over, or go to the first field that is wrong."""
        wrong = [row for row in self.query(FieldRow) if not self._judge(row)]
        if wrong:
            wrong[0].editor.focus()
        else:
            self.dismiss(self._asking)

    def help_topic(self) -> tuple[str, str]:
        """That of the focused field."""
        labels = (row.field.label for row in self.query(FieldRow) if row.editor.has_focus)
        return HELP, next(labels, self.HELP_TOPIC[1])


def written(text: str) -> str:
    """A text of several lines as it stands in a field of one."""
    return text.strip().replace("\\", "\\\\").replace("\n", "\\n")


def meant(text: str) -> str:
    r"""What was typed, with `\n` as a line break and `\\` as a backslash."""
    return "\\".join(part.replace("\\n", "\n") for part in text.split("\\\\"))
