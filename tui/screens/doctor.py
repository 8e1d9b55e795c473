"""The doctor in a window: what works on this machine, line by line as it is tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Static
from textual.worker import get_current_worker

from ollama_tune.core.text import visible
from ollama_tune.tui.widgets.modal import BoxScreen

WIDEST, NARROWEST = 76, 40


class DoctorScreen(BoxScreen[None]):
    """Esc closes it at any time; what is being tried then ends by itself."""

    HELP_TOPIC: ClassVar[tuple[str, str]] = ("windows", "Doctor")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "scroll(1)", "Scroll"),
        Binding("up", "scroll(-1)", "Scroll", show=False),
        Binding("pagedown,space", "scroll(10)", "Page down", show=False),
        Binding("pageup", "scroll(-10)", "Page up", show=False),
    ]

    @dataclass
    class Found(Message):
        """More lines; `trying` names what is waited for, empty at the end."""

        lines: list[str]
        trying: str = ""

    def __init__(self) -> None:
        super().__init__("What works on this machine")
        self._lines: list[str] = []

    def content(self) -> ComposeResult:
        """The lines, and what is waited for."""
        yield Static(id="found", markup=False)
        yield Static("Looking …", id="trying", markup=False)

    def on_mount(self) -> None:
        """Begin once the width is known."""
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        self._examine(min(max(self.query_one("#content").size.width - 2, NARROWEST), WIDEST))

    @work(thread=True, exclusive=True, exit_on_error=False, group="doctor")
    def _examine(self, width: int) -> None:
        from ollama_tune.tui.doctor_cli import doctor_lines

        worker = get_current_worker()
        for line in doctor_lines(width=width, tell=lambda trial: self._tell([], trial)):
            if worker.is_cancelled:
                return
            self._tell([line], "…")
        self._tell([], "")

    def _tell(self, lines: list[str], trying: str) -> None:
        self.post_message(self.Found(lines, trying))

    @on(Found)
    def _show(self, message: Found) -> None:
        self._lines += message.lines
        if message.lines:
            self.query_one("#found", Static).update(visible("\n".join(self._lines), keep_newlines=True))
        self.query_one("#trying", Static).update(visible(message.trying and f"Trying {message.trying} …"))

    def action_scroll(self, lines: int) -> None:
        """Move the text."""
        self.query_one("#content").scroll_relative(y=lines, animate=False)
