"""What the charts share: rows of characters with a kind each; only changed cells are painted again."""

from __future__ import annotations

import os
from typing import ClassVar

from rich.segment import Segment
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

Row = tuple[str, bytes]
"""The characters of a line, and of each its kind: 0 is blank, others are counted from 1 in `STYLES`."""


class Drawing(Widget):
    """A chart of characters; a subclass composes the rows and names the component class of each kind."""

    STYLES: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.logarithmic = False
        self._rows: list[Row] = []
        self._braille = os.environ.get("TERM") != "linux"

    def _compose_rows(self, width: int, height: int) -> list[Row]:
        raise NotImplementedError

    def rescale(self) -> None:
        """Change between the linear and the logarithmic axis."""
        self.logarithmic = not self.logarithmic
        self._redraw()

    def on_resize(self) -> None:
        """Draw for the new size."""
        self._redraw()

    def text(self) -> str:
        """What is drawn, as plain lines."""
        return "\n".join(text for text, _ in self._rows)

    def render_line(self, y: int) -> Strip:
        """One row from what `_redraw` composed."""
        width = self.size.width
        if y >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        text, kinds = self._rows[y]
        styles = [self.rich_style, *(self.get_component_rich_style(name) for name in self.STYLES)]
        segments, start = [], 0
        for end in range(1, len(text) + 1):
            if end == len(text) or kinds[end] != kinds[start]:
                segments.append(Segment(text[start:end], styles[kinds[start]]))
                start = end
        return Strip(segments, len(text)).adjust_cell_length(width, self.rich_style)

    def _redraw(self) -> None:
        rows = self._compose_rows(self.size.width, self.size.height)
        old, self._rows = self._rows, rows
        if len(old) != len(rows) or not self._rows:
            self.refresh()
            return
        changed = [_changed(y, *pair) for y, pair in enumerate(zip(old, rows, strict=True))]
        if any(changed):
            self.refresh(*filter(None, changed))


def _changed(y: int, old: Row, new: Row) -> Region | None:
    if old == new:
        return None
    if len(old[0]) != len(new[0]):
        return Region(0, y, len(new[0]), 1)
    different = [x for x in range(len(new[0])) if old[0][x] != new[0][x] or old[1][x] != new[1][x]]
    return Region(different[0], y, different[-1] - different[0] + 1, 1)
