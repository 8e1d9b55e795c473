"""A text that scrolls and wraps, and that can be replaced without laying out the screen again."""

from __future__ import annotations

from rich.style import Style
from textual.content import Content
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.visual import Visual


class TextView(ScrollView, can_focus=True):
    """Shows styled text of any length; arrows and page keys scroll.

    A `Static` in a scrolling container makes Textual lay out the whole screen for every other text, some
    10 ms each. Here a text that is not higher than the window changes nothing but its own lines.
    """

    DEFAULT_CSS = """
    TextView { scrollbar-size-vertical: 1; overflow-x: hidden; scrollbar-gutter: stable; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.content = Content("")
        self._strips: list[Strip] | None = None
        self._style, self._width = Style(), 0

    def show(self, content: Content) -> None:
        """Replace the text and go to its beginning."""
        self.content = content
        self._wrap()
        self.scroll_home(animate=False, force=True)

    def on_resize(self) -> None:
        """Wrap to the new width."""
        self._wrap()

    def notify_style_update(self) -> None:
        """Other colours."""
        super().notify_style_update()
        self._strips = None

    def _wrap(self) -> None:
        self._strips = None
        lines, size = len(self._lines()), self.scrollable_content_region.size
        wanted = Size(size.width, max(lines, size.height))
        if wanted != self.virtual_size:
            self.virtual_size = wanted
        self.refresh()

    def _lines(self) -> list[Strip]:
        """The wrapped lines, drawn once."""
        width = self.scrollable_content_region.width
        if self._strips is None:
            style = self.visual_style
            self._strips = Visual.to_strips(self, self.content, width, None, style) if width else []
        return self._strips

    def render_lines(self, crop: Region) -> list[Strip]:
        """The colours are looked up once for all lines: they come from every container around."""
        self._style, self._width = self.rich_style, self.scrollable_content_region.width
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        """One line."""
        lines, at = self._lines(), self.scroll_offset.y + y
        if at >= len(lines):
            return Strip.blank(self._width, self._style)
        return lines[at].adjust_cell_length(self._width, self._style)
