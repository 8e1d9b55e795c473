"""Draws what a terminal shows, cell by cell, as a PNG: the README's picture is made by this.

    python -m tests.bench.picture assets/wizard.png ollama-tune attach --size 110x32 --wait "step"

Needs DejaVu Sans Mono (or --font); braille and block characters are drawn by hand on the exact grid.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pyte
from PIL import Image, ImageDraw, ImageFont

from tests.terminal import Terminal

CELL = (9, 18)
DEFAULT = {"fg": "d4d4d4", "bg": "121212"}
ANSI = {
    "black": "000000", "red": "d75f5f", "green": "5faf5f", "brown": "d7af5f", "blue": "5f87d7",
    "magenta": "af87d7", "cyan": "5fafaf", "white": "d4d4d4",
    "brightblack": "767676", "brightred": "ff8787", "brightgreen": "87d787", "brightbrown": "ffd787",
    "brightblue": "87afff", "brightmagenta": "d7afff", "brightcyan": "87d7d7", "brightwhite": "ffffff",
}  # fmt: skip
DOTS = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3))


def colour(name: str, kind: str) -> str:
    """A pyte colour as `#rrggbb`."""
    return "#" + ANSI.get(name, DEFAULT[kind] if name == "default" else name)


def colours(cell: pyte.screens.Char) -> tuple[str, str]:
    """Of the character and of what is behind it."""
    fore, back = colour(cell.fg, "fg"), colour(cell.bg, "bg")
    return (back, fore) if cell.reverse else (fore, back)


def draw_cell(
    draw: ImageDraw.ImageDraw, x: int, y: int, cell: pyte.screens.Char, font: ImageFont.FreeTypeFont
) -> None:
    """One character in its colour; braille dots and blocks by hand."""
    width, height = CELL
    fore, _ = colours(cell)
    code = ord(cell.data[0]) if cell.data else 32
    if 0x2800 <= code <= 0x28FF:
        for bit, (column, row) in enumerate(DOTS):
            if (code - 0x2800) >> bit & 1:
                left, top = x + 1 + column * 4, y + 2 + row * 4
                draw.rectangle((left, top, left + 2, top + 2), fill=fore)
    elif code == 0x2588:
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=fore)
    else:
        draw.text((x, y + 1), cell.data, font=font, fill=fore)
    if cell.underscore:
        draw.line((x, y + height - 2, x + width - 1, y + height - 2), fill=fore)


def draw_screen(screen: pyte.Screen, font_name: str) -> Image.Image:
    """The whole screen as a picture."""
    width, height = CELL
    font = ImageFont.truetype(font_name, 15)
    image = Image.new(
        "RGB", (screen.columns * width + 16, screen.lines * height + 16), colour("default", "bg")
    )
    draw = ImageDraw.Draw(image)
    cells = [
        (8 + column * width, 8 + row * height, screen.buffer[row][column])
        for row in range(screen.lines)
        for column in range(screen.columns)
    ]
    for x, y, cell in cells:
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colours(cell)[1])
    for x, y, cell in cells:
        draw_cell(draw, x, y, cell, font)
    return image


def main() -> None:
    """Run the command, type the keys, wait for the text, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", default="110x32", help="columns x lines")
    parser.add_argument("--keys", default="", help="comma-separated keys to type after the first frame")
    parser.add_argument("--wait", default="", help="text to wait for before the picture")
    parser.add_argument("--seconds", type=float, default=1.5, help="time to settle")
    parser.add_argument("--font", default="DejaVuSansMono.ttf")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    columns, lines = (int(part) for part in given.size.split("x"))
    environment = {**os.environ, "COLORTERM": "truecolor"}
    command = [part for part in given.command if part != "--"]
    with Terminal(command, environment, columns=columns, lines=lines) as terminal:
        terminal.pump(given.seconds)
        terminal.press(*[key for key in given.keys.split(",") if key], pause=0.6)
        if given.wait:
            terminal.wait(given.wait, 120)
        terminal.pump(given.seconds)
        draw_screen(terminal.screen, given.font).save(given.output)


if __name__ == "__main__":
    main()
