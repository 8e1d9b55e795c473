"""A part of a running run in full: pushed over the training screen, fed by the same view, closed by Esc."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widget import Widget

from ollama_tune.core.text import one_line
from ollama_tune.tui.run_follower import RunFollower
from ollama_tune.tui.run_view import RunView
from ollama_tune.tui.screens.base import FramedScreen
from ollama_tune.tui.screens.run_screen import SHOW
from ollama_tune.tui.wrapping import GrowingLines

LABEL = 12


class RunWindow(FramedScreen):
    """`show_view` is called at the start, after a resize, and when the run said something new."""

    CSS_PATH = "run_window.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter", "close", "Back", priority=True),
        Binding("up", "scroll(-1)", "Scroll", show=False),
        Binding("down", "scroll(1)", "Scroll", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "edge(0)", "Top", show=False),
        Binding("end", "edge(1)", "End", show=False),
    ]

    def __init__(self, run: RunFollower) -> None:
        super().__init__()
        self.run = run
        self._shown = -1

    @property
    def view(self) -> RunView:
        """What is known of the run."""
        return self.run.view

    def about(self) -> str:
        """The run's name."""
        return one_line(self.run.folder.name, 60)

    def help_topic(self) -> tuple[str, str]:
        """The windows are explained with the training."""
        return "screens", "Training"

    def on_mount(self) -> None:
        """Show what is known, then follow it; the screen below reads the log."""
        super().on_mount()
        self.set_interval(SHOW, self._poll)

    def on_resize(self) -> None:
        """Lines have the width of the window."""
        self._shown = -1
        self.call_after_refresh(self._poll)

    def _poll(self) -> None:
        if self._shown != self.view.version:
            self._shown = self.view.version
            self.show_view()

    def show_view(self) -> None:
        """Show the view."""

    def scroller(self) -> Widget:
        """What the arrows move."""
        return self.query_one(VerticalScroll)

    def action_scroll(self, lines: int) -> None:
        """Move the text."""
        self.scroller().scroll_relative(y=lines, animate=False)

    def action_page(self, pages: int) -> None:
        """Move the text by what is seen."""
        scroller = self.scroller()
        scroller.scroll_relative(y=pages * max(scroller.size.height - 1, 1), animate=False)

    def action_edge(self, end: int) -> None:
        """To the top or to the end."""
        scroller = self.scroller()
        (scroller.scroll_end if end else scroller.scroll_home)(animate=False)

    def action_close(self) -> None:
        """Back to the run."""
        self.dismiss()


def hanging(label: str, text: str, width: int, style: str = "") -> Iterator[Content]:
    """A label and, beside it, a text in as many lines as it takes; what it holds does nothing."""
    for number, line in enumerate(GrowingLines(max(width - LABEL, 10), text).lines):
        yield Content.assemble((f"{label if not number else '':<{LABEL}}", "dim"), (line, style))
