"""The loss chart: own braille drawing, because chart libraries cost ten times as much a refresh."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import ClassVar

from rich.segment import Segment
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from ollama_tune.tui.widgets.curves import Bucket, LossCurve

BLANK, AXIS, BAND, MEAN, VALIDATION = range(5)
BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
QUADRANT = ((1, 4), (2, 8))
QUADRANTS = " ▘▝▀▖▌▞▛▗▚▐▜▄▙▟█"
LEGENDS = (
    "{scale}{m} training loss, smoothed   {b} lowest to highest   {v} validation loss",
    "{scale}{m} training loss   {v} validation loss",
    "{m} train {v} validation",
)
SMOOTH = 0.02
"""Half the width of the moving mean, as a share of the planned steps."""
DECADES = 4.0
"""A logarithmic axis never reaches further down than this below its top."""

Point = tuple[float, float, float, float]


class Canvas:
    """Cells that hold dots: 2 x 4 a cell in braille, 2 x 2 in quadrant blocks."""

    def __init__(self, columns: int, rows: int, *, braille: bool = True) -> None:
        self._braille = braille
        self._bits = BRAILLE if braille else QUADRANT
        self.high = len(self._bits[0])
        self.width, self.height = 2 * columns, self.high * rows
        self.cells = [[0] * columns for _ in range(rows)]

    def column(self, x: int, top: int, bottom: int, *, every: int = 1) -> None:
        """Set the dots from row `top` to row `bottom` of dot column `x`; 2 sets every second one."""
        bits, cell, high = self._bits[x % 2], x // 2, self.high
        for y in range(top + (top + x) % every, bottom + 1, every):
            self.cells[y // high][cell] |= bits[y % high]

    def glyph(self, mask: int) -> str:
        """The character of a cell."""
        return chr(0x2800 + mask) if self._braille else QUADRANTS[mask]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed (nearest rank)."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def limits(points: Sequence[Point], others: Sequence[float]) -> tuple[float, float]:
    """Bottom and top of the y axis, so that a spike does not flatten the curve.

    The top is the 98th percentile of the highs but never below the highest mean, the bottom the 2nd
    of the lows but never above the lowest mean, or 0 where that is near; `others` are always inside.
    """
    means = [mean for *_, mean in points]
    tops = [*others, *means, percentile([high for _, _, high, _ in points], 0.98)] if points else [*others]
    lows = [*others, *means, percentile([low for _, low, _, _ in points], 0.02)] if points else [*others]
    top, bottom = max(tops), min(lows)
    if 0 <= bottom < 0.4 * top:
        bottom = 0.0
    return (bottom, top) if top - bottom > 1e-9 * abs(top) else (bottom - 0.5, bottom + 0.5)


def log_limits(points: Sequence[Point], others: Sequence[float]) -> tuple[float, float]:
    """The same for a logarithmic axis: both above zero, four powers of ten apart at most."""
    top = limits(points, others)[1]
    values = [value for value in (*others, *(low for _, low, _, _ in points)) if value > 0]
    bottom = max(min(values, default=top), top / 10**DECADES)
    return (bottom, top) if 0 < bottom < 0.999 * top else (abs(top) / 2 or 0.5, 2 * abs(top) or 1.0)


def log_ticks(bottom: float, top: float, count: int) -> list[tuple[float, str]]:
    """Values such as 1, 2, 5, 10 or only powers of ten, at most about `count`; within one such step linear
    ones."""
    powers = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**p for p in powers for f in factors if bottom <= f * 10.0**p <= top]
        if 2 <= len(found) <= count:
            return [(value, f"{value:g}") for value in found]
    return ticks(bottom, top, count)


def smoothed(points: Sequence[tuple[float, Bucket]], reach: float) -> list[float]:
    """The mean loss around each point, at most `reach` steps to either side; at the left end as far as the
    points go to both sides, so that a steep start stays steep."""
    sums, counts = [0.0], [0]
    for _, bucket in points:
        sums.append(sums[-1] + bucket.sum)
        counts.append(counts[-1] + bucket.count)
    means, left, right = [], 0, 0
    for at, _ in points:
        near = min(reach, at - points[0][0])
        while points[left][0] < at - near:
            left += 1
        while right < len(points) and points[right][0] <= at + near:
            right += 1
        means.append((sums[right] - sums[left]) / (counts[right] - counts[left]))
    return means


def ticks(bottom: float, top: float, count: int) -> list[tuple[float, str]]:
    """At most about `count` round values within the limits, with their labels."""
    rough = (top - bottom) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    decimals = max(-math.floor(math.log10(step) + 1e-9), 0)
    first, last = math.ceil(bottom / step - 1e-9), math.floor(top / step + 1e-9)
    return [(index * step, f"{index * step:.{decimals}f}") for index in range(first, last + 1)]


class LossChart(Widget):
    """Training loss as a band with its smoothed mean, validation loss as marks, over the planned steps.

    The empty room at the right shows how far the run is. Only cells that changed are repainted. With
    `logarithmic` equal ratios are equally high: what comes after a steep start is no longer flat.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "chart--blank",
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
    STYLES = ("chart--blank", "chart--axis", "chart--band", "chart--mean", "chart--validation")

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._curve = LossCurve()
        self._validation: list[tuple[int, float]] = []
        self._total = 1
        self.logarithmic = False
        self._rows: list[tuple[str, bytes]] = []
        self._braille = os.environ.get("TERM") != "linux"

    def show(self, curve: LossCurve, validation: Iterable[tuple[int, float | None]], total: int) -> None:
        """Draw these losses over `total` planned steps."""
        self._curve, self._total = curve, max(total, 1)
        self._validation = [(at, loss) for at, loss in validation if loss is not None and math.isfinite(loss)]
        self._redraw()

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
        styles = [self.rich_style, *(self.get_component_rich_style(name) for name in self.STYLES[1:])]
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

    def _compose_rows(self, width: int, height: int) -> list[tuple[str, bytes]]:
        points = self._points(2 * width)
        values = [loss for _, loss in self._validation]
        if height < 5 or width < 24:
            return [_row("", "", width)] * height
        if not points and not values:
            text = "The curve starts with the first step.".center(width)[:width]
            return [_row("", text if y == height // 2 else "", width) for y in range(height)]
        bottom, top = (log_limits if self.logarithmic else limits)(points, values)
        marks = (log_ticks if self.logarithmic else ticks)(bottom, top, max((height - 3) // 2, 2))
        labels = {round(self._depth(v, bottom, top) * (height - 4)): label for v, label in marks}
        left = max((len(label) for label in labels.values()), default=1)
        plot = self._plot(points, bottom, top, width - left - 2, height - 3)
        rows = [self._legend(width)]
        for y, (text, kinds) in enumerate(plot):
            edge = f"{labels.get(y, ''):>{left}} {'┤' if y in labels else '│'}"
            rows.append((edge + text, bytes([AXIS] * len(edge)) + kinds))
        axis = " " * left + " └" + "─" * (width - left - 2)
        return [*rows, _row(axis, "", width), _row(self._steps(width, left + 2), "", width)]

    def _points(self, columns: int) -> list[Point]:
        """The curve with as many points as there are columns of dots: (step, low, high, smoothed mean)."""
        merged: dict[int, tuple[float, Bucket]] = {}
        for at, bucket in self._curve.points():
            column = int(at / self._total * columns)
            first, before = merged.get(column, (at, Bucket()))
            merged[column] = first, before.merged(bucket)
        points = list(merged.values())
        means = smoothed(points, SMOOTH * self._total)
        return [
            (at, min(b.low, mean), max(b.high, mean), mean)
            for (at, b), mean in zip(points, means, strict=True)
        ]

    def _depth(self, value: float, bottom: float, top: float) -> float:
        """How far below the top of the axis a value lies, from 0 to 1."""
        if self.logarithmic:
            value, bottom, top = (math.log(max(v, bottom)) for v in (value, bottom, top))
        return min(max((top - value) / (top - bottom), 0.0), 1.0)

    def _plot(
        self, points: list[Point], bottom: float, top: float, width: int, height: int
    ) -> list[tuple[str, bytes]]:
        band, line = (Canvas(width, height, braille=self._braille) for _ in range(2))
        last_x, last_y, total = band.width - 1, band.height - 1, max(self._total, 1)

        def row_of(value: float) -> int:
            return round(self._depth(value, bottom, top) * last_y)

        _draw(
            band,
            line,
            [
                (min(round(at / total * last_x), last_x), row_of(low), row_of(high), row_of(mean))
                for at, low, high, mean in points
            ],
        )
        marks = {
            (row_of(loss) // band.high, min(round(at / total * last_x), last_x) // 2)
            for at, loss in self._validation
        }
        return [
            _cells(band, line, y, {x for row, x in marks if row == y}, self._mark()) for y in range(height)
        ]

    def _mark(self) -> str:
        return "◆" if self._braille else "x"

    def _legend(self, width: int) -> tuple[str, bytes]:
        signs = {"m": "⠒⠒", "b": "⢕⢕", "v": "◆"} if self._braille else {"m": "▀▀", "b": "▚▚", "v": "x"}
        scale = "log scale   " if self.logarithmic else ""
        texts = (legend.format(scale=scale, **signs) for legend in LEGENDS)
        text = next((text for text in texts if len(text) <= width), "")
        text = text.rjust(width)
        kinds = bytearray([AXIS] * width)
        for sign, kind in zip(signs.values(), (MEAN, BAND, VALIDATION), strict=True):
            at = text.find(sign)
            if at >= 0:
                kinds[at : at + len(sign)] = bytes([kind] * len(sign))
        return text, bytes(kinds)

    def _steps(self, width: int, left: int) -> str:
        end = f"step {self._total:,}"
        middle = f"{self._total // 2:,}" if self._total > 3 and width - left > 40 else ""
        room = width - left - len(end) - 1
        return " " * left + "0" + middle.center(room + len(end))[:room].ljust(room) + end


def _draw(band: Canvas, line: Canvas, points: list[tuple[int, int, int, int]]) -> None:
    """Join the points (x, low, high, mean; in dots) by straight lines, column by column."""
    for first, second in zip(points, points[1:] or points, strict=False):
        span = max(second[0] - first[0], 1)
        before = first[3]
        for x in range(first[0], max(second[0], first[0]) + 1):
            low, high, mean = (
                round(a + (b - a) * (x - first[0]) / span) for a, b in zip(first[1:], second[1:], strict=True)
            )
            band.column(x, high, low, every=2)
            line.column(x, min(mean, before), max(mean, before))
            before = mean


def _cells(band: Canvas, line: Canvas, y: int, marks: set[int], mark: str) -> tuple[str, bytes]:
    text, kinds = [], bytearray()
    for x, (dim, bright) in enumerate(zip(band.cells[y], line.cells[y], strict=True)):
        kind = VALIDATION if x in marks else MEAN if bright else BAND if dim else BLANK
        kinds.append(kind)
        text.append(mark if kind == VALIDATION else band.glyph(bright or dim) if kind else " ")
    return "".join(text), bytes(kinds)


def _row(axis: str, text: str, width: int) -> tuple[str, bytes]:
    """A row of plain text in the axis' colour."""
    return (axis + text)[:width].ljust(width), bytes([AXIS] * width)


def _changed(y: int, old: tuple[str, bytes], new: tuple[str, bytes]) -> Region | None:
    if old == new:
        return None
    if len(old[0]) != len(new[0]):
        return Region(0, y, len(new[0]), 1)
    different = [x for x in range(len(new[0])) if old[0][x] != new[0][x] or old[1][x] != new[1][x]]
    return Region(different[0], y, different[-1] - different[0] + 1, 1)
