"""Two to four runs side by side: their curves in one chart, and the settings and figures that differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Static
from textual.worker import Worker

from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.text import human_count, human_seconds, one_line
from ollama_tune.tui.comparing import (
    LETTERS,
    Compared,
    Point,
    Row,
    line_of,
    metric_rows,
    read_compared,
    remarks,
    setting_rows,
)
from ollama_tune.tui.fields import FIELDS
from ollama_tune.tui.screens.base import FramedScreen
from ollama_tune.tui.text import put_text
from ollama_tune.tui.widgets.overlay import Line, Overlay

LABELS = 16, 27
CELL = 30
"""The widest cell of the table."""
BEST = 7
"""Room for the words that name the best run."""
OTHERS = {"data.path": "Data", "model.source": "Base model", "model.chat_template": "Chat form"}
"""Settings that are asked on pages of their own."""


@dataclass(frozen=True)
class Axis:
    """What the curves are drawn over, and how a value of it is said."""

    name: str
    value: Callable[[Point], float]
    words: Callable[[float], str]


AXES = (
    Axis("steps", lambda point: point.step, lambda value: f"step {value:,.0f}"),
    Axis("tokens", lambda point: point.tokens, lambda value: f"{human_count(value)} tokens"),
    Axis("time", lambda point: point.seconds, lambda value: f"{human_seconds(value)} in steps"),
)


@dataclass
class RunsCompared(Message):
    """The runs were read."""

    runs: tuple[Compared, ...]


class CompareScreen(FramedScreen):
    """Curves above, table below; both fit by scrolling the table."""

    TITLE_TEXT = "Compare"
    CSS_PATH = "compare.tcss"
    AUTO_FOCUS = "#table"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Back"),
        Binding("x", "axis", "Axis"),
        Binding("l", "scale", "Scale"),
        Binding("t", "table", "Table or curves alone"),
    ]

    def __init__(self, folders: Sequence[RunFolder]) -> None:
        super().__init__()
        self._folders = folders
        self._runs: tuple[Compared, ...] = ()
        self._axis = 0
        self._view = 0

    def about(self) -> str:
        """How many."""
        return f"{len(self._folders)} runs"

    def body(self) -> ComposeResult:
        """Who is who, the curves, and the table."""
        yield Static("Reading the runs …", id="names", markup=False)
        yield Overlay(id="curves")
        with VerticalScroll(id="table"):
            yield Static(id="rows", markup=False)

    def on_mount(self) -> None:
        """Read the logs in a thread: long ones take a while."""
        super().on_mount()
        self._read()

    @work(thread=True, exclusive=True, exit_on_error=False, group="compare")
    def _read(self) -> None:
        self.post_message(RunsCompared(tuple(read_compared(folder) for folder in self._folders)))

    @on(RunsCompared)
    def _compared(self, message: RunsCompared) -> None:
        self._runs = message.runs
        self._show()

    def on_resize(self) -> None:
        """Cells have the width that the window gives them."""
        self.call_after_refresh(self._show)

    def _show(self) -> None:
        if not self._runs:
            return
        put_text(self.query_one("#names", Static), _names(self._runs))
        self._draw()
        width = self.query_one("#table").scrollable_content_region.width
        put_text(self.query_one("#rows", Static), _table(self._runs, width))

    def _draw(self) -> None:
        axis = AXES[self._axis]
        lines = [
            Line(letter, _pairs(run.train, axis), _pairs(run.held, axis))
            for letter, run in zip(LETTERS, self._runs, strict=False)
        ]
        self.query_one(Overlay).show(lines, axis.words)

    # Keys

    def action_close(self) -> None:
        """Back to the list."""
        self.app.pop_screen()

    def action_axis(self) -> None:
        """Over steps, tokens or time: runs with other batches are as far at other steps."""
        self._axis = (self._axis + 1) % len(AXES)
        self._draw()
        self.say(f"The curves are drawn over {AXES[self._axis].name}.")

    def action_scale(self) -> None:
        """Another scale for the losses."""
        self.query_one(Overlay).rescale()

    def action_table(self) -> None:
        """Both, the table alone, or the curves alone."""
        self._view = (self._view + 1) % 3
        self.query_one("#curves").display = self._view != 1
        self.query_one("#table").display = self._view != 2

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """An error of our own in slow work is reported by the application."""
        self.tune.on_worker_state_changed(event)


def _pairs(points: Sequence[Point], axis: Axis) -> list[tuple[float, float]]:
    return [(axis.value(point), point.loss) for point in points]


def _names(runs: Sequence[Compared]) -> Content:
    """Each letter with its run and what the curves of that mean."""
    lines = []
    for letter, run in zip(LETTERS, runs, strict=False):
        advice = run.summary.advice
        said = f"   {advice.sign} {advice.sentence}" if advice is not None else ""
        lines.append(Content.assemble((f"{letter} ", "bold"), one_line(run.folder.name, 80), (said, "dim")))
    return Content("\n").join(lines)


def _table(runs: Sequence[Compared], width: int) -> Content:
    """Two parts, each under a heading with the letters."""
    letters = tuple(LETTERS[: len(runs)])
    label = min(max(width - BEST - 11 * len(runs), LABELS[0]), LABELS[1])
    cell = min((width - label - 1 - BEST) // len(runs), CELL)
    settings = setting_rows(runs)
    same = [] if settings else [Content.styled("No setting differs.", "dim")]
    return Content("\n").join(
        [
            *(Content.styled(f"! {remark}", "bold") for remark in remarks(runs)),
            _heading("What differs", letters, label, cell),
            *(Content(line_of(_named(row), label, cell)) for row in settings),
            *same,
            Content(""),
            _heading("What came of it", letters, label, cell),
            *(Content(line_of(row, label, cell)) for row in metric_rows(runs)),
        ]
    )


def _named(row: Row) -> Row:
    """The row of a setting with the words of the form instead of its path."""
    field = FIELDS.get(row.label)
    return replace(row, label=field.label if field else OTHERS.get(row.label, row.label))


def _heading(words: str, letters: tuple[str, ...], label: int, cell: int) -> Content:
    return Content.styled(line_of(Row(words, letters), label, cell), "bold")
