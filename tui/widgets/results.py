"""Held-out questions with the answers of both models: two lines each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.app import RenderResult
from textual.binding import BindingType
from textual.content import Content
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from ollama_tune.core.evaluate.conversation import Result
from ollama_tune.tui.keys import list_keys
from ollama_tune.tui.wrapping import fitted

LEFT = 5
"""Cells of the cursor and the number."""
GAP = 2
WAITING = {"cancelled": "■ stopped", "long": "! too long for the model"}


class ResultList(ScrollView, can_focus=True):
    """Question and wanted answer in the first line of a row, base and tuned model below them."""

    DEFAULT_CSS = """
    ResultList { height: 1fr; background: $background; scrollbar-size-vertical: 1; overflow-x: hidden; }
    ResultList:ansi { background: ansi_default; }
    ResultList .results--right { color: $text-success; }
    ResultList .results--wrong { color: $text-error; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"results--right", "results--wrong"}
    BINDINGS: ClassVar[list[BindingType]] = list_keys()
    cursor: reactive[int] = reactive(0, init=False)

    @dataclass
    class Opened(Message):
        """A row was clicked on twice."""

        number: int

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._results: Sequence[Result] = ()

    def show(self, results: Sequence[Result]) -> None:
        """Show other results; the cursor stays where it is."""
        self._results = results
        self.virtual_size = Size(0, 2 * len(results))
        self.cursor = min(self.cursor, max(len(results) - 1, 0))
        self.refresh()

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        if self._results:
            self.cursor = min(max(self.cursor + by, 0), len(self._results) - 1)

    def action_page(self, by: int) -> None:
        """Move the cursor by what is seen."""
        self.action_move(by * max(self.size.height // 2 - 1, 1))

    def watch_cursor(self, cursor: int) -> None:
        """Keep the cursor in sight."""
        self.scroll_to_region(Region(0, 2 * cursor, 1, 2), animate=False, force=True)
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        """Put the cursor where the pointer is."""
        number = (self.scroll_offset.y + event.y) // 2
        if number == self.cursor:
            self.post_message(self.Opened(number))
        self.action_move(number - self.cursor)

    def render_line(self, y: int) -> Strip:
        """One of the two lines of a row."""
        number, lower = divmod(self.scroll_offset.y + y, 2)
        width = self.size.width
        if number >= len(self._results):
            return Strip.blank(width, self.rich_style)
        result, here = self._results[number], number == self.cursor
        question = result.question
        texts = [question.shown, question.reference]
        if lower:
            texts = [answer_words(result, model) for model in ("base", "tuned")]
        mark = " " if lower else "▶" if here else " "
        left = f"{mark}{'' if lower else number + 1:>3} "
        style = self.rich_style + Style(bold=here, dim=not lower and not here)
        first, second = columns(texts, width)
        parts = [left, first, " " * GAP, second]
        segments = [part for text in parts for part in self._segments(text, style, bool(lower))]
        return Strip(segments).adjust_cell_length(width, style)

    def _segments(self, text: str, style: Style, coloured: bool) -> list[Segment]:
        """A text, the sign that it begins with in colour; the sign says it without colour too."""
        name = {"✓": "results--right", "✗": "results--wrong"}.get(text[0]) if coloured else None
        if name is None:
            return [Segment(text, style)]
        colour = Style(color=self.get_component_rich_style(name).color)
        return [Segment(text[0], style + colour), Segment(text[1:], style)]


class ResultHead(Widget):
    """What stands where in the rows below."""

    DEFAULT_CSS = "ResultHead { height: 2; text-wrap: nowrap; color: $text-muted; }"

    def render(self) -> RenderResult:
        """Two lines, as a row has them."""
        names = (("Question", "Wanted"), ("Base model", "Tuned model"))
        lines = [" " * LEFT + (" " * GAP).join(columns(texts, self.size.width)) for texts in names]
        return Content("\n".join(lines))


def answer_words(result: Result, model: str) -> str:
    """`✓ 1.00 2 TEA`, or why there is no figure."""
    answer, judged = result.answers.get(model), result.judged(model)
    if answer is None:
        return "· …"
    if judged is None:
        return f"{WAITING.get(answer.end, '')} {answer.text if answer.end == 'cancelled' else ''}"
    return f"{'✓' if judged.exact else '✗'} {judged.similarity:.2f} {answer.text}"


def columns(texts: Sequence[str], width: int) -> list[str]:
    """Two texts of one line, each cut or filled to half of the width."""
    half = max((width - LEFT - GAP) // 2, 4)
    return [fitted(text, half) for text in texts]
