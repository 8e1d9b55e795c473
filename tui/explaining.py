"""What every screen and window can do: explain what has the focus, and its keys."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import Screen

from ollama_tune.tui.repaint import SparingCompositor

Result = TypeVar("Result")
Topic = tuple[str, str]
"""A file of `assets/help` without its suffix, and a heading in it."""


def size_classes(app: App[Any]) -> list[str]:
    """The classes of the breakpoints at this size.

    Textual sets them only after a screen's first layout, which is then done, and painted, all over again.
    """
    sides = ((app.size.width, app.HORIZONTAL_BREAKPOINTS), (app.size.height, app.VERTICAL_BREAKPOINTS))
    return [name for size, points in sides for name in _last(size, points or [])]


def _last(size: int, points: list[tuple[int, str]]) -> list[str]:
    return [name for least, name in points if size >= least][-1:]


class ExplainedScreen(Screen[Result]):
    """`?`, where it is not typed, and F1 show the help; F1 alone would not do, for some desktops take it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("f1,question_mark", "explain", "Help")]

    def __init__(self, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(name, id, classes)
        self._compositor = SparingCompositor()

    def screen_topic(self) -> Topic:
        """The help of the screen as a whole."""
        raise NotImplementedError

    def help_topic(self) -> Topic:
        """The help of what has the focus now; by default that of the screen."""
        return self.screen_topic()

    def action_explain(self) -> None:
        """Show the help of the focus, the keys that work now, and the help of the screen."""
        from ollama_tune.tui.keys import keys_now
        from ollama_tune.tui.widgets.help import show_help

        show_help(self.app, *self.help_topic(), keys_now(self), self.screen_topic())
