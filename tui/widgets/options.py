"""A list of lines of which one is under the cursor, also on a terminal of sixteen colours."""

from __future__ import annotations

from textual.style import Style
from textual.widgets import OptionList


class Options(OptionList):
    """Textual 8.2.8 drops `text-style: reverse` from the style of a line (`Widget.get_visual_style`), and
    where the terminal's own colours are used nothing else shows which line is meant. And the cursor stays
    at an end of the list, as it does in a table: that it jumps to the other end surprises in a list of two.
    """

    def get_visual_style(self, *component_classes: str, partial: bool = False) -> Style:
        """As the parent's, reversed where the style sheet says so."""
        style = super().get_visual_style(*component_classes, partial=partial)
        reverse = any(self.get_component_styles(name).text_style.reverse for name in component_classes)
        return style + Style(reverse=True) if reverse else style

    def action_cursor_down(self) -> None:
        """To the next line, if there is one."""
        if self.highlighted is None or self.highlighted < self.option_count - 1:
            super().action_cursor_down()

    def action_cursor_up(self) -> None:
        """To the line before, if there is one."""
        if self.highlighted != 0:
            super().action_cursor_up()
