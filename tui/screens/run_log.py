"""The whole log of a run: its events as sentences, only the warnings, or what libraries printed."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Static

from ollama_tune.core.text import human_bytes, one_line
from ollama_tune.tui.run_follower import RunFollower
from ollama_tune.tui.run_values import LogLine
from ollama_tune.tui.run_view import LOG_LINES
from ollama_tune.tui.screens.run_window import RunWindow
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.lines import LineList
from ollama_tune.tui.widgets.log import LogTail

WARNINGS = ("!", "‖", "✗")
OUTPUT = 1 << 20
"""Of what libraries printed so many bytes are shown."""
LINES = 20_000
WIDEST = 2000

Entry = tuple[str, str, str]


class LogScreen(RunWindow):
    """Follows the log at its end; `w` leaves only warnings and errors, `o` shows what libraries printed."""

    TITLE_TEXT = "Log"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("w", "warnings", "Warnings only"),
        Binding("o", "output", "Output of libraries"),
    ]

    def __init__(self, run: RunFollower) -> None:
        super().__init__(run)
        self._only_warnings = self._output = False
        self._seen = 0
        self._tail = LogTail(run.folder.log_path)

    def body(self) -> ComposeResult:
        """What is shown, and the lines."""
        yield Static(id="head", markup=False)
        yield LineList(id="lines")

    def scroller(self) -> Widget:
        """The arrows move the lines."""
        return self.query_one(LineList)

    def _poll(self) -> None:
        if self._shown == -1:
            self._fill()
        else:
            self._follow()
        self._shown = self.view.version

    def _fill(self) -> None:
        """Everything anew, for another filter or another width."""
        self._tail = LogTail(self.run.folder.log_path, LINES, OUTPUT)
        self._seen = self.view.logged
        lines = self._printed() if self._output else self._entries(list(self.view.log))
        self.query_one(LineList).show(lines)
        self.query_one("#head", Static).update(self._head())

    def _follow(self) -> None:
        fresh = min(self.view.logged - self._seen, len(self.view.log))
        self._seen = self.view.logged
        entries = list(
            self._printed() if self._output else self._entries(list(self.view.log)[-fresh:] if fresh else [])
        )
        if entries:
            self.query_one(LineList).add(entries)

    def _entries(self, log: list[LogLine]) -> Iterator[Entry]:
        for line in log:
            if line.sign in WARNINGS or not self._only_warnings:
                when = datetime.datetime.fromtimestamp(line.t)
                yield f"{when:%d %b %H:%M:%S} ", line.sign, line.text

    def _printed(self) -> Iterator[Entry]:
        for line in self._tail.poll():
            if line.strip():
                yield "", "", one_line(line, WIDEST)

    def _head(self) -> str:
        if self._output:
            left_out = (
                f"The first {human_bytes(self._tail.left_out)} are left out. " if self._tail.left_out else ""
            )
            return f"What libraries printed. {left_out}All of it: {tilde(self.run.folder.log_path)}"
        what = "Warnings and errors." if self._only_warnings else "What happened."
        older = f" The newest {LOG_LINES:,} lines." if self.view.logged > LOG_LINES else ""
        return f"{what}{older} The end is followed while it is in sight."

    def action_warnings(self) -> None:
        """Only warnings and errors, or everything again."""
        self._only_warnings, self._output = not self._only_warnings, False
        self._fill()

    def action_output(self) -> None:
        """What libraries printed, or the events again."""
        self._output, self._only_warnings = not self._output, False
        self._fill()
