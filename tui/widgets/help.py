"""Help in plain words: one heading of a help file, in a box."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from ollama_tune.core.paths import asset
from ollama_tune.tui.widgets.modal import BoxScreen


def help_text(section: str, heading: str) -> str:
    """The text below a heading of `assets/help/<section>.md`; empty when there is none."""
    path = asset(f"help/{section}.md")
    if not path.is_file():
        return ""
    for part in path.read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        if title.strip() == heading:
            return text.strip()
    return ""


def paragraphs(text: str) -> Content:
    """Paragraphs with their `**bold**` words; lines are joined, blank lines kept."""
    blocks = []
    for block in text.split("\n\n"):
        parts = " ".join(block.split()).split("**")
        blocks.append(Content.assemble(*((part, "bold" if i % 2 else "") for i, part in enumerate(parts))))
    return Content("\n\n").join(blocks)


class HelpScreen(BoxScreen[None]):
    """One heading of the help; arrows scroll."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,escape,f1,question_mark,q", "refuse", "Close", priority=True),
        Binding("down", "scroll(1)", "Scroll", show=False),
        Binding("up", "scroll(-1)", "Scroll", show=False),
    ]

    def __init__(self, section: str, heading: str) -> None:
        super().__init__(f"Help: {heading.replace('_', ' ')}")
        self._text = help_text(section, heading) or "There is no help for this yet."

    def content(self) -> ComposeResult:
        """The text."""
        yield Static(paragraphs(self._text))

    def action_scroll(self, lines: int) -> None:
        """Move the text."""
        self.query_one("#content").scroll_relative(y=lines, animate=False)
