"""Errors on screens: what happened, what to do, and the details in a file."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from ollama_tune.core.errors import TuneError
from ollama_tune.core.files import write_atomic
from ollama_tune.core.paths import state_dir
from ollama_tune.core.text import visible
from ollama_tune.tui.widgets.modal import BoxScreen, paragraph


def sentence(error: TuneError) -> Content:
    """An error for a screen: the sign, what happened, what to do."""
    return Content.assemble(
        ("✗ ", "$text-error bold"), (visible(error.what), "$text-error"), " ", visible(error.fix)
    )


def write_details(error: TuneError) -> Path:
    """Write the whole error into the state folder; returns the file."""
    path = state_dir() / f"error-{datetime.datetime.now():%Y%m%d-%H%M%S}.txt"
    write_atomic(path, f"{error.what}\n{error.fix}\n\n{error.details}\n")
    return path


class ErrorScreen(BoxScreen[None]):
    """An error that belongs to no field. `e` writes the details to a file and copies them."""

    HELP_TOPIC: ClassVar[tuple[str, str]] = ("windows", "Error")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,escape", "refuse", "Close", priority=True),
        Binding("e", "details", "Write details to a file"),
    ]

    def __init__(self, error: TuneError) -> None:
        super().__init__("Error")
        self._error = error

    def content(self) -> ComposeResult:
        """What happened and what to do."""
        yield paragraph(f"✗ {self._error.what}")
        yield paragraph(self._error.fix)
        yield Static(id="written", markup=False)

    def action_details(self) -> None:
        """Write the details; the clipboard may or may not be reached through the terminal."""
        path = write_details(self._error)
        self.app.copy_to_clipboard(path.read_text(encoding="utf-8"))
        self.query_one("#written", Static).update(
            visible(f"Sent to your terminal's clipboard; also in {path}")
        )
