"""A few lines of text of which only those that changed are drawn again: each costs bytes over ssh."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.geometry import Region
from textual.strip import Strip
from textual.visual import Visual
from textual.widget import Widget


class LineBlock(Widget):
    """One line for each `Content`, cut to the width."""

    DEFAULT_CSS = "LineBlock { text-wrap: nowrap; text-overflow: ellipsis; }"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines: list[Content] = []

    @property
    def content(self) -> Content:
        """All lines."""
        return Content("\n").join(self._lines)

    def show(self, lines: Sequence[Content]) -> None:
        """Show these lines."""
        old, self._lines = self._lines, list(lines)
        if len(old) != len(lines):
            self.refresh()
            return
        changed = [y for y, pair in enumerate(zip(old, lines, strict=True)) if pair[0] != pair[1]]
        if changed:
            self.refresh(*(Region(0, y, self.size.width, 1) for y in changed))

    def render_line(self, y: int) -> Strip:
        """One line."""
        width, style = self.size.width, self.visual_style
        if y >= len(self._lines):
            return Strip.blank(width, self.rich_style)
        return Visual.to_strips(self, self._lines[y], width, 1, style, pad=True)[0]
