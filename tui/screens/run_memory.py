"""Memory by part, predicted and measured, and what the machine does: all that is known, at one key."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from ollama_tune.core.machine.live import BoxNow
from ollama_tune.core.text import human_bytes, human_seconds, one_line, visible
from ollama_tune.tui.memory_words import grouped, word_of
from ollama_tune.tui.run_follower import RunFollower
from ollama_tune.tui.run_values import Memory
from ollama_tune.tui.run_view import RunView
from ollama_tune.tui.screens.run_window import RunWindow, hanging
from ollama_tune.tui.widgets.live import live_lines
from ollama_tune.tui.widgets.memory import OTHERS, MemoryPanel

NAME, FIGURE = 20, 14


class MemoryScreen(RunWindow):
    """`look` gives what the box does now, None where that is not known."""

    TITLE_TEXT = "Memory and machine"

    def __init__(self, run: RunFollower, look: Callable[[], BoxNow | None]) -> None:
        super().__init__(run)
        self._look = look
        self._box: BoxNow | None = None

    def body(self) -> ComposeResult:
        """One text that scrolls."""
        with VerticalScroll(can_focus=False):
            yield Static(id="text", markup=False)

    def _poll(self) -> None:
        box = self._look()
        if box != self._box:
            self._box, self._shown = box, -1
        super()._poll()

    def show_view(self) -> None:
        """Show the figures."""
        width = max(self.scroller().size.width - 2, 20)
        text = Content("\n").join(_lines(self.view, self._box, width))
        self.query_one("#text", Static).update(text)


def _lines(view: RunView, box: BoxNow | None, width: int) -> Iterator[Content]:
    panel = MemoryPanel()
    devices = list(view.memories.values())
    panel.show(devices, view.predicted, view.probe)
    yield Content.styled("Memory of this run", "bold")
    yield from panel.lines(width)
    yield Content("")
    yield from parts_table(view.predicted, [memory for memory in devices if memory.parts] or devices[:1])
    if box is not None:
        yield Content("")
        yield Content.styled("This machine now", "bold")
        yield from live_lines(box, width)
    yield Content("")
    yield from _computed(view, width)


def parts_table(predicted: object, devices: list[Memory]) -> Iterator[Content]:
    """Predicted, and measured at the peak of each device: a line a part, below it what it is made of."""
    foreseen = dict(predicted) if isinstance(predicted, dict) else {}
    names = list(dict.fromkeys([*foreseen, *(name for memory in devices for name in memory.parts)]))
    if not names:
        return
    heads = ["predicted", *(one_line(memory.device, FIGURE) for memory in devices)]
    yield Content.styled(f"{'at the peak':<{NAME}}" + "".join(f"{head:>{FIGURE}}" for head in heads), "dim")
    columns = [foreseen, *(memory.parts for memory in devices)]
    sums = [grouped(column) for column in columns]
    for word in dict.fromkeys(word for column in sums for word in column):
        yield _row(word, [column.get(word) for column in sums], "bold")
        within = [name for name in names if word_of(name) == word]
        for name in within if len(within) > 1 else []:
            yield _row(f"  {name}", [column.get(name) for column in columns])
    total = sum(foreseen.values()) or None
    yield _row("this run", [total, *(memory.peak for memory in devices)], "bold")
    yield _row(OTHERS, [None, *(memory.others for memory in devices)])


def _row(name: str, figures: list[int | None], style: str = "") -> Content:
    cells = ("–" if figure is None else human_bytes(figure) for figure in figures)
    words = "".join(f"{cell:>{FIGURE}}" for cell in cells)
    return Content.assemble((f"{visible(name)[: NAME - 1]:<{NAME}}", style or "dim"), (words, style))


def _computed(view: RunView, width: int) -> Iterator[Content]:
    """Where and by which code the model is computed."""
    yield Content.styled("The run", "bold")
    yield from hanging("device", view.device or "not known yet", width)
    if view.path:
        reason = f": {view.path_reason}" if view.path_reason else ""
        yield from hanging("path", f"{view.path}{reason}", width)
    if view.first_step_seconds is not None:
        yield from hanging("first step", f"{human_seconds(view.first_step_seconds)} after the start", width)
