"""Help in plain words: what has the focus, then the keys that work there, then the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from ollama_tune.core.text import visible
from ollama_tune.tui.explaining import Topic
from ollama_tune.tui.help_texts import help_text, help_title
from ollama_tune.tui.keys import Keys
from ollama_tune.tui.widgets.modal import BoxScreen

WIDEST = 24
KEPT = "help"


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
    """The help of a topic, the keys that work now, and the help of the screen where that is another one; see
    `show_help`."""

    DEFAULT_CSS = "HelpScreen .part { margin-top: 1; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,escape,f1,question_mark,q", "refuse", "Close", priority=True),
        Binding("down", "scroll(1)", "Scroll"),
        Binding("up", "scroll(-1)", "Scroll", show=False),
        Binding("pagedown,space", "page(1)", "Page down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
    ]

    def __init__(self) -> None:
        super().__init__("")
        self._parts: Sequence[Content] = ()

    def tell(
        self, section: str, heading: str, keys: Sequence[Keys] = (), screen: Topic | None = None
    ) -> None:
        """What is shown from now on, from its beginning."""
        step = help_text(*screen) if screen is not None and screen != (section, heading) else ""
        before, self._title = self._parts, f"Help: {help_title(section, heading)}"
        self._parts = (
            paragraphs(help_text(section, heading) or "There is no help for this yet."),
            key_lines(keys),
            Content.styled(screen[1], "bold") if screen is not None and step else Content(""),
            paragraphs(step),
        )
        if self.is_mounted:
            self.query_one("#box").border_title = Content(visible(self._title))
            self.query_one("#content").scroll_home(animate=False)
            for shown, part, known in zip(self.query(Static), self._parts, before, strict=True):
                if not part.is_same(known):
                    shown.display = bool(part)
                    shown.update(part)

    def content(self) -> ComposeResult:
        """The text, the keys, the step's title and text; what is empty is not seen."""
        for part, classes in zip(self._parts, ("", "part", "part", ""), strict=True):
            shown = Static(part, classes=classes, markup=False)
            shown.display = bool(part)
            yield shown

    def action_scroll(self, lines: int) -> None:
        """Move the text."""
        self.query_one("#content").scroll_relative(y=lines, animate=False)

    def action_page(self, pages: int) -> None:
        """Move the text by what is seen of it."""
        content = self.query_one("#content")
        content.scroll_relative(y=pages * max(content.size.height - 1, 1), animate=False)


def show_help(
    app: App[Any], section: str, heading: str, keys: Sequence[Keys] = (), screen: Topic | None = None
) -> None:
    """Open the help of a topic, of the keys that work now, and of the screen where that is another one.

    The window is kept for the next time: to make its widgets anew takes as long as to paint them.
    """
    if not app.is_screen_installed(KEPT):
        app.install_screen(HelpScreen(), KEPT)
    window = app.get_screen(KEPT, HelpScreen)
    if window not in app.screen_stack:
        window.tell(section, heading, keys, screen)
        app.push_screen(window)
