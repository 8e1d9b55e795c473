"""Windows over the data step: go to a row, and answer what a file leaves open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option as Line

from ollama_tune.core.text import one_line, visible
from ollama_tune.tui.widgets.form import NumberField
from ollama_tune.tui.widgets.modal import BoxScreen, paragraph
from ollama_tune.tui.widgets.options import Options

if TYPE_CHECKING:
    from ollama_tune.core.data.values import Column, Question

SAMPLES = 8
MAP = -1
"""In place of an answer: the person wants to say what each column is."""


class GoToScreen(BoxScreen[int]):
    """Asks for the number of a row."""

    HELP_TOPIC: ClassVar[tuple[str, str]] = ("windows", "Go to row")
    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "take", "Go there", priority=True)]

    def __init__(self, reachable: Callable[[], tuple[int, bool]]) -> None:
        """`reachable` says how many rows there are by now, and whether more are being read."""
        super().__init__("Go to row")
        self._reachable = reachable

    def content(self) -> ComposeResult:
        """Where to type."""
        yield Static(id="range", markup=False)
        yield NumberField(id="number", max_length=12)
        yield Static(id="wrong", markup=False)

    def on_mount(self) -> None:
        """The range grows when the data has been read."""
        self.watch(self.app, "facts", self._tell)

    def _tell(self) -> None:
        rows, more = self._reachable()
        yet = " (those read so far; all of them can be reached once the data is read)" if more else ""
        self.query_one("#range", Static).update(f"A number from 1 to {rows:,}{yet}:")

    def action_take(self) -> None:
        """Go there, or say what is allowed."""
        typed = self.query_one("#number", Input).value.replace(",", "").strip()
        rows, more = self._reachable()
        if typed.isdecimal() and 1 <= int(typed) <= rows:
            self.dismiss(int(typed))
        else:
            yet = " Further rows are still being read." if more else ""
            self.query_one("#wrong", Static).update(f"✗ Type a whole number from 1 to {rows:,}.{yet}")


class QuestionScreen(BoxScreen[int]):
    """One thing that a file leaves open; the likeliest answer stands first and Enter takes it. Returns the
    place of the answer, or `MAP`.

    Esc changes nothing: the likeliest is what the file is read with until somebody says otherwise.
    """

    DEFAULT_CSS = """
    QuestionScreen #options { height: auto; max-height: 8; border: none; padding: 0; margin-top: 1;
        background: $surface; }
    QuestionScreen #options:focus { border: none; background: $surface; }
    QuestionScreen #options > .option-list--option { padding: 0; }
    QuestionScreen #options > .option-list--option-highlighted { background: $primary 40%; }
    QuestionScreen #options:ansi > .option-list--option-highlighted {
        background: ansi_default; text-style: reverse;
    }
    QuestionScreen #samples { margin-top: 1; max-height: 10; text-wrap: nowrap; text-overflow: ellipsis; }
    """
    HELP_TOPIC: ClassVar[tuple[str, str]] = ("windows", "Question about the data")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", "Take it", priority=True),
        Binding("escape", "refuse", "Leave it as it is"),
        Binding("f2", "map", "Columns"),
    ]

    def __init__(self, question: Question, columns: Sequence[Column]) -> None:
        super().__init__("A question about the data")
        self._question = question
        self._columns = columns

    def content(self) -> ComposeResult:
        """Question, answers, and what stands in the columns."""
        yield paragraph(self._question.text)
        lines = [
            Line(Content.assemble(visible(option.label), ("  (likeliest)" if first else "", "dim")))
            for first, option in zip([True, *[False] * 99], self._question.options, strict=False)
        ]
        yield Options(*lines, id="options", markup=False, compact=True)
        yield Static(sample_lines(self._columns), id="samples", markup=False)

    def on_mount(self) -> None:
        """Stand on the likeliest."""
        options = self.query_one("#options", OptionList)
        options.highlighted = 0
        options.focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Columns can be mapped only where there are some."""
        return action != "map" or bool(self._columns)

    def action_map(self) -> None:
        """Say what each column is instead."""
        self.dismiss(MAP)

    @on(OptionList.OptionSelected)
    def action_take(self) -> None:
        """Take the answer under the cursor."""
        self.dismiss(self.query_one("#options", OptionList).highlighted or 0)


def sample_lines(columns: Sequence[Column]) -> Content:
    """Each column's name and its first cell, a line each."""
    lines = [
        Content.assemble((f"{one_line(column.name, 16):<18}", "bold"), one_line(_first(column), 54))
        for column in columns[:SAMPLES]
    ]
    return Content("\n").join(lines)


def _first(column: Column) -> str:
    return column.samples[0] if column.samples else ""
