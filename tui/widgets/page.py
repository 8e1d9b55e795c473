"""A page of lines that wrap under their own text, not under their sign or label."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from rich.cells import get_character_cell_size
from textual.content import Content
from textual.widgets import Static

from ollama_tune.tui.text import put_text


@dataclass(frozen=True)
class Line:
    """One line; what does not fit goes on below, `indent` cells in."""

    content: Content
    indent: int = 0


BLANK = Line(Content(""))


def row(label: str, text: str | Content, width: int = 10) -> Line:
    """A label of fixed width, then text that wraps beside it. The text must be harmless already."""
    return Line(Content.assemble((f"  {label:<{width}}", "dim"), text), width + 2)


def sign(mark: str, text: str | Content, style: str = "$text-warning") -> Line:
    """A sign, then text that wraps beside it."""
    return Line(Content.assemble("  ", (mark, f"bold {style}"), " ", text), 4)


def heading(text: str) -> Line:
    """A heading."""
    return Line(Content.styled(text, "bold $text-accent"))


class Page(Static):
    """Shows lines and wraps them again when its width changes."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__("", markup=False, id=id)
        self._lines: list[Line] = []

    def show(self, lines: list[Line]) -> None:
        """Replace all lines."""
        if lines != self._lines:
            self._lines = lines
            self._wrap()

    def on_resize(self) -> None:
        """Wrap to the new width."""
        self._wrap()

    def _wrap(self) -> None:
        width = self.content_region.width
        if width:
            put_text(self, Content("\n").join(part for line in self._lines for part in wrapped(line, width)))


def wrapped(line: Line, width: int) -> list[Content]:
    """The line cut to `width`, the parts after the first indented."""
    if line.content.cell_length <= width:
        return [line.content]
    first = _head(line.content, width)
    rest = _after(line.content, len(first))
    parts = [first]
    room = max(width - line.indent, 8)
    while rest.cell_length > 0:
        part = _head(rest, room)
        parts.append(Content(" " * line.indent) + part)
        rest = _after(rest, len(part))
    return parts


def _head(content: Content, width: int) -> Content:
    """As many words as fit into so many cells; a longer word is cut."""
    if content.cell_length <= width:
        return content
    ends = accumulate(map(get_character_cell_size, content.plain))
    most = max(sum(end <= width for end in ends), 1)
    cut = content.plain.rfind(" ", 0, most + 1)
    return content[: cut if cut > 0 and content.plain[:cut].strip() else most]


def _after(content: Content, position: int) -> Content:
    """What follows, without the spaces it starts with."""
    plain = content.plain[position:]
    return content[position + len(plain) - len(plain.lstrip()) :]
