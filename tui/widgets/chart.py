"""The loss chart: own braille drawing, because chart libraries cost ten times as much a refresh."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from ollama_tune.tui.widgets.curves import Bucket, LossCurve
from ollama_tune.tui.widgets.drawing import Drawing, Row
from ollama_tune.tui.widgets.scales import Point, limits, log_limits, log_ticks, smoothed, ticks

BLANK, AXIS, BAND, MEAN, VALIDATION = range(5)
BITS = (0x01, 0x02, 0x04, 0x40, 0x08, 0x10, 0x20, 0x80)
BRAILLE = " " + "".join(
    chr(0x2800 + sum(bit for number, bit in enumerate(BITS) if dots >> number & 1)) for dots in range(1, 256)
)
QUADRANT = " ▘▖▌▝▀▞▛▗▚▄▙▐▜▟█"
"""The character of a cell by its dots: those of the left column from the top, then those of the right one."""
LEGENDS = (
    "{scale}{m} training loss, smoothed   {b} lowest to highest   {v} held-out loss",
    "{scale}{m} training loss   {v} held-out loss",
    "{m} train {v} held-out",
)
SMOOTH = 0.02
"""Half the width of the moving mean, as a share of the steps that are seen."""
RULED = 9
"""A chart at least so high has a line above its steps."""
LEAST = 24
"""Fewer steps are never seen."""


class Canvas:
    """Cells that hold dots: 2 x 4 a cell in braille, 2 x 2 in quadrant blocks. A column of dots is a number
    whose bit y is the dot in row y, so that a whole stretch is set at once.
    """

    def __init__(self, columns: int, rows: int, *, braille: bool = True) -> None:
        self._glyphs = BRAILLE if braille else QUADRANT
        self.high = 4 if braille else 2
        self.width, self.height = 2 * columns, self.high * rows
        self._dots = [0] * self.width
        self._every_second = sum(1 << y for y in range(0, self.height, 2))

    def column(self, x: int, top: int, bottom: int) -> None:
        """Set the dots from row `top` to row `bottom` of dot column `x`."""
        self._dots[x] |= (2 << bottom) - (1 << top)

    def pattern(self, x: int, top: int, bottom: int) -> None:
        """The same with every second dot only."""
        self._dots[x] |= (2 << bottom) - (1 << top) & self._every_second << x % 2

    def row(self, y: int) -> list[str]:
        """The characters of a row of cells; a blank where no dot is set."""
        shift, full, high, glyphs = self.high * y, (1 << self.high) - 1, self.high, self._glyphs
        return [
            glyphs[left >> shift & full | (right >> shift & full) << high]
            for left, right in zip(self._dots[::2], self._dots[1::2], strict=True)
        ]


@dataclass
class Zoom:
    """Which steps of a run are seen: each level halves them. The window stands at quarters of its width, so
    that it moves seldom; without a `quarter` it follows the newest step.
    """

    level: int = 0
    quarter: int | None = None

    def span(self, total: int, newest: int) -> tuple[float, float]:
        """The first and the last step that are seen."""
        if not self.level:
            return 0.0, float(total)
        wide = total / (1 << self.level)
        first = min(self._at(total, newest) * wide / 4, total - wide)
        return first, first + wide

    def _at(self, total: int, newest: int) -> int:
        return self._newest_at(total, newest) if self.quarter is None else self.quarter

    def _newest_at(self, total: int, newest: int) -> int:
        quarter = total / (1 << self.level) / 4
        return min(max(math.ceil(newest / quarter) - 4, 0), 4 * (1 << self.level) - 4)

    def change(self, closer: int, total: int, newest: int) -> None:
        """One level in or out; the middle stays, or the newest step where that is followed."""
        if closer > 0 and total / (2 << self.level) < LEAST:
            return
        if self.quarter is not None:
            self.quarter = 2 * self.quarter + 2 if closer > 0 else max(self.quarter // 2 - 1, 0)
        self.level = max(self.level + closer, 0)
        if not self.level:
            self.quarter = None

    def move(self, along: int, total: int, newest: int) -> None:
        """A quarter of the window to either side; as far as the newest step it follows again."""
        if self.level:
            at = max(self._at(total, newest) + along, 0)
            self.quarter = at if at < self._newest_at(total, newest) else None


class LossChart(Drawing):
    """Training loss as a band with its smoothed mean, held-out loss as marks, over the planned steps.

    The empty room at the right shows how far the run is. Only cells that changed are repainted. With
    `logarithmic` equal ratios are equally high: what comes after a steep start is no longer flat. `zoom` says
    which steps are seen; the scale at the left is that of these steps. `hints` are the keys in words, for the
    whole chart and for a part of it.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "chart--axis",
        "chart--band",
        "chart--mean",
        "chart--validation",
    }
    DEFAULT_CSS = """
    LossChart { height: 1fr; }
    LossChart > .chart--axis { color: $text-muted; }
    LossChart > .chart--band { color: $text-primary; text-style: dim; }
    LossChart > .chart--mean { color: $text-primary; text-style: bold; }
    LossChart > .chart--validation { color: $text-warning; text-style: bold; }
    """
    STYLES = ("chart--axis", "chart--band", "chart--mean", "chart--validation")

    def __init__(self, *, hints: tuple[str, str] = ("", ""), id: str | None = None) -> None:
        super().__init__(id=id)
        self._hints = hints
        self.zoom = Zoom()
        self._curve = LossCurve()
        self._validation: list[tuple[int, float]] = []
        self._total = self._newest = 1
        self._span = 0.0, 1.0

    def show(self, curve: LossCurve, validation: Iterable[tuple[int, float | None]], total: int) -> None:
        """Draw these losses over `total` planned steps."""
        self._curve, self._newest = curve, len(curve.buckets) * curve.width
        self._total = max(total, 1)
        self._validation = [(at, loss) for at, loss in validation if loss is not None and math.isfinite(loss)]
        self._redraw()

    @property
    def dot(self) -> float:
        """How many steps lie in a column of dots."""
        first, last = self._span
        return (last - first) / max(2 * self.size.width, 1)

    def look(self, *, closer: int = 0, along: int = 0) -> None:
        """Zoom in (1) or out (-1), or move by a quarter of what is seen; with neither all is seen again."""
        if closer:
            self.zoom.change(closer, self._total, self._newest)
        elif along:
            self.zoom.move(along, self._total, self._newest)
        else:
            self.zoom = Zoom()
        self._redraw()

    def _compose_rows(self, width: int, height: int) -> list[Row]:
        if height < 5 or width < 24:
            return [_row("", "", width)] * height
        self._span = first, last = self.zoom.span(self._total, self._newest)
        points = self._points(2 * width)
        marks = [(at, loss) for at, loss in self._validation if first <= at <= last]
        values = [loss for _, loss in marks]
        if not points and not values:
            text = "The curve starts with the first step." if not self.zoom.level else "No step here yet."
            text = text.center(width)[:width]
            return [_row("", text if y == height // 2 else "", width) for y in range(height)]
        bottom, top = (log_limits if self.logarithmic else limits)(points, values)
        rule = height >= RULED
        tall = height - 2 - rule
        marked = (log_ticks if self.logarithmic else ticks)(bottom, top, max(tall // 2, 2))
        labels = {round(self._depth(v, bottom, top) * (tall - 1)): label for v, label in marked}
        left = max((len(label) for label in labels.values()), default=1)
        plot = self._plot(points, marks, bottom, top, width - left - 2, tall)
        rows = [self._legend(width)]
        for y, (text, kinds) in enumerate(plot):
            edge = f"{labels.get(y, ''):>{left}} {'┤' if y in labels else '│'}"
            rows.append((edge + text, bytes([AXIS] * len(edge)) + kinds))
        if rule:
            rows.append(_row(" " * left + " └" + "─" * (width - left - 2), "", width))
        return [*rows, _row(self._steps(width, left + 2), "", width)]

    def _points(self, columns: int) -> list[Point]:
        """The curve with as many points as there are columns of dots: (step, low, high, smoothed mean)."""
        first, last = self._span
        wide = last - first
        reach = SMOOTH * wide
        merged: dict[int, tuple[float, Bucket]] = {}
        near = self._curve.between(int(first - reach) + 1, math.ceil(last + reach), columns)
        for at, bucket in near:
            column = int((at - first) / wide * columns)
            known = merged.get(column)
            merged[column] = (at, bucket) if known is None else (known[0], known[1].merged(bucket))
        points = list(merged.values())
        means = smoothed(points, reach)
        return [
            (at, min(b.low, mean), max(b.high, mean), mean)
            for (at, b), mean in zip(points, means, strict=True)
            if first < at <= last or not self.zoom.level
        ]

    def _column(self, at: float, last_x: int) -> int:
        """Where a step lies, in columns of dots."""
        first, last = self._span
        return min(max(round((at - first) / (last - first) * last_x), 0), last_x)

    def _depth(self, value: float, bottom: float, top: float) -> float:
        """How far below the top of the axis a value lies, from 0 to 1."""
        if self.logarithmic:
            value, bottom, top = (math.log(max(v, bottom)) for v in (value, bottom, top))
        return min(max((top - value) / (top - bottom), 0.0), 1.0)

    def _plot(
        self,
        points: list[Point],
        losses: list[tuple[int, float]],
        bottom: float,
        top: float,
        width: int,
        height: int,
    ) -> list[Row]:
        band, line = (Canvas(width, height, braille=self._braille) for _ in range(2))
        last_x, last_y = band.width - 1, band.height - 1

        def row_of(value: float) -> int:
            return round(self._depth(value, bottom, top) * last_y)

        _draw(
            band,
            line,
            [
                (self._column(at, last_x), row_of(low), row_of(high), row_of(mean))
                for at, low, high, mean in points
            ],
        )
        marks = {(row_of(loss) // band.high, self._column(at, last_x) // 2) for at, loss in losses}
        return [
            _cells(band, line, y, {x for row, x in marks if row == y}, self._mark()) for y in range(height)
        ]

    def _mark(self) -> str:
        return "◆" if self._braille else "x"

    def _legend(self, width: int) -> Row:
        signs = {"m": "⠒⠒", "b": "⢕⢕", "v": "◆"} if self._braille else {"m": "▀▀", "b": "▚▚", "v": "x"}
        scale = "log scale   " if self.logarithmic else ""
        hint = self._hints[bool(self.zoom.level)]
        longest, middle, shortest = LEGENDS
        hinted = [f"{hint}   {legend}" for legend in LEGENDS if hint]
        texts = [*hinted[:2], longest, *hinted[2:], middle, shortest]
        fitting = (text.format(scale=scale, **signs) for text in texts)
        text = next((text for text in fitting if len(text) <= width), "")
        if hint and text.startswith(hint):
            text = hint + text[len(hint) :].rjust(width - len(hint))
        text = text.rjust(width)
        kinds = bytearray([AXIS] * width)
        for sign, kind in zip(signs.values(), (MEAN, BAND, VALIDATION), strict=True):
            at = text.find(sign)
            if at >= 0:
                kinds[at : at + len(sign)] = bytes([kind] * len(sign))
        return text, bytes(kinds)

    def _steps(self, width: int, left: int) -> str:
        first, last = self._span
        start, end = f"{first:,.0f}", f"step {last:,.0f}"
        wide = last - first > 3 and width - left > 40
        middle = f"{(first + last) // 2:,.0f}" if wide else ""
        room = width - left - len(end) - 1
        inside = middle.center(room + len(end))[:room].ljust(room)
        return " " * left + start + inside[len(start) - 1 :] + end


def _draw(band: Canvas, line: Canvas, points: list[tuple[int, int, int, int]]) -> None:
    """Join the points (x, low, high, mean; in dots) by straight lines, column by column."""
    before = points[0][3] if points else 0
    last = None
    for point in points:
        for x, low, high, mean in (point,) if last is None else (*_between(last, point), point):
            band.pattern(x, high, low)
            line.column(x, min(mean, before), max(mean, before))
            before = mean
        last = point


def _between(
    first: tuple[int, int, int, int], second: tuple[int, int, int, int]
) -> Iterator[tuple[int, int, int, int]]:
    """The columns of dots that lie between two points."""
    (start, *values), (end, *others) = first, second
    for x in range(start + 1, end):
        share = (x - start) / (end - start)
        low, high, mean = (round(a + (b - a) * share) for a, b in zip(values, others, strict=True))
        yield x, low, high, mean


def _cells(band: Canvas, line: Canvas, y: int, marks: set[int], mark: str) -> Row:
    bright, dim = line.row(y), band.row(y)
    kinds = bytearray(
        MEAN if mean != " " else BAND if low != " " else BLANK for mean, low in zip(bright, dim, strict=True)
    )
    text = [mean if mean != " " else low for mean, low in zip(bright, dim, strict=True)]
    for x in marks:
        text[x], kinds[x] = mark, VALIDATION
    return "".join(text), bytes(kinds)


def _row(axis: str, text: str, width: int) -> Row:
    """A row of plain text in the axis' colour."""
    return (axis + text)[:width].ljust(width), bytes([AXIS] * width)
