"""One model's side of a conversation: text from a model, which may hold anything, drawn line by line."""

from __future__ import annotations

from dataclasses import dataclass

from rich.segment import Segment
from rich.style import Style
from textual.content import Content
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ollama_tune.tui.wrapping import GrowingLines, broken

MOST_LINES = 5000
"""Lines that are kept of an entry; the first ones go."""
STYLES = {"given": Style(dim=True), "question": Style(bold=True), "verdict": Style(dim=True)}
SIGN = {"question": "› ", "given": "  "}


@dataclass
class _Entry:
    """Something that was said, broken into lines for a width; `text` is what it is broken from."""

    kind: str
    text: str
    lines: GrowingLines

    def add(self, text: str) -> int:
        """Add a piece; returns how many lines from the end are others now."""
        self.text += text
        lines = self.lines.lines
        first = self.lines.add(text)
        changed = len(lines) - first
        if len(lines) > MOST_LINES:
            del lines[: len(lines) - MOST_LINES]
        return changed


class AnswerPane(ScrollView, can_focus=True):
    """The turns of one model in a box; the lower edge says how its last answer ended and how good it is.

    Only what is seen is drawn, and a new piece breaks only the last line anew, so that a long answer without
    a line break costs no more than any other. The view follows the end unless somebody scrolled up.
    """

    DEFAULT_CSS = """
    AnswerPane {
        height: 1fr; width: 1fr; border: round $surface-lighten-3; padding: 0 1;
        border-title-color: $foreground; border-title-style: bold; border-subtitle-color: $foreground;
        scrollbar-size-vertical: 1; scrollbar-gutter: stable; overflow-x: hidden;
    }
    AnswerPane:focus { border: round $accent; }
    AnswerPane:ansi { border: round ansi_default; }
    AnswerPane:ansi:focus { border: heavy ansi_default; }
    AnswerPane:nocolor:focus { border: heavy $foreground; }
    """

    def __init__(self, title: str, *, id: str, hint: str = "") -> None:
        """`hint` stands in the box until something is said."""
        super().__init__(id=id)
        self.border_title = title
        self._hint = hint
        self._entries: list[_Entry] = []
        self._answer: _Entry | None = None
        self._words = Content("")
        self._following = True
        self._style = Style()

    @property
    def text(self) -> str:
        """The last answer as far as it is there."""
        return self._answer.text if self._answer is not None else ""

    def clear(self) -> None:
        """Nothing was said."""
        self._entries, self._answer, self._following = [], None, True
        self.close(Content(""))
        self._show()

    def say(self, kind: str, text: str) -> None:
        """Add a `question`, something `given` before it, or a `verdict`."""
        if kind == "question":
            self._close()
        self._entries.append(self._entry(kind, SIGN.get(kind, "") + text))
        self._show()

    def add(self, text: str) -> None:
        """Add a piece of the answer."""
        if self._answer is None:
            self._answer = self._entry("answer", "")
            self._entries.append(self._answer)
        changed, height = self._answer.add(text), self.virtual_size.height
        if sum(len(entry.lines.lines) for entry in self._entries) == height:
            self.refresh_lines(height - changed, changed)
        else:
            self._show()

    def close(self, words: Content) -> None:
        """Say how the answer ended."""
        self.border_subtitle = self._words = words

    def _close(self) -> None:
        """What stands at the edge belongs to the turn before."""
        if self._answer is not None or self._words:
            self._entries += [self._entry("verdict", text) for text in (self._words.plain, "")]
        self._answer, self._following = None, True
        self.close(Content(""))

    def _entry(self, kind: str, text: str) -> _Entry:
        entry = _Entry(kind, "", GrowingLines(self._width()))
        entry.add(text)
        return entry

    def _width(self) -> int:
        return max(self.scrollable_content_region.width, 10)

    def _show(self) -> None:
        height = sum(len(entry.lines.lines) for entry in self._entries)
        self.virtual_size = Size(0, height)
        if self._following:
            self.scroll_to(y=self.max_scroll_y, animate=False, immediate=True, force=True)
        self.refresh()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Whoever scrolls up reads on in peace, until the end is in sight again."""
        super().watch_scroll_y(old_value, new_value)
        self._following = round(new_value) >= self.max_scroll_y

    def on_resize(self) -> None:
        """Break everything for the new width."""
        width = self._width()
        for entry in self._entries:
            if entry.lines.width != width:
                entry.lines = GrowingLines(width, entry.text)
        self._show()

    def render_lines(self, crop: Region) -> list[Strip]:
        """The colours are looked up once for all lines: they come from every container around."""
        self._style = self.rich_style
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        """One line of what is seen."""
        number, width = self.scroll_offset.y + y, self.size.width
        for entry in self._entries:
            if number < len(entry.lines.lines):
                style = self._style + STYLES.get(entry.kind, Style.null())
                line = Segment(entry.lines.lines[number].rstrip(), style)
                return Strip([line]).adjust_cell_length(width, self._style)
            number -= len(entry.lines.lines)
        if not self._entries and number < len(hint := broken(self._hint, max(width, 1))):
            line = Segment(hint[number].rstrip(), self._style + STYLES["given"])
            return Strip([line]).adjust_cell_length(width, self._style)
        return Strip.blank(width, self._style)
