"""The rows of a data set as a list that draws only what is seen, whatever their number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ollama_tune.core.text import one_line

if TYPE_CHECKING:
    from ollama_tune.core.data.values import Row


class RowList(ScrollView, can_focus=True):
    """One line a row: its line number in the file, the question, the answer."""

    DEFAULT_CSS = """
    RowList { height: 1fr; background: $background; scrollbar-size-vertical: 1; overflow-x: hidden; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"rows--cursor", "rows--number"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Row before", show=False),
        Binding("down", "move(1)", "Other row"),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "move(-1000000000)", "First row", show=False),
        Binding("end", "move(1000000000)", "Last row", show=False),
    ]
    cursor: reactive[int] = reactive(0, init=False)

    @dataclass
    class Highlighted(Message):
        """The cursor stands on another row."""

        row: Row

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._rows: tuple[Row, ...] = ()

    def show(self, rows: tuple[Row, ...]) -> None:
        """Replace the rows; the cursor stands on the first."""
        if rows is self._rows:
            return
        self._rows = rows
        self.virtual_size = Size(0, len(rows))
        self.set_reactive(RowList.cursor, 0)
        self.scroll_to(y=0, animate=False)
        self.refresh()
        if rows:
            self.post_message(self.Highlighted(rows[0]))

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        if self._rows:
            self.cursor = min(max(self.cursor + by, 0), len(self._rows) - 1)

    def action_page(self, by: int) -> None:
        """Move the cursor by what is seen."""
        self.action_move(by * max(self.size.height - 1, 1))

    def watch_cursor(self, cursor: int) -> None:
        """Keep the cursor in sight and tell."""
        self.scroll_to_region(Region(0, cursor, 1, 1), animate=False, force=True)
        self.refresh()
        self.post_message(self.Highlighted(self._rows[cursor]))

    def on_click(self, event: events.Click) -> None:
        """Put the cursor where the pointer is."""
        self.action_move(self.scroll_offset.y + event.y - self.cursor)

    def render_line(self, y: int) -> Strip:
        """One row, cut to the width."""
        index, width = self.scroll_offset.y + y, self.size.width
        if index >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        row, here = self._rows[index], index == self.cursor
        style = self.get_component_rich_style("rows--cursor") if here else self.rich_style
        number = f"{'▶' if here else ' '}{row.line:>6,}  "
        question = next((m.content for m in reversed(row.prompt) if m.role == "user"), "")
        half = max((width - len(number) - 4) // 2, 8)
        text = f"{one_line(question, half):<{half}}  → {one_line(row.answer, half)}"
        return Strip([Segment(number, style), Segment(text, style)]).adjust_cell_length(width, style)
