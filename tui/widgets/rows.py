"""The rows of a data set as a table that draws only what is seen, whatever their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.app import RenderResult
from textual.binding import BindingType
from textual.cache import LRUCache
from textual.content import Content
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from ollama_tune.tui.keys import list_keys
from ollama_tune.tui.wrapping import fitted

if TYPE_CHECKING:
    from ollama_tune.core.data.values import Row

KEPT = 256
"""Lines that are kept drawn: what is seen, and some pages around it."""
ROOMY = 64
"""Cells from which there is room for the row's own number beside that of its line."""
LENGTH = 8


class RowList(ScrollView, can_focus=True):
    """One line a row: its number, its line in the file, question, answer, and characters.

    Rows are asked for when they are drawn, so that the sequence may lie on the disk.
    """

    DEFAULT_CSS = """
    RowList { height: 1fr; background: $background; scrollbar-size-vertical: 1; overflow-x: hidden; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"rows--cursor"}
    BINDINGS: ClassVar[list[BindingType]] = list_keys(show=True)
    cursor: reactive[int] = reactive(0, init=False, repaint=False)

    @dataclass
    class Highlighted(Message):
        """The cursor stands on another row; `number` counts the shown rows from 1."""

        row: Row
        number: int

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._rows: Sequence[Row] = ()
        self._lines: LRUCache[int, str] = LRUCache(KEPT)
        self._style = Style()

    @property
    def rows(self) -> Sequence[Row]:
        """The rows that are shown."""
        return self._rows

    def show(self, rows: Sequence[Row], *, stay: bool = False) -> None:
        """Replace the rows; the cursor stands on the first, or where it is if it may `stay`."""
        if rows is self._rows:
            return
        at = min(self.cursor, len(rows) - 1) if stay and rows else 0
        self._rows = rows
        self._lines.clear()
        self.virtual_size = Size(0, len(rows))
        self.set_reactive(RowList.cursor, at)
        self.scroll_to_region(Region(0, at, 1, 1), animate=False, force=True)
        self.refresh()
        if rows:
            self.post_message(self.Highlighted(rows[at], at + 1))

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        if self._rows:
            self.cursor = min(max(self.cursor + by, 0), len(self._rows) - 1)

    def action_page(self, by: int) -> None:
        """Move the cursor by what is seen."""
        self.action_move(by * max(self.size.height - 1, 1))

    def on_resize(self) -> None:
        """The columns are cut to the width."""
        self._lines.clear()

    def watch_cursor(self, before: int, cursor: int) -> None:
        """Keep the cursor in sight and tell; only two lines change unless the window moves."""
        top = self.scroll_offset.y
        self.scroll_to_region(Region(0, cursor, 1, 1), animate=False, force=True)
        if self.scroll_offset.y == top:
            self.refresh_line(before)
            self.refresh_line(cursor)
        else:
            self.refresh()
        self.post_message(self.Highlighted(self._rows[cursor], cursor + 1))

    def on_click(self, event: events.Click) -> None:
        """Put the cursor where the pointer is."""
        self.action_move(self.scroll_offset.y + event.y - self.cursor)

    def line_of(self, number: str, line: str, question: str, answer: str, length: str) -> str:
        """The columns side by side, each cut or filled to its width in cells."""
        width = self.size.width
        digits = max(len(f"{len(self._rows):,}"), 4)
        left = f"{number:>{digits}}  {line:>7}  " if width >= ROOMY else f"{line:>7}  "
        half = max((width - len(left) - LENGTH - 6) // 2, 4)
        texts = (fitted(text, half) for text in (question, answer))
        return f"{left}{next(texts)}  → {next(texts)}{length:>{LENGTH}}"

    def render_lines(self, crop: Region) -> list[Strip]:
        """The colours are looked up once for all lines: they come from every container around."""
        self._style = self.rich_style
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        """One row, cut to the width."""
        index, width = self.scroll_offset.y + y, self.size.width
        if index >= len(self._rows):
            return Strip.blank(width, self._style)
        here = index == self.cursor
        style = self.get_component_rich_style("rows--cursor") if here else self._style
        return self._strip(("▶" if here else " ") + self._text(index), style)

    def _text(self, index: int) -> str:
        """The cells of a row; it is read from the disk when it comes into sight."""
        text = self._lines.get(index)
        if text is None:
            text = self._lines[index] = self._cells(self._rows[index], index + 1)
        return text

    def _cells(self, row: Row, number: int) -> str:
        last = row.messages[-1]
        answer = last.content if last.role == "assistant" else ""
        question = next((m.content for m in reversed(row.messages) if m.role == "user"), "")
        length = sum(len(message.content) for message in row.messages)
        return self.line_of(f"{number:,}", f"{row.line:,}", question, answer, f"{length:,}")

    def _strip(self, text: str, style: Style) -> Strip:
        return Strip([Segment(text, style)]).adjust_cell_length(self.size.width, style)


class RowHead(Widget):
    """The line above a table of rows: what its columns are."""

    DEFAULT_CSS = """
    RowHead { height: 1; color: $text-muted; text-wrap: nowrap; }
    """

    def __init__(self, rows: RowList, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._table = rows

    def render(self) -> RenderResult:
        """The names of the columns."""
        return Content(" " + self._table.line_of("row", "line", "question", "answer", "letters"))
