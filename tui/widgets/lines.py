"""Many lines of text that only draw what is seen, and stay at the end while somebody looks there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.segment import Segment
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ollama_tune.tui.wrapping import GrowingLines

SIGNS = {
    "!": "lines--warning",
    "‖": "lines--warning",
    "✗": "lines--error",
    "✓": "lines--good",
    "·": "lines--dim",
}


class LineList(ScrollView):
    """Lines after a head (a time, say) and a sign that gives them their colour; long ones are broken."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"lines--head", *SIGNS.values()}
    DEFAULT_CSS = """
    LineList { height: 1fr; background: $background; scrollbar-size-vertical: 1; overflow-x: hidden; }
    LineList:ansi { background: ansi_default; }
    LineList > .lines--head { color: $text-muted; }
    LineList > .lines--warning { color: $text-warning; }
    LineList > .lines--error { color: $text-error; text-style: bold; }
    LineList > .lines--good { color: $text-success; }
    LineList > .lines--dim { color: $text-muted; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines: list[tuple[str, str, str]] = []

    def show(self, entries: Iterable[tuple[str, str, str]]) -> None:
        """Replace everything by these (head, sign, text) and go to the end."""
        self._lines = []
        self._add(entries)
        self.scroll_end(animate=False)
        self.refresh()

    def add(self, entries: Iterable[tuple[str, str, str]]) -> None:
        """Add some at the end; who looks at the end goes on doing so."""
        at_end = self.scroll_offset.y >= self.max_scroll_y
        self._add(entries)
        if at_end:
            self.scroll_end(animate=False)
        self.refresh()

    def _add(self, entries: Iterable[tuple[str, str, str]]) -> None:
        width = self.scrollable_content_region.width or self.size.width
        for head, sign, text in entries:
            lead = f"{sign} " if sign else ""
            for number, line in enumerate(GrowingLines(max(width - len(head) - 1, 10), lead + text).lines):
                self._lines.append((head if not number else " " * len(head), sign, line))
        self.virtual_size = Size(0, len(self._lines))

    def render_line(self, y: int) -> Strip:
        """One line, cut to the width."""
        index, width = self.scroll_offset.y + y, self.size.width
        if index >= len(self._lines):
            return Strip.blank(width, self.rich_style)
        head, sign, text = self._lines[index]
        name = SIGNS.get(sign)
        style = self.get_component_rich_style(name) if name else self.rich_style
        parts = [Segment(head, self.get_component_rich_style("lines--head")), Segment(text, style)]
        return Strip(parts).adjust_cell_length(width, self.rich_style)
