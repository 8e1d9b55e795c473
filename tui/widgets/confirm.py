"""Questions that need a yes: one key, or a typed word where the step is a big one."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input

from ollama_tune.tui.widgets.form import TextField
from ollama_tune.tui.widgets.modal import BoxScreen, paragraph


class _Question(BoxScreen[bool]):
    """`title` names the thing that is touched, `text` says what happens and what is kept."""

    refused = False

    def __init__(self, title: str, text: str) -> None:
        super().__init__(title)
        self._text = text

    def content(self) -> ComposeResult:
        """What happens."""
        yield paragraph(self._text)


class ConfirmScreen(_Question):
    """A question that `y` answers with yes and everything else with no: Enter never says yes."""

    HELP_TOPIC: ClassVar[tuple[str, str]] = ("windows", "Question")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "accept", "Yes"),
        Binding("n,enter,escape", "refuse", "No", priority=True),
    ]

    def action_accept(self) -> None:
        """Yes."""
        self.dismiss(True)


class TypedConfirmScreen(_Question):
    """A question that only the typed word `yes` answers with yes."""

    HELP_TOPIC: ClassVar[tuple[str, str]] = ("windows", "Typed question")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "accept", "Answer", priority=True),
        Binding("escape", "refuse", "No", priority=True),
    ]

    def content(self) -> ComposeResult:
        """What happens, and where to type."""
        yield from super().content()
        yield paragraph("\nType yes to go on all the same:")
        yield TextField(id="typed", max_length=8)

    def action_accept(self) -> None:
        """Yes only if it says so."""
        self.dismiss(self.query_one("#typed", Input).value.strip().lower() == "yes")

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.action_accept()
