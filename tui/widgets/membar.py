"""The predicted memory against what is free, part by part, and the time, in words and as a bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from ollama_tune.core.text import human_bytes, visible
from ollama_tune.tui.memory_words import grouped
from ollama_tune.tui.review_words import time_parts
from ollama_tune.tui.widgets.memory import legend, stacked

if TYPE_CHECKING:
    from ollama_tune.core.plan.values import MemoryEstimate, Plan, WorkEstimate

DEVICES = {"cuda": "GPU memory", "cpu": "memory"}


class MemoryBar(Widget):
    """Three lines: the verdict, the bar with its legend, the time. They move as values change."""

    DEFAULT_CSS = "MemoryBar { height: 4; text-wrap: nowrap; text-overflow: ellipsis; }"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._plan: Plan | None = None
        self._waiting = ""

    def show(self, plan: Plan | None, waiting: str = "") -> None:
        """Show a plan's figures, and what is being waited for besides."""
        self._plan, self._waiting = plan, waiting
        self.refresh()

    def render(self) -> RenderResult:
        """The lines."""
        if self._plan is None:
            return Content.styled(self._waiting, "dim")
        memory, work = self._plan.memory, self._plan.work
        width = self.content_region.width
        first = Content.assemble(verdict(memory), (f" ({source(memory, self._waiting)})", "dim"))
        names = legend(_parts(memory), width, 1)
        return Content("\n").join([first, bar(memory, width), *names, duration(work)])


def verdict(memory: MemoryEstimate) -> Content:
    """`✓ fits: about 1.2 GiB of 5.0 GiB free GPU memory`, or that it does not."""
    sign, style = ("✓ fits", "$text-success") if memory.fits else ("✗ does not fit", "$text-error")
    kind = DEVICES.get(memory.device, "memory")
    each = f" on each of {memory.processes} GPUs" * (memory.processes > 1 and memory.device == "cuda")
    words = f": about {human_bytes(memory.needed)} of {human_bytes(memory.free)} free {kind}{each}"
    return Content.assemble((sign, f"bold {style}"), words)


def source(memory: MemoryEstimate, waiting: str = "") -> str:
    """Which layer the figure comes from, and how another one differs: `simulated; formula 12.1 GiB`."""
    words = memory.remark or waiting
    return visible(f"{memory.method}; {words}" if words else memory.method)


def bar(memory: MemoryEstimate, width: int) -> Content:
    """The parts side by side, scaled to what is free (or to what is needed, when that is more)."""
    whole, cells = max(memory.free, memory.needed, 1), max(width - 2, 8)
    line = stacked(_parts(memory), whole, cells)
    if memory.fits:
        return line + Content("▏")
    limit = round(memory.free / whole * cells)
    return line[:limit] + Content.styled("|", "bold $text-error") + line[limit:]


def _parts(memory: MemoryEstimate) -> dict[str, int]:
    return grouped({part.name: part.bytes for part in memory.parts})


def duration(work: WorkEstimate) -> Content:
    """Time and steps, and the range in which the time lies."""
    long, steps, between = time_parts(work)
    return Content.assemble("about ", (long, "bold"), steps, (between, "dim"))
