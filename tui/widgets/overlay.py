"""The curves of several runs in one chart, told apart by letters and dots, not by colour alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ollama_tune.tui.widgets.chart import Canvas
from ollama_tune.tui.widgets.drawing import Drawing, Row
from ollama_tune.tui.widgets.scales import limits, log_limits, log_ticks, ticks

BLANK, AXIS = 0, 1
FIRST_LINE = 2
STROKES: tuple[Callable[[int], bool], ...] = (
    lambda x: True,
    lambda x: x % 6 < 3,
    lambda x: x % 3 == 0,
    lambda x: x % 10 not in (6, 7, 9),
)
"""Which columns of dots a line has: solid, dashed, dotted, dash and dot."""
SAMPLES = ("━━━", "╺━ ", "···", "━·━")
"""The same in the legend."""
SMALLEST = 5, 24
"""Rows and columns below which nothing is drawn."""

Pair = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A run in the chart: its letter, the smoothed training loss and the held-out losses, as (x, loss)."""

    letter: str
    train: Sequence[Pair]
    held: Sequence[Pair]


@dataclass(frozen=True)
class _Frame:
    """Where values lie: the limits of both axes and the dots of the plot."""

    right: float
    bottom: float
    top: float
    width: int
    height: int
    logarithmic: bool

    def x(self, value: float) -> int:
        return min(round(value / self.right * (self.width - 1)), self.width - 1) if self.right > 0 else 0

    def share(self, value: float) -> float:
        """How far below the top a loss lies, from 0 to 1."""
        bottom, top = self.bottom, self.top
        if self.logarithmic:
            value, bottom, top = (math.log(max(v, self.bottom)) for v in (value, bottom, top))
        return min(max((top - value) / (top - bottom), 0.0), 1.0)

    def y(self, value: float) -> int:
        return round(self.share(value) * (self.height - 1))


class Overlay(Drawing):
    """Smoothed training losses as lines of different dots, held-out losses as the small letter of their run,
    and the capital one where a line ends."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "overlay--axis",
        "overlay--0",
        "overlay--1",
        "overlay--2",
        "overlay--3",
    }
    DEFAULT_CSS = """
    Overlay { height: 1fr; }
    Overlay > .overlay--axis { color: $text-muted; }
    Overlay > .overlay--0 { color: $text-primary; text-style: bold; }
    Overlay > .overlay--1 { color: $text-warning; text-style: bold; }
    Overlay > .overlay--2 { color: $text-success; text-style: bold; }
    Overlay > .overlay--3 { color: $text-error; text-style: bold; }
    """
    STYLES = ("overlay--axis", "overlay--0", "overlay--1", "overlay--2", "overlay--3")

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines: Sequence[Line] = ()
        self._unit: Callable[[float], str] = str
        self.logarithmic = True

    def show(self, lines: Sequence[Line], unit: Callable[[float], str]) -> None:
        """Draw these runs; `unit` says a value of the x axis in words."""
        self._lines, self._unit = lines, unit
        self._redraw()

    def _compose_rows(self, width: int, height: int) -> list[Row]:
        train = [(x, loss, loss, loss) for line in self._lines for x, loss in line.train]
        held = [loss for line in self._lines for _, loss in line.held]
        if height < SMALLEST[0] or width < SMALLEST[1]:
            return []
        if not train and not held:
            return [_plain("None of these runs has a step yet.", width)]
        bottom, top = (log_limits if self.logarithmic else limits)(train, held)
        right = max([x for x, *_ in train] + [x for line in self._lines for x, _ in line.held])
        rows = height - 3
        marks = log_ticks(bottom, top, rows) if self.logarithmic else ticks(bottom, top, max(rows // 2, 2))
        left = max((len(label) for _, label in marks), default=1)
        columns = width - left - 4
        dots = Canvas(columns, rows, braille=self._braille)
        frame = _Frame(right, bottom, top, dots.width, dots.height, self.logarithmic)
        labels = {round(frame.share(value) * (rows - 1)): label for value, label in marks}
        plot = self._plot(frame, columns, rows)
        drawn = [self._legend(width)]
        for y, (text, kinds) in enumerate(plot):
            edge = f"{labels.get(y, ''):>{left}} {'┤' if y in labels else '│'}"
            drawn.append((edge + text, bytes([AXIS] * len(edge)) + kinds))
        axis = _plain(f"{'':>{left}} └{'─' * columns}", width)
        end = self._unit(right)
        return [*drawn, axis, _plain(f"{'':>{left + 2}}0{end:>{columns - 1}}", width)]

    def _plot(self, frame: _Frame, columns: int, rows: int) -> list[Row]:
        """The rows of the plot, two cells wider than the axis: room for the letters at the ends."""
        cells = [[" "] * (columns + 2) for _ in range(rows)]
        kinds = [bytearray(columns + 2) for _ in range(rows)]
        for number, line in enumerate(self._lines):
            canvas = Canvas(columns, rows, braille=self._braille)
            _draw(canvas, frame, line.train, STROKES[number])
            for y in range(rows):
                for x, glyph in enumerate(canvas.row(y)):
                    if glyph != " ":
                        cells[y][x], kinds[y][x] = _both(cells[y][x], glyph), FIRST_LINE + number
        for number, line in enumerate(self._lines):
            high = frame.height // rows
            for at, loss in line.held:
                y, x = frame.y(loss) // high, frame.x(at) // 2
                cells[y][x], kinds[y][x] = line.letter.lower(), FIRST_LINE + number
            if line.train:
                at, loss = line.train[-1]
                x, y = frame.x(at) // 2 + 1, frame.y(loss) // high
                y = next((row for row in _nearby(y, rows) if not cells[row][x].isupper()), y)
                cells[y][x], kinds[y][x] = line.letter, FIRST_LINE + number
        return [("".join(text), bytes(kind)) for text, kind in zip(cells, kinds, strict=True)]

    def _legend(self, width: int) -> Row:
        scale = "log scale   " if self.logarithmic else ""
        parts = [f"{line.letter} {SAMPLES[number]}" for number, line in enumerate(self._lines)]
        words = f"{scale}lines: training loss, smoothed; a b: held-out loss"
        text = f"{'   '.join(parts)}   {words}"
        text = (text if len(text) <= width else "   ".join(parts)).ljust(width)[:width]
        kinds = bytearray([AXIS] * width)
        for number, part in enumerate(parts):
            at = text.find(part)
            if at >= 0:
                kinds[at : at + len(part)] = bytes([FIRST_LINE + number] * len(part))
        return text, bytes(kinds)


def _draw(canvas: Canvas, frame: _Frame, points: Sequence[Pair], stroke: Callable[[int], bool]) -> None:
    """Join the points by straight lines, column by column."""
    before: tuple[int, int] | None = None
    for at, loss in points:
        x, y = frame.x(at), frame.y(loss)
        first, level = before or (x, y)
        for column in range(first + (before is not None), x + 1):
            share = (column - first) / (x - first) if x > first else 1.0
            now = round(before[1] + (y - before[1]) * share) if before else y
            if stroke(column):
                canvas.column(column, min(level, now), max(level, now))
            level = now
        before = x, y


def _both(first: str, second: str) -> str:
    """The dots of both cells where both are braille; else the later one."""
    codes = ord(first), ord(second)
    return chr(codes[0] | codes[1]) if min(codes) >= 0x2800 else second


def _nearby(row: int, rows: int) -> list[int]:
    """The rows of a plot, the nearest to one first."""
    return sorted(range(rows), key=lambda other: (abs(other - row), other))


def _plain(text: str, width: int) -> Row:
    return text[:width].ljust(width), bytes([AXIS] * width)
