"""Small charts as SVG texts: figures of two models with their intervals, and tables of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from ollama_tune.core.text import one_line

COLOURS = ("#8a8f98", "#2f6fdb")
"""Of the other model and of the tuned one."""
INK = "#1f2328"
LEFT, BAR, GAP, HEIGHT = 110, 300, 14, 16
HEAD = 130
"""Room for the words above a table of labels."""
FONT = 'font-family="system-ui, sans-serif" font-size="12"'


@dataclass(frozen=True)
class Bar:
    """A figure with its interval (one without width is not drawn), and how it is written."""

    value: float
    low: float
    high: float
    text: str


def bars(
    title: str, models: Sequence[str], groups: Sequence[tuple[str, Sequence[Bar | None]]], top: float = 0.0
) -> str:
    """A group of bars for each metric, one bar a model, on one scale from 0 to `top`, or to the highest."""
    top = top or max((bar.high for _, group in groups for bar in group if bar), default=0.0) or 1.0
    parts, y = [_text(0, 16, title, bold=True), *_legend(models)], 52
    for name, group in groups:
        parts.append(_text(LEFT - 8, y + HEIGHT * len(group) / 2 + 4, name, anchor="end"))
        for number, bar in enumerate(group):
            if bar is not None:
                parts += _bar(bar, y + number * HEIGHT, COLOURS[number], BAR / top)
        y += HEIGHT * len(group) + GAP
    return _picture(LEFT + BAR + 90, y, parts)


def _legend(models: Sequence[str]) -> list[str]:
    parts = []
    for number, model in enumerate(models):
        x = LEFT + number * 150
        parts += [_box(x, 28, 10, 10, COLOURS[number]), _text(x + 16, 37, one_line(model, 20))]
    return parts


def _bar(bar: Bar, y: float, colour: str, scale: float) -> list[str]:
    low, high, middle = LEFT + bar.low * scale, LEFT + bar.high * scale, y + HEIGHT / 2 - 1
    ends = [(low, middle, high, middle), *((x, middle - 4, x, middle + 4) for x in (low, high))]
    return [
        _box(LEFT, y, max(bar.value * scale, 0.5), HEIGHT - 2, colour),
        *(_line(*end) for end in ends if bar.high > bar.low),
        _text(LEFT + BAR + 10, y + 12, bar.text),
    ]


def confusion_chart(title: str, labels: Sequence[str], table: Sequence[Sequence[int]]) -> str:
    """A table of labels: right ones as rows, said ones as columns, the darker the larger its row's share."""
    cell = 40 if len(labels) <= 12 else 22
    parts = [_text(0, 16, title, bold=True), _text(LEFT, 38, "said by the model →")]
    for at, label in enumerate(labels):
        x, y = LEFT + at * cell + cell / 2, 48 + at * cell + cell / 2 + 4
        parts.append(_text(LEFT - 8, y, one_line(label, 16), anchor="end"))
        below = 60 + cell * len(labels)
        parts.append(_text(x, below, one_line(label, 16), anchor="end", turned=True))
    for row, counts in enumerate(table):
        whole = sum(counts) or 1
        for column, count in enumerate(counts):
            x, y = LEFT + column * cell, 48 + row * cell
            parts.append(_box(x, y, cell - 1, cell - 1, COLOURS[1], opacity=0.06 + 0.94 * count / whole))
            ink = "#ffffff" if count / whole > 0.5 else INK
            parts.append(_text(x + cell / 2, y + cell / 2 + 4, str(count), anchor="middle", colour=ink))
    return _picture(LEFT + max(cell * len(labels), HEAD) + 20, 160 + cell * len(labels), parts)


def _picture(width: float, height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" {FONT}>'
    return "\n".join([head, _box(0, 0, width, height, "#ffffff"), *parts, "</svg>\n"])


def _box(x: float, y: float, width: float, height: float, colour: str, *, opacity: float = 1.0) -> str:
    shade = f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"{shade}/>'


def _line(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{INK}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    bold: bool = False,
    turned: bool = False,
    colour: str = INK,
) -> str:
    how = f' text-anchor="{anchor}"' if anchor != "start" else ""
    how += ' font-weight="600"' if bold else ""
    how += f' transform="rotate(-45 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}"{how}>{escape(one_line(text, 80))}</text>'
