"""Help in plain words: what has the focus, then the keys that work there, then the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from ollama_tune.tui.explaining import Topic
from ollama_tune.tui.help_texts import help_text, help_title
from ollama_tune.tui.keys import Keys
from ollama_tune.tui.widgets.modal import BoxScreen

WIDEST = 24


def paragraphs(text: str) -> Content:
    """Paragraphs with their `**bold**` words; lines are joined, blank lines kept."""
    blocks = []
    for block in text.split("\n\n"):
        parts = " ".join(block.split()).split("**")
        blocks.append(Content.assemble(*((part, "bold" if i % 2 else "") for i, part in enumerate(parts))))
    return Content("\n\n").join(blocks)


def key_lines(keys: Sequence[Keys]) -> Content:
    """The keys in columns, a heading for each place where they work."""
    names = [name for group in keys for name, _ in group.lines]
    width = min(max(map(len, names), default=0), WIDEST)
    blocks = [Content("\n").join(_group(group, width)) for group in keys]
    return Content("\n\n").join(blocks)


def _group(group: Keys, width: int) -> Iterator[Content]:
    yield Content.styled(group.title, "bold")
    for name, words in group.lines:
        yield Content.assemble("  ", (f"{name:<{width}}", "bold $text-accent"), "  ", words)


class HelpScreen(BoxScreen[None]):
    """The help of a topic, the keys that work now, and the help of the screen where that is another one."""

    DEFAULT_CSS = "HelpScreen .part { margin-top: 1; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,escape,f1,question_mark,q", "refuse", "Close", priority=True),
        Binding("down", "scroll(1)", "Scroll"),
        Binding("up", "scroll(-1)", "Scroll", show=False),
        Binding("pagedown,space", "page(1)", "Page down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
    ]

    def __init__(
        self, section: str, heading: str, keys: Sequence[Keys] = (), screen: Topic | None = None
    ) -> None:
        super().__init__(f"Help: {help_title(section, heading)}")
        self._topic, self._keys = (section, heading), keys
        self._screen = screen if screen != self._topic else None

    def content(self) -> ComposeResult:
        """The text, the keys, the step."""
        yield Static(paragraphs(help_text(*self._topic) or "There is no help for this yet."))
        if self._keys:
            yield Static(key_lines(self._keys), classes="part", id="keys")
        if self._screen is not None and help_text(*self._screen):
            yield Static(Content.styled(self._screen[1], "bold"), classes="part", markup=False)
            yield Static(paragraphs(help_text(*self._screen)))

    def action_scroll(self, lines: int) -> None:
        """Move the text."""
        self.query_one("#content").scroll_relative(y=lines, animate=False)

    def action_page(self, pages: int) -> None:
        """Move the text by what is seen of it."""
        content = self.query_one("#content")
        content.scroll_relative(y=pages * max(content.size.height - 1, 1), animate=False)
