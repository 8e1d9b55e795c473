"""What all windows over a screen share: a box in the middle with a title and its keys in words."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from ollama_tune.core.text import visible
from ollama_tune.tui.explaining import ExplainedScreen, Topic, size_classes
from ollama_tune.tui.widgets.keybar import KeyBar

Result = TypeVar("Result")
WIDEST = 84


class BoxScreen(ExplainedScreen[Result], ModalScreen[Result], Generic[Result]):
    """A box over the screen. A subclass fills `content()`; Esc closes it with `refused`.

    A title that is wider than the box stands in it, wrapped.
    """

    DEFAULT_CSS = """
    BoxScreen { align: center middle; background: $background; }
    BoxScreen:ansi { background: ansi_default; }
    BoxScreen #box {
        width: 90%; max-width: 84; height: auto; max-height: 90%;
        border: round $accent; background: $surface; padding: 0 1 0 2;
        border-title-color: $foreground; border-title-style: bold;
    }
    BoxScreen:ansi #box { border: round ansi_default; background: ansi_default; }
    BoxScreen #box KeyBar { background: $surface; dock: bottom; }
    BoxScreen:ansi #box KeyBar { background: ansi_default; }
    BoxScreen #content { height: auto; max-height: 100%; margin-bottom: 1; scrollbar-size-vertical: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "refuse", "Close")]

    HELP_TOPIC: ClassVar[Topic] = ("windows", "Window")
    refused: Result | None = None

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title

    def compose(self) -> ComposeResult:
        """The box."""
        self.add_class(*size_classes(self.app))
        with Vertical(id="box") as box:
            whole = cell_len(self._title) <= min(self.app.size.width * 9 // 10, WIDEST) - 6
            box.border_title = Content(visible(self._title)) if whole else ""
            with VerticalScroll(id="content", can_focus=False):
                if not whole:
                    yield Static(Content.styled(visible(self._title), "bold"), markup=False)
                yield from self.content()
            yield KeyBar()

    def content(self) -> ComposeResult:
        """The subclass' widgets."""
        yield from ()

    def screen_topic(self) -> Topic:
        """The help of the window."""
        return self.HELP_TOPIC

    def action_refuse(self) -> None:
        """Close without a yes."""
        self.dismiss(self.refused)


def paragraph(text: str) -> Static:
    """Text from anywhere, wrapped, never read as markup."""
    return Static(Content(visible(text, keep_newlines=True)), markup=False)
