"""Breaks text from a model into lines, at a cost that does not grow with what is there; cuts it to one."""

from __future__ import annotations

from rich.cells import cell_len, get_character_cell_size, set_cell_size

from ollama_tune.core.text import one_line, visible


class GrowingLines:
    """The lines of a text that grows at its end, each at most `width` cells wide but for blanks at its end.

    Lines break at blanks and beside wide characters (Chinese, Japanese), and anywhere in a word that is wider
    than a line. What a line begins with is final once it begins, so only the last one is broken anew.
    """

    def __init__(self, width: int, text: str = "") -> None:
        self.width = max(width, 1)
        self.lines = [""]
        self.add(text)

    def add(self, text: str) -> int:
        """Add a piece of untrusted text; returns the number of the first line that is another one now."""
        first = len(self.lines) - 1
        for number, piece in enumerate(visible(text, keep_newlines=True).split("\n")):
            if number:
                self.lines.append("")
            if piece:
                self.lines[-1:] = broken(self.lines[-1] + piece, self.width)
        return first


def broken(text: str, width: int) -> list[str]:
    """One paragraph as lines; a single character that is wider than the line stands alone."""
    lines: list[str] = []
    start = cells = 0
    chance = chance_cells = 0
    for place, character in enumerate(text):
        size = 1 if character.isascii() else get_character_cell_size(character)
        if size == 2:
            chance, chance_cells = place, cells
        if cells + size > (2 * width if character == " " else width) and place > start:
            if chance <= start:
                chance, chance_cells = place, cells
            lines.append(text[start:chance])
            start, cells = chance, cells - chance_cells
        cells += size
        if character == " " or size == 2:
            chance, chance_cells = place + 1, cells
    return [*lines, text[start:]]


def fitted(text: str, cells: int) -> str:
    """One harmless line of exactly so many cells; where something is cut it ends in an ellipsis."""
    line = one_line(text, cells)
    if cell_len(line) > cells:
        line = set_cell_size(line, cells - 1).rstrip() + "…"
    return set_cell_size(line, cells)
