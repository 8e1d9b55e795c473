"""An answer as it is written: text from a model, which may hold anything."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from ollama_tune.core.text import visible

MOST = 20_000


class AnswerPane(VerticalScroll):
    """One model's answer in a box; the lower edge says how it ended and whether it is the reference."""

    DEFAULT_CSS = """
    AnswerPane {
        height: 1fr; width: 1fr; border: round $surface-lighten-3; padding: 0 1;
        border-title-color: $foreground; border-title-style: bold; border-subtitle-color: $foreground;
        scrollbar-size-vertical: 1;
    }
    AnswerPane:focus { border: round $accent; }
    AnswerPane:ansi { border: round ansi_default; }
    AnswerPane Static { height: auto; }
    """

    def __init__(self, title: str, *, id: str) -> None:
        super().__init__(id=id)
        self.border_title = title
        self.text = ""

    def compose(self) -> ComposeResult:
        """The text."""
        yield Static(markup=False)

    def clear(self) -> None:
        """Ready for the next answer."""
        self.text = ""
        self.border_subtitle = ""
        self.query_one(Static).update("")

    def add(self, text: str) -> None:
        """Add a piece; the view follows the end."""
        self.text += text
        self.query_one(Static).update(visible(self.text[-MOST:], keep_newlines=True))
        self.scroll_end(animate=False)

    def close(self, words: Content) -> None:
        """Say how it ended."""
        self.border_subtitle = words
